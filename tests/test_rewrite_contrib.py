"""Attention operators that ONNX Runtime's own optimizer leaves in a file."""

from __future__ import annotations

import onnx
import pytest
from attention_graphs import check_raise, fused
from onnx import TensorProto, helper

import intfa_onnx

SHAPES = {
    "query": ["B", "S", 32],
    "key": ["B", "T", 32],
    "value": ["B", "T", 32],
    "bias": [96],
    "attention_bias": ["B", 2, "S", "T"],
}


def contrib_model(op_type: str, inputs: list[str], **attributes) -> onnx.ModelProto:
    node = helper.make_node(op_type, inputs, ["Y"], name="/attn/MHA", domain="com.microsoft", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, SHAPES[n]) for n in inputs if n],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["B", "S", 32])],
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


def test_causal_multi_head_attention(monkeypatch):
    """Causal where Q and K have one length. Elsewhere ONNX Runtime lets the last row see every key: not our causal."""
    inputs = ["query", "key", "value"]
    [row] = intfa_onnx.rewrite(contrib_model("MultiHeadAttention", inputs, num_heads=2, unidirectional=1)).attentions
    assert row.reason == "unidirectional, and Q and K are not provably of one length"
    monkeypatch.setitem(SHAPES, "key", SHAPES["query"])
    monkeypatch.setitem(SHAPES, "value", SHAPES["query"])
    check_raise(contrib_model("MultiHeadAttention", inputs, num_heads=2, unidirectional=1))


@pytest.mark.parametrize("op_type", ["Attention", "GroupQueryAttention", "QAttention"])
def test_other_operators_are_reported(op_type):
    model = contrib_model(op_type, ["query", "key", "value"], num_heads=2)
    [row] = intfa_onnx.rewrite(model).attentions
    assert row.decision == "rejected"
    assert f"com.microsoft::{op_type} is not read yet" in row.reason
