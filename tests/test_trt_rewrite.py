"""rewrite(target="trt"): what TensorRT's parser and plugins ask of a model, which ONNX Runtime runs as well."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from small_models import attention_model

import intfa_onnx
from intfa_onnx import native, op_schema
from intfa_onnx.errors import UnsupportedError

# A boolean mask as it is, in front of a Where, made by an operator; and a float one.
MASKS = {
    "input": ("bool[B, 1, S, S] M", "Y = Attention (Q, K, V, M)"),
    "where": ("bool[B, 1, S, S] M", "Y = Attention (Q, K, V, bias)"),
    "not": ("bool[B, 1, S, S] M", "N = Not (M) Y = Attention (Q, K, V, N)"),
    "float": ("float[B, 1, S, S] M", "Y = Attention (Q, K, V, M)"),
}


def model_of(kind: str) -> onnx.ModelProto:
    mask, nodes = MASKS[kind]
    if kind == "where":  # as exporters write it, decomposed
        nodes = """zero = Constant <value = float {0}> () low = Constant <value = float {-inf}> ()
            bias = Where (M, zero, low)
            Kt = Transpose <perm = [0, 1, 3, 2]> (K) QK = MatMul (Q, Kt) S = Add (QK, bias)
            P = Softmax <axis = -1> (S) Y = MatMul (P, V)"""
    return onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 23]>
        g (float[B, 2, S, 16] Q, float[B, 2, S, 16] K, float[B, 2, S, 16] V, {mask}) => (float[B, 2, S, 16] Y)
        {{ {nodes} }}"""
    )


def cached_model() -> onnx.ModelProto:
    return onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 23]>
        g (float[B, 2, S, 16] Q, float[B, 2, S, 16] K, float[B, 2, S, 16] V,
           float[B, 2, P, 16] PK, float[B, 2, P, 16] PV)
          => (float[B, 2, S, 16] Y, float[B, 2, T, 16] NK, float[B, 2, T, 16] NV)
        { Y, NK, NV = Attention <is_causal = 1> (Q, K, V, "", PK, PV) }"""
    )


def fused(model: onnx.ModelProto) -> onnx.NodeProto:
    (node,) = [n for n in model.graph.node if n.op_type == op_schema.OP_TYPE]
    return node


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {name: x.decode() if isinstance(x, bytes) else x for name, x in values.items()}


def rewritten(model: onnx.ModelProto, target: str) -> onnx.ModelProto:
    result = intfa_onnx.rewrite(model, target=target).to_proto()
    onnx.checker.check_model(result)
    return result


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    try:
        native.register(options)
    except UnsupportedError as error:
        pytest.skip(str(error))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})


@pytest.mark.parametrize("kind", MASKS)
def test_masks_are_numbers(kind: str) -> None:
    """The same numbers come out; the node's mask is a float tensor made by Where, or the one that was there."""
    model = model_of(kind)
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((2, 2, 40, 16)).astype(np.float32) for name in "QKV"}
    attend = rng.random((2, 1, 40, 40)) < 0.6
    attend[:, :, ::5] = False  # rows that attend nothing
    feeds["M"] = np.where(attend, rng.standard_normal(attend.shape), -np.inf).astype(np.float32)
    if kind != "float":
        feeds["M"] = attend
    for_ort, for_trt = rewritten(model, "ort"), rewritten(model, "trt")
    mask = fused(for_trt).input[3]
    producer = next((n for n in for_trt.graph.node if mask in n.output), None)
    assert (producer.op_type if producer else "input") == ("input" if kind == "float" else "Where")
    (y,), (expected,) = run(for_trt, feeds), run(for_ort, feeds)
    np.testing.assert_array_equal(y, expected)
    if kind != "not":
        assert (y[:, :, ::5] == 0).all()


@pytest.mark.parametrize("target", ["ort", "trt", "ort-trt-ep"])
def test_gaps_and_outputs_are_named(target: str) -> None:
    found = attributes(fused(rewritten(cached_model(), target)))
    assert found["plugin_inputs"] == "Q,K,V,past_key,past_value"
    assert found["plugin_outputs"] == 3


@pytest.mark.parametrize("target", ["trt", "ort-trt-ep"])
def test_every_attribute_is_written(target: str) -> None:
    """TensorRT's parser warns of each that is left out."""
    node = fused(rewritten(attention_model(scale=0.3), target))
    expected = {name: a.default for name, a in op_schema.ATTRIBUTES.items()} | {"scale": pytest.approx(0.3)}
    assert attributes(node) == expected
    assert node.domain == {"trt": "intfa", "ort-trt-ep": "trt.plugins"}[target]


def test_domain_of_the_provider_is_declared() -> None:
    model = rewritten(attention_model(), "ort-trt-ep")
    assert {o.domain: o.version for o in model.opset_import} == {"": 18, "trt.plugins": 1}


@pytest.mark.parametrize("target", ["trt", "ort-trt-ep"])
def test_a_second_rewrite_finds_it_done(target: str) -> None:
    (attention,) = intfa_onnx.rewrite(rewritten(attention_model(), target), target=target).attentions
    assert attention.decision == "kept"
    assert "already IntFlashAttention" in attention.reason


@pytest.mark.parametrize("target", ["trt", "ort-trt-ep"])
def test_not_portable(target: str) -> None:
    with pytest.raises(UnsupportedError, match=f"portable does not go with the target {target}"):
        intfa_onnx.rewrite(attention_model(), target=target, portable=True)
