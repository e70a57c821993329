"""``IntFlashAttention`` for ``onnx.reference``: a rewritten model runs in pure Python.

``ReferenceEvaluator(model, new_ops=[IntFlashAttention])``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import helper
from onnx.reference.op_run import OpRun

from intfa_onnx import op_schema, reference

# For TensorRT alone.
_NOT_OURS = ("plugin_namespace", "plugin_version", "plugin_inputs", "plugin_outputs")


class IntFlashAttention(OpRun):
    """The operator; its name and domain are what ``ReferenceEvaluator`` looks for."""

    op_domain = op_schema.DOMAIN

    def _run(self, *inputs: np.ndarray | None, **attributes: Any) -> tuple[np.ndarray, ...]:
        result = evaluate(inputs, attributes)
        outputs = (result.y, result.present_key, result.present_value, result.lse.astype(np.float32))
        return outputs[: len(self.onnx_node.output)]


def evaluate(inputs: Sequence[np.ndarray | None], attributes: Mapping[str, Any]) -> reference.AttentionResult:
    """Compute a node from its inputs, None where one is absent, and its attributes, defaults where one is."""
    chosen = {name: a.default for name, a in op_schema.ATTRIBUTES.items()} | dict(attributes)
    output_dtype = chosen.pop("output_dtype")
    for name in _NOT_OURS:
        del chosen[name]
    return reference.attention(
        *inputs,  # type: ignore[arg-type]  # Q, K and V are required inputs, hence never None
        **chosen,
        output_dtype=helper.tensor_dtype_to_np_dtype(output_dtype) if output_dtype else None,
    )
