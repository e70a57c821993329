"""Models of a few nodes, as the tests of the command line need them."""

from __future__ import annotations

import onnx
import onnx.parser
from onnx import TensorProto, helper


def attention_model(head_dim: int = 16, opset: int = 18, scale: float = 0.25) -> onnx.ModelProto:
    """Return softmax(scale * Q.K^T).V with two heads; batch and length are dynamic."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 18]>
        small (float[B, 2, S, {head_dim}] Q, float[B, 2, S, {head_dim}] K, float[B, 2, S, {head_dim}] V)
          => (float[B, 2, S, {head_dim}] Y) <float scale = {{{scale}}}> {{
            Kt = Transpose <perm = [0, 1, 3, 2]> (K)
            QK = MatMul (Q, Kt)
            scaled = Mul (QK, scale)
            P = Softmax <axis = -1> (scaled)
            Y = MatMul (P, V)
        }}"""
    )
    for node in model.graph.node:
        node.name = f"attention/{node.op_type}_{node.output[0]}"
    model.opset_import[0].version = opset
    return model


def function_model() -> onnx.ModelProto:
    """Return the same attention in a function of the model, and in its graph nothing but the call."""
    model = attention_model()
    graph = model.graph
    given, results = [v.name for v in (*graph.input, *graph.initializer)], [v.name for v in graph.output]
    model.functions.append(helper.make_function("local", "Block", given, results, graph.node, model.opset_import))
    del graph.node[:]
    graph.node.append(helper.make_node("Block", given, results, domain="local"))
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def plain_model() -> onnx.ModelProto:
    """Return relu(X): there is no attention in it."""
    return onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18]>
        plain (float[N] X) => (float[N] Y) { Y = Relu (X) }"""
    )


def embedding_model(rows: int = 10) -> onnx.ModelProto:
    """Return a table look-up with a mask: integers that must stay below ``rows``, and a mask that must be ones."""
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", "S"])
    mask = helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["N", "S"])
    found = helper.make_tensor_value_info("found", TensorProto.FLOAT, ["N", "S"])
    table = helper.make_tensor("table", TensorProto.FLOAT, [rows], [float(i) for i in range(rows)])
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Mul", ["rows", "mask"], ["found"]),
    ]
    graph = helper.make_graph(nodes, "embedding", [ids, mask], [found], [table])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
