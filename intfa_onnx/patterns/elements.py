"""The element of a tensor at a symbolic position: what an exporter's mask computation says of query i and key j.

A mask is computed by a few dozen nodes, each exporter has its own, and most only move elements: Range, Unsqueeze,
Expand, Gather, comparison, And. Here they are followed back from one element, whose position is given by linear forms.
A number comes back as a linear form, a truth as a conjunction. An axis of symbolic size is taken to have the size of
the axis it meets, not to be repeated from one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from intfa_onnx.patterns.conjunction import (
    COMPARISONS,
    FALSE,
    TRUE,
    Conjunction,
    Given,
    at_least_zero,
    both,
    decided,
    either,
)
from intfa_onnx.patterns.linear import Axis, Linear, size_form
from intfa_onnx.patterns.match import Call, Const, Operand, node_name, operation
from intfa_onnx.patterns.uniform import FLOATS, number_of, only_nonzero, tensor_of
from intfa_onnx.patterns.view import View

Index = tuple[Linear, ...]
_ZERO = Linear()
_MAX_DEPTH = 64


def positions(rank: int) -> Index:
    """Return the position in a mask of ``rank`` axes: axis 1 from the back is the key's, 2 the query's."""
    return tuple(Linear.of(Axis(rank - a)) for a in range(rank))


class Elements:
    """Reads elements of one mask.

    Attributes:
        lengths: for an axis of the mask, lengths that ranges along it have.
        obstacle: the first operator that was not understood.
    """

    def __init__(self, view: View):
        self.lengths: dict[Axis, list[Linear]] = {}
        self.obstacle = ""
        self._compares = False
        self._view = view
        self._depth = 0
        self._parts = 0  # how many Slices and the like lie between: a range is then longer than the axis
        self._truths: dict[tuple[Operand, Index, bool], Conjunction | None] = {}

    def of_positions(self) -> bool:
        """Return whether the mask is made of the positions of queries and keys."""
        return self._compares or len({Axis(1), Axis(2)} & set(self.lengths)) == 2

    # ---- numbers ----

    def integer(self, x: Operand | None, index: Index) -> Linear | None:
        """Return the element of an integer tensor (also one cast to a float); None where it is not understood."""
        if x is None or self._depth > _MAX_DEPTH:
            return None
        self._depth += 1
        found = self._integer(x, self._broadcast(x, index))
        self._depth -= 1
        return found

    def _integer(self, x: Operand, index: Index) -> Linear | None:
        number = number_of(self._view, x)
        if number is not None:
            return Linear(int(number)) if number == int(number) else None
        call = operation(x)
        if call is None:
            return self._counting_constant(x, index) or self._scalar(x)
        op, inputs = call.op_type, call.inputs
        if op == "Range":
            return self._range(inputs, index)
        if op in ("Add", "Sub"):
            a, b = (self.integer(i, index) for i in inputs)
            return None if a is None or b is None else a + b if op == "Add" else a - b
        if op == "Neg":
            a = self.integer(inputs[0], index)
            return None if a is None else -a
        if op == "Mul":
            a, b = (self.integer(i, index) for i in inputs)
            if a is None or b is None or (a.terms and b.terms):
                return None
            return b * a.constant if not a.terms else a * b.constant
        if op == "Cast":
            return self._cast_integer(inputs[0], index)
        if op == "Where":
            truth = self.truth(inputs[0], index, True)
            return self.integer(inputs[1 if truth == TRUE else 2], index) if truth in (TRUE, FALSE) else None
        if op == "CumSum":
            # The sum of what is 0 everywhere; axis 0 is any place.
            return _ZERO if self.integer(inputs[0], (Linear.of(Axis(0)),) * len(index)) == _ZERO else None
        if op == "Concat":
            self._parts += 1
            found = self._joined(call, index)
            self._parts -= 1
            return found
        moved = self._moved(call, x, index)
        self._parts += op in _TAKES_PART
        found = self.integer(*moved) if moved is not None else None
        self._parts -= op in _TAKES_PART
        return found if found is not None else self._scalar(x)

    def _range(self, inputs: Sequence[Operand], index: Index) -> Linear | None:
        start, limit, step = (self.integer(i, ()) for i in inputs)
        factor = step.number() if step is not None else None
        if start is None or factor is None:
            return None
        if limit is not None and factor == 1:
            self._learn(index[0], limit - start)
        return start + index[0] * factor

    def _learn(self, place: Linear, length: Linear | None) -> None:
        """Remember the length of an axis that ``place`` goes along, from its first element to its last."""
        for axis, _ in place.terms:
            if (
                isinstance(axis, Axis)
                and place == Linear.of(axis)
                and length not in (None, Linear(1))
                and not self._parts
            ):
                self.lengths.setdefault(axis, []).append(length)

    def _cast_integer(self, source: Operand, index: Index) -> Linear | None:
        if isinstance(source, ir.Value) and self._view.dtype(source) == ir.DataType.BOOL:
            truth = self.truth(source, index, True)
            return Linear(1) if truth == TRUE else _ZERO if truth == FALSE else None
        return self.integer(source, index)

    def _joined(self, call: Call, index: Index) -> Linear | None:
        """Element of a Concat: of the part at a known place, or the form that a first part of one element continues."""
        along = call.attributes["axis"] % len(index)
        place = index[along].number()
        sizes = [self._size(part, along) for part in call.inputs]
        if place is not None:
            for part, size in zip(call.inputs, sizes, strict=True):
                length = size.number() if size is not None else None
                if length is None:
                    return None
                if place < length:
                    return self.integer(part, (*index[:along], Linear(place), *index[along + 1 :]))
                place -= length
            return None
        if len(call.inputs) != 2 or sizes[0] != Linear(1):
            return None
        first = self.integer(call.inputs[0], (*index[:along], _ZERO, *index[along + 1 :]))
        before = self.integer(call.inputs[1], (*index[:along], Linear(-1), *index[along + 1 :]))
        if first is None or first != before:
            return None
        return self.integer(call.inputs[1], (*index[:along], index[along] - 1, *index[along + 1 :]))

    def _counting_constant(self, x: Operand, index: Index) -> Linear | None:
        """Element of a constant tensor that counts along one axis, as a buffer of positions does."""
        array = tensor_of(self._view, x)
        if array is None or array.dtype.kind not in "iu" or array.ndim != len(index):
            return None
        wide = [a for a, size in enumerate(array.shape) if size != 1]
        flat = array.reshape(-1).astype(np.int64)
        if len(wide) != 1 or not np.array_equal(flat, flat[0] + (flat[1] - flat[0]) * np.arange(flat.size)):
            return None
        return index[wide[0]] * int(flat[1] - flat[0]) + int(flat[0])

    def _scalar(self, x: Operand) -> Linear | None:
        """A size, or a number that the graph computes and that is the same for the whole mask."""
        sizes = self._view.dims.of(x) if isinstance(x, ir.Value) else None
        if not isinstance(x, ir.Value) or sizes is None or any(s != 1 for s in sizes):
            return None
        if self._view.dtype(x) not in (ir.DataType.INT64, ir.DataType.INT32):
            return None
        content = self._view.dims.content(x)
        known = content[0] if content is not None and len(content) == 1 else None
        return Linear.of(x) if known is None else size_form(known)

    # ---- truths ----

    def truth(self, x: Operand | None, index: Index, wanted: bool) -> Conjunction | None:
        """Return when an element is not zero (or true), or when it is zero, if not ``wanted``."""
        if x is None or self._depth > _MAX_DEPTH:
            return None
        index = self._broadcast(x, index)
        key = (x, index, wanted)
        if key not in self._truths:
            self._depth += 1
            obstacle, found = self.obstacle, self._truth(x, index, wanted)
            self._depth -= 1
            understood = found is not None and not any(isinstance(t, Given) for t in found)
            if isinstance(x, ir.Value) and not understood and (given := self._given(x, index, wanted)) is not None:
                # The highest value that does not depend on the query: no other nodes are needed.
                self.obstacle, found = obstacle, (given,)
            if found is None:
                self._miss(x)
            self._truths[key] = found
        return self._truths[key]

    def _given(self, x: ir.Value, index: Index, wanted: bool) -> Given | None:
        sizes = self._view.dims.of(x)
        if self._view.dtype(x) != ir.DataType.BOOL or sizes is None or sizes[-2:-1] != (1,):
            return None
        if index == _without_ones(sizes):
            return Given(x, wanted)
        without_heads = index == (Linear.of(Axis(4)), _ZERO, Linear.of(Axis(1)))
        return Given(x, wanted, without_heads) if without_heads else None

    def _miss(self, x: Operand) -> None:
        node = x.producer() if isinstance(x, ir.Value) else None
        if not self.obstacle:
            what = x.op_type if isinstance(x, Call) else node.op_type if node is not None else "a tensor"
            name = node_name(node) if node is not None else x.name if isinstance(x, ir.Value) else None
            self.obstacle = f"{what} ('{name}')" if name else what

    def _truth(self, x: Operand, index: Index, wanted: bool) -> Conjunction | None:
        number = number_of(self._view, x)
        if number is not None:
            return decided(bool(number) == wanted)
        call = operation(x)
        if call is None:
            return self._constant_band(x, index, wanted)
        op, inputs = call.op_type, call.inputs
        if op == "Trilu" and (made := operation(inputs[0])) is not None and made.op_type in _MADE_OF_SIZES:
            for axis, place in enumerate(index):
                self._learn(place, self.integer(made.inputs[-1], (Linear(axis),)))
        if op == "Not":
            return self.truth(inputs[0], index, not wanted)
        if op in ("And", "Or", "Mul"):
            a, b = (self.truth(i, index, wanted) for i in inputs)
            return both(a, b) if wanted == (op != "Or") else either(a, b)
        if op in COMPARISONS:
            return self._compared(op, inputs, index, wanted)
        if op == "Equal":
            return self._equal(inputs, index, wanted)
        if op == "Trilu":
            return self._triangle(call, index, wanted)
        if op == "Where":
            return self._where(inputs, index, wanted)
        if op == "Cast":
            return self._cast_truth(call, x, index, wanted)
        moved = self._moved(call, x, index)
        self._parts += op in _TAKES_PART
        found = self.truth(*moved, wanted) if moved is not None else None
        self._parts -= op in _TAKES_PART
        return found

    def _compared(self, op: str, inputs: Sequence[Operand], index: Index, wanted: bool) -> Conjunction | None:
        """A comparison; ``|x| <= y`` means ``x <= y`` and ``-x <= y``, ``y < |x|`` that not both hold."""
        number, value = number_of(self._view, inputs[1]), only_nonzero(self._view, inputs[0])
        if number is not None and value is not None:
            of_value, of_zero = (_NUMBERS[op](x, number) for x in (value, 0.0))
            if of_value == of_zero:
                return decided(of_zero == wanted)
            return self.truth(inputs[0], index, wanted == of_value)
        calls = [operation(i) for i in inputs]
        inner = [c.inputs[0] if c is not None and c.op_type == "Abs" else None for c in calls]
        left, right = (self.integer(a or i, index) for a, i in zip(inner, inputs, strict=True))
        self._compares = self._compares or any(form is not None and form.factor(Axis(1)) for form in (left, right))
        if left is None or right is None or all(inner):
            return None
        form, strict = COMPARISONS[op](left, right)
        found = self._condition(form, strict, wanted)
        if not any(inner):
            return found
        form, strict = COMPARISONS[op](*((-left, right) if inner[0] else (left, -right)))
        opposite = self._condition(form, strict, wanted)
        is_below = op.startswith("Less") == bool(inner[0])
        return both(found, opposite) if is_below == wanted else either(found, opposite)

    def _condition(self, form: Linear, strict: bool, wanted: bool) -> Conjunction:
        """``form >= 0`` (``form > 0`` if strict), or its opposite."""
        if strict:
            form = form - 1
        if not wanted:
            form = -form - 1
        self._compares = self._compares or bool(form.factor(Axis(1)) and form.factor(Axis(2)))
        return at_least_zero(form)

    def _equal(self, inputs: Sequence[Operand], index: Index, wanted: bool) -> Conjunction | None:
        a, b = (self.integer(i, index) for i in inputs)
        if a is not None and b is not None:
            below, above = (self._condition(f, False, True) for f in (a - b, b - a))
            if wanted:
                return both(below, above)
            return FALSE if (below, above) == (TRUE, TRUE) else TRUE if FALSE in (below, above) else None
        for x, other in (inputs, inputs[::-1]):
            if number_of(self._view, other) == 0:
                return self.truth(x, index, not wanted)
        return None

    def _triangle(self, call: Call, index: Index, wanted: bool) -> Conjunction | None:
        shift = self.integer(call.inputs[1], ()) if len(call.inputs) > 1 else _ZERO
        inside = self.truth(call.inputs[0], index, wanted)
        if shift is None:
            return None
        above = index[-1] - index[-2] - shift  # 0 on the diagonal that both triangles keep
        kept = self._condition(above if call.attributes.get("upper", 1) else -above, False, wanted)
        return both(kept, inside) if wanted else either(kept, inside)

    def _where(self, inputs: Sequence[Operand], index: Index, wanted: bool) -> Conjunction | None:
        condition, chosen, other = inputs
        for x, constant, holds in ((other, chosen, False), (chosen, other, True)):
            number = number_of(self._view, constant)
            if number is not None:  # (condition == holds and x) or (condition != holds and constant)
                first = self.truth(condition, index, holds == (wanted != bool(number)))
                second = self.truth(x, index, wanted)
                return either(first, second) if wanted == bool(number) else both(first, second)
        return None

    def _cast_truth(self, call: Call, x: Operand, index: Index, wanted: bool) -> Conjunction | None:
        source = call.inputs[0]
        before = self._view.dtype(source) if isinstance(source, ir.Value) else None
        rounds = before in FLOATS and call.attributes["to"] not in (*FLOATS, ir.DataType.BOOL)
        return None if rounds else self.truth(source, index, wanted)

    def _constant_band(self, x: Operand, index: Index, wanted: bool) -> Conjunction | None:
        """Element of a constant matrix whose nonzero elements are a band around the diagonal, or the other ones."""
        array = tensor_of(self._view, x)
        if array is None or array.ndim != len(index) or array.ndim < 2 or any(s != 1 for s in array.shape[:-2]):
            return None
        matrix = (array.reshape(array.shape[-2:]) != 0) == wanted
        rows, columns = np.nonzero(matrix)
        if not rows.size:
            return FALSE
        above, below = int((columns - rows).max()), int((rows - columns).max())
        distance = np.arange(matrix.shape[1]) - np.arange(matrix.shape[0])[:, None]
        if not np.array_equal(matrix, (distance <= above) & (distance >= -below)):
            return None
        form, found = index[-1] - index[-2], list(TRUE)
        if above < matrix.shape[1] - 1:
            found += self._condition(-form + above, False, True)
        if below < matrix.shape[0] - 1:
            found += self._condition(form + below, False, True)
        return tuple(found)

    # ---- operators that only move elements ----

    def _moved(self, call: Call, x: Operand, index: Index) -> tuple[Operand, Index] | None:
        """Return the tensor and the position in it that an element is taken from."""
        op, source = call.op_type, call.inputs[0] if call.inputs else None
        if source is None:
            return None
        if op == "Identity":
            return source, index
        if op == "Expand":
            return source, index
        if op == "Tile":
            sizes, repeats = self._view.dims.of(source) if isinstance(source, ir.Value) else None, call.inputs[1]
            counts = [self.integer(repeats, (Linear(a),)) for a in range(len(index))]
            known = sizes is not None and all(s == 1 or c == Linear(1) for s, c in zip(sizes, counts, strict=True))
            return (source, index) if known else None  # an axis of size 1 is at 0 anyway
        if op == "Transpose":
            perm = call.attributes.get("perm", range(len(index))[::-1])
            return source, tuple(index[list(perm).index(a)] for a in range(len(index)))
        if op in ("Unsqueeze", "Squeeze"):
            axes = self._axes(call, x)
            if axes is None:
                return None
            longer = len(index) + (len(axes) if op == "Squeeze" else 0)
            touched, rest = {a % longer for a in axes}, iter(index)
            if op == "Unsqueeze":
                return source, tuple(p for a, p in enumerate(index) if a not in touched)
            return source, tuple(_ZERO if a in touched else next(rest) for a in range(longer))
        if op == "Reshape":
            return self._reshaped(source, x, index)
        if op == "Slice":
            return self._sliced(call, index)
        if op == "Gather":
            return self._gathered(call, index)
        if op == "GatherND" and not call.attributes.get("batch_dims", 0):
            width = self.rank(source)
            parts = [self.integer(call.inputs[1], (*index, Linear(k))) for k in range(width or 0)]
            return (source, tuple(p for p in parts if p is not None)) if parts and None not in parts else None
        return None

    def _reshaped(self, source: Operand, x: Operand, index: Index) -> tuple[Operand, Index] | None:
        """Follow a Reshape that only adds or drops axes of size 1."""
        before = self._view.dims.of(source) if isinstance(source, ir.Value) else None
        after = self._view.dims.of(x) if isinstance(x, ir.Value) else None
        if before is None or after is None:
            return None
        wide = [s for s in before if s != 1], [s for s in after if s != 1]
        if wide[0] != wide[1] and not len(wide[0]) == len(wide[1]) == 1:
            return None
        kept = iter(p for p, s in zip(index, after, strict=True) if s != 1)
        return source, tuple(_ZERO if s == 1 else next(kept) for s in before)

    def _sliced(self, call: Call, index: Index) -> tuple[Operand, Index] | None:
        if len(call.inputs) < 3:
            return None
        source, starts = call.inputs[:2]
        lists = [self._numbers(i) for i in call.inputs[3:]]
        axes = lists[0] if lists else list(range(len(index)))
        if axes is None or (len(lists) > 1 and (lists[1] is None or any(s != 1 for s in lists[1]))):
            return None
        moved = list(index)
        for position, axis in enumerate(axes):
            start = self.integer(starts, (Linear(position),))
            size = self._size(source, axis % len(index))
            if start is not None and start.constant < 0 and not start.terms:
                start = size + start if size is not None else None
            if start is None or not start.never_negative():
                return None
            moved[axis] += start
        return source, tuple(moved)

    def _gathered(self, call: Call, index: Index) -> tuple[Operand, Index] | None:
        source, indices = call.inputs
        rank, width = self.rank(source), self.rank(indices)
        if rank is None or width is None:
            return None
        axis = call.attributes.get("axis", 0) % rank
        place = self.integer(indices, index[axis : axis + width])
        if place is None or (not place.terms and place.constant < 0):
            return None
        return source, (*index[:axis], place, *index[axis + width :])

    # ---- facts ----

    def _broadcast(self, x: Operand, index: Index) -> Index:
        """Return the position in an operand that is broadcast to ``index``."""
        rank = self.rank(x)
        if rank is None or rank > len(index):
            return index
        sizes = self._view.dims.of(x) if isinstance(x, ir.Value) else None
        aligned = index[len(index) - rank :]
        return aligned if sizes is None else tuple(_ZERO if s == 1 else p for p, s in zip(aligned, sizes, strict=True))

    def rank(self, x: Operand) -> int | None:
        """Return the number of axes, as far as they matter: an Expand may put more in front; None if unknown."""
        if isinstance(x, Const):
            return x.array.ndim
        known, call = self._view.rank(x) if isinstance(x, ir.Value) else None, operation(x)
        if known is not None or call is None:
            return known
        if call.op_type == "Unsqueeze" and "axes" in call.attributes:
            inner = self.rank(call.inputs[0])
            return None if inner is None else inner + len(call.attributes["axes"])
        ranks = [self.rank(i) for i in call.inputs[: 1 if call.op_type in ("Expand", "Cast") else None]]
        numbers = [r for r in ranks if r is not None]
        return max(numbers) if len(numbers) == len(ranks) and call.op_type in _ELEMENTWISE else None

    def _size(self, x: Operand, axis: int) -> Linear | None:
        return size_form(self._view.dims.dim(x, axis)) if isinstance(x, ir.Value) else None

    def _axes(self, call: Call, x: Operand) -> list[int] | None:
        if "axes" in call.attributes:
            return list(call.attributes["axes"])
        if len(call.inputs) > 1:
            return self._numbers(call.inputs[1])
        # A Squeeze of all axes of size 1.
        sizes = self._view.dims.of(call.inputs[0]) if isinstance(call.inputs[0], ir.Value) else None
        rank = self.rank(x)
        ones = [a for a, s in enumerate(sizes or ()) if s == 1]
        return ones if sizes is not None and rank is not None and len(sizes) - len(ones) == rank else None

    def _numbers(self, x: Operand) -> list[int] | None:
        array = x.array if isinstance(x, Const) else self._view.constant(x) if isinstance(x, ir.Value) else None
        return None if array is None else [int(a) for a in array.reshape(-1)]


_MADE_OF_SIZES = ("Expand", "ConstantOfShape")
_TAKES_PART = ("Slice", "Gather", "GatherND")
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Neg", "Max", "Not", "And", "Or", "Where", "Expand", "Cast")

_NUMBERS: dict[str, Callable[[float, float], bool]] = {
    "LessOrEqual": operator.le,
    "Less": operator.lt,
    "GreaterOrEqual": operator.ge,
    "Greater": operator.gt,
}


def _without_ones(sizes: Sequence[object]) -> Index:
    return tuple(_ZERO if s == 1 else p for p, s in zip(positions(len(sizes)), sizes, strict=True))
