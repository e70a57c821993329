"""A decoder of any size whose weights take no disk: float16, in an external file with a hole for content."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, HEAD_DIM = 32_000, 64
_TYPE, _BYTES = TensorProto.FLOAT16, 2
_ALIGNMENT = 4096  # of a tensor in the file, so that a runtime can map it


class _Weights:
    """Hands out places in the external file."""

    def __init__(self, location: str) -> None:
        self.location, self.size = location, 0
        self.tensors: list[onnx.TensorProto] = []

    def add(self, name: str, *shape: int) -> str:
        length = _BYTES * math.prod(shape)
        tensor = TensorProto(name=name, data_type=_TYPE, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self.location), ("offset", str(self.size)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        self.tensors.append(tensor)
        self.size += -(-length // _ALIGNMENT) * _ALIGNMENT
        return name


def write_decoder(path: str | os.PathLike[str], layers: int, hidden: int) -> int:
    """Write a decoder as exporters write one, attention in primitive nodes, and return the bytes of its weights.

    The weights are the zeros of a sparse file beside the model: 500 layers of width 1024 are 12 GB that occupy nothing.

    Args:
        path: of the model; the weights go to ``path`` + ``.data``.
        layers: decoder layers, one attention each.
        hidden: width, a multiple of 64; the hidden layer of an MLP is four times as wide.
    """
    path = Path(path)
    weights = _Weights(path.name + ".data")
    head_split = numpy_helper.from_array(np.array([0, 0, hidden // HEAD_DIM, HEAD_DIM]), "head_split")
    head_join = numpy_helper.from_array(np.array([0, 0, hidden]), "head_join")
    scale = numpy_helper.from_array(np.float16(HEAD_DIM**-0.5), "softmax_scale")
    nodes = [helper.make_node("Gather", [weights.add("embedding", VOCABULARY, hidden), "ids"], ["x0"], "/embedding")]
    for layer in range(layers):
        nodes += _layer(weights, f"layer.{layer}", f"x{layer}", f"x{layer + 1}", hidden)
    head = weights.add("lm_head", hidden, VOCABULARY)
    nodes.append(helper.make_node("MatMul", [f"x{layers}", head], ["logits"], "/lm_head"))
    graph = helper.make_graph(
        nodes,
        "decoder",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "seqlen"]),
            helper.make_tensor_value_info("mask", _TYPE, ["batch", 1, "seqlen", "seqlen"]),
        ],
        [helper.make_tensor_value_info("logits", _TYPE, ["batch", "seqlen", VOCABULARY])],
        [head_split, head_join, scale, *weights.tensors],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    with open(path.with_name(weights.location), "wb") as file:
        file.truncate(weights.size)
    return weights.size


def _layer(weights: _Weights, name: str, x: str, y: str, hidden: int) -> list[onnx.NodeProto]:
    nodes: list[onnx.NodeProto] = []

    def add(op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        value = y if output == "y" else f"{name}.{output}"
        nodes.append(helper.make_node(op_type, inputs, [value], f"/{name}/{output}", **attributes))
        return value

    def norm(value: str, output: str) -> str:
        parameters = [weights.add(f"{name}.{output}.{which}", hidden) for which in ("weight", "bias")]
        return add("LayerNormalization", [value, *parameters], output)

    def linear(value: str, output: str, inputs: int, outputs: int) -> str:
        product = add("MatMul", [value, weights.add(f"{name}.{output}.weight", inputs, outputs)], f"{output}.product")
        return add("Add", [product, weights.add(f"{name}.{output}.bias", outputs)], output)

    def heads(value: str, output: str, order: tuple[int, ...]) -> str:
        split = add("Reshape", [linear(value, output, hidden, hidden), "head_split"], f"{output}.split")
        return add("Transpose", [split], f"{output}.heads", perm=order)

    normed = norm(x, "attention_norm")
    q, v = (heads(normed, which, (0, 2, 1, 3)) for which in ("q", "v"))
    k = heads(normed, "k", (0, 2, 3, 1))
    scores = add("Mul", [add("MatMul", [q, k], "scores"), "softmax_scale"], "scaled")
    weight = add("Softmax", [add("Add", [scores, "mask"], "masked")], "softmax", axis=-1)
    mixed = add("Transpose", [add("MatMul", [weight, v], "mixed")], "mixed.tokens", perm=(0, 2, 1, 3))
    attended = linear(add("Reshape", [mixed, "head_join"], "joined"), "o", hidden, hidden)
    x = add("Add", [x, attended], "residual")
    wide = linear(norm(x, "mlp_norm"), "up", hidden, 4 * hidden)
    gated = add("Mul", [wide, add("Sigmoid", [wide], "gate")], "gated")
    add("Add", [x, linear(gated, "down", 4 * hidden, hidden)], "y")
    return nodes
