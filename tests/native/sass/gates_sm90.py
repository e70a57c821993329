"""Gates of the wgmma kernels: their registers, and the work of their main loop beside what their tensor work takes.

``python -m native.sass.gates_sm90`` (in ``tests``) measures them and rewrites expected_sm90.json.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from native.simt import toolchain
from native.simt.attention import AttentionSimulator

from . import pipe_model
from .pipe_model import Instruction

EXPECTED = Path(__file__).resolve().parent / "expected_sm90.json"
ARCH = "90a"
# Head size, queries per block, with a mask tensor or softcap.
KERNELS = [(d, 64, scored) for d in (64, 96, 128, 256) for scored in (False, True)]
KERNELS += [(d, 192, False) for d in (64, 96, 128)]
# Dense int8 at 132 SMs x 1.755 GHz (H200): what the bound of the loop is stated against.
SMS, CLOCK_HZ = 132, 1.755e9


@dataclass(frozen=True)
class WgmmaGate:
    """One compiled kernel."""

    head_dim: int
    tile_m: int
    scored: bool

    @property
    def kernel(self) -> str:
        """Its C name."""
        queries = "" if self.tile_m == 64 else str(self.tile_m)
        return f"intfa_attention_wgmma{queries}_{'scored_' if self.scored else ''}d{self.head_dim}"

    def __str__(self) -> str:
        return f"sm_{ARCH}/{self.kernel}"


GATES = [WgmmaGate(*kernel) for kernel in KERNELS]


def compile_kernels() -> Path:
    """The cubin of all wgmma kernels.

    Raises:
        RuntimeError: ptxas failed, or says that it serializes wgmma.
    """
    return toolchain.cubin(toolchain.PLUGIN / "cuda" / "kernels_sm90.cu", "wgmma", ARCH)


def wgmma_per_tile(head_dim: int, tile_n: int) -> int:
    """Instructions per tile: 32 channels of QK each, then 32 keys of PV, at most 128 channels at a time."""
    return head_dim // 32 + tile_n // 32 * -(-head_dim // 128)


def highest_register(instructions: Iterable[Instruction]) -> int:
    """The largest number of a register that one of them names."""
    return max(int(r) for i in instructions for r in re.findall(r"\bR(\d+)\b", i.text))


def reached_from(instructions: list[Instruction], start: int) -> list[Instruction]:
    """What may run after the instruction at index ``start``."""
    index = {instruction.address: n for n, instruction in enumerate(instructions)}
    todo, reached = [start + 1], set()
    while todo:
        n = todo.pop()
        if n in reached or n >= len(instructions):
            continue
        reached.add(n)
        branch = re.search(r"^(@\S+\s+)?BRA\b(.*?)(0x[0-9a-f]+)", instructions[n].text)
        if branch:
            todo.append(index[int(branch[3], 16)])
        always = not instructions[n].text.startswith("@") and not (branch and re.search(r"\bU?P\d", branch[2]))
        if not (always and (branch or instructions[n].name == "EXIT")):
            todo.append(n + 1)
    return [instructions[n] for n in sorted(reached)]


def measure(gate: WgmmaGate, simulator: AttentionSimulator) -> dict[str, Any]:
    """Figures of one kernel: resources, and its main loop's report; that of a scored kernel is mostly branches."""
    cuobjdump = toolchain.cuda_tool("cuobjdump")
    assert cuobjdump is not None
    cubin = compile_kernels()
    _, threads, shared_bytes, tile_n = simulator.wgmma_shape(gate.head_dim, gate.tile_m, gate.scored)
    arch = pipe_model.ARCHITECTURES[ARCH]
    resources = pipe_model.resources(cubin, cuobjdump)[gate.kernel]
    blocks = pipe_model.blocks_per_sm(arch, resources["registers"], shared_bytes, threads)
    occupancy = {**resources, "shared_bytes": shared_bytes, "blocks_per_sm": blocks}
    instructions = pipe_model.disassemble(cubin, cuobjdump)[gate.kernel]
    if gate.scored:  # its one loop is all that multiplies
        mma = Counter(i.opcode for i in instructions if pipe_model.MMA.match(i.opcode))
        return {**occupancy, "mma": dict(sorted(mma.items()))}
    occupancy["highest_register"] = highest_register(instructions)
    occupancy["setmaxnreg"] = {
        "give" if "DEALLOC" in i.opcode else "take": int(i.text.split()[-1], 16)
        for i in instructions
        if i.name == "USETMAXREG"
    }
    for n, instruction in enumerate(instructions):
        if instruction.opcode.startswith("USETMAXREG.DEALLOC"):
            occupancy["highest_register_after_giving"] = highest_register(reached_from(instructions, n))
    loop = pipe_model.main_loop(instructions, wgmma_per_tile(gate.head_dim, tile_n))
    report = pipe_model.analyse(loop, arch)
    operations = 4 * 64 * tile_n * gate.head_dim  # of a warpgroup, which has one warp on each sub-partition
    cycles = report.cycles[report.bottleneck]
    return {
        **occupancy,
        "mma": report.mma,
        "local_in_loop": len(report.local),
        "slow_conversions_in_loop": report.slow_conversions,
        "cycles": report.cycles,
        "bottleneck": report.bottleneck,
        "mma_share": round(report.mma_share, 3),
        "bound_tops": round(operations / cycles * SMS * CLOCK_HZ / 1e12),
    }


def measure_all() -> dict[str, dict[str, Any]]:
    """Measure every wgmma kernel."""
    simulator = AttentionSimulator()
    return {str(gate): measure(gate, simulator) for gate in GATES}


if __name__ == "__main__":
    EXPECTED.write_text(json.dumps(measure_all(), indent=1) + "\n")
    print(f"wrote {EXPECTED}; look at the difference before committing it")
