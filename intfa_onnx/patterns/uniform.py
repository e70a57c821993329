"""Tensors of one number: what every element of a tensor is, or every one that is not 0."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from intfa_onnx.patterns.match import Const, Operand, operation
from intfa_onnx.patterns.view import View

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_KEEPS_NUMBER = ("Identity", "Cast", "CastLike", "Expand", "Unsqueeze", "Squeeze", "Reshape", "Slice", "Transpose")


def number_of(view: View, x: Operand | None) -> float | None:
    """Return the number that every element of a tensor is."""
    if isinstance(x, Const):
        return float(x.array.reshape(-1)[0]) if x.array.size and np.all(x.array == x.array.flat[0]) else None
    constant = view.constant(x) if isinstance(x, ir.Value) else None
    if constant is not None:
        same = constant.size and np.all(constant == constant.flat[0])
        return float(constant.reshape(-1)[0]) if same else None
    call = operation(x)
    if call is None or not call.inputs:
        return None
    if call.op_type == "ConstantOfShape":
        fill = call.attributes.get("value")
        return 0.0 if fill is None else float(fill.numpy().reshape(-1)[0])
    return number_of(view, call.inputs[0]) if call.op_type in _KEEPS_NUMBER else None


def only_nonzero(view: View, x: Operand | None) -> float | None:
    """Return the one number besides 0 that elements of a tensor may be."""
    number = number_of(view, x)
    array = tensor_of(view, x) if number is None and x is not None else None
    if array is not None:
        others = np.unique(array[array != 0]) if array.dtype.kind == "f" else np.array(())
        return float(others[0]) if others.size == 1 else None
    call = operation(x)
    if number is not None or call is None:
        return number
    if isinstance(x, ir.Value) and view.dtype(x) == ir.DataType.BOOL:
        return 1.0
    if call.op_type == "Mul":
        factors = [only_nonzero(view, i) for i in call.inputs]
        return None if None in factors else float(np.prod([f for f in factors if f is not None]))
    if call.op_type == "Where":
        numbers = {only_nonzero(view, i) for i in call.inputs[1:]} - {0.0}
        return numbers.pop() if len(numbers) == 1 else None
    if call.op_type == "Cast":
        found, to = only_nonzero(view, call.inputs[0]), ir.DataType(call.attributes["to"])
        with np.errstate(over="ignore"):
            return float(np.array(found).astype(to.numpy())) if found is not None and to in FLOATS else None
    return only_nonzero(view, call.inputs[0]) if call.op_type in (*_KEEPS_NUMBER, "Trilu") else None


def tensor_of(view: View, x: Operand) -> np.ndarray | None:
    """Return a constant of any size."""
    if not isinstance(x, ir.Value) or not view.is_constant(x, depth=0):
        node = x.producer() if isinstance(x, ir.Value) else None
        if node is None or node.op_type != "Constant":
            return None
    assert isinstance(x, ir.Value)
    tensor = ir.convenience.get_const_tensor(x)
    return None if tensor is None else tensor.numpy()
