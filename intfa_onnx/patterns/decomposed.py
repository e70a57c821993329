"""Family: softmax written out, ``e / ReduceSum(e)`` with ``e = Exp(x - ReduceMax(x))``, between two products."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from intfa_onnx.patterns.core import match_core
from intfa_onnx.patterns.match import AttentionMatch, NoMatch, node_name
from intfa_onnx.patterns.view import View, int_attribute
from intfa_onnx.patterns.walk import check_readers

NAME = "decomposed_softmax"


def anchors(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    """Yield every ``Div(Exp, ReduceSum(Exp))`` of the graph itself, bodies not included."""
    for node in graph:
        if node.op_type != "Div" or None in node.inputs:
            continue
        exp, total = (i.producer() if i is not None else None for i in node.inputs)
        if _is(exp, "Exp") and _is(total, "ReduceSum") and total is not None and total.inputs[0] is node.inputs[0]:
            yield node


def match(view: View, anchor: ir.Node) -> AttentionMatch:
    """Match the attention around a softmax that is written out.

    Raises:
        NoMatch: with the reason.
    """
    exp, total = (i.producer() for i in anchor.inputs if i is not None)
    assert exp is not None
    assert total is not None
    exponent = exp.inputs[0]
    shift = exponent.producer() if exponent is not None else None
    if exponent is None:
        raise NoMatch("Exp without input")
    scores: ir.Value | None = exponent
    readers, reductions = {exp}, [total]
    row = shift.inputs[1] if shift is not None and _is(shift, "Sub") else None
    maximum = row.producer() if row is not None else None
    if shift is not None and maximum is not None and _is_maximum_of(maximum, shift.inputs[0]):
        # Softmax is the same for every shift of a row; the maximum is subtracted for safety.
        check_readers(view, exponent, {exp})
        scores, readers = shift.inputs[0], {shift, maximum}
        reductions.append(maximum)
    if scores is None:
        raise NoMatch("Sub without input")
    check_readers(view, exp.outputs[0], {anchor, total})
    rank = view.rank(scores)
    for node in reductions:
        axes = view.axes(node)
        if (
            axes is None
            or rank is None
            or [a % rank for a in axes] != [rank - 1]
            or not int_attribute(node, "keepdims", 1)
        ):
            raise NoMatch(f"'{node_name(node)}' reduces over axes {axes}, not over the last")
    return match_core(view, anchor, NAME, scores, anchor.outputs[0], readers)


def _is(node: ir.Node | None, op_type: str) -> bool:
    return node is not None and node.op_type == op_type and node.domain in ("", "ai.onnx")


def _is_maximum_of(node: ir.Node, value: ir.Value | None) -> bool:
    return _is(node, "ReduceMax") and node.inputs[0] is value
