"""Which sizes are provably equal: each is an int, or a token that names where the size comes from."""

from __future__ import annotations

import onnx_ir as ir

from intfa_onnx.patterns.view import View, axes_of, int_attribute

# An int; a symbolic name of the model; or (value, axis) where nothing more is known. Equal tokens are equal sizes.
Token = int | str | tuple[ir.Value, int]

_MAX_DEPTH = 12


def dims(view: View, value: ir.Value) -> tuple[Token, ...] | None:
    """Return a token for each axis of ``value``; None where its rank is unknown."""
    rank = view.rank(value)
    return None if rank is None else tuple(_dim(view, value, axis, 0) for axis in range(rank))


def _dim(view: View, value: ir.Value, axis: int, depth: int) -> Token:
    shape = view.shape(value)
    if shape is not None and isinstance(known := shape[axis], int):
        return known
    node = value.producer()
    if node is not None and depth < _MAX_DEPTH and node.inputs and node.inputs[0] is not None:
        if node.op_type == "Transpose" and "perm" in node.attributes:
            return _dim(view, node.inputs[0], node.attributes["perm"].as_ints()[axis], depth + 1)
        if node.op_type in ("Identity", "Cast", "Softmax", "Neg", "RotaryEmbedding"):
            return _dim(view, node.inputs[0], axis, depth + 1)
        if node.op_type in ("Mul", "Div") and any(view.scalar(i) is not None for i in node.inputs):
            tensor = next(i for i in node.inputs if view.scalar(i) is None)
            if tensor is not None:
                return _dim(view, tensor, axis, depth + 1)
        if node.op_type == "Reshape" and node.inputs[1] is not None:
            sizes = _sizes(view, node.inputs[1], depth + 1)
            if sizes is not None and axis < len(sizes) and (token := sizes[axis]) not in (0, -1) and token is not None:
                return token
            if sizes is not None and axis < len(sizes) and sizes[axis] == 0 and not int_attribute(node, "allowzero", 0):
                return _dim(view, node.inputs[0], axis, depth + 1)
    symbol = shape[axis] if shape is not None else None
    return symbol if isinstance(symbol, str) else (value, axis)


def _sizes(view: View, value: ir.Value | None, depth: int) -> tuple[Token | None, ...] | None:
    """Read a one-dimensional (or scalar) integer value as sizes; None for one that is not understood."""
    if value is None or depth > _MAX_DEPTH:
        return None
    constant = view.constant(value)
    if constant is not None:
        return tuple(int(c) for c in constant.reshape(-1))
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "Shape" and node.inputs[0] is not None:
        source = node.inputs[0]
        rank = view.rank(source)
        if rank is None:
            return None
        axes = range(rank)[int_attribute(node, "start", 0) : int_attribute(node, "end", rank)]
        return tuple(_dim(view, source, axis, depth + 1) for axis in axes)
    if node.op_type in ("Unsqueeze", "Squeeze", "Identity", "Cast", "Reshape"):
        return _sizes(view, node.inputs[0], depth + 1)
    if node.op_type == "Concat":
        parts = [_sizes(view, i, depth + 1) for i in node.inputs]
        # A part that is not understood is one size in every exporter, but that is not proof: give up.
        return None if any(p is None for p in parts) else tuple(t for p in parts if p is not None for t in p)
    if node.op_type in ("Slice", "Gather"):
        sizes = _sizes(view, node.inputs[0], depth + 1)
        constants = [view.constant(i) for i in node.inputs[1:]]
        if sizes is None or any(c is None for c in constants):
            return None
        numbers = [[int(x) for x in c.reshape(-1)] for c in constants if c is not None]
        if node.op_type == "Gather":
            return tuple(sizes[i] for i in numbers[0] if -len(sizes) <= i < len(sizes))
        step = numbers[3][0] if len(numbers) > 3 else 1
        return sizes[numbers[0][0] : numbers[1][0] : step]
    return None


def unsqueezed_axis(view: View, node: ir.Node, rank: int) -> int | None:
    """Return the one axis that an Unsqueeze adds, counted from the front of its ``rank``-axis output."""
    axes = axes_of(view, node)
    return axes[0] % rank if axes is not None and len(axes) == 1 else None
