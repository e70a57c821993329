"""Batch and heads as one axis of both products, apart for the masks: transformers before 4.48, torch.baddbmm."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from attention_graphs import attributes, check_same, fused, run

import intfa_onnx

MERGED = """
apart = Constant <value = int64[4] {0, 0, 2, 16}> ()
one = Constant <value = int64[1] {1}> ()
minus = Constant <value = int64[1] {-1}> ()
two = Constant <value = int64[1] {2}> ()
size = Constant <value = int64[1] {16}> ()
wide = Constant <value = int64[1] {32}> ()
scale = Constant <value = float {0.3}> ()
zero = Constant <value = float {0}> ()
low = Constant <value = float {-3.4028235e38}> ()
minus_inf = Constant <value = float {-inf}> ()
B = Shape <start = 0, end = 1> (x)
S = Shape <start = 1, end = 2> (x)
BH = Mul (B, two)
merged = Concat <axis = 0> (BH, minus, size)
heads = Concat <axis = 0> (B, two, S, S)
together = Concat <axis = 0> (BH, S, S)
back = Concat <axis = 0> (B, two, S, size)
packed = Concat <axis = 0> (B, S, wide)
w = MatMul (x, Wq)
u = MatMul (x, Wk)
v = MatMul (x, Wv)
q4 = Reshape (w, apart)
k4 = Reshape (u, apart)
v4 = Reshape (v, apart)
qt = Transpose <perm = [0, 2, 1, 3]> (q4)
kt = Transpose <perm = [0, 2, 1, 3]> (k4)
vt = Transpose <perm = [0, 2, 1, 3]> (v4)
q = Reshape (qt, merged)
k = Reshape (kt, merged)
V = Reshape (vt, merged)
Kt = Transpose <perm = [0, 2, 1]> (k)
s0 = MatMul (q, Kt)
s = Mul (s0, scale)
n = Squeeze (S)
i0 = Constant <value = int64 {0}> ()
i1 = Constant <value = int64 {1}> ()
r = Range (i0, n, i1)
row = Unsqueeze (r, minus)
c = LessOrEqual (r, row)
"""
BACK = """
y = MatMul (P, V)
y4 = Reshape (y, back)
yt = Transpose <perm = [0, 2, 1, 3]> (y4)
Y = Reshape (yt, packed)
"""
PAD = "front = Constant <value = int64[2] {1, 2}> ()\n p = Unsqueeze (keep, front)\n C = And (c, p)\n"
SOFTMAX = "z = Reshape (X, together)\n P = Softmax <axis = -1> (z)\n"
ALIBI = "of_all = Concat <axis = 0> (BH, one, S)\n rf = Cast <to = 1> (r)\n a = Expand (rf, of_all)\n"
BIAS = "F = Where (C, zero, low)\n t = Reshape (s, heads)\n"
FORMS = {
    "causal": ("t = Reshape (s, heads)\n X = Where (c, t, low)\n" + SOFTMAX, False),
    "causal, padded": (PAD + BIAS + "X = Add (t, F)\n" + SOFTMAX, True),
    "with a floor": (PAD + BIAS + "m = Add (t, F)\n X = Max (m, low)\n" + SOFTMAX, True),
    "-inf with a floor": (
        PAD + BIAS.replace("low", "minus_inf") + "m = Add (t, F)\n X = Max (m, low)\n" + SOFTMAX,
        True,
    ),
    "softmax of heads apart": (
        PAD + BIAS + "X = Add (t, F)\n p4 = Softmax <axis = -1> (X)\n P = Reshape (p4, together)\n",
        True,
    ),
    "a bias before": (
        PAD + ALIBI + "s1 = Add (s, a)\n" + BIAS.replace("(s,", "(s1,") + "X = Add (t, F)\n" + SOFTMAX,
        True,
    ),
}
LEFT_MERGED = {
    "queries and keys as one axis": (
        "SS = Mul (S, S)\n flat = Concat <axis = 0> (B, two, SS, one)\n t = Reshape (s, flat)\n X = Add (t, M3)\n"
        + SOFTMAX
    ),
    "a bias before, of one head": ("s1 = Add (s, A1)\n t = Reshape (s1, heads)\n X = Where (c, t, low)\n" + SOFTMAX),
    "masked again behind": (
        "t = Reshape (s, heads)\n m = Where (c, t, low)\n X = Reshape (m, together)\n z = Add (X, A)\n"
        "P = Softmax <axis = -1> (z)\n"
    ),
    "apart in another way": (
        "more = Concat <axis = 0> (two, B, S, S)\n t = Reshape (s, more)\n X = Add (t, M2)\n" + SOFTMAX
    ),
}


def build(form: str, merged: str = MERGED, back: str = BACK) -> onnx.ModelProto:
    given = ", ".join(f"float[32, 32] W{n}" for n in "qkv")
    return onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 18]>
        g (float[B, S, 32] x, {given}, bool[B, S] keep, float[H, 1, S] A, float[1, 1, S] A1, float[2, 1, S, S] M2,
           float[1, 1, U, 1] M3, float[1, S, 16] V1, float[I, J, L] A2)
          => (float[B, S, 32] Y) {{ {merged} {form} {back} }}"""
    )


def check(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite with the float body, and compare for every kind of padding and two shapes."""
    result = intfa_onnx.rewrite(model, portable=True)
    assert [a.decision for a in result.attentions] == ["replaced"], result.attentions
    rewritten = result.to_proto()
    onnx.checker.check_model(rewritten, full_check=True)
    rng = np.random.default_rng(0)
    for batch, size in ((3, 7), (1, 4)):
        for keep in (np.arange(size) < size - 2, np.arange(size) > 1, np.arange(size) % 3 == 1):
            values = {f"W{n}": rng.standard_normal((32, 32)).astype(np.float32) / 4 for n in "qkv"}
            values["x"] = rng.standard_normal((batch, size, 32)).astype(np.float32)
            values["A"] = rng.standard_normal((2 * batch, 1, size)).astype(np.float32)
            values["A2"] = values["A"]
            values["A1"] = values["A"][:1]
            values["M2"] = rng.standard_normal((2, 1, size, size)).astype(np.float32)
            values["M3"] = values["M2"][:1].reshape(1, 1, -1, 1)
            values["V1"] = values["x"][:1, :, :16]
            values["keep"] = np.stack([keep, np.zeros(size, bool), np.ones(size, bool)])[:batch]
            for got, want in zip(run(rewritten, values), run(model, values), strict=True):
                check_same(got, want)
    return rewritten


@pytest.mark.parametrize("kind", FORMS)
def test_heads_are_apart_again(kind):
    """No copy of the mask for each head, no tensor of queries x keys, no Transpose."""
    form, padded = FORMS[kind]
    rewritten = check(build(form))
    [node] = fused(rewritten)
    assert attributes(node)["is_causal"] == 1
    assert attributes(node)["q_num_heads"] == 2
    assert (len(node.input) == 4) == padded
    if kind != "a bias before":
        assert "Expand" not in {n.op_type for n in rewritten.graph.node}


def test_a_floor_under_a_sum_of_masks():
    """What both exclude is -inf, and then the least float again: a row without a key is the mean of all V."""
    sums = "p0 = Add (t, Fc)\n m = Add (p0, Fp)\n X = Max (m, low)\n"
    masks = PAD + "Fc = Where (c, zero, low)\n Fp = Where (p, zero, low)\n t = Reshape (s, heads)\n"
    [node] = fused(check(build(masks + sums + SOFTMAX)))
    assert "is_causal" not in attributes(node)


SPLIT = {
    "heads in front of the batch": ("[0, 2, 1, 3]> ({}4)", "[2, 0, 1, 3]> ({}4)"),
    "channels in front of tokens": ("[0, 2, 1, 3]> ({}4)", "[0, 2, 3, 1]> ({}4)"),
}


@pytest.mark.parametrize("kind", SPLIT)
def test_heads_merged_in_another_way(kind):
    """What was merged is not what the mask is given for: it has to be taken apart anew."""
    old, new = SPLIT[kind]
    merged = MERGED
    for name in "qkv":
        merged = merged.replace(old.format(name), new.format(name))
    [node] = fused(check(build(FORMS["causal, padded"][0], merged=merged)))
    assert attributes(node)["is_causal"] == 1
    assert "q_num_heads" not in attributes(node)


def test_values_of_one_head_for_all():
    check(build(FORMS["causal, padded"][0], back=BACK.replace("(P, V)", "(P, V1)")))


def test_queries_behind_a_past():
    """Rows without a key are those of the last queries."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[N, S, 16] Q, float[N, T, 16] K, float[N, T, 16] V, bool[B, T] keep) => (float[N, S, 16] Y) {
            two = Constant <value = int64[1] {2}> ()
            minus = Constant <value = int64[1] {-1}> ()
            front = Constant <value = int64[2] {1, 2}> ()
            i0 = Constant <value = int64 {0}> ()
            i1 = Constant <value = int64 {1}> ()
            zero = Constant <value = float {0}> ()
            low = Constant <value = float {-3.4028235e38}> ()
            N = Shape <start = 0, end = 1> (Q)
            S = Shape <start = 1, end = 2> (Q)
            T = Shape <start = 1, end = 2> (K)
            B = Shape <start = 0, end = 1> (keep)
            heads = Concat <axis = 0> (B, two, S, T)
            together = Concat <axis = 0> (N, S, T)
            s0 = Squeeze (S)
            t0 = Squeeze (T)
            past = Sub (t0, s0)
            i = Range (i0, s0, i1)
            j = Range (i0, t0, i1)
            place = Add (i, past)
            row = Unsqueeze (place, minus)
            c = LessOrEqual (j, row)
            p = Unsqueeze (keep, front)
            C = And (c, p)
            F = Where (C, zero, low)
            Kt = Transpose <perm = [0, 2, 1]> (K)
            s = MatMul (Q, Kt)
            t = Reshape (s, heads)
            X = Add (t, F)
            z = Reshape (X, together)
            P = Softmax <axis = -1> (z)
            Y = MatMul (P, V)
        }"""
    )
    rng = np.random.default_rng(0)
    values = {n: rng.standard_normal((6, size, 16)).astype(np.float32) for n, size in (("Q", 3), ("K", 8), ("V", 8))}
    values["keep"] = np.array([[False] * 6 + [True] * 2, [True] * 8, [False] * 8])
    rewritten = intfa_onnx.rewrite(model, portable=True).to_proto()
    [node] = fused(rewritten)
    assert attributes(node)["is_causal"] == 1
    check_same(run(rewritten, values)[0], run(model, values)[0])


@pytest.mark.parametrize("kind", LEFT_MERGED)
def test_heads_that_stay_merged(kind):
    [node] = fused(check(build(LEFT_MERGED[kind])))
    assert "is_causal" not in attributes(node)


@pytest.mark.parametrize(
    ("shape", "replaced"),
    [("(s)", True), ("(z)", True), ("(t)", False), ("(X)", False), ("<start = 2> (X)", True), ("<end = 3> (t)", False)],
)
def test_shape_of_reshaped_scores(shape, replaced):
    """It is that of Q K^T before the heads are apart and after they are merged again; in between the last two axes."""
    _check_shape(f"shape = Shape {shape}\n Z = Neg (shape)\n", replaced)


@pytest.mark.parametrize(
    ("picks", "replaced"),
    [
        ("b = Slice (shape, minus_two, minus)\n Z = Neg (b)\n", True),
        ("b = Slice (shape, minus, end)\n Z = Neg (b)\n", True),
        ("b = Gather (shape, minus)\n Z = Neg (b)\n", True),
        ("b = Slice (shape, one, two)\n Z = Neg (b)\n", False),
        ("b = Slice (shape, minus_two, end)\n Z = Neg (b)\n", False),
        ("b = Slice (shape, end, minus_two, axis, minus)\n Z = Neg (b)\n", False),
        ("b = Gather (shape, axis)\n Z = Neg (b)\n", False),
        ("b = Slice (shape, minus, end)\n Z0 = Neg (b)\n Z = Neg (shape)\n", False),
    ],
)
def test_sizes_picked_from_the_shape_of_reshaped_scores(picks, replaced):
    """DeBERTa's by TorchScript: counted from the back they are those of Q K^T."""
    constants = "".join(
        f"{name} = Constant <value = int64[1] {{{value}}}> ()\n"
        for name, value in (("minus_two", -2), ("end", 2**63 - 1), ("axis", 0))
    )
    _check_shape(f"{constants} shape = Shape (X)\n {picks}", replaced)


def _check_shape(nodes: str, replaced: bool) -> None:
    model = build(FORMS["causal, padded"][0] + nodes)
    model.graph.output.append(onnx.helper.make_tensor_value_info("Z", onnx.TensorProto.INT64, [None]))
    if replaced:
        check(model)
    else:
        [attention] = intfa_onnx.rewrite(model).attentions
        assert attention.reason == "the shape of reshaped scores is read"


def test_shape_of_scores_behind_a_bias_of_unknown_sizes():
    """A bias is never larger than the scores."""
    form = "s2 = Add (s, A2)\n shape = Shape (s2)\n Z = Neg (shape)\n" + FORMS["causal"][0].replace("(s,", "(s2,")
    model = build(form)
    model.graph.output.append(onnx.helper.make_tensor_value_info("Z", onnx.TensorProto.INT64, [None]))
    check(model)
