"""Family: the fused operator itself, which a second rewrite finds and leaves alone."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from intfa_onnx import op_schema
from intfa_onnx.patterns.match import AttentionMatch, NoMatch
from intfa_onnx.patterns.view import View

NAME = "fused"


def anchors(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    """Yield every IntFlashAttention of the graph itself, bodies not included."""
    domains = (op_schema.DOMAIN, op_schema.TRT_EP_DOMAIN)
    yield from (n for n in graph if n.op_type == op_schema.OP_TYPE and n.domain in domains)


def match(view: View, anchor: ir.Node) -> AttentionMatch:
    """Refuse.

    Raises:
        NoMatch: always; there is nothing left to do.
    """
    raise NoMatch(f"already {op_schema.OP_TYPE}")
