"""Masks that are causal, windows, padding, or all at once: what becomes an attribute, and that nothing changes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import onnx
import onnx.parser
import pytest
from attention_graphs import attributes, check_same, fused, session

import intfa_onnx

# Q [B, 4, S, 16] against K and V [B, 2, P + S, 16] of a cache and new keys; A [B, T] says which keys are there.
# The masks are made of the positions q [1, 1, S, 1] and k [1, 1, 1, T], the padding p [B, 1, 1, T] and the least float.
GRAPH = """
{int_constants}
zero = Constant <value = float {{0}}> ()
one = Constant <value = float {{1}}> ()
minus = Constant <value = float {{-inf}}> ()
low = Constant <value = float {{{fill}}}> ()
K = Concat <axis = 2> (PK, NK)
V = Concat <axis = 2> (PV, NV)
qs = Shape (Q)
s1 = Gather (qs, two)
s = Squeeze (s1, zeroth)
ps = Shape (PK)
p1 = Gather (ps, two)
past = Squeeze (p1, zeroth)
total = Add (past, s)
t1 = Unsqueeze (total, zeroth)
kr = Range (i0, total, i1)
k = Unsqueeze (kr, leading)
qr = Range (i0, s, i1)
qp = Add (qr, past)
q = Unsqueeze (qp, around)
Ab = Cast <to = 9> (A)
p = Unsqueeze (Ab, middle)
{mask}
{attention}
"""
INTEGERS = {
    "i0": "int64 {0}",
    "i1": "int64 {1}",
    "i4": "int64 {4}",
    "two": "int64[1] {2}",
    "three": "int64[1] {3}",
    "zeroth": "int64[1] {0}",
    "leading": "int64[3] {0, 1, 2}",
    "around": "int64[3] {0, 1, 3}",
    "middle": "int64[2] {1, 2}",
    "groups": "int64[5] {1, 1, 2, 1, 1}",
    "heads": "int64[4] {0, 4, -1, 16}",
    "single": "int64[1] {1}",
    "zero_one": "int64[2] {0, 1}",
    "ends": "int64[3] {0, 2, 3}",
    "hundred": "int64 {100}",
}
REPEAT = """
k5 = Unsqueeze (K, two)
v5 = Unsqueeze (V, two)
kg = Expand (k5, groups)
vg = Expand (v5, groups)
kh = Reshape (kg, heads)
vh = Reshape (vg, heads)
Kt = Transpose <perm = [0, 1, 3, 2]> (kh)
scores = MatMul (Q, Kt)
"""
GUARD = "u = Softmax <axis = -1> (X)\n nan = IsNaN (u)\n P = Where (nan, zero, u)\n"
# How a boolean C (true = attend) gets to the scores.
ADDED = REPEAT + "b = Where (C, zero, low)\n X = Add (scores, b)\n P = Softmax <axis = -1> (X)\n Y = MatMul (P, vh)"
WRITTEN = REPEAT + "X = Where (C, scores, low)\n P = Softmax <axis = -1> (X)\n Y = MatMul (P, vh)"
FLOAT = REPEAT + "X = Add (scores, F)\n P = Softmax <axis = -1> (X)\n Y = MatMul (P, vh)"
FLOAT_GUARDED = FLOAT.replace(" P = Softmax <axis = -1> (X)\n", GUARD)
GUARDED = ADDED.replace("low", "minus").replace(" P = Softmax <axis = -1> (X)\n", GUARD)
STANDARD = "Y = Attention (Q, K, V, C)"

CAUSAL = "c = LessOrEqual (k, q)\n"
SIZE = "size = Concat <axis = 0> (s1, t1)\n"
TRIANGLE = (
    SIZE + "full = Expand (low, size)\n up = Add (past, i1)\n f2 = Trilu <upper = 1> (full, up)\n"
    "f4 = Unsqueeze (f2, zero_one)\n"
)


def build(
    mask: str, attention: str, *, fill: float = -3.4028235e38, opset: int = 18, inputs: str = "", outputs: str = ""
) -> onnx.ModelProto:
    constants = "\n".join(f"{name} = Constant <value = {value}> ()" for name, value in INTEGERS.items())
    tensors = {"Q": "4, S", "PK": "2, Past", "PV": "2, Past", "NK": "2, S", "NV": "2, S"}
    given = ", ".join(f"float[B, {shape}, 16] {name}" for name, shape in tensors.items()) + ", int64[B, T] A" + inputs
    body = GRAPH.format(int_constants=constants, fill=fill, mask=mask, attention=attention)
    return onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": {opset}]> g ({given}) => (float[B, 4, S, 16] Y{outputs}) {{ {body} }}'
    )


def feeds(model: onnx.ModelProto) -> Iterator[dict[str, np.ndarray]]:
    """A prompt with and without a cache and one step, each with every kind of padding.

    Batch 0 is whole, batch 1 has no key at all, the third one is padded on the right, on the left, or has holes.
    """
    rng = np.random.default_rng(0)
    for seqlen, past in ((5, 3), (1, 6), (9, 0)):
        total = seqlen + past
        sizes, keys = {"B": 3, "S": seqlen, "Past": past, "T": total}, np.arange(total)
        for valid in (keys < total - 3, keys >= 4, keys % 3 == 1):
            values = {}
            for value in model.graph.input:
                tensor = value.type.tensor_type
                drawn = 2 * rng.standard_normal([sizes.get(d.dim_param, d.dim_value) for d in tensor.shape.dim])
                values[value.name] = np.asarray(drawn).astype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
            values["A"] = np.stack([np.ones(total), np.zeros(total), valid]).astype(np.int64)
            yield values


def check(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite with the float body and check that no output changes; return the model."""
    result = intfa_onnx.rewrite(model, portable=True)
    assert all(a.decision == "replaced" for a in result.attentions), result.attentions
    rewritten = result.to_proto()
    onnx.checker.check_model(rewritten, full_check=True)
    before, after = session(model), session(rewritten)
    for values in feeds(model):
        for got, want in zip(after.run(None, values), before.run(None, values), strict=True):
            check_same(got, want)
    return rewritten


def limits(node: onnx.NodeProto) -> dict[str, object]:
    names = ("is_causal", "window_left", "window_right", "causal_alignment")
    return {n: a for n, a in attributes(node).items() if n in names}


BOTH_SIDES = {"window_left": 4, "window_right": 4, "causal_alignment": b"lower_right"}
LOWER_RIGHT = {"causal_alignment": b"lower_right"}
IS_CAUSAL = {"is_causal": 1, **LOWER_RIGHT}
# The mask as C, and its attributes.
CONDITIONS = {
    "less or equal": ("C = LessOrEqual (k, q)", IS_CAUSAL),
    "greater, excluded": ("n = Greater (k, q)\n C = Not (n)", IS_CAUSAL),
    "less than the next": ("q1 = Add (q, i1)\n C = Less (k, q1)", IS_CAUSAL),
    "difference": ("d = Sub (q, k)\n C = GreaterOrEqual (d, i0)", IS_CAUSAL),
    "expanded, cast": (
        CAUSAL + "e = Cast <to = 6> (c)\n z = Concat <axis = 0> (single, single, s1, t1)\n f = Expand (e, z)\n"
        "C = Cast <to = 9> (f)",
        IS_CAUSAL,
    ),
    "triangle": (
        SIZE + "o = Expand (one, size)\n l = Trilu <upper = 0> (o, past)\n m = Equal (l, zero)\n c = Not (m)\n"
        "C = Unsqueeze (c, zero_one)",
        IS_CAUSAL,
    ),
    "gathered": (
        "big = Range (i0, hundred, i1)\n ki = Gather (big, k)\n C = LessOrEqual (ki, q)",
        IS_CAUSAL,
    ),
    "window": (
        CAUSAL + "l = Sub (q, i4)\n w = Greater (k, l)\n C = And (c, w)",
        {**IS_CAUSAL, "window_left": 3},
    ),
    "window, excluded": (
        "n1 = Greater (k, q)\n d = Sub (q, k)\n n2 = GreaterOrEqual (d, i4)\n n = Or (n1, n2)\n C = Not (n)",
        {**IS_CAUSAL, "window_left": 3},
    ),
    "both sides": (
        "d = Sub (q, k)\n a = Abs (d)\n C = LessOrEqual (a, i4)",
        BOTH_SIDES,
    ),
    "both sides, excluded": (
        "d = Sub (k, q)\n a = Abs (d)\n n = Greater (a, i4)\n C = Not (n)",
        BOTH_SIDES,
    ),
    "both sides, and the one again": (
        CAUSAL + "l = Sub (q, i4)\n w = Greater (k, l)\n o = And (c, w)\n d = Sub (q, k)\n a = Abs (d)\n"
        "near = LessOrEqual (a, i4)\n C = Or (o, near)",
        BOTH_SIDES,
    ),
    "ahead": ("q4 = Add (q, i4)\n C = LessOrEqual (k, q4)", {"window_right": 4, **LOWER_RIGHT}),
    "always": (CAUSAL + "y = GreaterOrEqual (q, i0)\n C = And (y, c)", IS_CAUSAL),
}


@pytest.mark.parametrize("attention", [ADDED, WRITTEN, GUARDED], ids=["added", "written", "guarded"])
@pytest.mark.parametrize("kind", CONDITIONS)
def test_positions_become_attributes(kind, attention):
    mask, expected = CONDITIONS[kind]
    [node] = fused(check(build(mask, attention)))
    assert limits(node) == expected
    assert len(node.input) == 3


@pytest.mark.parametrize(
    ("attention", "opset"),
    [(ADDED, 18), (ADDED, 13), (WRITTEN, 17), (GUARDED, 18), (STANDARD, 23)],
    ids=["added", "added 13", "written", "guarded", "standard"],
)
@pytest.mark.parametrize("kind", [k for k in CONDITIONS if k != "ahead"])
def test_padding_stays_a_row(kind, attention, opset):
    """What is left of the mask is [B, 1, 1, T]. Rows without a key keep what they had: the mean of all V, or 0."""
    mask, expected = CONDITIONS[kind]
    if opset < 14 and "Trilu" in mask:
        pytest.skip("Trilu is of opset 14")
    rewritten = check(build(f"{mask.replace('C =', 'C1 =')}\nC = And (C1, p)", attention, opset=opset))
    [node] = fused(rewritten)
    assert limits(node) == expected
    assert node.input[3] == "p"
    assert "And" not in {n.op_type for n in rewritten.graph.node}


# A mask as floats F, of two values, and whether padding is left of it.
FLOATS = {
    "filled triangle": (TRIANGLE + "F = Identity (f4)", False),
    "filled triangle, then padding": (TRIANGLE + "n = Not (p)\n F = Where (n, low, f4)", True),
    "product": (
        SIZE + "full = Expand (low, size)\n tri = Trilu <upper = 1> (full, i1)\n g = Greater (k, q)\n"
        "gf = Cast <to = 1> (g)\n F = Mul (tri, gf)",
        False,
    ),
    "both are the least float": (
        CAUSAL + "C = And (c, p)\n f = Where (c, zero, low)\n g = Where (C, zero, low)\n F = Add (f, g)",
        True,
    ),
}


@pytest.mark.parametrize("kind", FLOATS)
def test_float_masks(kind):
    mask, padded = FLOATS[kind]
    [node] = fused(check(build(mask, FLOAT)))
    assert limits(node) == IS_CAUSAL
    assert (len(node.input) == 4) == padded


# Near misses; most would be right with another operator, none with this one.
STAYS = {
    "off by one": ("c = Less (k, q)", "not provably 0 or Skv - Sq"),
    "one too far back": ("q1 = Sub (q, i4)\n c = LessOrEqual (k, q1)", "not provably 0"),
    "transposed": ("c = LessOrEqual (q, k)", "only one side is limited"),
    "window from the other side": ("q4 = Add (q, i4)\n c = Less (k, q4)", "only one side is limited"),
    "offset of an input": ("o = Add (q, O)\n c = LessOrEqual (k, o)", "not provably 0"),
    "offset per batch": ("o = Add (q, OB)\n c = LessOrEqual (k, o)", "LessOrEqual .* is not understood"),
    "offset twice": ("o = Add (q, past)\n c = LessOrEqual (k, o)", "not provably 0"),
    "counted from one": ("k1 = Add (k, i1)\n c = LessOrEqual (k1, q)", "not provably 0"),
    "stretched": ("k2 = Add (k, k)\n c = LessOrEqual (k2, q)", "other than the positions"),
    "not the first query": (
        "d = LessOrEqual (k, q)\n e = GreaterOrEqual (q, i4)\n c = And (d, e)",
        "other than the positions",
    ),
    "from the end of a longer range": (
        "big = Range (i0, hundred, i1)\n kb = Slice (big, zeroth, t1)\n k1 = Unsqueeze (kb, leading)\n"
        "far = Sub (hundred, s)\n qf = Add (qr, far)\n q1 = Unsqueeze (qf, around)\n c = LessOrEqual (k1, q1)",
        "not provably 0",
    ),
    "documents": ("c = Equal (D, DK)", None),
    "either": ("d = LessOrEqual (k, q)\n c = Or (d, p)", "Or .* is not understood"),
    "either of two windows": (  # neither contains the other
        "l = Sub (q, i4)\n w = Greater (k, l)\n d = LessOrEqual (k, q)\n e = And (d, w)\n q1 = Add (q, i1)\n"
        "f = GreaterOrEqual (k, q)\n g = LessOrEqual (k, q1)\n h = And (f, g)\n c = Or (e, h)",
        "Or .* is not understood",
    ),
    "hole in the triangle": (
        "d = LessOrEqual (k, q)\n e = Sub (q, k)\n f = Equal (e, i4)\n g = Not (f)\n c = And (d, g)",
        "Equal .* is not understood",
    ),
}
INPUTS = ", int64 O, int64[B, 1, 1, 1] OB, int64[B, 1, S, 1] D, int64[B, 1, 1, T] DK"


@pytest.mark.parametrize("kind", STAYS)
def test_near_misses_stay(kind):
    mask, reason = STAYS[kind]
    model = build(f"{mask}\nC = And (c, p)", ADDED, inputs=INPUTS)
    [node] = fused(check(model))
    assert limits(node) == {}
    assert len(node.input) == 4
    [attention] = intfa_onnx.rewrite(model).attentions
    if reason is not None:
        assert re.search(f"the mask stays .*{reason}", attention.notes[-1]), attention.notes


# Conditions on [batch, queries, keys], which are given an axis for the heads at last, as Gemma's embedding model does.
HEADLESS = (
    "p3 = Unsqueeze (Ab, single)\n k3 = Unsqueeze (kr, zero_one)\n qs2 = Unsqueeze (qp, single)\n"
    "c3 = LessOrEqual (k3, qs2)\n"
)


@pytest.mark.parametrize("padding", ["x = And (c3, p3)", "n = Not (c3)\n m = Not (p3)\n o = Or (n, m)\n x = Not (o)"])
@pytest.mark.parametrize("attention", [ADDED, WRITTEN, GUARDED], ids=["added", "written", "guarded"])
def test_padding_without_an_axis_of_heads(attention, padding):
    rewritten = check(build(f"{HEADLESS} {padding}\n C = Unsqueeze (x, single)", attention))
    [node] = fused(rewritten)
    assert limits(node) == IS_CAUSAL


def test_padding_of_each_head_is_not_that_of_the_batch():
    """[heads, 1, keys], which may not be taken for [batch, 1, keys]."""
    check(build(CAUSAL + "C = And (c, H)", ADDED, inputs=", bool[4, 1, T] H"))


# A bias N of the heads: ALiBi [1, H, 1, T], and one of relative positions [1, H, S, T], made of constants.
SLOPES = "slopes = Constant <value = float[4] {0.5, 0.25, 0.125, 0.0625}> ()\n sl = Unsqueeze (slopes, ends)\n"
BIASES = {
    "alibi": SLOPES + "kf = Cast <to = 1> (k)\n N = Mul (sl, kf)\n",
    "alibi, divided": SLOPES
    + "four = Constant <value = float {4}> ()\n kf = Cast <to = 1> (k)\n m = Mul (sl, kf)\n N = Div (m, four)\n",
    "relative": SLOPES + "r = Sub (k, q)\n rf = Cast <to = 1> (r)\n N = Mul (sl, rf)\n",
}
SUMS = {
    "added": "b = Where (C, zero, low)\n F = Add (N, b)",
    "written": "F = Where (C, N, low)",
    "compared": "b = Where (C, zero, low)\n e = Less (b, zero)\n F = Where (e, low, N)",
}


@pytest.mark.parametrize("fill", [-3.4028235e38, -np.inf])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", SUMS)
@pytest.mark.parametrize("bias", BIASES)
def test_bias_beside_the_mask(bias, kind, padded, fill):
    condition = CAUSAL + ("C = And (c, p)\n" if padded else "C = Identity (c)\n")
    [node] = fused(check(build(BIASES[bias] + condition + SUMS[kind], FLOAT_GUARDED, fill=fill)))
    assert limits(node) == IS_CAUSAL
    assert len(node.input) == 4


def test_bias_made_behind_the_mask():
    """Falcon's: what joins the two cannot stand where the mask is made."""
    mask = CAUSAL + "C = And (c, p)\n b = Where (C, zero, low)\n" + BIASES["alibi"] + SUMS["added"].split("\n")[1]
    [node] = fused(check(build(mask, FLOAT)))
    assert limits(node) == IS_CAUSAL


@pytest.mark.parametrize(
    "bias",
    [
        "A0 = Identity (B)",
        "A0 = Sub (N, B)",
        "A0 = Mul (B, N)",
        "A0 = Div (B, one)",
        "A0 = Div (N, B)",
        "A0 = Div (N, tiny)",
    ],
)
def test_bias_that_may_be_a_mask_stays(bias):
    """An input may be as large as the mask, and rows without a key are then others than those that the padding says."""
    tiny = "tiny = Constant <value = float {1e-20}> ()\n"
    condition = (
        tiny + BIASES["alibi"] + CAUSAL + f"C = And (c, p)\n b = Where (C, zero, low)\n {bias}\n F = Add (A0, b)"
    )
    [node] = fused(check(build(condition, FLOAT, inputs=", float[1, 4, 1, T] B")))
    assert limits(node) == {}


def test_sum_of_masks_with_different_limits_stays():
    """A key beyond the window gets the least float, one beyond the diagonal -inf: rows without a key differ."""
    window = CAUSAL + "l = Sub (q, i4)\n w = Greater (k, l)\n d = And (c, w)\n C = And (c, p)\n"
    masks = "f = Where (d, zero, low)\n g = Where (C, zero, low)\n F = Add (f, g)"
    [node] = fused(check(build(window + masks, FLOAT)))
    assert limits(node) == {}


def test_rows_that_keep_their_scores_stay():
    """-1e4 added to a row without a key leaves it what it was, over all keys: no attribute says that."""
    model = build(CAUSAL + "C = And (c, p)", ADDED, fill=-1e4)
    [node] = fused(check(model))
    assert limits(node) == {}
    [attention] = intfa_onnx.rewrite(model).attentions
    assert "keep their scores" in attention.notes[-1]


def test_offset_zero_is_the_standard_alignment():
    [node] = fused(check(build("q0 = Unsqueeze (qr, around)\n C = LessOrEqual (k, q0)", ADDED)))
    assert limits(node) == {"is_causal": 1}


def test_padding_with_offset_zero_and_more_keys_than_queries_stays():
    mask = "q0 = Unsqueeze (qr, around)\n c = LessOrEqual (k, q0)\n C = And (c, p)"
    [node] = fused(check(build(mask, ADDED)))
    assert limits(node) == {}


BUFFERS = {
    "causal": (lambda d: d <= 0, IS_CAUSAL),
    "window": (lambda d: (d <= 0) & (d > -4), {**IS_CAUSAL, "window_left": 3}),
    "strict": (lambda d: d < 0, {}),
    "with a hole": (lambda d: (d <= 0) & (d != -2), {}),
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_sliced_buffer(kind):
    """GPT-2's bias [1, 1, 32, 32], of which each call takes the last rows that it needs."""
    band, expected = BUFFERS[kind]
    mask = "rows = Slice (buffer, p1, t1, two)\n C = Slice (rows, zeroth, t1, three)"
    model = build(mask, ADDED)
    distance = np.arange(32) - np.arange(32)[:, None]
    model.graph.initializer.append(onnx.numpy_helper.from_array(band(distance)[None, None], "buffer"))
    [node] = fused(check(model))
    assert limits(node) == expected
    assert (len(node.input) == 3) == bool(expected)
    [attention] = intfa_onnx.rewrite(model).attentions
    assert ("the mask stays" in "".join(attention.notes)) == (kind == "strict")


def test_two_attentions_share_what_is_left():
    two = "Z = Identity (Y0)\n Kt2 = Transpose <perm = [0, 1, 3, 2]> (kh)\n scores2 = MatMul (Z, Kt2)\n"
    two += "X2 = Add (scores2, b)\n P2 = Softmax <axis = -1> (X2)\n Y = MatMul (P2, vh)"
    attention = ADDED.replace("Y = ", "Y0 = ") + "\n" + two
    rewritten = check(build("n1 = Greater (k, q)\n n2 = Not (p)\n n = Or (n1, n2)\n C = Not (n)", attention))
    first, second = fused(rewritten)
    assert limits(first) == limits(second) == IS_CAUSAL
    assert first.input[3] == second.input[3]
    counts = {op: sum(n.op_type == op for n in rewritten.graph.node) for op in ("CumSum", "Greater", "Or", "Not")}
    assert counts == {"CumSum": 1, "Greater": 0, "Or": 0, "Not": 2}


@pytest.mark.parametrize("attention", [ADDED, GUARDED], ids=["added", "guarded"])
def test_cache_that_goes_out(attention):
    """Present keys and values are outputs: rows without a key average the values of the past, too."""
    model = build(
        "C1 = LessOrEqual (k, q)\n C = And (C1, p)", attention, outputs=", float[B, 2, T, 16] K, float[B, 2, T, 16] V"
    )
    [node] = fused(check(model))
    assert limits(node) == IS_CAUSAL


@pytest.mark.parametrize("negated", [False, True])
def test_tensorrt_gets_numbers(negated):
    """TensorRT's plugins take no boolean mask: what is left becomes 0 and -inf."""
    mask = "n = Not (p)\n m = Greater (k, q)\n o = Or (m, n)\n C = Not (o)" if negated else CAUSAL + "C = And (c, p)"
    rewritten = intfa_onnx.rewrite(build(mask, ADDED), target="trt").to_proto()
    onnx.checker.check_model(rewritten, full_check=True)
    [node] = fused(rewritten)
    made = {o: n for n in rewritten.graph.node for o in n.output}[node.input[3]]
    assert made.op_type == "Where"
    assert limits(node)["causal_alignment"] == b"lower_right"


def test_padding_alone_is_made_small():
    """A mask expanded to [B, 1, S, T], as encoders get it."""
    mask = "y = GreaterOrEqual (q, i0)\n C = And (y, p)"
    [node] = fused(check(build(mask, GUARDED)))
    assert (limits(node), node.input[3]) == ({}, "p")
    rewritten = check(build(mask, ADDED))
    assert "GreaterOrEqual" not in {n.op_type for n in rewritten.graph.node}
