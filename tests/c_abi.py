"""The native library through its C ABI (``intfa/c_api.h``), for tests and nothing else."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from cases import AttentionCase, typed_inputs

from intfa_onnx import native

OK, INVALID_ARGUMENT, UNSUPPORTED = 0, 1, 2
CPU, CUDA = 0, 1
DTYPES = {np.dtype(t): i for i, t in enumerate((np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.bool_))}

_INTS = """
    batch num_heads kv_num_heads seqlen_q seqlen_new seqlen_past head_dim head_dim_v dtype output_dtype
    q_strides:3 k_strides:3 v_strides:3 y_strides:3 causal causal_alignment window_left window_right
    mask_present mask_dtype mask_strides:4 mask_seqlen_kv has_nonpad_kv_seqlen
    precision scheme k_granularity smooth_k tile_n q_scale k_scale v_scale
"""
_TENSORS = """
    q k v past_key past_value mask nonpad_kv_seqlen q_scale k_scale v_scale y present_key present_value lse
"""
_CODES = "q q_scale k k_scale k_mean v v_scale"


def _int_field(text: str) -> tuple[str, Any]:
    name, _, count = text.partition(":")
    return name, ctypes.c_int64 * int(count) if count else ctypes.c_int64


class Problem(ctypes.Structure):
    """``intfa_problem``."""

    _fields_ = [*map(_int_field, _INTS.split()), ("softmax_scale", ctypes.c_double), ("softcap", ctypes.c_double)]


class Tensors(ctypes.Structure):
    """``intfa_tensors``."""

    _fields_ = [(name, ctypes.c_void_p) for name in _TENSORS.split()]


class Codes(ctypes.Structure):
    """``intfa_codes``."""

    _fields_ = [(name, ctypes.c_void_p) for name in _CODES.split()]


@cache
def library() -> ctypes.CDLL:
    """Load the library that the package uses."""
    lib = ctypes.CDLL(str(native.get_library_path("ort")))
    lib.intfa_version.restype = ctypes.c_char_p
    lib.intfa_exp2_cpu.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return lib


@dataclass
class Call:
    """A problem with its arrays, kept alive; change ``problem`` or ``tensors`` before ``run`` to hurt it."""

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

    def strides(heads: int, tokens: int, channels: int) -> tuple[int, int, int]:
        if packed:
            return tokens * heads * channels, channels, heads * channels
        return heads * tokens * channels, tokens * channels, channels

    def granularity(name: str) -> int:
        if name not in arrays:
            return 0
        return 1 if arrays[name].size == 1 else 1 + arrays[name].ndim

    p = Problem(
        batch=c.batch,
        num_heads=c.num_heads,
        kv_num_heads=c.kv_num_heads,
        seqlen_q=c.seqlen_q,
        seqlen_new=c.seqlen_new,
        seqlen_past=c.seqlen_past,
        head_dim=c.head_dim,
        head_dim_v=c.head_dim_v,
        dtype=DTYPES[dtype],
        output_dtype=DTYPES[output_dtype],
        q_strides=strides(c.num_heads, c.seqlen_q, c.head_dim),
        k_strides=strides(c.kv_num_heads, c.seqlen_new, c.head_dim),
        v_strides=strides(c.kv_num_heads, c.seqlen_new, c.head_dim_v),
        y_strides=strides(c.num_heads, c.seqlen_q, c.head_dim_v),
        causal=c.causal,
        causal_alignment=["standard", "lower_right"].index(c.causal_alignment),
        window_left=c.window_left,
        window_right=c.window_right,
        has_nonpad_kv_seqlen=bool(c.nonpad),
        precision=["int8", "int8_qk"].index(precision),
        scheme=["tile", "paper"].index(scheme),
        k_granularity=["auto", "token", "group"].index(k_granularity),
        smooth_k=c.smooth_k,
        tile_n=tile_n,
        q_scale=granularity("q_scale"),
        k_scale=granularity("k_scale"),
        v_scale=granularity("v_scale"),
        softmax_scale=c.scale,
        softcap=c.softcap,
    )
    if "attn_mask" in arrays:
        mask = arrays["attn_mask"]
        full = np.broadcast_to(mask, (c.batch, c.num_heads, c.seqlen_q, mask.shape[-1]))
        p.mask_present, p.mask_dtype, p.mask_seqlen_kv = 1, DTYPES[mask.dtype], mask.shape[-1]
        p.mask_strides = tuple(s // mask.itemsize for s in full.strides)
    tensors = Tensors(
        **{
            {"Q": "q", "K": "k", "V": "v", "attn_mask": "mask"}.get(name, name): array.ctypes.data
            for name, array in arrays.items()
        }
    )
    return Call(p, tensors, arrays)
