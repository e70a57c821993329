"""Compiles the attention kernels and reduces each to the figures that the gates compare.

``python -m native.sass.gates`` (in ``tests``) measures everything and rewrites expected.json: do that when a change of
the kernels is meant, and look at the difference.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from native.simt import toolchain
from native.simt.attention import HEAD_DIMS, AttentionSimulator

from . import pipe_model

FOLDER = Path(__file__).resolve().parent
EXPECTED = FOLDER / "expected.json"
ARITHMETICS = ("tile", "half")
TILE_N = 64


@dataclass(frozen=True)
class Gate:
    """One compiled kernel."""

    arch: str
    head_dim: int
    arithmetic: str

    @property
    def kernel(self) -> str:
        """Its C name."""
        return f"intfa_attention_{self.arithmetic}_d{self.head_dim}"

    def __str__(self) -> str:
        return f"sm_{self.arch}/{self.kernel}"


GATES = [Gate(a, d, k) for a in pipe_model.ARCHITECTURES for d in HEAD_DIMS for k in ARITHMETICS]


def mma_per_tile(gate: Gate, rows_per_warp: int) -> int:
    """How many MMAs a warp needs for the two products of one tile of keys."""
    strips, n = rows_per_warp // 16, TILE_N
    qk = strips * (n // 8) * (gate.head_dim // 32)
    return qk + strips * (gate.head_dim // 8) * (n // 32 if gate.arithmetic == "tile" else n // 16)


def compile_gate(gate: Gate) -> Path:
    """The cubin with this gate's kernel."""
    define = [f"-DINTFA_GATE_DIM={gate.head_dim}"]
    return toolchain.cubin(FOLDER / "gates.cu", f"gates-d{gate.head_dim}", gate.arch, define)


def measure(gate: Gate, simulator: AttentionSimulator) -> dict[str, Any]:
    """Figures of one kernel: resources, occupancy, and the main loop's report."""
    cuobjdump = toolchain.cuda_tool("cuobjdump")
    assert cuobjdump is not None
    cubin = compile_gate(gate)
    tile_m, threads, shared_bytes = simulator.shape(gate.head_dim, gate.arithmetic)
    instructions = pipe_model.disassemble(cubin, cuobjdump)[gate.kernel]
    loop = pipe_model.main_loop(instructions, mma_per_tile(gate, tile_m * 32 // threads))
    arch = pipe_model.ARCHITECTURES[gate.arch]
    report = pipe_model.analyse(loop, arch)
    resources = pipe_model.resources(cubin, cuobjdump)[gate.kernel]
    return {
        **resources,
        "shared_bytes": shared_bytes,
        "blocks_per_sm": pipe_model.blocks_per_sm(arch, resources["registers"], shared_bytes, threads),
        "mma": report.mma,
        "local_in_loop": len(report.local),
        "slow_conversions_in_loop": report.slow_conversions,
        "cycles": report.cycles,
        "bottleneck": report.bottleneck,
        "mma_share": round(report.mma_share, 3),
    }


def measure_all(gates: list[Gate]) -> dict[str, dict[str, Any]]:
    """Measure several gates, compiling two at a time."""
    simulator = AttentionSimulator()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_gate, {(g.arch, g.head_dim): g for g in gates}.values()))
    return {str(gate): measure(gate, simulator) for gate in gates}


if __name__ == "__main__":
    EXPECTED.write_text(json.dumps(measure_all(GATES), indent=1) + "\n")
    print(f"wrote {EXPECTED}; look at the difference before committing it")
