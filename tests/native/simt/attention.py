"""Runs the product's CUDA backend in the simulators, on numpy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from cases import AttentionCase, typed_inputs

from . import toolchain
from .simulator import DEFAULT_MODE, Mode, Simulator

HEAD_DIMS = (32, 64, 96, 128, 256)
SANITIZED_DIMS = (64, 128)  # Q in registers, Q in shared memory
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.bool_]  # enum DataType
SCALES = ("none", "per_tensor", "per_head", "per_channel")  # enum ScaleGranularity


def _dtype_code(dtype: np.dtype) -> int:
    return next(i for i, d in enumerate(DTYPES) if np.dtype(d) == dtype)


class _Strides(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "head", "token")]


class _Mask(ctypes.Structure):
    _fields_ = [("present", ctypes.c_bool), ("dtype", ctypes.c_int)] + [
        (name, ctypes.c_int64) for name in ("stride_batch", "stride_head", "stride_query", "stride_key", "seqlen_kv")
    ]


class Problem(ctypes.Structure):
    """``intfa::AttentionProblem``, field by field."""

    _fields_ = [
        *[
            (name, ctypes.c_int64)
            for name in (
                "batch", "num_heads", "kv_num_heads", "seqlen_q", "seqlen_new", "seqlen_past", "head_dim", "head_dim_v",
            )
        ],
        ("dtype", ctypes.c_int),
        ("output_dtype", ctypes.c_int),
        *[(f"{name}_strides", _Strides) for name in "qkvy"],
        ("softmax_scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("causal", ctypes.c_bool),
        ("causal_alignment", ctypes.c_int),
        ("window_left", ctypes.c_int64),
        ("window_right", ctypes.c_int64),
        ("mask", _Mask),
        ("has_nonpad_kv_seqlen", ctypes.c_bool),
        ("precision", ctypes.c_int),
        ("scheme", ctypes.c_int),
        ("k_granularity", ctypes.c_int),
        ("smooth_k", ctypes.c_bool),
        ("tile_n", ctypes.c_int64),
        ("q_scale", ctypes.c_int),
        ("k_scale", ctypes.c_int),
        ("v_scale", ctypes.c_int),
    ]  # fmt: skip


TENSORS = (
    "q", "k", "v", "past_key", "past_value", "mask", "nonpad_kv_seqlen", "q_scale", "k_scale", "v_scale",
    "y", "present_key", "present_value", "lse", "workspace",
)  # fmt: skip


class Tensors(ctypes.Structure):
    """``intfa::AttentionTensors``."""

    _fields_ = [(name, ctypes.c_void_p) for name in TENSORS]


@dataclass
class Attributes:
    """The operator's attributes, in its own words."""

    scale: float = 0.0
    softcap: float = 0.0
    is_causal: bool = False
    causal_alignment: str = "standard"
    window_left: int = -1
    window_right: int = -1
    precision: str = "int8"
    scheme: str = "tile"
    k_granularity: str = "auto"
    smooth_k: bool = True
    q_scale: str = "none"
    k_scale: str = "none"
    v_scale: str = "none"


def _strides(a: np.ndarray) -> _Strides:
    """Of a [batch, heads, tokens, channels] view with contiguous channels, in elements."""
    batch, head, token, channel = (s // a.itemsize for s in a.strides)
    assert channel == 1 or a.shape[3] == 1
    return _Strides(batch, head, token)


def _mask(a: np.ndarray, shape: tuple[int, int, int, int]) -> _Mask:
    four = a.reshape((1,) * (4 - a.ndim) + a.shape)
    strides = [0 if n == 1 else s // a.itemsize for n, s in zip(four.shape, four.strides, strict=True)]
    if four.shape[3] == 1 and shape[3] == 1:
        strides[3] = 1
    return _Mask(True, _dtype_code(a.dtype), *strides, four.shape[3])


def case_arguments(case: AttentionCase) -> dict[str, Any]:
    """The keyword arguments of :meth:`AttentionSimulator.attention` for a case of tests/cases.py."""
    inputs = typed_inputs(case)
    if case.layout == "BSHD":  # a view: [B, S, H*D] seen as [B, H, S, D]
        for name, heads in (("Q", case.num_heads), ("K", case.kv_num_heads), ("V", case.kv_num_heads)):
            x = inputs[name]
            inputs[name] = x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)
    names = {"Q": "q", "K": "k", "V": "v", "attn_mask": "mask"}
    dtype = inputs["Q"].dtype
    return {
        **{names.get(name, name): x for name, x in inputs.items()},
        "output_dtype": np.float32 if dtype == np.int8 else dtype,
        "bshd_output": case.layout == "BSHD",
    }


def case_attributes(case: AttentionCase, precision: str, scheme: str) -> Attributes:
    """The operator's attributes for a case."""
    static = case.static_scales
    per_head = {"": "none", "tensor": "per_tensor"}.get(static, "per_head")
    return Attributes(
        scale=case.scale,
        softcap=case.softcap,
        is_causal=case.causal,
        causal_alignment=case.causal_alignment,
        window_left=case.window_left,
        window_right=case.window_right,
        precision=precision,
        scheme=scheme,
        smooth_k=case.smooth_k,
        q_scale=per_head,
        k_scale=per_head,
        v_scale=f"per_{static}" if static else "none",
    )


def build(sanitizer: str = "") -> Path:
    """The CUDA backend compiled for the host; with a sanitizer, the kernels of SANITIZED_DIMS."""
    sources = [toolchain.SIMT / "attention_driver.cc", toolchain.SIMT / "attention_shapes.cc"]
    kernels = {d: toolchain.PLUGIN / "cuda" / f"kernels_d{d}.cu" for d in HEAD_DIMS}
    plain = [kernels.pop(d) for d in HEAD_DIMS if sanitizer and d not in SANITIZED_DIMS]
    sources += [toolchain.PLUGIN / "cuda" / "dispatch.cu", *kernels.values()]
    (plain if sanitizer else sources).append(toolchain.PLUGIN / "cuda" / "kernels_sm90.cu")
    return toolchain.host_library(sources, "libattention", sanitizer=sanitizer, not_sanitized=plain, optimize="-O1")


ALL_SETS = "{&kKernels32, &kKernels64, &kKernels96, &kKernels128, &kKernels256}"


def build_mutant(name: str, patches: Mapping[str, toolchain.Replacements]) -> tuple[Path, Path]:
    """A patched backend with the kernels of head size 64 alone: its library, and the tree that it was built from."""
    one = {"cuda/dispatch.cu": [(ALL_SETS, "{&kKernels64}")]}
    tree = toolchain.patched_tree(name, {**one, **patches})
    sources = [tree / "simt" / "attention_driver.cc"]
    sources += [tree / "cuda" / file for file in ("dispatch.cu", "kernels_d64.cu", "kernels_sm90.cu")]
    return toolchain.host_library(sources, f"libmutant-{name}", plugin=tree, optimize="-O1"), tree


def build_ptx(head_dim: int, stem: str = "attention", plugin: Path = toolchain.PLUGIN) -> Path:
    """PTX of all kernels of one head size."""
    return toolchain.ptx(plugin / "cuda" / f"kernels_d{head_dim}.cu", f"{stem}-d{head_dim}", plugin=plugin)


class AttentionSimulator(Simulator):
    """The CUDA backend in the simulators."""

    def __init__(self, library: Path | None = None, sanitizer: str = "") -> None:
        super().__init__(library or build(sanitizer=sanitizer), sanitizer)
        self.chosen = ""  # what the last problem ran, in the dispatch's words
        for function, structure in (("attention_problem_bytes", Problem), ("attention_tensors_bytes", Tensors)):
            size = getattr(self.library, function)
            size.restype = ctypes.c_size_t
            assert size() == ctypes.sizeof(structure), f"{structure.__name__} does not mirror intfa/attention.h"

    def wgmma_shape(self, head_dim: int, scored: bool = False) -> tuple[int, int, int, int]:
        """As :meth:`shape` for the wgmma kernel, and the keys per tile."""
        out = (ctypes.c_int * 4)()
        self.library.wgmma_shape.restype = ctypes.c_bool
        assert self.library.wgmma_shape(head_dim, scored, out), f"no wgmma kernel for head size {head_dim}"
        return out[0], out[1], out[2], out[3]

    def shape(self, head_dim: int, arithmetic: str, scored: bool = False) -> tuple[int, int, int]:
        """Queries per block, threads and bytes of shared memory of the ``tile``, ``paper`` or ``half`` kernel."""
        out = (ctypes.c_int * 3)()
        self.library.attention_shape.restype = ctypes.c_bool
        found = self.library.attention_shape(head_dim, ("tile", "paper", "half").index(arithmetic), scored, out)
        assert found, f"no {arithmetic} kernel for head size {head_dim}"
        return out[0], out[1], out[2]

    def attention(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        attributes: Attributes,
        *,
        mode: Mode = DEFAULT_MODE,
        device: int = 80,
        ptx: ctypes.c_void_p | None = None,
        output_dtype: type = np.float32,
        bshd_output: bool = False,
        present: bool = False,
        **optional: np.ndarray | None,
    ) -> dict[str, np.ndarray]:
        """Run one problem.

        Args:
            q: [B, Hq, Sq, D], any strides with contiguous channels.
            k: [B, Hkv, S, D], likewise.
            v: [B, Hkv, S, Dv], likewise.
            attributes: of the operator.
            mode: schedule and visibility.
            device: the simulated GPU, 10 * major + minor; 90 has wgmma kernels.
            ptx: a module of :meth:`load_ptx`: interpret it instead of running the host's compilation.
            output_dtype: of y.
            bshd_output: y is [B, Sq, Hq, Dv] in memory.
            present: also write present_key and present_value.
            optional: ``past_key``, ``past_value``, ``mask``, ``nonpad_kv_seqlen``, ``q_scale``, ``k_scale`` and
                ``v_scale``.
        Returns:
            ``y`` [B, Hq, Sq, Dv], ``lse`` and, if asked for, the caches.
        Raises:
            SimulatorError: unsupported, or a defect in a kernel.
        """
        batch, heads, seqlen_q, head_dim = q.shape
        _, kv_heads, seqlen_new, head_dim_v = v.shape
        arrays = {name: a for name, a in optional.items() if a is not None}
        past = arrays["past_key"].shape[2] if "past_key" in arrays else 0
        seqlen_kv = past + seqlen_new
        y_shape = (batch, seqlen_q, heads, head_dim_v) if bshd_output else (batch, heads, seqlen_q, head_dim_v)
        # Every byte that the kernels do not write stays recognizable.
        y = np.frombuffer(bytearray(b"\x7f" * (int(np.prod(y_shape)) * np.dtype(output_dtype).itemsize)), output_dtype)
        y = y.reshape(y_shape)
        y_view = y.transpose(0, 2, 1, 3) if bshd_output else y
        arrays |= {"q": q, "k": k, "v": v, "y": y, "lse": np.full((batch, heads, seqlen_q), np.nan, np.float32)}
        if present:
            arrays["present_key"] = np.zeros((batch, kv_heads, seqlen_kv, head_dim), q.dtype)
            arrays["present_value"] = np.zeros((batch, kv_heads, seqlen_kv, head_dim_v), q.dtype)
        a = attributes
        problem = Problem(
            batch=batch, num_heads=heads, kv_num_heads=kv_heads, seqlen_q=seqlen_q, seqlen_new=seqlen_new,
            seqlen_past=past, head_dim=head_dim, head_dim_v=head_dim_v, dtype=_dtype_code(q.dtype),
            output_dtype=_dtype_code(np.dtype(output_dtype)), q_strides=_strides(q), k_strides=_strides(k),
            v_strides=_strides(v), y_strides=_strides(y_view), softmax_scale=a.scale, softcap=a.softcap,
            causal=a.is_causal, causal_alignment=("standard", "lower_right").index(a.causal_alignment),
            window_left=a.window_left, window_right=a.window_right,
            has_nonpad_kv_seqlen="nonpad_kv_seqlen" in arrays, precision=("int8", "int8_qk").index(a.precision),
            scheme=("tile", "paper").index(a.scheme), k_granularity=("auto", "token", "group").index(a.k_granularity),
            smooth_k=a.smooth_k, q_scale=SCALES.index(a.q_scale), k_scale=SCALES.index(a.k_scale),
            v_scale=SCALES.index(a.v_scale),
        )  # fmt: skip
        if "mask" in arrays:
            problem.mask = _mask(arrays["mask"], (batch, heads, seqlen_q, seqlen_kv))
        self.runtime.simt_set_device(device)
        bytes_ = ctypes.c_size_t()
        self.call("attention_workspace", ctypes.byref(problem), ctypes.byref(bytes_))
        words = ctypes.create_string_buffer(256)
        self.library.attention_describe(ctypes.byref(problem), words, ctypes.c_size_t(len(words)))
        self.chosen = words.value.decode()
        # 256-byte aligned; filled with NaN-like bytes, since nobody clears the caller's workspace.
        raw = np.full(bytes_.value + 256, 0xFF, np.uint8)
        start = -raw.ctypes.data % 256
        arrays["workspace"] = raw[start : start + bytes_.value]
        tensors = Tensors(**{name: array.ctypes.data for name, array in arrays.items()})
        self.configure(mode)
        if ptx is None:
            self.use_host()
        else:
            self.use_ptx(ptx, [_memory(x) for x in arrays.values()])
        self.call("attention_run", ctypes.byref(problem), ctypes.byref(tensors))
        out = {name: arrays[name] for name in ("lse", "present_key", "present_value") if name in arrays}
        return {"y": y_view, **out}


def _memory(a: np.ndarray) -> np.ndarray:
    """The array's bytes as one block, for a strided view of a contiguous base."""
    base = a
    while isinstance(base.base, np.ndarray):
        base = base.base
    return base
