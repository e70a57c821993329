"""Attention operators that ONNX Runtime's own optimizer leaves in a file."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from attention_graphs import check_raise, feed, fused
from onnx import TensorProto, helper

import intfa_onnx

SHAPES = {
    "query": ["B", "S", 32],
    "key": ["B", "T", 32],
    "value": ["B", "T", 32],
    "bias": [96],
    "attention_bias": ["B", 2, "S", "T"],
    "input": ["B", "S", 24],
    "weights": [24, 96],
    "self_bias": ["B", 2, "S", "S"],
    "tokens": ["B", "T"],
    "own_tokens": ["B", "S"],
    "pairs": ["B", "S", "S"],
    "lengths": ["B"],
    "bounds": ["two B"],
}
INTEGERS = {
    "tokens": np.array([[1, 0, 1, 1, 0, 0, 1], [1, 1, 1, 1, 0, 0, 0]], np.int32),
    "own_tokens": np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32),
    "pairs": (np.random.default_rng(1).random((2, 5, 5)) > 0.5).astype(np.int32),
    "lengths": np.array([3, 5], np.int32),
    "bounds": np.array([3, 5, 0, 1], np.int32),
}


def contrib_model(op_type: str, inputs: list[str], **attributes) -> onnx.ModelProto:
    node = helper.make_node(op_type, inputs, ["Y"], name="/attn/MHA", domain="com.microsoft", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(n, TensorProto.INT32 if n in INTEGERS else TensorProto.FLOAT, SHAPES[n])
            for n in inputs
            if n
        ],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["B", "S", "channels"])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        (["query", "key", "value"], {}),
        (["query", "key", "value"], {"scale": 0.4}),
        (["query", "key", "value", "bias"], {}),
        (["query", "key", "value", "bias", "", "attention_bias"], {}),
    ],
    ids=["plain", "scale", "bias", "bias and mask"],
)
def test_multi_head_attention(inputs, options):
    rewritten = check_raise(contrib_model("MultiHeadAttention", inputs, num_heads=2, **options))
    assert len(fused(rewritten)) == 1


def values_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    values = feed(model)
    if "weights" in values:
        values["weights"] *= 0.3  # scores of some nats
    return values | {n: x for n, x in INTEGERS.items() if n in values}


# With a bias the order of the sums differs, and beside the usual -1e4 float32 keeps three digits of a score.
SMALL = {"mask_filter_value": -8.0}
PADDINGS = [
    (["query", "key", "value", "", "tokens"], {}),
    (["query", "key", "value", "bias", "lengths", "attention_bias"], SMALL),
    (["input", "weights", "bias"], {}),
    (["input", "weights", "bias"], {"scale": 0.3}),
    (["input", "weights", "bias"], {"qkv_hidden_sizes": [36, 36, 24]}),
    (["input", "weights", "bias"], {"unidirectional": 1}),
    (["input", "weights", "bias", "own_tokens"], {}),
    (["input", "weights", "bias", "own_tokens"], {"mask_filter_value": -3.0}),
    (["input", "weights", "bias", "own_tokens"], {"unidirectional": 1}),
    (["input", "weights", "bias", "pairs", "", "self_bias"], SMALL),
    (["input", "weights", "bias", "lengths"], {}),
]


@pytest.mark.parametrize(("inputs", "options"), PADDINGS, ids=lambda x: "-".join(map(str, x)))
@pytest.mark.parametrize("empty", [False, True], ids=["", "with empty rows"])
def test_projections_and_padding(inputs, options, empty):
    op_type = "Attention" if "weights" in inputs else "MultiHeadAttention"
    model = contrib_model(op_type, inputs, num_heads=2, **options)
    values = values_of(model)
    for name in set(values) & set(INTEGERS) if empty else ():
        values[name] = values[name] * np.arange(2, dtype=np.int32).reshape(-1, *[1] * (values[name].ndim - 1))
    assert len(fused(check_raise(model, values=values))) == 1


@pytest.mark.parametrize(
    ("inputs", "options", "reason"),
    [
        (["input", "weights", "bias", "bounds"], {}, "a mask of rank 1"),
        (["input", "weights", "bias", "", "attention_bias"], {}, "caches"),
        (["input", "weights", "bias"], {"do_rotary": 1}, "rotary"),
    ],
)
def test_what_is_not_read(inputs, options, reason):
    [row] = intfa_onnx.rewrite(contrib_model("Attention", inputs, num_heads=2, **options)).attentions
    assert row.decision == "rejected"
    assert reason in row.reason


def test_causal_multi_head_attention(monkeypatch):
    """Causal where Q and K have one length. Elsewhere ONNX Runtime lets the last row see every key: not our causal."""
    inputs = ["query", "key", "value"]
    [row] = intfa_onnx.rewrite(contrib_model("MultiHeadAttention", inputs, num_heads=2, unidirectional=1)).attentions
    assert row.reason == "unidirectional, and Q and K are not provably of one length"
    monkeypatch.setitem(SHAPES, "key", SHAPES["query"])
    monkeypatch.setitem(SHAPES, "value", SHAPES["query"])
    check_raise(contrib_model("MultiHeadAttention", inputs, num_heads=2, unidirectional=1))


@pytest.mark.parametrize("op_type", ["PackedAttention", "GroupQueryAttention", "QAttention"])
def test_other_operators_are_reported(op_type):
    model = contrib_model(op_type, ["query", "key", "value"], num_heads=2)
    [row] = intfa_onnx.rewrite(model).attentions
    assert row.decision == "rejected"
    assert f"com.microsoft::{op_type} is not read yet" in row.reason
