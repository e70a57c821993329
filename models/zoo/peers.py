"""Asks other tools what they fuse in an exported model, and whether its output stays the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from zoo.case import Case
from zoo.export import Variant, one_thread
from zoo.verify import GROWTH, difference, epsilon, feeds_of, given, largest, session

SECONDS = 120  # for one model, of which each peer needs a few
_CONTRIB = ("Attention", "MultiHeadAttention", "GroupQueryAttention", "DecoderMaskedMultiHeadAttention")
Answer = tuple[int, Callable[[dict[str, np.ndarray]], list[np.ndarray]]]


def versions() -> dict[str, str]:
    """Return the peers that are installed, each with its package's version."""
    found = {}
    for name, (_, package) in PEERS.items():
        with contextlib.suppress(PackageNotFoundError):
            found[name] = f"{package} {version(package)}"
    return found


class Peers:
    """Asks in a process of its own: a peer that dies or does not return takes nobody with it."""

    def __init__(self, seconds: float = SECONDS):
        self.seconds = seconds
        self._start()

    def _start(self) -> None:
        context = get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_answer, args=(there,), daemon=True)
        self._process.start()
        there.close()

    def ask(self, peer: str, path: Path, variant: Variant) -> int | str:
        """Return how many attentions the peer fuses, 0 if that changes the output, or its error."""
        self._here.send((peer, path, variant))
        answered = self._here.poll(self.seconds)
        with contextlib.suppress(EOFError):
            if answered:
                return self._here.recv()
        self._process.kill()
        self._process.join()
        self._start()
        return "the process died" if answered else f"no answer within {self.seconds:g} s"


def _answer(questions: Connection) -> None:
    one_thread()
    with contextlib.suppress(EOFError):  # nobody asks any more
        while True:
            peer, path, variant = questions.recv()
            questions.send(_ask(peer, path, variant.build()))


def _ask(peer: str, path: Path, case: Case) -> int | str:
    feed = feeds_of(path, case)[0][0][1]
    before = session(path)
    try:
        fused, run = PEERS[peer][0](path, case)
        if not fused:
            return 0
        found, truth = run(feed), before.run(None, given(before, feed))
    except Exception as error:  # whatever a peer raises: it is its answer for this model
        return f"{type(error).__name__}: {error}"[:160]
    # Generous: a peer may also fuse other things and use approximations.
    return fused if difference(found, truth, largest) < max(2e-3, GROWTH[case.dtype] * epsilon(case)) else 0


def _contrib(model: onnx.ModelProto) -> Answer:
    fused = sum(node.domain == "com.microsoft" and node.op_type in _CONTRIB for node in model.graph.node)

    def run(feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        after = session(model.SerializeToString())
        return after.run(None, given(after, feed))

    return fused, run


def _ort_optimizer(path: Path, case: Case) -> Answer:
    from onnxruntime.transformers.optimizer import optimize_model

    model_type, heads, hidden = case.peer
    return _contrib(optimize_model(str(path), model_type, heads, hidden, opt_level=0).model)


def _ort_fusions(path: Path, _: Case) -> Answer:
    import onnxscript.optimizer
    from onnxscript import ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    model = ir.load(path)
    onnxscript.optimizer.optimize(model)
    optimized = optimize_for_ort(model)
    return _contrib(ir.to_proto(optimized[0] if isinstance(optimized, tuple) else optimized))


def _openvino(path: Path, _: Case) -> Answer:
    """Count what its CPU plugin runs as one node: scaled dot product attention, or a subgraph of Q, K and V."""
    import openvino

    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    fused = 0
    for op in compiled.get_runtime_model().get_ops():
        kind, parts = (str(op.get_rt_info()[x].value).lower() for x in ("layerType", "originalLayersNames"))
        subgraph = kind == "subgraph" and "softmax" in parts and op.get_input_size() >= 3
        fused += subgraph or "scaleddotproductattention" in kind

    def run(feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        known = {name for port in compiled.inputs for name in port.names}
        results = compiled({name: array for name, array in feed.items() if name in known})
        return [results[port] for port in compiled.outputs]

    return fused, run


PEERS: dict[str, tuple[Callable[[Path, Case], Answer], str]] = {
    "ONNX Runtime optimizer": (_ort_optimizer, "onnxruntime"),
    "onnxscript ort_fusions": (_ort_fusions, "onnxscript"),
    "OpenVINO CPU": (_openvino, "openvino"),
}
