"""A rewrite that is wrong, to see that the checks see it."""

from __future__ import annotations

from pathlib import Path

import intfa_onnx
from intfa_onnx.op_schema import OP_TYPE

_rewrite = intfa_onnx.rewrite


def values_for_keys(path: Path, **options: bool) -> intfa_onnx.RewriteResult:
    """Rewrite the model, then read V in K's place."""
    result = _rewrite(path, **options)
    for node in result.model.graph.all_nodes():
        if node.op_type == OP_TYPE:
            node.replace_input_with(1, node.inputs[2])
    return result
