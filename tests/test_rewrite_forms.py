"""Attention in other forms than Q K^T, Softmax, P V: axes in any order, other letterings, softmax in other words."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx.parser
import pytest
from attention_graphs import (
    BOOL,
    KT,
    PV,
    TAIL,
    S,
    attributes,
    check_raise,
    check_same,
    feed,
    fused,
    parse,
    rejection,
    run,
)
from onnx import TensorProto, numpy_helper

import intfa_onnx

P = "P = Softmax <axis = -1> (s)\n"
PT = "Pt = Transpose <perm = [0, 1, 3, 2]> (P)\n"
VT = "Vt = Transpose <perm = [0, 1, 3, 2]> (V)\n"
YT = "Y = Transpose <perm = [0, 1, 3, 2]> (y)"
QT = "Qt = Transpose <perm = [0, 1, 3, 2]> (Q)\n t0 = MatMul (K, Qt)\n t = Mul (t0, scale)\n"

TRANSPOSED = {
    "V^T P^T": (S + P + PT + VT + "y = MatMul (Vt, Pt)\n" + YT, ""),
    "K Q^T, transposed": (QT + "X = Transpose <perm = [0, 1, 3, 2]> (t)\n" + TAIL, ""),
    "K Q^T, softmax over its rows": (QT + "P = Softmax <axis = -2> (t)\n" + VT + "y = MatMul (Vt, P)\n" + YT, ""),
    "K Q^T, masked": (
        QT + "u = Add (t, M)\n P = Softmax <axis = 2> (u)\n" + PT + "Y = MatMul (Pt, V)",
        ", float[B, 1, T, 1] M",
    ),
    "K Q^T, masked with fewer axes": (
        QT + "u = Add (t, M)\n P = Softmax <axis = 2> (u)\n" + PT + "Y = MatMul (Pt, V)",
        ", float[T, S] M",
    ),
    "K Q^T, scaled per query": (
        QT + "u = Mul (t, M)\n P = Softmax <axis = 2> (u)\n" + PT + "Y = MatMul (Pt, V)",
        ", float[B, 2, 1, S] M",
    ),
    "softmax over axis 1, between Transposes": (
        S + "t = Transpose <perm = [0, 3, 1, 2]> (s)\n p = Softmax <axis = 1> (t)\n"
        "P = Transpose <perm = [0, 2, 3, 1]> (p)\n" + PV,
        "",
    ),
    "mask between Transposes": (
        S + "t = Transpose <perm = [0, 3, 1, 2]> (s)\n u = Add (t, M)\n p = Softmax <axis = 1> (u)\n"
        "P = Transpose <perm = [0, 2, 3, 1]> (p)\n" + PV,
        ", float[B, T, 2, S] M",
    ),
}


@pytest.mark.parametrize("kind", TRANSPOSED)
def test_transposed(kind):
    rewritten = check_raise(parse(*TRANSPOSED[kind]))
    assert not {"Softmax", "MatMul"} & {n.op_type for n in rewritten.graph.node}


NOT_TRANSPOSED_BACK = {
    "P^T V": S + P + PT + "Y = MatMul (Pt, V)",
    "V^T P": S + P + VT + "y = MatMul (Vt, P)\n" + YT,
    "K Q^T over the queries": QT + "P = Softmax <axis = -1> (t)\n" + PT + "Y = MatMul (Pt, V)",
    "heads exchanged with queries": S + "t = Transpose <perm = [0, 2, 1, 3]> (s)\n P = Softmax <axis = -1> (t)\n" + PV,
}


@pytest.mark.parametrize("kind", NOT_TRANSPOSED_BACK)
def test_not_transposed_back(kind):
    """Two heads, two queries, two keys: the shapes agree, the meaning does not."""
    model = parse(NOT_TRANSPOSED_BACK[kind])
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[2].dim_value = 16 if "P^T" in kind or "V^T" in kind or "K Q" in kind else 2
    rejection(model)


EINSUM = {
    "one key head": ("bhsd,btd->bhst", "bhst,btd->bhsd", "B, 3, S, 16", "B, T, 16", "B, 3, S, 16"),
    "groups of heads": ("bkgsd,bktd->bkgst", "bkgst,bktd->bkgsd", "B, 2, 3, S, 16", "B, 2, T, 16", "B, 2, 3, S, 16"),
    "heads behind the queries": ("bqhd,bkhd->bqhk", "bqhk,bkhd->bqhd", "B, S, 2, 16", "B, T, 2, 16", "B, S, 2, 16"),
    "keras": ("bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd", "B, S, 2, 16", "B, T, 2, 16", "B, S, 2, 16"),
    "channels first": ("bct,bcs->bts", "bts,bcs->bct", "B, 16, S", "B, 16, T", "B, 16, S"),
    "ellipsis": ("...qd,...kd->...qk", "...qk,...kd->...qd", "B, 2, S, 16", "B, 2, T, 16", "B, 2, S, 16"),
    "ellipsis, heads behind": ("...qhd,...khd->...hqk", "...hqk,...khd->...qhd", *(("B, S, 2, 16",) * 3)),
}


@pytest.mark.parametrize("kind", EINSUM)
def test_einsum(kind):
    qk, pv, q, k, y = EINSUM[kind]
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 18]> g (float[{q}] Q, float[{k}] K, float[{k}] V) => (float[{y}] Y) {{
            X = Einsum <equation = "{qk}"> (Q, K)
            P = Softmax <axis = -1> (X)
            Y = Einsum <equation = "{pv}"> (P, V)
        }}"""
    )
    check_raise(model)


NOT_EINSUM = {
    "summed over heads": ("bhid,bgjd->bhij", "bhij,bhjd->bhid"),
    "summed over channels and heads": ("bhid,bhjd->bij", "bij,bhjd->bhid"),
    "probabilities summed over queries": ("bhid,bhjd->bhij", "bhij,bhjd->bhjd"),
}


@pytest.mark.parametrize("kind", NOT_EINSUM)
def test_not_an_attention_by_einsum(kind):
    qk, pv = NOT_EINSUM[kind]
    body = (
        f'X = Einsum <equation = "{qk}"> (Q, K)\n P = Softmax <axis = -1> (X)\n Y = Einsum <equation = "{pv}"> (P, V)'
    )
    model = parse(body)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[2].dim_value = 16
    rejection(model)


FUSED_MATMUL = {
    "key transposed": ("transB = 1, alpha = 0.25", "", "B, 2, S, 16", "B, 2, T, 16"),
    "query transposed": ("transA = 1", "", "B, 2, 16, S", "B, 2, 16, T"),
    "second product scaled": ("transB = 1", "alpha = 2.0", "B, 2, S, 16", "B, 2, T, 16"),
}


def optimized(kind: str) -> onnx.ModelProto:
    qk, pv, q, k = FUSED_MATMUL[kind]
    return onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 18, "com.microsoft": 1]>
        g (float[{q}] Q, float[{k}] K, float[B, 2, T, 16] V, float[B, 1, 1, T] M) => (float[B, 2, S, 16] Y) {{
            s = com.microsoft.FusedMatMul <{qk}> (Q, K)
            X = Add (s, M)
            P = Softmax <axis = 3> (X)
            Y = com.microsoft.FusedMatMul <{pv or "alpha = 1.0"}> (P, V)
        }}"""
    )


@pytest.mark.parametrize("kind", FUSED_MATMUL)
def test_products_of_the_runtimes_optimizer(kind):
    """Their shapes and types are not inferred by ONNX."""
    check_raise(optimized(kind))


def test_product_with_transposed_probabilities_is_left_alone():
    model = optimized("key transposed")
    model.graph.node[-1].attribute.append(onnx.helper.make_attribute("transA", 1))
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[2 if value.name != "M" else 3].dim_value = 5
    assert "contracts the queries" in rejection(model)


def test_types_behind_operators_that_onnx_does_not_know():
    """A model saved by ONNX Runtime's optimizer carries no types, and its own operators stop their inference."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18, "com.microsoft": 1]>
        g (float[B, S, 32] x, float[32] g, float[32, 96] W) => (float[B, S, 32] Y) {
            n = SimplifiedLayerNormalization <axis = -1, epsilon = 1e-5> (x, g)
            a = com.microsoft.QuickGelu <alpha = 1.0> (n)
            w = MatMul (a, W)
            full = Shape (w)
            B, S, H = Split <axis = 0, num_outputs = 3> (full)
            heads = Constant <value = int64[2] {2, 16}> ()
            shape = Concat <axis = 0> (B, S, heads)
            q3, k3, v3 = Split <axis = 2, num_outputs = 3> (w)
            q4 = Reshape (q3, shape)
            k4 = Reshape (k3, shape)
            v4 = Reshape (v3, shape)
            q = Transpose <perm = [0, 2, 1, 3]> (q4)
            k = Transpose <perm = [0, 2, 1, 3]> (k4)
            v = Transpose <perm = [0, 2, 1, 3]> (v4)
            X = com.microsoft.FusedMatMul <transB = 1, alpha = 0.25> (q, k)
            P = Softmax <axis = 3> (X)
            y = MatMul (P, v)
            yt = Transpose <perm = [0, 2, 1, 3]> (y)
            out = Constant <value = int64[3] {0, 0, 32}> ()
            Y = Reshape (yt, out)
        }"""
    )
    [row] = intfa_onnx.rewrite(model).attentions
    assert (row.decision, row.head_dim, "bshd" in row.absorbed) == ("replaced", 16, True)
    result = intfa_onnx.rewrite(model, portable=True).to_proto()
    rng = np.random.default_rng(0)
    values = {n: rng.standard_normal(s).astype(np.float32) for n, s in (("x", (2, 5, 32)), ("g", 32), ("W", (32, 96)))}
    check_same(run(result, values)[0], run(model, values)[0])


@pytest.mark.parametrize(
    "body",
    [
        S + "i = Cast <to = 6> (s)\n X = Cast <to = 1> (i)\n" + TAIL,
        S + "p = Softmax <axis = -1> (s)\n i = Cast <to = 3> (p)\n P = Cast <to = 1> (i)\n" + PV,
    ],
    ids=["scores", "probabilities"],
)
def test_rounding_to_integers_is_left_alone(body):
    assert "Cast" in rejection(parse(body))


REPEATS = {
    "heads": ("float[1, 3, S, T] M", (1, 1, 1), "Add (s0, M)"),
    "heads by Where": ("bool[1, 3, S, T] M", (1, 1, 1), "Where (M, s0, low)"),
    "heads by a scale": ("float[3, 1, 1] M", (1, 1, 1), "Mul (s0, M)"),
}


@pytest.mark.parametrize("kind", REPEATS)
def test_scores_repeated_by_what_they_meet(kind):
    """One head of Q and K, several of the mask: the operator has as many heads as Q."""
    mask, heads, node = REPEATS[kind]
    low = "low = Constant <value = float {-3.4028235e38}> ()\n"
    model = parse(low + KT + f"s0 = MatMul (Q, Kt)\n X = {node}\n" + TAIL, f", {mask}")
    for value, size in zip((*model.graph.input[:3], model.graph.output[0]), (*heads, 3), strict=True):
        value.type.tensor_type.shape.dim[1].dim_value = size
    assert "repeats the scores" in rejection(model)


def test_run_time_scale_of_unmerged_heads_is_left_alone():
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[6, 5, 16] Q, float[6, 7, 16] K, float[6, 7, 16] V, float[1, 2, 1, 1] H) => (float[6, 5, 16] Y) {
            Kt = Transpose <perm = [0, 2, 1]> (K)
            s = MatMul (Q, Kt)
            apart = Constant <value = int64[4] {3, 2, 5, 7}> ()
            merged = Constant <value = int64[3] {6, 5, 7}> ()
            t = Reshape (s, apart)
            u = Mul (t, H)
            X = Reshape (u, merged)
            P = Softmax <axis = -1> (X)
            Y = MatMul (P, V)
        }"""
    )
    assert "scales reshaped scores" in rejection(model)


def test_scores_in_float32_in_a_half_model():
    """GPT-J: Q and K cast up, P cast down again, V as it is."""
    body = (
        "q = Cast <to = 1> (Q)\n k = Cast <to = 1> (K)\n Kt = Transpose <perm = [0, 1, 3, 2]> (k)\n"
        "s = MatMul (q, Kt)\n p = Softmax <axis = -1> (s)\n P = Cast <to = 10> (p)\n Y = MatMul (P, V)"
    )
    model = parse(body)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    result = intfa_onnx.rewrite(model, portable=True)
    assert [a.decision for a in result.attentions] == ["replaced"]
    values = feed(model)
    check_same(run(result.to_proto(), values)[0], run(model, values)[0], half=True)


def dynamic(x: str) -> str:
    return f"{x}q, {x}s, {x}z = DynamicQuantizeLinear ({x})\n"


def integers(a: str, b: str, y: str, scales: str = "") -> str:
    """Text of the product of two tensors that were quantized."""
    factors = scales or f"{a}s, {b}s"
    return (
        f"{y}i = MatMulInteger ({a}q, {b}q, {a}z, {b}z)\n {y}f = Cast <to = 1> ({y}i)\n {y}m = Mul ({factors})\n"
        f"{y} = Mul ({y}f, {y}m)\n"
    )


DYNAMIC = {
    "both products": dynamic("Q") + dynamic("Kt") + integers("Q", "Kt", "t") + "X = Mul (t, scale)\n P = Softmax (X)\n"
    + dynamic("P") + dynamic("V") + integers("P", "V", "Y"),
    "the first": dynamic("Q") + dynamic("Kt") + integers("Q", "Kt", "t", "Kts, Qs") + "X = Mul (t, scale)\n" + TAIL,
    "the second": "X = MatMul (Q, Kt)\n P = Softmax (X)\n" + dynamic("P") + dynamic("V") + integers("P", "V", "Y"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DYNAMIC)
def test_dynamically_quantized_products(kind):
    """The rewritten model is nearer to the model before quantization than the quantized one is."""
    model = parse(KT + DYNAMIC[kind])
    result = intfa_onnx.rewrite(model, portable=True)
    [row] = result.attentions
    assert row.decision == "replaced"
    assert len(row.notes) == (2 if kind == "both products" else 1)
    assert not {"MatMulInteger", "DynamicQuantizeLinear"} & {n.op_type for n in result.to_proto().graph.node}
    scaled = "t = MatMul (Q, Kt)\n X = Mul (t, scale)\n" if kind != "the second" else "X = MatMul (Q, Kt)\n"
    before = parse(KT + scaled + TAIL)
    values = feed(before)
    exact, quantized, raised = (run(m, values)[0] for m in (before, model, result.to_proto()))
    check_same(raised, exact)
    assert np.abs(quantized - exact).max() > 1e-3


NOT_DYNAMIC = {
    "scales of others": DYNAMIC["the first"].replace("Kts, Qs", "Qs, Qs"),
    "codes used elsewhere": DYNAMIC["the second"] + "Z = Cast <to = 1> (Pq)\n",
    "zero points exchanged": DYNAMIC["the first"].replace("Qz, Ktz", "Ktz, Qz"),
}


@pytest.mark.parametrize("kind", NOT_DYNAMIC)
def test_other_products_of_integers_are_left_alone(kind):
    outputs = "float[B, 2, S, 16] Y" + (", float[B, 2, S, T] Z" if "elsewhere" in kind else "")
    rejection(parse(KT + NOT_DYNAMIC[kind], outputs=outputs))


HEADS = {
    "Gather": ("x = Gather <axis = 1> (X, index)\n", 2, True),
    "Gather in turn": ("x = Gather <axis = 1> (X, turn)\n", 2, False),
    "Tile of one": ("x = Tile (X, times)\n", 1, True),
    "Tile in turn": ("x = Tile (X, twice)\n", 2, False),
    "Expand of one": ("x = Expand (X, times)\n", 1, True),
    "Tile behind": ("a = Reshape (X, apart)\n b = Tile (a, behind)\n x = Reshape (b, together)\n", 2, True),
    "Tile before": ("a = Reshape (X, apart)\n b = Tile (a, before)\n x = Reshape (b, together)\n", 2, False),
}


@pytest.mark.parametrize("kind", HEADS)
def test_repeated_heads(kind):
    """A repeated key head is read where it lies, if it is the one that grouped queries would read."""
    text, kv_heads, absorbed = HEADS[kind]
    bodies = [re.sub(r"\b([xab])\b", rf"\1{name}", text).replace("(X", f"({name}") for name in ("K", "V")]
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 18]>
        g (float[B, 4, S, 16] Q, float[B, {kv_heads}, 7, 16] K, float[B, {kv_heads}, 7, 16] V)
          => (float[B, 4, S, 16] Y) {{
            index = Constant <value = int64[4] {{0, 0, 1, 1}}> ()
            turn = Constant <value = int64[4] {{0, 1, 0, 1}}> ()
            times = Constant <value = int64[4] {{1, 4, 1, 1}}> ()
            twice = Constant <value = int64[4] {{1, 2, 1, 1}}> ()
            apart = Constant <value = int64[5] {{-1, 2, 1, 7, 16}}> ()
            together = Constant <value = int64[4] {{-1, 4, 7, 16}}> ()
            behind = Constant <value = int64[5] {{1, 1, 2, 1, 1}}> ()
            before = Constant <value = int64[5] {{1, 2, 1, 1, 1}}> ()
            {" ".join(bodies)}
            Kt = Transpose <perm = [0, 1, 3, 2]> (xK)
            X = MatMul (Q, Kt)
            P = Softmax <axis = -1> (X)
            Y = MatMul (P, xV)
        }}"""
    )
    [node] = fused(check_raise(model, values=feed(model)))
    assert (list(node.input) == ["Q", "K", "V"]) == absorbed


@pytest.mark.parametrize("rank", [2, 3])
def test_queries_shared_by_the_batch(rank):
    """Attention pooling: a learned query, of one batch or without it. The operator wants as many batches as K has."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18]> g (float[B, T, 16] K) => (float[B, 4, 16] Y) {
            Kt = Transpose <perm = [0, 2, 1]> (K)
            X = MatMul (L, Kt)
            P = Softmax <axis = -1> (X)
            Y = MatMul (P, K)
        }"""
    )
    queries = np.random.default_rng(0).standard_normal((1, 4, 16)[3 - rank :]).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(queries, "L"))
    rewritten = check_raise(model)
    assert "Expand" in {n.op_type for n in rewritten.graph.node}


def test_negative_scale_and_softcap():
    """The operator's are positive."""
    body = (
        KT + "minus = Constant <value = float {-0.3}> ()\n s0 = MatMul (Q, Kt)\n s = Mul (s0, minus)\n"
        "t = Tanh (s)\n X = Mul (t, minus)\n" + TAIL
    )
    node = attributes(fused(check_raise(parse(body)))[0])
    assert (node["scale"], node["softcap"]) == (pytest.approx(0.09), pytest.approx(0.3))
    node = attributes(
        fused(check_raise(parse(body.replace("t = Tanh (s)\n X = Mul (t, minus)", "X = Add (s, zero)"))))[0]
    )
    assert node["scale"] == pytest.approx(0.3)


def test_masked_with_a_tensor_of_one_number():
    body = (
        "low = Constant <value = float {-inf}> ()\n" + S + "shape = Shape (s)\n f = Expand (low, shape)\n"
        "X = Where (M, s, f)\n nan = Softmax <axis = -1> (X)\n e = IsNaN (nan)\n P = Where (e, zero, nan)\n" + PV
    )
    check_raise(parse(body, BOOL))


def test_reshape_to_the_shape_that_is_there():
    """TorchScript puts one below P V, with sizes that it reads off the cache: it must not keep the cache out."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[B, 2, S, 16] Q, float[B, 2, S, 16] K, float[B, 2, S, 16] V,
           float[B, 2, U, 16] PK, float[B, 2, U, 16] PV)
          => (float[B, 2, S, 16] Y, float[B, 2, W, 16] PresentK, float[B, 2, W, 16] PresentV, int64[1] heads) {
            minus = Constant <value = int64[1] {-1}> ()
            PresentK = Concat <axis = 2> (PK, K)
            PresentV = Concat <axis = 2> (PV, V)
            Kt = Transpose <perm = [0, 1, 3, 2]> (PresentK)
            X = MatMul (Q, Kt)
            P = Softmax <axis = -1> (X)
            y = MatMul (P, PresentV)
            b = Shape <start = 0, end = 1> (y)
            heads = Shape <start = 1, end = 2> (y)
            s = Shape <start = 2, end = 3> (Q)
            d = Shape <start = 3, end = 4> (PresentV)
            shape = Concat <axis = 0> (b, minus, s, d)
            z = Reshape (y, shape)
            Y = Neg (z)
        }"""
    )
    rng = np.random.default_rng(0)
    sizes = {"Q": 3, "K": 3, "V": 3, "PK": 4, "PV": 4}
    rewritten = check_raise(
        model, values={n: rng.standard_normal((2, 2, s, 16)).astype(np.float32) for n, s in sizes.items()}
    )
    [node] = fused(rewritten)
    assert list(node.output[1:]) == ["PresentK", "PresentV"]
    assert not {"Concat", "MatMul", "Reshape"} & {n.op_type for n in rewritten.graph.node}


@pytest.mark.parametrize("split", ["(w, parts)", "(w)"], ids=["given", "all alike"])
def test_sizes_of_a_split_that_inference_does_not_reach(split):
    """One projection of all three, behind sizes that are computed from a shape."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 17]> g (float[B, S, 96] X) => (float[B, 2, S, 16] Y) {{
            parts = Constant <value = int64[3] {{16, 16, 16}}> ()
            minus = Constant <value = int64[1] {{-1}}> ()
            two = Constant <value = int64[1] {{2}}> ()
            front = Shape <start = 0, end = 2> (X)
            apart = Concat <axis = 0> (front, two, minus)
            w = Reshape (X, apart)
            q0, k0, v0 = Split <axis = 3> {split}
            q = Transpose <perm = [0, 2, 1, 3]> (q0)
            k = Transpose <perm = [0, 2, 3, 1]> (k0)
            v = Transpose <perm = [0, 2, 1, 3]> (v0)
            s = MatMul (q, k)
            P = Softmax <axis = -1> (s)
            Y = MatMul (P, v)
        }}"""
    )
    check_raise(model, values={"X": np.random.default_rng(0).standard_normal((2, 5, 96)).astype(np.float32)})


def test_an_empty_slice_that_inference_does_not_reach():
    """A rotary embedding of all channels: the rest of each head, of no channels, is put behind it."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 17]> g (float[B, S, 32] X) => (float[B, 2, S, 16] Y) {
            minus = Constant <value = int64[1] {-1}> ()
            two = Constant <value = int64[1] {2}> ()
            zero = Constant <value = int64[1] {0}> ()
            width = Constant <value = int64[1] {16}> ()
            last = Constant <value = int64[1] {9223372036854775807}> ()
            three = Constant <value = int64[1] {3}> ()
            front = Shape <start = 0, end = 2> (X)
            apart = Concat <axis = 0> (front, two, minus)
            w = Reshape (X, apart)
            v = Transpose <perm = [0, 2, 1, 3]> (w)
            turned = Slice (v, zero, width, three)
            rest = Slice (v, width, last, three)
            doubled = Add (turned, turned)
            q = Concat <axis = 3> (doubled, rest)
            k = Transpose <perm = [0, 1, 3, 2]> (q)
            s = MatMul (q, k)
            P = Softmax <axis = -1> (s)
            Y = MatMul (P, v)
        }"""
    )
    check_raise(model, values={"X": np.random.default_rng(0).standard_normal((2, 5, 32)).astype(np.float32)})
