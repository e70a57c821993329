"""The public entry: load -> raise (find attentions) -> plan -> lower -> result."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from intfa_onnx import model_io, op_schema
from intfa_onnx.emit import Names
from intfa_onnx.errors import UnsupportedError
from intfa_onnx.lower import domain_of, lower
from intfa_onnx.patterns import View, anchors, match_anchor
from intfa_onnx.plan import Options, plan
from intfa_onnx.portable import add_functions, is_portable
from intfa_onnx.report import AttentionReport

ModelSource = str | os.PathLike[str] | onnx.ModelProto | ir.Model


@dataclass(frozen=True)
class RewriteResult:
    """A rewritten model and what became of each of its attentions.

    Attributes:
        model: the rewritten model. External data is referenced, not loaded.
        attentions: one row per attention found, in graph order.
        unmatched: the patterns of ``only`` and ``skip`` that name none of the attentions found.
        nodes_before: number of nodes before and
        nodes_after: after the rewrite, bodies and functions included.
    """

    model: ir.Model
    attentions: tuple[AttentionReport, ...]
    unmatched: tuple[str, ...] = ()
    nodes_before: int = 0
    nodes_after: int = 0

    @property
    def portable(self) -> bool:
        """Whether the model carries the float meaning of the operator, from this rewrite or an earlier one."""
        return is_portable(self.model)

    def to_proto(self) -> onnx.ModelProto:
        """Return the model as a protobuf message (external data stays referenced)."""
        return ir.to_proto(self.model)

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the model atomically.

        Raises:
            ModelError: ``path`` exists and ``force`` is not set, or cannot be written; nothing half-written is left.
        """
        model_io.save(self.model, path, force=force)

    def to_json(self) -> str:
        """Return the report as a JSON object: ``summary`` and ``attentions``."""
        return json.dumps(self.to_dict(), indent=2)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        return {
            "summary": self.summary(),
            "portable": self.portable,
            "unmatched": list(self.unmatched),
            "nodes_before": self.nodes_before,
            "nodes_after": self.nodes_after,
            "attentions": [a.to_dict() for a in self.attentions],
        }

    def summary(self) -> str:
        """Return one line: how many attentions were found, replaced, kept and rejected."""
        if not self.attentions:
            return "no attention found: the model is unchanged"
        counts = Counter(a.decision for a in self.attentions)
        parts = [f"{counts[d]} {d}" for d in ("replaced", "kept", "rejected") if counts[d]]
        noun = "attention" if len(self.attentions) == 1 else "attentions"
        return f"{len(self.attentions)} {noun} found: {', '.join(parts)}"


def rewrite(
    model: ModelSource,
    *,
    precision: str = "int8",
    scheme: str = "tile",
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    portable: bool = False,
    target: str = "ort",
) -> RewriteResult:
    """Replace the attentions of a model by ``intfa::IntFlashAttention``.

    The given model is not changed.

    Args:
        model: a path, an ``onnx.ModelProto`` or an ``onnx_ir.Model``.
        precision: "int8" (both products) or "int8_qk" (P.V in 16-bit floating point).
        scheme: "tile" or "paper".
        only: names or globs of attentions as the report has them; one that none of these means is kept. Empty: all.
        skip: the same; an attention that one of these means is kept.
        portable: add a model-local function with the operator's float meaning, so that ONNX Runtime also runs the file
            where the native library is absent.
        target: "ort"; "trt" for TensorRT, whose plugins take no boolean mask; "ort-trt-ep" for ONNX Runtime's TensorRT
            provider, which also looks for plugins in a domain of its own. TensorRT's parser prefers a function body to
            a plugin, so the last two refuse ``portable``.

    Raises:
        ModelError: the model cannot be read.
        UnsupportedError: an unknown precision, scheme or target, a string for a list of patterns, or ``portable`` with
            a TensorRT target.
    """
    for name, patterns in (("only", only), ("skip", skip)):
        if isinstance(patterns, str):  # each of its letters would be a pattern, and `*` means all
            raise UnsupportedError(f"{name} is the string {patterns!r} (supported: a list). Write [{patterns!r}]")
    options = Options(precision, scheme, tuple(only), tuple(skip), portable, target)
    options.check()
    working = working_copy(model)
    nodes_before = _count_nodes(working)
    view, names = View(working), Names(working)
    reports: list[AttentionReport] = []
    lowered: list[tuple[ir.Node, int, int | None, int | None]] = []
    for scope, container in scopes(working):
        for family, anchor in anchors(container):
            planned = plan(match_anchor(view, family, anchor), scope, options)
            reports.append(planned.report)
            if planned.match is not None:
                node = lower(view, planned.match, names, options)
                assert planned.match.head_dim is not None
                lowered.append((node, planned.match.head_dim, planned.match.num_heads, planned.match.kv_num_heads))
    if lowered:
        _import_domain(working, domain_of(target))
        _declare_call_types(working, view)
    if portable:
        add_functions(working, view, lowered)
    unmatched = tuple(p for p in (*only, *skip) if not any(r.is_meant_by(p) for r in reports))
    return RewriteResult(working, tuple(reports), unmatched, nodes_before, _count_nodes(working))


def working_copy(source: ModelSource) -> ir.Model:
    """Return a model that may be changed, its nodes sorted; external data is referenced.

    Raises:
        ModelError: it cannot be read.
    """
    if isinstance(source, ir.Model):
        model = source.clone()
    elif isinstance(source, onnx.ModelProto):
        model = model_io.from_proto(source)
    else:
        model = model_io.load(source)
    _sort_if_needed(model)
    return model


def scopes(model: ir.Model) -> Iterator[tuple[str, ir.Graph | ir.Function]]:
    """Yield the main graph, the bodies in it, and the functions with the bodies in them, each with its path."""
    yield from _with_bodies("", model.graph)
    for function in list(model.functions.values()):
        if function.domain != op_schema.DOMAIN:
            yield from _with_bodies(f"function {function.domain}::{function.name}", function)


def _with_bodies(path: str, container: ir.Graph | ir.Function) -> Iterator[tuple[str, ir.Graph | ir.Function]]:
    yield path, container
    for node in list(container):
        for attribute in list(node.attributes.values()):
            graphs = [attribute.value] if attribute.type == ir.AttributeType.GRAPH else []
            graphs += list(attribute.value) if attribute.type == ir.AttributeType.GRAPHS else []
            for graph in graphs:
                name = (node.name or node.op_type).lstrip("/")
                yield from _with_bodies(f"{path}/{name}.{attribute.name}", graph)


def _sort_if_needed(model: ir.Model) -> None:
    """Sort the nodes of a model whose exporter did not, as the checker demands; leave any other as it is."""
    containers: list[ir.Graph | ir.Function] = [*model.graphs(), *model.functions.values()]
    if not all(_is_sorted(container) for container in containers):
        TopologicalSortPass()(model)


def _is_sorted(container: ir.Graph | ir.Function) -> bool:
    seen: set[ir.Node] = set()
    for node in container:
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and producer not in seen and producer.graph is node.graph:
                return False
        seen.add(node)
    return True


def _import_domain(model: ir.Model, domain: str) -> None:
    """Declare the domain of the fused nodes wherever one stands."""
    model.opset_imports.setdefault(domain, op_schema.OPSET_VERSION)
    for function in model.functions.values():
        if any(n.domain == domain for n in function.all_nodes()):
            function.opset_imports.setdefault(domain, op_schema.OPSET_VERSION)


def _declare_call_types(model: ir.Model, view: View) -> None:
    """Declare the types of what functions return: ONNX Runtime does not infer them through our operator."""
    for graph in model.graphs():
        for node in graph:
            if node.op_identifier() not in model.functions or node.domain == op_schema.DOMAIN:
                continue
            for output in node.outputs:
                if output.dtype is None and (dtype := view.dtype(output)) is not None:
                    output.dtype = dtype


def _count_nodes(model: ir.Model) -> int:
    """Count nodes in the main graph and in bodies; Constants and our own function bodies are not work."""
    containers: list[ir.Graph | ir.Function] = [
        model.graph,
        *(f for f in model.functions.values() if f.domain != op_schema.DOMAIN),
    ]
    return sum(node.op_type != "Constant" for c in containers for node in c.all_nodes())
