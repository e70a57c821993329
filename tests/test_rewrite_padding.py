"""Head sizes that are no multiples of 8: channels of zeros are added, and cut off the result."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from attention_graphs import attributes, check_raise, fused, run

import intfa_onnx


def packed(q_size: int, v_size: int) -> onnx.ModelProto:
    """Three heads that lie behind the tokens."""
    return onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 18]>
        g (float[B, S, {3 * q_size}] Q, float[B, T, {3 * q_size}] K, float[B, T, {3 * v_size}] V)
          => (float[B, S, 3, {v_size}] Y) {{
            q_shape = Constant <value = int64[4] {{0, 0, 3, {q_size}}}> ()
            v_shape = Constant <value = int64[4] {{0, 0, 3, {v_size}}}> ()
            q4 = Reshape (Q, q_shape)
            k4 = Reshape (K, q_shape)
            v4 = Reshape (V, v_shape)
            q = Transpose <perm = [0, 2, 1, 3]> (q4)
            k = Transpose <perm = [0, 2, 3, 1]> (k4)
            v = Transpose <perm = [0, 2, 1, 3]> (v4)
            X = MatMul (q, k)
            P = Softmax <axis = -1> (X)
            y = MatMul (P, v)
            Y = Transpose <perm = [0, 2, 1, 3]> (y)
        }}"""
    )


@pytest.mark.parametrize(
    ("q_size", "v_size", "notes"),
    [
        (12, 12, ("padded head size 12 -> 16",)),
        (10, 16, ("padded head size 10 -> 16",)),
        (16, 10, ("padded head size of V 10 -> 16",)),
        (10, 20, ("padded head size 10 -> 16", "padded head size of V 20 -> 24")),
    ],
)
def test_packed_heads(q_size, v_size, notes):
    model = packed(q_size, v_size)
    [node] = fused(check_raise(model))
    assert attributes(node)["q_num_heads"] == 3
    [row] = intfa_onnx.rewrite(model).attentions
    assert (row.head_dim, row.head_dim_v, row.notes) == (q_size, v_size, notes)
    assert "bshd" in row.absorbed


@pytest.mark.parametrize("attributes_text", ["", "<scale = 0.7>", "<is_causal = 1>"])
def test_standard_attention_with_a_cache(attributes_text):
    """The scale that is not written is that of the true size, and what is present has the true size."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 11, opset_import: ["": 23]>
        g (float[B, 4, S, 12] Q, float[B, 2, S, 12] K, float[B, 2, S, 20] V,
           float[B, 2, P, 12] past_key, float[B, 2, P, 20] past_value)
          => (float[B, 4, S, 20] Y, float[B, 2, T, 12] key, float[B, 2, T, 20] value) {{
            Y, key, value = Attention {attributes_text} (Q, K, V, , past_key, past_value)
        }}"""
    )
    rng = np.random.default_rng(0)
    shapes = {"Q": (2, 4, 3, 12), "K": (2, 2, 3, 12), "V": (2, 2, 3, 20)}
    shapes |= {"past_key": (2, 2, 5, 12), "past_value": (2, 2, 5, 20)}
    values = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    rewritten = check_raise(model, values=values)
    assert [o.shape for o in run(rewritten, values)] == [(2, 4, 3, 20), (2, 2, 8, 12), (2, 2, 8, 20)]
