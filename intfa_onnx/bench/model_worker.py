"""The child process of ``bench model``: opens one model, and runs it as often as its standard input says.

Protocol, one JSON object per line on standard output: first ``session_start`` (seconds) and ``outputs`` (an .npz of
the first run); then for each number on standard input that many ``latencies`` in seconds; for 0 the ``peak_memory`` and
the ``device_memory`` in bytes, and the end. ``error`` instead of any of these ends it too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import IO

import numpy as np

from intfa_onnx.bench.engines import ENGINES
from intfa_onnx.bench.environment import peak_memory
from intfa_onnx.bench.timing import wait_until_idle
from intfa_onnx.errors import UnsupportedError


def serve(model: str, inputs: str, outputs: str, runtime: str, threads: int, channel: IO[str]) -> None:
    """Answer until standard input ends or says 0."""
    try:
        with np.load(inputs) as archive:
            feed = dict(archive)
        memory_before = _device_memory(runtime)
        start = time.perf_counter()
        run = ENGINES[runtime](model, feed, threads)
        session_start = time.perf_counter() - start
        np.savez(outputs, **run(feed))  # type: ignore[arg-type]  # the stub takes any name for allow_pickle
        device_memory = _device_memory(runtime) - memory_before
        _send(channel, {"session_start": session_start, "outputs": outputs})
        for line in sys.stdin:
            if (runs := int(line)) == 0:
                break
            latencies = []
            for _ in range(runs):
                start = time.perf_counter()
                run(feed)
                latencies.append(time.perf_counter() - start)
            wait_until_idle()  # the other model's turn
            _send(channel, {"latencies": latencies})
        _send(channel, {"peak_memory": peak_memory(), "device_memory": device_memory})
    except Exception as error:  # the parent reports it; a traceback of the child would only confuse
        _send(channel, {"error": " ".join(str(error).split()) or type(error).__name__})


def _device_memory(runtime: str) -> int:
    """Return the bytes in use on the first GPU; a difference of two is this process', since models start one by one."""
    if runtime == "cpu":
        return 0
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UnsupportedError(f"runtime {runtime!r} needs a GPU, and nvidia-smi finds none ({error})") from error
    return int(answer.split()[0]) * 2**20


def _send(channel: IO[str], message: dict) -> None:
    print(json.dumps(message), file=channel, flush=True)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a runtime prints must not stand between the answers
    _model, _inputs, _outputs, _runtime, _threads = sys.argv[1:]
    serve(_model, _inputs, _outputs, _runtime, int(_threads), answers)
