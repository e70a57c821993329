"""How cost grows: the operator's with its sizes, the rewriter's with the model, and what a process pays once.

The figures of the rewriter and of a start come from a process each: peak memory has no other meaning, and a library
loads once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from intfa_onnx.bench.candidate import Peer
from intfa_onnx.bench.decoder import write_decoder
from intfa_onnx.bench.op import OURS, Machine, bench_problems
from intfa_onnx.bench.problem import Problem
from intfa_onnx.bench.timing import Timing
from intfa_onnx.errors import IntfaError

PARTS = ("operator", "rewriting", "start")

# One size grows, the others stay: causal, so that 131072 keys of one head are seconds on one core.
GROWTHS = {
    "sequence length": [Problem(1, 1, 1, 2**n, 64, causal=True) for n in range(9, 18)],
    "heads": [Problem(1, 2**n, 2**n, 1024, 64, causal=True) for n in range(6)],
    "batch": [Problem(2**n, 8, 8, 256, 64, causal=True) for n in range(6)],
}
# Beside ours one that holds all scores and one that does not, of whatever is on the device.
_PEERS = (OURS, "ort MultiHeadAttention", "torch sdpa f32", "ort MultiHeadAttention f16", "torch FlashAttention-2 f16")
_MAX_SECONDS = 2.0  # per call of a peer
_ROUNDS = 3

_SESSION_LAYERS, _SESSION_HIDDEN = 12, 256

# ``bytes_read`` are those that the process asks files for, whether the disk or a cache has them; a mapped file does not
# count there, but in the peak memory.
_REWRITE = """
import json, sys, time
from intfa_onnx import rewrite
from intfa_onnx.bench.environment import peak_memory

def read():
    with open("/proc/self/io") as file:
        return int(next(line for line in file if line.startswith("rchar")).split()[1])

before, cpu, times = read(), time.process_time(), [time.perf_counter()]
result = rewrite(sys.argv[1]); times.append(time.perf_counter())
result.save(sys.argv[2]); times.append(time.perf_counter())
steps = dict(zip(("rewrite", "save"), (b - a for a, b in zip(times, times[1:]))))
replaced = sum(a.decision == "replaced" for a in result.attentions)
cpu = time.process_time() - cpu
print(json.dumps({"steps": steps, "seconds": times[-1] - times[0], "cpu_seconds": cpu, "nodes": result.nodes_before,
                  "replaced": replaced, "peak_memory": peak_memory(), "bytes_read": read() - before}))
"""
_LOAD = """
import ctypes, json, sys, time
from intfa_onnx import native
path = str(native.get_library_path("ort"))
start = time.perf_counter()
ctypes.CDLL(path)
print(json.dumps(time.perf_counter() - start))
"""
_SESSION = """
import json, sys, time
import onnxruntime
from intfa_onnx.session import open_session
start = time.perf_counter()
open_session(sys.argv[1], threads=1)
print(json.dumps(time.perf_counter() - start))
"""


def measure_operator(
    peers: Mapping[str, Peer], machine: Machine, growths: Mapping[str, Sequence[Problem]] = GROWTHS
) -> dict[str, list[dict[str, Any]]]:
    """Return, by the size that grows, each problem's result as plain JSON types.

    Args:
        peers: of the device; those that are compared here are taken from them.
        machine: its timer and limits.
        growths: problems by the size that grows, smallest first.
    """
    peers = {name: peers[name] for name in _PEERS if name in peers}
    options: dict[str, Any] = {"machine": machine, "rounds": _ROUNDS, "max_seconds": _MAX_SECONDS}
    return {
        size: [result.as_dict() for result in bench_problems(problems, peers, **options)]
        for size, problems in growths.items()
    }


def measure_scale(layers: Sequence[int], hidden: int, parts: Sequence[str]) -> dict[str, Any]:
    """Return plain JSON types: ``rewriting``, one entry per size, and ``start``, what a process pays once.

    Args:
        layers: sizes of decoders, one attention per layer; :func:`intfa_onnx.bench.decoder.write_decoder` makes them.
        hidden: their width.
        parts: which of the two.
    Raises:
        IntfaError: a step failed; carries what it said last.
    """
    with tempfile.TemporaryDirectory() as folder:
        measures: dict[str, Callable[[], Any]] = {
            "rewriting": lambda: [measure_rewrite(Path(folder), count, hidden) for count in layers],
            "start": lambda: measure_start(Path(folder)),
        }
        return {part: measures[part]() for part in parts}


def measure_rewrite(folder: Path, layers: int, hidden: int) -> dict[str, Any]:
    """Return one size's figures; the rewritten model is saved beside the original, whose weights file it shares."""
    model, rewritten = folder / f"decoder{layers}.onnx", folder / f"decoder{layers}.int8.onnx"
    weight_bytes = write_decoder(model, layers, hidden)
    figures = _child(_REWRITE, str(model), str(rewritten))
    return {"layers": layers, "hidden": hidden, "weight_bytes": weight_bytes, **figures}


def measure_start(folder: Path, repeats: int = 7) -> dict[str, dict[str, float]]:
    """Return median and spread of loading the library and of opening a session, before and after the rewrite."""
    model, rewritten = folder / "session.onnx", folder / "session.int8.onnx"
    write_decoder(model, _SESSION_LAYERS, _SESSION_HIDDEN)
    _child(_REWRITE, str(model), str(rewritten))
    session = f"session of {_SESSION_LAYERS} layers"
    measured: dict[str, list[float]] = {"library load": [], session: [], f"{session}, rewritten": []}
    for _ in range(repeats):  # in turns, so that a slow spell hits all
        for name, arguments in zip(measured, ((_LOAD,), (_SESSION, model), (_SESSION, rewritten)), strict=True):
            measured[name].append(_child(*map(str, arguments)))
    timings = {name: Timing(tuple(seconds)) for name, seconds in measured.items()}
    return {name: {"seconds": t.median, "spread": t.spread} for name, t in timings.items()}


def _child(program: str, *arguments: str) -> Any:
    """Run a program in a process of its own and return what it prints, JSON."""
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise IntfaError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return json.loads(done.stdout.splitlines()[-1])
