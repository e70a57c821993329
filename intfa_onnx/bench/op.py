"""The operator beside its peers: verified on sampled rows, then timed in interleaved rounds."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intfa_onnx.bench.candidate import Candidate, Inputs
from intfa_onnx.bench.limits import Device, percent_of_limit
from intfa_onnx.bench.problem import Problem
from intfa_onnx.bench.timing import Timing, host_timer, measure, ratio
from intfa_onnx.errors import IntfaError

# Relative L2 error above which a candidate is wrong rather than imprecise: the paper's INT8 scheme stays below 6 % on
# N(0, 1) and float peers are three orders below, while a wrong mask or scale gives tens of percent.
MAX_ERROR = 0.10
OURS = "intfa int8"

Maker = Callable[[Problem, Inputs, int], Candidate]


@dataclass(frozen=True)
class Row:
    """One candidate on one problem; ``skipped`` says why it has no time."""

    candidate: str
    error: float | None = None  # relative L2 against float64, sampled rows
    timing: Timing | None = None
    skipped: str = ""


@dataclass(frozen=True)
class ProblemResult:
    """All candidates on one problem."""

    problem: Problem
    rows: tuple[Row, ...]
    device: Device | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types: seconds, TOPS, ratios to our INT8 operator."""
        p = self.problem
        ours = next((r.timing for r in self.rows if r.candidate == OURS), None)
        rows = []
        for row in self.rows:
            entry: dict[str, Any] = {"candidate": row.candidate}
            if row.timing is None:
                entry["skipped"] = row.skipped
            else:
                entry |= {
                    "error": row.error,
                    "seconds": row.timing.median,
                    "spread": row.timing.spread,
                    "tops": p.operations / row.timing.median / 1e12,
                }
                if self.device:
                    resource, percent = percent_of_limit(p, self.device, row.timing.median)
                    entry |= {"limit": resource, "percent_of_limit": percent}
                if ours and row.candidate != OURS:
                    entry["intfa_is_faster_by"] = str(ratio(row.timing, ours))
            rows.append(entry)
        keys = ("batch", "num_heads", "kv_num_heads", "seqlen", "head_dim", "causal", "data")
        return {"problem": {k: getattr(p, k) for k in keys}, "label": p.label(), "rows": rows}


def bench_problem(
    problem: Problem,
    peers: Mapping[str, Maker],
    *,
    threads: int = 1,
    rounds: int = 15,
    round_seconds: float = 0.05,
    timer: Callable[[Callable[[], object], int], float] = host_timer,
    device: Device | None = None,
) -> ProblemResult:
    """Verify and time every peer that runs here.

    Args:
        problem: what to compute.
        peers: makers of candidates by name; one of them is ``OURS``.
        threads: CPU threads of each candidate.
        rounds: number of rounds.
        round_seconds: least time of one candidate in one round, in seconds.
        timer: the host's clock, or device events.
        device: the table's row of the GPU, for the percentage of the limit.
    """
    inputs = problem.inputs()
    positions, truth = problem.sampled_truth(*inputs)
    candidates: dict[str, Candidate] = {}
    rows: dict[str, Row] = {}
    for name, make in peers.items():
        try:
            candidate = make(problem, inputs, threads)
            candidate.run()
            y = candidate.output()[:, :, positions]
            error = float(np.linalg.norm(y - truth) / np.linalg.norm(truth))
            if not error <= MAX_ERROR:
                raise IntfaError(f"wrong result: relative L2 error {error:.3g}")
            candidates[name] = candidate
            rows[name] = Row(name, error)
        except (IntfaError, RuntimeError, MemoryError) as reason:  # a peer that cannot run must not stop the others
            rows[name] = Row(name, skipped=" ".join(str(reason).split())[:200])
    calls = {name: candidate.run for name, candidate in candidates.items()}
    for name, timing in measure(calls, rounds=rounds, round_seconds=round_seconds, timer=timer).items():
        rows[name] = Row(name, rows[name].error, timing)
    del candidates, calls
    gc.collect()  # sessions hold threads and gigabytes; the next problem must not feel them
    return ProblemResult(problem, tuple(rows[name] for name in peers), device)


def problems(
    seqlens: Sequence[int], head_dims: Sequence[int], num_heads: int, batch: int, causal: Sequence[bool], data: str
) -> list[Problem]:
    """Return the product of the given sizes, shortest first."""
    return [
        Problem(batch, num_heads, num_heads, seqlen, head_dim, is_causal, data)
        for head_dim in head_dims
        for is_causal in causal
        for seqlen in sorted(seqlens)
    ]
