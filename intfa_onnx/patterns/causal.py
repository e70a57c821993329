"""Causal and sliding-window masks as attributes of the operator, instead of a tensor [B, 1, Sq, Skv].

The mask is read as a conjunction of conditions on query i, key j and batch (``elements``). Conditions on ``j - i``
become ``is_causal`` and the window, conditions that always hold go, and what is left, the padding, becomes a mask
[B, 1, 1, Skv] that all attentions with this mask share. A mask that is not understood as a whole stays as it is.

Rows without a key decide whether that is exact. Where the mask excludes with -inf they give 0 (or NaN) before, and 0 in
the operator. Where it excludes with the least float they average V over *all* keys, whereas the operator knows only the
keys that the attributes leave: the average is then put into these rows afterwards (``_average_rows``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import onnx_ir as ir

from intfa_onnx.patterns.bounds import largest
from intfa_onnx.patterns.conjunction import AtLeastZero, Conjunction, Given
from intfa_onnx.patterns.elements import Elements, positions
from intfa_onnx.patterns.linear import Axis, Linear, size_form
from intfa_onnx.patterns.match import (
    RESULT,
    AttentionMatch,
    Call,
    Const,
    Operand,
    Shared,
    operation,
    shape_slice,
    substitute,
)
from intfa_onnx.patterns.uniform import number_of, only_nonzero
from intfa_onnx.patterns.view import View

_KEY, _QUERY = Axis(1), Axis(2)
_SAME_LENGTH = ("Add", "Sub", "Mul", "Div", "Neg", "Cast", "Identity", "Slice", "Concat")  # as made by absorptions
_SMALL = 2.0**-26  # of the least float: what is lost when added to it, even twice, in any float type
# A score that gets at most this is out, unless its whole row does: exp(-1e4 - max) is 0 in every float type.
_OUT = -1e4


class _Stays(Exception):
    """Ends the reading of a mask; carries the reason."""


@dataclass(frozen=True)
class _Layer:
    """0 where all of ``attended`` holds, else ``fill``. A mask is a sum of layers."""

    attended: Conjunction
    fill: float
    whole: Operand  # of which this is the meaning

    def padding(self) -> tuple[Given, ...]:
        """Return the conditions on the key alone."""
        return tuple(t for t in self.attended if isinstance(t, Given))


@dataclass(frozen=True)
class _Band:
    """Which keys a query attends: ``i + offset - left <= j <= i + offset + right``; None: no limit."""

    left: int | None
    right: int | None
    offset: Linear
    square: bool  # as many queries as keys

    def any_key(self) -> bool:
        """Return whether every query provably attends a key."""
        if not self.offset.never_negative():
            return False
        return self.left is None or self.square or self.offset != Linear()


def absorb_positions(view: View, match: AttentionMatch) -> AttentionMatch:
    """Give the conditions on positions of the mask as attributes, and leave the padding as a small mask."""
    mask, rank = match.inputs.get("attn_mask"), 4 if match.attributes.get("q_num_heads") else match.rank
    limits = ("window_left", "window_right")
    if mask is None or rank != 4 or "nonpad_kv_seqlen" in match.inputs:
        return match
    if match.attributes.get("is_causal") or any(match.attributes.get(name, -1) >= 0 for name in limits):
        return match
    reader = Elements(view)
    try:
        return _absorbed(view, match, mask, reader)
    except _Stays as reason:
        # Masks without a condition on j - i (padding, a bias) are not worth a word.
        note = (f"the mask stays a tensor of queries x keys: {reason}",) if reader.of_positions() else ()
        return replace(match, notes=(*match.notes, *note))


def _absorbed(view: View, match: AttentionMatch, mask: Operand, reader: Elements) -> AttentionMatch:
    layers, biases = _layers(view, reader, mask)
    if _is_small(view, mask):
        return match
    lengths = _lengths(view, match, mask, reader)
    bands = {_band(layer.attended, lengths, "past_key" in match.inputs) for layer in layers}
    if len(bands) != 1:
        raise _Stays("its parts limit the keys differently")
    band = bands.pop()
    limited = band.left is not None or band.right is not None
    lowest = float(match.dtype.min)
    padded = [layer for layer in layers if layer.padding()]
    if biases and (len(layers) > 1 or not limited):
        raise _Stays("it is added to a bias")
    if len(padded) > 1 or (len(layers) > 1 and not all(2 * layer.fill < lowest for layer in layers)):
        raise _Stays("it is a sum of masks")
    layer, outputs = padded[0] if padded else layers[0], match.outputs
    padding, fill, place = layer.padding(), layer.fill, _place_of(view, layer.whole)

    def shared(x: Operand) -> Operand:
        return Shared(x, place) if isinstance(x, Call) and place is not None else x

    small = _conjunction(padding, shared)
    # Two masks of the least float make -inf together: what their band excludes is out, whatever else happens.
    excludes = len(layers) > 1 or not np.isfinite(fill)
    if not excludes and limited:
        if not padding and not band.any_key():
            raise _Stays("a query may have no key")
        if padding and fill > lowest * 0.9:
            raise _Stays(f"rows without a key keep their scores ({fill:g} is not the least float)")
        if not all(largest(view, b) < _SMALL * -lowest for b in biases):
            raise _Stays("it is added to a bias that may be as large")
        if padding:
            pv_out, result = next(iter(match.outputs.items()))
            average = _average_rows(view, match, band, padding, shared)
            outputs = {**match.outputs, pv_out: substitute(result, average)}
    elif np.isfinite(fill) and small is not None:
        kind = ir.DataType.FLOAT if match.dtype == ir.DataType.FLOAT16 else match.dtype  # see _overwrite of scores.py
        values = (Const(np.array(x, kind.numpy())) for x in (0, max(fill, float(kind.min))))
        small = shared(Call("Where", (small, *values)))
    if biases:
        bias = reduce(lambda a, b: Call("Add", (a, b)), biases)
        minus_inf = Const(np.array(-np.inf).astype(match.dtype.numpy()))
        masked = None if small is None else Call("Where", (small, bias, minus_inf))
        # A bias may be made behind the mask, and anew for each attention.
        share = place is not None and all(view.is_before(v, place) for v in _values(bias))
        small = bias if masked is None else shared(masked) if share else masked
    inputs = {name: x for name, x in match.inputs.items() if name != "attn_mask"}
    absorbed, notes = match.absorbed, match.notes
    if small is not None:
        inputs["attn_mask"] = small
    else:
        absorbed = tuple(a for a in absorbed if a != "mask")
        notes = tuple(n for n in notes if "every key masked" not in n or not band.any_key())
    attributes, names = _attributes(band)
    return replace(
        match,
        inputs=inputs,
        attributes={**match.attributes, **attributes},
        outputs=outputs,
        absorbed=(*absorbed, *names),
        notes=notes,
    )


def _is_small(view: View, mask: Operand) -> bool:
    """Return whether the mask does not depend on the query anyway."""
    return all((view.dims.of(v) or (0, 0))[-2:-1] in ((), (1,)) for v in _values(mask))


def _attributes(band: _Band) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the attributes of a band, and what the report calls it."""
    attributes: dict[str, Any] = {}
    names: tuple[str, ...] = ()
    if band.right == 0:
        attributes["is_causal"], names = 1, ("causal",)
    elif band.right is not None:
        attributes["window_right"] = band.right
    if band.left is not None:
        attributes["window_left"] = band.left
    if attributes and band.offset != Linear():
        attributes["causal_alignment"] = "lower_right"
    window = band.left is not None or bool(band.right)
    return attributes, (*names, "window") if window else names


# ---- reading ----


def _layers(view: View, reader: Elements, mask: Operand) -> tuple[list[_Layer], list[Operand]]:
    """Read a mask as a sum of layers and of biases, which are anything else.

    Raises:
        _Stays: there is no layer in it.
    """
    call = operation(mask)
    if call is not None and call.op_type == "Add":
        return _added(view, reader, call)
    floor = number_of(view, call.inputs[1]) if call is not None and call.op_type == "Max" else None
    if call is not None and floor is not None and len(call.inputs) == 2:
        layers, biases = _layers(view, reader, call.inputs[0])
        if floor > _OUT or len(layers) > 1 or biases:
            raise _Stays("it bounds a sum of masks, or a bias")
        return [replace(layers[0], fill=max(layers[0].fill, floor), whole=mask)], []
    if call is not None and (call.op_type == "Not" or _dtype(view, mask) == ir.DataType.BOOL):
        return [_layer(reader, mask, mask, True, -np.inf)], []
    fill = only_nonzero(view, mask)
    if fill is not None and fill <= _OUT:
        return [_layer(reader, mask, mask, False, fill)], []
    if call is not None and call.op_type == "Where":
        condition, chosen, other = call.inputs
        for bias, filler, wanted in ((chosen, other, True), (other, chosen, False)):
            number = number_of(view, filler)
            if number is not None and number <= _OUT:
                return [_layer(reader, condition, mask, wanted, number)], [bias]
    raise _Stays("it adds more than 0 or one large negative number")


def _added(view: View, reader: Elements, call: Call) -> tuple[list[_Layer], list[Operand]]:
    layers: list[_Layer] = []
    biases: list[Operand] = []
    unread: list[_Stays] = []
    for part in call.inputs:
        try:
            of_part = _layers(view, reader, part)
        except _Stays as reason:
            unread.append(reason)
            biases.append(part)
        else:
            layers += of_part[0]
            biases += of_part[1]
    if not layers:
        raise unread[0]
    return layers, biases


def _layer(reader: Elements, condition: Operand, whole: Operand, wanted: bool, fill: float) -> _Layer:
    rank = reader.rank(condition)
    found = reader.truth(condition, positions(rank), wanted) if rank is not None else None
    if found is None:
        raise _Stays(f"{reader.obstacle or 'a part'} is not understood")
    return _Layer(found, fill, whole)


def _dtype(view: View, x: Operand) -> ir.DataType | None:
    return view.dtype(x) if isinstance(x, ir.Value) else None


def _lengths(view: View, match: AttentionMatch, mask: Operand, reader: Elements) -> dict[Axis, set[Linear]]:
    """Return what is known of the number of queries and keys: the mask's own axes, its ranges, Q and K."""
    found: dict[Axis, set[Linear | None]] = {axis: set(reader.lengths.get(axis, ())) for axis in (_KEY, _QUERY)}
    for axis, name in ((_KEY, "K"), (_QUERY, "Q")):
        if isinstance(mask, ir.Value) and (own := (view.rank(mask) or 0) - axis.from_back) >= 0:
            length = size_form(view.dims.dim(mask, own))
            found[axis] |= {length} - {Linear(1)}
        if name == "Q" or "past_key" not in match.inputs:
            found[axis].add(_operand_length(view, match.inputs[name], 1 if match.attributes.get("q_num_heads") else 2))
    return {axis: {length for length in of_axis if length is not None} for axis, of_axis in found.items()}


def _operand_length(view: View, x: Operand, axis: int) -> Linear | None:
    if isinstance(x, ir.Value):
        rank = view.rank(x)
        return size_form(view.dims.dim(x, axis)) if rank is not None and axis < rank else None
    if isinstance(x, Call) and x.op_type == "Transpose":
        return _operand_length(view, x.inputs[0], x.attributes["perm"][axis])
    if isinstance(x, Call) and (x.op_type in _SAME_LENGTH or (x.op_type == "Reshape" and axis == 1)):
        return _operand_length(view, x.inputs[0], axis)
    return None


def _band(attended: Conjunction, lengths: dict[Axis, set[Linear]], has_past: bool) -> _Band:
    """Return the limits on ``j - i`` of a conjunction.

    Raises:
        _Stays: a condition is none of that kind, or the offset is not one that the operator knows.
    """
    uppers: list[Linear] = []
    lowers: list[Linear] = []
    for term in attended:
        if not isinstance(term, AtLeastZero):
            continue
        of_key, of_query = (term.form.factor(a) for a in (_KEY, _QUERY))
        rest = term.form - Linear.of(_KEY) * of_key - Linear.of(_QUERY) * of_query
        if (of_key, of_query) not in ((-1, 1), (1, -1)) or any(isinstance(a, Axis) for a, _ in rest.terms):
            raise _Stays("a condition compares something other than the positions of query and key")
        (uppers if of_key == -1 else lowers).append(rest)
    offsets = {k - q for k in lengths[_KEY] for q in lengths[_QUERY]}
    square = Linear() in offsets and not has_past
    # Offset 0 is what the operator takes without a past; the past's length is what it takes with lower_right.
    for offset in ([] if has_past else [Linear()]) + sorted(offsets, key=lambda o: len(o.terms)):
        rights = [(u - offset).number() for u in uppers]
        lefts = [(low + offset).number() for low in lowers]
        if all(n is not None and n >= 0 for n in (*rights, *lefts)):
            left, right = (min((n for n in ns if n is not None), default=None) for ns in (lefts, rights))
            return _Band(left, right, offset, square)
    raise _Stays("the offset between query and key positions is not provably 0 or Skv - Sq")


# ---- what is left ----


def _place_of(view: View, mask: Operand) -> ir.Node | None:
    """Return the node that makes a mask: what reads parts of the mask can stand before it, for all users to share."""
    values = [v for v in _values(mask) if not view.is_constant(v)]
    return values[0].producer() if len(values) == 1 else None


def _values(x: Operand) -> list[ir.Value]:
    if isinstance(x, Call):
        return [v for i in x.inputs for v in _values(i)]
    return [x] if isinstance(x, ir.Value) else []


def _conjunction(padding: tuple[Given, ...], shared: Callable[[Operand], Operand]) -> Operand | None:
    """Return the boolean mask [.., 1, Skv] of all conditions on the key alone; None where there is none."""
    terms = [t.mask() for t in padding]
    return shared(reduce(lambda a, b: Call("And", (a, b)), terms)) if terms else None


def _average_rows(
    view: View, match: AttentionMatch, band: _Band, padding: tuple[Given, ...], shared: Callable[[Operand], Operand]
) -> Operand:
    """Return the result with the mean of V in each row whose keys are all padding.

    Raises:
        _Stays: these rows or the mean cannot be stated.
    """
    packed, small = bool(match.attributes.get("q_num_heads")), _conjunction(padding, shared)
    assert small is not None
    if any((view.dims.of(t.value) or ())[1:3] != (1, 1) and not t.without_heads for t in padding):
        raise _Stays("its padding is not [batch, 1, 1, keys]")
    if not band.square and band.offset == Linear():
        raise _Stays("rows without a key average over all keys, and the queries are not at the last places")
    # Of each key's place: whether a query there has no key.
    if band.left is None and band.right == 0:
        seen = Call("CumSum", (Call("Cast", (small,), {"to": int(ir.DataType.INT32)}), Const(np.array(3, np.int64))))
        empty = Call("Equal", (seen, Const(np.array(0, np.int32))))
    elif band.left is not None and band.right is not None:
        window = {"kernel_shape": [1, band.left + 1 + band.right], "pads": [0, band.left, 0, band.right]}
        seen = Call("MaxPool", (Call("Cast", (small,), {"to": int(ir.DataType.FLOAT)}),), window)
        empty = Call("Less", (seen, Const(np.array(0.5, np.float32))))
    else:
        raise _Stays("rows without a key average over all keys, and only one side is limited")
    if not band.square:
        # The queries are at the last places.
        start = Call("Neg", (_size(match.inputs["Q"], 1 if packed else 2),))
        empty = Call("Slice", (shared(empty), start, _sizes(np.iinfo(np.int64).max), _sizes(3)))
    column = Call("Reshape", (empty, _sizes(0, -1, 1))) if packed else Call("Transpose", (empty,), _SWAP)
    mean = _mean_of_values(match, packed)
    return Call("Where", (shared(column) if band.square else column, mean, RESULT))


_SWAP = {"perm": [0, 1, 3, 2]}


def _mean_of_values(match: AttentionMatch, packed: bool) -> Operand:
    """Return the mean of V over all keys: [B, Hq, 1, Dv], or [B, 1, Hq*Dv] if ``packed``."""
    if "past_value" in match.inputs:
        present = match.states[1]
        if present is None:
            raise _Stays("rows without a key average over all keys, also those of the past")
        mean: Operand = Call("ReduceMean", (present,), {"axes": [2], "keepdims": 1})
        mean = Call("Reshape", (mean, _sizes(0, 1, -1))) if packed else mean
    else:
        mean = _mean(match.inputs["V"], 1 if packed else 2)
    heads, kv_heads, size = match.num_heads, match.kv_num_heads, match.head_dim_v
    # Around products of the graph, key heads that are not known to be fewer are as many as the query's, or one.
    broadcasts = not packed and (kv_heads == 1 or (match.place is not match.anchor and "gqa" not in match.absorbed))
    if broadcasts or (heads is not None and heads == kv_heads):
        return mean
    if heads is None or kv_heads is None or size is None:
        raise _Stays("rows without a key average over all keys, and the number of heads is not known")
    grouped = Call("Reshape", (mean, _sizes(0, kv_heads, 1, size)))
    repeated = Call("Expand", (grouped, _sizes(1, 1, heads // kv_heads, 1)))
    return Call("Reshape", (repeated, _sizes(0, 1, -1) if packed else _sizes(0, heads, 1, size)))


def _mean(x: Operand, axis: int) -> Operand:
    """Return the mean along an axis, taken before nodes that only rearrange: the mean is small."""
    if isinstance(x, Call) and x.op_type == "Transpose":
        return Call("Transpose", (_mean(x.inputs[0], x.attributes["perm"][axis]),), x.attributes)
    if isinstance(x, Call) and x.op_type == "Reshape" and axis == 1:  # [B, S, H, D] -> [B, S, H*D]
        return Call("Reshape", (_mean(x.inputs[0], 1), *x.inputs[1:]))
    return Call("ReduceMean", (x,), {"axes": [axis], "keepdims": 1})


def _size(x: Operand, axis: int) -> Operand:
    """Return one size, as a tensor [1]."""
    if isinstance(x, Call) and x.op_type == "Transpose":
        return _size(x.inputs[0], x.attributes["perm"][axis])
    if isinstance(x, Call) and (x.op_type in _SAME_LENGTH or (x.op_type == "Reshape" and axis == 1)):
        return _size(x.inputs[0], axis)
    return shape_slice(x, axis, axis + 1)


def _sizes(*sizes: int) -> Const:
    return Const(np.array(sizes, np.int64))
