"""Family: softmax written out, ``e / ReduceSum(e)`` with ``e = Exp(x - ReduceMax(x))`` or in the logarithm.

The division may follow the product with V, ``(e V) / ReduceSum(e)``, as FlashAttention has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from intfa_onnx.patterns.core import match_core
from intfa_onnx.patterns.match import AttentionMatch, NoMatch, required
from intfa_onnx.patterns.products import operands
from intfa_onnx.patterns.softmax import axis_of
from intfa_onnx.patterns.view import View
from intfa_onnx.patterns.walk import Division, check_readers, row_reduction

NAME = "decomposed_softmax"


@dataclass
class _Written:
    """A softmax of several nodes.

    Attributes:
        scores: what it is taken of.
        readers: the nodes of it that read the scores.
        probs: its result, or what has still to be divided.
        rows: values of it that have one element for each row.
        inner: other values of it, each with the nodes that may read it.
        division: by the sum of each row, where it comes after the product with V.
    """

    scores: ir.Value
    readers: set[ir.Node]
    probs: ir.Value
    rows: list[ir.Value]
    inner: list[tuple[ir.Value, set[ir.Node]]]
    division: Division | None = None


def anchors(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    """Yield the last node of every softmax of the graph itself, bodies not included, that is written out.

    Where the product with V is divided instead, it is the node that sums.
    """
    yield from (node for node in graph if _written(node) is not None)


def match(view: View, anchor: ir.Node) -> AttentionMatch:
    """Match the attention around a softmax that is written out.

    Raises:
        NoMatch: with the reason.
    """
    written = _written(anchor)
    assert written is not None
    for value, expected in written.inner:
        check_readers(view, value, expected)
    for value in written.rows:
        reduction = row_reduction(view, value)
        if reduction is None:
            raise NoMatch(f"'{value.name}' is the sum or the maximum of something, and not over the last axis")
        readers = view.readers(reduction.outputs[0])
        check_readers(view, reduction.outputs[0], {n for n, _ in readers[:1]})
    axis = next((axis_of(view, n) for n in written.readers if n.op_type == "LogSoftmax"), -1)
    return match_core(view, anchor, NAME, written.scores, written.probs, written.readers, axis, written.division)


def _written(node: ir.Node) -> _Written | None:
    """Read a softmax by its last node."""
    if None in node.inputs or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in ("Div", "Mul"):
        for value, total in _quotients(node):
            if (found := _exponential(value, total)) is not None:
                readers = {n for n in (node, _reduction(total)) if n is not None}
                return replace(found, probs=node.outputs[0], inner=[*found.inner, (value, readers)])
    if node.op_type == "ReduceSum":
        return _divided_later(node)
    return _logarithm(node) if node.op_type == "Exp" else None


def _quotients(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield dividend and divisor of a Div, or of a Mul by a Reciprocal."""
    first, second = node.inputs
    if node.op_type == "Div" and first is not None and second is not None:
        yield first, second
    for value, other in ((first, second), (second, first)) if node.op_type == "Mul" else ():
        reciprocal = other.producer() if other is not None else None
        if reciprocal is not None and _is(reciprocal, "Reciprocal") and reciprocal.inputs[0] is not None:
            yield required(value), reciprocal.inputs[0]


def _divided_later(total: ir.Node) -> _Written | None:
    """Read ``(e V) / ReduceSum(e)`` by its ReduceSum."""
    below, e = [total], total.inputs[0]
    for node in below:
        below += [n for o in node.outputs for n, _ in o.uses() if n.op_type in ("Unsqueeze", "Reciprocal")]
    for node in {n for b in below for o in b.outputs for n, _ in o.uses() if n.op_type in ("Div", "Mul")}:
        for product, divisor in _quotients(node):
            if operands(product.producer()) is not None and _reduction(divisor) is total and e is not None:
                found = _exponential(e, divisor)
                return None if found is None else replace(found, division=Division(total, product, node))
    return None


def _exponential(e: ir.Value, total: ir.Value) -> _Written | None:
    """Read ``e = Exp(x)`` or ``Exp(x - ReduceMax(x))``, where ``total`` is the sum of each row."""
    exp, sum_ = e.producer(), _reduction(total)
    exponent = exp.inputs[0] if exp is not None and _is(exp, "Exp") else None
    if exp is None or exponent is None or sum_ is None or not _is(sum_, "ReduceSum") or sum_.inputs[0] is not e:
        return None
    shift = exponent.producer()
    if shift is not None and _is(shift, "Sub"):
        scores, row = (required(i) for i in shift.inputs)
        maximum = _reduction(row)
        if maximum is not None and _is(maximum, "ReduceMax") and maximum.inputs[0] is scores:
            # Softmax is the same for every shift of a row; the maximum is subtracted for safety.
            return _Written(scores, {shift, maximum}, e, [total, row], [(exponent, {exp})])
    return _Written(exponent, {exp}, e, [total], [])


def _reduction(row: ir.Value) -> ir.Node | None:
    """Return the node above a value, or above its Unsqueeze."""
    node = row.producer()
    return node.inputs[0].producer() if node is not None and _is(node, "Unsqueeze") and node.inputs[0] else node


def _logarithm(node: ir.Node) -> _Written | None:
    """``Exp(LogSoftmax(x))``, or ``Exp(x - ReduceLogSumExp(x))``."""
    exponent = node.inputs[0]
    source = exponent.producer() if exponent is not None else None
    if exponent is None or source is None or source.inputs[0] is None:
        return None
    scores, inner = source.inputs[0], [(exponent, {node})]
    if _is(source, "LogSoftmax"):
        return _Written(scores, {source}, node.outputs[0], [], inner)
    row = source.inputs[1] if _is(source, "Sub") else None
    total = _reduction(row) if row is not None else None
    if row is None or total is None or not _is(total, "ReduceLogSumExp") or total.inputs[0] is not scores:
        return None
    return _Written(scores, {source, total}, node.outputs[0], [row], inner)


def _is(node: ir.Node, op_type: str) -> bool:
    return node.op_type == op_type and node.domain in ("", "ai.onnx")
