"""The operator beside its peers: verified on sampled rows, then timed in interleaved rounds."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intfa_onnx.bench.candidate import Candidate, Peer
from intfa_onnx.bench.limits import Device, io_bytes, io_lower_bound, percent_of_limit
from intfa_onnx.bench.problem import Problem
from intfa_onnx.bench.timing import Timing, host_timer, measure, ratio
from intfa_onnx.errors import IntfaError, UnsupportedError

# Relative L2 error above which a candidate is wrong rather than imprecise: the paper's INT8 scheme stays below 6 % on
# N(0, 1) and float peers are three orders below, while a wrong mask or scale gives tens of percent.
MAX_ERROR = 0.10
OURS = "intfa int8"


@dataclass(frozen=True)
class Machine:
    """Where a problem is timed.

    Attributes:
        limits: peaks of the device, None if they are unknown.
        element_bytes: of the tensors that the candidates read and write.
        timer: seconds per call, by the host's clock or by device events.
        tile_m: queries of one block of our kernel by head size; None: this device has no such on-chip memory.
    """

    limits: Device | None = None
    element_bytes: int = 4
    timer: Callable[[Callable[[], object], int], float] = host_timer
    tile_m: Callable[[int], int] | None = None


@dataclass(frozen=True)
class Row:
    """One candidate on one problem; ``skipped`` says why it has no time."""

    candidate: str
    error: float | None = None  # relative L2 against float64, sampled rows
    timing: Timing | None = None
    skipped: str = ""
    input_bytes: int = 0  # see Peer


@dataclass(frozen=True)
class ProblemResult:
    """All candidates on one problem."""

    problem: Problem
    rows: tuple[Row, ...]
    machine: Machine

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types: seconds, TOPS, share of the limit, ratios to our INT8 operator."""
        p, machine = self.problem, self.machine
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
                if machine.limits:
                    resource, percent = percent_of_limit(
                        p, machine.limits, row.timing.median, machine.element_bytes, row.input_bytes
                    )
                    entry |= {"limit": resource, "percent_of_limit": percent}
                if ours and row.candidate != OURS:
                    entry["intfa_is_faster_by"] = str(ratio(row.timing, ours))
            rows.append(entry)
        keys = ("batch", "num_heads", "kv_num_heads", "seqlen", "head_dim", "causal", "data", "decode")
        document = {"problem": {k: getattr(p, k) for k in keys}, "label": p.label(), "rows": rows}
        if machine.limits and machine.limits.sm_bytes and machine.tile_m:
            moved = io_bytes(p, machine.tile_m(p.head_dim))
            document["io"] = {"bytes": moved, "over_bound": moved / io_lower_bound(p, machine.limits.sm_bytes)}
        return document


def bench_problem(
    problem: Problem,
    peers: Mapping[str, Peer],
    *,
    threads: int = 1,
    rounds: int = 15,
    round_seconds: float = 0.05,
    machine: Machine = Machine(),
    expected: Mapping[str, float] | None = None,
    max_seconds: float = float("inf"),
) -> ProblemResult:
    """Verify and time every peer that runs here.

    Args:
        problem: what to compute.
        peers: by name; one of them is ``OURS``.
        threads: CPU threads of each candidate.
        rounds: number of rounds.
        round_seconds: least time of one candidate in one round, in seconds.
        machine: timer and limits.
        expected: seconds that one call is expected to take, by name, where that is known.
        max_seconds: a peer that is expected to take longer is skipped; what is measured, ``OURS``, is not.
    """
    inputs = problem.inputs()
    positions, truth = problem.sampled_truth(*inputs)
    candidates: dict[str, Candidate] = {}
    rows: dict[str, Row] = {}
    for name, peer in peers.items():
        try:
            _check_fits(problem, peer, (expected or {}).get(name, 0.0), max_seconds if name != OURS else float("inf"))
            candidate = peer.make(problem, inputs, threads)
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
    for name, timing in measure(calls, rounds=rounds, round_seconds=round_seconds, timer=machine.timer).items():
        rows[name] = Row(name, rows[name].error, timing, input_bytes=peers[name].input_bytes)
    del candidates, calls
    gc.collect()  # sessions hold threads and gigabytes; the next problem must not feel them
    return ProblemResult(problem, tuple(rows[name] for name in peers), machine)


def bench_problems(
    sizes: Sequence[Problem], peers: Mapping[str, Peer], *, max_seconds: float = float("inf"), **options: Any
) -> Iterator[ProblemResult]:
    """Yield :func:`bench_problem` of each; a problem's time is expected from the rate at the one before it."""
    rates: dict[str, float] = {}  # operations per second
    for problem in sizes:
        expected = {name: problem.operations / rate for name, rate in rates.items()}
        result = bench_problem(problem, peers, expected=expected, max_seconds=max_seconds, **options)
        rates |= {r.candidate: problem.operations / r.timing.median for r in result.rows if r.timing}
        yield result


def problems(
    seqlens: Sequence[int],
    head_dims: Sequence[int],
    num_heads: Sequence[int],
    batches: Sequence[int],
    causal: Sequence[bool],
    data: str,
    group: int = 1,
    decode: bool = False,
    tokens: int = 0,
) -> list[Problem]:
    """Return the product of the given sizes, shortest first; ``group`` heads share a key head.

    With ``tokens``, the batch of each length is what makes so many, one at least.

    Raises:
        UnsupportedError: heads that cannot be grouped so.
    """
    if odd := [heads for heads in num_heads if heads % group]:
        raise UnsupportedError(f"{odd[0]} heads cannot share key heads by {group}")
    return [
        Problem(batch, heads, heads // group, seqlen, head_dim, is_causal, data, decode)
        for head_dim in head_dims
        for is_causal in causal
        for heads in num_heads
        for seqlen in sorted(seqlens)
        for batch in ([max(1, tokens // seqlen)] if tokens else batches)
    ]


def _check_fits(problem: Problem, peer: Peer, expected: float, max_seconds: float) -> None:
    if expected > max_seconds:
        raise UnsupportedError(f"one call would take about {expected:.1f} s (limit {max_seconds:g} s)")
    needed, free = peer.score_bytes(problem), _available_bytes()
    if needed > free / 2:  # the other half for the candidates beside it
        raise UnsupportedError(f"holds {needed / 2**30:.1f} GiB of scores at once ({free / 2**30:.1f} GiB are free)")


def _available_bytes() -> float:
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        return 1024.0 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError):
        return float("inf")
