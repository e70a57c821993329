"""The candidates on a CPU: our operator in ONNX Runtime, and what a user would otherwise run there.

Each maker returns a :class:`Candidate`, or raises UnsupportedError with the reason why it cannot run here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from intfa_onnx.bench.candidate import Candidate, Inputs
from intfa_onnx.bench.problem import Problem
from intfa_onnx.errors import UnsupportedError
from intfa_onnx.op_schema import DOMAIN, OP_TYPE
from intfa_onnx.session import open_session

CONTRIB = "com.microsoft"


def intfa_int8(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """Our operator, all INT8."""
    return _intfa(problem, inputs, threads, "int8")


def intfa_int8_qk(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """Our operator with P.V in floating point."""
    return _intfa(problem, inputs, threads, "int8_qk")


def _intfa(problem: Problem, inputs: Inputs, threads: int, precision: str) -> Candidate:
    node = helper.make_node(
        OP_TYPE, ["Q", "K", "V"], ["Y"], domain=DOMAIN, is_causal=int(problem.causal), precision=precision
    )
    return _ort_candidate(problem, [node], [], inputs, threads)


def ort_unfused(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """The graph as exporters write it: MatMul, Mul, Add of a mask, Softmax, MatMul."""
    _same_heads(problem)
    scale = numpy_helper.from_array(np.float32(1 / math.sqrt(problem.head_dim)), "scale")
    nodes = [
        helper.make_node("Transpose", ["K"], ["Kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["Q", "Kt"], ["S"]),
        helper.make_node("Mul", ["S", "scale"], ["scaled"]),
        helper.make_node("Softmax", ["masked" if problem.causal else "scaled"], ["P"], axis=-1),
        helper.make_node("MatMul", ["P", "V"], ["Y"]),
    ]
    constants = [scale]
    if problem.causal:
        mask = np.triu(np.full((problem.seqlen, problem.seqlen), -np.inf, np.float32), 1)
        constants.append(numpy_helper.from_array(mask, "mask"))
        nodes.insert(3, helper.make_node("Add", ["scaled", "mask"], ["masked"]))
    return _ort_candidate(problem, nodes, constants, inputs, threads)


def ort_mha(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """ONNX Runtime's fused ``com.microsoft.MultiHeadAttention``, which reads and writes [batch, seqlen, hidden]."""
    _same_heads(problem)
    node = helper.make_node(
        "MultiHeadAttention",
        ["Q", "K", "V"],
        ["Y"],
        domain=CONTRIB,
        num_heads=problem.num_heads,
        unidirectional=int(problem.causal),
    )
    return _ort_candidate(problem, [node], [], inputs, threads, packed_heads=True)


def ort_attention(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """ONNX Runtime's kernel of the standard ``Attention`` operator, opset 24."""
    node = helper.make_node("Attention", ["Q", "K", "V"], ["Y"], is_causal=int(problem.causal))
    return _ort_candidate(problem, [node], [], inputs, threads)


def torch_f32(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """PyTorch's scaled_dot_product_attention in float32."""
    return _torch(problem, inputs, threads, "float32")


def torch_bf16(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """PyTorch's scaled_dot_product_attention in bfloat16."""
    return _torch(problem, inputs, threads, "bfloat16")


CPU_PEERS: dict[str, Callable[[Problem, Inputs, int], Candidate]] = {
    "intfa int8": intfa_int8,
    "intfa int8_qk": intfa_int8_qk,
    "ort unfused": ort_unfused,
    "ort MultiHeadAttention": ort_mha,
    "ort Attention-24": ort_attention,
    "torch sdpa f32": torch_f32,
    "torch sdpa bf16": torch_bf16,
}


def _same_heads(problem: Problem) -> None:
    if problem.num_heads != problem.kv_num_heads:
        raise UnsupportedError("has no grouped heads")


def _ort_candidate(
    problem: Problem,
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    inputs: Inputs,
    threads: int,
    packed_heads: bool = False,
) -> Candidate:
    """Bind inputs and output once, so that a call measures the operator and not copies through numpy."""
    import onnxruntime

    arrays = [_pack(x) if packed_heads else x for x in inputs]
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape) for name, x in zip("QKV", arrays, strict=True)
    ]
    y_shape = arrays[0].shape
    graph = helper.make_graph(
        nodes, "bench", infos, [helper.make_tensor_value_info("Y", TensorProto.FLOAT, y_shape)], constants
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, 1), helper.make_opsetid(CONTRIB, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = open_session(model.SerializeToString(), threads=threads)
    binding = session.io_binding()
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(x) for x in arrays]
    for name, value in zip("QKV", values, strict=True):
        binding.bind_ortvalue_input(name, value)
    y = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(y_shape), np.float32)
    binding.bind_ortvalue_output("Y", y)

    def run(_keep: object = values) -> None:  # the binding does not own its inputs
        session.run_with_iobinding(binding)

    return Candidate(run, lambda: _unpack(y.numpy(), problem.num_heads) if packed_heads else y.numpy())


def _pack(x: np.ndarray) -> np.ndarray:
    batch, heads, seqlen, channels = x.shape
    return np.ascontiguousarray(x.transpose(0, 2, 1, 3).reshape(batch, seqlen, heads * channels))


def _unpack(x: np.ndarray, heads: int) -> np.ndarray:
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _torch(problem: Problem, inputs: Inputs, threads: int, dtype: str) -> Candidate:
    try:
        import torch
    except ImportError as error:
        raise UnsupportedError(f"torch cannot be imported ({error})") from error
    if threads:
        torch.set_num_threads(threads)
    q, k, v = (torch.from_numpy(x).to(getattr(torch, dtype)) for x in inputs)
    last: list[torch.Tensor] = []

    def run() -> None:
        with torch.inference_mode():
            y = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=problem.causal, enable_gqa=problem.num_heads != problem.kv_num_heads
            )
        last[:] = [y]

    return Candidate(run, lambda: last[0].float().numpy())
