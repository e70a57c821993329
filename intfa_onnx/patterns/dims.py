"""Where sizes come from: each is an int, or a token such that equal tokens are equal sizes.

Shape inference leaves most sizes of a TorchScript export open, because they pass through Shape, Gather, Concat and
Reshape. This follows them back to ints, symbolic names and axes of values, and to what is computed from these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from intfa_onnx.patterns.sizes import Token, difference, named, product, quotient, total

if TYPE_CHECKING:
    from intfa_onnx.patterns.view import View

_MAX_DEPTH = 40
_OF_OPTIMIZER = (
    *("FusedMatMul", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
    *("Gelu", "BiasGelu", "FastGelu", "QuickGelu"),
)
_SAME_SHAPE = (
    "Identity",
    "Cast",
    "CastLike",
    "QuantizeLinear",
    "DequantizeLinear",
    "Softmax",
    "Neg",
    "Sqrt",
    "Tanh",
    "Clip",
    "Not",
    "RotaryEmbedding",
    "LayerNormalization",
    "SimplifiedLayerNormalization",
    *_OF_OPTIMIZER[1:],
)
_BROADCAST = (
    *("Add", "Sub", "Mul", "Div", "Sum", "Where", "Pow", "Min", "Max"),
    *("And", "Or", "Xor", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
)


class Dims:
    """Sizes of the values of one model."""

    def __init__(self, view: View):
        self._view = view
        self._known: dict[tuple[ir.Value, int], Token] = {}
        self._depth = 0

    def of(self, value: ir.Value | None) -> tuple[Token, ...] | None:
        """Return a token for each axis of ``value``; None where its rank is unknown."""
        rank = self._view.rank(value)
        return None if value is None or rank is None else tuple(self.dim(value, axis) for axis in range(rank))

    def dim(self, value: ir.Value, axis: int) -> Token:
        """Return the token of one axis, counted from the front."""
        key = (value, axis)
        if key not in self._known:
            shape = self._view.shape(value)
            known: Token | None = shape[axis] if shape is not None and axis < len(shape) else None
            if isinstance(known, str):
                known = named(known)
            if not isinstance(known, int):
                self._depth += 1
                traced = self._trace(value, axis) if self._depth < _MAX_DEPTH else None
                self._depth -= 1
                known = traced if traced is not None else known
            self._known[key] = known if known is not None else key
        return self._known[key]

    def content(self, value: ir.Value | None) -> tuple[Token | None, ...] | None:
        """Read an integer tensor of at most one axis as sizes; None for one that is not understood."""
        if value is None or self._depth > _MAX_DEPTH:
            return None
        constant = self._view.constant(value)
        if constant is not None:
            return tuple(int(c) for c in constant.reshape(-1))
        node = value.producer()
        if node is None or not node.inputs:
            return None
        self._depth += 1
        try:
            return self._split(node, value) if node.op_type == "Split" else self._content(node)
        finally:
            self._depth -= 1

    def _content(self, node: ir.Node) -> tuple[Token | None, ...] | None:
        first, op = node.inputs[0], node.op_type
        if op == "Shape" and first is not None:
            shape = self.of(first)
            if shape is None:
                return None
            start, end = node.attributes.get("start"), node.attributes.get("end")
            return shape[start.as_int() if start else 0 : end.as_int() if end else len(shape)]
        if op in ("Unsqueeze", "Squeeze", "Identity", "Cast", "Reshape"):
            return self.content(first)
        if op == "Concat":
            parts = [self.content(i) or self._unknown(i) for i in node.inputs]
            return None if any(p is None for p in parts) else tuple(t for p in parts if p is not None for t in p)
        if op in ("Add", "Sub", "Mul", "Div"):
            a, b = (self.content(i) for i in node.inputs)
            if a is None or b is None or len(a) != 1 or len(b) != 1 or a[0] is None or b[0] is None:
                return None
            result = _calculate(op, a[0], b[0])
            return None if result is None else (result,)
        if op == "Where":
            return self._without_open_sizes(node)
        if op in ("Slice", "Gather"):
            sizes = self.content(first)
            indices = [self.content(i) for i in node.inputs[1:]]
            if sizes is None or any(i is None or not all(isinstance(x, int) for x in i) for i in indices):
                return None
            numbers = [[int(x) for x in i] for i in indices if i is not None]  # type: ignore[arg-type]
            if op == "Gather":
                return tuple(sizes[i] for i in numbers[0]) if all(abs(i) < len(sizes) for i in numbers[0]) else None
            return sizes[numbers[0][0] : numbers[1][0] : numbers[3][0] if len(numbers) > 3 else 1]
        return None

    def _split(self, node: ir.Node, part: ir.Value) -> tuple[Token | None, ...] | None:
        """Read one part of a list of sizes: ONNX Runtime's optimizer takes a Shape apart so."""
        sizes, given = self.content(node.inputs[0]), node.inputs[1] if len(node.inputs) > 1 else None
        if sizes is None:
            return None
        lengths = self.content(given) or (len(sizes) // len(node.outputs),) * len(node.outputs)
        ends = [0]
        for length in lengths:
            ends.append(ends[-1] + length if isinstance(length, int) else -1)
        index = part.index() or 0
        return sizes[ends[index] : ends[index + 1]] if ends[-1] == len(sizes) else None

    def _without_open_sizes(self, node: ir.Node) -> tuple[Token | None, ...] | None:
        """Read ``Where(Equal(sizes, -1), ones, sizes)``, which TorchScript puts in front of Expand."""
        equal = node.inputs[0].producer() if node.inputs[0] is not None else None
        if equal is None or equal.op_type != "Equal" or node.inputs[2] not in equal.inputs:
            return None
        replaced, sizes = (self.content(i) for i in node.inputs[1:])
        marks = self.content(next((i for i in equal.inputs if i is not node.inputs[2]), None))
        if replaced is None or sizes is None or marks is None or set(marks) != {-1} or len(replaced) != len(sizes):
            return None
        return tuple(r if s == -1 else s for r, s in zip(replaced, sizes, strict=True))

    def _unknown(self, value: ir.Value | None) -> tuple[None, ...] | None:
        """Return as many unknown sizes as there are in ``value``; None where even that is not known."""
        shape = self._view.shape(value)
        return (None,) * shape[0] if shape is not None and len(shape) == 1 and isinstance(shape[0], int) else None

    def _trace(self, value: ir.Value, axis: int) -> Token | None:
        """Follow one size through the operator that computes ``value``; None where that ends."""
        node = value.producer()
        first = node.inputs[0] if node is not None and node.inputs else None
        if node is None or first is None or not (node.domain in ("", "ai.onnx") or node.op_type in _OF_OPTIMIZER):
            return None
        op, rank, first_rank = node.op_type, self._view.rank(value), self._view.rank(first)
        if op == "Transpose" and "perm" in node.attributes:
            return self.dim(first, node.attributes["perm"].as_ints()[axis])
        if op in _SAME_SHAPE:
            return self.dim(first, axis)
        if op == "FusedMatMul":
            return self._fused_product(node, axis - rank) if rank is not None else None
        if op == "GatherElements" and node.inputs[1] is not None:
            return self.dim(node.inputs[1], axis)
        if op in _BROADCAST and rank is not None:
            return self._broadcast(node, axis - rank)
        if op == "MatMul" and rank is not None and first_rank == rank:
            second = node.inputs[1]
            second_rank = self._view.rank(second)
            if axis < rank - 1:
                # Leading axes broadcast; a right operand without them, a weight, leaves the left one's.
                alone = axis == rank - 2 or second_rank == 2
                return self.dim(first, axis) if alone else self._broadcast(node, axis - rank)
            return self.dim(second, second_rank - 1) if second is not None and second_rank else None
        if op == "Reshape":
            return self._reshaped(node, axis)
        if op == "Flatten" and (before := self.of(first)) is not None:
            split = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
            return product(before[split:] if axis else before[:split])
        if op == "ConstantOfShape":
            sizes = self.content(first)
            return sizes[axis] if sizes is not None and axis < len(sizes) else None
        if op == "Tile":
            repeats = self.content(node.inputs[1])
            times = repeats[axis] if repeats is not None and axis < len(repeats) else None
            return None if times is None else product((self.dim(first, axis), times))
        if op == "Expand" and rank is not None:
            return self._expanded(node, axis - rank)
        if op == "Range":
            bounds = [self.content(i) for i in node.inputs]
            start, limit, step = (b[0] if b is not None and len(b) == 1 else None for b in bounds)
            return difference(limit, start) if step == 1 and start is not None and limit is not None else None
        if op in ("Slice", "Split", "Concat", "Gather"):
            size = self._along_other_axes(node, axis)
            return self._part(node, value, axis) if size is None and op == "Split" else size
        if op in ("Squeeze", "Unsqueeze") and rank is not None and first_rank is not None:
            axes = self._view.axes(node)
            if axes is None:
                return None
            longer = max(rank, first_rank)
            touched = {a % longer for a in axes}
            kept = [a for a in range(longer) if a not in touched]
            if op == "Squeeze":
                return self.dim(first, kept[axis])
            return 1 if axis in touched else self.dim(first, kept.index(axis))
        return None

    def _fused_product(self, node: ir.Node, from_back: int) -> Token | None:
        """Size of a product of ONNX Runtime's own optimizer, either operand of which may be transposed."""
        operand, flag = (node.inputs[0], "transA") if from_back == -2 else (node.inputs[1], "transB")
        rank = self._view.rank(operand)
        if from_back < -2 or operand is None or rank is None:
            return self._broadcast(node, from_back)
        stored = -3 - from_back if flag in node.attributes and node.attributes[flag].as_int() else from_back
        return self.dim(operand, rank + stored)

    def _broadcast(self, node: ir.Node, from_back: int) -> Token | None:
        tokens: list[Token] = []
        for operand in node.inputs:
            rank = self._view.rank(operand)
            if operand is None or rank is None:
                return None
            if -from_back <= rank:
                tokens.append(self.dim(operand, rank + from_back))
        return _common(tokens)

    def _expanded(self, node: ir.Node, from_back: int) -> Token | None:
        sizes, rank = self.content(node.inputs[1]), self._view.rank(node.inputs[0])
        if sizes is None or node.inputs[0] is None or rank is None:
            return None
        own = [self.dim(node.inputs[0], rank + from_back)] if -from_back <= rank else []
        given = sizes[from_back:][:1] if -from_back <= len(sizes) else ()
        return None if None in given else _common([*own, *(s for s in given if s is not None)])

    def _reshaped(self, node: ir.Node, axis: int) -> Token | None:
        sizes = self.content(node.inputs[1])
        if sizes is None or axis >= len(sizes):
            return None
        allow_zero = "allowzero" in node.attributes and node.attributes["allowzero"].as_int()
        source = node.inputs[0]
        before = self.of(source)
        given = [
            before[i] if s == 0 and not allow_zero and before is not None and i < len(before) else s
            for i, s in enumerate(sizes)
        ]
        if given[axis] != -1:
            return given[axis] if given[axis] != 0 else None
        # -1: what remains when the sizes that occur on both sides are cancelled.
        if before is None:
            return None
        rest, others = list(before), [s for i, s in enumerate(given) if i != axis]
        for size in list(others):
            if size in rest and size is not None:
                rest.remove(size)
                others.remove(size)
        known = [s for s in others if s is not None]
        return quotient(product(rest), product(known)) if len(known) == len(others) else None

    def _along_other_axes(self, node: ir.Node, axis: int) -> Token | None:
        first = node.inputs[0]
        rank = self._view.rank(first)
        if first is None or rank is None:
            return None
        if node.op_type == "Slice":
            axes = self._view.constant(node.inputs[3]) if len(node.inputs) > 3 else None
            listed = [int(a) % rank for a in axes.reshape(-1)] if axes is not None else list(range(rank))
            return self._sliced(node, listed.index(axis), axis) if axis in listed else self.dim(first, axis)
        default = None if node.op_type == "Concat" else 0
        along = node.attributes["axis"].as_int() if "axis" in node.attributes else default
        if along is None:
            return None
        along %= rank
        if node.op_type == "Gather":
            if self._view.rank(node.inputs[1]) != 0:
                return None
            return self.dim(first, axis if axis < along else axis + 1)
        if axis != along:
            return self.dim(first, axis)
        return total(self.dim(i, axis) for i in node.inputs if i is not None) if node.op_type == "Concat" else None

    def _part(self, node: ir.Node, part: ir.Value, axis: int) -> Token | None:
        """Size of a part of a Split along its axis: as given, or all alike."""
        given = self.content(node.inputs[1]) if len(node.inputs) > 1 else None
        if given is None and "split" in node.attributes:
            given = tuple(node.attributes["split"].as_ints())
        whole, count = self.dim(node.inputs[0], axis) if node.inputs[0] is not None else None, len(node.outputs)
        if given is None and isinstance(whole, int) and whole % count == 0:
            return whole // count
        return given[part.index() or 0] if given is not None and len(given) == count else None

    def _sliced(self, node: ir.Node, position: int, axis: int) -> Token | None:
        """Size of a sliced axis with constant bounds; ``position`` is its place among the sliced axes."""
        bounds = [self._view.constant(i) for i in node.inputs[1:3]]
        step = self._view.constant(node.inputs[4]) if len(node.inputs) > 4 else None
        size = self.dim(node.inputs[0], axis) if node.inputs[0] is not None else None
        if not isinstance(size, int) or any(b is None for b in bounds) or (len(node.inputs) > 4 and step is None):
            return None
        start, end = (int(b.reshape(-1)[position]) for b in bounds if b is not None)
        return len(range(size)[start : end : int(step.reshape(-1)[position]) if step is not None else 1])


def _common(tokens: list[Token]) -> Token | None:
    """Return the size to which all these broadcast; None where that is not provable."""
    wide = [t for t in tokens if t != 1]
    sized = [t for t in wide if isinstance(t, int)]
    if sized:
        return sized[0]
    return wide[0] if len(set(wide)) == 1 else (1 if not wide else None)


def _calculate(op: str, a: Token, b: Token) -> Token | None:
    """Return what an operator makes of two sizes; None where that may be negative, or has a remainder."""
    if op == "Add":
        return total((a, b))
    if op == "Mul":
        return product((a, b))
    if isinstance(a, int) and isinstance(b, int):
        return a - b if op == "Sub" else (a // b if b > 0 else None)  # sizes are not negative
    return quotient(a, b) if op == "Div" else difference(a, b)
