"""The pycuda runner without a GPU: a driver whose memory is the host's, and the CPU backend in the kernels' place."""

from __future__ import annotations

import ctypes
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from c_abi import make_call, view_arrays
from cases import CASES, AttentionCase

from intfa_onnx import c_abi, cuda_runner
from intfa_onnx.cuda_runner import CudaAttention
from intfa_onnx.errors import IntfaError, UnsupportedError


class DeviceArray:
    """A device array whose device is the host."""

    def __init__(self, host: np.ndarray) -> None:
        self.host, self.dtype, self.nbytes = host, host.dtype, host.nbytes
        self.__cuda_array_interface__ = {**host.__array_interface__, "version": 3}


class FakeDriver:
    """``pycuda.gpuarray`` and the library's CUDA entry points."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allocated: list[DeviceArray] = []
        self.launches: list[tuple[int, int]] = []
        self.error: Exception | None = None
        gpuarray = ModuleType("pycuda.gpuarray")
        gpuarray.empty = self.empty  # type: ignore[attr-defined]
        package = ModuleType("pycuda")
        package.gpuarray = gpuarray  # type: ignore[attr-defined]
        for module in (package, gpuarray, ModuleType("pycuda.autoprimaryctx")):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(c_abi, "cuda_workspace_bytes", lambda problem: 1000)
        monkeypatch.setattr(c_abi, "run_cuda", self.run_cuda)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        self.allocated.append(DeviceArray(np.full(shape, 0x55, dtype)))
        return self.allocated[-1]

    def run_cuda(self, problem: c_abi.Problem, tensors: c_abi.Tensors, workspace: int, stream: int) -> None:
        if self.error is not None:
            raise self.error
        self.launches.append((workspace, stream))
        message = ctypes.create_string_buffer(1000)
        status = c_abi.library().intfa_run_cpu(
            ctypes.byref(problem), ctypes.byref(tensors), 1, message, ctypes.c_size_t(len(message))
        )
        assert status == 0, message.value


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return FakeDriver(monkeypatch)


def case_named(name: str) -> AttentionCase:
    return next(case for case in CASES if case.name == name)


def on_device(case: AttentionCase, *names: str) -> dict[str, DeviceArray]:
    return {name: DeviceArray(x) for name, x in view_arrays(case, make_call(case).arrays).items() if name in names}


INPUTS = ("q", "k", "v", "past_key", "past_value", "mask", "nonpad_kv_seqlen", "q_scale", "k_scale", "v_scale")


@pytest.mark.parametrize(
    "name", ["plain", "bshd_gqa_float16", "int8_channel", "causal_past", "mask_short_float", "nonpad", "bfloat16"]
)
def test_what_it_launches_is_the_case(fake: FakeDriver, name: str) -> None:
    case = case_named(name)
    call = make_call(case, precision="int8_qk", tile_n=64)
    assert call.run()[0] == 0
    attention = CudaAttention(on_device(case, *INPUTS), lse=True, **call.attributes)
    attention.enqueue()
    expected = view_arrays(case, call.arrays)
    for output in ("y", "lse"):
        assert attention.arrays[output].host.tobytes() == np.ascontiguousarray(expected[output]).tobytes(), output
    assert attention.arrays["y"].dtype == (np.float32 if case.dtype == "int8" else case.dtype)


def test_memory_is_allocated_once_and_streams_are_the_callers(fake: FakeDriver) -> None:
    attention = CudaAttention(on_device(case_named("plain"), "q", "k", "v", "y"))
    (workspace,) = fake.allocated
    assert attention.workspace_bytes == workspace.nbytes == 1000
    for stream in (None, 77, SimpleNamespace(handle=88)):
        attention.enqueue(stream)
    assert len(fake.allocated) == 1
    assert fake.launches == [(workspace.host.ctypes.data, handle) for handle in (0, 77, 88)]


def test_errors_are_the_packages(fake: FakeDriver) -> None:
    arrays = on_device(case_named("plain"), "q", "k", "v")
    with pytest.raises(UnsupportedError, match=r"missing: \['v'"):
        CudaAttention({name: arrays[name] for name in ("q", "k")})
    with pytest.raises(UnsupportedError, match="lse has shape"):
        CudaAttention({**arrays, "lse": DeviceArray(np.zeros(3, np.float32))})
    fake.error = IntfaError("cudaLaunchKernel: out of resources")
    with pytest.raises(IntfaError, match="out of resources"):
        CudaAttention(arrays).enqueue()


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (None, r"pycuda cannot be imported .*pip install 'intfa-onnx\[cuda\]'"),
        ("broken", "pycuda finds no GPU .*no dev"),
    ],
)
def test_without_pycuda_or_a_gpu(monkeypatch: pytest.MonkeyPatch, module: str | None, said: str) -> None:
    class NoDevice(ModuleType):
        """A package whose submodule cannot make a context."""

        def __getattr__(self, name: str) -> object:
            raise RuntimeError("cuInit failed: no device")

    broken = NoDevice("pycuda") if module else None
    monkeypatch.setitem(sys.modules, "pycuda", broken)
    monkeypatch.setitem(sys.modules, "pycuda.autoprimaryctx", ModuleType("pycuda.autoprimaryctx") if module else None)
    with pytest.raises(UnsupportedError, match=said):
        cuda_runner.driver()
