"""Graphs that look like attention and are not quite: whatever the rewriter makes of them, nothing may change."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from attention_graphs import BOOL, KT, MASK, TAIL, check_raise, check_same, feed, parse, rejection, run

import intfa_onnx

LOOKALIKES = {
    # 16 queries, 16 keys, 16 channels: no shape tells them apart
    "key not transposed": ("X = MatMul (Q, K)\n" + TAIL, ""),
    "scores transposed": (
        KT + "s = MatMul (Q, Kt)\n X = Transpose <perm = [0, 1, 3, 2]> (s)\n" + TAIL,
        "",
    ),
    "probabilities transposed": (
        KT + "X = MatMul (Q, Kt)\n p = Softmax <axis = -1> (X)\n P = Transpose <perm = [0, 1, 3, 2]> (p)\n"
        "Y = MatMul (P, V)",
        "",
    ),
    "value transposed": (
        KT + "X = MatMul (Q, Kt)\n P = Softmax <axis = -1> (X)\n v = Transpose <perm = [0, 1, 3, 2]> (V)\n"
        "Y = MatMul (P, v)",
        "",
    ),
    "heads mixed with queries in the key": (
        "Kt = Transpose <perm = [0, 1, 3, 2]> (K)\n f = Constant <value = int64[4] {0, 16, 16, 2}> ()\n"
        "b = Constant <value = int64[4] {0, 2, 16, 16}> ()\n k = Reshape (Kt, f)\n k2 = Reshape (k, b)\n"
        "X = MatMul (Q, k2)\n" + TAIL,
        "",
    ),
    "value on the left": (KT + "X = MatMul (Q, Kt)\n P = Softmax <axis = -1> (X)\n Y = MatMul (V, P)", ""),
    "mask after the softmax": (
        KT + "X = MatMul (Q, Kt)\n p = Softmax <axis = -1> (X)\n P = Add (p, M)\n Y = MatMul (P, V)",
        MASK,
    ),
    "probabilities multiplied by a mask": (
        KT + "X = MatMul (Q, Kt)\n p = Softmax <axis = -1> (X)\n b = Cast <to = 1> (M)\n P = Mul (p, b)\n"
        "Y = MatMul (P, V)",
        BOOL,
    ),
    "probabilities masked by Where": (
        KT + "X = MatMul (Q, Kt)\n p = Softmax <axis = -1> (X)\n P = Where (M, p, zero)\n Y = MatMul (P, V)",
        BOOL,
    ),
    "constant divided by the probabilities": (
        KT + "X = MatMul (Q, Kt)\n p = Softmax <axis = -1> (X)\n P = Div (scale, p)\n Y = MatMul (P, V)",
        "",
    ),
    "score subtracted from the mask": (KT + "s = MatMul (Q, Kt)\n X = Sub (M, s)\n" + TAIL, MASK),
    "scores overwritten by 0": (KT + "s = MatMul (Q, Kt)\n X = Where (M, s, zero)\n" + TAIL, BOOL),
    "scores squared": (KT + "s = MatMul (Q, Kt)\n X = Mul (s, s)\n" + TAIL, ""),
    "scores of two products": (
        KT + "s = MatMul (Q, Kt)\n k2 = Neg (K)\n t = MatMul (Q, k2)\n X = Add (s, t)\n" + TAIL,
        "",
    ),
    "softmax over heads": (KT + "X = MatMul (Q, Kt)\n P = Softmax <axis = 1> (X)\n Y = MatMul (P, V)", ""),
    "log softmax": (KT + "X = MatMul (Q, Kt)\n P = LogSoftmax <axis = -1> (X)\n Y = MatMul (P, V)", ""),
    "softmax twice": (KT + "s = MatMul (Q, Kt)\n X = Softmax <axis = -1> (s)\n" + TAIL, ""),
    "bounded from above": (
        KT + "top = Constant <value = float {1}> ()\n low = Constant <value = float {-1e9}> ()\n"
        "s = MatMul (Q, Kt)\n X = Clip (s, low, top)\n" + TAIL,
        "",
    ),
    "softcap after the mask": (
        KT + "s = MatMul (Q, Kt)\n m = Add (s, M)\n t = Tanh (m)\n X = Mul (t, scale)\n" + TAIL,
        MASK,
    ),
    "heads repeated in turn": (
        "one = Constant <value = int64[1] {1}> ()\n h0 = Constant <value = int64[1] {0}> ()\n"
        "k0 = Slice (K, h0, one, one)\n k = Concat <axis = 1> (k0, k0)\n"
        "kt = Transpose <perm = [0, 1, 3, 2]> (k)\n X = MatMul (Q, kt)\n" + TAIL,
        "",
    ),
    "maximum over queries subtracted": (
        KT + "rows = Constant <value = int64[1] {2}> ()\n s = MatMul (Q, Kt)\n m = ReduceMax (s, rows)\n"
        "X = Sub (s, m)\n" + TAIL,
        "",
    ),
    "einsum that sums over queries": (
        'X = Einsum <equation = "bhid,bhjd->bhij"> (Q, K)\n P = Softmax <axis = -1> (X)\n'
        'Y = Einsum <equation = "bhij,bhid->bhjd"> (P, V)',
        "",
    ),
    "einsum without the diagonal of heads": (
        'X = Einsum <equation = "bhid,bgjd->bhij"> (Q, K)\n P = Softmax <axis = -1> (X)\n'
        'Y = Einsum <equation = "bhij,bhjd->bhid"> (P, V)',
        "",
    ),
}


@pytest.mark.parametrize("kind", LOOKALIKES)
def test_nothing_changes(kind):
    body, inputs = LOOKALIKES[kind]
    model = parse(body, inputs)
    for value in (*model.graph.input, *model.graph.output):
        for axis in (2, 3):
            size = value.type.tensor_type.shape.dim[axis]
            if size.dim_param:
                size.ClearField("dim_param")
                size.dim_value = 16
    values = feed(model)
    rewritten = intfa_onnx.rewrite(model, portable=True).to_proto()
    check_same(run(rewritten, values)[0], run(model, values)[0])


def test_scan_body():
    """One attention for each element of a sequence, on keys of the outer graph."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[N, B, 2, S, 16] Qs, float[B, 2, T, 16] K, float[B, 2, T, 16] V) => (float[N, B, 2, S, 16] Ys) {
            Ys = Scan <num_scan_inputs = 1, body = body (float[B, 2, S, 16] q) => (float[B, 2, S, 16] y) {
                Kt = Transpose <perm = [0, 1, 3, 2]> (K)
                X = MatMul (q, Kt)
                P = Softmax <axis = -1> (X)
                y = MatMul (P, V)
            }> (Qs)
        }"""
    )
    rng = np.random.default_rng(0)
    shapes = {"Qs": (3, 2, 2, 5, 16), "K": (2, 2, 7, 16), "V": (2, 2, 7, 16)}
    check_raise(model, values={n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()})


def test_function_called_from_a_function():
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18, "my.domain": 1]>
        g (float[B, 2, S, 16] Q, float[B, 2, T, 16] K, float[B, 2, T, 16] V) => (float[B, 2, S, 16] Y) {
            Y = my.domain.Layer (Q, K, V)
        }
        <domain: "my.domain", opset_import: ["": 18, "my.domain": 1]>
        Layer (q, k, v) => (y) {
            n = Neg (q)
            y = my.domain.Core (n, k, v)
        }
        <domain: "my.domain", opset_import: ["": 18]>
        Core (q, k, v) => (y) {
            Kt = Transpose <perm = [0, 1, 3, 2]> (k)
            X = MatMul (q, Kt)
            P = Softmax <axis = -1> (X)
            y = MatMul (P, v)
        }"""
    )
    check_raise(model)


def test_masked_after_the_softmax_is_refused():
    assert "something other than the mask of the scores" in rejection(
        parse(*LOOKALIKES["probabilities masked by Where"])
    )
