"""The CUDA backend on a real GPU, over the cases that the simulators run: what they cannot see is checked here."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
from c_abi import OK, Call, make_call, view_arrays
from cases import CASES, AttentionCase

from intfa_onnx import c_abi, cuda_runner
from intfa_onnx.cuda_runner import CudaAttention
from intfa_onnx.errors import UnsupportedError

pytestmark = pytest.mark.gpu

# Keys per tile, a part of the numerics: 128 in the wgmma kernels, 64 in the others. Which runs is the library's choice.
TILES = (128, 64)
FORMS = (("int8", "tile"), ("int8", "paper"), ("int8_qk", "tile"))
OUTPUTS = ("y", "present_key", "present_value", "lse")


@functools.cache
def gpuarray() -> Any:
    try:
        return cuda_runner.driver()
    except UnsupportedError as error:
        pytest.skip(str(error))


class DeviceCall:
    """A call's arrays on the GPU, and the runner on them."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.arrays = {name: self._upload(array) for name, array in call.arrays.items()}
        attributes = {**call.attributes, "tile_n": 0}
        self.attention = CudaAttention(view_arrays(call.case, self.arrays), **attributes)

    def _upload(self, array: np.ndarray) -> Any:
        device = gpuarray().empty(array.shape, array.dtype)
        if array.nbytes:
            _driver().memcpy_htod(device.gpudata, np.ascontiguousarray(array))
        return device

    def run(self) -> dict[str, np.ndarray]:
        for name in OUTPUTS:
            self.spoil(name)
        self.attention.enqueue()
        _driver().Context.synchronize()
        return {name: self.download(name) for name in OUTPUTS}

    def spoil(self, name: str) -> None:
        """Overwrite an output, so that an element that is not written shows."""
        if self.arrays[name].nbytes:
            _driver().memset_d8(self.arrays[name].gpudata, 0xA5, self.arrays[name].nbytes)

    def download(self, name: str) -> np.ndarray:
        host = np.empty_like(self.call.arrays[name])
        if host.nbytes:
            _driver().memcpy_dtoh(host, self.arrays[name].gpudata)
        return host


def _driver() -> Any:
    import pycuda.driver

    return pycuda.driver


def device_call(case: AttentionCase, precision: str = "int8", scheme: str = "tile") -> DeviceCall:
    gpuarray()  # the library looks at the current device
    for tile_n in TILES:
        call = make_call(case, precision=precision, scheme=scheme, tile_n=tile_n)
        try:
            c_abi.cuda_workspace_bytes(call.problem)
        except UnsupportedError:
            continue
        return DeviceCall(call)
    raise UnsupportedError(f"no kernel takes {case.name} in tiles of {TILES} keys")


def test_gpu_runs_wgmma_on_hopper() -> None:
    """Otherwise every other test here would pass on the kernels for sm_80."""
    gpuarray()
    if _driver().Context.get_device().compute_capability() != (9, 0):
        pytest.skip("no Hopper GPU")
    assert device_call(CASES[0]).call.attributes["tile_n"] == 128


# Enough of them for the persistent kernels, which take 192 queries per CTA and 256 CTAs at least.
CROWDS = [
    dataclasses.replace(case, name=f"{case.name}_crowd", batch=case.batch * 32, num_heads=8, kv_num_heads=4)
    for case in CASES
    if case.name in ("plain", "ragged", "d96", "d128", "causal", "causal_past", "float16")
]


@pytest.mark.parametrize(("precision", "scheme"), FORMS)
@pytest.mark.parametrize("case", [*CASES, *CROWDS], ids=lambda case: case.name)
def test_gpu_is_the_cpu_backend(case: AttentionCase, precision: str, scheme: str) -> None:
    """Same integers, only exp2 differs: a code of P may flip by one, which moves y by less than 2e-3 of its range."""
    device = device_call(case, precision, scheme)
    result = device.run()
    code, message = device.call.run()
    assert code == OK, message
    expected = device.call.arrays
    for name in ("present_key", "present_value"):
        assert result[name].tobytes() == expected[name].tobytes(), name
    y, expected_y = (x["y"].astype(np.float64) for x in (result, expected))
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected_y))
    np.testing.assert_array_equal(np.isposinf(y), np.isposinf(expected_y))
    np.testing.assert_array_equal(np.isneginf(y), np.isneginf(expected_y))
    finite = np.isfinite(expected_y)
    steps = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(case.dtype, 0.0)  # a rounding of the output may flip too
    bound = 2e-3 * np.abs(expected_y[finite]).max(initial=0) + steps * np.abs(expected_y[finite])
    assert (np.abs(y[finite] - expected_y[finite]) <= bound).all()
    np.testing.assert_array_equal(np.isfinite(result["lse"]), np.isfinite(expected["lse"]))
    lse = np.isfinite(expected["lse"])
    np.testing.assert_allclose(result["lse"][lse], expected["lse"][lse], rtol=1e-5, atol=2e-3)


def test_gpu_graph_replays() -> None:
    """Nothing allocates or synchronizes: the call can be captured, which torch does here, and sees new inputs."""
    torch = pytest.importorskip("torch")
    case = next(c for c in CASES if c.name == "causal")
    device = device_call(case)
    first = device.run()["y"]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        device.attention.enqueue(torch.cuda.current_stream().cuda_stream)
    other = device_call(dataclasses.replace(case, seed=case.seed + 1))
    expected = other.run()["y"]
    for name in ("Q", "K", "V"):
        _driver().memcpy_dtod(device.arrays[name].gpudata, other.arrays[name].gpudata, other.arrays[name].nbytes)
    for _ in range(3):
        device.spoil("y")
        graph.replay()
        _driver().Context.synchronize()
        assert device.download("y").tobytes() == expected.tobytes()
    assert first.tobytes() != expected.tobytes()


def test_gpu_streams_do_not_disturb_each_other() -> None:
    case = next(c for c in CASES if c.name == "plain")
    devices = [device_call(dataclasses.replace(case, seed=seed)) for seed in range(4)]
    expected = [d.run()["y"].tobytes() for d in devices]
    streams = [_driver().Stream() for _ in devices]
    for _ in range(20):
        for device, stream in zip(devices, streams, strict=True):
            device.attention.enqueue(stream)
    _driver().Context.synchronize()
    assert [d.download("y").tobytes() for d in devices] == expected


@pytest.mark.parametrize("name", ["ragged", "causal", "d128", "mask_bool", "gqa", "d128_crowd"])
def test_gpu_sanitizer_shapes(name: str) -> None:
    """Small shapes for compute-sanitizer, which slows a kernel down a hundredfold; each twice, for the same bits."""
    device = device_call(next(c for c in [*CASES, *CROWDS] if c.name == name))
    assert device.run()["y"].tobytes() == device.run()["y"].tobytes()
