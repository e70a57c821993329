"""The candidates that a host runtime runs on a GPU, from an ONNX model: ONNX Runtime and TensorRT."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from intfa_onnx.bench import graphs
from intfa_onnx.bench.candidate import Candidate, Inputs
from intfa_onnx.bench.on_device import candidate, stream, tensors
from intfa_onnx.bench.problem import Problem
from intfa_onnx.errors import UnsupportedError
from intfa_onnx.session import open_session
from intfa_onnx.trt_plugin import import_tensorrt

if TYPE_CHECKING:
    import torch


def intfa_in_ort(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """Our operator in ONNX Runtime on CUDA: the kernels, and what the host costs."""
    return _ort(graphs.fused(problem, np.float16, "int8"), tensors(inputs))


def ort_mha(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """ONNX Runtime's own fused attention on CUDA: ``com.microsoft.MultiHeadAttention``, float16."""
    batch, heads, seqlen, channels = inputs[0].shape
    packed = [x.transpose(1, 2).flatten(2).contiguous() for x in tensors(inputs)]
    return _ort(
        graphs.multi_head(problem, np.float16),
        packed,
        lambda y: y.view(batch, seqlen, heads, channels).transpose(1, 2),
    )


def tensorrt_unfused(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """What TensorRT makes of the exported graph in float16 without a plugin."""
    arrays = tensors(inputs)
    tensorrt = import_tensorrt()
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(graphs.unfused(problem, np.float16).SerializeToString()):
        raise UnsupportedError(f"TensorRT's parser refuses the graph: {parser.get_error(0)}")
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise UnsupportedError("TensorRT cannot build the graph")
    runtime = tensorrt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    y = _empty_like(arrays[0])
    for name, tensor in zip("QKVY", (*arrays, y), strict=True):
        context.set_tensor_address(name, tensor.data_ptr())

    def call(_keep: object = (arrays, runtime, engine)) -> torch.Tensor:  # the context holds addresses only
        if not context.execute_async_v3(stream().cuda_stream):
            raise RuntimeError("TensorRT cannot enqueue the engine")
        return y

    return candidate(call)


def _ort(model: onnx.ModelProto, arrays: Any, view: Callable[[torch.Tensor], torch.Tensor] = lambda y: y) -> Candidate:
    """Run a model on our stream; inputs and output stay on the device, and a call does not wait for it."""
    provider = ("CUDAExecutionProvider", {"user_compute_stream": str(stream().cuda_stream)})
    session = open_session(model.SerializeToString(), providers=[provider])
    import onnxruntime

    binding = session.io_binding()
    y = _empty_like(arrays[0])
    for name, tensor in zip("QKV", arrays, strict=True):
        binding.bind_input(name, "cuda", 0, np.float16, tuple(tensor.shape), tensor.data_ptr())
    binding.bind_output("Y", "cuda", 0, np.float16, tuple(y.shape), y.data_ptr())
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def call(_keep: object = arrays) -> torch.Tensor:  # the binding holds addresses only
        session.run_with_iobinding(binding, options)
        return view(y)

    return candidate(call)


def _empty_like(x: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.empty_like(x)
