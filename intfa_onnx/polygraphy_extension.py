"""Extends ``polygraphy run``: our operator in ONNX Runtime, in the CPU reference and in TensorRT, with no path to type.

``polygraphy run model.onnx --ort-custom --pluginref --trt``. Polygraphy finds this module through the entry point
``polygraphy.run.plugins`` of the installed package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator
from polygraphy.backend.pluginref.references import OP_REGISTRY
from polygraphy.tools.args import ModelArgs, OnnxLoadArgs, OnnxrtSessionArgs, TrtLoadPluginsArgs
from polygraphy.tools.args.base import BaseArgs, BaseRunnerArgs
from polygraphy.tools.script import Script, make_invocable

from intfa_onnx import native
from intfa_onnx.errors import UnsupportedError
from intfa_onnx.op_schema import DOMAIN, OP_TYPE, OPSET_VERSION
from intfa_onnx.reference_op import IntFlashAttention
from intfa_onnx.runner import GatherElements

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def export_argument_groups() -> list[BaseArgs]:
    """Register the references, and return the groups that Polygraphy adds to ``polygraphy run``."""
    OP_REGISTRY[OP_TYPE] = evaluate
    for schema in onnx.defs.get_all_schemas():
        if schema.domain == "":
            OP_REGISTRY.setdefault(schema.name, evaluate)
    return [OrtCustomRunnerArgs()]


class OrtCustomRunnerArgs(BaseRunnerArgs):
    """ONNX-Runtime with intfa: running inference with the operator ``intfa::IntFlashAttention``.

    Depends on:

        - ModelArgs
        - OnnxLoadArgs
        - OnnxrtSessionArgs
        - TrtLoadPluginsArgs
    """

    def get_name_opt_impl(self) -> tuple[str, str]:
        """Return the runner's name and its option."""
        return "ONNX-Runtime with intfa::IntFlashAttention", "ort-custom"

    def parse_impl(self, args: Any) -> None:
        """Add our plugin library to those that TensorRT loads, where TensorRT is asked for."""
        if "trt" not in args.runners:
            return
        try:
            library = str(native.get_library_path("trt"))
        except UnsupportedError:  # without it TensorRT's parser names the operator that it lacks
            return
        loaded = self.arg_groups[TrtLoadPluginsArgs]
        loaded.plugins = [*(loaded.plugins or []), library]

    def add_to_script_impl(self, script: Script) -> None:
        """Add the runner; model and ``--providers`` are those of ``--onnxrt``."""
        loading = self.arg_groups[OnnxLoadArgs]
        model = self.arg_groups[ModelArgs].path
        if loading.must_use_onnx_loader():  # e.g. other outputs were asked for
            model = loading.add_to_script(script, serialize_model=True)
        providers = _full_names(self.arg_groups[OnnxrtSessionArgs].providers or ["cpu"])
        script.add_import(imports=["OrtRunner"], frm="intfa_onnx.runner")
        script.add_runner(make_invocable("OrtRunner", model, providers=providers))


def evaluate(node: gs.Node, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute one node in pure Python; the reference of every operator that Polygraphy has none for.

    A node does not know its model's opset: it is read by the newest definition that has its attributes and number of
    inputs. Definitions that differ in nothing else are told apart wrongly, such as Softmax before opset 13.

    Args:
        node: of the graph that ``--pluginref`` runs.
        tensors: values by name, of at least the node's inputs that are no constants.
    Returns:
        The outputs by name.
    """
    import onnx_graphsurgeon as gs
    from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

    proto = OnnxExporter.export_node(node)
    feed = {
        tensor.name: tensor.values if isinstance(tensor, gs.Constant) else tensors[tensor.name]
        for tensor in node.inputs
        if not tensor.is_empty()
    }
    unknown = onnx.TensorProto.UNDEFINED
    inputs = [helper.make_tensor_value_info(name, unknown, None) for name in feed]
    outputs = [helper.make_tensor_value_info(name, unknown, None) for name in proto.output if name]
    graph = helper.make_graph([proto], "node", inputs, outputs)
    opsets = [helper.make_opsetid("", _opset(proto)), helper.make_opsetid(DOMAIN, OPSET_VERSION)]
    evaluator = ReferenceEvaluator(
        helper.make_model(graph, opset_imports=opsets), new_ops=[IntFlashAttention, GatherElements]
    )
    return dict(zip(evaluator.output_names, evaluator.run(None, feed), strict=True))


def _opset(node: onnx.NodeProto) -> int:
    version = onnx.defs.onnx_opset_version()
    if node.domain == DOMAIN:
        return version
    attributes = {attribute.name for attribute in node.attribute}
    while True:
        schema = onnx.defs.get_schema(node.op_type, version)
        fits = attributes <= set(schema.attributes) and schema.min_input <= len(node.input) <= schema.max_input
        if fits or schema.since_version == 1:
            return schema.since_version
        version = schema.since_version - 1


def _full_names(providers: Sequence[str]) -> list[str]:
    """Return each provider's whole name; like Polygraphy, take a part of it in any case."""
    import onnxruntime

    known = onnxruntime.get_all_providers()
    return [next((name for name in known if part.lower() in name.lower()), part) for part in providers]
