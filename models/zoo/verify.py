"""Checks one exported model: what the rewriter replaces, and whether the model still computes the same."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch

import intfa_onnx
from zoo.case import Case

# Float against float: rounding in another order, over a few layers. Relative to the largest value of the output.
TOLERANCE = {torch.float32: 2e-4, torch.float16: 3e-2, torch.bfloat16: 2e-1}
# After lowering, relative L2: one attention is within 3 % on all data of docs/accuracy.md, these models have up to
# nine, and errors of different layers add up in squares. What a wrong mask or scale does shows in float already.
INT8_BOUND = 0.03 * 9**0.5

_PEER_OPS = ("Attention", "MultiHeadAttention", "GroupQueryAttention", "DecoderMaskedMultiHeadAttention")


@dataclass
class Verdict:
    """What came out for one model.

    Attributes:
        attentions: in truth.
        replaced: by the rewriter.
        runs: the original runs in ONNX Runtime as exported.
        float_wrong: inputs on which the raise step alone changes the output, with the largest difference.
        runtime_differs: inputs on which ONNX Runtime runs the original otherwise than ONNX's reference evaluator does,
            and the raised form as the latter: its Attention kernel gives 0 where a row's whole mask is the least float.
        int8_error: the worst relative L2 error after lowering, over all inputs.
        rejected: the reasons for what was left alone.
        absorbed: how often each thing became part of the operator.
        peers: for each peer, how many attentions it fuses with the output unchanged, or its error.
    """

    attentions: int
    replaced: int = 0
    runs: bool = False
    feeds: int = 0
    float_wrong: dict[str, float] = field(default_factory=dict)
    runtime_differs: list[str] = field(default_factory=list)
    int8_error: float = 0.0
    rejected: list[str] = field(default_factory=list)
    absorbed: dict[str, int] = field(default_factory=dict)
    nodes_before: int = 0
    nodes_after: int = 0
    seconds: float = 0.0
    crash: str = ""
    peers: dict[str, int | str] = field(default_factory=dict)

    @property
    def wrong(self) -> bool:
        """True if the rewritten model computes something else."""
        return bool(self.float_wrong) or not self.int8_error < INT8_BOUND

    @property
    def verified(self) -> int:
        """Attentions replaced in a model that still computes the same; never more than there are."""
        return min(self.replaced, self.attentions) if self.feeds and not self.wrong and not self.crash else 0


def session(model: Path | bytes, library: bool = False) -> ort.InferenceSession:
    """Open a model without graph optimizations, so that nothing but the rewrite differs."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if library:
        intfa_onnx.register(options)
    return ort.InferenceSession(str(model) if isinstance(model, Path) else model, options)


def verify(path: Path, case: Case, *, static: bool = False, peers: bool = False) -> Verdict:
    """Rewrite the model, and run original, raised and lowered form on the case's inputs.

    Args:
        path: the exported model.
        case: what it was exported from.
        static: it has static sizes, though the case has dynamic ones.
        peers: also ask the peers what they fuse.
    """
    verdict = Verdict(case.attentions)
    with contextlib.suppress(Exception):  # an export that does not load: there is nothing to compare with
        verdict.runs = _outputs(session(path), next(iter(case.feeds()))[1]) is not None
    try:
        start = time.perf_counter()
        raised, lowered = intfa_onnx.rewrite(path, portable=True), intfa_onnx.rewrite(path)
        verdict.seconds = (time.perf_counter() - start) / 2
        verdict.replaced = sum(a.decision == "replaced" for a in lowered.attentions)
        verdict.rejected = [f"{a.pattern}: {a.reason}" for a in lowered.attentions if a.decision == "rejected"]
        verdict.absorbed = dict(Counter(x for a in lowered.attentions for x in a.absorbed))
        verdict.nodes_before, verdict.nodes_after = lowered.nodes_before, lowered.nodes_after
        _run(verdict, path, raised.to_proto(), lowered.to_proto(), case, static)
    except Exception as error:
        verdict.crash = f"{type(error).__name__}: {error}"[:300]
    if peers and verdict.runs:
        feed = next(iter(case.feeds()))[1]
        verdict.peers = {name: _peer(fuse, path, case, feed) for name, fuse in PEERS.items()}
    return verdict


def _run(
    verdict: Verdict, path: Path, raised: onnx.ModelProto, lowered: onnx.ModelProto, case: Case, static: bool
) -> None:
    if not verdict.runs or not verdict.replaced:
        return
    original = session(path)
    in_float, in_int8 = session(raised.SerializeToString()), session(lowered.SerializeToString(), library=True)
    for label, feed in case.feeds():
        truth = _outputs(original, feed) if not (static and label == "other sizes") else None
        if truth is None:
            continue
        verdict.feeds += 1
        raised_outputs = in_float.run(None, _given(in_float, feed))
        difference = _difference(raised_outputs, truth, _largest)
        if not difference < TOLERANCE[case.dtype]:
            by_onnx = _reference(path, _given(original, feed))
            if by_onnx is not None and _difference(raised_outputs, by_onnx, _largest) < TOLERANCE[case.dtype]:
                truth, difference = by_onnx, 0.0
                verdict.runtime_differs.append(label)
        if not difference < TOLERANCE[case.dtype]:
            verdict.float_wrong[label] = difference
        error = _difference(in_int8.run(None, _given(in_int8, feed)), truth, _relative_l2)
        verdict.int8_error = max(verdict.int8_error, error if np.isfinite(error) else 1e9)


def _given(model: ort.InferenceSession, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the inputs that the model has; an exporter drops one that nothing uses."""
    return {i.name: feed[i.name] for i in model.get_inputs()}


def _outputs(model: ort.InferenceSession, feed: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    try:
        return model.run(None, _given(model, feed))
    except Exception:  # the export does not take these sizes
        return None


def _reference(path: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    from onnx.reference import ReferenceEvaluator

    from intfa_onnx.runner import GatherElements

    try:
        return ReferenceEvaluator(onnx.load(path), new_ops=[GatherElements]).run(None, feed)
    except Exception:  # an operator that the reference lacks
        return None


def _difference(
    found: list[np.ndarray], truth: list[np.ndarray], measure: Callable[[np.ndarray, np.ndarray], float]
) -> float:
    """Return the worst over all outputs; where the original is not finite, anything goes."""
    worst = 0.0
    for a, b in zip(found, truth, strict=True):
        exact, value = b.astype(np.float64), a.astype(np.float64)
        counts = np.isfinite(exact)
        if counts.any():
            worst = max(worst, measure(value[counts], exact[counts]), key=lambda x: np.inf if np.isnan(x) else x)
    return worst


def _largest(value: np.ndarray, exact: np.ndarray) -> float:
    return float(np.abs(value - exact).max() / (np.abs(exact).max() or 1.0))


def _relative_l2(value: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(value - exact) / (np.linalg.norm(exact) or 1.0))


# ---- peers ----


def _ort_optimizer(path: Path, case: Case) -> onnx.ModelProto:
    from onnxruntime.transformers.optimizer import optimize_model

    model_type, heads, hidden = case.peer
    return optimize_model(str(path), model_type, heads, hidden, opt_level=0).model


def _ort_fusions(path: Path, _: Case) -> onnx.ModelProto:
    import onnxscript.optimizer
    from onnxscript import ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    model = ir.load(path)
    onnxscript.optimizer.optimize(model)
    optimized = optimize_for_ort(model)
    return ir.to_proto(optimized[0] if isinstance(optimized, tuple) else optimized)


PEERS = {"ONNX Runtime optimizer": _ort_optimizer, "onnxscript ort_fusions": _ort_fusions}


def _peer(
    fuse: Callable[[Path, Case], onnx.ModelProto], path: Path, case: Case, feed: dict[str, np.ndarray]
) -> int | str:
    """Return how many attentions a peer fuses, 0 if the output changes, or its error."""
    before = session(path)
    try:
        model = fuse(path, case)
        fused = sum(node.domain == "com.microsoft" and node.op_type in _PEER_OPS for node in model.graph.node)
        if not fused:
            return 0
        after = session(model.SerializeToString())
        found, truth = after.run(None, _given(after, feed)), before.run(None, _given(before, feed))
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:160]
    return fused if _difference(found, truth, _largest) < 10 * TOLERANCE[case.dtype] else 0
