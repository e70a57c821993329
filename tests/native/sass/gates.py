"""Compiles the kernels as the product does and reduces each to the figures that the gates compare.

``python -m native.sass.gates`` (in ``tests``) measures everything and rewrites expected.json: do that when a change of
the kernels is meant, and look at the difference.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from native.simt import toolchain
from native.simt.attention import HEAD_DIMS, AttentionSimulator

from . import pipe_model

EXPECTED = Path(__file__).resolve().parent / "expected.json"
ATTENTIONS = [(arithmetic, scored) for arithmetic in ("tile", "paper", "half") for scored in (False, True)]
OTHERS = ("statistics", "quantize_kv", "merge")
TILE_N = 64


@dataclass(frozen=True)
class Gate:
    """One compiled attention kernel."""

    arch: str
    head_dim: int
    arithmetic: str
    scored: bool = False  # softcap or a mask tensor

    @property
    def kernel(self) -> str:
        """Its C name."""
        return f"intfa_attention_{self.arithmetic}{'_scored' if self.scored else ''}_d{self.head_dim}"

    def __str__(self) -> str:
        return f"sm_{self.arch}/{self.kernel}"


GATES = [Gate(a, d, *k) for a in pipe_model.ARCHITECTURES for d in HEAD_DIMS for k in ATTENTIONS]


def mma_per_tile(gate: Gate, rows_per_warp: int) -> int:
    """How many MMAs a warp needs for the two products of one tile of keys."""
    strips, n = rows_per_warp // 16, TILE_N
    qk = strips * (n // 8) * (gate.head_dim // 32)
    return qk + strips * (gate.head_dim // 8) * (n // 16 if gate.arithmetic == "half" else n // 32)


def compile_gate(gate: Gate) -> Path:
    """The cubin with all kernels of this gate's head size."""
    source = toolchain.PLUGIN / "cuda" / f"kernels_d{gate.head_dim}.cu"
    return toolchain.cubin(source, f"gates-d{gate.head_dim}", gate.arch)


def stack_bytes_of_others(gate: Gate) -> dict[str, int]:
    """Stack of the prologue's and the merging kernels of this gate's architecture and head size."""
    cuobjdump = toolchain.cuda_tool("cuobjdump")
    assert cuobjdump is not None
    found = pipe_model.resources(compile_gate(gate), cuobjdump)
    return {name: found[f"intfa_{name}_d{gate.head_dim}"]["stack_bytes"] for name in OTHERS}


def measure(gate: Gate, simulator: AttentionSimulator) -> dict[str, Any]:
    """Figures of one kernel: resources, occupancy, and the main loop's report."""
    cuobjdump = toolchain.cuda_tool("cuobjdump")
    assert cuobjdump is not None
    cubin = compile_gate(gate)
    tile_m, threads, shared_bytes = simulator.shape(gate.head_dim, gate.arithmetic, gate.scored)
    instructions = pipe_model.disassemble(cubin, cuobjdump)[gate.kernel]
    loop = pipe_model.of_float_input(pipe_model.main_loop(instructions, mma_per_tile(gate, tile_m * 32 // threads)))
    arch = pipe_model.ARCHITECTURES[gate.arch]
    report = pipe_model.analyse(loop, arch)
    resources = pipe_model.resources(cubin, cuobjdump)[gate.kernel]
    return {
        **resources,
        "shared_bytes": shared_bytes,
        "blocks_per_sm": pipe_model.blocks_per_sm(arch, resources["registers"], shared_bytes, threads),
        "mma": report.mma,
        "local_in_loop": len(report.local),
        "slow_conversions_in_loop": len(report.slow_conversions),
        "cycles": report.cycles,
        "bottleneck": report.bottleneck,
        "mma_share": round(report.mma_share, 3),
    }


def measure_all(gates: list[Gate]) -> dict[str, dict[str, Any]]:
    """Measure several gates."""
    simulator = AttentionSimulator()
    return {str(gate): measure(gate, simulator) for gate in gates}


if __name__ == "__main__":
    EXPECTED.write_text(json.dumps(measure_all(GATES), indent=1) + "\n")
    print(f"wrote {EXPECTED}; look at the difference before committing it")
