"""One attention problem as an ONNX model of one layer, the way each host runtime knows it; inputs Q, K, V, output Y."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from intfa_onnx.bench.problem import Problem
from intfa_onnx.errors import UnsupportedError
from intfa_onnx.op_schema import DOMAIN, OP_TYPE

CONTRIB = "com.microsoft"


def fused(problem: Problem, dtype: Any, precision: str, scales: Sequence[np.ndarray] = ()) -> onnx.ModelProto:
    """Return our operator; tensors [batch, heads, seqlen, head_dim] of the numpy type ``dtype``, as below.

    With ``scales`` of Q, K and V, float32 [heads] each, ``dtype`` is int8 and the output float32.
    """
    constants = [numpy_helper.from_array(x, f"{name}_scale") for name, x in zip("qkv", scales, strict=False)]
    inputs = ["Q", "K", "V"]
    attributes: dict[str, Any] = {"is_causal": int(problem.causal), "precision": precision}
    if constants:
        inputs += [""] * 4 + [constant.name for constant in constants]
        attributes["output_dtype"] = onnx.TensorProto.FLOAT
    node = helper.make_node(OP_TYPE, inputs, ["Y"], domain=DOMAIN, **attributes)
    return _model(problem, dtype, [node], constants)


def unfused(problem: Problem, dtype: Any) -> onnx.ModelProto:
    """Return the graph as exporters write it: MatMul, Mul, Add of a mask, Softmax, MatMul."""
    _same_heads(problem)
    scale = numpy_helper.from_array(np.array(1 / math.sqrt(problem.head_dim), dtype), "scale")
    nodes = [
        helper.make_node("Transpose", ["K"], ["Kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["Q", "Kt"], ["S"]),
        helper.make_node("Mul", ["S", "scale"], ["scaled"]),
        helper.make_node("Softmax", ["masked" if problem.causal else "scaled"], ["P"], axis=-1),
        helper.make_node("MatMul", ["P", "V"], ["Y"]),
    ]
    constants = [scale]
    if problem.causal:
        mask = np.triu(np.full((problem.seqlen, problem.seqlen), -np.inf, dtype), 1)
        constants.append(numpy_helper.from_array(mask, "mask"))
        nodes.insert(3, helper.make_node("Add", ["scaled", "mask"], ["masked"]))
    return _model(problem, dtype, nodes, constants)


def multi_head(problem: Problem, dtype: Any) -> onnx.ModelProto:
    """Return ONNX Runtime's ``MultiHeadAttention``, whose tensors are [batch, seqlen, heads * head_dim]."""
    _same_heads(problem)
    node = helper.make_node(
        "MultiHeadAttention",
        ["Q", "K", "V"],
        ["Y"],
        domain=CONTRIB,
        num_heads=problem.num_heads,
        unidirectional=int(problem.causal),
    )
    return _model(problem, dtype, [node], packed_heads=True)


def attention(problem: Problem, dtype: Any) -> onnx.ModelProto:
    """Return the standard ``Attention`` operator, opset 24."""
    node = helper.make_node("Attention", ["Q", "K", "V"], ["Y"], is_causal=int(problem.causal))
    return _model(problem, dtype, [node])


def _same_heads(problem: Problem) -> None:
    if problem.num_heads != problem.kv_num_heads:
        raise UnsupportedError("has no grouped heads")


def _model(
    problem: Problem,
    dtype: Any,
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto] | None = None,
    packed_heads: bool = False,
) -> onnx.ModelProto:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def info(name: str) -> onnx.ValueInfoProto:
        heads = problem.num_heads if name in "QY" else problem.kv_num_heads
        seqlen = problem.seqlen_q if name in "QY" else problem.seqlen
        packed = [problem.batch, seqlen, heads * problem.head_dim]
        shape = packed if packed_heads else [problem.batch, heads, seqlen, problem.head_dim]
        codes = name == "Y" and element == onnx.TensorProto.INT8
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT if codes else element, shape)

    graph = helper.make_graph(nodes, "bench", [info(n) for n in "QKV"], [info("Y")], constants)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, 1), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
