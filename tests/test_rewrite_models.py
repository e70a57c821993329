"""Exported transformers: how many attentions are replaced, and what the raise step and the INT8 operator change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import intfa_onnx
from intfa_onnx import RewriteResult
from intfa_onnx.reference_op import IntFlashAttention

pytest.importorskip("torch")
pytest.importorskip("transformers")
import zoo
from zoo.export import Variant, export

VARIANTS = (
    ("torchscript", 17, "eager"),
    ("torchscript", 17, "sdpa"),
    ("dynamo", 18, "eager"),
    ("dynamo", 18, "sdpa"),
    ("dynamo", 23, "sdpa"),
)
FAST = ("bert", "vit", "gpt2", "llama")
MODELS = ("bert", "minilm", "roberta", "distilbert", "vit", "gpt2", "llama")
CASES = [
    pytest.param(
        name, *variant, id="-".join(map(str, (name, *variant))), marks=() if name in FAST else pytest.mark.slow
    )
    for name in MODELS
    for variant in VARIANTS
]
# What these exports do not run in ONNX Runtime as exported: RotaryEmbedding with cos and sin of the wrong rank.
NOT_RUNNABLE = {("llama", "dynamo", 23)}

Exported = tuple[Path, zoo.Case]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, int, str], Exported]:
    """Return a function that exports a model once per session."""
    folder, done = tmp_path_factory.mktemp("exported"), {}

    def once(name: str, exporter: str, opset: int, attention: str) -> Exported:
        variant = Variant(name, exporter, opset, attention)
        if variant not in done:
            made = export(variant, folder)
            assert made.file is not None, made.error
            assert not made.static
            done[variant] = folder / made.file, variant.build()
        return done[variant]

    return once


def run(model: onnx.ModelProto | Path, feed: dict[str, np.ndarray]) -> np.ndarray:
    """Run without graph optimizations, so that nothing but the rewrite differs."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    data = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, feed)[0]


def decisions(result: RewriteResult) -> list[str]:
    return [a.decision for a in result.attentions]


@pytest.mark.parametrize(("name", "exporter", "opset", "attention"), CASES)
def test_all_replaced_and_raise_is_exact(exported, name, exporter, opset, attention):
    """The portable body is the float meaning of the fused node: it has to give what the original graph gives."""
    path, case = exported(name, exporter, opset, attention)
    result = intfa_onnx.rewrite(path, portable=True)
    assert decisions(result) == ["replaced"] * case.attentions, [a.reason for a in result.attentions]
    model = result.to_proto()
    onnx.checker.check_model(model)
    assert not any(node.op_type in ("Softmax", "Attention") for node in model.graph.node)
    if (name, exporter, opset) in NOT_RUNNABLE:
        return
    for label, feed in case.feeds():
        want, got = run(path, feed), run(model, feed)
        assert np.isfinite(want).all(), label
        # Both compute in float32 in another order; the scale is multiplied before or after the product (2 ulp of a
        # score of some 10 nats), through two layers with residuals.
        error = np.abs(got - want).max() / np.abs(want).max()
        assert error < 1e-5, f"{label}: relative error {error:.1e}"


class GatherElements(OpRun):
    """onnx's own fails on more than 64 rows: it goes through numpy.choose."""

    op_domain = ""

    def _run(self, data: np.ndarray, indices: np.ndarray, axis: int = 0) -> tuple[np.ndarray]:
        return (np.take_along_axis(data, indices, axis),)


@pytest.mark.parametrize("precision", ["int8", "int8_qk"])
@pytest.mark.parametrize("name", ["bert", "vit", "gpt2", "llama"])
def test_error_of_int8(exported, name, precision):
    path, case = exported(name, "dynamo", 18, "sdpa")
    result = intfa_onnx.rewrite(path, precision=precision)
    first = onnx.helper.make_empty_tensor_value_info(result.attentions[0].output)
    original, rewritten = onnx.load(path), result.to_proto()
    original.graph.output.append(first)
    rewritten.graph.output.append(first)
    for label, feed in case.feeds():
        want = ReferenceEvaluator(original, new_ops=[GatherElements]).run(None, feed)
        got = ReferenceEvaluator(rewritten, new_ops=[GatherElements, IntFlashAttention]).run(None, feed)
        for position, stage in ((1, "first attention"), (0, "model")):
            error = np.linalg.norm(got[position] - want[position]) / np.linalg.norm(want[position])
            # Twice the 1.4 % that docs/accuracy.md gives for N(0, 1): fewer keys average less of the noise away. Behind
            # the first layer there is a residual, so the model's output is not worse.
            assert 0 < error < 0.028, f"{label}, {stage}: {error:.2%}"


def test_absorbed(exported):
    """What one node does that many did: each is speed, and none is needed for a correct result."""
    absorbed = {}
    for name in FAST:
        for exporter, opset, attention in VARIANTS:
            path, _ = exported(name, exporter, opset, attention)
            result = intfa_onnx.rewrite(path)
            absorbed[name, exporter, opset, attention] = set(result.attentions[0].absorbed)
            assert result.nodes_after <= result.nodes_before
    for (name, _, opset, _), features in absorbed.items():
        assert name == "vit" or "mask" in features
        if opset != 23:  # where they are the standard operator's own
            assert {"k_transpose", "scale"} <= features
        assert "bshd" in features
        assert ("gqa" in features) == (name == "llama")
