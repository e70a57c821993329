"""Timing on noisy machines: all candidates in interleaved rounds, medians, and ratios taken within a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

_IDLE_SECONDS = 0.02  # two ticks of the slowest system clock, by which other threads' time is counted


@dataclass(frozen=True)
class Timing:
    """Seconds per call over the rounds."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds per call."""
        return float(np.median(self.rounds))

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        low, high = np.percentile(self.rounds, [25, 75])
        return float((high - low) / self.median)


@dataclass(frozen=True)
class Ratio:
    """How many times faster one candidate is than another: median over the rounds, and its quartiles."""

    median: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """True if the quartiles lie on both sides of 1, or the spread exceeds the gain that the ratio claims."""
        return self.low <= 1 <= self.high or self.high - self.low > abs(self.median - 1)

    def __str__(self) -> str:
        """Return the ratio, or that it is not told apart from noise."""
        return "noise" if self.is_noise else f"{self.median:.2f}x"


def wait_until_idle(limit: float = 1.0) -> None:
    """Wait until no thread of this process runs, at most ``limit`` seconds.

    The workers of a thread pool look for more work for some milliseconds after their last, on the very cores that the
    next candidate is to be timed on.
    """
    end = time.perf_counter() + limit
    while time.perf_counter() < end:
        used = time.process_time()
        time.sleep(_IDLE_SECONDS)
        if time.process_time() - used < 0.1 * _IDLE_SECONDS:
            return


def host_timer(call: Callable[[], object], repeats: int) -> float:
    """Return mean seconds per call of ``repeats`` calls that are synchronous on the host.

    The host is left to them, and one call before them, which wakes their threads, is not timed.
    """
    wait_until_idle()
    call()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def measure(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    round_seconds: float = 0.05,
    timer: Callable[[Callable[[], object], int], float] = host_timer,
) -> dict[str, Timing]:
    """Time all candidates, one after the other in each round, so that a slow spell of the machine hits them alike.

    Args:
        calls: what to time, by name; each is called once before, to warm up.
        rounds: number of rounds.
        round_seconds: least time that one candidate gets in one round, in seconds; fixes its repeats.
        timer: seconds per call of a number of calls.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = max(1, round(round_seconds / max(timer(call, 1), 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(timer(call, repeats[name]))
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def ratio(baseline: Timing, candidate: Timing) -> Ratio:
    """Return how many times faster ``candidate`` is than ``baseline``, compared round by round."""
    per_round = np.divide(baseline.rounds, candidate.rounds)
    low, middle, high = np.percentile(per_round, [25, 50, 75])
    return Ratio(float(middle), float(low), float(high))
