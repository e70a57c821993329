"""The candidates on a GPU, on float16 tensors: our kernels, and what a user would otherwise run there.

Each maker returns a :class:`Candidate`, or raises UnsupportedError with the reason why it cannot run here.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intfa_onnx import c_abi
from intfa_onnx.bench.candidate import Candidate, Inputs, Peer
from intfa_onnx.bench.limits import find_device
from intfa_onnx.bench.on_device import candidate, event_timer, stream, tensors
from intfa_onnx.bench.op import Machine
from intfa_onnx.bench.peers_cuda_hosts import intfa_in_ort, ort_mha, tensorrt_unfused
from intfa_onnx.bench.problem import Problem
from intfa_onnx.c_problem import make_problem
from intfa_onnx.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

AUTHORS_CHECKOUT = "INT_FLASHATTENTION_DIR"  # environment variable: where their repository lies
_CODES = 127.0


def intfa_int8(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """Our kernels, all INT8, the quantizing prologue included."""
    return _intfa(problem, tensors(inputs), "int8")


def intfa_int8_qk(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """Our kernels with P.V in float16, the quantizing prologue included."""
    return _intfa(problem, tensors(inputs), "int8_qk")


def intfa_codes(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """Our kernels on INT8 tensors with a scale per head, so without the quantizing, as the authors' kernel runs."""
    arrays = tensors(inputs)
    scales = [x.float().abs().amax(dim=(0, 2, 3)) / _CODES for x in arrays]  # the operator's scales have no batch
    codes = [_rounded(x, s.view(1, -1, 1, 1)) for x, s in zip(arrays, scales, strict=True)]
    return _intfa(problem, codes, "int8", scales)


def torch_cudnn(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """CuDNN's fused attention through PyTorch."""
    return _torch(problem, inputs, "CUDNN_ATTENTION")


def torch_flash(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """FlashAttention-2 through PyTorch."""
    return _torch(problem, inputs, "FLASH_ATTENTION")


def flash3(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """FlashAttention-3 in float16."""
    return _flash3(problem, tensors(inputs), {})


def flash3_fp8(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """FlashAttention-3 on FP8 tensors (e4m3) with a scale per head, their quantization not counted.

    PyTorch's own FP8 attention (``torch.nn.attention.experimental``) hands over to this package; it is called directly,
    because activating it within PyTorch would replace FlashAttention-2 for the other candidate as well.
    """
    arrays = tensors(inputs)
    import torch

    largest = torch.finfo(torch.float8_e4m3fn).max
    scales = [x.float().abs().amax(dim=(2, 3)) / largest for x in arrays]
    codes = [(x / s[..., None, None]).to(torch.float8_e4m3fn) for x, s in zip(arrays, scales, strict=True)]
    group = problem.num_heads // problem.kv_num_heads
    q_scale = scales[0].view(problem.batch, -1, group).amax(dim=2)  # the package wants one per KV head
    if group > 1:
        codes[0] = (arrays[0] / q_scale.repeat_interleave(group, 1)[..., None, None]).to(torch.float8_e4m3fn)
    return _flash3(problem, codes, {"q_descale": q_scale, "k_descale": scales[1], "v_descale": scales[2]})


def sageattention(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """SageAttention as its package on PyPI has it."""
    arrays = tensors(inputs)
    sageattn = _import("sageattention").sageattn
    return candidate(lambda: sageattn(*arrays, tensor_layout="HND", is_causal=problem.causal))


def authors_triton(problem: Problem, inputs: Inputs, threads: int) -> Candidate:
    """The INT-FlashAttention authors' Triton kernel, full INT8, from their checkout; codes given, as they measure."""
    arrays = tensors(inputs)
    folder = os.environ.get(AUTHORS_CHECKOUT, "")
    if not folder:
        raise UnsupportedError(f"set {AUTHORS_CHECKOUT} to a checkout of the authors' repository")
    if not Path(folder, "flash_atten_full_int8.py").is_file():
        raise UnsupportedError(f"{AUTHORS_CHECKOUT}={folder} has no flash_atten_full_int8.py")
    if problem.num_heads != problem.kv_num_heads:
        raise UnsupportedError("has no grouped heads")
    if folder not in sys.path:
        sys.path.append(folder)
    kernel = _import("flash_atten_full_int8").attention_full_int8
    q, q_scale = _quantized(arrays[0], dims=(3,))
    k, k_scale = _quantized(arrays[1], dims=(3,))
    v, v_scale = _quantized(arrays[2], dims=(2, 3))
    scales = [q_scale.half().squeeze(3), k_scale.half().squeeze(3), v_scale.half().flatten(1)]
    return candidate(lambda: kernel(q, k, v, *scales, problem.causal, problem.head_dim**-0.5))


CUDA_PEERS = {
    "intfa int8": Peer(intfa_int8),
    "intfa int8_qk": Peer(intfa_int8_qk),
    "intfa int8, codes given": Peer(intfa_codes, input_bytes=1),
    "intfa int8 in ort": Peer(intfa_in_ort),
    "torch cuDNN f16": Peer(torch_cudnn),
    "torch FlashAttention-2 f16": Peer(torch_flash),
    "FlashAttention-3 f16": Peer(flash3),
    "FlashAttention-3 fp8, codes given": Peer(flash3_fp8, input_bytes=1),
    "sageattention": Peer(sageattention),
    "INT-FlashAttention Triton, codes given": Peer(authors_triton, input_bytes=1),
    "ort MultiHeadAttention f16": Peer(ort_mha),
    "tensorrt unfused f16": Peer(tensorrt_unfused),
}


def machine(name: str) -> Machine:
    """Return how to time on the GPU of this name, and its limits."""
    device = find_device(name)
    hopper = device is not None and device.name in ("H100", "H200")

    def tile_m(head_dim: int) -> int:  # kTileM in plugin/cuda: of the wgmma kernel that fills the GPU, of mma.sync's
        return (192 if hopper else 128) if head_dim <= 128 else 64

    return Machine(device, element_bytes=2, timer=event_timer, tile_m=tile_m)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (
        Exception
    ) as error:  # packages with compiled parts fail in many ways where they do not fit the GPU's software
        raise UnsupportedError(f"{name} cannot be imported ({error})") from error


def _rounded(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    import torch

    return (x.float() / scale).round().clamp(-_CODES, _CODES).to(torch.int8)


def _quantized(x: torch.Tensor, dims: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return INT8 codes, and float32 scales with the reduced ``dims`` kept."""
    scale = x.float().abs().amax(dim=dims, keepdim=True) / _CODES
    return _rounded(x, scale), scale


def _torch(problem: Problem, inputs: Inputs, backend: str) -> Candidate:
    q, k, v = tensors(inputs)
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    grouped = problem.num_heads != problem.kv_num_heads

    def call() -> torch.Tensor:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=problem.causal, enable_gqa=grouped
            )

    return candidate(call)


def _flash3(problem: Problem, arrays: Any, scales: dict[str, torch.Tensor]) -> Candidate:
    function = _import("flash_attn_interface").flash_attn_func
    q, k, v = (x.transpose(1, 2) for x in arrays)  # the package's order is [batch, seqlen, heads, head_dim]

    def call() -> torch.Tensor:
        y = function(q, k, v, causal=problem.causal, **scales)
        return (y[0] if isinstance(y, tuple) else y).transpose(1, 2)

    return candidate(call)


def _intfa(problem: Problem, arrays: Any, precision: str, scales: Any = ()) -> Candidate:
    """Call the C interface; ``scales`` are of Q, K and V per head, where the arrays are INT8."""
    q, k, v = arrays
    import torch

    y = torch.empty(q.shape, dtype=torch.float16, device=q.device)
    named = {"q": q, "k": k, "v": v, "y": y} | dict(zip(("q_scale", "k_scale", "v_scale"), scales, strict=False))
    described, pointers = make_problem(named, is_causal=problem.causal, precision=precision)
    workspace = torch.empty(c_abi.cuda_workspace_bytes(described), dtype=torch.uint8, device=q.device)

    def call(_keep: object = named) -> torch.Tensor:  # the C struct holds addresses only
        c_abi.run_cuda(described, pointers, workspace.data_ptr(), stream().cuda_stream)
        return y

    return candidate(call)
