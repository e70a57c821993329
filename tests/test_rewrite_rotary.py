"""Rotary embeddings and norms between the heads' Transpose and the product: computed on the heads as they lie."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from attention_graphs import attributes, check_raise, fused

import intfa_onnx

SIZES = {"B": 2, "S": 5, "T": 7}


def rotated(x: str, cos: str = "c", sin: str = "n") -> str:
    """Text of ``x * cos + concat(-x[8:], x[:8]) * sin``, which gives ``xr``."""
    return (
        f"{x}0 = Slice ({x}, zero, half, channels)\n {x}1 = Slice ({x}, half, end, channels)\n {x}2 = Neg ({x}1)\n"
        f"{x}3 = Concat <axis = -1> ({x}2, {x}0)\n {x}4 = Mul ({x}, {cos})\n {x}5 = Mul ({x}3, {sin})\n"
        f"{x}r = Add ({x}4, {x}5)\n"
    )


def model(q: str, k: str, more: str = "", kv_heads: int = 2, outputs: str = "", opset: int = 18) -> onnx.ModelProto:
    """Attention on Q, K, V [B, S, heads, 16]; the nodes ``q`` and ``k`` make qr and kr of q and k, transposed."""
    repeat = "".join(
        f"{x}u = Unsqueeze ({source}, two)\n {x}e = Expand ({x}u, group)\n {x}w = Reshape ({x}e, heads)\n"
        for x, source in (("k", "kr"), ("v", "v"))
    )
    given = ", ".join(f"float[2, 5, {h}, 16] {n}" for n, h in (("Q", 4), ("K", kv_heads), ("V", kv_heads)))
    text = f"""<ir_version: 9, opset_import: ["": {opset}]>
        g ({given}, float[2, 5, 16] C, float[2, 5, 16] N{more}) => (float[2, 5, 64] Y{outputs}) {{
            zero = Constant <value = int64[1] {{0}}> ()
            half = Constant <value = int64[1] {{8}}> ()
            end = Constant <value = int64[1] {{9223372036854775807}}> ()
            channels = Constant <value = int64[1] {{-1}}> ()
            tokens = Constant <value = int64[1] {{2}}> ()
            one = Constant <value = int64[1] {{1}}> ()
            two = Constant <value = int64[1] {{2}}> ()
            last = Constant <value = int64[1] {{-1}}> ()
            square = Constant <value = float {{2}}> ()
            tiny = Constant <value = float {{1e-6}}> ()
            group = Constant <value = int64[5] {{1, 1, {4 // kv_heads}, 1, 1}}> ()
            heads = Constant <value = int64[4] {{2, 4, 5, 16}}> ()
            out = Constant <value = int64[3] {{0, 0, 64}}> ()
            c = Unsqueeze (C, one)
            n = Unsqueeze (N, one)
            q = Transpose <perm = [0, 2, 1, 3]> (Q)
            k = Transpose <perm = [0, 2, 1, 3]> (K)
            v = Transpose <perm = [0, 2, 1, 3]> (V)
            {q} {k} {repeat}
            Kt = Transpose <perm = [0, 1, 3, 2]> (kw)
            X = MatMul (qr, Kt)
            P = Softmax <axis = -1> (X)
            y = MatMul (P, vw)
            yt = Transpose <perm = [0, 2, 1, 3]> (y)
            Y = Reshape (yt, out)
        }}"""
    return onnx.parser.parse_model(text)


def values(graph: onnx.ModelProto) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.graph.input}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def normed(x: str, of: str) -> str:
    """Text of an RMS norm of ``of``, which gives ``x``."""
    return (
        f"{x}a = Pow ({of}, square)\n {x}b = ReduceMean ({x}a, last)\n {x}c = Add ({x}b, tiny)\n {x}d = Sqrt ({x}c)\n"
        f"{x}e = Div ({of}, {x}d)\n {x} = Mul ({x}e, G)\n"
    )


def partly(x: str) -> str:
    """Text of a rotary embedding of 12 of 16 channels, of which the rest is passed on."""
    return (
        f"{x}a, {x}p = Split <axis = 3> ({x}, parts)\n {x}s = Slice ({x}a, zero, six, channels)\n"
        f"{x}t = Slice ({x}a, six, end, channels)\n {x}n = Neg ({x}t)\n {x}h = Concat <axis = 3> ({x}n, {x}s)\n"
        f"{x}4 = Mul ({x}a, c12)\n {x}5 = Mul ({x}h, n12)\n {x}6 = Add ({x}4, {x}5)\n"
        f"{x}r = Concat <axis = -1> ({x}6, {x}p)\n"
    )


PART = (
    "parts = Constant <value = int64[2] {12, 4}> ()\n six = Constant <value = int64[1] {6}> ()\n"
    "c12 = Slice (c, zero, twelve, channels)\n n12 = Slice (n, zero, twelve, channels)\n"
).replace("c12 =", "twelve = Constant <value = int64[1] {12}> ()\n c12 =")
TABLES = ", float[2, 5, 8] A, float[2, 5, 8] N0"
MOVED = {
    "rotary": (rotated("q"), rotated("k"), ""),
    "tables of two axes": (
        rotated("q", "A", "A"),
        rotated("k", "A", "A"),
        ", float[5, 16] A",
    ),
    "tables of four axes": (rotated("q", "A", "n"), rotated("k", "A", "n"), ", float[1, 1, 5, 16] A"),
    "a factor per channel": ("qr = Mul (q, A)\n", "kr = Identity (k)\n", ", float[16] A"),
    "norm, then rotary": (
        normed("m", "q") + rotated("m").replace("mr =", "qr ="),
        normed("o", "k") + rotated("o").replace("or =", "kr ="),
        ", float[16] G",
    ),
    "some of the channels": (PART + partly("q"), partly("k"), ""),
}


# Of opset 23: q, k, further inputs.
OPERATORS = {
    "rotary": ("qr = RotaryEmbedding <num_heads = 4> (q, A, N0)\n", "kr = RotaryEmbedding (k, A, N0)\n", TABLES),
    "rotary, interleaved, of some channels": (
        "qr = RotaryEmbedding <interleaved = 1, rotary_embedding_dim = 12> (q, A6, A6)\n",
        "kr = RotaryEmbedding <rotary_embedding_dim = 12> (k, A6, A6)\n",
        ", float[2, 5, 6] A6",
    ),
    "rotary by positions": (
        "ids = Constant <value = int64[2, 5] {0, 3, 1, 4, 2, 5, 2, 0, 1, 3}> ()\n"
        "qr = RotaryEmbedding (q, A8, A8, ids)\n",
        "kr = RotaryEmbedding (k, A8, A8, ids)\n",
        ", float[6, 8] A8",
    ),
    "norm, then rotary": (
        "m = RMSNormalization (q, G)\n qr = RotaryEmbedding (m, A, N0)\n",
        "o = RMSNormalization <axis = 3, epsilon = 0.1> (k, G)\n kr = RotaryEmbedding (o, A, N0)\n",
        TABLES + ", float[16] G",
    ),
    "norm": ("qr = LayerNormalization (q, G, G)\n", "kr = LayerNormalization (k, G)\n", ", float[16] G"),
}


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("kind", OPERATORS)
def test_operators_take_the_heads_as_they_lie(kind, kv_heads):
    q, k, more = OPERATORS[kind]
    given = model(q, k, more, kv_heads, opset=23)
    rewritten = check_raise(given, values=values(given))
    [node] = fused(rewritten)
    assert attributes(node)["q_num_heads"] == 4
    assert "Transpose" not in {n.op_type for n in rewritten.graph.node}


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("kind", MOVED)
def test_no_transpose_is_left(kind, kv_heads):
    q, k, more = MOVED[kind]
    given = model(q, k, more, kv_heads)
    rewritten = check_raise(given, values=values(given))
    [node] = fused(rewritten)
    assert attributes(node)["q_num_heads"] == 4
    assert {n.input[0] for n in rewritten.graph.node if n.op_type == "Transpose"} <= {"A", "c12", "n12"}  # the tables


def test_one_table_for_all_layers():
    given = model(rotated("q"), rotated("k"))
    rewritten = intfa_onnx.rewrite(given).to_proto()
    assert len([n for n in rewritten.graph.node if n.op_type == "Unsqueeze"]) == 2


STAYS = {
    "a table per head": (rotated("q", "A"), rotated("k"), ", float[1, 4, 5, 16] A", ""),
    "queries reversed": (
        "q0 = Slice (q, zero, two, tokens)\n q1 = Slice (q, two, end, tokens)\n qr = Concat <axis = 2> (q1, q0)\n",
        rotated("k"),
        "",
        "",
    ),
    "norm over tokens": ("qr = LayerNormalization <axis = 2> (q, G)\n", rotated("k"), ", float[5, 16] G", ""),
    "the first query added to each": (
        "q0 = Slice (q, zero, one, tokens)\n qr = Add (q0, q)\n",
        rotated("k"),
        "",
        "",
    ),
    "mean over tokens": (
        "m = ReduceMean (q, tokens)\n qr = Sub (q, m)\n",
        rotated("k"),
        "",
        "",
    ),
    "the rotated key is an output": (rotated("q"), rotated("k"), "", ", float[2, 2, 5, 16] kr"),
    "a step has another reader": (rotated("q") + "Z = Neg (q4)\n", rotated("k"), "", ", float[2, 4, 5, 16] Z"),
    "scaled by itself": ("qr = Mul (q, w)\n w = Identity (qq)\n", rotated("k"), ", float[2, 4, 5, 16] qq", ""),
}


@pytest.mark.parametrize("kind", STAYS)
def test_transposes_that_stay(kind):
    q, k, more, outputs = STAYS[kind]
    given = model(q, k, more, outputs=outputs)
    rewritten = check_raise(given, values=values(given))
    assert "q_num_heads" not in attributes(fused(rewritten)[0])
