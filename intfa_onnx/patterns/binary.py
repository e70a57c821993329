"""Masks by multiplication, as TF and the first GPT-2 write them: ``scores * b - 1e4 * (1 - b)``.

Where b, of zeros and ones, is 1 this is the score, where it is 0 it is -1e4: a mask, if both parts are
provably made of the same b.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from intfa_onnx.patterns.view import View

_MAX_DEPTH = 16
_MAX_SIZE = 1 << 24  # elements of a stored triangle that are looked at
_LOGIC = ("And", "Or", "Not", "Xor", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "IsNaN", "IsInf")
_MOVES = (
    *("Identity", "Cast", "CastLike", "Unsqueeze", "Squeeze", "Reshape", "Expand", "Tile", "Transpose"),
    *("Slice", "Gather", "GatherND", "Trilu"),
)


def is_binary(view: View, value: ir.Value | None, depth: int = 0) -> bool:
    """Return whether every element of a tensor is 0 or 1, whatever the model is given."""
    if value is None or depth > _MAX_DEPTH:
        return False
    if view.dtype(value) == ir.DataType.BOOL:
        return True
    if value.is_initializer() and not value.is_graph_input():
        return value.const_value is not None and _holds_only_bits(value.const_value)
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return False
    op, inputs = node.op_type, node.inputs
    if op in _LOGIC:
        return True
    if op == "Constant":
        tensor = ir.convenience.get_const_tensor(value)
        return tensor is not None and _holds_only_bits(tensor)
    if op == "ConstantOfShape":
        fill = node.attributes.get("value")
        return fill is None or _holds_only_bits(fill.as_tensor())
    if op in _MOVES:
        return is_binary(view, inputs[0], depth + 1)
    if op in ("Mul", "Min", "Max", "Concat"):
        return all(is_binary(view, i, depth + 1) for i in inputs)
    if op == "Where":
        return all(is_binary(view, i, depth + 1) for i in inputs[1:])
    return op == "Sub" and view.scalar(inputs[0]) == 1 and is_binary(view, inputs[1], depth + 1)


def _holds_only_bits(tensor: ir.TensorProtocol) -> bool:
    if tensor.size > _MAX_SIZE:
        return False
    array = tensor.numpy()
    return bool(np.isin(array, (0, 1)).all())


def affine(view: View, value: ir.Value | None, b: ir.Value, depth: int = 0) -> tuple[float, float] | None:
    """Return (u, v) where ``value`` is ``u * b + v``; None where it is not, or not provably."""
    if value is None or depth > _MAX_DEPTH:
        return None
    if _same(value, b):
        return 1.0, 0.0
    if (constant := view.scalar(value)) is not None:
        return 0.0, constant
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in ("Identity", "Neg"):
        inner = affine(view, node.inputs[0], b, depth + 1)
        sign = -1.0 if node.op_type == "Neg" else 1.0
        return None if inner is None else (sign * inner[0], sign * inner[1])
    if node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    first, second = (affine(view, i, b, depth + 1) for i in node.inputs)
    if first is None or second is None:
        return None
    if node.op_type in ("Add", "Sub"):
        sign = 1.0 if node.op_type == "Add" else -1.0
        return first[0] + sign * second[0], first[1] + sign * second[1]
    if node.op_type == "Mul" and first[0] == 0:
        first, second = second, first
    if second[0] != 0 or (node.op_type == "Div" and second[1] == 0):
        return None
    factor = second[1] if node.op_type == "Mul" else 1 / second[1]
    return first[0] * factor, first[1] * factor


def same_truth(a: ir.Value, wanted_a: bool, b: ir.Value, wanted_b: bool) -> bool:
    """Return whether two conditions hold for the same elements, each where its tensor is what is wanted."""
    while (node := a.producer()) is not None and node.op_type == "Not" and node.inputs[0] is not None:
        a, wanted_a = node.inputs[0], not wanted_a
    while (node := b.producer()) is not None and node.op_type == "Not" and node.inputs[0] is not None:
        b, wanted_b = node.inputs[0], not wanted_b
    return wanted_a == wanted_b and _same(a, b)


def _same(a: ir.Value | None, b: ir.Value | None, depth: int = 0) -> bool:
    """Return whether two values are the same computation of the same values."""
    if a is b:
        return True
    first, second = (x.producer() if x is not None else None for x in (a, b))
    if first is None or second is None or depth > _MAX_DEPTH or a is None or b is None or a.index() != b.index():
        return False
    same_node = first.op_identifier() == second.op_identifier() and len(first.inputs) == len(second.inputs)
    if (
        not same_node
        or not first.inputs
        or first.op_type.startswith("Random")
        or _attributes(first) != _attributes(second)
    ):
        return False
    return all(_same(x, y, depth + 1) for x, y in zip(first.inputs, second.inputs, strict=True))


def _attributes(node: ir.Node) -> dict[str, str]:
    return {name: repr(a.value) for name, a in node.attributes.items()}
