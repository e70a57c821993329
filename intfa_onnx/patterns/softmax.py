"""Family: ``Softmax`` over the last axis between two products."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from intfa_onnx.patterns.core import match_core
from intfa_onnx.patterns.match import AttentionMatch, NoMatch
from intfa_onnx.patterns.view import View, int_attribute

NAME = "softmax"


def anchors(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    """Yield every Softmax of the graph itself, bodies not included."""
    yield from (n for n in graph if n.op_type == "Softmax" and n.domain in ("", "ai.onnx"))


def match(view: View, anchor: ir.Node) -> AttentionMatch:
    """Match the attention around a Softmax.

    Raises:
        NoMatch: with the reason.
    """
    scores = anchor.inputs[0]
    if scores is None:
        raise NoMatch("Softmax without input")
    return match_core(view, anchor, NAME, scores, anchor.outputs[0], {anchor}, axis_of(view, anchor))


def axis_of(view: View, node: ir.Node) -> int:
    """Return the axis that a Softmax or LogSoftmax goes over; -1 for the last.

    Raises:
        NoMatch: it goes over several.
    """
    flattens = view.opset(node) < 13  # there the axis begins those that the softmax goes over together
    axis = int_attribute(node, "axis", 1 if flattens else -1)
    rank = view.rank(node.inputs[0])
    if axis != -1 and (rank is None or (flattens and axis not in (rank - 1, -1))):
        which = "and all that follow" if rank else "of unknown rank"
        raise NoMatch(f"softmax over axis {axis} {which}")
    return -1 if axis == -1 or rank is None or axis % rank == rank - 1 else axis
