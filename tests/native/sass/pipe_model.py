"""A static model of compiled kernels: the cycles that the main loop occupies each pipe for, per tile and warp.

It reads the disassembly (SASS), so it sees what ptxas made of the kernel: the MMA instructions, conversions that went
to the slow pipe, spills. It knows nothing of latency, overlap or caches: use its figures as ratios between two versions
of one kernel.

Cycles are those of one SM sub-partition (a quarter of an SM) per warp instruction: 32 / (lanes per cycle and SM / 4).
Throughputs: CUDA C++ Programming Guide, "Arithmetic Instructions"; int8 multiply-adds per cycle and SM from NVIDIA's
peaks, see ARCHITECTURES; mma.sync on sm_90 reaches 63 % of the wgmma peak (arXiv 2402.13499).
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Architecture:
    """Lanes per cycle and SM by pipe, and what bounds occupancy."""

    fma: int  # FFMA, FMUL, FADD
    macs: int  # int8 multiply-adds per cycle and SM
    mma_efficiency: float  # of mma.sync
    shared_kb: int  # per SM
    alu: int = 64
    slow: int = 16  # MUFU and the conversions I2F, F2I
    registers: int = 65536  # per SM


# macs = published dense int8 peak / (2 * SMs * published boost clock); each is within 1 % of a power of two:
#   80   A100 SXM   624 TOPS, 108 SMs, 1.410 GHz
#   86   A40      299.3 TOPS,  84 SMs, 1.740 GHz
#   89   RTX 4090 660.6 TOPS, 128 SMs, 2.520 GHz
#   90a  H100 SXM  1979 TOPS, 132 SMs, 1.830 GHz
#   120  RTX 5090   838 TOPS, 170 SMs, 2.407 GHz (3352 AI TOPS are FP4 with sparsity: a quarter)
# float16 with float32 accumulation is taken at half of int8, as on the A40; a GeForce has a quarter (RTX 4090: 165.2
# TFLOPS), so there the int8_qk kernels are the more bound by the tensor cores.
ARCHITECTURES = {
    "80": Architecture(fma=64, macs=2048, mma_efficiency=1.0, shared_kb=164),
    "86": Architecture(fma=128, macs=1024, mma_efficiency=1.0, shared_kb=100),
    "120": Architecture(fma=128, macs=1024, mma_efficiency=1.0, shared_kb=100),
    "89": Architecture(fma=128, macs=1024, mma_efficiency=1.0, shared_kb=100),
    "90a": Architecture(fma=128, macs=4096, mma_efficiency=0.63, shared_kb=228),
}

MMA = re.compile(r"^[IHQ]G?MMA\b")
_MACS = {"16832": 16 * 8 * 32, "16816": 16 * 8 * 16}
_WGMMA = re.compile(r"IGMMA\.64x(\d+)x32")  # a warp's share: 16 of the 64 rows
_FMA = {"FFMA", "FMUL", "FADD", "IMAD", "HFMA2", "FFMA2"}
_SLOW = {"MUFU", "I2F", "F2I", "F2F", "I2I", "FRND", "POPC", "FLO", "BREV"}
_SHARED = {"LDSM", "LDS", "STS", "LDGSTS", "LDG", "STG", "SHFL", "ATOMS"}
_LOCAL = {"LDL", "STL"}
_CONDITIONAL = re.compile(r"^(?:@.*\bBRA\b|BRA\.U\b).*?(0x[0-9a-f]+)")  # sm_100 and later have BRA.U
_CONTROL = {
    "BRA", "BAR", "NOP", "EXIT", "BSSY", "BSYNC", "WARPSYNC", "DEPBAR", "LDGDEPBAR", "CALL", "RET", "YIELD", "MEMBAR",
    "PLOP3", "S2R", "WARPGROUP", "SYNCS", "ELECT", "CS2R", "VOTE", "BREAK",
}  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """One line of disassembly."""

    address: int
    opcode: str  # with its modifiers, without the predicate
    text: str

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]


def pipe(instruction: Instruction, arch: Architecture) -> tuple[str, float]:
    """Return the pipe and the cycles that the instruction occupies it for."""
    name, opcode = instruction.name, instruction.opcode
    if wgmma := _WGMMA.match(opcode):
        return "tensor", 16 * int(wgmma[1]) * 32 / (arch.macs / 4)
    if MMA.match(opcode):
        shape = next((s for s in _MACS if f".{s}" in opcode), None)
        if shape is None:
            raise ValueError(f"MMA of unknown shape: {opcode}")
        # An f16 multiply-add takes twice an int8 one.
        macs = _MACS[shape] * (1 if name == "IMMA" else 2)
        return "tensor", macs / (arch.macs * arch.mma_efficiency / 4)
    if name in _SLOW:
        return "slow", 128 / arch.slow
    if name in _FMA:
        return "fma", 128 / arch.fma
    if name in _SHARED:  # 128 bytes per cycle and SM, shared by the four sub-partitions
        words = 4 if re.search(r"\.(4|128)\b", opcode) else 2 if re.search(r"\.(2|64)\b", opcode) else 1
        return "shared", 4.0 * words
    if name in _LOCAL:
        return "local", 4.0
    if name in _CONTROL or name.startswith("U") or name.startswith("R2U"):
        return "control", 1.0
    return "alu", 128 / arch.alu


@cache  # a cubin has many kernels
def disassemble(cubin: Path, cuobjdump: str) -> dict[str, list[Instruction]]:
    """Instructions of every kernel in a cubin; nvdisasm must lie beside cuobjdump or on PATH."""
    env = {**os.environ, "PATH": f"{Path(cuobjdump).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    out = subprocess.run([cuobjdump, "-sass", str(cubin)], capture_output=True, text=True, check=True, env=env).stdout
    kernels: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in out.splitlines():
        if m := re.match(r"\s*Function : (\S+)", line):
            current = kernels.setdefault(m[1], [])
        elif m := re.match(r"\s+/\*([0-9a-f]{4,5})\*/\s+(.*?);", line):
            text = m[2].strip()
            opcode = re.sub(r"^@!?U?P\w+\s+", "", text).split()[0]
            current.append(Instruction(int(m[1], 16), opcode, text))
    return kernels


def resources(cubin: Path, cuobjdump: str) -> dict[str, dict[str, int]]:
    """Registers and bytes of stack (spills and local arrays) of every kernel."""
    out = subprocess.run([cuobjdump, "-res-usage", str(cubin)], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"Function (\S+?):\s+REG:(\d+) STACK:(\d+)", out)
    return {name: {"registers": int(registers), "stack_bytes": int(stack)} for name, registers, stack in found}


def main_loop(instructions: list[Instruction], mma_per_tile: int) -> list[Instruction]:
    """The loop over tiles that need no mask: the shortest one with the MMAs of one tile.

    Args:
        instructions: of one kernel.
        mma_per_tile: of the two products; the kernel may have a few more (a row sum by a column of ones).
    Raises:
        ValueError: no such loop; the kernel's unrolling or tile has changed.
    """
    loops = []
    for end, last in enumerate(instructions):
        m = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", last.text)
        if m is None or int(m[1], 16) >= last.address:
            continue
        body = [i for i in instructions[: end + 1] if i.address >= int(m[1], 16)]
        loops.append((sum(bool(MMA.match(i.opcode)) for i in body), body))
    whole = [body for count, body in loops if mma_per_tile <= count < 1.25 * mma_per_tile]
    if not whole:
        raise ValueError(f"no loop with about {mma_per_tile} MMAs; loops have {sorted({n for n, _ in loops})}")
    return without_rescale(min(whole, key=len))


def without_rescale(loop: list[Instruction]) -> list[Instruction]:
    """The loop less its rare part: a block of pure arithmetic under a forward branch.

    That is the rescaling of the output, which runs where the reference moves and every eighth tile.
    """
    busy = _SHARED | {"BAR"}
    rare: set[int] = set()
    for branch in loop:
        m = re.search(r"^@.*\bBRA\b.*?(0x[0-9a-f]+)", branch.text)
        skipped = [i for i in loop if m and branch.address < i.address < int(m[1], 16)]
        if len(skipped) > 8 and not any(MMA.match(i.opcode) or i.name in busy for i in skipped):
            rare |= {i.address for i in skipped}
    return [i for i in loop if i.address not in rare]


def of_float_input(loop: list[Instruction]) -> list[Instruction]:
    """The loop less what INT8 K in place alone runs: blocks under a forward branch that copy its codes, or clamp them.

    They read 16 bytes of shared memory and copy to it (LDGSTS) or write it (STS); staging a mask reads global memory.
    """
    other = {"BAR", "LDG", "LDSM"}
    rare: set[int] = set()
    for read in (i for i in loop if i.opcode == "LDS.128"):
        blocks = []
        for branch in loop:
            m = _CONDITIONAL.search(branch.text)
            if m and branch.address < read.address < int(m[1], 16):
                blocks.append([i for i in loop if branch.address < i.address < int(m[1], 16)])
        block = min(blocks, key=len, default=[])  # the innermost
        names = {i.name for i in block}
        if names & {"STS", "LDGSTS"} and not names & other and not any(MMA.match(i.opcode) for i in block):
            rare |= {i.address for i in block}
    return [i for i in loop if i.address not in rare]


@dataclass
class LoopReport:
    """Of one kernel's main loop."""

    cycles: dict[str, float]  # by pipe; "issue" is one per instruction
    mma: dict[str, int]  # opcodes
    slow_conversions: list[str]
    local: list[str]
    opcodes: Counter = field(default_factory=Counter)

    @property
    def bottleneck(self) -> str:
        """The busiest pipe."""
        return max(self.cycles, key=lambda k: self.cycles[k])

    @property
    def mma_share(self) -> float:
        """Tensor cycles over the bottleneck's: 1 is bound by the tensor cores."""
        return self.cycles["tensor"] / self.cycles[self.bottleneck]


def analyse(loop: list[Instruction], arch: Architecture) -> LoopReport:
    """Add up a loop."""
    cycles: Counter = Counter()
    for instruction in loop:
        name, time = pipe(instruction, arch)
        cycles[name] += time
        cycles["issue"] += 1
    return LoopReport(
        cycles={k: round(v, 1) for k, v in sorted(cycles.items())},
        mma=dict(Counter(i.opcode for i in loop if MMA.match(i.opcode))),
        slow_conversions=[i.text for i in loop if i.name in {"I2F", "F2I", "F2F", "I2I", "FRND"}],
        local=[i.text for i in loop if i.name in _LOCAL],
        opcodes=Counter(i.name for i in loop),
    )


def blocks_per_sm(arch: Architecture, registers: int, shared_bytes: int, threads: int) -> int:
    """How many blocks are resident: registers come in units of 8 per thread, a block reserves 1 KB of shared memory."""
    by_registers = arch.registers // (-(-registers // 8) * 8 * threads)
    by_shared = arch.shared_kb * 1024 // (shared_bytes + 1024)
    return min(by_registers, by_shared)
