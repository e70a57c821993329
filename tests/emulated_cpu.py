"""The CPU backend built for AArch64 and run under QEMU, with the face of the library that ctypes loads."""

from __future__ import annotations

import ctypes
import math
import subprocess
from functools import cache
from typing import Any

import native_build

from intfa_onnx.c_abi import DTYPES, POINTERS, SCALES, Codes, Problem, Tensors

_MESSAGE_BYTES = 1000
_CODES = tuple(name for name, _ in Codes._fields_)
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "bool": 1}


@cache
def start() -> EmulatedLibrary:
    """Build ``tests/native/c_calls.cpp`` for AArch64 and start it; skip where a tool is missing."""
    compiler, emulator = native_build.tool("aarch64-linux-gnu-g++"), native_build.tool("qemu-aarch64-static")
    options = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CXX_COMPILER": compiler,
        "CMAKE_EXE_LINKER_FLAGS": "-static",  # nothing of the other system is installed beside the compiler
        "INTFA_BUILD_ORT": "OFF",
        "INTFA_BUILD_TRT": "OFF",
    }
    folder = native_build.build("aarch64", "c_calls", options=tuple(f"-D{k}={v}" for k, v in options.items()))
    return EmulatedLibrary([emulator, str(folder / "c_calls")])


class EmulatedLibrary:
    """What :class:`c_abi.Call` asks of a library, by messages to a program, which ends with the pipe to it."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

        assert self._process.stdout is not None
        self._name = self._process.stdout.readline().strip()

    def intfa_cpu_instruction_set(self) -> bytes:
        """Return what the program said first."""
        return self._name

    def intfa_run_cpu(self, problem: Any, tensors: Any, num_threads: int, message: Any, message_size: int) -> int:
        """Run; arguments and result as in ``intfa/c_api.h``."""
        return self._call((0, 0, 0, num_threads), problem._obj, _addresses(problem._obj, tensors._obj), message)

    def intfa_quantize_cpu(
        self, problem: Any, tensors: Any, batch: Any, kv_head: Any, codes: Any, message: Any, message_size: int
    ) -> int:
        """Quantize; arguments and result as in ``intfa/c_api.h``."""
        p = problem._obj
        memory = _addresses(p, tensors._obj)
        nonpad = POINTERS.index("nonpad_kv_seqlen")
        keys = p.seqlen_past + p.seqlen_new
        if p.has_nonpad_kv_seqlen:
            keys = min(keys, ctypes.cast(memory[nonpad][0], ctypes.POINTER(ctypes.c_int64))[batch.value])
        rows = p.num_heads // p.kv_num_heads * p.seqlen_q
        sizes = {"q": rows * p.head_dim, "q_scale": rows * 4, "k": keys * p.head_dim, "k_scale": keys * 4,
                 "k_mean": p.head_dim * 4, "v": keys * p.head_dim_v, "v_scale": p.head_dim_v * 4}  # fmt: skip
        memory += [(getattr(codes._obj, name), sizes[name]) for name in _CODES]
        return self._call((1, batch.value, kv_head.value, 1), p, memory, message)

    def _call(self, head: tuple[int, ...], problem: Problem, memory: list[tuple[int, int]], message: Any) -> int:
        to, answer = self._process.stdin, self._process.stdout
        assert to is not None
        assert answer is not None
        request = [bytes((ctypes.c_int64 * 4)(*head)), bytes(problem)]
        for address, size in memory:
            request += [bytes(ctypes.c_int64(size)), ctypes.string_at(address, size) if size else b""]
        to.write(b"".join(request))
        to.flush()
        status = int.from_bytes(answer.read(8), "little", signed=True)
        message.raw = answer.read(_MESSAGE_BYTES)
        for address, size in memory:
            if size:
                ctypes.memmove(address, answer.read(size), size)
        return status


def _addresses(p: Problem, tensors: Tensors) -> list[tuple[int, int]]:
    """Address and bytes of every tensor, in the header's order; 0 bytes where it has none."""
    item, out = _ITEM_BYTES[DTYPES[p.dtype]], _ITEM_BYTES[DTYPES[p.output_dtype]]
    keys, past = p.seqlen_past + p.seqlen_new, p.seqlen_past
    q, kv = (p.batch, p.num_heads, p.seqlen_q), (p.batch, p.kv_num_heads, p.seqlen_new)

    def extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
        return 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))

    def scales(granularity: int, heads: int) -> int:
        counts = {"none": 0, "per_tensor": 1, "per_head": heads, "per_channel": heads * p.head_dim_v}
        return 4 * counts[SCALES[granularity]]

    cache_rows = p.batch * p.kv_num_heads * item
    mask = extent((*q, p.mask_seqlen_kv), tuple(p.mask_strides)) if p.mask_present else 0
    sizes = {
        "q": item * extent((*q, p.head_dim), (*p.q_strides, 1)),
        "k": item * extent((*kv, p.head_dim), (*p.k_strides, 1)),
        "v": item * extent((*kv, p.head_dim_v), (*p.v_strides, 1)),
        "past_key": cache_rows * past * p.head_dim,
        "past_value": cache_rows * past * p.head_dim_v,
        "mask": mask * _ITEM_BYTES[DTYPES[p.mask_dtype]],
        "nonpad_kv_seqlen": 8 * p.batch if p.has_nonpad_kv_seqlen else 0,
        "q_scale": scales(p.q_scale, p.num_heads),
        "k_scale": scales(p.k_scale, p.kv_num_heads),
        "v_scale": scales(p.v_scale, p.kv_num_heads),
        "y": out * extent((*q, p.head_dim_v), (*p.y_strides, 1)),
        "present_key": cache_rows * keys * p.head_dim,
        "present_value": cache_rows * keys * p.head_dim_v,
        "lse": 4 * math.prod(q),
    }
    return [(getattr(tensors, name), sizes[name]) for name in POINTERS]
