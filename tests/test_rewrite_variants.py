"""Variants of one attention, and look-alikes: what is replaced, that it is exact, and what stays out and why."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from attention_graphs import (
    BOOL,
    KT,
    TAIL,
    VARIANTS,
    attributes,
    check_raise,
    check_same,
    feed,
    fused,
    parse,
    rejection,
    run,
)
from onnx import TensorProto

import intfa_onnx


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_is_replaced_and_exact(variant):
    body, inputs = VARIANTS[variant]
    rewritten = check_raise(parse(body, inputs))
    assert len(fused(rewritten)) == 1
    assert not {"Softmax", "MatMul", "Einsum", "Exp"} & {n.op_type for n in rewritten.graph.node}


def test_finfo_min_keeps_the_uniform_row():
    """A row that is all finfo.min is the mean of V; one that is all -inf, with the guard, is 0."""
    for variant, mean in (("where finfo.min", True), ("minus infinity with guard", False)):
        model = parse(*VARIANTS[variant])
        values = feed(model)
        values["M"][0, 0, 1, :] = False
        rewritten = check_raise(model, values=values)
        want = values["V"][0].mean(axis=1) if mean else np.zeros((2, 16))
        check_same(run(rewritten, values)[0][0, :, 1], want)


def test_bare_minus_infinity_is_replaced_with_a_note():
    """Without the guard a fully masked row is NaN in the original and 0 in ours; the report says so."""
    body = KT + "low = Constant <value = float {-inf}> ()\n s = MatMul (Q, Kt)\n X = Where (M, s, low)\n" + TAIL
    model = parse(body, BOOL)
    result = intfa_onnx.rewrite(model, portable=True)
    assert result.attentions[0].decision == "replaced"
    assert "every key masked" in result.attentions[0].notes[0]
    values = feed(model)
    values["M"][0, 0, 1, :] = False
    want, got = run(model, values)[0], run(result.to_proto(), values)[0]
    assert np.isnan(want[0, :, 1]).all()
    assert (got[0, :, 1] == 0).all()
    check_same(got[~np.isnan(want)], want[~np.isnan(want)])


def test_a_masked_value_that_is_not_negligible_is_rejected():
    body = KT + "low = Constant <value = float {-100}> ()\n s = MatMul (Q, Kt)\n X = Where (M, s, low)\n" + TAIL
    assert "large negative constant" in rejection(parse(body, BOOL))


NEGATIVES = {
    "probabilities are an output": (
        KT + "X = MatMul (Q, Kt)\n" + TAIL,
        "",
        ", float[B, 2, S, T] P",
        "output of the graph",
    ),
    "overwritten above an earlier mask": (
        KT
        + "far = Constant <value = float {-3e38}> ()\n low = Constant <value = float {-1e9}> ()\n s = MatMul (Q, Kt)\n"
        + "b = Where (C, zero, far)\n t = Add (s, b)\n X = Where (M, t, low)\n"
        + TAIL,
        BOOL + ", bool[S, T] C",
        "",
        "overwrites scores with -1e+09, others have -3e+38",
    ),
    "masked scores scaled up": (
        KT
        + "low = Constant <value = float {-1e4}> ()\n s = MatMul (Q, Kt)\n t = Where (M, s, low)\n"
        + "X = Div (t, scale)\n"
        + TAIL,
        BOOL,
        "",
        "scales masked scores up",
    ),
    "probabilities used twice": (
        KT + "X = MatMul (Q, Kt)\n" + TAIL + "\n Z = Mul (P, scale)",
        "",
        ", float[B, 2, S, T] Z",
        "2 consumers (MatMul, Mul)",
    ),
    "scores are an output": (KT + "X = MatMul (Q, Kt)\n" + TAIL, "", ", float[B, 2, S, T] X", "scores are an output"),
    "scores used twice": (
        KT + "s = MatMul (Q, Kt)\n X = Mul (s, scale)\n" + TAIL + "\n Z = Neg (s)",
        "",
        ", float[B, 2, S, T] Z",
        "the scores have other consumers",
    ),
    "constant V": (
        KT
        + "X = MatMul (Q, Kt)\n P = Softmax <axis = -1> (X)\n"
        + "W = Constant <value = float[4, 16] {"
        + ", ".join(["1.0"] * 64)
        + "}> ()\n Y = MatMul (P, W)",
        "",
        "",
        "constant",
    ),
    "constant K": (
        "Kt = Constant <value = float[1, 1, 16, 1] {"
        + ", ".join(["1.0"] * 16)
        + "}> ()\n X = MatMul (Q, Kt)\n P = Softmax <axis = -1> (X)\n Y = MatMul (P, V)",
        "",
        "",
        "no product Q K^T",
    ),
    "softmax over queries": (
        KT + "X = MatMul (Q, Kt)\n P = Softmax <axis = 2> (X)\n Y = MatMul (P, V)",
        "",
        "",
        "it contracts the queries",
    ),
    "softmax over queries, written out": (
        KT
        + "rows = Constant <value = int64[1] {2}> ()\n X = MatMul (Q, Kt)\n m = ReduceMax (X, rows)\n d = Sub (X, m)\n"
        + "e = Exp (d)\n l = ReduceSum (e, rows)\n P = Div (e, l)\n Y = MatMul (P, V)",
        "",
        "",
        "not over the last",
    ),
    "linear attention": (
        "Vt = Transpose <perm = [0, 1, 3, 2]> (V)\n c = MatMul (Vt, K)\n p = Softmax <axis = -1> (Q)\n"
        "ct = Transpose <perm = [0, 1, 3, 2]> (c)\n Y = MatMul (p, ct)",
        "",
        "",
        "no product Q K^T",
    ),
    "talking heads": (
        KT + "X = MatMul (Q, Kt)\n p = Softmax <axis = -1> (X)\n P = Conv (p, W)\n Y = MatMul (P, V)",
        ", float[2, 2, 1, 1] W",
        "",
        "go through Conv",
    ),
    "live dropout": (
        KT
        + "rate = Constant <value = float {0.1}> ()\n on = Constant <value = bool {1}> ()\n X = MatMul (Q, Kt)\n"
        + "p = Softmax <axis = -1> (X)\n P = Dropout (p, rate, on)\n Y = MatMul (P, V)",
        "",
        "",
        "go through Dropout",
    ),
    "NaN replaced by one": (
        KT
        + "one = Constant <value = float {1}> ()\n X = MatMul (Q, Kt)\n p = Softmax <axis = -1> (X)\n nan = IsNaN (p)\n"
        + "P = Where (nan, one, p)\n Y = MatMul (P, V)",
        "",
        "",
        "not a NaN guard",
    ),
    "scale per key": (
        KT + "s = MatMul (Q, Kt)\n X = Mul (s, R)\n" + TAIL,
        ", float[B, 1, 1, T] R",
        "",
        "from key to key",
    ),
    "activation after the scores": (KT + "s = MatMul (Q, Kt)\n X = Relu (s)\n" + TAIL, "", "", "no product Q K^T"),
}


@pytest.mark.parametrize("negative", NEGATIVES)
def test_negative_stays_out(negative):
    body, inputs, outputs, reason = NEGATIVES[negative]
    model = parse(body, inputs, outputs="float[B, 2, S, 16] Y" + outputs)
    assert reason in rejection(model)


@pytest.mark.parametrize(("size", "ok"), [(1, True), (8, True), (12, True), (80, True), (250, True), (264, False)])
def test_head_size(size, ok):
    model = parse(KT + "X = MatMul (Q, Kt)\n" + TAIL)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[3].dim_value = size
    if ok:
        check_raise(model)
        [row] = intfa_onnx.rewrite(model).attentions
        assert row.head_dim == size
        assert row.notes == (() if size % 8 == 0 else (f"padded head size {size} -> {-(-size // 8) * 8}",))
    else:
        assert rejection(model) == "head_dim=264 is unsupported (supported: 1 to 256). It stays in float"


def test_unknown_head_size_is_rejected():
    model = parse(KT + "X = MatMul (Q, Kt)\n" + TAIL)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[3].dim_param = "D"
    assert "head_dim is not known statically" in rejection(model)


def test_unknown_rank_and_type_are_rejected():
    model = parse(KT + "X = MatMul (Q, Kt)\n" + TAIL)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    assert rejection(model) == "the ranks of the products' operands are unknown"
    double = parse(KT + "X = MatMul (Q, Kt)\n" + TAIL)
    for value in (*double.graph.input, *double.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    assert "element type DOUBLE" in rejection(double)


def test_minus_infinity_mask_becomes_boolean():
    rewritten = intfa_onnx.rewrite(parse(*VARIANTS["minus infinity with guard"])).to_proto()
    assert fused(rewritten)[0].input[3] == "M"
    assert [n.op_type for n in rewritten.graph.node if n.op_type != "Constant"] == ["IntFlashAttention"]


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_precision(dtype):
    model = parse(KT + "X = MatMul (Q, Kt)\n" + TAIL)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = dtype
    result = intfa_onnx.rewrite(model, portable=True)
    assert result.attentions[0].decision == "replaced"
    onnx.checker.check_model(result.to_proto(), full_check=True)
    if dtype == TensorProto.FLOAT16:
        values = feed(model)
        check_same(run(result.to_proto(), values)[0], run(model, values)[0], half=True)


def test_float32_softmax_in_a_half_model():
    """Softmax in float32, V cast up: the fused node reads the half tensors and the result is cast."""
    body = (
        KT
        + "s = MatMul (Q, Kt)\n X = Cast <to = 1> (s)\n P = Softmax <axis = -1> (X)\n v = Cast <to = 1> (V)\n"
        + "Y = MatMul (P, v)"
    )
    model = parse(body)
    for value in model.graph.input:
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    rewritten = intfa_onnx.rewrite(model, portable=True).to_proto()
    assert list(fused(rewritten)[0].input) == ["Q", "K", "V"]
    values = feed(model)
    check_same(run(rewritten, values)[0], run(model, values)[0], half=True)


@pytest.mark.parametrize(
    "mask",
    [
        "X = Where (M, s, low)",
        "t = Where (M, s, low)\n X = Mul (t, half)",
        "t = Add (s, N)\n X = Where (M, t, low)",
        "t = Where (M, s, low)\n X = Add (t, R)",
        "t = Where (M, s, low)\n X = Max (t, low)",
        "inf32 = Constant <value = float {-inf}> ()\n inf = Cast <to = 10> (inf32)\n none = Cast <to = 10> (zero)\n"
        "b = Where (M, none, inf)\n t = Add (s, b)\n X = Max (t, low)",
        "t = Where (M, s, low)\n u = Cast <to = 1> (t)\n X = Add (u, F)",
        "t = Add (s, N)\n u = Cast <to = 1> (t)\n X = Add (u, F)",
        "t = Add (s, N)\n u = Cast <to = 1> (t)\n X = Where (M, u, low32)",
        "t = Cast <to = 1> (s)\n u = Add (t, F)\n v = Cast <to = 10> (u)\n X = Where (M, v, low)",
    ],
    ids=[
        *("where", "factor", "bias before", "row", "floor", "floor of -inf"),
        *("to float32", "biases", "where32", "to float16"),
    ],
)
@pytest.mark.parametrize("lowest", [-65504, -10000])
def test_rows_without_a_key_in_half_precision(mask: str, lowest: float) -> None:
    """The least float16 does not swallow a score in float32: such rows were a softmax of their scores, no average."""
    body = (
        f"low32 = Constant <value = float {{{lowest}}}> ()\n low = Cast <to = 10> (low32)\n"
        f"half = Cast <to = 10> (scale)\n {KT} s = MatMul (Q, Kt)\n {mask}\n"
        "p = Softmax <axis = -1> (X)\n P = Cast <to = 10> (p)\n Y = MatMul (P, V)"
    )
    more = ", float16[1, 2, S, T] N, float16[1, 2, S, 1] R, float[1, 2, S, 1] F"
    model = parse(body, BOOL + more)
    for value in (*model.graph.input[:3], *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    result = intfa_onnx.rewrite(model, portable=True)
    assert [a.decision for a in result.attentions] == ["replaced"]
    values = feed(model)
    values["M"][:, :, 0] = False
    check_same(run(result.to_proto(), values)[0], run(model, values)[0], half=True)


# Each ends in a boolean C: true = attend, or in N: true = excluded.
RANGES = (
    "i0 = Constant <value = int64 {0}> ()\n i1 = Constant <value = int64 {1}> ()\n"
    "last = Constant <value = int64[1] {-1}> ()\n first = Constant <value = int64[1] {0}> ()\n"
    "two = Constant <value = int64[1] {2}> ()\n"
    "three = Constant <value = int64[1] {3}> ()\n qs = Shape (Q)\n ks = Shape (K)\n"
    "sq1 = Gather (qs, two)\n"
    "sk1 = Gather (ks, two)\n sq = Squeeze (sq1, first)\n sk = Squeeze (sk1, first)\n"
    "size = Concat <axis = 0> (sq1, sk1)\n"
    "qr = Range (i0, sq, i1)\n kr = Range (i0, sk, i1)\n q2 = Unsqueeze (qr, last)\n k2 = Unsqueeze (kr, first)\n"
    "one = Constant <value = float {1}> ()\n ones = Expand (one, size)\n"
)
CAUSAL = {
    "less or equal": "C = LessOrEqual (k2, q2)\n",
    "greater or equal": "C = GreaterOrEqual (q2, k2)\n",
    "triangle": "t = Trilu <upper = 0> (ones)\n C = Cast <to = 9> (t)\n",
    "triangle, excluded": "t = Trilu <upper = 0> (ones)\n N = Equal (t, zero)\n C = Not (N)\n",
    "greater, excluded": "N = Greater (k2, q2)\n C = Not (N)\n",
}
NOT_CAUSAL = {
    "strictly less": "C = Less (k2, q2)\n",
    "exchanged": "C = LessOrEqual (q2, k2)\n",
    "upper triangle": "t = Trilu (ones)\n C = Cast <to = 9> (t)\n",
    "from one": (
        "kr1 = Range (i1, sk, i1)\n k3 = Unsqueeze (kr1, first)\n k4 = Pad (k3, pads, i0)\n C = LessOrEqual (k4, q2)\n"
    ),
    "with padding": "c = LessOrEqual (k2, q2)\n C = And (c, M)\n",
}
MASKED = "low = Constant <value = float {-3.4028235e38}> ()\n s = MatMul (Q, Kt)\n X = Where (C, s, low)\n"


@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_mask_becomes_an_attribute(kind):
    rewritten = check_raise(parse(KT + RANGES + CAUSAL[kind] + MASKED + TAIL))
    [node] = fused(rewritten)
    assert list(node.input) == ["Q", "K", "V"]
    assert attributes(node)["is_causal"] == 1
    assert not {"Where", "Not", "Cast", "Trilu", "LessOrEqual", "Greater"} & {n.op_type for n in rewritten.graph.node}


@pytest.mark.parametrize("kind", NOT_CAUSAL)
def test_mask_that_is_not_causal_stays_a_mask(kind):
    pads = "pads = Constant <value = int64[4] {0, 1, 0, 0}> ()\n"
    rewritten = check_raise(parse(KT + RANGES + pads + NOT_CAUSAL[kind] + MASKED + TAIL, BOOL))
    [node] = fused(rewritten)
    assert "is_causal" not in attributes(node)
    assert len(node.input) == 4


LOW_RANK = {
    2: ("float[S, 16] Q, float[T, 16] K, float[T, 16] V", "float[S, 16] Y", "float[S, T] M"),
    3: ("float[B, S, 16] Q, float[B, T, 16] K, float[B, T, 16] V", "float[B, S, 16] Y", "float[B, S, T] M"),
    5: (
        "float[B, 3, 2, S, 16] Q, float[B, 3, 2, T, 16] K, float[B, 3, 2, T, 16] V",
        "float[B, 3, 2, S, 16] Y",
        "float[B, 1, 1, S, T] M",
    ),
}


@pytest.mark.parametrize("masked", ["none", "full", "rows"])
@pytest.mark.parametrize("rank", LOW_RANK)
def test_other_ranks(rank, masked):
    inputs, output, mask = LOW_RANK[rank]
    perm = [*range(rank - 2), rank - 1, rank - 2]
    mask = "float[S, T] M" if masked == "rows" else mask
    body = f"Kt = Transpose <perm = {perm}> (K)\n s = MatMul (Q, Kt)\n"
    body += ("X = Identity (s)\n" if masked == "none" else "X = Add (s, M)\n") + TAIL
    given = inputs if masked == "none" else f"{inputs}, {mask}"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]> g ({given}) => ({output}) {{ {body} }}')
    check_raise(model)


def test_scores_reshaped_for_a_mask():
    """Windows: the scores get one more axis for the mask of each window, and lose it again."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[6, 2, S, 16] Q, float[6, 2, S, 16] K, float[6, 2, S, 16] V,
           float[1, 3, 1, S, S] M, float[1, 2, S, S] N) => (float[6, 2, S, 16] Y) {
            Kt = Transpose <perm = [0, 1, 3, 2]> (K)
            s = MatMul (Q, Kt)
            t = Add (s, N)
            shape = Shape (t)
            two_three = Constant <value = int64[2] {2, 3}> ()
            tail = Shape <start = 1> (t)
            wide = Concat <axis = 0> (two_three, tail)
            u = Reshape (t, wide)
            v = Add (u, M)
            X = Reshape (v, shape)
            P = Softmax <axis = -1> (X)
            Y = MatMul (P, V)
        }"""
    )
    check_raise(model)


def test_merged_heads_unmerged_for_a_mask():
    """Batch and heads as one axis for both products (torch.bmm), apart while the mask of the batch is added."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[6, 5, 16] Q, float[6, 7, 16] K, float[6, 7, 16] V, float[3, 1, 5, 7] M) => (float[6, 5, 16] Y) {
            Kt = Transpose <perm = [0, 2, 1]> (K)
            s = MatMul (Q, Kt)
            apart = Constant <value = int64[4] {3, 2, 5, 7}> ()
            merged = Constant <value = int64[3] {6, 5, 7}> ()
            t = Reshape (s, apart)
            u = Add (t, M)
            X = Reshape (u, merged)
            P = Softmax <axis = -1> (X)
            Y = MatMul (P, V)
        }"""
    )
    check_raise(model)


def test_heads_merged_for_the_second_product():
    """Q K^T on four axes, P V on three (torch.bmm)."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[3, 2, 5, 16] Q, float[3, 2, 7, 16] K, float[6, 7, 16] V) => (float[6, 5, 16] Y) {
            Kt = Transpose <perm = [0, 1, 3, 2]> (K)
            X = MatMul (Q, Kt)
            p = Softmax <axis = -1> (X)
            shape = Constant <value = int64[3] {6, 5, 7}> ()
            P = Reshape (p, shape)
            Y = MatMul (P, V)
        }"""
    )
    check_raise(model)


def test_readers_of_the_shape_do_not_keep_the_scores():
    body = KT + "X = MatMul (Q, Kt)\n" + TAIL + "\n shape = Shape <start = 2> (P)"
    model = parse(body, outputs="float[B, 2, S, 16] Y, int64[2] shape")
    rewritten = check_raise(model)
    assert "MatMul" not in {n.op_type for n in rewritten.graph.node}


def test_queries_of_all_heads_as_one_are_rejected():
    """P [B, H, S, T] read as [B, H*S, T]: the heads share V, which Q K^T does not."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[3, 2, 5, 16] Q, float[3, 2, 7, 16] K, float[3, 7, 16] V) => (float[3, 10, 16] Y) {
            Kt = Transpose <perm = [0, 1, 3, 2]> (K)
            X = MatMul (Q, Kt)
            p = Softmax <axis = -1> (X)
            shape = Constant <value = int64[3] {3, 10, 7}> ()
            P = Reshape (p, shape)
            Y = MatMul (P, V)
        }"""
    )
    assert "not provably those of Q K^T" in rejection(model)


def grouped_model(axis: int) -> onnx.ModelProto:
    """Two key heads for four query heads: each repeated in place (axis 2), or both in turn (axis 1)."""
    repeat = "1, 1, 2, 1, 1" if axis == 2 else "1, 2, 1, 1, 1"
    return onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 18]>
        g (float[3, 4, 5, 16] Q, float[3, 2, 7, 16] K, float[3, 2, 7, 16] V) => (float[3, 4, 5, 16] Y) {{
            axis = Constant <value = int64[1] {{{axis}}}> ()
            repeat = Constant <value = int64[5] {{{repeat}}}> ()
            heads = Constant <value = int64[4] {{3, 4, 7, 16}}> ()
            k5 = Unsqueeze (K, axis)
            k55 = Expand (k5, repeat)
            k = Reshape (k55, heads)
            v5 = Unsqueeze (V, axis)
            v55 = Expand (v5, repeat)
            v = Reshape (v55, heads)
            Kt = Transpose <perm = [0, 1, 3, 2]> (k)
            X = MatMul (Q, Kt)
            P = Softmax <axis = -1> (X)
            Y = MatMul (P, v)
        }}"""
    )


def test_repeated_key_heads_are_not_repeated():
    [node] = fused(check_raise(grouped_model(axis=2)))
    assert list(node.input) == ["Q", "K", "V"]


def test_key_heads_repeated_in_turn_stay():
    """Query head 1 reads key head 1 here, and key head 0 in grouped-query attention."""
    [node] = fused(check_raise(grouped_model(axis=1)))
    assert node.input[1] != "K"


@pytest.mark.parametrize("v_perm", [(0, 2, 1, 3), (0, 3, 1, 2)])
def test_packed_heads(v_perm):
    """Heads behind the tokens are read as they lie; a V that is stored otherwise keeps its Transpose."""
    v_shape = [0, 0, 0, 0]
    for axis, size in zip(v_perm, ("B", 2, "T", 16), strict=True):
        v_shape[axis] = size
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 18]>
        g (float[B, S, 2, 16] Q, float[B, T, 2, 16] K, float[{", ".join(map(str, v_shape))}] V)
          => (float[B, S, 2, 16] Y) {{
            q = Transpose <perm = [0, 2, 1, 3]> (Q)
            k = Transpose <perm = [0, 2, 3, 1]> (K)
            v = Transpose <perm = [{", ".join(map(str, v_perm))}]> (V)
            X = MatMul (q, k)
            P = Softmax <axis = -1> (X)
            y = MatMul (P, v)
            Y = Transpose <perm = [0, 2, 1, 3]> (y)
        }}"""
    )
    [node] = fused(check_raise(model))
    assert attributes(node).get("q_num_heads", 0) == (2 if v_perm == (0, 2, 1, 3) else 0)


@pytest.mark.parametrize("shared", ["Q in batch", "Q in heads", "K in heads", "K and V in heads", "K and V in batch"])
def test_broadcast_operands(shared):
    """The products broadcast; the operator wants the sizes, but for fewer key heads."""
    names, _, where = shared.partition(" in ")
    small = "1, 2" if where == "batch" else "3, 1"
    shapes = {n: small if n in names else "3, 2" for n in ("Q", "K", "V")}
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 18]>
        g (float[{shapes["Q"]}, 5, 16] Q, float[{shapes["K"]}, 7, 16] K, float[{shapes["V"]}, 7, 16] V)
          => (float[3, 2, 5, 16] Y) {{
            {KT}
            X = MatMul (Q, Kt)
            P = Softmax <axis = -1> (X)
            Y = MatMul (P, V)
        }}"""
    )
    [node] = fused(check_raise(model))
    direct = {"K and V in heads": ["Q", "K", "V"]}.get(shared)
    assert direct is None or list(node.input) == direct
