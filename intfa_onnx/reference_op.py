"""``IntFlashAttention`` for ``onnx.reference``: a rewritten model runs in pure Python.

``ReferenceEvaluator(model, new_ops=[IntFlashAttention]).run(None, feed)``
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from onnx import helper
from onnx.reference.op_run import OpRun

from intfa_onnx import reference
from intfa_onnx.op_schema import ATTRIBUTES, DOMAIN

_HOST_ONLY = ("plugin_namespace", "plugin_version")  # read by TensorRT's parser, without meaning here


class IntFlashAttention(OpRun):
    """The INT8 operator, by :func:`intfa_onnx.reference.attention`."""

    op_domain = DOMAIN

    def _run(self, *inputs: NDArray | None, **attributes: Any) -> tuple[NDArray, ...]:
        values = {
            name: getattr(self, name, attribute.default) if attributes.get(name) is None else attributes[name]
            for name, attribute in ATTRIBUTES.items()
            if name not in _HOST_ONLY
        }
        output_dtype = values["output_dtype"]
        values["output_dtype"] = helper.tensor_dtype_to_np_dtype(output_dtype) if output_dtype else None
        result = reference.attention(*inputs, **values)  # type: ignore[arg-type]  # the node's required inputs are there
        every = (result.y, result.present_key, result.present_value, result.lse)
        return every[: len(self.onnx_node.output)]
