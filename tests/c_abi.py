"""The native library through its C ABI (``intfa/c_api.h``), for tests and nothing else."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from cases import AttentionCase, typed_inputs

from intfa_onnx import native
from intfa_onnx.c_abi import Codes, Problem, Tensors
from intfa_onnx.c_problem import make_problem

OK, INVALID_ARGUMENT, UNSUPPORTED = 0, 1, 2
CPU, CUDA = 0, 1


@cache
def library() -> ctypes.CDLL:
    """Load the library that the package uses."""
    lib = ctypes.CDLL(str(native.get_library_path("ort")))
    lib.intfa_version.restype = ctypes.c_char_p
    lib.intfa_cpu_instruction_set.restype = ctypes.c_char_p
    lib.intfa_exp2_cpu.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    lib.intfa_tile_codes_cpu.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return lib


def tile_codes(x: np.ndarray) -> np.ndarray:
    """Return the codes of P = 2^x (x <= 0, float32, any shape) as the CPU makes them under scheme tile, as float32."""
    x = np.ascontiguousarray(x, np.float32)
    codes = np.empty(x.shape, np.uint8)
    library().intfa_tile_codes_cpu(x.ctypes.data, codes.ctypes.data, x.size)
    return codes.astype(np.float32)


def has_code_grid() -> bool:
    """Whether the instruction set in use looks bytes up among 256: the codes of P are then those of a grid."""
    return library().intfa_cpu_instruction_set() in (b"avx512vnni", b"amx")


@dataclass
class Call:
    """A problem with its arrays, kept alive; change ``problem`` or ``tensors`` before ``run`` to hurt it."""

    case: AttentionCase
    attributes: dict[str, float | str]
    problem: Problem
    tensors: Tensors
    arrays: dict[str, np.ndarray]

    def run(self, num_threads: int = 1) -> tuple[int, str]:
        """Run on the CPU; return the status code and its message."""
        message = ctypes.create_string_buffer(1000)
        code = library().intfa_run_cpu(
            ctypes.byref(self.problem), ctypes.byref(self.tensors), num_threads, message, len(message)
        )
        return code, message.value.decode()

    def validate(self, device: int = CPU) -> tuple[int, str]:
        """Check the problem alone."""
        message = ctypes.create_string_buffer(1000)
        code = library().intfa_validate(ctypes.byref(self.problem), device, message, len(message))
        return code, message.value.decode()

    def codes(self, batch: int, kv_head: int) -> dict[str, np.ndarray]:
        """Return what the CPU backend quantizes of one KV head: int8 codes and float32 scales."""
        p = self.problem
        keys, rows = p.seqlen_past + p.seqlen_new, p.num_heads // p.kv_num_heads * p.seqlen_q
        if p.has_nonpad_kv_seqlen:
            keys = min(keys, int(self.arrays["nonpad_kv_seqlen"][batch]))
        shapes = {
            "q": (rows, p.head_dim),
            "q_scale": (rows,),
            "k": (keys, p.head_dim),
            "k_scale": (keys,),
            "k_mean": (p.head_dim,),
            "v": (keys, p.head_dim_v),
            "v_scale": (p.head_dim_v,),
        }
        out = {n: np.zeros(s, np.int8 if len(n) == 1 else np.float32) for n, s in shapes.items()}
        codes = Codes(**{name: array.ctypes.data for name, array in out.items()})
        message = ctypes.create_string_buffer(1000)
        status = library().intfa_quantize_cpu(
            ctypes.byref(p),
            ctypes.byref(self.tensors),
            ctypes.c_int64(batch),
            ctypes.c_int64(kv_head),
            ctypes.byref(codes),
            message,
            len(message),
        )
        assert status == OK, message.value
        return out


def make_call(
    case: AttentionCase,
    *,
    precision: str = "int8",
    scheme: str = "tile",
    k_granularity: str = "auto",
    tile_n: int = 0,
    output_dtype: np.dtype | None = None,
) -> Call:
    """Turn a case into a call; outputs y, present_key, present_value and lse are in ``arrays``."""
    arrays = {name: np.ascontiguousarray(x) for name, x in typed_inputs(case).items()}
    c = case
    dtype = arrays["Q"].dtype
    output_dtype = output_dtype or (np.dtype(np.float32) if dtype == np.int8 else dtype)
    kv = (c.batch, c.kv_num_heads, c.seqlen_kv)
    packed = c.layout == "BSHD"
    y_shape = (c.batch, c.num_heads, c.seqlen_q, c.head_dim_v)
    arrays["y"] = np.zeros((c.batch, c.seqlen_q, c.num_heads * c.head_dim_v) if packed else y_shape, output_dtype)
    arrays["present_key"] = np.zeros((*kv, c.head_dim), dtype)
    arrays["present_value"] = np.zeros((*kv, c.head_dim_v), dtype)
    arrays["lse"] = np.zeros(y_shape[:3], np.float32)

    attributes: dict[str, float | str] = {
        **kernel_attributes(case), "precision": precision, "scheme": scheme, "k_granularity": k_granularity,
        "tile_n": tile_n,
    }  # fmt: skip
    problem, tensors = make_problem(view_arrays(case, arrays), **attributes)
    return Call(case, attributes, problem, tensors, arrays)


def view_arrays(case: AttentionCase, arrays: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arrays, numpy's or pycuda's, by their C names; [B, S, H*D] ones are seen as [B, H, S, D]."""
    names = {"Q": "q", "K": "k", "V": "v", "attn_mask": "mask"}
    heads = {"Q": case.num_heads, "K": case.kv_num_heads, "V": case.kv_num_heads, "y": case.num_heads}

    def view(name: str, x: Any) -> Any:
        if case.layout != "BSHD" or name not in heads:
            return x
        return x.reshape((*x.shape[:2], heads[name], x.shape[2] // heads[name])).transpose((0, 2, 1, 3))

    return {names.get(name, name): view(name, x) for name, x in arrays.items()}


def kernel_attributes(case: AttentionCase) -> dict[str, float | str]:
    """Return a case's attributes that a kernel sees: head counts are in its shapes."""
    heads = ("q_num_heads", "kv_num_heads")
    return {name: value for name, value in case.attributes().items() if name not in heads}
