"""The rewriter on graphs of a few nodes: variants of one attention, look-alikes, and what must not change."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import intfa_onnx
from intfa_onnx import UnsupportedError, op_schema


def parse(body: str, inputs: str = "", opset: int = 18, outputs: str = "float[B, 2, S, 16] Y") -> onnx.ModelProto:
    """Build a model on float Q [B, 2, S, 16] and K, V [B, 2, T, 16] from the text of its nodes."""
    given = ", ".join(f"float[B, 2, {s}, 16] {n}" for n, s in (("Q", "S"), ("K", "T"), ("V", "T"))) + inputs
    constants = "scale = Constant <value = float {0.3}> ()\n zero = Constant <value = float {0}> ()\n"
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": {opset}]> graph ({given}) => ({outputs}) {{ {constants} {body} }}'
    )
    for index, node in enumerate(model.graph.node):
        node.name = f"/attn/{node.op_type}_{index}"
    return model


def feed(model: onnx.ModelProto, seqlen_q: int = 5, seqlen_kv: int = 7, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs; scores spread over some nats. Boolean masks leave row 0 without keys."""
    rng, sizes = np.random.default_rng(seed), {"B": 2, "S": seqlen_q, "T": seqlen_kv}
    values = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [sizes.get(d.dim_param, d.dim_value) for d in tensor.shape.dim]
        if tensor.elem_type == TensorProto.BOOL:
            values[value.name] = rng.random(shape) > 0.4
        else:
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            values[value.name] = rng.standard_normal(shape).astype(dtype)
    return values


def run(model: onnx.ModelProto, values: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, values)


def check_raise(model: onnx.ModelProto, count: int = 1, values: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """Rewrite with the float body, check that everything is replaced and that nothing changes; return the model."""
    result = intfa_onnx.rewrite(model, portable=True)
    replaced = [a for a in result.attentions if a.decision == "replaced"]
    assert len(replaced) == count, [(a.node, a.decision, a.reason) for a in result.attentions]
    rewritten = result.to_proto()
    onnx.checker.check_model(rewritten, full_check=True)
    for shape in ((5, 7), (9, 3)) if values is None else ((0, 0),):
        given = feed(model, *shape) if values is None else values
        for got, want in zip(run(rewritten, given), run(model, given), strict=True):
            # float32 in another order; scores reach some 10 nats, of which 1 ulp is 1e-6.
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)
    return rewritten


def fused(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [n for n in model.graph.node if n.op_type == op_schema.OP_TYPE]


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


KT = "Kt = Transpose <perm = [0, 1, 3, 2]> (K)\n"
TAIL = "P = Softmax <axis = -1> (X)\n Y = MatMul (P, V)"
MASK = ", float[B, 1, S, T] M"
BOOL = ", bool[B, 1, S, T] M"

VARIANTS = {
    "plain": (KT + "X = MatMul (Q, Kt)\n" + TAIL, ""),
    "scale after": (KT + "s = MatMul (Q, Kt)\n X = Mul (s, scale)\n" + TAIL, ""),
    "scale first operand": (KT + "s = MatMul (Q, Kt)\n X = Mul (scale, s)\n" + TAIL, ""),
    "divided": (KT + "s = MatMul (Q, Kt)\n X = Div (s, scale)\n" + TAIL, ""),
    "scale on q": (KT + "q = Mul (Q, scale)\n X = MatMul (q, Kt)\n" + TAIL, ""),
    "scale on both": (KT + "q = Mul (Q, scale)\n k = Mul (Kt, scale)\n X = MatMul (q, k)\n" + TAIL, ""),
    "scale on k before transpose": (
        "k = Mul (K, scale)\n Kt = Transpose <perm = [0, 1, 3, 2]> (k)\n X = MatMul (Q, Kt)\n" + TAIL,
        "",
    ),
    "run-time scale": (KT + "s = MatMul (Q, Kt)\n X = Mul (s, R)\n" + TAIL, ", float[1] R"),
    "scale per head": (KT + "s = MatMul (Q, Kt)\n X = Mul (s, R)\n" + TAIL, ", float[1, 2, 1, 1] R"),
    "scale per query": (KT + "s = MatMul (Q, Kt)\n X = Div (s, R)\n" + TAIL, ", float[B, 2, S, 1] R"),
    "added mask": (KT + "s = MatMul (Q, Kt)\n X = Add (s, M)\n" + TAIL, MASK),
    "two added masks": (
        KT + "s = MatMul (Q, Kt)\n t = Mul (s, scale)\n u = Add (t, M)\n X = Add (N, u)\n" + TAIL,
        MASK + ", float[S, T] N",
    ),
    "mask over keys": (KT + "s = MatMul (Q, Kt)\n X = Add (s, M)\n" + TAIL, ", float[T] M"),
    "subtracted mask": (KT + "s = MatMul (Q, Kt)\n X = Sub (s, M)\n" + TAIL, MASK),
    "scaled after the mask": (KT + "s = MatMul (Q, Kt)\n t = Add (s, M)\n X = Mul (t, scale)\n" + TAIL, MASK),
    "where finfo.min": (
        KT + "low = Constant <value = float {-3.4028235e38}> ()\n s = MatMul (Q, Kt)\n X = Where (M, s, low)\n" + TAIL,
        BOOL,
    ),
    "where inverted": (
        KT + "low = Constant <value = float {-1e9}> ()\n s = MatMul (Q, Kt)\n X = Where (M, low, s)\n" + TAIL,
        BOOL,
    ),
    "where then add": (
        KT
        + "low = Constant <value = float {-3.4028235e38}> ()\n s = MatMul (Q, Kt)\n t = Where (M, s, low)\n"
        + "X = Add (t, N)\n"
        + TAIL,
        BOOL + ", float[1, 2, S, T] N",
    ),
    "add then where": (
        KT
        + "low = Constant <value = float {-3.4028235e38}> ()\n s = MatMul (Q, Kt)\n t = Add (s, N)\n"
        + "X = Where (M, t, low)\n"
        + TAIL,
        BOOL + ", float[1, 2, S, T] N",
    ),
    "minus infinity with guard": (
        KT
        + "low = Constant <value = float {-inf}> ()\n b = Where (M, zero, low)\n s = MatMul (Q, Kt)\n X = Add (s, b)\n"
        + "p = Softmax <axis = -1> (X)\n nan = IsNaN (p)\n P = Where (nan, zero, p)\n Y = MatMul (P, V)",
        BOOL,
    ),
    "floor": (
        KT
        + "low = Constant <value = float {-3.4028235e38}> ()\n s = MatMul (Q, Kt)\n t = Add (s, M)\n X = Max (t, low)\n"
        + TAIL,
        MASK,
    ),
    "softcap": (
        KT + "s = MatMul (Q, Kt)\n t = Div (s, scale)\n u = Tanh (t)\n X = Mul (u, scale)\n" + TAIL,
        "",
    ),
    "softcap, scale and mask": (
        KT
        + "cap = Constant <value = float {5}> ()\n s = MatMul (Q, Kt)\n s2 = Mul (s, scale)\n t = Div (s2, cap)\n"
        + "u = Tanh (t)\n v = Mul (u, cap)\n X = Add (v, M)\n"
        + TAIL,
        MASK,
    ),
    "dropout": (
        KT + "X = MatMul (Q, Kt)\n p = Softmax <axis = -1> (X)\n P = Dropout (p)\n Y = MatMul (P, V)",
        "",
    ),
    "scaled probabilities": (
        KT + "X = MatMul (Q, Kt)\n p = Softmax <axis = -1> (X)\n P = Mul (p, scale)\n Y = MatMul (P, V)",
        "",
    ),
    "no-op casts": (
        KT
        + "s = MatMul (Q, Kt)\n X = Cast <to = 1> (s)\n p = Softmax <axis = -1> (X)\n P = Cast <to = 1> (p)\n"
        + "Y = MatMul (P, V)",
        "",
    ),
    "softmax over axis 3": (KT + "X = MatMul (Q, Kt)\n P = Softmax <axis = 3> (X)\n Y = MatMul (P, V)", ""),
    "softmax written out": (
        KT
        + "last = Constant <value = int64[1] {-1}> ()\n s = MatMul (Q, Kt)\n m = ReduceMax (s, last)\n d = Sub (s, m)\n"
        + "e = Exp (d)\n l = ReduceSum (e, last)\n P = Div (e, l)\n Y = MatMul (P, V)",
        "",
    ),
    "einsum": (
        'X = Einsum <equation = "bhid,bhjd->bhij"> (Q, K)\n P = Softmax <axis = -1> (X)\n'
        'Y = Einsum <equation = "bhij,bhjd->bhid"> (P, V)',
        "",
    ),
    "einsum, keys first": (
        'X = Einsum <equation = "bhjd, bhid -> bhij"> (K, Q)\n P = Softmax <axis = -1> (X)\n'
        'Y = Einsum <equation = "bhjd,bhij->bhid"> (V, P)',
        "",
    ),
    "key transpose composed": (
        "a = Transpose <perm = [0, 2, 1, 3]> (K)\n Kt = Transpose <perm = [0, 2, 3, 1]> (a)\n X = MatMul (Q, Kt)\n"
        + TAIL,
        "",
    ),
}


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
        np.testing.assert_allclose(run(rewritten, values)[0][0, :, 1], want, atol=1e-6)


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
    np.testing.assert_allclose(got[~np.isnan(want)], want[~np.isnan(want)], rtol=2e-5, atol=2e-6)


def test_a_masked_value_that_is_not_negligible_is_rejected():
    body = KT + "low = Constant <value = float {-100}> ()\n s = MatMul (Q, Kt)\n X = Where (M, s, low)\n" + TAIL
    assert "large negative constant" in rejection(parse(body, BOOL))


def canonical(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model as onnx_ir writes it: it leaves empty fields out and names the tensors of Constants."""
    return ir.to_proto(ir.from_proto(model))


def rejection(model: onnx.ModelProto) -> str:
    """Check that nothing changes, and return the reason."""
    result = intfa_onnx.rewrite(model)
    assert [a.decision for a in result.attentions] == ["rejected"]
    assert result.to_proto() == canonical(model)
    return result.attentions[0].reason


NEGATIVES = {
    "probabilities are an output": (
        KT + "X = MatMul (Q, Kt)\n" + TAIL,
        "",
        ", float[B, 2, S, T] P",
        "output of the graph",
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
        "axis 2",
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


@pytest.mark.parametrize(("size", "ok"), [(4, False), (8, True), (12, False), (80, True), (256, True), (264, False)])
def test_head_size(size, ok):
    model = parse(KT + "X = MatMul (Q, Kt)\n" + TAIL)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[3].dim_value = size
    if ok:
        check_raise(model)
    else:
        assert rejection(model) == (
            f"head_dim={size} is unsupported (supported: multiples of 8 from 8 to 256). It stays in float"
        )


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


def test_rewriting_twice_changes_nothing():
    once = intfa_onnx.rewrite(parse(*VARIANTS["added mask"])).to_proto()
    again = intfa_onnx.rewrite(once)
    assert [(a.decision, a.reason) for a in again.attentions] == [("kept", "already IntFlashAttention")]
    assert again.summary() == "1 attention found: 1 kept"
    assert again.to_proto().SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)


def test_no_attention_leaves_a_valid_model():
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 18]> g (float[N] X) => (float[N] Y) { Y = Relu (X) }'
    )
    result = intfa_onnx.rewrite(model, portable=True)
    assert result.summary() == "no attention found: the model is unchanged"
    assert result.to_proto() == canonical(model)


def test_input_is_not_changed():
    model = parse(*VARIANTS["added mask"])
    before = model.SerializeToString(deterministic=True)
    intfa_onnx.rewrite(model)
    assert model.SerializeToString(deterministic=True) == before


def test_names_and_metadata_are_kept():
    model = parse(*VARIANTS["scale after"])
    model.graph.doc_string, model.producer_name = "a graph", "a producer"
    model.metadata_props.add(key="author", value="someone")
    pv = model.graph.node[-1]
    softmax = model.graph.node[-2]
    softmax.doc_string = "the softmax"
    softmax.metadata_props.add(key="namespace", value="layer.0")
    rewritten = intfa_onnx.rewrite(model).to_proto()
    assert (rewritten.graph.doc_string, rewritten.producer_name) == ("a graph", "a producer")
    assert rewritten.metadata_props == model.metadata_props
    assert rewritten.graph.input == model.graph.input
    assert rewritten.graph.output == model.graph.output
    [node] = fused(rewritten)
    assert node.output[0] == pv.output[0]
    assert node.name == softmax.name
    assert node.doc_string == "the softmax"
    assert node.metadata_props == softmax.metadata_props
    assert {o.domain: o.version for o in rewritten.opset_import} == {"": 18, "intfa": 1}
    assert rewritten.ir_version == model.ir_version


def test_attributes_are_only_those_that_differ():
    plain = attributes(fused(intfa_onnx.rewrite(parse(*VARIANTS["scale after"])).to_proto())[0])
    assert plain == {"scale": pytest.approx(0.3), "plugin_namespace": b"intfa", "plugin_version": b"1"}
    chosen = intfa_onnx.rewrite(parse(*VARIANTS["plain"]), precision="int8_qk", scheme="paper")
    found = attributes(fused(chosen.to_proto())[0])
    assert (found["precision"], found["scheme"]) == (b"int8_qk", b"paper")


def test_minus_infinity_mask_becomes_boolean():
    rewritten = intfa_onnx.rewrite(parse(*VARIANTS["minus infinity with guard"])).to_proto()
    assert fused(rewritten)[0].input[3] == "M"
    assert [n.op_type for n in rewritten.graph.node if n.op_type != "Constant"] == ["IntFlashAttention"]


def two_layers() -> onnx.ModelProto:
    second = KT.replace("Kt", "Kt2") + "X2 = MatMul (Y1, Kt2)\n P2 = Softmax <axis = -1> (X2)\n Y = MatMul (P2, V)"
    model = parse(KT + "X = MatMul (Q, Kt)\n" + TAIL.replace("Y =", "Y1 =") + "\n" + second)
    for node in model.graph.node:
        node.name = f"/layer.{int(any('2' in o for o in node.output))}/{node.op_type}_{node.output[0]}"
    return model


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["replaced", "replaced"]),
        ({"only": ["/layer.1/*"]}, ["kept", "replaced"]),
        ({"skip": ["/layer.1/*"]}, ["replaced", "kept"]),
        ({"only": ["/layer.*"], "skip": ["*.0/*"]}, ["kept", "replaced"]),
    ],
)
def test_only_and_skip(options, expected):
    result = intfa_onnx.rewrite(two_layers(), **options)
    assert [a.decision for a in result.attentions] == expected
    assert all(a.reason for a in result.attentions if a.decision == "kept")
    assert len(fused(result.to_proto())) == expected.count("replaced")


def test_report():
    result = intfa_onnx.rewrite(two_layers(), skip=["/layer.1/*"])
    report = json.loads(result.to_json())
    assert report["summary"] == "2 attentions found: 1 replaced, 1 kept"
    first = report["attentions"][0]
    assert first["node"] == "/layer.0/Softmax_P"
    assert (first["head_dim"], first["head_dim_v"], first["num_heads"], first["kv_num_heads"]) == (16, 16, 2, 2)
    assert (first["precision"], first["scheme"], first["output"]) == ("int8", "tile", "Y1")
    assert report["nodes_before"] - report["nodes_after"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "precision 'int4' is unknown"),
        ({"scheme": "x"}, "scheme 'x' is unknown"),
        ({"target": "x"}, "target 'x' is unknown"),
        ({"target": "trt", "portable": True}, "TensorRT's parser prefers the function body"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UnsupportedError, match=message):
        intfa_onnx.rewrite(two_layers(), **options)


@pytest.mark.parametrize("opset", range(11, 26))
def test_opsets(opset):
    """Every opset from 11 on is rewritten; the float body needs 13."""
    model = parse(*VARIANTS["added mask"], opset=opset)
    if opset >= 13:
        rewritten = check_raise(model)
    else:
        rewritten = intfa_onnx.rewrite(model).to_proto()
        onnx.checker.check_model(rewritten)
    assert len(fused(rewritten)) == 1
    assert next(o.version for o in rewritten.opset_import if o.domain == "") == opset


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
        # The original rounds P to float16 (2^-11 relative), the body does not.
        np.testing.assert_allclose(run(result.to_proto(), values)[0], run(model, values)[0], rtol=4e-3, atol=4e-3)


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
    np.testing.assert_allclose(run(rewritten, values)[0], run(model, values)[0], rtol=4e-3, atol=4e-3)


# Each ends in a boolean C: true = attend, or in N: true = excluded.
RANGES = (
    "i0 = Constant <value = int64 {0}> ()\n i1 = Constant <value = int64 {1}> ()\n"
    "last = Constant <value = int64[1] {-1}> ()\n first = Constant <value = int64[1] {0}> ()\n two = Constant <value = int64[1] {2}> ()\n"
    "three = Constant <value = int64[1] {3}> ()\n qs = Shape (Q)\n ks = Shape (K)\n"
    "sq1 = Gather (qs, two)\n"
    "sk1 = Gather (ks, two)\n sq = Squeeze (sq1, first)\n sk = Squeeze (sk1, first)\n size = Concat <axis = 0> (sq1, sk1)\n"
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
    "above the diagonal": "t = Trilu <upper = 0> (ones, i1)\n C = Cast <to = 9> (t)\n",
    "upper triangle": "t = Trilu (ones)\n C = Cast <to = 9> (t)\n",
    "shifted": "q3 = Add (q2, i1)\n C = LessOrEqual (k2, q3)\n",
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


def test_unsorted_nodes_and_missing_shapes():
    model = parse(*VARIANTS["two added masks"])
    nodes = list(model.graph.node)
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(model)
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(reversed(nodes))
    rewritten = intfa_onnx.rewrite(shuffled, portable=True).to_proto()
    onnx.checker.check_model(rewritten)
    values = feed(model)
    np.testing.assert_allclose(run(rewritten, values)[0], run(model, values)[0], rtol=2e-5, atol=2e-6)


def test_duplicate_and_missing_node_names():
    model = two_layers()
    for node in model.graph.node:
        node.name = ""
    check_raise(model, count=2)
    for node in model.graph.node:
        node.name = "same"
    assert len(fused(intfa_onnx.rewrite(model).to_proto())) == 2


def test_unrelated_unused_initializer_and_node_stay():
    model = parse(*VARIANTS["plain"])
    model.graph.initializer.append(helper.make_tensor("unused", TensorProto.FLOAT, [1], [1.0]))
    model.graph.node.append(helper.make_node("Neg", ["Q"], ["dead"]))
    rewritten = intfa_onnx.rewrite(model).to_proto()
    assert [i.name for i in rewritten.graph.initializer] == ["unused"]
    assert "dead" in [o for n in rewritten.graph.node for o in n.output]


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
