"""What the nodes between Q K^T and softmax mean: scale, softcap and one mask."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from intfa_onnx.patterns.binary import affine, is_binary
from intfa_onnx.patterns.match import Call, Const, NoMatch, Operand, float_dtype, node_name, required
from intfa_onnx.patterns.view import View
from intfa_onnx.patterns.walk import SAME_ELEMENTS, SAME_VALUE, Path, dequantized, is_idle_dropout

# A score that the graph overwrites with at most this is masked out: exp(-1e4 - max) is 0 in every float type. A factor
# that follows may bring it to the second number, which leaves 0 for all scores above -800.
_MASKED, _MASKED_AND_SCALED = -1e4, -1e3
# Spacing of numbers around an overwritten score that swallows whatever bias is added to it.
_SWALLOWS = 32.0


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
    overwritten: float | None = None  # finite value that masked scores have at this point
    times: ir.Value | None = None  # of zeros and ones: the scores were multiplied by it, and the addition has to follow
    quantized: list[ir.Node] = field(default_factory=list)  # each QuantizeLinear, which a DequantizeLinear undoes


def read_scores(view: View, qk_node: ir.Node, path: Path, core_shape: Operand) -> Scores:
    """Read the steps from Q K^T to the softmax, first to last."""
    meaning = Scores()
    for node, index in path:
        op = node.op_type
        other = node.inputs[1 - index] if op in ("Mul", "Div", "Add", "Sub", "Max", "Min") else None
        if op in SAME_VALUE or (op == "Dropout" and is_idle_dropout(view, node)):
            continue
        if meaning.times is not None and (op not in ("Add", "Sub", "Mul", "Div") or other is None):
            raise NoMatch("the scores are multiplied by a mask, and nothing is added where it is 0")
        if op in ("Mul", "Div") and other is not None:
            _read_factor(view, meaning, node, other)
        elif op in ("Add", "Sub") and other is not None and meaning.times is not None:
            _read_sum(view, meaning, node, other, meaning.times)
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
        elif op == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].producer() in meaning.quantized:
            continue
        elif op == "QuantizeLinear" and dequantized(view, node) is not None:
            meaning.quantized.append(node)
        else:
            raise NoMatch(f"{op} ('{node_name(node)}') between Q K^T and softmax is not understood")
    if meaning.times is not None:
        raise NoMatch("the scores are multiplied by a mask, and nothing is added where it is 0")
    if meaning.overwritten is not None and meaning.overwritten > _MASKED_AND_SCALED:
        raise NoMatch(f"masked scores are scaled to {meaning.overwritten:g}, which does not exclude them")
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
        if meaning.overwritten is not None:
            meaning.overwritten *= factor
        return
    if not _same_for_all_keys(view, other):
        if node.op_type == "Mul" and meaning.times is None and is_binary(view, other):
            meaning.times = other
            meaning.tanh = False
            return
        raise NoMatch(f"'{node_name(node)}' scales the scores by a tensor that may differ from key to key")
    if meaning.mask is not None or meaning.tanh:
        raise NoMatch(f"'{node_name(node)}' scales the scores by a run-time tensor after the mask or softcap")
    meaning.row_scale.append((node.op_type, other))


def _same_for_all_keys(view: View, value: ir.Value) -> bool:
    shape = view.shape(value)
    return shape is not None and (not shape or shape[-1] == 1)


def _read_sum(view: View, meaning: Scores, node: ir.Node, other: ir.Value, b: ir.Value) -> None:
    """Read ``scores * b + low * (1 - b)`` as ``Where(b, scores, low)``."""
    sum_ = affine(view, other, b)
    if sum_ is None or sum_[0] + sum_[1] != 0:
        raise NoMatch(
            f"the scores are multiplied by a mask, and '{node_name(node)}' adds something else than its inverse"
        )
    low = sum_[1] if node.op_type == "Add" else -sum_[1]
    if low > _MASKED:
        raise NoMatch(f"'{node_name(node)}' adds {low:g} to masked scores, which does not exclude them")
    meaning.times = None
    _overwrite(view, meaning, node, Call("Cast", (b,), {"to": int(ir.DataType.BOOL)}), low, kept=1)


def _read_bias(view: View, meaning: Scores, node: ir.Node, other: ir.Value) -> None:
    if meaning.overwritten is not None and not _same_for_all_keys(view, other):
        dtype = float_dtype(view.dtype(node.outputs[0]))
        spacing = -meaning.overwritten * float(dtype.eps)
        if spacing < _SWALLOWS:
            raise NoMatch(
                f"'{node_name(node)}' adds to scores that are overwritten with {meaning.overwritten:g}: rows with "
                "every key masked depend on it"
            )
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
    _overwrite(view, meaning, node, condition, constant.item(), kept=index)


def _overwrite(view: View, meaning: Scores, node: ir.Node, condition: Operand, value: float, kept: int) -> None:
    """Mask out the scores where ``condition`` is false (``kept`` 1) or true (2), which gives them ``value``."""
    dtype = float_dtype(view.dtype(node.outputs[0]))
    excluded = bool(np.isneginf(value))
    if not excluded:
        if meaning.overwritten not in (None, value):
            raise NoMatch(f"'{node_name(node)}' overwrites scores with {value:g}, others have {meaning.overwritten:g}")
        meaning.overwritten = value
    # A finite value is the same for all keys of a fully masked row, which makes it uniform; finfo.min keeps that.
    masked = Const(np.array(-np.inf if excluded else float(dtype.min)).astype(dtype.numpy()))
    unmasked: Operand = Const(np.array(0, dtype.numpy())) if meaning.mask is None else meaning.mask
    meaning.mask = Call("Where", (condition, *((unmasked, masked) if kept == 1 else (masked, unmasked))))
    meaning.may_exclude = meaning.may_exclude or excluded
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
