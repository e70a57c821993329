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
    axis = int_attribute(anchor, "axis", -1 if view.opset(anchor) >= 13 else 1)
    rank = view.rank(scores)
    if axis != -1 and (rank is None or axis != rank - 1):
        raise NoMatch(
            f"softmax over axis {axis}, which is not the last" if rank else f"softmax over axis {axis} of unknown rank"
        )
    return match_core(view, anchor, NAME, scores, anchor.outputs[0], {anchor})
