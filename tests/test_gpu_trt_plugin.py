"""The TensorRT plugin on real device memory, called as TensorRT calls it: every case, against the float64 truth."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES, AttentionCase
from test_trt_plugin import check_case
from trt_layer import build_driver, run_layer
from truth import TILE

from intfa_onnx import cuda_runner, native
from intfa_onnx.errors import UnsupportedError

pytestmark = pytest.mark.gpu


class DeviceMemory:
    """Arrays on the GPU; see ``trt_layer.HostMemory``."""

    def __init__(self, gpuarray: Any) -> None:
        import pycuda.driver

        self._gpuarray, self._driver = gpuarray, pycuda.driver

    def upload(self, array: np.ndarray) -> tuple[Any, int]:
        array = np.array(array, order="C")
        device = self._gpuarray.empty((max(1, array.nbytes),), np.uint8)
        if array.nbytes:
            self._driver.memcpy_htod(device.gpudata, array)
        return device, int(device.gpudata)

    def download(self, kept: Any, like: np.ndarray) -> np.ndarray:
        host = np.empty_like(like)
        if host.nbytes:
            self._driver.memcpy_dtoh(host, kept.gpudata)  # waits for the stream, the default one
        return host


@pytest.fixture(scope="module")
def plugin() -> Path:
    try:
        return native.get_library_path("trt")
    except UnsupportedError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def memory() -> DeviceMemory:
    try:
        return DeviceMemory(cuda_runner.driver())
    except UnsupportedError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def driver() -> ctypes.CDLL:
    return build_driver()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gpu_every_case(case: AttentionCase, driver: ctypes.CDLL, plugin: Path, memory: DeviceMemory) -> None:
    def run(inputs: dict[str, np.ndarray], attributes: dict[str, Any]) -> list[np.ndarray]:
        return run_layer(driver, plugin, inputs, attributes, memory=memory)

    check_case(run, case, TILE)
