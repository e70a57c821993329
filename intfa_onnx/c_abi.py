"""The native core through its C interface (``intfa/c_api.h``), on raw pointers; for benchmarks and tests.

The one declaration of its structures in Python. :func:`intfa_onnx.c_problem.make_problem` fills them from arrays of any
library (numpy, torch, pycuda), and :class:`intfa_onnx.cuda_runner.CudaAttention` runs pycuda's.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from intfa_onnx import native
from intfa_onnx.errors import IntfaError, UnsupportedError

DTYPES = ("float32", "float16", "bfloat16", "int8", "bool")  # enum DataType
SCALES = ("none", "per_tensor", "per_head", "per_channel")  # enum ScaleGranularity

_STATUS_UNSUPPORTED = 2
_MESSAGE_BYTES = 1000

# Names of the fields in the header's order; `name:n` is an array.
_INTEGERS = """
batch num_heads kv_num_heads seqlen_q seqlen_new seqlen_past head_dim head_dim_v dtype output_dtype
q_strides:3 k_strides:3 v_strides:3 y_strides:3 causal causal_alignment window_left window_right
mask_present mask_dtype mask_strides:4 mask_seqlen_kv has_nonpad_kv_seqlen
precision scheme k_granularity smooth_k tile_n q_scale k_scale v_scale
"""
POINTERS = (
    "q", "k", "v", "past_key", "past_value", "mask", "nonpad_kv_seqlen", "q_scale", "k_scale", "v_scale",
    "y", "present_key", "present_value", "lse",
)  # fmt: skip


def _integer_field(text: str) -> tuple[str, Any]:
    name, _, count = text.partition(":")
    return name, ctypes.c_int64 * int(count) if count else ctypes.c_int64


class Problem(ctypes.Structure):
    """``intfa_problem``; strides are of batch, head and token, in elements."""

    _fields_ = (
        *map(_integer_field, _INTEGERS.split()),
        ("softmax_scale", ctypes.c_double),
        ("softcap", ctypes.c_double),
    )


class Tensors(ctypes.Structure):
    """``intfa_tensors``: addresses, on the device where the backend is CUDA."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in POINTERS)


class Codes(ctypes.Structure):
    """``intfa_codes``: what the CPU backend quantizes, for tests."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("q", "q_scale", "k", "k_scale", "k_mean", "v", "v_scale"))


def cuda_architectures() -> str:
    """Return the GPUs that the library has code for, e.g. ``"sm 80, 86, 90a; PTX 90a"``; empty without CUDA kernels."""
    function = library().intfa_cuda_architectures
    function.restype = ctypes.c_char_p
    return function().decode()


def cpu_instruction_set() -> str:
    """Return what the CPU backend uses in this process, e.g. ``"avx2"``; ``INTFA_MAX_ISA`` bounds it."""
    function = library().intfa_cpu_instruction_set
    function.restype = ctypes.c_char_p
    return function().decode()


def has_cuda_code(compute_capability: str) -> bool:
    """Return whether a GPU of this compute capability, e.g. ``"8.6"``, finds code in the library.

    Machine code serves its own major version from its minor version on, with an "a" that one GPU alone; PTX serves
    every newer GPU.
    """
    major, _, minor = compute_capability.partition(".")
    here = 10 * int(major) + int(minor)
    code, _, ptx = cuda_architectures().removeprefix("sm ").partition("; PTX ")
    for name in filter(None, code.split(", ")):
        built = int(name.rstrip("a"))
        if here == built or (name.isdigit() and here // 10 == built // 10 and here > built):
            return True
    return ptx.isdigit() and here >= int(ptx)


def cuda_workspace_bytes(problem: Problem) -> int:
    """Return the bytes of device memory that :func:`run_cuda` needs, at a multiple of 256 bytes.

    Raises:
        UnsupportedError: the build has no CUDA kernels, or none for this problem.
    """
    size = ctypes.c_size_t()
    _call("intfa_workspace_bytes_cuda", ctypes.byref(problem), ctypes.byref(size))
    return size.value


def run_cuda(problem: Problem, tensors: Tensors, workspace: int, stream: int = 0) -> None:
    """Enqueue one attention on a CUDA stream.

    Args:
        problem: what to compute.
        tensors: device addresses.
        workspace: device address of :func:`cuda_workspace_bytes` bytes.
        stream: ``cudaStream_t`` as an integer, e.g. ``torch.cuda.current_stream().cuda_stream``.
    Raises:
        UnsupportedError: no kernel for this problem or this GPU.
        IntfaError: the problem is wrong, or the launch failed.
    """
    arguments = (ctypes.byref(problem), ctypes.byref(tensors), ctypes.c_void_p(workspace), ctypes.c_void_p(stream))
    _call("intfa_run_cuda", *arguments)


@cache
def library() -> ctypes.CDLL:
    """Load the library that the package uses."""
    return ctypes.CDLL(str(native.get_library_path("ort")))


def _call(function: str, *arguments: Any) -> None:
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    status = getattr(library(), function)(*arguments, message, ctypes.c_size_t(_MESSAGE_BYTES))
    if status:
        raise (UnsupportedError if status == _STATUS_UNSUPPORTED else IntfaError)(message.value.decode())
