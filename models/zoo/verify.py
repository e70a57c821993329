"""Checks one exported model: what the rewriter replaces, and whether every attention and the model compute the same."""

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

# Float against float, relative to the largest value: GROWTH machine epsilons of the model's type. The raise step
# writes the same arithmetic in another order, and so do ONNX Runtime's own graph optimizations: those move the models
# of the zoo by up to 30 epsilons in float32 (Swin v2, which normalizes Q and K; CLIP's image tower even by 85), and by
# up to 1.8 in float16, where arithmetic is in float32 and results are rounded (Verdict.noise). Twice 30 and 1.8, as
# powers of two.
GROWTH = {torch.float32: 64, torch.float16: 4, torch.bfloat16: 4}
_EPSILON = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
# After lowering, relative L2: one attention is within 3 % on all data of docs/accuracy.md, these models have up to
# nine, and errors of different layers add up in squares. What a wrong mask or scale does shows in float already.
INT8_BOUND = 0.03 * 9**0.5


Feeds = list[tuple[str, dict[str, np.ndarray]]]


@dataclass
class Verdict:
    """What came out for one model.

    Attributes:
        attentions: in truth.
        replaced: by the rewriter.
        matched: those of them whose own value, where they stand, is that of the original on every input.
        runs: the original runs in ONNX Runtime as exported.
        batch_of_one: it does so for a batch of one alone.
        float_wrong: inputs and values that the raise step alone changes, with the largest difference.
        float_error: the largest difference of all, in machine epsilons; for a quantized model the relative L2 error
            against the model before quantization.
        noise: the same between the original and itself as ONNX Runtime optimizes it.
        quantized_error: the relative L2 error of the original against the model before quantization.
        runtime_differs: inputs on which ONNX Runtime runs the original otherwise than ONNX's reference evaluator does,
            and the raised form as the latter: its Attention kernel gives 0 where a row's whole mask is the least float.
        int8_error: the relative L2 error after lowering, root mean square over all inputs: the outputs of a model with
            random weights may hang on a value near zero for one of them. One of five that is off by a fifth is seen.
        rejected: the reasons for what was left alone.
        absorbed: how often each thing became part of the operator.
    """

    attentions: int
    replaced: int = 0
    matched: int = 0
    runs: bool = False
    batch_of_one: bool = False
    feeds: int = 0
    float_wrong: dict[str, float] = field(default_factory=dict)
    float_error: float = 0.0
    noise: float = 0.0
    quantized_error: float = 0.0
    runtime_differs: list[str] = field(default_factory=list)
    int8_error: float = 0.0
    rejected: list[str] = field(default_factory=list)
    absorbed: dict[str, int] = field(default_factory=dict)
    nodes_before: int = 0
    nodes_after: int = 0
    seconds: float = 0.0
    crash: str = ""

    @property
    def wrong(self) -> bool:
        """True if the rewritten model computes something else."""
        bound = (INT8_BOUND**2 + self.quantized_error**2) ** 0.5  # errors of different origin add up in squares
        return bool(self.float_wrong) or not self.int8_error < bound

    @property
    def verified(self) -> int:
        """Attentions replaced in a model that still computes the same; never more than there are."""
        return min(self.matched, self.attentions) if self.feeds and not self.wrong and not self.crash else 0


def session(model: Path | bytes, library: bool = False, optimized: bool = False) -> ort.InferenceSession:
    """Open a model; without graph optimizations unless asked, so that nothing but the rewrite differs."""
    options = ort.SessionOptions()
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if library:
        intfa_onnx.register(options)
    return ort.InferenceSession(str(model) if isinstance(model, Path) else model, options)


def verify(path: Path, case: Case, *, static: bool = False) -> Verdict:
    """Rewrite the model, and run original, raised and lowered form on the case's inputs.

    Args:
        path: the exported model.
        case: what it was exported from.
        static: it has static sizes, though the case has dynamic ones.
    """
    verdict = Verdict(case.attentions)
    feeds, verdict.batch_of_one = feeds_of(path, case)
    verdict.runs = bool(feeds)
    try:
        start = time.perf_counter()
        lowered = intfa_onnx.rewrite(path)
        verdict.seconds = time.perf_counter() - start
        raised = intfa_onnx.rewrite(path, portable=True)
        replaced = [a for a in lowered.attentions if a.decision == "replaced"]
        verdict.replaced = len(replaced)
        verdict.rejected = [f"{a.pattern}: {a.reason}" for a in lowered.attentions if a.decision == "rejected"]
        verdict.absorbed = dict(Counter(x for a in replaced for x in a.absorbed))
        verdict.nodes_before, verdict.nodes_after = lowered.nodes_before, lowered.nodes_after
        if verdict.runs and replaced:
            values = [a.output for a in replaced if not a.scope]  # those of bodies show in the model's outputs only
            feeds = [(n, feed) for n, feed in feeds if not (static and n == "other sizes")]
            if case.unquantized is None:
                _in_float(verdict, path, raised.to_proto(), values, feeds, case)
            else:
                _beside_unquantized(verdict, path, raised.to_proto(), feeds, case.unquantized)
            _in_int8(verdict, path, lowered.to_proto(), feeds, case.unquantized)
    except Exception as error:
        verdict.crash = f"{type(error).__name__}: {error}"[:300]
    return verdict


def feeds_of(path: Path, case: Case) -> tuple[Feeds, bool]:
    """Return the inputs on which ONNX Runtime runs the model, and whether of each only the first in the batch is left.

    Its RotaryEmbedding of opset 23 wants tables for the whole batch, and exporters write one for all: then a batch of
    one runs. The first in the batch is the one that is masked. An export that does not run at all has no inputs.
    """
    feeds = list(case.feeds())
    singles = [(n, {k: x[:1] if x.ndim else x for k, x in feed.items()}) for n, feed in feeds]
    with contextlib.suppress(Exception):  # an export that does not load
        original = session(path)
        for given_feeds in (feeds, singles):
            if _outputs(original, given_feeds[0][1]) is not None:
                return given_feeds, given_feeds is singles
    return [], False


def _in_float(
    verdict: Verdict, path: Path, raised: onnx.ModelProto, values: list[str], feeds: Feeds, case: Case
) -> None:
    """Compare the raised form with the original: the model's outputs, and the value of each attention."""
    model = onnx.load(path)
    original, after = session(_showing(model, values)), session(_showing(raised, values))
    optimized = _optimized(path)
    names = [o.name for o in original.get_outputs()]
    changed = set()
    bound = GROWTH[case.dtype]
    for label, feed in feeds:
        truth = _outputs(original, feed)
        if truth is None:
            continue
        verdict.feeds += 1
        found = after.run(None, given(after, feed))
        differences = [difference([a], [b], largest) / epsilon(case) for a, b in zip(found, truth, strict=True)]
        if not max(differences) < bound and (by_onnx := _reference(model, given(original, feed))) is not None:
            again = [difference([a], [b], largest) / epsilon(case) for a, b in zip(found, by_onnx, strict=True)]
            if max(again) < bound:
                differences = again
                verdict.runtime_differs.append(label)
        verdict.float_error = max(verdict.float_error, *differences)
        for name, value in zip(names, differences, strict=True):
            if not value < bound:
                verdict.float_wrong[f"{label}: {name}"] = value
                changed.add(name)
        if optimized and (again := _outputs(optimized, feed)):
            verdict.noise = max(verdict.noise, difference(again, truth[: len(again)], largest) / epsilon(case))
    verdict.matched = verdict.replaced - len(changed & set(values))


def _beside_unquantized(
    verdict: Verdict, path: Path, raised: onnx.ModelProto, feeds: Feeds, unquantized: onnx.ModelProto
) -> None:
    """Compare raised form and original with the model before quantization: the raised form has to be as near.

    A rounding in another order moves single values over the border between two codes, and an error either way. So the
    mean over all inputs counts, with twice the standard error of the paired differences, and what ONNX Runtime's
    optimizations change in the original.
    """
    exact = session(unquantized.SerializeToString())
    original, after, optimized = session(path), session(raised.SerializeToString()), _optimized(path)
    errors = []
    for _, feed in feeds:
        truth, before = _outputs(exact, feed), _outputs(original, feed)
        if truth is None or before is None:
            continue
        again = (_outputs(optimized, feed) if optimized else None) or before
        found = after.run(None, given(after, feed))
        errors.append((difference(found, truth, l2), difference(before, truth, l2), difference(again, before, l2)))
    verdict.feeds = len(errors)
    if not errors:
        return
    verdict.float_error, verdict.quantized_error, verdict.noise = map(float, np.mean(errors, 0))
    farther = np.array([error - own for error, own, _ in errors])
    if not farther.mean() <= verdict.noise + 2 * farther.std(ddof=1) / len(farther) ** 0.5:
        verdict.float_wrong["all inputs"] = verdict.float_error
    verdict.matched = verdict.replaced


def _in_int8(
    verdict: Verdict, path: Path, lowered: onnx.ModelProto, feeds: Feeds, unquantized: onnx.ModelProto | None
) -> None:
    """Record the error after lowering, against the original or the model before quantization."""
    after = session(lowered.SerializeToString(), library=True)
    original = session(path if unquantized is None else unquantized.SerializeToString())
    errors = []
    for label, feed in feeds:
        truth = _outputs(original, feed)
        if label in verdict.runtime_differs:
            truth = _reference(onnx.load(path), given(original, feed))
        if truth is not None:
            error = difference(after.run(None, given(after, feed)), truth, l2)
            errors.append(error if np.isfinite(error) else 1e9)
    verdict.int8_error = float(np.sqrt(np.mean(np.square(errors)))) if errors else 0.0


def _showing(model: onnx.ModelProto, values: list[str]) -> bytes:
    """Return the model with further values as outputs, after its own."""
    have = {o.name for o in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values if name not in have)
    return model.SerializeToString()


def _optimized(path: Path) -> ort.InferenceSession | None:
    try:
        return session(path, optimized=True)
    except Exception:  # what its optimizations make of some models does not load
        return None


def given(model: ort.InferenceSession, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the inputs that the model has; an exporter drops one that nothing uses."""
    return {i.name: feed[i.name] for i in model.get_inputs()}


def _outputs(model: ort.InferenceSession, feed: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    try:
        return model.run(None, given(model, feed))
    except Exception:  # the export does not take these sizes
        return None


def _reference(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    from onnx.reference import ReferenceEvaluator

    from intfa_onnx.runner import GatherElements

    try:
        return ReferenceEvaluator(model, new_ops=[GatherElements]).run(None, feed)
    except Exception:  # an operator that the reference lacks
        return None


def epsilon(case: Case) -> float:
    """Return the machine epsilon of the model's type."""
    return _EPSILON[case.dtype]


def difference(
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


def largest(value: np.ndarray, exact: np.ndarray) -> float:
    """Return the largest difference, relative to the largest value."""
    return float(np.abs(value - exact).max() / (np.abs(exact).max() or 1.0))


def l2(value: np.ndarray, exact: np.ndarray) -> float:
    """Return the relative L2 error."""
    return float(np.linalg.norm(value - exact) / (np.linalg.norm(exact) or 1.0))
