"""What the nodes between Q K^T and softmax mean: scale, softcap and one mask."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from intfa_onnx.patterns.binary import affine, is_binary, same_truth
from intfa_onnx.patterns.bounds import is_product_of, largest
from intfa_onnx.patterns.match import (
    Call,
    Const,
    NoMatch,
    Operand,
    float_dtype,
    join,
    node_name,
    required,
    shape_slice,
    transpose,
)
from intfa_onnx.patterns.products import Product
from intfa_onnx.patterns.uniform import number_of
from intfa_onnx.patterns.view import View
from intfa_onnx.patterns.walk import SAME_ELEMENTS, Path, Zeroed, dequantized, keeps_value, row_maximum, transposed

# A score that the graph overwrites with at most this is masked out: exp(-1e4 - max) is 0 in every float type. A factor
# that follows may bring it to the second number, which leaves 0 for all scores above -800.
_MASKED, _MASKED_AND_SCALED = -1e4, -1e3
# Spacing of numbers around an overwritten score that swallows whatever bias is added to it.
_SWALLOWS = 32.0


@dataclass
class Scores:
    """The meaning of a value between Q K^T and softmax: ``cap(Q K^T * row_scale * scale) + mask``."""

    scale: float = 1.0
    row_scale: list[tuple[str, Operand]] = field(default_factory=list)  # run-time, the same for all keys: go to Q
    mask: Operand | None = None
    softcap: float = 0.0
    tanh: bool = False  # between a Tanh and the Mul that follows it
    axes: tuple[int, ...] = ()  # which axis of [..., Sq, Skv] each axis is at this point
    reshaped: bool = False
    shape: Operand | None = None  # shape at this point where it is not the one of Q K^T any more, and a mask needs it
    merged_heads: int | None = None  # heads that the first of three axes of Q K^T holds, where the mask has four axes
    may_exclude: bool = False  # some key may get -inf
    overwritten: float | None = None  # finite value that masked scores have at this point
    recast: bool = False  # the scores have another type than the mask
    wide: bool = False  # the mask is of float32, the scores may not be
    times: ir.Value | None = None  # of zeros and ones: the scores were multiplied by it, and the addition has to follow
    biases: list[ir.Value] = field(default_factory=list)  # what was added
    least: float = 0.0  # the least finite number of a mask among them, where one is visible
    quantized: list[ir.Node] = field(default_factory=list)  # each QuantizeLinear, which a DequantizeLinear undoes
    zeroed: list[Zeroed] = field(default_factory=list)  # masks that are applied to P as well, still to be met
    shifted: bool = False  # the maximum of each row was subtracted
    settled: bool = False  # the last of them was, with a finite number: nothing may follow

    def in_order(self) -> bool:
        """Return whether the axes are those of [..., Sq, Skv]."""
        return self.axes == tuple(range(len(self.axes)))


def read_scores(
    view: View,
    qk: Product,
    qk_node: ir.Node,
    path: Path,
    core_shape: Operand,
    zeroed: list[Zeroed],
) -> Scores:
    """Read the steps from Q K^T to the softmax, first to last.

    Args:
        view: facts about the model.
        qk: what ``qk_node`` means.
        qk_node: the product.
        path: the steps from it to the softmax.
        core_shape: of Q K^T, [..., Sq, Skv].
        zeroed: where P becomes 0 after the softmax.

    Raises:
        NoMatch: one of them is not understood.
    """
    meaning = Scores(scale=qk.factor, axes=qk.result_perm, zeroed=list(zeroed))
    reshapes: list[ir.Node] = []  # of which only those before a mask matter to it
    for node, index in path:
        op = node.op_type
        other = node.inputs[1 - index] if op in ("Mul", "Div", "Add", "Sub", "Min") else None
        if keeps_value(view, node):
            changed = view.dtype(node.inputs[0]) != view.dtype(node.outputs[0])
            meaning.recast = meaning.recast or (changed and meaning.mask is not None)
            continue
        if op in SAME_ELEMENTS:
            reshapes.append(node)
            meaning.reshaped = True
        if (reshapes and (op == "Transpose" or not meaning.in_order())) or (op in SAME_ELEMENTS and meaning.times):
            raise NoMatch(f"the scores are reshaped and transposed or multiplied ('{node_name(node)}')")
        if op in SAME_ELEMENTS:
            continue
        if meaning.shifted and op not in ("Mul", "Div"):
            # In a row without any other key the maximum is that of the mask: what follows would count.
            raise NoMatch(f"'{node_name(node)}' changes the scores after the maximum of each row was subtracted")
        if row_maximum(view, node) is not None and meaning.in_order():
            meaning.shifted = True
            continue
        if meaning.times is not None and (op not in ("Add", "Sub", "Mul", "Div") or other is None):
            raise NoMatch("the scores are multiplied by a mask, and nothing is added where it is 0")
        if meaning.settled and op not in ("QuantizeLinear", "DequantizeLinear", "Transpose"):
            raise NoMatch(f"'{node_name(node)}' changes masked scores whose probabilities are overwritten")
        if op not in ("QuantizeLinear", "DequantizeLinear", "Tanh"):
            for reshape in reshapes:
                if not _takes_heads_apart(view, meaning, reshape):
                    _read_reshape(view, meaning, reshape, core_shape)
            reshapes.clear()
        if op in ("Mul", "Div") and other is not None:
            _read_factor(view, meaning, node, other)
        elif op in ("Add", "Sub") and other is not None and meaning.times is not None:
            _read_sum(view, meaning, node, other, meaning.times)
        elif op in ("Add", "Sub") and other is not None:
            _read_bias(view, meaning, node, other)
        elif op == "Sum":
            for term in (x for i, x in enumerate(node.inputs) if i != index):
                _read_bias(view, meaning, node, required(term))
        elif op == "Min" and other is not None and len(node.inputs) == 2:
            _read_minimum(view, meaning, node, other)
        elif op == "Where":
            _read_where(view, meaning, node, index)
        elif op == "Transpose":
            meaning.axes = transposed(meaning.axes, node)
        elif op == "Tanh":
            if meaning.mask is not None or meaning.tanh or meaning.softcap:
                raise NoMatch("Tanh after the mask")
            meaning.tanh = True
            meaning.softcap = 1.0
        elif op in ("Max", "Clip"):
            _read_floor(view, meaning, node, index)
        elif op == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].producer() in meaning.quantized:
            continue
        elif op == "QuantizeLinear" and dequantized(view, node) is not None:
            meaning.quantized.append(node)
        else:
            raise NoMatch(f"{op} ('{node_name(node)}') between Q K^T and softmax is not understood")
    if meaning.times is not None:
        raise NoMatch("the scores are multiplied by a mask, and nothing is added where it is 0")
    if meaning.zeroed:
        raise NoMatch("the probabilities are overwritten where something other than the mask of the scores says so")
    if meaning.overwritten is not None and meaning.overwritten > _MASKED_AND_SCALED:
        raise NoMatch(f"masked scores are scaled to {meaning.overwritten:g}, which does not exclude them")
    if meaning.softcap:
        # cap * tanh(s * f) = cap * tanh((s * f * cap) / cap)
        meaning.scale *= meaning.softcap
        meaning.softcap = abs(meaning.softcap)  # tanh is odd
    if meaning.mask is not None and meaning.shape is not None:
        meaning.mask = Call("Reshape", (Call("Expand", (meaning.mask, meaning.shape)), core_shape))
    return meaning


def _in_order(view: View, meaning: Scores, x: ir.Value) -> Operand:
    """Return a tensor that meets the scores here with its axes as those of [..., Sq, Skv] are."""
    if meaning.in_order():
        return x
    rank, wanted = view.rank(x), len(meaning.axes)
    if rank is None or rank > wanted:
        raise NoMatch(f"'{x.name}', which meets transposed scores, has an unknown number of axes")
    wide = x if rank == wanted else Call("Unsqueeze", (x,), {"axes": list(range(wanted - rank))})
    return transpose(wide, tuple(meaning.axes.index(axis) for axis in range(wanted)))


def _takes_heads_apart(view: View, meaning: Scores, node: ir.Node) -> bool:
    """Read the Reshape of [B*H, Sq, Skv] to [B, H, Sq, Skv] for masks that heads share; False where it is another."""
    before, after, mask = view.dims.of(node.inputs[0]), view.dims.of(node.outputs[0]), meaning.mask
    if before is None or after is None or (len(before), len(after)) != (3, 4) or before[1:] != after[2:]:
        return False
    heads, sizes = after[1], view.dims.of(mask) if isinstance(mask, ir.Value) else None
    of_scores = sizes is not None and len(sizes) == 3 and sizes[0] == before[0]
    if not isinstance(heads, int) or meaning.shape is not None or not (mask is None or of_scores):
        return False
    meaning.merged_heads = heads
    if mask is not None:
        meaning.mask = heads_apart(mask, heads)
    return True


def heads_apart(x: Operand, heads: int) -> Operand:
    """[B*H, ...] -> [B, H, ...], of three axes."""
    return Call("Reshape", (x, join(Const(np.array([-1, heads], np.int64)), shape_slice(x, -2, None))))


def _read_reshape(view: View, meaning: Scores, node: ir.Node, core_shape: Operand) -> None:
    """Follow the shape of the scores, so that a mask given for the new shape can be brought back to that of Q K^T."""
    if meaning.merged_heads is not None:
        blank = Call("Expand", (Const(np.array(False)), core_shape))
        meaning.shape, meaning.merged_heads = Call("Shape", (heads_apart(blank, meaning.merged_heads),)), None
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
        if meaning.overwritten is not None and factor > 1:
            raise NoMatch(f"'{node_name(node)}' scales masked scores up, and would take the least float out of range")
        if meaning.softcap:  # what follows the Tanh is outside of it, whatever stands between
            meaning.softcap *= factor
        else:
            meaning.scale *= factor
        if meaning.mask is not None:
            factor_of_mask = _of_mask_type(meaning, other)
            meaning.mask = Call(node.op_type, (meaning.mask, factor_of_mask))
        meaning.least = min(0.0, meaning.least * factor)
        if meaning.overwritten is not None:
            meaning.overwritten *= factor
        return
    if not _same_for_all_keys(view, meaning, other):
        if node.op_type == "Mul" and meaning.times is None and meaning.in_order() and is_binary(view, other):
            meaning.times = other
            meaning.tanh = False
            return
        raise NoMatch(f"'{node_name(node)}' scales the scores by a tensor that may differ from key to key")
    if meaning.mask is not None or meaning.softcap:
        raise NoMatch(f"'{node_name(node)}' scales the scores by a run-time tensor after the mask or softcap")
    if (meaning.shape is not None or meaning.merged_heads is not None) and (view.rank(other) or 0) > 2:
        raise NoMatch(f"'{node_name(node)}' scales reshaped scores by a run-time tensor")
    meaning.row_scale.append((node.op_type, _in_order(view, meaning, other)))


def _same_for_all_keys(view: View, meaning: Scores, value: ir.Value) -> bool:
    shape = view.shape(value)
    of_keys = meaning.axes.index(len(meaning.axes) - 1) - len(meaning.axes)  # counted from the back
    return shape is not None and (-of_keys > len(shape) or shape[of_keys] == 1)


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
    if meaning.overwritten is not None and not _same_for_all_keys(view, meaning, other):
        dtype = float_dtype(view.dtype(node.outputs[0]))
        spacing = -meaning.overwritten * float(dtype.eps)
        if spacing < _SWALLOWS:
            raise NoMatch(
                f"'{node_name(node)}' adds to scores that are overwritten with {meaning.overwritten:g}: rows with "
                "every key masked depend on it"
            )
    bias = _in_order(view, meaning, other)
    bias = Call("Neg", (bias,)) if node.op_type == "Sub" else bias
    meaning.biases.append(other)
    meaning.tanh = False
    bias = _of_mask_type(meaning, bias)
    meaning.mask = bias if meaning.mask is None else Call("Add", (meaning.mask, bias))
    # Whether a run-time mask holds -inf cannot be known; finfo.min, the usual case of an Add, is finite.
    numbers = _visible_numbers(view, other) * (-1 if node.op_type == "Sub" else 1)
    meaning.may_exclude = meaning.may_exclude or bool(np.isneginf(numbers).any())
    meaning.least = min(meaning.least, float(numbers[np.isfinite(numbers)].min(initial=0)))


def _read_where(view: View, meaning: Scores, node: ir.Node, index: int) -> None:
    condition, filler = node.inputs[0], node.inputs[3 - index]
    value = number_of(view, filler)
    if condition is None or value is None or not value <= _MASKED:
        raise NoMatch(f"'{node_name(node)}' overwrites scores with something other than a large negative constant")
    kept = index == 1
    met = [z for z in meaning.zeroed if same_truth(condition, kept, z.condition, z.kept)]
    if met:
        # What it excludes is 0 whatever the row holds, as after -inf; a row without any other key too.
        others = [b for b in meaning.biases if not (is_product_of(view, b) or largest(view, b) < -_MASKED_AND_SCALED)]
        if np.isfinite(value) and (others or meaning.overwritten is not None):
            raise NoMatch(f"'{node_name(node)}' masks keys whose probabilities are overwritten, and not those alone")
        meaning.zeroed = [z for z in meaning.zeroed if z not in met]
        meaning.settled = bool(np.isfinite(value))
        may_be_nan = meaning.may_exclude or (not meaning.settled and all(z.by_factor for z in met))
        _overwrite(view, meaning, node, _in_order(view, meaning, condition), -np.inf, index)
        meaning.may_exclude = may_be_nan
        return
    _overwrite(view, meaning, node, _in_order(view, meaning, condition), value, kept=index)


def _of_mask_type(meaning: Scores, x: Operand) -> Operand:
    """Return what is to meet the mask in one type with it: float32, which may change the mask's, or that of both."""
    if meaning.recast:
        _widen(meaning)
    return _float32(x) if meaning.wide else x


def _widen(meaning: Scores) -> None:
    if not meaning.wide:
        meaning.wide, meaning.mask = True, None if meaning.mask is None else _float32(meaning.mask)


def _float32(x: Operand) -> Operand:
    return Call("Cast", (x,), {"to": int(ir.DataType.FLOAT)})


def _read_minimum(view: View, meaning: Scores, node: ir.Node, other: ir.Value) -> None:
    """Read ``Min(scores, Where(c, largest, least))``, of the largest and the least number of the type, as a Where."""
    where, dtype = other.producer(), float_dtype(view.dtype(other))
    condition, *fillers = where.inputs if where is not None and where.op_type == "Where" else (None,)
    numbers = [n for n in (number_of(view, x) for x in fillers) if n is not None]
    if condition is None or len(numbers) != 2 or max(numbers) < float(dtype.max) or min(numbers) > float(dtype.min):
        raise NoMatch(f"'{node_name(node)}' bounds the scores by something else than the largest and the least number")
    if meaning.mask is not None:
        raise NoMatch(f"'{node_name(node)}' bounds masked scores")  # where they are -inf they stay so
    kept = 1 if numbers[0] > numbers[1] else 2
    _overwrite(view, meaning, node, _in_order(view, meaning, condition), min(numbers), kept)


def _overwrite(view: View, meaning: Scores, node: ir.Node, condition: Operand, value: float, kept: int) -> None:
    """Mask out the scores where ``condition`` is false (``kept`` 1) or true (2), which gives them ``value``."""
    dtype = float_dtype(view.dtype(node.outputs[0]))
    excluded = bool(np.isneginf(value))
    if not excluded:
        # In a row without a key the greatest of all such numbers decides which keys it averages.
        before = meaning.least if meaning.least < min(value, _MASKED) else meaning.overwritten
        if before not in (None, value):
            raise NoMatch(f"'{node_name(node)}' overwrites scores with {value:g}, others have {before:g}")
        meaning.overwritten = value
        # A finite value is the same for all keys of a fully masked row, which makes it uniform. finfo.min keeps that;
        # float16's does not, for the operator adds in float32, where it swallows no score.
        if dtype == ir.DataType.FLOAT16:
            _widen(meaning)
    if meaning.recast:
        _widen(meaning)
    if meaning.wide:
        dtype = ir.DataType.FLOAT
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
        if meaning.recast or view.dtype(node.outputs[0]) == ir.DataType.FLOAT16:
            _widen(meaning)
        least: Operand = Const(np.array(np.finfo(np.float32).min)) if meaning.wide else others[0]
        meaning.mask = Call("Max", (meaning.mask, least))
        meaning.may_exclude = False


def _visible_numbers(view: View, value: ir.Value) -> np.ndarray:
    """Return the numbers that a mask is visibly made with: those of ``Where(c, 0, -inf)``, or of a small constant."""
    node = value.producer()
    operands = [value] if node is None or node.op_type != "Where" else list(node.inputs[1:])
    constants = [c for o in operands if (c := view.constant(o)) is not None and np.issubdtype(c.dtype, np.floating)]
    return np.concatenate([c.astype(np.float64).reshape(-1) for c in constants]) if constants else np.zeros(0)
