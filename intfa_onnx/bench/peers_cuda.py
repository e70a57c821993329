"""The candidates on a GPU, on float16 tensors: our kernels, and what a user would otherwise run there.

Each maker returns a :class:`Candidate`, or raises UnsupportedError with the reason why it cannot run here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from intfa_onnx import c_abi
from intfa_onnx.bench.candidate import Candidate, Inputs
from intfa_onnx.bench.problem import Problem
from intfa_onnx.errors import UnsupportedError

if TYPE_CHECKING:
    import torch


def event_timer(call: Callable[[], object], repeats: int) -> float:
    """Return mean seconds per call by device events around all of them."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def intfa_int8(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """Our kernels, all INT8, the quantizing prologue included."""
    return _intfa(problem, inputs, "int8")


def intfa_int8_qk(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """Our kernels with P.V in float16, the prologue included."""
    return _intfa(problem, inputs, "int8_qk")


def torch_cudnn(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """CuDNN's fused attention through PyTorch."""
    return _torch(problem, inputs, "CUDNN_ATTENTION")


def torch_flash(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """FlashAttention-2 through PyTorch."""
    return _torch(problem, inputs, "FLASH_ATTENTION")


def sageattention(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """SageAttention as its package on PyPI has it."""
    try:
        from sageattention import sageattn
    except ImportError as error:
        raise UnsupportedError(f"sageattention cannot be imported ({error})") from error
    q, k, v = _tensors(inputs)
    return _candidate(lambda: sageattn(q, k, v, tensor_layout="HND", is_causal=problem.causal))


CUDA_PEERS: dict[str, Callable[[Problem, Inputs, int], Candidate]] = {
    "intfa int8": intfa_int8,
    "intfa int8_qk": intfa_int8_qk,
    "torch cuDNN f16": torch_cudnn,
    "torch FlashAttention-2 f16": torch_flash,
    "sageattention": sageattention,
}


def _tensors(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    try:
        import torch
    except ImportError as error:
        raise UnsupportedError(f"torch cannot be imported ({error})") from error
    if not torch.cuda.is_available():
        raise UnsupportedError("torch sees no CUDA device")
    q, k, v = (torch.from_numpy(x).half().cuda() for x in inputs)
    return q, k, v


def _candidate(call: Callable[[], torch.Tensor]) -> Candidate:
    last: list[torch.Tensor] = []

    def run() -> None:
        last[:] = [call()]

    def output() -> np.ndarray:
        return last[0].float().cpu().numpy()

    return Candidate(run, output)


def _torch(problem: Problem, inputs: Inputs, backend: str) -> Candidate:
    q, k, v = _tensors(inputs)
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    grouped = problem.num_heads != problem.kv_num_heads

    def call() -> torch.Tensor:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=problem.causal, enable_gqa=grouped
            )

    return _candidate(call)


def _intfa(problem: Problem, inputs: Inputs, precision: str) -> Candidate:
    q, k, v = _tensors(inputs)
    import torch

    y = torch.empty_like(q)
    c_problem = c_abi.Problem(
        batch=problem.batch,
        num_heads=problem.num_heads,
        kv_num_heads=problem.kv_num_heads,
        seqlen_q=problem.seqlen,
        seqlen_new=problem.seqlen,
        head_dim=problem.head_dim,
        head_dim_v=problem.head_dim,
        dtype=c_abi.DTYPES.index("float16"),
        output_dtype=c_abi.DTYPES.index("float16"),
        q_strides=q.stride()[:3],
        k_strides=k.stride()[:3],
        v_strides=v.stride()[:3],
        y_strides=y.stride()[:3],
        causal=problem.causal,
        window_left=-1,
        window_right=-1,
        precision=c_abi.PRECISIONS.index(precision),
        smooth_k=1,
    )
    tensors = c_abi.Tensors(q=q.data_ptr(), k=k.data_ptr(), v=v.data_ptr(), y=y.data_ptr())
    workspace = torch.empty(c_abi.cuda_workspace_bytes(c_problem), dtype=torch.uint8, device="cuda")
    stream = torch.cuda.current_stream().cuda_stream

    def call(_keep: object = (q, k, v)) -> torch.Tensor:  # the C struct holds addresses only
        c_abi.run_cuda(c_problem, tensors, workspace.data_ptr(), stream)
        return y

    return _candidate(call)
