"""Families of exported attention. Each module finds its anchors and matches one; all are read-only.

A family is a module with ``NAME``, ``anchors(graph)`` and ``match(view, anchor)``: ``docs/patterns.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, cast

import onnx_ir as ir

from intfa_onnx.patterns import contrib, decomposed, fused, softmax, standard
from intfa_onnx.patterns.absorb import absorb
from intfa_onnx.patterns.causal import absorb_positions
from intfa_onnx.patterns.match import AttentionMatch, NoMatch, Rejection
from intfa_onnx.patterns.view import View

FAMILIES = (softmax, decomposed, standard, contrib, fused)

__all__ = ["FAMILIES", "AttentionMatch", "Family", "Rejection", "View", "anchors", "match_anchor"]


class Family(Protocol):
    """What a family module provides."""

    NAME: str

    def anchors(self, graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
        """Yield the nodes of the graph itself, bodies not included, that may be an attention."""

    def match(self, view: View, anchor: ir.Node) -> AttentionMatch:
        """Read the attention at an anchor, or raise ``NoMatch`` with the reason."""


def anchors(graph: ir.Graph | ir.Function) -> list[tuple[Family, ir.Node]]:
    """Return every anchor of the graph itself, bodies not included, in the order of its nodes."""
    order = {node: i for i, node in enumerate(graph)}
    found = [(cast(Family, family), anchor) for family in FAMILIES for anchor in family.anchors(graph)]
    return sorted(found, key=lambda pair: order[pair[1]])


def match_anchor(view: View, family: Family, anchor: ir.Node) -> AttentionMatch | Rejection:
    """Match one anchor and absorb what can be absorbed."""
    try:
        match = family.match(view, anchor)
        return absorb_positions(view, absorb(view, match) if match.around else match)
    except NoMatch as reason:
        return Rejection(anchor, family.NAME, str(reason), supported=family.NAME == fused.NAME)
