"""How large the elements of a tensor can be: a position bias is, unlike a mask, provably far from the least float."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from intfa_onnx.patterns.match import Const, Operand, operation
from intfa_onnx.patterns.view import View

_MAX_DEPTH = 40
_MOVES = ("Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Expand", "Slice", "Gather", "Neg")


def largest(view: View, x: Operand, depth: int = 0) -> float:
    """Return a bound of the magnitude of all elements; infinity where none is known."""
    if isinstance(x, Const):
        return float(np.abs(x.array.astype(np.float64)).max(initial=0))
    if depth > _MAX_DEPTH:
        return math.inf
    tensor = ir.convenience.get_const_tensor(x) if isinstance(x, ir.Value) and not x.is_graph_input() else None
    if tensor is not None:
        return float(np.abs(tensor.numpy().astype(np.float64)).max(initial=0))
    if isinstance(x, ir.Value) and view.dtype(x) in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL):
        return 2.0**63
    call = operation(x)
    if call is None:
        return math.inf
    if call.op_type in _MOVES:
        return largest(view, call.inputs[0], depth + 1)
    if call.op_type == "Div":
        divisor = view.scalar(call.inputs[1]) if isinstance(call.inputs[1], ir.Value) else None
        return largest(view, call.inputs[0], depth + 1) / abs(divisor) if divisor else math.inf
    if call.op_type not in ("Add", "Sub", "Mul", "Where", "Concat"):
        return math.inf
    bounds = [largest(view, i, depth + 1) for i in call.inputs[call.op_type == "Where" :]]
    if call.op_type == "Mul":
        return math.prod(bounds) if 0 not in bounds else 0.0
    return sum(bounds) if call.op_type in ("Add", "Sub") else max(bounds)


def is_product_of(view: View, x: Operand | None, depth: int = 0) -> bool:
    """Return whether a tensor is made of matrix products: relative positions are, a mask is not."""
    call = operation(x)
    if call is None or depth > _MAX_DEPTH:
        return False
    if call.op_type in ("MatMul", "Einsum"):
        return True
    if call.op_type in ("Add", "Sub"):
        return all(is_product_of(view, i, depth + 1) for i in call.inputs)
    if call.op_type in ("Mul", "Div"):
        return any(is_product_of(view, i, depth + 1) for i in call.inputs)
    return call.op_type in (*_MOVES, "GatherElements", "Pad", "Concat") and is_product_of(
        view, call.inputs[0], depth + 1
    )
