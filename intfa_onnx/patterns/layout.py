"""Absorption of the Transposes between [B, S, H, D] and [B, H, S, D] around Q, K, V and Y.

The operator reads Q, K, V as [B, S, H*D] and writes Y as [B, S, H*Dv], which is how projections give and take them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from intfa_onnx.patterns.dims import Token
from intfa_onnx.patterns.match import RESULT, AttentionMatch, Call, Const, Operand, operation
from intfa_onnx.patterns.rotary import before_transpose
from intfa_onnx.patterns.view import View, int_attribute

_BSHD = (0, 2, 1, 3)  # between [B, S, H, D] and [B, H, S, D], either way
_AS_IT_IS = (0, 1, 2, 3)
_PARTS_FIRST = (2, 0, 3, 1, 4)  # from [B, S, 3, H, D] to [3, B, H, S, D]


def absorb_layout(view: View, match: AttentionMatch) -> AttentionMatch:
    """Read Q, K, V packed and write Y packed where the graph transposes them only for the products."""
    if match.rank != 4 or match.head_dim_v is None:
        return match
    q, k, v = (_packed(view, match.inputs[name]) for name in ("Q", "K", "V"))
    pv_out, result = next(iter(match.outputs.items()))
    heads = match.num_heads if q is None else q[1]
    if heads is None or not _is_elementwise(result):
        return match
    sizes = _Sizes(view, match, pv_out, heads)
    passed, back = sizes.transpose_back(pv_out)
    if q is None or k is None or v is None or k[1] != v[1] or back is None:
        return _past_idle_reshapes(view, match, passed)
    packed = sizes.merge_after(back)
    bshd = Call("Reshape", (result, Const(np.array([0, 0, q[1], match.head_dim_v], np.int64))))
    of_shapes = _shapes(view, [(p, _BSHD) for p in passed] + ([(back, _AS_IT_IS)] if packed is not None else []), bshd)
    if of_shapes is None:
        return match
    outputs: dict[ir.Value, Operand] = {packed: result} if packed is not None else {back: bshd}
    outputs.update(of_shapes)
    outputs.update({value: x for value, x in match.outputs.items() if value is not pv_out})
    return replace(
        match,
        inputs={**match.inputs, "Q": q[0], "K": k[0], "V": v[0]},
        attributes={**match.attributes, "q_num_heads": q[1], "kv_num_heads": k[1]},
        outputs=outputs,
        rank=3,
        absorbed=(*match.absorbed, "bshd"),
    )


def _past_idle_reshapes(view: View, match: AttentionMatch, passed: list[ir.Value]) -> AttentionMatch:
    """End the attention below Reshapes that change nothing: where they read the cache's sizes, it has to stay out."""
    (pv_out, result), *others = match.outputs.items()
    of_shapes = _shapes(view, [(value, _AS_IT_IS) for value in passed[:-1]], result)
    if pv_out is passed[-1] or of_shapes is None:
        return match
    return replace(match, outputs={passed[-1]: result, **of_shapes, **dict(others)})


def _shapes(
    view: View, values: Sequence[tuple[ir.Value, tuple[int, ...]]], result: Operand
) -> dict[ir.Value, Operand] | None:
    """Return what takes the place of each shape that is read of values which go; None where more is read of them.

    Args:
        view: facts about the model.
        values: each with the axes of ``result`` that its own are.
        result: what takes their place.
    """
    outputs: dict[ir.Value, Operand] = {}
    for value, axes in values:
        for node, _ in view.metadata_readers(value):
            if node.op_type != "Shape":
                return None
            picked = axes[int_attribute(node, "start", 0) : int_attribute(node, "end", 4)]
            outputs[node.outputs[0]] = Call(
                "Gather", (Call("Shape", (result,)), Const(np.array(picked, np.int64))), {"axis": 0}
            )
    return outputs


def _is_elementwise(result: Operand) -> bool:
    """Return whether the result is cast or scaled only, which may as well be done to the packed one."""
    while isinstance(result, Call):
        if result.op_type != "Cast" and not (result.op_type == "Mul" and isinstance(result.inputs[1], Const)):
            return False
        result = result.inputs[0]
    return result is RESULT


def _packed(view: View, x: Operand) -> tuple[Operand, int] | None:
    """Return [B, S, H*D] and H for a Transpose of [B, S, H, D], also behind it, or a part of one of [B, S, 3, H, D]."""
    if (part := _part_of_projection(view, x)) is not None:
        return part
    call = operation(x)
    if call is None or call.op_type != "Transpose" or tuple(call.attributes.get("perm", ())) != _BSHD:
        moved = before_transpose(view, x)
        return moved and (Call("Reshape", (moved[0], Const(np.array([0, 0, -1], np.int64)))), moved[1])
    base = call.inputs[0]
    heads = view.dim(base, 2) if isinstance(base, ir.Value) else None
    if heads is None:
        return None
    merged = Call("Reshape", (base, Const(np.array([0, 0, -1], np.int64))))
    split = operation(base)
    source = split.inputs[0] if split is not None and split.op_type == "Reshape" else None
    before = view.dims.of(source) if isinstance(source, ir.Value) else None
    after = view.dims.of(base) if isinstance(base, ir.Value) else None
    if source is not None and before is not None and after is not None and len(before) == 3:
        same = before[:2] == after[:2]
        return (source if same else merged), heads
    return merged, heads


def _part_of_projection(view: View, x: Operand) -> tuple[Operand, int] | None:
    """Return [B, S, H*D] and H for one of Q, K, V that one projection [B, S, 3*H*D] gives, transposed as a whole."""
    squeeze = x.producer() if isinstance(x, ir.Value) else None
    if squeeze is None or squeeze.op_type != "Squeeze" or view.axes(squeeze) not in ([0], [-5]):
        return None
    taken = squeeze.inputs[0]
    node = taken.producer() if taken is not None else None
    if taken is None or node is None or view.rank(taken) != 5:
        return None
    index = _index_of_part(view, node, taken)
    transposed = operation(node.inputs[0])
    if index is None or transposed is None or transposed.op_type != "Transpose":
        return None
    split = operation(transposed.inputs[0])
    if tuple(transposed.attributes.get("perm", ())) != _PARTS_FIRST or split is None or split.op_type != "Reshape":
        return None
    before, after = (
        view.dims.of(v) if isinstance(v, ir.Value) else None for v in (split.inputs[0], transposed.inputs[0])
    )
    if before is None or after is None or len(before) != 3 or before[:2] != after[:2]:
        return None
    heads, size = after[3], after[4]
    if not isinstance(heads, int) or not isinstance(size, int):
        return None
    bounds = (Const(np.array([n], np.int64)) for n in (index * heads * size, (index + 1) * heads * size, 2))
    return Call("Slice", (split.inputs[0], *bounds)), heads


def _index_of_part(view: View, node: ir.Node, part: ir.Value) -> int | None:
    """Return which one of the parts along the first axis, each of size 1, a Split or Slice gives."""
    if node.op_type == "Split" and int_attribute(node, "axis", 0) == 0:
        sizes = [view.dim(o, 0) for o in node.outputs]
        return node.outputs.index(part) if all(size == 1 for size in sizes) else None
    if node.op_type == "Slice" and len(node.inputs) > 3:
        start, axis = (view.constant(i) for i in (node.inputs[1], node.inputs[3]))
        if start is not None and axis is not None and start.size == 1 and axis.reshape(-1).tolist() == [0]:
            return int(start.reshape(-1)[0]) if start.reshape(-1)[0] >= 0 else None
    return None


class _Sizes:
    """Reads what comes after an attention, of whose result [B, H, Sq, Dv] more is known than of other values."""

    def __init__(self, view: View, match: AttentionMatch, pv_out: ir.Value, heads: int):
        self._view = view
        own = view.dims.of(pv_out) or (None,) * 4
        self._batch = ({own[0]} | _met(view, match.inputs["Q"], 0)) - {None}
        self._rows = ({own[2]} | _met(view, match.inputs["Q"], 2)) - {None}
        self._heads: set[Token | None] = {heads}
        self._channels: set[Token | None] = {match.head_dim_v}
        self._width: set[Token | None] = {heads * (match.head_dim_v or 0)}

    def transpose_back(self, value: ir.Value) -> tuple[list[ir.Value], ir.Value | None]:
        """Return the values from the product to the Transpose to [B, Sq, H, Dv], and its output if it is there.

        TorchScript puts a Reshape to the shape that the product already has before the Transpose.
        """
        passed = [value]
        while (node := self._only_reader(passed[-1])) is not None:
            if node.op_type == "Transpose" and "perm" in node.attributes:
                found = tuple(node.attributes["perm"].as_ints()) == _BSHD
                return passed, node.outputs[0] if found else None
            if not self._reshapes_to(node, (self._batch, self._heads, self._rows, self._channels)):
                break
            passed.append(node.outputs[0])
        return passed, None

    def merge_after(self, value: ir.Value) -> ir.Value | None:
        """Return the result as [B, Sq, H*Dv], where that is all that is read of ``value`` [B, Sq, H, Dv]."""
        node = self._only_reader(value)
        merges = node is not None and self._reshapes_to(node, (self._batch, self._rows, self._width))
        return node.outputs[0] if node is not None and merges else None

    def _only_reader(self, value: ir.Value) -> ir.Node | None:
        readers = self._view.readers(value)
        return readers[0][0] if len(readers) == 1 and not value.is_graph_output() else None

    def _reshapes_to(self, node: ir.Node, wanted: tuple[set[Token | None], ...]) -> bool:
        """Return whether a node is a Reshape to these sizes; each may be any of a set, and one may be left open."""
        if node.op_type != "Reshape":
            return False
        sizes = self._view.dims.content(node.inputs[1])
        if sizes is None or len(sizes) != len(wanted):
            return False
        keeps = (
            0 if int_attribute(node, "allowzero", 0) else 4 if len(wanted) == 4 else 2
        )  # axes that 0 leaves as wanted
        open_axes = [a for a, size in enumerate(sizes) if size == -1]
        fits = [
            size == -1 or size in known or (size == 0 and axis < keeps)
            for axis, (size, known) in enumerate(zip(sizes, wanted, strict=True))
        ]
        return all(fits) and len(open_axes) <= 1


def _met(view: View, x: Operand, axis: int, depth: int = 6) -> set[Token | None]:
    """Return the sizes that an axis of ``x`` has in the tensors that it is made of element by element.

    They are one size: of two axes that meet in a rotary embedding neither is repeated from 1, unless it says 1.
    """
    own: set[Token | None] = set()
    if isinstance(x, ir.Value) and axis < (view.rank(x) or 0):
        own = {view.dims.dim(x, axis)}
    call = operation(x)
    if call is None or depth == 0:
        return own
    if call.op_type == "Transpose" and "perm" in call.attributes:
        return own | _met(view, call.inputs[0], call.attributes["perm"][axis], depth - 1)
    if call.op_type not in ("Add", "Sub", "Mul", "Div", "Cast"):
        return own
    return own.union(*(_met(view, i, axis, depth - 1) - {1} for i in call.inputs))
