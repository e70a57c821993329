"""Runs the CUDA kernels on pycuda's device arrays, without ONNX: for tests on a GPU and for benchmarks.

    from intfa_onnx.cuda_runner import CudaAttention, driver

    gpuarray = driver()
    q, k, v = (gpuarray.to_gpu(x) for x in (q, k, v))        # [B, H, S, D]
    attention = CudaAttention({"q": q, "k": k, "v": v}, is_causal=1, precision="int8")
    attention.enqueue()                                       # as often as wanted; or enqueue(stream)
    y = attention.arrays["y"].get()

Arrays of other libraries with ``__cuda_array_interface__`` (torch, cupy) may take the place of pycuda's; what is not
given is allocated by pycuda. A benchmark times ``enqueue`` alone: it allocates nothing, synchronizes nothing and can be
captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from intfa_onnx import c_abi
from intfa_onnx.c_problem import Layout, make_problem
from intfa_onnx.errors import UnsupportedError


def driver() -> Any:
    """Return pycuda's ``gpuarray`` with the device's primary context current: the one that the library launches in.

    Raises:
        UnsupportedError: pycuda is missing, or finds no driver or no GPU.
    """
    try:
        import pycuda.autoprimaryctx  # noqa: F401  # makes the context
        from pycuda import gpuarray
    except ImportError as error:
        remedy = "Install it where CUDA's compiler and NVIDIA's driver are: pip install 'intfa-onnx[cuda]'"
        raise UnsupportedError(f"pycuda cannot be imported ({error}). {remedy}") from error
    except Exception as error:  # pycuda's own classes, which exist only once it is imported
        raise UnsupportedError(f"pycuda finds no GPU ({error}). Check nvidia-smi") from error
    return gpuarray


class CudaAttention:
    """One attention on device arrays, ready to be launched again and again.

    Attributes:
        arrays: inputs and outputs by name, ``y`` among them.
        problem: what is computed, for :mod:`intfa_onnx.c_abi`.
    """

    def __init__(self, arrays: Mapping[str, Any], *, lse: bool = False, **attributes: float | str) -> None:
        """Check the arrays and allocate what is missing: the workspace, ``y``, and ``lse`` if it is wanted.

        Args:
            arrays: on the device, with the names, shapes and types of :func:`intfa_onnx.c_problem.make_problem`. A
                ``y`` that is not given is contiguous [B, Hq, Sq, Dv] of Q's type, float32 where that is int8.
            lse: allocate ``lse``, float32 [B, Hq, Sq], too.
            attributes: the operator's, and ``tile_n``.
        Raises:
            UnsupportedError: arrays that do not fit each other, no kernel for them, or no pycuda.
        """
        gpuarray = driver()
        self.arrays = dict(arrays)
        if {"q", "v"} <= self.arrays.keys() and "y" not in self.arrays:
            q, v = (Layout.of(name, arrays[name]) for name in ("q", "v"))
            dtype = np.float32 if q.dtype == "int8" else arrays["q"].dtype
            self.arrays["y"] = gpuarray.empty((*q.shape[:3], v.shape[-1]), dtype)
        if lse and "q" in self.arrays:
            self.arrays["lse"] = gpuarray.empty(Layout.of("q", arrays["q"]).shape[:3], np.float32)
        self.problem, self._tensors = make_problem(self.arrays, **attributes)  # type: ignore[arg-type]
        # One byte at least: an empty array has no address. The driver's allocations are at multiples of 256 bytes.
        self._workspace = gpuarray.empty((max(c_abi.cuda_workspace_bytes(self.problem), 1),), np.uint8)

    @property
    def workspace_bytes(self) -> int:
        """Device memory beside the tensors."""
        return int(self._workspace.nbytes)

    def enqueue(self, stream: Any = None) -> None:
        """Launch the kernels.

        Args:
            stream: a ``pycuda.driver.Stream``, a ``cudaStream_t`` as an integer, or None for the default stream.
        Raises:
            UnsupportedError: the library has no code for this GPU.
            IntfaError: the launch failed.
        """
        handle = int(getattr(stream, "handle", stream or 0))
        c_abi.run_cuda(self.problem, self._tensors, Layout.of("workspace", self._workspace).address, handle)
