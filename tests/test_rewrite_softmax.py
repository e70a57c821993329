"""Softmax in other words than one operator: written out, in the logarithm, divided later, flattened."""

from __future__ import annotations

import pytest
from attention_graphs import BOOL, LAST, MASK, PV, TAIL, S, check_raise, feed, fused, parse, rejection

import intfa_onnx

SOFTMAX = {
    "flattened": (
        "shape = Shape (s)\n f = Flatten <axis = 3> (s)\n p = Softmax <axis = 1> (f)\n P = Reshape (p, shape)\n"
    ),
    "in two axes": (
        LAST + "shape = Shape (s)\n keys = Shape <start = 3> (s)\n to = Concat <axis = 0> (last, keys)\n"
        "f = Reshape (s, to)\n p = Softmax <axis = -1> (f)\n P = Reshape (p, shape)\n"
    ),
    "logarithm": "l = LogSoftmax <axis = -1> (s)\n P = Exp (l)\n",
    "ReduceLogSumExp": LAST + "z = ReduceLogSumExp (s, last)\n d = Sub (s, z)\n P = Exp (d)\n",
    "times the reciprocal": (
        LAST + "m = ReduceMax (s, last)\n d = Sub (s, m)\n e = Exp (d)\n z = ReduceSum (e, last)\n"
        "r = Reciprocal (z)\n P = Mul (r, e)\n"
    ),
}


@pytest.mark.parametrize("kind", SOFTMAX)
def test_softmax_in_other_words(kind):
    rewritten = check_raise(parse(S + SOFTMAX[kind] + PV))
    assert not {"Exp", "Softmax", "MatMul", "LogSoftmax"} & {n.op_type for n in rewritten.graph.node}


def test_a_mask_in_front_of_a_flattened_softmax_stays_small():
    """Only the shape that a mask is added in matters to it, not the one that the softmax has."""
    body = S + "u = Add (s, M)\n" + SOFTMAX["flattened"].replace("(s)", "(u)") + PV
    [node] = fused(check_raise(parse(body, ", float[B, 1, 1, T] M")))
    assert node.input[3] == "M"


NOT_SOFTMAX = {
    "one more in the sum": LAST + "e = Exp (s)\n z0 = ReduceSum (e, last)\n z = Add (z0, scale)\n P = Div (e, z)\n",
    "sum of something else": (
        LAST + "e = Exp (s)\n s2 = Neg (s)\n e2 = Exp (s2)\n z = ReduceSum (e2, last)\n P = Div (e, z)\n"
    ),
    "sum of another tensor": LAST + "e = Exp (s)\n z = ReduceSum (M, last)\n P = Div (e, z)\n",
    "times the sum": LAST + "e = Exp (s)\n z = ReduceSum (e, last)\n P = Mul (e, z)\n",
    "divided the wrong way": LAST + "e = Exp (s)\n z = ReduceSum (e, last)\n P = Div (z, e)\n",
    "logarithm over queries": "l = LogSoftmax <axis = 2> (s)\n P = Exp (l)\n",
    "sum over queries": "two = Constant <value = int64[1] {2}> ()\n z = ReduceLogSumExp (s, two)\n d = Sub (s, z)\n"
    "P = Exp (d)\n",
}


@pytest.mark.parametrize("kind", NOT_SOFTMAX)
def test_not_a_softmax(kind):
    result = intfa_onnx.rewrite(parse(S + NOT_SOFTMAX[kind] + PV, MASK))
    assert all(a.decision == "rejected" for a in result.attentions)


RELAXED = {
    "kept axis": "m = ReduceMax (d, last)\n e = Sub (d, m)\n",
    "dropped axis": "n = ReduceMax <keepdims = 0> (d, last)\n m = Unsqueeze (n, last)\n e = Sub (d, m)\n",
}
DIVIDED = LAST + "alpha = Constant <value = float {32}> ()\n" + S + "u = Add (s, M)\n d = Div (u, alpha)\n"


@pytest.mark.parametrize("kind", RELAXED)
def test_maximum_subtracted_before_a_factor(kind):
    """CogView, LayoutLMv3: softmax(alpha * (s / alpha - max(s / alpha)))."""
    rewritten = check_raise(parse(DIVIDED + RELAXED[kind] + "X = Mul (e, alpha)\n" + TAIL, MASK))
    assert not {"ReduceMax", "MatMul"} & {n.op_type for n in rewritten.graph.node}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (DIVIDED + RELAXED["kept axis"] + "X = Add (e, M)\n" + TAIL, "after the maximum of each row"),
        (DIVIDED + "m = ReduceMax (s, last)\n e = Sub (d, m)\n X = Mul (e, alpha)\n" + TAIL, "other consumers"),
        (DIVIDED.replace("{-1}", "{2}") + RELAXED["kept axis"] + "X = Mul (e, alpha)\n" + TAIL, "other consumers"),
    ],
    ids=["bias after it", "of something else", "over queries"],
)
def test_maximum_that_counts(body, reason):
    assert reason in rejection(parse(body, MASK))


E = LAST + "m = ReduceMax (s, last)\n d = Sub (s, m)\n e = Exp (d)\n"
E0 = LAST + "m0 = ReduceMax <keepdims = 0> (s, last)\n m = Unsqueeze (m0, last)\n d = Sub (s, m)\n e = Exp (d)\n"
Z = "z = ReduceSum (e, last)\n"
Z0 = "z0 = ReduceSum <keepdims = 0> (e, last)\n z = Unsqueeze (z0, last)\n"
LATER = {
    "divided": E + Z + "y = MatMul (e, V)\n Y = Div (y, z)\n",
    "times the reciprocal": E + Z + "y = MatMul (e, V)\n r = Reciprocal (z)\n Y = Mul (r, y)\n",
    "without the maximum": LAST + "e = Exp (s)\n" + Z + "y = MatMul (e, V)\n Y = Div (y, z)\n",
    "dropped axes": E0 + Z0 + "y = MatMul (e, V)\n Y = Div (y, z)\n",
    "einsum": E + Z + 'y = Einsum <equation = "bhij,bhjd->bhid"> (e, V)\n Y = Div (y, z)\n',
    "rounded": E + Z + "c = Cast <to = 1> (e)\n y = MatMul (c, V)\n Y = Div (y, z)\n",
}


@pytest.mark.parametrize("kind", LATER)
def test_product_divided_by_the_sums(kind):
    """As FlashAttention is written: (e V) / sum(e)."""
    rewritten = check_raise(parse(S + LATER[kind]))
    assert not {"Exp", "MatMul", "Einsum", "ReduceSum"} & {n.op_type for n in rewritten.graph.node}


def test_product_divided_by_the_sums_of_masked_rows():
    body = "low = Constant <value = float {-3.4028235e38}> ()\n" + S.replace("s = Mul", "t = Mul")
    model = parse(body + "s = Where (M, t, low)\n" + LATER["divided"], BOOL)
    values = feed(model)
    values["M"][0] = False
    assert fused(check_raise(model, values=values))[0].input[3]


QUERIES = "queries = Constant <value = int64[1] {2}> ()\n"
Y = "y = MatMul (e, V)\n"
NOT_LATER = {
    "sums over the queries": QUERIES + "z = ReduceSum (e, queries)\n" + Y + "Y = Div (y, z)\n",
    "sums of other rows": (
        QUERIES + "z0 = ReduceSum <keepdims = 0> (e, last)\n z = Unsqueeze (z0, queries)\n" + Y + "Y = Div (y, z)\n"
    ),
    "one axis less": "z = ReduceSum <keepdims = 0> (e, last)\n" + Y + "Y = Div (y, z)\n",
    "sums of something else": "d2 = Neg (d)\n e2 = Exp (d2)\n z = ReduceSum (e2, last)\n" + Y + "Y = Div (y, z)\n",
    "times the sums": Z + Y + "Y = Mul (y, z)\n",
    "the sums divided": Z + Y + "Y = Div (z, y)\n",
    "the product needed elsewhere": Z + Y + "Y = Div (y, z)\n Z = Neg (y)\n",
    "the product is an output": Z + "Z = MatMul (e, V)\n Y = Div (Z, z)\n",
    "the sums needed elsewhere": Z + Y + "Y = Div (y, z)\n Z = Log (z)\n",
    "the maximum needed elsewhere": Z + Y + "Y = Div (y, z)\n Z = Neg (m)\n",
    "masked after the sum": Z + "f = Where (M, e, zero)\n y = MatMul (f, V)\n Y = Div (y, z)\n",
    "NaN overwritten": Z + "n = IsNaN (e)\n f = Where (n, zero, e)\n y = MatMul (f, V)\n Y = Div (y, z)\n",
    "transposed": Z + "f = Transpose <perm = [0, 1, 3, 2]> (e)\n y = MatMul (f, V)\n Y = Div (y, z)\n",
    "queries in front of heads": (
        Z + 'y0 = Einsum <equation = "bhij,bhjd->bihd"> (e, V)\n Y = Div (y0, z)\n'  # sixteen heads
    ),
    "a product of the product": Z + Y + "w = MatMul (y, K)\n Y = Div (w, z)\n",
    "a factor in between": Z + Y + "w = Mul (y, V)\n Y = Div (w, z)\n",
}


@pytest.mark.parametrize("kind", NOT_LATER)
def test_product_divided_by_something_else(kind):
    """Sixteen heads, queries, keys and channels: the shapes agree, the meaning does not."""
    body = NOT_LATER[kind]
    outputs = "float[B, 2, S, 16] Y" + (", float[B, 2, S, N] Z" if "Z" in body else "")
    model = parse(S + E + body, BOOL, outputs=outputs)
    for value in (*model.graph.input, *model.graph.output):
        for axis in (1, 2, 3) if value.name not in "MZ" else ():
            value.type.tensor_type.shape.dim[axis].dim_value = 16
    assert all(a.decision == "rejected" for a in intfa_onnx.rewrite(model).attentions)
