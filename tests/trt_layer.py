"""One layer of the TensorRT plugin through TensorRT's life of a layer, on the host's memory or on a GPU's."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from intfa_onnx import op_schema

ROOT = Path(__file__).resolve().parent.parent

# nvinfer1::DataType and nvinfer1::PluginFieldType, by their numbers
TYPES = {
    np.dtype(np.float32): 0,
    np.dtype(np.float16): 1,
    np.dtype(np.int8): 2,
    np.dtype(np.bool_): 4,
    np.dtype(ml_dtypes.bfloat16): 7,
    np.dtype(np.int64): 8,
}
FLOAT32, INT32, CHAR = 1, 5, 6

ALLOCATE = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)


class Field(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
    )


class Tensor(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 8),
        ("data", ctypes.c_void_p),
    )


class HostMemory:
    """Arrays where the plugin reads and writes them: numpy's own. A device has the same methods."""

    def upload(self, array: np.ndarray) -> tuple[Any, int]:
        """Return what keeps a copy alive, and its address."""
        array = np.array(array, order="C")
        return array, array.ctypes.data

    def download(self, kept: Any, like: np.ndarray) -> np.ndarray:
        """Return what ``upload`` gave, as it is now; ``like`` has its type and shape."""
        return kept


def build_driver() -> ctypes.CDLL:
    """Compile tests/native/trt/run_layer.cpp; needs a compiler and nothing else."""
    compiler = shutil.which("g++") or pytest.skip("g++ is not installed")
    library = ROOT / "build/trt_driver/librun_layer.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    source = ROOT / "tests/native/trt/run_layer.cpp"
    command = [compiler, "-std=c++20", "-shared", "-fPIC", f"-I{ROOT / 'plugin'}", str(source), "-o", str(library)]
    subprocess.run([*command, "-ldl"], check=True)
    return ctypes.CDLL(str(library))


def fields_of(attributes: dict[str, Any]) -> tuple[Any, list[Any]]:
    """Return attributes as TensorRT's parser gives them to a creator, and what keeps their memory."""
    fields = (Field * max(1, len(attributes)))()
    memory: list[Any] = []
    for field, (name, value) in zip(fields, attributes.items(), strict=False):
        if isinstance(value, str):
            data = ctypes.create_string_buffer(value.encode(), max(1, len(value)))
            kind, length = CHAR, len(value)
        else:
            data = (ctypes.c_float if isinstance(value, float) else ctypes.c_int32)(value)
            kind, length = FLOAT32 if isinstance(value, float) else INT32, 1
        memory.append(data)
        field.name, field.data, field.type, field.length = name.encode(), ctypes.addressof(data), kind, length
    return fields, memory


def run_layer(
    driver: ctypes.CDLL,
    plugin: Path,
    inputs: dict[str, np.ndarray],
    attributes: dict[str, Any],
    *,
    gaps_closed: bool = False,
    memory: Any = None,
) -> list[np.ndarray]:
    """Run one layer and return its outputs.

    Args:
        driver: of :func:`build_driver`.
        plugin: the plugin library.
        inputs: by their operator names. Absent ones leave a gap, or with ``gaps_closed`` none.
        attributes: of the operator.
        gaps_closed: whether TensorRT closes the gaps that absent inputs leave.
        memory: a :class:`HostMemory` or its like.
    """
    memory = memory or HostMemory()
    given = [name for name in op_schema.INPUTS if name in inputs]
    last = op_schema.INPUTS.index(given[-1]) + 1
    names = given if gaps_closed else op_schema.INPUTS[:last]
    if len(given) < last:
        attributes = attributes | {"plugin_inputs": ",".join(given)}
    kept: list[Any] = []
    tensors = (Tensor * len(names))()
    for tensor, name in zip(tensors, names, strict=True):
        if (x := inputs.get(name)) is not None:
            array, address = memory.upload(x)
            kept.append(array)
            tensor.type, tensor.rank, tensor.data = TYPES[x.dtype], x.ndim, address
            tensor.shape[: x.ndim] = x.shape
    count = attributes.get("plugin_outputs", 1)
    outputs = (Tensor * count)()
    fields, values = fields_of(attributes)

    def allocate(size: int) -> int:
        array, address = memory.upload(np.full(size + 256, 0xFF, np.uint8))  # nobody clears the caller's workspace
        kept.append(array)
        return address + -address % 256

    call = (str(plugin).encode(), fields, len(attributes), tensors, len(names), outputs, count, ALLOCATE(allocate))
    assert driver.run_layer(*call) == 0  # types and shapes only
    dtypes = {number: dtype for dtype, number in TYPES.items()}
    likes = [np.full(t.shape[: t.rank], 0x55).astype(dtypes[t.type]) for t in outputs]
    results = [memory.upload(like) for like in likes]
    for tensor, (_, address) in zip(outputs, results, strict=True):
        tensor.data = address
    assert driver.run_layer(*call) == 0
    del values
    return [memory.download(array, like) for (array, _), like in zip(results, likes, strict=True)]
