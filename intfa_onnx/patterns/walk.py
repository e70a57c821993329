"""The walk from a softmax down to P V and up to Q K^T: which nodes lie in between, not what they mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from intfa_onnx.patterns.match import NoMatch, node_name
from intfa_onnx.patterns.products import operands
from intfa_onnx.patterns.sizes import Token
from intfa_onnx.patterns.view import View, int_attribute

SAME_ELEMENTS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
_MAX_STEPS = 16
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def keeps_value(view: View, node: ir.Node) -> bool:
    """Return whether a node gives the numbers that it is given: also rounded to another float type, not to integers."""
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int()) in _FLOATS
    if node.op_type == "CastLike":
        return (view.dtype(node.outputs[0]) or view.dtype(node.inputs[1])) in _FLOATS
    return node.op_type == "Identity" or (node.op_type == "Dropout" and is_idle_dropout(view, node))


def transposed(axes: tuple[int, ...], node: ir.Node) -> tuple[int, ...]:
    """Return which axis each axis of a Transpose's result is, where its operand's are ``axes``."""
    perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else range(len(axes))[::-1]
    return tuple(axes[p] for p in perm)


@dataclass(frozen=True)
class Zeroed:
    """Probabilities become 0 where ``condition`` is not ``kept``: overwritten, or multiplied by 0, which keeps NaN."""

    condition: ir.Value
    kept: bool
    by_factor: bool = False


@dataclass(frozen=True)
class Division:
    """The sum of each row divides the product with V, and not the probabilities before it.

    Attributes:
        total: the node that sums, which reads the undivided probabilities.
        product: what is divided.
        node: divides.
    """

    total: ir.Node
    product: ir.Value
    node: ir.Node


@dataclass
class Down:
    """The way from the softmax to the product with V."""

    products: list[tuple[ir.Node, int]] = field(default_factory=list)  # each with the input by which P's columns enter
    last: ir.Node | None = None  # where the attention ends, if not at a product: an addition of several, a division
    values: list[ir.Value] = field(default_factory=list)
    guarded: bool = False  # NaN is replaced by 0
    factor: float = 1.0
    reshaped: bool = False
    transposes: list[ir.Node] = field(default_factory=list)
    row_guards: list[tuple[ir.Value, ir.Value]] = field(default_factory=list)  # (x, whether a row of x is all -inf)
    guards: set[ir.Node] = field(default_factory=set)  # the nodes that read each x
    factors: list[tuple[str, ir.Value]] = field(default_factory=list)  # of whole rows: Mul, Div, Where (kept), Not
    zeroed: list[Zeroed] = field(default_factory=list)
    quantized: list[ir.Node] = field(default_factory=list)  # each QuantizeLinear, which a DequantizeLinear undoes

    @property
    def node(self) -> ir.Node:
        """The node at whose output the attention ends."""
        return self.products[0][0] if self.last is None else self.last


def walk_down(
    view: View,
    probs: ir.Value,
    drops_column: Callable[[ir.Node], bool] | None = None,
    division: Division | None = None,
) -> Down:
    """Find P V below ``probs``.

    Args:
        view: facts about the model.
        probs: result of the softmax.
        drops_column: whether a Slice takes away what the softmax has besides the keys; None where it has nothing.
        division: what divides the product; None where ``probs`` are divided.

    Raises:
        NoMatch: something on the way is not understood.
    """
    value, down = probs, Down()
    for _ in range(_MAX_STEPS):
        down.values.append(value)
        if value.is_graph_output():
            raise NoMatch("the probabilities are an output of the graph")
        readers = [(n, i) for n, i in view.readers(value) if division is None or n is not division.total]
        if len(readers) == 2 and {n.op_type for n, _ in readers} == {"IsNaN", "Where"}:
            value, down.guarded = _nan_guard(view, value, readers), True
            continue
        if drops_column is division is None and (parts := _parts_of_keys(view, value, readers)) is not None:
            down.last, down.products = parts
            return down
        if len(readers) != 1:
            raise NoMatch(f"the probabilities have {len(readers)} consumers ({_op_types(readers)})")
        node, index = readers[0]
        if node.op_type == "DynamicQuantizeLinear" and (product := _product_of_integers(view, node, value)) is not None:
            node, index = product
        if (factors := operands(node)) is not None and factors[index] is value:
            if drops_column is not None:
                raise NoMatch("the sink's column goes into the product with V")
            down.products = [(node, index)]
            if division is not None:
                _end_at_division(view, down, division)
            return down
        if node.domain not in ("", "ai.onnx"):
            raise NoMatch(_unread(node))
        if keeps_value(view, node):
            pass
        elif node.op_type in SAME_ELEMENTS:
            down.reshaped = True
        elif node.op_type == "Transpose":
            down.transposes.append(node)
        elif drops_column is not None and index == 0 and drops_column(node):
            if down.reshaped or any(view.metadata_readers(v) for v in down.values):
                raise NoMatch("the probabilities are reshaped, or their shape is read, with the sink's column")
            drops_column, down.values = None, []
        elif index == 0 and (undone := dequantized(view, node)) is not None:
            value = undone
            down.quantized.append(node)
            continue
        elif node.op_type == "Where":
            _read_overwritten(view, down, node, index)
        elif node.op_type in ("Mul", "Div") and not (node.op_type == "Div" and index == 1):
            _read_factor(view, down, node, node.inputs[1 - index])
        else:
            raise NoMatch(_unread(node))
        value = node.outputs[0]
    raise NoMatch("no product with V below the softmax")


def _end_at_division(view: View, down: Down, division: Division) -> None:
    """Check that the product is what is divided, and that nothing but roundings is done to P before it."""
    plain = all((n := v.producer()) is not None and keeps_value(view, n) for v in down.values[1:])
    product = division.product
    if not plain or down.node.outputs[0] is not product or product.is_graph_output() or len(product.uses()) != 1:
        raise NoMatch(f"'{node_name(division.node)}' divides something else than the product with V")
    down.last = division.node


def _product_of_integers(view: View, quantize: ir.Node, probs: ir.Value) -> tuple[ir.Node, int] | None:
    """Return the product that a DynamicQuantizeLinear of the probabilities is for, and the side they enter by."""
    below, found = {quantize}, set[ir.Node]()
    for _ in range(4):  # DynamicQuantizeLinear, MatMulInteger, Cast, Mul
        outputs = [o for n in below for o in n.outputs]
        if any(o.is_graph_output() for o in outputs):
            return None
        below = {n for o in outputs for n, _ in view.readers(o)}
        found |= {n for n in below if operands(n) is not None}
        below -= found
    [node] = found if len(found) == 1 and not below else [None]
    factors = operands(node)
    sides = [i for i, x in enumerate(factors or ()) if x is probs]
    return (node, sides[0]) if node is not None and len(sides) == 1 else None


def _unread(node: ir.Node) -> str:
    return f"the probabilities go through {node.op_type} ('{node_name(node)}') before the product with V"


def _read_factor(view: View, down: Down, node: ir.Node, other: ir.Value | None) -> None:
    constant, cast = view.scalar(other), other.producer() if other is not None else None
    if constant:
        down.factor *= constant if node.op_type == "Mul" else 1 / constant
    elif other is not None and same_for_all_keys(view, other):
        down.factors.append((node.op_type, other))
    elif node.op_type == "Mul" and cast is not None and _is_cast_truth(view, cast):
        assert cast.inputs[0] is not None
        down.zeroed.append(Zeroed(cast.inputs[0], True, by_factor=True))
    else:
        raise NoMatch(_unread(node))


def _is_cast_truth(view: View, node: ir.Node) -> bool:
    return node.op_type == "Cast" and view.dtype(node.inputs[0]) == ir.DataType.BOOL


def _read_overwritten(view: View, down: Down, node: ir.Node, index: int) -> None:
    """Read a Where of the probabilities and 0: of a row, or of the keys that a mask excludes."""
    condition = node.inputs[0]
    if index == 0 or condition is None or view.scalar(node.inputs[3 - index]) != 0:
        raise NoMatch(_unread(node))
    if index == 2 and (guard := _row_guard(view, condition)) is not None:
        down.row_guards.append((guard[0], condition))
        down.guards.add(guard[1])
    elif same_for_all_keys(view, condition):
        down.factors.append(("Where" if index == 1 else "Not", condition))
    else:
        down.zeroed.append(Zeroed(condition, index == 1))


def same_for_all_keys(view: View, value: ir.Value) -> bool:
    """Return whether a tensor has one element for each row of scores."""
    shape = view.shape(value)
    return shape is not None and (not shape or shape[-1] == 1)


def _parts_of_keys(
    view: View, probs: ir.Value, readers: list[tuple[ir.Node, int]]
) -> tuple[ir.Node, list[tuple[ir.Node, int]]] | None:
    """Read ``P[..., :n] V1 + P[..., n:] V2``: the addition, and the products in the order of the keys."""
    if len(readers) != 2 or any(n.op_type != "Slice" or i != 0 for n, i in readers):
        return None
    halves = [(n, _bounds(view, n, view.rank(probs))) for n, _ in readers]
    if any(b is None for _, b in halves):
        return None
    (first, (start, middle)), (second, (again, end)) = sorted(halves, key=lambda half: half[1][0] != 0)  # type: ignore
    if start != 0 or not isinstance(end, int) or end < np.iinfo(np.int32).max or middle != again or middle is None:
        return None
    below = []
    for node in (first, second):
        only = view.readers(node.outputs[0])
        if len(only) != 1 or only[0][0].op_type != "MatMul" or node.outputs[0].is_graph_output():
            return None
        below.append(only[0])
    sums = [view.readers(n.outputs[0]) for n, _ in below]
    if any(len(s) != 1 or n.outputs[0].is_graph_output() for s, (n, _) in zip(sums, below, strict=True)):
        return None
    add = sums[0][0][0]
    is_sum = add.op_type == "Add" and add is sums[1][0][0] and {sums[0][0][1], sums[1][0][1]} == {0, 1}
    return (add, below) if is_sum else None


def _bounds(view: View, node: ir.Node, rank: int | None) -> tuple[Token | None, Token | None] | None:
    """Return start and end of a Slice of the last axis alone, one by one."""
    start, end, axis, *step = (view.dims.content(i) for i in node.inputs[1:]) if len(node.inputs) > 3 else (None,) * 3
    over_last = axis in ((-1,), (rank - 1,) if rank else (-1,)) and step in ([], [(1,)])
    return (start[0], end[0]) if over_last and start and end and len(start) == len(end) == 1 else None


def _nan_guard(view: View, probs: ir.Value, readers: list[tuple[ir.Node, int]]) -> ir.Value:
    """Return the output of ``Where(IsNaN(P), 0, P)``, or of ``Where(Not(IsNaN(P)), P, 0)``."""
    where, index = next((n, i) for n, i in readers if n.op_type == "Where")
    condition, wanted = where.inputs[0].producer() if where.inputs[0] is not None else None, 2
    if condition is not None and condition.op_type == "Not" and condition.inputs[0] is not None:
        condition, wanted = condition.inputs[0].producer(), 1
    is_guard = condition is not None and condition.op_type == "IsNaN" and condition.inputs[0] is probs
    if index != wanted or not is_guard or view.scalar(where.inputs[3 - index]) != 0:
        raise NoMatch(f"the probabilities are rewritten by '{node_name(where)}', which is not a NaN guard")
    return where.outputs[0]


def _row_guard(view: View, condition: ir.Value) -> tuple[ir.Value, ir.Node] | None:
    """Return x, and what reads it, for ``ReduceMax(x) == -inf``, ONNX's own guard, or ``all(x == -inf)``, PyTorch's."""
    node, ops = condition.producer(), list[ir.Node]()
    while node is not None and node.op_type in ("Cast", "Equal", "ReduceMax", "ReduceMin") and len(ops) < 5:
        ops.append(node)
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    ops = [n for n in ops if n.op_type != "Cast"]
    kinds, last = [n.op_type for n in ops[:2]], ops[min(1, len(ops) - 1)] if ops else None
    if kinds not in (["Equal", "ReduceMax"], ["ReduceMin", "Equal"]) or last is None or last.inputs[0] is None:
        return None
    equal, reduction = ops[:2] if kinds[0] == "Equal" else ops[1::-1]
    axes, rank = view.axes(reduction), view.rank(last.inputs[0])
    over_last = axes is not None and axes in ([-1], [rank - 1] if rank else [-1])
    return (last.inputs[0], last) if over_last and view.scalar(equal.inputs[1]) == -np.inf else None


def split_row_guards(down: Down, qk_node: ir.Node, path: Path) -> bool:
    """Return whether a guard looks at the mask or the masked scores: then it replaces exactly the rows without a key.

    Any other is a condition on rows like another.
    """
    seen = {qk_node.outputs[0], *(v for n, _ in path for v in (*n.inputs, *n.outputs))}
    down.factors += [("Not", condition) for x, condition in down.row_guards if x not in seen]
    return any(x in seen for x, _ in down.row_guards)


def is_idle_dropout(view: View, node: ir.Node) -> bool:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    mask_used = len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output())
    return not mask_used and (training is None or view.scalar(training) == 0)


def dequantized(view: View, node: ir.Node) -> ir.Value | None:
    """Return x rounded to 8 bits where ``node`` quantizes x by one scale and one DequantizeLinear undoes it."""
    if node.op_type != "QuantizeLinear" or node.outputs[0].is_graph_output():
        return None
    readers = view.readers(node.outputs[0])
    if len(readers) != 1 or readers[0][0].op_type != "DequantizeLinear":
        return None
    there, back = (tuple(view.scalar(i) for i in n.inputs[1:]) for n in (node, readers[0][0]))
    of_8_bits = view.dtype(node.outputs[0]) in (ir.DataType.INT8, ir.DataType.UINT8)
    return readers[0][0].outputs[0] if there == back and None not in there and of_8_bits else None


# A step of the way up from softmax: the node, and the input by which the scores enter it.
Path = list[tuple[ir.Node, int]]


def walk_up(view: View, scores: ir.Value) -> tuple[ir.Node, Path]:
    """Find Q K^T above ``scores``: its node and the steps from it down to the softmax."""
    blocked: list[str] = []
    found = _find_product(view, scores, 0, blocked)
    if found is None:
        raise NoMatch(blocked[0] if blocked else "no product Q K^T above the softmax")
    node, path = found
    return node, path[::-1]


def _find_product(view: View, value: ir.Value, depth: int, blocked: list[str]) -> tuple[ir.Node, Path] | None:
    node = value.producer()
    if node is None or depth > _MAX_STEPS or (node.domain not in ("", "ai.onnx") and operands(node) is None):
        return None
    # A product with constant weights is a projection. Constant queries, though, are what latents and prompts are.
    found_here = _is_product(view, node) or _is_product_of_parts(view, node)
    if not found_here and node.op_type not in _SCORE_INPUTS:
        return None
    best: tuple[ir.Node, Path] | None = (node, []) if found_here else None
    for index in () if found_here else _SCORE_INPUTS[node.op_type]:
        entering = node.inputs[index] if index < len(node.inputs) else None
        if entering is None or (found := _find_product(view, entering, depth + 1, blocked)) is None:
            continue
        candidate = (found[0], [(node, index), *found[1]])
        if best is None or _cost(candidate[1]) < _cost(best[1]):
            best = candidate
    if best is None:
        return None
    readers = [n for n, _ in view.readers(value)]
    shifts = [{n, maximum} for n in readers if (maximum := row_maximum(view, n)) in readers and maximum is not None]
    try:
        if depth > 0:
            check_readers(view, value, shifts[0] if shifts else set(readers[:1]))
    except NoMatch as reason:
        blocked.append(str(reason))
        return None
    return best


def row_maximum(view: View, node: ir.Node) -> ir.Node | None:
    """Return the ReduceMax of ``x - ReduceMax(x)`` over the last axis, which softmax does not see."""
    row = row_reduction(view, node.inputs[1]) if node.op_type == "Sub" else None
    return row if row is not None and row.op_type == "ReduceMax" and row.inputs[0] is node.inputs[0] else None


def row_reduction(view: View, value: ir.Value | None) -> ir.Node | None:
    """Return the node that reduces each row of a tensor, its last axis, to the one element that ``value`` has of it."""
    node, kept = value.producer() if value is not None else None, 1
    if node is not None and node.op_type == "Unsqueeze" and node.inputs[0] is not None:
        rank = view.rank(node.inputs[0])
        node, kept = node.inputs[0].producer() if view.axes(node) in ([-1], [rank]) else None, 0
    if node is None or not node.op_type.startswith("Reduce") or int_attribute(node, "keepdims", 1) != kept:
        return None
    axes, rank = view.axes(node), view.rank(node.inputs[0])
    return node if axes is not None and rank is not None and [a % rank for a in axes] == [rank - 1] else None


def _is_product(view: View, node: ir.Node | None) -> bool:
    return (factors := operands(node)) is not None and not view.is_constant(factors[1])


def _is_product_of_parts(view: View, node: ir.Node) -> bool:
    """Whether it is ``Concat(Q K1^T, Q K2^T)`` over the keys, of products that nothing else reads."""
    rank, axis = view.rank(node.outputs[0]), node.attributes.get("axis")
    if node.op_type != "Concat" or rank is None or axis is None or axis.as_int() not in (-1, rank - 1):
        return False
    return all(
        i is not None and _is_product(view, i.producer()) and len(i.uses()) == 1 and not i.is_graph_output()
        for i in node.inputs
    )


def finds_product(view: View, value: ir.Value) -> bool:
    """Return whether there is a product above a value that may be scores."""
    return _find_product(view, value, 0, []) is not None


def check_readers(view: View, scores: ir.Value, expected: set[ir.Node]) -> None:
    """Check that only the expected nodes need the scores.

    Raises:
        NoMatch: the scores are an output of the graph, or other nodes read them.
    """
    if scores.is_graph_output():
        raise NoMatch("the scores are an output of the graph")
    others = [(n, i) for n, i in view.readers(scores) if n not in expected]
    if others:
        raise NoMatch(f"the scores have other consumers ({_op_types(others)})")


# Which inputs the scores may come through, in order of preference.
_SCORE_INPUTS = {
    **dict.fromkeys(("Cast", "CastLike", "Identity", "Dropout", *SAME_ELEMENTS, "Tanh", "Transpose", "Clip"), (0,)),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), (0,)),
    **dict.fromkeys(("Mul", "Add", "Max", "Min"), (0, 1)),
    **dict.fromkeys(("Div", "Sub"), (0,)),
    "Sum": tuple(range(8)),
    "Where": (1, 2),
}


def _cost(path: Path) -> int:
    """Prefer the plain way: of two products that are added, the one that is reshaped is a position bias."""
    return sum(5 if n.op_type in (*SAME_ELEMENTS, "Transpose", "Tanh") else 1 for n, _ in path)


def values_on_path(qk_node: ir.Node, path: Path) -> list[ir.Value]:
    """Return the values from Q K^T to the softmax's input."""
    return [qk_node.outputs[0], *(n.outputs[0] for n, _ in path)]


def _op_types(readers: list[tuple[ir.Node, int]]) -> str:
    return ", ".join(sorted(n.op_type for n, _ in readers))
