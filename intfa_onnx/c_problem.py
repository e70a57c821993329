"""The C interface's structures from arrays of any library, with every shape and type checked.

An array is anything that tells of itself by ``__cuda_array_interface__`` (pycuda, torch, cupy: on the device) or
``__array_interface__`` (numpy: on the host). The structures hold addresses only, so keep the arrays alive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from intfa_onnx.c_abi import DTYPES, POINTERS, SCALES, Problem, Tensors
from intfa_onnx.errors import UnsupportedError
from intfa_onnx.op_schema import ATTRIBUTES

_ENUMERATIONS = ("causal_alignment", "precision", "scheme", "k_granularity")
_RENAMED = {"scale": "softmax_scale", "is_causal": "causal"}
_NUMBERS = ("scale", "is_causal", "softcap", "window_left", "window_right", "smooth_k")
_FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Layout:
    """Where an array lies and what it holds; strides in elements."""

    address: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, name: str, array: Any) -> Layout:
        """Read the array's own description.

        Raises:
            UnsupportedError: it has none.
        """
        interface = getattr(array, "__cuda_array_interface__", None) or getattr(array, "__array_interface__", None)
        if interface is None:
            kind = type(array).__name__
            raise UnsupportedError(f"{name} is a {kind} (supported: __cuda_array_interface__, __array_interface__)")
        dtype, shape = str(array.dtype).removeprefix("torch."), tuple(interface["shape"])
        itemsize = int(interface["typestr"][2:])
        strides = interface.get("strides")
        if strides is None:
            strides = [itemsize] * len(shape)
            for axis in reversed(range(len(shape) - 1)):
                strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
        return cls(interface["data"][0] or 0, dtype, shape, tuple(stride // itemsize for stride in strides))

    def is_contiguous(self) -> bool:
        """Return whether the elements lie in C order without gaps."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return 0 in self.shape
            expected *= size
        return True


def make_problem(arrays: Mapping[str, Any], *, tile_n: int = 0, **attributes: float | str) -> tuple[Problem, Tensors]:
    """Describe one attention for :func:`intfa_onnx.c_abi.run_cuda` and its like.

    Args:
        arrays: by their names in the C interface. ``q`` [B, Hq, Sq, D], ``k`` [B, Hkv, S, D], ``v`` [B, Hkv, S, Dv] and
            ``y`` [B, Hq, Sq, Dv] are views with contiguous channels and otherwise any strides, so that a transposed
            [B, S, H, D] will do. Optional, contiguous: ``past_key`` [B, Hkv, P, D] and ``past_value`` [B, Hkv, P, Dv],
            ``nonpad_kv_seqlen`` int64 [B], ``q_scale`` [1] or [Hq], ``k_scale`` [1] or [Hkv], ``v_scale`` [1], [Hkv] or
            [Hkv, Dv], and the outputs ``present_key`` [B, Hkv, P + S, D], ``present_value`` [B, Hkv, P + S, Dv] and
            ``lse`` float32 [B, Hq, Sq]. ``mask`` broadcasts to [B, Hq, Sq, P + S], or has fewer keys.
        tile_n: keys per tile; 0 is the backend's choice.
        attributes: the operator's, by the names and with the defaults of :data:`intfa_onnx.op_schema.ATTRIBUTES`.
    Returns:
        Both structures. What else could be wrong with them, the native library says.
    Raises:
        UnsupportedError: an array that is missing or unknown, or a shape or type that does not fit the others.
    """
    unknown = [name for name in (*arrays, *attributes) if name not in (*POINTERS, *_NUMBERS, *_ENUMERATIONS)]
    missing = [name for name in ("q", "k", "v", "y") if name not in arrays]
    if unknown or missing:
        supported = ", ".join((*POINTERS, *_NUMBERS, *_ENUMERATIONS))
        raise UnsupportedError(f"unknown: {unknown}, missing: {missing} (supported names: {supported})")
    layouts = {name: Layout.of(name, array) for name, array in arrays.items()}
    for name in ("q", "k", "v", "y"):
        if len(layouts[name].shape) != 4:
            raise UnsupportedError(f"{name} has shape {layouts[name].shape} (supported: 4 dimensions)")
    _check(layouts)
    q, k, v, y = (layouts[name] for name in "qkvy")
    problem = Problem(
        batch=q.shape[0],
        num_heads=q.shape[1],
        kv_num_heads=k.shape[1],
        seqlen_q=q.shape[2],
        seqlen_new=k.shape[2],
        seqlen_past=layouts["past_key"].shape[2] if "past_key" in layouts else 0,
        head_dim=q.shape[3],
        head_dim_v=v.shape[3],
        dtype=DTYPES.index(q.dtype),
        output_dtype=DTYPES.index(y.dtype),
        q_strides=q.strides[:3],
        k_strides=k.strides[:3],
        v_strides=v.strides[:3],
        y_strides=y.strides[:3],
        has_nonpad_kv_seqlen="nonpad_kv_seqlen" in layouts,
        tile_n=tile_n,
    )
    for name in ("q_scale", "k_scale", "v_scale"):
        setattr(problem, name, SCALES.index(_granularity(layouts[name]) if name in layouts else "none"))
    for name in _NUMBERS:
        setattr(problem, _RENAMED.get(name, name), attributes.get(name, ATTRIBUTES[name].default))
    for name in _ENUMERATIONS:
        value, choices = attributes.get(name, ATTRIBUTES[name].default), ATTRIBUTES[name].choices
        if value not in choices:
            raise UnsupportedError(f"{name}={value!r} (supported: {', '.join(choices)})")
        setattr(problem, name, choices.index(str(value)))
    if "mask" in layouts:
        _set_mask(problem, layouts["mask"])
    return problem, Tensors(**{name: layout.address for name, layout in layouts.items()})


def _granularity(scale: Layout) -> str:
    if scale.shape in ((), (1,)):
        return "per_tensor"
    return "per_head" if len(scale.shape) == 1 else "per_channel"


def _check(layouts: Mapping[str, Layout]) -> None:
    """Hold every array's shape, type and order against Q's and V's; past this point a kernel reads what they say."""
    q, k, v = layouts["q"], layouts["k"], layouts["v"]
    batch, heads, queries, dim = q.shape
    kv_heads, new, dim_v = k.shape[1], k.shape[2], v.shape[3]
    past = layouts["past_key"].shape[2] if "past_key" in layouts and len(layouts["past_key"].shape) == 4 else 0
    caches: dict[str, tuple[tuple[int, ...], ...]] = {
        "past_key": ((batch, kv_heads, past, dim),),
        "past_value": ((batch, kv_heads, past, dim_v),),
        "present_key": ((batch, kv_heads, past + new, dim),),
        "present_value": ((batch, kv_heads, past + new, dim_v),),
    }
    shapes = caches | {
        "k": ((batch, kv_heads, new, dim),),
        "v": ((batch, kv_heads, new, dim_v),),
        "y": ((batch, heads, queries, dim_v),),
        "lse": ((batch, heads, queries),),
        "nonpad_kv_seqlen": ((batch,),),
        "q_scale": ((), (1,), (heads,)),
        "k_scale": ((), (1,), (kv_heads,)),
        "v_scale": ((), (1,), (kv_heads,), (kv_heads, dim_v)),
    }
    float32 = ("lse", "q_scale", "k_scale", "v_scale")
    types = dict.fromkeys(float32, ("float32",)) | {"q": (*_FLOATS, "int8"), "y": _FLOATS, "mask": ("bool", *_FLOATS)}
    types |= dict.fromkeys(("k", "v", *caches), (q.dtype,)) | {"nonpad_kv_seqlen": ("int64",)}
    if ("past_key" in layouts) != ("past_value" in layouts):
        raise UnsupportedError("past_key and past_value come together; give both")
    for name, layout in layouts.items():
        if name in shapes and layout.shape not in shapes[name]:
            supported = " or ".join(map(str, shapes[name]))
            raise UnsupportedError(f"{name} has shape {layout.shape} (beside the others: {supported})")
        if name in types and layout.dtype not in types[name]:
            raise UnsupportedError(f"{name} is of type {layout.dtype} (supported: {', '.join(types[name])})")
        if name in "qkvy":
            if layout.shape[3] > 1 and layout.strides[3] != 1:
                raise UnsupportedError(f"channels of {name} are {layout.strides[3]} elements apart (supported: 1)")
        elif name != "mask" and not layout.is_contiguous():
            raise UnsupportedError(f"{name} is not contiguous; copy it")


def _set_mask(problem: Problem, mask: Layout) -> None:
    rank = len(mask.shape)
    shape, strides = (1,) * (4 - rank) + mask.shape, (0,) * (4 - rank) + mask.strides
    full = (problem.batch, problem.num_heads, problem.seqlen_q)
    keys = problem.seqlen_past + problem.seqlen_new
    if rank > 4 or any(n not in (1, m) for n, m in zip(shape, full, strict=False)) or shape[3] > keys:
        raise UnsupportedError(f"mask has shape {mask.shape} (supported: what broadcasts to {(*full, keys)})")
    problem.mask_present, problem.mask_dtype = 1, DTYPES.index(mask.dtype)
    problem.mask_seqlen_kv = keys if shape[3] == 1 else shape[3]  # one column goes for all keys
    problem.mask_strides = tuple(0 if n == 1 else stride for n, stride in zip(shape, strides, strict=True))
