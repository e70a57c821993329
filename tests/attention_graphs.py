"""Attention as graphs of a few nodes, and the checks that the tests of the rewriter share."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper

import intfa_onnx
from intfa_onnx import op_schema


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
            if len(shape) > 1 and shape[-2] > 1:
                values[value.name][..., 0, :] = False
        else:
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            values[value.name] = rng.standard_normal(shape).astype(dtype)
    return values


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """Open a model without graph optimizations, so that nothing but the rewrite differs."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, values: dict[str, np.ndarray]) -> list[np.ndarray]:
    return session(model).run(None, values)


def check_same(got: np.ndarray, want: np.ndarray, *, half: bool = False) -> None:
    """Compare an output with what the same float operations, in another order, give.

    A probability is off, relatively, by as much as its score is absolutely. Scores reach some 20 nats, of which 1 ulp
    is 2e-6: ten of these for the sums of tens of products that make it, one where values of V cancel to about 0.

    Args:
        got: the one.
        want: the other.
        half: one of them rounds to float16 on its way, the scores, the probabilities or the output: 2^-11 of a value of
            about 1, eight times.
    """
    rtol, atol = (2.0**-8, 2.0**-8) if half else (2e-5, 2e-6)
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


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
            check_same(got, want)
    return rewritten


def fused(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [n for n in model.graph.node if n.op_type == op_schema.OP_TYPE]


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


KT = "Kt = Transpose <perm = [0, 1, 3, 2]> (K)\n"
S = KT + "s0 = MatMul (Q, Kt)\n s = Mul (s0, scale)\n"
PV = "Y = MatMul (P, V)"
LAST = "last = Constant <value = int64[1] {-1}> ()\n"
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
    "floor under minus infinity": (
        KT
        + "inf = Constant <value = float {-inf}> ()\n low = Constant <value = float {-3.4028235e38}> ()\n"
        + "b = Where (M, zero, inf)\n s = MatMul (Q, Kt)\n t = Add (s, b)\n X = Max (t, low)\n"
        + TAIL,
        BOOL,
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
    "softcap, mask, then a factor": (
        KT
        + "s = MatMul (Q, Kt)\n t = Div (s, scale)\n u = Tanh (t)\n v = Mul (u, scale)\n w = Add (v, M)\n"
        + "half = Constant <value = float {-0.5}> ()\n X = Mul (w, half)\n"
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


def canonical(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model as onnx_ir writes it: it leaves empty fields out and names the tensors of Constants."""
    return ir.to_proto(ir.from_proto(model))


def rejection(model: onnx.ModelProto) -> str:
    """Check that nothing changes, and return the reason."""
    result = intfa_onnx.rewrite(model)
    assert [a.decision for a in result.attentions] == ["rejected"]
    assert result.to_proto() == canonical(model)
    return result.attentions[0].reason
