"""Polygraphy runners that know ``IntFlashAttention``: ONNX Runtime, TensorRT, and pure Python."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.reference
from onnx import helper
from onnx.reference.op_run import OpRun
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.common import TensorMetadata
from polygraphy.util import invoke_if_callable

from intfa_onnx.op_schema import DOMAIN
from intfa_onnx.reference_op import IntFlashAttention
from intfa_onnx.session import CPU, open_session
from intfa_onnx.trt_plugin import load_trt_plugin


class OrtRunner(OnnxrtRunner):
    """ONNX Runtime with the native library registered."""

    def __init__(
        self,
        model: str | os.PathLike[str] | Callable[[], bytes],
        name: str | None = None,
        providers: Sequence[str] = (CPU,),
        threads: int = 0,
    ) -> None:
        """Remember the arguments of :func:`intfa_onnx.session.open_session`; the session opens on activation.

        ``model`` may also be one of Polygraphy's loaders of a serialized model.
        """
        super().__init__(
            lambda: open_session(invoke_if_callable(model)[0], providers=providers, threads=threads), name=name
        )


def tensorrt_runner(
    model: str | os.PathLike[str], shapes: Mapping[str, Sequence[int]], name: str | None = None
) -> BaseRunner:
    """Return a runner that builds an engine for one set of input shapes, of the model's own types, with our plugin.

    Args:
        model: path of an ONNX model.
        shapes: of every input, by name.
        name: of the runner, in reports.
    Raises:
        UnsupportedError: TensorRT is missing or refuses the plugin library, or that is not built.
    """
    load_trt_plugin()
    from polygraphy.backend.trt import CreateConfig, EngineFromNetwork, NetworkFromOnnxPath, Profile, TrtRunner

    profile = Profile()
    for input_name, shape in shapes.items():
        profile.add(input_name, min=tuple(shape), opt=tuple(shape), max=tuple(shape))
    network = NetworkFromOnnxPath(os.fspath(model), strongly_typed=True)
    return TrtRunner(EngineFromNetwork(network, CreateConfig(profiles=[profile])), name=name)


class GatherElements(OpRun):
    """Replaces onnx's own, which fails where the axis is longer than 64; every BERT that torch exports has one."""

    op_domain = ""

    def _run(self, data: np.ndarray, indices: np.ndarray, axis: int = 0) -> tuple[np.ndarray]:
        # Off the axis, the indices may cover less than the data.
        covered = [slice(None) if a == axis % data.ndim else slice(n) for a, n in enumerate(indices.shape)]
        return (np.take_along_axis(data[tuple(covered)], indices, axis),)


class ReferenceRunner(BaseRunner):
    """``onnx.reference`` with our numpy operator: slow, but needs neither ONNX Runtime nor the native library."""

    def __init__(self, model: str | os.PathLike[str], name: str | None = None) -> None:
        """Remember the path; the model loads on activation."""
        super().__init__(name=name, prefix="onnx-reference")
        self._path = os.fspath(model)

    def activate_impl(self) -> None:
        """Load the model; of a portable one without the operator's float functions, which are not what is to run."""
        self._model = onnx.load(self._path)
        others = [function for function in self._model.functions if function.domain != DOMAIN]
        del self._model.functions[:]
        self._model.functions.extend(others)
        self._evaluator = onnx.reference.ReferenceEvaluator(self._model, new_ops=[IntFlashAttention, GatherElements])

    def get_input_metadata_impl(self) -> TensorMetadata:
        """Return names, types and shapes of the inputs; an unknown dimension is its symbol or None."""
        metadata = TensorMetadata()
        for value in self._model.graph.input:
            tensor = value.type.tensor_type
            shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim]
            metadata.add(value.name, dtype=helper.tensor_dtype_to_np_dtype(tensor.elem_type), shape=shape)
        return metadata

    def infer_impl(self, feed_dict: dict[str, Any]) -> OrderedDict[str, Any]:
        """Run the model once and return its outputs by name."""
        return OrderedDict(zip(self._evaluator.output_names, self._evaluator.run(None, feed_dict), strict=True))

    def deactivate_impl(self) -> None:
        """Free the model."""
        del self._model, self._evaluator
