"""Models that a tool made of an exported one: quantized, optimized, converted to half precision, merged."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import torch
import transformers as t

from zoo.case import Call, Case, Input, define
from zoo.export import write_dynamo, write_torchscript
from zoo.transformer_models import bert, clip_vision, gpt2_past, llama, llama_past, vit, whisper_decoder

ONE = ("graph",)


def _exported(case: Case, opset: int = 17) -> onnx.ModelProto:
    """Return the model as TorchScript (opset 17) or dynamo (18) exports it."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.onnx"
        (write_torchscript if opset == 17 else write_dynamo)(case, opset, path, True)
        return onnx.load(path)


def _through(model: onnx.ModelProto, tool: Callable[[Path, Path], Any]) -> onnx.ModelProto:
    """Return what ``tool(from, to)`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.onnx", Path(folder) / "target.onnx"
        onnx.save(model, source)
        tool(source, target)
        return onnx.load(target)


# ---- ONNX Runtime's quantization ----


def _quantized(case: Case, tool: Callable[[Path, Path], Any]) -> Case:
    model = _exported(case)
    return replace(case, model=_through(model, tool), unquantized=model)


@define("derived", ONE)
def dynamic_quantized(_: str) -> Case:
    """Projections as MatMulInteger, as ``quantize_dynamic`` does it; attention stays in float."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    return _quantized(bert("eager"), lambda a, b: quantize_dynamic(a, b, weight_type=QuantType.QInt8))


@define("derived", ONE)
def dynamic_quantized_products(_: str) -> Case:
    """Both products of attention as MatMulInteger too, with one scale per tensor found at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    def tool(source: Path, target: Path) -> None:
        quantize_dynamic(
            source,
            target,
            weight_type=QuantType.QUInt8,
            op_types_to_quantize=["MatMul"],
            extra_options={"MatMulConstBOnly": False},
        )

    return _quantized(bert("eager"), tool)


class _Samples:
    """Calibration data: the case's own input, three times with other values."""

    def __init__(self, case: Case):
        self.feeds = iter([case.feed({}, seed=seed) for seed in range(3)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def _static_quantized(case: Case, **options: Any) -> Case:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    def tool(source: Path, target: Path) -> None:
        quantize_static(
            source,
            target,
            _Samples(case),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            **options,
        )

    return _quantized(case, tool)


@define("derived", ONE)
def static_quantized(_: str) -> Case:
    """QuantizeLinear and DequantizeLinear around everything: projections, both products, softmax, additions."""
    return _static_quantized(vit("eager"))


@define("derived", ONE)
def static_quantized_symmetric(_: str) -> Case:
    """The same with zero points of 0 and only products quantized, as TensorRT wants it."""
    return _static_quantized(vit("eager"), op_types_to_quantize=["MatMul"], extra_options={"ActivationSymmetric": True})


@define("derived", ONE)
def static_quantized_padded(_: str) -> Case:
    return _static_quantized(bert("sdpa"), op_types_to_quantize=["MatMul"])


# ---- ONNX Runtime's optimizer, onnxscript's fusions ----


def _optimized(case: Case) -> Case:
    from onnxruntime.transformers.optimizer import optimize_model

    model_type, heads, hidden = case.peer

    def tool(source: Path, target: Path) -> None:
        optimize_model(str(source), model_type, heads, hidden, opt_level=0).save_model_to_file(str(target))

    return replace(case, model=_through(_exported(case), tool))


@define("derived", ONE)
def optimized_bert(_: str) -> Case:
    """com.microsoft Attention with packed weights, SkipLayerNormalization around it."""
    return _optimized(bert("eager"))


@define("derived", ONE)
def optimized_clip_vision(_: str) -> Case:
    return _optimized(clip_vision("eager"))


def _ort_fusions(case: Case) -> Case:
    import onnxscript.optimizer
    from onnxscript import ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    model = ir.from_proto(_exported(case, 18))
    onnxscript.optimizer.optimize(model)
    optimized = optimize_for_ort(model)
    return replace(case, model=ir.to_proto(optimized[0] if isinstance(optimized, tuple) else optimized))


@define("derived", ONE)
def ort_fusions_bert(_: str) -> Case:
    """com.microsoft MultiHeadAttention."""
    return _ort_fusions(bert("sdpa"))


@define("derived", ONE)
def ort_fusions_llama(_: str) -> Case:
    return _ort_fusions(llama("sdpa"))


@define("derived", ONE)
def ort_fusions_llama_past(_: str) -> Case:
    """com.microsoft GroupQueryAttention."""
    return _ort_fusions(llama_past("eager"))


@define("derived", ONE)
def ort_fusions_whisper_decoder(_: str) -> Case:
    return _ort_fusions(whisper_decoder("sdpa"))


# ---- half precision, branches ----


@define("derived", ONE)
def converted_to_fp16(_: str) -> Case:
    """Float16 by a converter of graphs: casts where inputs come in, and around what stays in float."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    case = bert("eager")
    model = convert_float_to_float16(_exported(case), keep_io_types=True, op_block_list=["Softmax", "Tanh"])
    return replace(case, model=model, dtype=torch.float16)


@define("derived", ONE)
def merged_decoder(_: str) -> Case:
    """A decoder as Optimum merges it: an If with the model without a past in one branch, with a past in the other."""

    def without_past(m: Any, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> Any:
        cache = t.DynamicCache()
        mask = mask[:, -ids.shape[1] :]
        out = m(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        return (out.logits, *(x for layer in cache.layers for x in (layer.keys, layer.values)))

    case = gpt2_past("eager")
    assert isinstance(case.model, Call)
    first = [name for name in case.inputs if not name.startswith("past")]
    no_past = replace(
        case, model=Call(case.model.model, without_past), inputs={name: case.inputs[name] for name in first}
    )
    with_past, without = _exported(case), _exported(no_past)
    inputs = {**case.inputs, "use_cache_branch": Input("keep", ())}
    return replace(case, model=_merge(with_past, without), inputs=inputs, attentions=2 * case.attentions)


def _merge(then: onnx.ModelProto, otherwise: onnx.ModelProto) -> onnx.ModelProto:
    """Join two models under an If; weights that are equal become one, outside. Both branches keep their names."""
    shared: dict[bytes, onnx.TensorProto] = {}
    branches = []
    for model in (then, otherwise):
        names = {}
        for tensor in model.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            content = f"{array.dtype}{array.shape}".encode() + array.tobytes()
            if content not in shared:
                shared[content] = onnx.numpy_helper.from_array(array, f"shared_{len(shared)}")
            names[tensor.name] = shared[content].name
        for node in model.graph.node:
            for i, name in enumerate(node.input):
                node.input[i] = names.get(name, name)
        branches.append(onnx.helper.make_graph(model.graph.node, model.graph.name, [], model.graph.output))
    switch = onnx.helper.make_tensor_value_info("use_cache_branch", onnx.TensorProto.BOOL, [])
    outputs = [onnx.ValueInfoProto() for _ in then.graph.output]
    for info, source in zip(outputs, then.graph.output, strict=True):
        info.CopyFrom(source)
    choice = onnx.helper.make_node(
        "If",
        [switch.name],
        [info.name for info in outputs],
        name="optimum::if",
        then_branch=branches[0],
        else_branch=branches[1],
    )
    graph = onnx.helper.make_graph([choice], "merged", [*then.graph.input, switch], outputs, list(shared.values()))
    return onnx.helper.make_model(graph, opset_imports=then.opset_import, ir_version=8)
