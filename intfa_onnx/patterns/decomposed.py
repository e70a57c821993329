"""Family: softmax written out, ``e / ReduceSum(e)`` with ``e = Exp(x - ReduceMax(x))`` or in the logarithm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from intfa_onnx.patterns.core import match_core
from intfa_onnx.patterns.match import AttentionMatch, NoMatch, node_name
from intfa_onnx.patterns.view import View, int_attribute
from intfa_onnx.patterns.walk import check_readers

NAME = "decomposed_softmax"


@dataclass
class _Written:
    """A softmax of several nodes.

    Attributes:
        scores: what it is taken of.
        readers: the nodes of it that read the scores.
        over: the nodes of it that go over an axis.
        inner: values of it, each with the nodes that may read it.
    """

    scores: ir.Value
    readers: set[ir.Node]
    over: list[ir.Node]
    inner: list[tuple[ir.Value, set[ir.Node]]]


def anchors(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    """Yield the last node of every softmax of the graph itself, bodies not included, that is written out."""
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
    rank = view.rank(written.scores)
    for node in written.over:
        axes = [int_attribute(node, "axis", -1)] if node.op_type == "LogSoftmax" else view.axes(node)
        over_last = axes is not None and rank is not None and [a % rank for a in axes] == [rank - 1]
        if not over_last or not int_attribute(node, "keepdims", 1):
            raise NoMatch(f"'{node_name(node)}' reduces over axes {axes}, not over the last")
    return match_core(view, anchor, NAME, written.scores, anchor.outputs[0], written.readers)


def _written(node: ir.Node) -> _Written | None:
    """Read a softmax by its last node."""
    if None in node.inputs:
        return None
    if _is(node, "Div") or _is(node, "Mul"):
        return _quotient(node)
    return _logarithm(node) if _is(node, "Exp") else None


def _quotient(node: ir.Node) -> _Written | None:
    """``Exp(x) / ReduceSum(Exp(x))``, also times the Reciprocal."""
    for value, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        exp, divisor = (v.producer() if v is not None else None for v in (value, other))
        total = divisor
        if node.op_type == "Mul" and divisor is not None:
            total = divisor.inputs[0].producer() if _is(divisor, "Reciprocal") and divisor.inputs[0] else None
        elif value is not node.inputs[0]:
            return None
        if exp is None or total is None or value is None or not _is(exp, "Exp") or not _is(total, "ReduceSum"):
            continue
        exponent = exp.inputs[0]
        if total.inputs[0] is not value or exponent is None:
            continue
        shift = exponent.producer()
        if shift is not None and _is(shift, "Sub") and shift.inputs[0] is not None:
            maximum = shift.inputs[1].producer() if shift.inputs[1] is not None else None
            if maximum is not None and _is(maximum, "ReduceMax") and maximum.inputs[0] is shift.inputs[0]:
                # Softmax is the same for every shift of a row; the maximum is subtracted for safety.
                inner = [(exponent, {exp}), (value, {node, total})]
                return _Written(shift.inputs[0], {shift, maximum}, [total, maximum], inner)
        return _Written(exponent, {exp}, [total], [(value, {node, total})])
    return None


def _logarithm(node: ir.Node) -> _Written | None:
    """``Exp(LogSoftmax(x))``, or ``Exp(x - ReduceLogSumExp(x))``."""
    exponent = node.inputs[0]
    source = exponent.producer() if exponent is not None else None
    if exponent is None or source is None or source.inputs[0] is None:
        return None
    if _is(source, "LogSoftmax"):
        return _Written(source.inputs[0], {source}, [source], [(exponent, {node})])
    total = source.inputs[1].producer() if _is(source, "Sub") and source.inputs[1] is not None else None
    if total is None or not _is(total, "ReduceLogSumExp") or total.inputs[0] is not source.inputs[0]:
        return None
    return _Written(source.inputs[0], {source, total}, [total], [(exponent, {node})])


def _is(node: ir.Node | None, op_type: str) -> bool:
    return node is not None and node.op_type == op_type and node.domain in ("", "ai.onnx")
