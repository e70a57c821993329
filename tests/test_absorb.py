"""What the fused node takes over from the nodes around it: layout, grouped heads, caches. Each exact, or left alone."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
from attention_graphs import attributes, check_raise, check_same, fused, run

import intfa_onnx

HEADS, SIZE = 4, 16  # of Q
WIDTH = HEADS * SIZE
CONSTANTS = """
    i0 = Constant <value = int64[1] {0}> ()
    i1 = Constant <value = int64[1] {1}> ()
    i2 = Constant <value = int64[1] {2}> ()
    i3 = Constant <value = int64[1] {3}> ()
    open = Constant <value = int64[1] {-1}> ()
    minus = Constant <value = int64 {-1}> ()
    size = Constant <value = int64[1] {16}> ()
    width = Constant <value = int64[1] {64}> ()
    root = Constant <value = float {0.5}> ()
    low = Constant <value = float {-inf}> ()
    zero = Constant <value = float {0}> ()
"""
SPLIT = """
    {x}s = Shape ({x})
    {x}b = Gather ({x}s, i0)
    {x}t = Gather ({x}s, i1)
    {x}4s = Concat <axis = 0> ({x}b, {x}t, open, size)
    {x}4 = Reshape ({x}, {x}4s)
    {x}h = Transpose <perm = [0, 2, 1, 3]> ({x}4)
"""
SOFTMAX = """
    keys = Transpose <perm = [0, 1, 3, 2]> ({k})
    s = MatMul ({q}, keys)
    S = Mul (s, root)
    P = Softmax <axis = -1> (S)
    O = MatMul (P, {v})
"""
ATTENTION = "O = Attention <scale = 0.5> ({q}, {k}, {v})\n"
BACK = """
    Ot = Transpose <perm = [0, 2, 1, 3]> (O)
    merged = Concat <axis = 0> (Qb, Qt, open)
    Y = Reshape (Ot, merged)
"""
# As is written by hand: 0 keeps an axis.
BY_HAND = """
    Ot = Transpose <perm = [0, 2, 1, 3]> (O)
    merged = Constant <value = int64[3] {0, 0, -1}> ()
    Y = Reshape (Ot, merged)
"""
# TorchScript's scaled_dot_product_attention: the result is reshaped to the shape that it has, by sizes of Q, V and O.
RESHAPED_BACK = """
    Os = Shape (O)
    ob = Gather (Os, i0)
    Qhs = Shape (Qh)
    orows = Gather (Qhs, i2)
    Vhs = Shape (Vh)
    ochannels = Gather (Vhs, i3)
    same = Concat <axis = 0> (ob, open, orows, ochannels)
    Or = Reshape (O, same)
    Ot = Transpose <perm = [0, 2, 1, 3]> (Or)
    merged = Concat <axis = 0> (Qb, Qt, open)
    Y = Reshape (Ot, merged)
"""


def build(
    body: str,
    inputs: str = "",
    outputs: str = "",
    kv_width: int = WIDTH,
    opset: int = 18,
    y: str = f"float[B, S, {WIDTH}] Y",
) -> onnx.ModelProto:
    """A model on Q [B, S, 64] and K, V [B, T, kv_width], as projections write them."""
    given = f"float[B, S, {WIDTH}] Q, float[B, T, {kv_width}] K, float[B, T, {kv_width}] V"
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": {opset}]> g ({given}{inputs}) => ({y}{outputs}) {{ {CONSTANTS} {body} }}'
    )
    for index, node in enumerate(model.graph.node):
        node.name = f"/{node.op_type}_{index}"
    return model


def feed(model: onnx.ModelProto, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {
        v.name: [sizes.get(d.dim_param, d.dim_value) for d in v.type.tensor_type.shape.dim] for v in model.graph.input
    }
    kinds = {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    return {
        n: rng.random(s) > 0.3 if kinds[n] == onnx.TensorProto.BOOL else rng.standard_normal(s).astype(np.float32)
        for n, s in shapes.items()
    }


def check(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.NodeProto, tuple[str, ...]]:
    """Check on two sets of sizes that nothing changes; return the model, its fused node and what it absorbed."""
    for sizes in ({"B": 2, "S": 5, "T": 7, "U": 14, "P": 3}, {"B": 3, "S": 4, "T": 4, "U": 8, "P": 6}):
        rewritten = check_raise(model, values=feed(model, sizes))
    [node] = fused(rewritten)
    return rewritten, node, intfa_onnx.rewrite(model).attentions[0].absorbed


def split(*names: str) -> str:
    return "".join(SPLIT.format(x=name) for name in names)


CORES = {"softmax": (SOFTMAX, 18), "Attention": (ATTENTION, 23)}


@pytest.mark.parametrize(
    "back", [BACK, BY_HAND, RESHAPED_BACK], ids=["transposed", "by hand", "reshaped and transposed"]
)
@pytest.mark.parametrize("core", CORES)
def test_layout(core, back):
    """Q, K, V and Y go straight from and to the projections: nothing else is left of the attention."""
    text, opset = CORES[core]
    model = build(split("Q", "K", "V") + text.format(q="Qh", k="Kh", v="Vh") + back, opset=opset)
    rewritten, node, absorbed = check(model)
    assert "bshd" in absorbed
    assert list(node.input) == ["Q", "K", "V"]
    assert list(node.output) == ["Y"]
    assert {n.op_type for n in rewritten.graph.node} <= {"Constant", "IntFlashAttention"}
    assert (attributes(node)["q_num_heads"], attributes(node)["kv_num_heads"]) == (HEADS, HEADS)


def test_layout_of_scaled_q_and_k():
    """TorchScript's scaled_dot_product_attention scales both by the root, Q after its Transpose, K after its own."""
    body = """
        q = Mul (Qh, root)
        kt = Transpose <perm = [0, 2, 3, 1]> (K4)
        k = Mul (kt, root)
        S = MatMul (q, k)
        P = Softmax <axis = -1> (S)
        O = MatMul (P, Vh)
    """
    _, node, absorbed = check(build(split("Q", "K", "V") + body + RESHAPED_BACK))
    assert {"bshd", "scale", "k_transpose"} <= set(absorbed)
    assert list(node.input) == ["Q", "K", "V"]
    assert attributes(node)["scale"] == 0.25


def test_layout_of_a_result_that_is_cast_and_scaled():
    """float16 Q, K, V, but softmax and the second product in float32: the Cast of the result is on the packed one."""
    core = """
        keys = Transpose <perm = [0, 1, 3, 2]> (Kh)
        s = MatMul (Qh, keys)
        S = Cast <to = 1> (s)
        p = Softmax <axis = -1> (S)
        P = Mul (p, root)
        v = Cast <to = 1> (Vh)
        O = MatMul (P, v)
    """
    model = build(split("Q", "K", "V") + core + BACK)
    for value in model.graph.input:
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    result = intfa_onnx.rewrite(model, portable=True)
    assert "bshd" in result.attentions[0].absorbed
    values = {name: x.astype(np.float16) for name, x in feed(model, {"B": 2, "S": 5, "T": 7}).items()}
    check_same(run(result.to_proto(), values)[0], run(model, values)[0], half=True)


def test_layout_read_in_four_axes():
    """[B, S, H, D] is wanted, and its shape too: one Reshape."""
    back = "Y = Transpose <perm = [0, 2, 1, 3]> (O)\n size_of = Shape (O)\n rows = Gather (size_of, i2)"
    body = split("Q", "K", "V") + SOFTMAX.format(q="Qh", k="Kh", v="Vh") + back
    model = build(body, y=f"float[B, S, {HEADS}, {SIZE}] Y", outputs=", int64[1] rows")
    _, node, absorbed = check(model)
    assert "bshd" in absorbed
    assert list(node.input) == ["Q", "K", "V"]


PARTS = {
    "Split": "ones = Constant <value = int64[3] {1, 1, 1}> ()\n a, b, c = Split <axis = 0> (W5t, ones)\n",
    "Slice": "a = Slice (W5t, i0, i1, i0)\n b = Slice (W5t, i1, i2, i0)\n c = Slice (W5t, i2, i3, i0)\n",
}


def one_projection(parts: str, core: str, perm: str) -> onnx.ModelProto:
    text, opset = CORES[core]
    body = f"""
        Qs = Shape (Q)
        Qb = Gather (Qs, i0)
        Qt = Gather (Qs, i1)
        three = Constant <value = int64[3] {{3, 4, 16}}> ()
        W5s = Concat <axis = 0> (Qb, Qt, three)
        W5 = Reshape (W, W5s)
        W5t = Transpose <perm = {perm}> (W5)
        {PARTS[parts]}
        q = Squeeze (a, i0)
        k = Squeeze (b, i0)
        v = Squeeze (c, i0)
    """
    return build(body + text.format(q="q", k="k", v="v") + BACK, ", float[B, S, 192] W", opset=opset)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("core", CORES)
def test_parts_of_one_projection(parts, core):
    """[B, S, 3*H*D] transposed to [3, B, H, S, D] and taken apart, as vision transformers do: it is sliced instead."""
    rewritten, node, absorbed = check(one_projection(parts, core, "[2, 0, 3, 1, 4]"))
    assert "bshd" in absorbed
    assert "Transpose" not in {n.op_type for n in rewritten.graph.node}
    assert list(node.output) == ["Y"]


def test_parts_of_one_projection_in_another_order_stay():
    """[3, B, H, S, D] from [B, S, 3, D, H]."""
    model = one_projection("Split", "softmax", "[2, 0, 4, 1, 3]")
    model = onnx.parser.parse_model(onnx.printer.to_text(model).replace("{3,4,16}", "{3,16,4}"))
    for index, node in enumerate(model.graph.node):
        node.name = f"/{node.op_type}_{index}"
    assert "bshd" not in check(model)[2]


def test_heads_split_from_other_axes():
    """V [B, 2T, 32] becomes [B, T, 4, 16]: it needs a Reshape, though it has three axes."""
    body = split("Q", "K") + SPLIT.format(x="V").replace("Reshape (V,", "Reshape (W,")
    body = "heads = Constant <value = int64[1] {4}> ()\n" + body.replace("Vt, open", "Vt, heads")
    body += SOFTMAX.format(q="Qh", k="Kh", v="Vh") + BACK
    _, node, absorbed = check(build(body, ", float[B, U, 32] W"))
    assert "bshd" in absorbed
    assert node.input[2] != "W"


NOT_BACK = {
    # The same number of elements, but not a Transpose of the same axes.
    "heads and queries exchanged by a Reshape": """
        mixed = Concat <axis = 0> (Qb, Qt, open, size)
        Or = Reshape (O, mixed)
        Ot = Transpose <perm = [0, 2, 1, 3]> (Or)
        merged = Concat <axis = 0> (Qb, Qt, open)
        Y = Reshape (Ot, merged)
    """,
    "channels before heads": """
        Ot = Transpose <perm = [0, 2, 3, 1]> (O)
        merged = Concat <axis = 0> (Qb, Qt, open)
        Y = Reshape (Ot, merged)
    """,
    "read twice": """
        Ot = Transpose <perm = [0, 2, 1, 3]> (O)
        merged = Concat <axis = 0> (Qb, Qt, open)
        first = Reshape (Ot, merged)
        second = Reshape (O, merged)
        Y = Add (first, second)
    """,
}


@pytest.mark.parametrize("name", NOT_BACK)
def test_other_layouts_stay(name):
    body = split("Q", "K", "V") + SOFTMAX.format(q="Qh", k="Kh", v="Vh") + NOT_BACK[name]
    assert "bshd" not in check(build(body))[2]


@pytest.mark.parametrize("shape", ["Concat <axis = 0> (Qb, open, size)", "Constant <value = int64[3] {0, -1, 0}> ()"])
def test_result_merged_in_another_way(shape):
    """[B, S, H, D] reshaped to [B, S*H, D], or to [B, S*D, H]: packed, but with the graph's own Reshape."""
    back = f"Ot = Transpose <perm = [0, 2, 1, 3]> (O)\n merged = {shape}\n Y = Reshape (Ot, merged)"
    model = build(split("Q", "K", "V") + SOFTMAX.format(q="Qh", k="Kh", v="Vh") + back, y="float[B, R, C] Y")
    assert "bshd" in check(model)[2]


def test_einsum_that_gives_the_result_transposed():
    """Y comes as [B, S, H, D] from the product: the Transpose after it leads away from that."""
    body = """
        s = Einsum <equation = "bhid,bhjd->bhij"> (Qh, Kh)
        P = Softmax <axis = -1> (s)
        O = Einsum <equation = "bhij,bhjd->bihd"> (P, Vh)
        Y = Transpose <perm = [0, 2, 1, 3]> (O)
    """
    assert "bshd" not in check(build(split("Q", "K", "V") + body, y=f"float[B, {HEADS}, S, {SIZE}] Y"))[2]


# As TorchScript repeats key heads: -1 in the shape of Expand would mean 1, and is looked for at run time.
REPEAT = """
    {x}hs = Shape ({x}h)
    {x}hb = Gather ({x}hs, i0)
    {x}ht = Gather ({x}hs, i2)
    {x}5 = Unsqueeze ({x}h, {axis})
    {x}5s = Concat <axis = 0> ({x}hb, {wide}, {x}ht, size)
    {x}5l = Shape ({x}5s)
    {x}ones = ConstantOfShape <value = int64[1] {{1}}> ({x}5l)
    {x}minus = Mul ({x}ones, minus)
    {x}same = Equal ({x}5s, {x}minus)
    {x}to = Where ({x}same, {x}ones, {x}5s)
    {x}w = Expand ({x}5, {x}to)
    {x}4w = Concat <axis = 0> ({x}hb, heads, {x}ht, size)
    {x}r = Reshape ({x}w, {x}4w)
"""
GROUPS = """
    heads = Constant <value = int64[1] {4}> ()
    wide = Constant <value = int64[2] {2, 2}> ()
"""


def repeated(core: str, axis: str = "i2") -> onnx.ModelProto:
    text, opset = CORES[core]
    repeat = "".join(REPEAT.format(x=x, axis=axis, wide="wide") for x in ("K", "V"))
    body = split("Q", "K", "V") + GROUPS + repeat + text.format(q="Qh", k="Kr", v="Vr") + BACK
    return build(body, kv_width=WIDTH // 2, opset=opset)


@pytest.mark.parametrize("core", CORES)
def test_repeated_key_heads(core):
    """Two key heads for four query heads: K and V go in as the projections write them."""
    rewritten, node, absorbed = check(repeated(core))
    assert {"gqa", "bshd"} <= set(absorbed)
    assert list(node.input) == ["Q", "K", "V"]
    assert (attributes(node)["q_num_heads"], attributes(node)["kv_num_heads"]) == (4, 2)
    assert "Expand" not in {n.op_type for n in rewritten.graph.node}


@pytest.mark.parametrize("core", CORES)
def test_heads_repeated_in_another_order_stay(core):
    """0, 1, 0, 1 instead of 0, 0, 1, 1."""
    _, node, absorbed = check(repeated(core, axis="i1"))
    assert "gqa" not in absorbed
    assert list(node.input) != ["Q", "K", "V"]


CACHE = """
    Kc = Concat <axis = 2> (pastK, Kh)
    Vc = Concat <axis = -2> (pastV, Vh)
"""
PAST = f", float[B, {HEADS}, P, {SIZE}] pastK, float[B, {HEADS}, P, {SIZE}] pastV"
PRESENT = f", float[B, {HEADS}, L, {SIZE}] Kc, float[B, {HEADS}, L, {SIZE}] Vc"


@pytest.mark.parametrize("back", [BACK, RESHAPED_BACK.replace("Shape (Vh)", "Shape (Vc)")], ids=["eager", "sdpa"])
@pytest.mark.parametrize("core", CORES)
def test_cache(core, back):
    text, opset = CORES[core]
    body = split("Q", "K", "V") + CACHE + text.format(q="Qh", k="Kc", v="Vc") + back
    rewritten, node, absorbed = check(build(body, PAST, PRESENT, opset=opset))
    assert {"past", "bshd"} <= set(absorbed)
    assert list(node.input) == ["Q", "K", "V", "", "pastK", "pastV"]
    assert list(node.output) == ["Y", "Kc", "Vc"]
    assert "Concat" not in {n.op_type for n in rewritten.graph.node}


def test_cache_of_fewer_heads():
    """Only what is repeated for the product is repeated; the cache holds each key head once."""
    repeat = "".join(
        REPEAT.format(x=x, axis="i2", wide="wide")
        .replace(f"Shape ({x}h)", f"Shape ({x}c)")
        .replace(f"Unsqueeze ({x}h", f"Unsqueeze ({x}c")
        for x in ("K", "V")
    )
    body = split("Q", "K", "V") + GROUPS + CACHE + repeat + SOFTMAX.format(q="Qh", k="Kr", v="Vr") + BACK
    model = build(body, PAST.replace("B, 4", "B, 2"), PRESENT.replace("B, 4", "B, 2"), kv_width=WIDTH // 2)
    _, node, absorbed = check(model)
    assert {"gqa", "past", "bshd"} <= set(absorbed)
    assert list(node.output) == ["Y", "Kc", "Vc"]


NO_PAST = {
    # A query may attend as many keys as its place says; with a past it would be that many more.
    "causal": ("O = Attention <scale = 0.5, is_causal = 1> (Qh, Kc, Vc)\n", PRESENT),
    "not an output": (ATTENTION.format(q="Qh", k="Kc", v="Vc"), ""),
    # What the mask is made from would have to be there before the attention.
    "length of the cache in the mask": (
        "long = Shape (Kc)\n keys = Gather (long, i2)\n all = Concat <axis = 0> (Qt, keys)\n"
        "some = Expand (root, all)\n"
        "O = Attention <scale = 0.5> (Qh, Kc, Vc, some)\n",
        PRESENT,
    ),
    "read by others": (ATTENTION.format(q="Qh", k="Kc", v="Vc") + "Z = Neg (Kc)\n", PRESENT + ", float[B, 4, L, 16] Z"),
}


@pytest.mark.parametrize("name", NO_PAST)
def test_cache_stays(name):
    core, outputs = NO_PAST[name]
    _, node, absorbed = check(build(split("Q", "K", "V") + CACHE + core + BACK, PAST, outputs, opset=23))
    assert "past" not in absorbed
    assert len(node.output) == 1


def test_operator_with_a_cache_of_its_own():
    """The inputs are packed around the past that the standard operator has; its present ones keep their meaning."""
    core = "O, presentK, presentV = Attention <scale = 0.5, is_causal = 1> (Qh, Kh, Vh, , pastK, pastV)\n"
    outputs = PRESENT.replace("Kc", "presentK").replace("Vc", "presentV")
    _, node, absorbed = check(build(split("Q", "K", "V") + core + BACK, PAST, outputs, opset=23))
    assert {"past", "bshd"} <= set(absorbed)
    assert list(node.input) == ["Q", "K", "V", "", "pastK", "pastV"]


def test_scaled_keys_of_a_cache_keep_their_factor():
    """A present key is an output: what scales the keys may not go into the scale of the scores."""
    core = "k = Mul (Kh, root)\n O, presentK, presentV = Attention <scale = 0.5> (Qh, k, Vh, , pastK, pastV)\n"
    outputs = PRESENT.replace("Kc", "presentK").replace("Vc", "presentV")
    rewritten, node, _ = check(build(split("Q", "K", "V") + core + BACK, PAST, outputs, opset=23))
    assert attributes(node)["scale"] == 0.5
    assert "Mul" in {n.op_type for n in rewritten.graph.node}


@pytest.mark.parametrize("scale", ["", "<scale = 0.5>"])
def test_factors_in_front_of_the_operator(scale):
    """The standard operator's scale takes a factor of Q and of K, also where it is the default 1/sqrt(D)."""
    body = split("Q", "K", "V") + f"q = Mul (Qh, root)\n k = Mul (Kh, root)\n O = Attention {scale} (q, k, Vh)\n" + BACK
    _, node, absorbed = check(build(body, opset=23))
    assert {"scale", "bshd"} <= set(absorbed)
    assert attributes(node)["scale"] == (0.5 if scale else 0.25) * 0.25


def test_boolean_mask_of_the_operator_that_excludes_everything():
    """All false is not a mask of zeros: it attends nothing."""
    model = build(split("Q", "K", "V") + "O = Attention (Qh, Kh, Vh, m)\n" + BACK, opset=23)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((5, 7), bool), "m"))
    rewritten = intfa_onnx.rewrite(model).to_proto()
    assert fused(rewritten)[0].input[3] == "m"


@pytest.mark.parametrize("core", CORES)
def test_cache_of_a_head_size_that_is_padded(core):
    """Heads of 12: channels of zeros are added for the operator, and do not show in the present keys and values."""
    text, opset = CORES[core]
    body = split("Q", "K", "V") + CACHE + text.format(q="Qh", k="Kc", v="Vc") + BACK
    model = onnx.printer.to_text(build(body, PAST, PRESENT, opset=opset))
    for old, new in ((",16]", ",12]"), (",64]", ",48]"), ("{16}", "{12}"), ("{64}", "{48}")):
        model = model.replace(old, new)
    padded = onnx.parser.parse_model(model)
    for index, node in enumerate(padded.graph.node):
        node.name = f"/{node.op_type}_{index}"
    _, _, absorbed = check(padded)
    assert {"past", "bshd"} <= set(absorbed)
