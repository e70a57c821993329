"""Masks by multiplication, quantized scores, reshaped scores: what is read, and look-alikes that are left alone."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from attention_graphs import BOOL, KT, TAIL, check_raise, check_same, feed, parse, rejection, run
from onnx import numpy_helper

import intfa_onnx

CONSTANTS = (
    "one = Constant <value = float {1}> ()\n big = Constant <value = float {10000}> ()\n"
    "less = Constant <value = float {100}> ()\n low = Constant <value = float {-10000}> ()\n"
)
TIMES = KT + CONSTANTS + "s = MatMul (Q, Kt)\n t = Mul (s, scale)\n b = Cast <to = 1> (M)\n"
INVERSE = "c = Sub (one, b)\n d = Mul (c, big)\n"

TIMES_MASK = {
    "subtracted": TIMES + INVERSE + "u = Mul (t, b)\n X = Sub (u, d)\n",
    "added": TIMES + "c = Sub (one, b)\n d = Mul (low, c)\n u = Mul (b, t)\n X = Add (u, d)\n",
    "inverse from b - 1": TIMES + "c = Sub (b, one)\n d = Mul (c, big)\n u = Mul (t, b)\n X = Add (d, u)\n",
    "scaled in between": TIMES + INVERSE + "u = Mul (t, b)\n v = Mul (u, scale)\n X = Sub (v, d)\n",
    "computed twice": TIMES + "b2 = Cast <to = 1> (M)\n c = Sub (one, b2)\n d = Mul (c, big)\n"
    "u = Mul (t, b)\n X = Sub (u, d)\n",
    "product of two masks": TIMES + "e = Sub (one, b)\n f = Sub (one, e)\n g = Mul (f, b)\n"
    "c = Sub (one, g)\n d = Mul (c, big)\n u = Mul (t, g)\n X = Sub (u, d)\n",
}


@pytest.mark.parametrize("kind", TIMES_MASK)
def test_scores_times_mask(kind):
    """A row with every key masked is the mean of V, as softmax of a constant is."""
    model = parse(TIMES_MASK[kind] + TAIL, BOOL)
    check_raise(model)
    values = feed(model)
    values["M"][1, 0, 2, :] = False
    rewritten = check_raise(model, values=values)
    check_same(run(rewritten, values)[0][1, :, 2], values["V"][1].mean(axis=1))


def test_scores_times_stored_triangle():
    """GPT-2's buffer of zeros and ones, of which a part as large as the scores is cut out."""
    body = (
        "first = Constant <value = int64[2] {0, 0}> ()\n rows = Constant <value = int64[2] {2, 3}> ()\n"
        + "two = Constant <value = int64 {2}> ()\n three = Constant <value = int64[1] {3}> ()\n"
        + KT
        + CONSTANTS
        + "s = MatMul (Q, Kt)\n shape = Shape (s)\n size = Slice (shape, rows3, four)\n"
        + "b = Slice (triangle, first, size, rows)\n c = Sub (one, b)\n d = Mul (c, big)\n"
        + "u = Mul (s, b)\n X = Sub (u, d)\n"
        + TAIL
    )
    body = body.replace("rows3, four", "begin, end").replace(
        KT, KT + "begin = Constant <value = int64[1] {2}> ()\n end = Constant <value = int64[1] {4}> ()\n"
    )
    for value, ok in ((1.0, True), (0.5, False)):
        model = parse(body)
        triangle = np.tril(np.full((1, 1, 16, 16), value, np.float32))
        model.graph.initializer.append(numpy_helper.from_array(triangle, "triangle"))
        if ok:
            check_raise(model)
        else:
            assert "from key to key" in rejection(model)


FLOAT_MASK = ", float[B, 1, S, T] F"
NOT_A_MASK = {
    "not provably zeros and ones": (
        KT + CONSTANTS + "s = MatMul (Q, Kt)\n c = Sub (one, F)\n d = Mul (c, big)\n u = Mul (s, F)\n X = Sub (u, d)\n",
        FLOAT_MASK,
        "from key to key",
    ),
    "the inverse of another mask": (
        TIMES + "e = Cast <to = 1> (N)\n c = Sub (one, e)\n d = Mul (c, big)\n u = Mul (t, b)\n X = Sub (u, d)\n",
        BOOL + ", bool[B, 1, S, T] N",
        "something else than its inverse",
    ),
    "the mask itself": (
        TIMES + "d = Mul (b, big)\n u = Mul (t, b)\n X = Sub (u, d)\n",
        BOOL,
        "something else than its inverse",
    ),
    "the wrong sign": (TIMES + INVERSE + "u = Mul (t, b)\n X = Add (u, d)\n", BOOL, "does not exclude them"),
    "too small": (
        TIMES + "c = Sub (one, b)\n d = Mul (c, less)\n u = Mul (t, b)\n X = Sub (u, d)\n",
        BOOL,
        "adds -100 to masked scores",
    ),
    "nothing added": (TIMES + "X = Mul (t, b)\n", BOOL, "nothing is added where it is 0"),
    "another addition first": (
        TIMES + INVERSE + "u = Mul (t, b)\n v = Add (u, F)\n X = Sub (v, d)\n",
        BOOL + FLOAT_MASK,
        "something else than its inverse",
    ),
    "divided by the mask": (TIMES + INVERSE + "u = Div (t, b)\n X = Sub (u, d)\n", BOOL, "from key to key"),
    "a masked value scaled until it counts": (
        KT + CONSTANTS + "tiny = Constant <value = float {0.001}> ()\n s = MatMul (Q, Kt)\n t = Where (M, s, low)\n"
        "X = Mul (t, tiny)\n",
        BOOL,
        "does not exclude them",
    ),
    "a masked value with another sign": (
        KT + CONSTANTS + "s = MatMul (Q, Kt)\n t = Where (M, s, low)\n X = Mul (t, low)\n",
        BOOL,
        "does not exclude them",
    ),
    "a bias that decides rows without a key": (
        KT + CONSTANTS + "s = MatMul (Q, Kt)\n t = Where (M, s, low)\n X = Add (t, F)\n",
        BOOL + FLOAT_MASK,
        "rows with every key masked",
    ),
    "two masks of different value": (
        KT + CONSTANTS + "lower = Constant <value = float {-1e9}> ()\n s = MatMul (Q, Kt)\n t = Where (M, s, low)\n"
        "X = Where (N, t, lower)\n",
        BOOL + ", bool[B, 1, S, T] N",
        "others have -10000",
    ),
}


@pytest.mark.parametrize("kind", NOT_A_MASK)
def test_not_a_mask(kind):
    body, inputs, reason = NOT_A_MASK[kind]
    assert reason in rejection(parse(body + TAIL, inputs))


LIMITS = (
    KT + "most = Constant <value = float {3.4028235e38}> ()\n least = Constant <value = float {-3.4028235e38}> ()\n"
    "inf = Constant <value = float {inf}> ()\n low = Constant <value = float {-10000}> ()\n"
    "s0 = MatMul (Q, Kt)\n s = Mul (s0, scale)\n"
)
MINIMUM = {
    "of the type's limits": "w = Where (M, most, least)\n X = Min (s, w)\n",
    "inverted": "w = Where (M, least, inf)\n X = Min (w, s)\n",
    "before a bias": "w = Where (M, most, least)\n t = Min (s, w)\n X = Add (t, F)\n",
}


@pytest.mark.parametrize("kind", MINIMUM)
def test_mask_by_a_minimum(kind):
    model = parse(LIMITS + MINIMUM[kind] + TAIL, BOOL + FLOAT_MASK)
    check_raise(model)
    values = feed(model)
    values["M"][1, 0, 2, :] = "inverted" in kind
    rewritten = check_raise(model, values=values)
    check_same(run(rewritten, values)[0][1, :, 2], values["V"][1].mean(axis=1))


NOT_A_MINIMUM = {
    "of 0": "w = Where (M, zero, least)\n X = Min (s, w)\n",
    "of a number that other scores may be below": "w = Where (M, most, low)\n X = Min (s, w)\n",
    "of a tensor": "X = Min (s, F)\n",
    "of three": "w = Where (M, most, least)\n X = Min (s, w, F)\n",
    # What is -inf already stays so: a row that this mask excludes has only the other keys.
    "after another mask": "t = Add (s, F)\n w = Where (M, most, least)\n X = Min (t, w)\n",
}


@pytest.mark.parametrize("kind", NOT_A_MINIMUM)
def test_another_minimum_is_left_alone(kind):
    rejection(parse(LIMITS + NOT_A_MINIMUM[kind] + TAIL, BOOL + FLOAT_MASK))


@pytest.mark.parametrize("terms", ["s, F, N", "F, s, N", "N, F, s", "s, F", "s"])
def test_sum_of_several_terms(terms):
    """As AddN of TensorFlow is written."""
    check_raise(parse(LIMITS + f"X = Sum ({terms})\n" + TAIL, FLOAT_MASK + ", float[T] N"))


def test_sum_of_two_products_is_left_alone():
    rejection(parse(LIMITS + "n = Neg (s)\n X = Sum (s, F, n)\n" + TAIL, FLOAT_MASK))


def quantize(x: str, scale: str = "qs", zero: str = "qz", back: str = "qs") -> str:
    return f"{x}q = QuantizeLinear ({x}, {scale}, {zero})\n {x}d = DequantizeLinear ({x}q, {back}, {zero})\n"


QDQ = (
    "qs = Constant <value = float {0.05}> ()\n other = Constant <value = float {0.06}> ()\n"
    "ps = Constant <value = float {0.004}> ()\n"
)


def quantized_model(scores: str, probs: str, zero: np.ndarray) -> onnx.ModelProto:
    body = QDQ + KT + "s = MatMul (Q, Kt)\n" + scores + "X = Mul (sd, scale)\n p = Softmax <axis = -1> (X)\n" + probs
    model = parse(body + "Y = MatMul (pd, V)")
    model.graph.initializer.append(numpy_helper.from_array(zero, "qz"))
    return model


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_quantized_scores_and_probabilities(dtype):
    """The rewritten model is nearer to the model before quantization than the quantized one is."""
    zero = np.array(128 if dtype == np.uint8 else 0, dtype)
    model = quantized_model(quantize("s"), quantize("p", "ps", back="ps"), zero)
    result = intfa_onnx.rewrite(model, portable=True)
    assert [a.decision for a in result.attentions] == ["replaced"]
    assert len(result.attentions[0].notes) == 2
    assert {"QuantizeLinear", "DequantizeLinear"}.isdisjoint(n.op_type for n in result.to_proto().graph.node)
    before = parse(KT + "s = MatMul (Q, Kt)\n X = Mul (s, scale)\n" + TAIL)
    values = feed(before)
    exact, quantized, raised = (run(m, values)[0] for m in (before, model, result.to_proto()))
    check_same(raised, exact)
    assert np.abs(quantized - exact).max() > 1e-3


@pytest.mark.parametrize(
    ("scores", "dtype"), [(quantize("s", back="other"), np.int8), (quantize("s"), np.int16)], ids=["scales", "16 bits"]
)
def test_other_quantization_is_left_alone(scores, dtype):
    model = quantized_model(scores, quantize("p", "ps", back="ps"), np.array(0, dtype))
    model.opset_import[0].version = 21
    assert "QuantizeLinear" in rejection(model)


def test_softmax_over_more_than_the_keys():
    """Reshaped, normalized over queries and keys together, and reshaped back: the shapes alone do not show it."""
    body = (
        KT
        + "s = MatMul (Q, Kt)\n shape = Shape (s)\n flat = Constant <value = int64[3] {0, 2, -1}> ()\n"
        + "X = Reshape (s, flat)\n p = Softmax <axis = -1> (X)\n P = Reshape (p, shape)\n Y = MatMul (P, V)"
    )
    assert "not provably over the keys" in rejection(parse(body))


def test_merged_heads_with_sizes_that_are_not_known():
    """BLOOM: [B * H, S, T] for the products, [B, H, S, T] for mask and softmax, sizes from the scores themselves."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[B, 2, S, 16] Q, float[B, 2, T, 16] K, float[B, 2, T, 16] V, float[N, 1, T] A, float[B, 1, S, T] M)
          => (float[N, S, 16] Y) {
            three = Constant <value = int64[3] {-1, 0, 16}> ()
            minus = Constant <value = int64[1] {-1}> ()
            heads = Constant <value = int64[1] {2}> ()
            sq = Shape <start = 2, end = 3> (Q)
            sk = Shape <start = 2, end = 3> (K)
            d = Constant <value = int64[1] {16}> ()
            qm = Concat <axis = 0> (minus, sq, d)
            km = Concat <axis = 0> (minus, sk, d)
            q = Reshape (Q, qm)
            k = Reshape (K, km)
            v = Reshape (V, km)
            kt = Transpose <perm = [0, 2, 1]> (k)
            s = MatMul (q, kt)
            t = Add (s, A)
            rows = Shape <start = 1> (t)
            apart = Concat <axis = 0> (minus, heads, rows)
            u = Reshape (t, apart)
            X = Add (u, M)
            p = Softmax <axis = -1> (X)
            tail = Shape <start = 2> (p)
            merged = Concat <axis = 0> (minus, tail)
            P = Reshape (p, merged)
            Y = MatMul (P, v)
        }"""
    )
    rng = np.random.default_rng(0)
    shapes = {"Q": (3, 2, 5, 16), "K": (3, 2, 7, 16), "V": (3, 2, 7, 16), "A": (6, 1, 7), "M": (3, 1, 5, 7)}
    check_raise(model, values={n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()})
