"""The pattern for ``polygraphy plugin match`` and ``replace``: the rewriter's matches, as Polygraphy wants them.

``polygraphy plugin match model.onnx --plugin-dir "$(intfa-onnx libpath polygraphy)" -o config.yaml``
"""

from __future__ import annotations

import glob
from typing import Any

import onnx_graphsurgeon as gs

import intfa_onnx
from intfa_onnx.op_schema import OP_TYPE


def get_plugin_metadata() -> dict[str, str]:
    """Return the folder's name and the operator's."""
    return {"name": OP_TYPE, "op": OP_TYPE}


def get_matching_subgraphs(graph: gs.Graph) -> list[dict[str, Any]]:
    """Return one instance per attention of the main graph that the rewriter would replace.

    Delete an instance from the file to keep that attention in float. ``inputs`` are those of the fused node that the
    graph has already. ``attributes`` are the fused node's, and ``node``, by which :func:`replace_with_plugin` finds the
    attention.
    """
    result = intfa_onnx.rewrite(gs.export_onnx(graph), target="trt")
    fused = {node.name: node for node in result.model.graph if node.op_type == OP_TYPE}
    known = graph.tensors()
    return [
        {
            "inputs": [v.name for v in fused[a.node].inputs if v is not None and v.name in known],
            "outputs": [a.output],
            "attributes": {"node": a.node} | {n: x.value for n, x in fused[a.node].attributes.items()},
        }
        for a in result.attentions
        if a.decision == "replaced" and not a.scope
    ]


def replace_with_plugin(
    graph: gs.Graph, input_tensors: list[gs.Tensor], output_tensors: list[gs.Tensor], attrs: dict[str, Any], op: str
) -> bool:
    """Replace the attention that ``attrs["node"]`` names; return whether it was there."""
    result = intfa_onnx.rewrite(gs.export_onnx(graph), only=[glob.escape(attrs["node"])], target="trt")
    rewritten = gs.import_onnx(result.to_proto())
    for part in ("nodes", "inputs", "outputs", "import_domains"):
        setattr(graph, part, getattr(rewritten, part))
    return any(a.decision == "replaced" for a in result.attentions)
