"""What the nodes between Q K^T and softmax mean: scale, softcap and one mask."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from intfa_onnx.patterns.match import Call, Const, NoMatch, Operand, float_dtype, node_name, required
from intfa_onnx.patterns.view import View
from intfa_onnx.patterns.walk import SAME_ELEMENTS, SAME_VALUE, Path, is_idle_dropout

# A score that the graph overwrites with at most this is masked out: exp(-1e4 - max) is 0 in every float type.
_MASKED = -1e4


@dataclass
class Scores:
    """The meaning of a value between Q K^T and softmax: ``cap(Q K^T * row_scale * scale) + mask``."""

    scale: float = 1.0
    row_scale: list[tuple[str, ir.Value]] = field(
        default_factory=list
    )  # run-time factors, broadcast over keys: go to Q
    mask: Operand | None = None
    softcap: float = 0.0
    tanh: bool = False  # between a Tanh and the Mul that follows it
    shape: Operand | None = None  # shape at this point where it is not the one of Q K^T any more
    may_exclude: bool = False  # some key may get -inf


def read_scores(view: View, qk_node: ir.Node, path: Path, core_shape: Operand) -> Scores:
    """Read the steps from Q K^T to the softmax, first to last."""
    meaning = Scores()
    for node, index in path:
        op = node.op_type
        other = node.inputs[1 - index] if op in ("Mul", "Div", "Add", "Sub", "Max", "Min") else None
        if op in SAME_VALUE or (op == "Dropout" and is_idle_dropout(view, node)):
            continue
        if op in ("Mul", "Div") and other is not None:
            _read_factor(view, meaning, node, other)
        elif op in ("Add", "Sub") and other is not None:
            _read_bias(view, meaning, node, other)
        elif op == "Where":
            _read_where(view, meaning, node, index)
        elif op == "Tanh":
            if meaning.mask is not None or meaning.tanh or meaning.softcap:
                raise NoMatch("Tanh after the mask")
            meaning.tanh = True
            meaning.softcap = 1.0
        elif op in ("Max", "Clip"):
            _read_floor(view, meaning, node, index)
        elif op in SAME_ELEMENTS:
            _read_reshape(view, meaning, node, core_shape)
        else:
            raise NoMatch(f"{op} ('{node_name(node)}') between Q K^T and softmax is not understood")
    if meaning.softcap:
        # cap * tanh(s * f) = cap * tanh((s * f * cap) / cap)
        meaning.scale *= meaning.softcap
    if meaning.mask is not None and meaning.shape is not None:
        meaning.mask = Call("Reshape", (Call("Expand", (meaning.mask, meaning.shape)), core_shape))
    return meaning


def _read_reshape(view: View, meaning: Scores, node: ir.Node, core_shape: Operand) -> None:
    """Follow the shape of the scores, so that a mask given for the new shape can be brought back to that of Q K^T."""
    before = core_shape if meaning.shape is None else meaning.shape
    others = tuple(required(i) for i in node.inputs[1:])
    attributes = {n: a.value for n, a in node.attributes.items()}
    if meaning.mask is not None:
        meaning.mask = Call(node.op_type, (Call("Expand", (meaning.mask, before)), *others), attributes)
    sizes = view.dims.of(node.outputs[0])
    if sizes is not None and all(isinstance(s, int) for s in sizes):
        meaning.shape = Const(np.array(sizes, np.int64))
    elif node.op_type == "Reshape" and (given := view.dims.content(others[0])) and not {0, -1, None} & set(given):
        meaning.shape = others[0]
    else:
        # The target holds 0 or -1: let the operator itself say what comes out, on one byte per score.
        blank = Call("Expand", (Const(np.array(False)), before))
        meaning.shape = Call("Shape", (Call(node.op_type, (blank, *others), attributes),))


def _read_factor(view: View, meaning: Scores, node: ir.Node, other: ir.Value) -> None:
    constant = view.scalar(other)
    if constant is not None and constant != 0:
        factor = constant if node.op_type == "Mul" else 1 / constant
        if meaning.tanh:
            meaning.softcap *= factor
        else:
            meaning.scale *= factor
        if meaning.mask is not None:
            meaning.mask = Call(node.op_type, (meaning.mask, other))
        return
    shape = view.shape(other)
    if shape is None or (shape and shape[-1] != 1):
        raise NoMatch(f"'{node_name(node)}' scales the scores by a tensor that may differ from key to key")
    if meaning.mask is not None or meaning.tanh:
        raise NoMatch(f"'{node_name(node)}' scales the scores by a run-time tensor after the mask or softcap")
    meaning.row_scale.append((node.op_type, other))


def _read_bias(view: View, meaning: Scores, node: ir.Node, other: ir.Value) -> None:
    bias: Operand = Call("Neg", (other,)) if node.op_type == "Sub" else other
    meaning.tanh = False
    meaning.mask = bias if meaning.mask is None else Call("Add", (meaning.mask, bias))
    # Whether a run-time mask holds -inf cannot be known; finfo.min, the usual case of an Add, is finite.
    meaning.may_exclude = meaning.may_exclude or _makes_minus_inf(view, other)


def _read_where(view: View, meaning: Scores, node: ir.Node, index: int) -> None:
    condition, filler = node.inputs[0], node.inputs[3 - index]
    constant = view.constant(filler)
    if condition is None or filler is None or constant is None or constant.size != 1 or not constant.item() <= _MASKED:
        raise NoMatch(f"'{node_name(node)}' overwrites scores with something other than a large negative constant")
    dtype = float_dtype(view.dtype(node.outputs[0]))
    limits = np.finfo(np.float32) if dtype == ir.DataType.BFLOAT16 else np.finfo(dtype.numpy())
    excluded = np.isneginf(constant.item())
    # A finite filler is the same for all keys of a fully masked row, which makes it uniform; finfo.min keeps that.
    masked = Const(np.array(-np.inf if excluded else limits.min).astype(dtype.numpy()))
    unmasked: Operand = Const(np.array(0, dtype.numpy())) if meaning.mask is None else meaning.mask
    branches = (unmasked, masked) if index == 1 else (masked, unmasked)
    meaning.mask = Call("Where", (condition, *branches))
    meaning.may_exclude = meaning.may_exclude or bool(excluded)
    meaning.tanh = False


def _read_floor(view: View, meaning: Scores, node: ir.Node, index: int) -> None:
    """``Max(scores, finfo.min)`` and ``Clip`` with that bound only turn -inf into finfo.min."""
    if node.op_type == "Clip" and len(node.inputs) > 2 and node.inputs[2] is not None:
        raise NoMatch(f"'{node_name(node)}' bounds the scores from above")
    others = [i for k, i in enumerate(node.inputs) if k != index and i is not None]
    floor = view.scalar(others[0]) if len(others) == 1 else None
    if floor is None or floor > _MASKED or meaning.tanh:
        raise NoMatch(f"'{node_name(node)}' bounds the scores from below by more than a mask does")
    if meaning.mask is not None:
        meaning.mask = Call("Max", (meaning.mask, others[0]))
        meaning.may_exclude = False


def _makes_minus_inf(view: View, value: ir.Value) -> bool:
    """Whether a mask is visibly made with -inf: ``Where(c, 0, -inf)`` or a small constant."""
    node = value.producer()
    operands = [value] if node is None or node.op_type != "Where" else list(node.inputs[1:])
    constants = [view.constant(o) for o in operands]
    return any(c is not None and np.issubdtype(c.dtype, np.floating) and bool(np.isneginf(c).any()) for c in constants)
