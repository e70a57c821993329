"""The candidates on a CPU: our operator in ONNX Runtime, and what a user would otherwise run there.

Each maker returns a :class:`Candidate`, or raises UnsupportedError with the reason why it cannot run here.
"""

from __future__ import annotations

import math
from itertools import cycle

import numpy as np
import onnx

from intfa_onnx.bench import graphs
from intfa_onnx.bench.calibrate import MEMORY_BYTES
from intfa_onnx.bench.candidate import Candidate, Inputs, Peer
from intfa_onnx.bench.problem import Problem
from intfa_onnx.errors import UnsupportedError
from intfa_onnx.session import open_session


def intfa_int8(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """Our operator, all INT8."""
    return _ort(graphs.fused(problem, np.float32, "int8"), problem, inputs, threads)


def intfa_int8_qk(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """Our operator with P.V in floating point."""
    return _ort(graphs.fused(problem, np.float32, "int8_qk"), problem, inputs, threads)


def intfa_codes(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """Our operator on INT8 tensors with a scale per head, so without the quantizing, as a cache of codes feeds it."""
    scales = [np.abs(x).max(axis=(0, 2, 3)) / np.float32(127) for x in inputs]
    codes = tuple(np.rint(x / s[:, None, None]).astype(np.int8) for x, s in zip(inputs, scales, strict=True))
    return _ort(graphs.fused(problem, np.int8, "int8", scales), problem, codes, threads)


def ort_unfused(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """The graph as exporters write it."""
    return _ort(graphs.unfused(problem, np.float32), problem, inputs, threads)


def ort_mha(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """ONNX Runtime's fused ``com.microsoft.MultiHeadAttention``."""
    return _ort(graphs.multi_head(problem, np.float32), problem, inputs, threads, packed=True)


def ort_attention(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """ONNX Runtime's kernel of the standard ``Attention`` operator, opset 24."""
    return _ort(graphs.attention(problem, np.float32), problem, inputs, threads)


def torch_f32(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """PyTorch's scaled_dot_product_attention in float32."""
    return _torch(problem, inputs, threads, "float32")


def torch_bf16(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """PyTorch's scaled_dot_product_attention in bfloat16."""
    return _torch(problem, inputs, threads, "bfloat16")


_Cache = tuple[np.ndarray, np.ndarray]  # K and V

# ONNX Runtime writes the scores before the softmax and its result.
CPU_PEERS = {
    "intfa int8": Peer(intfa_int8),
    "intfa int8_qk": Peer(intfa_int8_qk),
    "intfa int8, codes given": Peer(intfa_codes, input_bytes=1),
    "ort unfused": Peer(ort_unfused, scores=2),
    "ort MultiHeadAttention": Peer(ort_mha, scores=2),
    "ort Attention-24": Peer(ort_attention, scores=2),
    "torch sdpa f32": Peer(torch_f32),
    "torch sdpa bf16": Peer(torch_bf16),
}


def _ort(model: onnx.ModelProto, problem: Problem, inputs: Inputs, threads: int, packed: bool = False) -> Candidate:
    """Bind inputs and output once, so that a call measures the operator and not copies through numpy."""
    q, k, v = (_pack(x) if packed else x for x in inputs)
    session = open_session(model.SerializeToString(), threads=threads)
    import onnxruntime

    y = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(q.shape), np.float32)

    def bind(cache: _Cache) -> tuple[onnxruntime.IOBinding, list[onnxruntime.OrtValue]]:
        binding = session.io_binding()
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(x) for x in (q, *cache)]
        for name, value in zip("QKV", values, strict=True):
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output("Y", y)
        return binding, values  # the binding does not own its inputs

    turns = cycle([bind(cache) for cache in caches(problem, k, v)])

    def run() -> None:
        session.run_with_iobinding(next(turns)[0])

    return Candidate(run, lambda: _unpack(y.numpy(), problem.num_heads) if packed else y.numpy())


def caches(problem: Problem, k: np.ndarray, v: np.ndarray) -> list[_Cache]:
    """Return what the calls read in turn: a decoder comes back to a layer's cache after all other layers'."""
    copies = math.ceil(MEMORY_BYTES / (k.nbytes + v.nbytes)) if problem.decode else 1
    return [(k, v)] + [(k.copy(), v.copy()) for _ in range(copies - 1)]


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
    torch.set_num_threads(threads)

    def tensor(x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(x).to(getattr(torch, dtype))

    q, *cache = inputs
    query = tensor(q)
    turns = cycle([(tensor(k), tensor(v)) for k, v in caches(problem, *cache)])
    last: list[torch.Tensor] = []

    def run() -> None:
        key, value = next(turns)
        with torch.inference_mode():
            y = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=problem.causal, enable_gqa=problem.num_heads != problem.kv_num_heads
            )
        last[:] = [y]

    return Candidate(run, lambda: last[0].float().numpy())
