"""The Transpose to [B, H, S, D] moved behind what is done to Q or K after it, which is a rotary embedding mostly.

That works on each head alone, with cosines and sines that are the same for all heads: it can as well be done to
[B, S, H, D], as the projection gives it, and then the operator reads that. What it takes is those tables with their
axes in the other order, which are small, and one for all layers; ONNX's RotaryEmbedding takes either layout.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir

from intfa_onnx.patterns.match import Call, Const, Operand, Shared, operation, transpose
from intfa_onnx.patterns.view import View, int_attribute

_BSHD = (0, 2, 1, 3)
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Neg", "Cast", "Identity", "Pow", "Sqrt", "Reciprocal")
_MAX_DEPTH = 24


def before_transpose(view: View, x: Operand) -> tuple[Operand, int] | None:
    """Return ``x`` [B, H, S, D] as [B, S, H, D], computed from what one Transpose was given, and H.

    None where it is not made so, or where something else reads a step of it, which would be computed twice.
    """
    moving = _Moving(view)
    moved = moving.moved(x)
    heads = view.dim(next(iter(moving.bases)), 2) if len(moving.bases) == 1 else None
    return (moved, heads) if moved is not None and heads is not None and moving.alone() else None


class _Moving:
    """One way from a Transpose to an operand."""

    def __init__(self, view: View):
        self.bases: set[ir.Value] = set()
        self._view = view
        self._depth = 0
        self._done: dict[Operand, Operand | None] = {}
        self._reads: Counter[ir.Value] = Counter()

    def alone(self) -> bool:
        """Return whether nothing else reads the steps between."""
        return all(len(self._view.readers(x)) == n and not x.is_graph_output() for x, n in self._reads.items())

    def moved(self, x: Operand) -> Operand | None:
        """Return ``x`` with its axes 1 and 2 exchanged; None where it does not come from a Transpose."""
        if x not in self._done:
            self._depth += 1
            self._done[x] = self._moved(x) if self._depth < _MAX_DEPTH else None
            self._depth -= 1
        call = operation(x)
        if self._done[x] is not None and isinstance(x, ir.Value) and call is not None and call.op_type != "Transpose":
            self._reads[x] += 1
        return self._done[x]

    def _moved(self, x: Operand) -> Operand | None:
        call = operation(x) or self._part(x)
        if call is None:
            return None
        first = call.inputs[0]
        if call.op_type == "Transpose":
            if tuple(call.attributes.get("perm", ())) != _BSHD or not isinstance(first, ir.Value):
                return None
            self.bases.add(first)
            return first
        if call.op_type == "Slice":
            bounds, inner = [_numbers(self._view, i) for i in call.inputs[1:]], self.moved(first)
            known = [b for b in bounds if b is not None]
            of_channels = len(known) == len(bounds) > 2 and known[2].array.tolist() in ([3], [-1])
            return Call("Slice", (inner, *known)) if inner is not None and of_channels else None
        if call.op_type == "ReduceMean":
            node = x.producer() if isinstance(x, ir.Value) else None
            of_channels = (
                node is not None and self._view.axes(node) in ([3], [-1]) and call.attributes.get("keepdims", 1)
            )
            inner = self.moved(first) if of_channels else None
            return Call("ReduceMean", (inner,), {"axes": [3], "keepdims": 1}) if inner is not None else None
        if call.op_type in ("RMSNormalization", "LayerNormalization"):
            inner = self.moved(first) if call.attributes.get("axis", -1) in (3, -1) else None
            return Call(call.op_type, (inner, *call.inputs[1:]), call.attributes) if inner is not None else None
        if call.op_type == "RotaryEmbedding":
            return self._rotated(call)
        is_concat = call.op_type == "Concat" and call.attributes["axis"] in (3, -1)
        if not is_concat and call.op_type not in _ELEMENTWISE:
            return None
        moved = [self.moved(i) for i in call.inputs]
        if not any(moved):
            return None
        operands = [
            m or (None if is_concat else _table(self._view, i)) for i, m in zip(call.inputs, moved, strict=True)
        ]
        whole = [o for o in operands if o is not None]
        return Call(call.op_type, tuple(whole), call.attributes) if len(whole) == len(operands) else None

    def _rotated(self, call: Call) -> Operand | None:
        """Return what the operator RotaryEmbedding makes of [B, S, H*D], as [B, S, H, D]; its tables know no heads."""
        x, *tables = call.inputs
        heads, size = (self._view.dim(x, axis) if isinstance(x, ir.Value) else None for axis in (1, 3))
        inner = self.moved(x)
        if inner is None or heads is None or size is None:
            return None
        packed = Call("Reshape", (inner, Const(np.array([0, 0, -1], np.int64))))
        rotated = Call(call.op_type, (packed, *tables), {**call.attributes, "num_heads": heads})
        return Call("Reshape", (rotated, Const(np.array([0, 0, heads, size], np.int64))))

    def _part(self, x: Operand) -> Call | None:
        """Return a part of a Split of the channels as a Slice."""
        node = x.producer() if isinstance(x, ir.Value) else None
        if not isinstance(x, ir.Value) or node is None or node.op_type != "Split" or node.inputs[0] is None:
            return None
        sizes = [self._view.dim(o, 3) for o in node.outputs]
        if int_attribute(node, "axis", 0) not in (3, -1) or None in sizes:
            return None
        start = sum(s for s in sizes[: x.index()] if s is not None)
        bounds = (start, start + (sizes[x.index() or 0] or 0), 3)
        return Call("Slice", (node.inputs[0], *(Const(np.array([n], np.int64)) for n in bounds)))


def _numbers(view: View, x: Operand) -> Const | None:
    """Return the bounds of a Slice as a constant: those that are sizes would need the transposed tensor."""
    if isinstance(x, Const):
        return x
    sizes = view.dims.content(x) if isinstance(x, ir.Value) else None
    numbers = [s for s in sizes or () if isinstance(s, int)]
    return Const(np.array(numbers, np.int64)) if sizes and len(numbers) == len(sizes) else None


def _table(view: View, x: Operand) -> Operand | None:
    """Return a tensor that is the same for all heads for [B, S, H, D] instead of [B, H, S, D]."""
    if isinstance(x, Const):
        return x if x.array.size == 1 else None
    sizes = view.dims.of(x) if isinstance(x, ir.Value) else None
    if sizes is None or not isinstance(x, ir.Value):
        return None
    if len(sizes) < 2:
        return x
    if len(sizes) == 2:
        return Call("Unsqueeze", (x,), {"axes": [1]})
    if sizes[-3] != 1 or len(sizes) > 4:
        return None
    node = x.producer()
    source = node.inputs[0] if node is not None and node.op_type == "Unsqueeze" else None
    if node is not None and source is not None and len(sizes) == 4 and view.axes(node) in ([1], [-3]):
        return Shared(Call("Unsqueeze", (source,), {"axes": [2]}), node)
    return transpose(x, _BSHD) if len(sizes) == 4 else Call("Unsqueeze", (x,), {"axes": [2]})
