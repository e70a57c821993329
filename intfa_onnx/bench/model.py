"""Two models end to end in ONNX Runtime: latency, throughput and peak memory, each in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from intfa_onnx.bench.timing import Ratio, Timing, ratio
from intfa_onnx.errors import IntfaError


@dataclass(frozen=True)
class ModelTiming:
    """One model's figures; times in seconds, memory in bytes."""

    model: str
    session_start: float
    p50: float
    p95: float
    p99: float
    per_second: float  # runs
    peak_memory: int  # resident, of the whole process
    rounds: tuple[float, ...]  # median latency of each round


def bench_models(
    model_a: str | os.PathLike[str],
    model_b: str | os.PathLike[str],
    feed: Mapping[str, np.ndarray],
    *,
    threads: int = 1,
    rounds: int = 7,
    runs: int = 20,
) -> tuple[ModelTiming, ModelTiming, Ratio]:
    """Time two models in alternating rounds and return both, and how many times faster the second is.

    Each model lives in its own process, which waits while the other works.

    Args:
        model_a: path of the baseline.
        model_b: path of the candidate.
        feed: one array per input.
        threads: threads within one operator.
        rounds: alternations.
        runs: runs per round.
    Raises:
        IntfaError: a model does not load or run; carries the reason.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder, "inputs.npz")
        np.savez(inputs, **dict(feed))  # type: ignore[arg-type]  # the stub takes any name for allow_pickle
        workers = [_Worker(os.fspath(m), inputs, threads) for m in (model_a, model_b)]
        try:
            for _ in range(rounds):
                for worker in workers:
                    worker.round(runs)
            first, second = (worker.finish() for worker in workers)
        finally:
            for worker in workers:
                worker.close()
    return first, second, ratio(Timing(first.rounds), Timing(second.rounds))


class _Worker:
    """A child process that runs one model when told to."""

    def __init__(self, model: str, inputs: Path, threads: int) -> None:
        self.latencies: list[list[float]] = []
        self.model = model
        command = [sys.executable, "-m", "intfa_onnx.bench.model", model, str(inputs), str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.session_start: float = self._receive()["session_start"]

    def round(self, runs: int) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{runs}\n")
        self.process.stdin.flush()
        self.latencies.append(self._receive()["latencies"])

    def finish(self) -> ModelTiming:
        assert self.process.stdin
        self.process.stdin.write("0\n")
        self.process.stdin.flush()
        memory = self._receive()["peak_memory"]
        every = np.concatenate(self.latencies)
        p50, p95, p99 = np.percentile(every, [50, 95, 99])
        medians = tuple(float(np.median(r)) for r in self.latencies)
        return ModelTiming(
            self.model, self.session_start, float(p50), float(p95), float(p99), float(1 / every.mean()), memory, medians
        )

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _receive(self) -> dict:
        assert self.process.stdout
        line = self.process.stdout.readline()
        message = json.loads(line) if line else {"error": f"the process that ran '{self.model}' ended early"}
        if "error" in message:
            raise IntfaError(message["error"])
        return message


def as_dict(timing: ModelTiming) -> dict:
    """Return plain JSON types."""
    return asdict(timing)


def _serve(model: str, inputs: str, threads: int) -> None:
    """The child: answer each number on stdin with that many latencies; 0 ends with the peak memory."""
    from intfa_onnx.session import open_session

    try:
        start = time.perf_counter()
        session = open_session(model, threads=threads)
        _send({"session_start": time.perf_counter() - start})
        with np.load(inputs) as archive:
            feed = dict(archive)
        session.run(None, feed)
        for line in sys.stdin:
            if (runs := int(line)) == 0:
                break
            latencies = []
            for _ in range(runs):
                start = time.perf_counter()
                session.run(None, feed)
                latencies.append(time.perf_counter() - start)
            _send({"latencies": latencies})
        _send({"peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024})
    except Exception as error:  # the parent reports it; a traceback of the child would only confuse
        _send({"error": " ".join(str(error).split())})


def _send(message: dict) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
