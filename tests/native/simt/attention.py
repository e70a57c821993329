"""Runs the product's CUDA backend in the simulators, on numpy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from c_abi import kernel_attributes
from cases import AttentionCase, typed_inputs

from intfa_onnx.c_abi import Problem, Tensors
from intfa_onnx.c_problem import make_problem

from . import toolchain
from .simulator import DEFAULT_MODE, Mode, Simulator, pointer

HEAD_DIMS = (32, 64, 96, 128, 256)
SANITIZED_DIMS = (64, 128)  # Q in registers, Q in shared memory


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


def case_attributes(
    case: AttentionCase, precision: str, scheme: str, k_granularity: str = "auto"
) -> dict[str, float | str]:
    """The operator's attributes for a case, as :func:`intfa_onnx.c_problem.make_problem` takes them."""
    return {
        **kernel_attributes(case), "precision": precision, "scheme": scheme, "k_granularity": k_granularity,
    }  # fmt: skip


def kernel_sources() -> list[Path]:
    """Where the product's kernels are."""
    return [toolchain.PLUGIN / "cuda" / f"kernels_{which}.cu" for which in (*(f"d{d}" for d in HEAD_DIMS), "sm90")]


def build(sanitizer: str = "") -> Path:
    """The CUDA backend compiled for the host; with a sanitizer, the kernels of SANITIZED_DIMS."""
    sources = [toolchain.SIMT / "attention_driver.cc", toolchain.SIMT / "attention_shapes.cc"]
    sources += [toolchain.PLUGIN / "cuda" / "dispatch.cu", *kernel_sources()]
    sanitized = [f"kernels_d{d}" for d in SANITIZED_DIMS]
    plain = [s for s in sources if sanitizer and s.stem.startswith("kernels_") and s.stem not in sanitized]
    sources = [s for s in sources if s not in plain]
    return toolchain.host_library(sources, "libattention", sanitizer=sanitizer, not_sanitized=plain)


ALL_SETS = "{&kKernels32, &kKernels64, &kKernels96, &kKernels128, &kKernels256}"


# Blocks of 192 queries for every problem, however small.
ALWAYS_WIDE = ("<= 5 * rounds(problem, kWgmmaTileM)", "> 0")
WIDE_DIMS = (64, 96, 128)


def build_wide() -> Path:
    """The backend with its wgmma kernels of 192 queries for every problem that they take."""
    tree = toolchain.patched_tree("hopper-wide", {"cuda/dispatch.cu": [ALWAYS_WIDE]})
    sources = [toolchain.SIMT / "attention_driver.cc", tree / "cuda" / "dispatch.cu", *kernel_sources()]
    return toolchain.host_library(sources, "libhopper-wide", plugin=tree)


def build_ada() -> Path:
    """The backend with the instruction sequences of sm_89, head size 32 alone."""
    patches = {
        "cuda/dispatch.cu": [(ALL_SETS, "{&kKernels32}")],
        "cuda/ptx.cuh": [("constexpr int kArch = 80;", "constexpr int kArch = 89;")],
    }
    tree = toolchain.patched_tree("ada", patches)
    sources = [tree / "simt" / "attention_driver.cc"]
    sources += [tree / "cuda" / f"{name}.cu" for name in ("dispatch", "kernels_d32", "kernels_sm90")]
    return toolchain.host_library(sources, "libada", plugin=tree)


def build_mutant(name: str, patches: Mapping[str, toolchain.Replacements]) -> tuple[Path, Path]:
    """A patched backend with the kernels of head size 64 alone: its library, and the tree that it was built from."""
    dispatch = [(ALL_SETS, "{&kKernels64}"), *patches.get("cuda/dispatch.cu", [])]
    tree = toolchain.patched_tree(name, {**patches, "cuda/dispatch.cu": dispatch})
    sources = [tree / "simt" / "attention_driver.cc"]
    sources += [tree / "cuda" / file for file in ("dispatch.cu", "kernels_d64.cu", "kernels_sm90.cu")]
    return toolchain.host_library(sources, f"libmutant-{name}", plugin=tree), tree


def build_ptx(head_dim: int, stem: str = "attention", plugin: Path = toolchain.PLUGIN) -> Path:
    """PTX of all kernels of one head size."""
    return toolchain.ptx(plugin / "cuda" / f"kernels_d{head_dim}.cu", f"{stem}-d{head_dim}", plugin=plugin)


def build_hopper_ptx(head_dim: int, wgmma: Path | None = None, stem: str = "hopper") -> Path:
    """PTX of one head size's wgmma kernels, the product's or those of the file ``wgmma``, and of what runs beside them.

    In one file, without the mma.sync kernels, which take the interpreter most of a second to read.
    """
    if wgmma is None:
        wgmma = toolchain.ptx(toolchain.PLUGIN / "cuda" / "kernels_sm90.cu", "wgmma", arch="90a")
    joined = toolchain.BUILD / f"{stem}-d{head_dim}.ptx"
    joined.write_text(
        _entries(build_ptx(head_dim), lambda name: "attention" not in name)
        + _entries(wgmma, lambda name: name.endswith(f"_d{head_dim}"))
    )
    return joined


def _entries(ptx: Path, wanted: Callable[[str], bool]) -> str:
    """The PTX with the kernels alone whose name is wanted."""
    mark = "\t// .globl\t"
    head, *kernels = ptx.read_text().split(mark)
    return head + "".join(mark + kernel for kernel in kernels if wanted(kernel.split(maxsplit=1)[0]))


class AttentionSimulator(Simulator):
    """The CUDA backend in the simulators."""

    def __init__(self, library: Path | None = None, sanitizer: str = "") -> None:
        super().__init__(library or build(sanitizer=sanitizer), sanitizer)
        self.chosen = ""  # what the last problem ran, in the dispatch's words
        self.workspace = np.empty(0, np.uint8)  # what it left there

    def shape(self, head_dim: int, arithmetic: str, scored: bool = False) -> tuple[int, int, int]:
        """Queries per block, threads and bytes of shared memory of the ``tile``, ``paper`` or ``half`` kernel."""
        out = (ctypes.c_int * 3)()
        self.library.attention_shape.restype = ctypes.c_bool
        found = self.library.attention_shape(head_dim, ("tile", "paper", "half").index(arithmetic), scored, out)
        assert found, f"no {arithmetic} kernel for head size {head_dim}"
        return out[0], out[1], out[2]

    def wgmma_shape(self, head_dim: int, tile_m: int, scored: bool = False) -> tuple[int, int, int, int]:
        """As :meth:`shape` for the wgmma kernel with ``tile_m`` queries per block, and the keys per tile."""
        out = (ctypes.c_int * 4)()
        self.library.wgmma_shape.restype = ctypes.c_bool
        found = self.library.wgmma_shape(head_dim, tile_m, scored, out)
        assert found, f"no wgmma kernel of {tile_m} queries for head size {head_dim}"
        return out[0], out[1], out[2], out[3]

    def set_gpu(self, device: int, multiprocessors: int) -> None:
        """What the backend finds: 10 * major + minor of the GPU, and its SMs."""
        self.runtime.simt_set_device(device)
        self.runtime.simt_set_multiprocessors(multiprocessors)

    def describe(self, problem: Problem, tensors: Tensors | None = None) -> str:
        """What the problem would launch, in the dispatch's words; without tensors, with aligned ones."""
        words = ctypes.create_string_buffer(256)
        tensors = tensors or Tensors()
        self.library.attention_describe(
            ctypes.byref(problem), ctypes.byref(tensors), words, ctypes.c_size_t(len(words))
        )
        return words.value.decode()

    def attention(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        attributes: Mapping[str, float | str],
        *,
        mode: Mode = DEFAULT_MODE,
        device: int = 80,
        multiprocessors: int = 132,
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
            attributes: of the operator, by its names.
            mode: schedule and visibility.
            device: the simulated GPU, 10 * major + minor; 90 has wgmma kernels.
            multiprocessors: of this GPU; 132 are those of an H100 or H200 SXM.
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
        arrays |= {"q": q, "k": k, "v": v, "y": y_view, "lse": np.full((batch, heads, seqlen_q), np.nan, np.float32)}
        if present:
            arrays["present_key"] = np.zeros((batch, kv_heads, seqlen_kv, head_dim), q.dtype)
            arrays["present_value"] = np.zeros((batch, kv_heads, seqlen_kv, head_dim_v), q.dtype)
        problem, tensors = make_problem(arrays, **attributes)
        self.set_gpu(device, multiprocessors)
        bytes_ = ctypes.c_size_t()
        self.call("attention_workspace", ctypes.byref(problem), ctypes.byref(bytes_))
        self.chosen = self.describe(problem, tensors)
        # 256-byte aligned; filled with NaN-like bytes, since nobody clears the caller's workspace.
        raw = np.full(bytes_.value + 256, 0xFF, np.uint8)
        start = -raw.ctypes.data % 256
        workspace = self.workspace = raw[start : start + bytes_.value]
        self.configure(mode)
        if ptx is None:
            self.use_host()
        else:
            self.use_ptx(ptx, [_memory(x) for x in (*arrays.values(), workspace)])
        self.call("attention_run", ctypes.byref(problem), ctypes.byref(tensors), pointer(workspace))
        out = {name: arrays[name] for name in ("lse", "present_key", "present_value") if name in arrays}
        return {"y": y_view, **out}


def _memory(a: np.ndarray) -> np.ndarray:
    """The array's bytes as one block, for a strided view of a contiguous base."""
    base = a
    while isinstance(base.base, np.ndarray):
        base = base.base
    return base
