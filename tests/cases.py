"""The edge shapes that every implementation runs over: reference, CPU, CUDA, both simulators, both adapters.

A case is a plain record, so that an implementation takes the subset that it supports:
``[c for c in CASES if c.head_dim == 64]``. The truth is ``truth.py``; here are shapes, data and the reason for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

from intfa_onnx.errors import UnsupportedError

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
}

# bool: random, each row attends. bool_rows: some rows attend nothing. bool_blocks: blocks of 24 along the diagonal.
# float: finite values. float_inf: finite and -inf. float_min: 0 or the type's lowest finite value, and rows that are
# all lowest (a uniform average, as in float).
MaskKind = Literal["none", "bool", "bool_rows", "bool_blocks", "float", "float_inf", "float_min"]

# normal: N(0, 1). uniform: U(-0.5, 0.5). The others hurt INT8 schemes, or break careless ones:
# sink: key 0 takes +6 nats from every query. k_bias: a few K channels far from zero. v_mean: V far from zero.
# outlier: a few channels of Q, K, V ten times the others. llm: k_bias, peaked scores, unequal V channels, a sink.
# zeros: a zero query, key, channel of V. nonfinite: NaN and inf in one query, one key, one element of V.
DataKind = Literal["normal", "uniform", "sink", "k_bias", "v_mean", "outlier", "llm", "zeros", "nonfinite"]


@dataclass(frozen=True)
class AttentionCase:
    """One problem. Names are those of ``plugin/include/intfa/attention.h``."""

    name: str
    why: str
    batch: int = 1
    num_heads: int = 2
    kv_num_heads: int = 2
    seqlen_q: int = 64
    seqlen_new: int = 64
    seqlen_past: int = 0
    head_dim: int = 64
    head_dim_v: int = 64
    dtype: str = "float32"  # of Q, K, V and the past; int8 comes with static scales
    layout: str = "BHSD"  # BSHD: 3-D inputs [B, S, H*D]
    causal: bool = False
    causal_alignment: str = "standard"
    window_left: int = -1
    window_right: int = -1
    softcap: float = 0.0
    scale: float = 0.0  # 0: 1/sqrt(head_dim)
    mask: MaskKind = "none"
    mask_dims: str = "BHQK"  # right-aligned; 1 is a broadcast dimension: B11K, QK, K
    mask_keys: int = 0  # keys that the mask covers, 0 for all; the others are excluded
    nonpad: tuple[int, ...] = ()  # nonpad_kv_seqlen [B]
    static_scales: str = ""  # "" (dynamic), tensor, head or channel (of V; Q and K per head)
    data: DataKind = "normal"
    smooth_k: bool = True
    seed: int = 0

    @property
    def seqlen_kv(self) -> int:
        """Keys in all."""
        return self.seqlen_past + self.seqlen_new

    def attributes(self) -> dict[str, Any]:
        """Return the operator's attributes, named as in ``op_schema``; ``precision`` and the like are the test's."""
        packed = self.layout == "BSHD"
        return {
            "q_num_heads": self.num_heads if packed else 0,
            "kv_num_heads": self.kv_num_heads if packed else 0,
            "scale": self.scale,
            "is_causal": int(self.causal),
            "causal_alignment": self.causal_alignment,
            "softcap": self.softcap,
            "window_left": self.window_left,
            "window_right": self.window_right,
            "smooth_k": int(self.smooth_k),
        }


def draw_qkv(
    kind: DataKind,
    rng: np.random.Generator,
    q_shape: tuple[int, int, int, int],
    k_shape: tuple[int, int, int, int],
    v_shape: tuple[int, int, int, int],
    scale: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw float64 Q [B, Hq, Sq, D], K [B, Hkv, Skv, D], V [B, Hkv, Skv, Dv] of one kind for a softmax scale."""
    head_dim = q_shape[-1]
    if kind == "uniform":
        return rng.uniform(-0.5, 0.5, q_shape), rng.uniform(-0.5, 0.5, k_shape), rng.uniform(-0.5, 0.5, v_shape)
    q, k, v = (rng.standard_normal(shape) for shape in (q_shape, k_shape, v_shape))
    few = rng.permutation(head_dim)[: max(2, head_dim // 20)]
    if kind in ("k_bias", "llm"):
        k[..., few] += rng.uniform(8, 20, few.size) * rng.choice([-1, 1], few.size)
    if kind == "v_mean":
        v += 3.0
    if kind == "outlier":
        q[..., few] *= 3.0  # the logits grow with the product, so Q and K share the factor ten
        k[..., few] *= 10 / 3
        v[..., rng.permutation(v_shape[-1])[:2]] *= 10.0
    if kind == "llm":
        q *= 1.5
        v = (v + 0.3 * rng.standard_normal((1, 1, 1, v_shape[-1]))) * np.exp(0.5 * rng.standard_normal(v_shape[-1]))
        v[:, :, 0] *= 0.02
    if kind in ("sink", "llm"):
        direction = rng.choice([-1.0, 1.0], head_dim) / np.sqrt(head_dim)
        q += 2.0 * direction
        k[:, :, 0] += direction * 6.0 / (2.0 * scale)  # scale * q.k grows by 6 on average
    if kind == "zeros":
        q[:, :, -1] = 0.0
        k[:, :, 0] = 0.0
        v[..., 0] = 0.0
    if kind == "nonfinite":
        q[0, 0, 1, 0] = np.nan
        k[0, -1, 2, 1] = np.inf
        v[-1, 0, 3, 5] = -np.inf
    return q, k, v


def make_inputs(case: AttentionCase) -> dict[str, np.ndarray]:
    """Return a case's inputs by their operator names, those it has.

    Q, K, V [B, H, S, D], past_key, past_value: float32 holding values of ``case.dtype`` exactly (for int8, the codes).
    attn_mask: bool or float32 likewise. nonpad_kv_seqlen: int64 [B]. q_scale, k_scale, v_scale: float32.
    """
    rng = np.random.default_rng(case.seed)
    scale = case.scale or case.head_dim**-0.5
    shape = (case.batch, case.kv_num_heads, case.seqlen_kv)
    q, k, v = draw_qkv(
        case.data,
        rng,
        (case.batch, case.num_heads, case.seqlen_q, case.head_dim),
        (*shape, case.head_dim),
        (*shape, case.head_dim_v),
        scale,
    )
    inputs: dict[str, np.ndarray] = {}
    if case.static_scales:
        granularity = case.static_scales
        per_head = "tensor" if granularity == "tensor" else "head"
        for name, x, kind in (("q_scale", q, per_head), ("k_scale", k, per_head), ("v_scale", v, granularity)):
            axes = {"tensor": (0, 1, 2, 3), "head": (0, 2, 3), "channel": (0, 2)}[kind]
            # A calibrated scale: a little under the amax, so that some codes saturate.
            inputs[name] = np.atleast_1d(np.abs(x).max(axis=axes) * 0.9 / 127).astype(np.float32)
    if case.dtype == "int8":
        q, k, v = (
            np.clip(np.rint(x / _along_heads(inputs[name])), -128, 127)  # -128 is legal input
            for name, x in (("q_scale", q), ("k_scale", k), ("v_scale", v))
        )
    q, k, v = (x.astype(DTYPES[case.dtype]).astype(np.float32) for x in (q, k, v))
    past = case.seqlen_past
    inputs |= {"Q": q, "K": k[:, :, past:], "V": v[:, :, past:]}
    if past:
        inputs |= {"past_key": k[:, :, :past], "past_value": v[:, :, :past]}
    if case.mask != "none":
        inputs["attn_mask"] = _make_mask(case, rng)
    if case.nonpad:
        inputs["nonpad_kv_seqlen"] = np.array(case.nonpad, np.int64)
    return inputs


def _along_heads(scale: np.ndarray) -> np.ndarray:
    """Shape [1], [H] or [H, D] as it multiplies [B, H, S, D]."""
    return scale[:, None, :] if scale.ndim == 2 else scale[:, None, None]


def _make_mask(case: AttentionCase, rng: np.random.Generator) -> np.ndarray:
    keys = case.mask_keys or case.seqlen_kv
    sizes = {"B": case.batch, "H": case.num_heads, "Q": case.seqlen_q, "K": keys, "1": 1}
    shape = tuple(sizes[d] for d in case.mask_dims)
    attend = rng.random(shape) < 0.7
    attend[..., 0] = True  # no row is empty by chance
    if case.mask in ("bool_rows", "float_min"):
        attend[..., ::3, :] = False
    if case.mask == "bool_blocks":
        attend[:] = np.arange(case.seqlen_q)[:, None] // 24 == np.arange(keys) // 24
    if case.mask.startswith("bool"):
        return attend
    dtype = DTYPES["float32" if case.dtype == "int8" else case.dtype]
    values = rng.standard_normal(shape)
    if case.mask == "float_inf":
        values = np.where(attend, values, -np.inf)
    if case.mask == "float_min":
        values = np.where(attend, 0.0, float(ml_dtypes.finfo(dtype).min))
    return values.astype(dtype).astype(np.float32)


def typed_inputs(case: AttentionCase) -> dict[str, np.ndarray]:
    """Return the inputs as an operator gets them: in ``case.dtype`` and ``case.layout``."""
    dtype = DTYPES[case.dtype]
    inputs = make_inputs(case)
    for name in ("Q", "K", "V", "past_key", "past_value"):
        if name in inputs:
            inputs[name] = inputs[name].astype(dtype)
    if "attn_mask" in inputs and inputs["attn_mask"].dtype != np.bool_ and case.dtype != "int8":
        inputs["attn_mask"] = inputs["attn_mask"].astype(dtype)
    if case.layout == "BSHD":
        for name in ("Q", "K", "V"):
            x = inputs[name]
            inputs[name] = np.ascontiguousarray(x.swapaxes(1, 2)).reshape(x.shape[0], x.shape[2], -1)
    elif case.layout != "BHSD":
        raise UnsupportedError(f"layout {case.layout!r} (supported: BHSD, BSHD)")
    return inputs


C = AttentionCase
CASES: tuple[AttentionCase, ...] = (
    # Sizes
    C("plain", "one full tile each way: the shape to debug with", seqlen_q=128, seqlen_new=128),
    C("one_by_one", "a single query and key: softmax of one score is 1", seqlen_q=1, seqlen_new=1),
    C("one_key", "every query gets V[0] back; smoothing makes K' all zero", seqlen_q=33, seqlen_new=1),
    C("decode", "one query against many keys, no multiple of a tile", batch=2, seqlen_q=1, seqlen_new=301),
    C("ragged", "neither length is a multiple of 8, 16, 64 or 128", batch=2, seqlen_q=77, seqlen_new=203),
    C("tile_less_one", "the last key of a tile is missing", seqlen_q=127, seqlen_new=127),
    C("tile_plus_one", "a tile with a single key", seqlen_q=129, seqlen_new=257),
    C("many_tiles", "the accumulator is rescaled many times", num_heads=1, kv_num_heads=1, seqlen_q=48,
      seqlen_new=1100),
    C("wide_queries", "more queries than keys", seqlen_q=190, seqlen_new=20),
    C("batch_heads", "B * H > 1 with odd counts: strides", batch=3, num_heads=5, kv_num_heads=5, seqlen_q=19,
      seqlen_new=45),
    # Head sizes
    C("d8", "the smallest head", head_dim=8, head_dim_v=8, seqlen_q=40, seqlen_new=72),
    C("d16", "half of an mma's K dimension", head_dim=16, head_dim_v=16, seqlen_q=40, seqlen_new=72),
    C("d32", "all-MiniLM's head", head_dim=32, head_dim_v=32, num_heads=3, kv_num_heads=3, seqlen_q=40, seqlen_new=136),
    C("d40", "no multiple of 16 or 32 (Stable Diffusion)", head_dim=40, head_dim_v=40, seqlen_q=40, seqlen_new=72),
    C("d72", "no multiple of 16, between two kernels (SigLIP)", head_dim=72, head_dim_v=72, seqlen_q=40, seqlen_new=72),
    C("d80", "a multiple of 16 only (Phi)", head_dim=80, head_dim_v=80, seqlen_q=40, seqlen_new=140),
    C("d96", "a kernel that is no power of two", head_dim=96, head_dim_v=96, seqlen_q=70, seqlen_new=140),
    C("d128", "Llama's head", head_dim=128, head_dim_v=128, seqlen_q=130, seqlen_new=200),
    C("d256", "the largest head: |S| comes near 2^22", head_dim=256, head_dim_v=256, seqlen_q=40, seqlen_new=136),
    C("dv_smaller", "V's head is smaller than K's", head_dim=128, head_dim_v=64, seqlen_q=40, seqlen_new=136),
    C("dv_larger", "V's head is larger, no power of two", head_dim=24, head_dim_v=88, seqlen_q=40, seqlen_new=136),
    # Heads
    C("gqa", "four queries share a key head", num_heads=8, kv_num_heads=2, seqlen_q=65, seqlen_new=130, head_dim=32,
      head_dim_v=32),
    C("mqa", "all queries share one key head", batch=2, num_heads=6, kv_num_heads=1, seqlen_q=33, seqlen_new=70),
    C("gqa_decode", "grouped heads, one query, a cache", batch=2, num_heads=8, kv_num_heads=2, seqlen_q=1, seqlen_new=1,
      seqlen_past=150, causal=True),
    # Types and layout
    C("float16", "f16 in and out", dtype="float16", seqlen_q=70, seqlen_new=140),
    C("bfloat16", "bf16 in and out", dtype="bfloat16", seqlen_q=70, seqlen_new=140),
    C("bshd", "3-D inputs: heads are interleaved with tokens", layout="BSHD", batch=2, num_heads=3, kv_num_heads=3,
      seqlen_q=37, seqlen_new=70),
    C("bshd_gqa_float16", "3-D inputs, grouped heads, f16, Dv != D", layout="BSHD", dtype="float16", batch=2,
      num_heads=4, kv_num_heads=2, seqlen_q=37, seqlen_new=70, head_dim_v=32, causal=True),
    C("int8_tensor", "INT8 inputs (-128 among them), one scale each", dtype="int8", static_scales="tensor",
      seqlen_new=140),
    C("int8_channel", "INT8 inputs, V per channel, grouped heads, past", dtype="int8", static_scales="channel",
      num_heads=4, seqlen_q=20, seqlen_new=40, seqlen_past=100, causal=True),
    C("static_head", "float inputs with calibrated scales that saturate", static_scales="head", seqlen_new=140,
      data="v_mean"),
    # Causal and windows
    C("causal", "the triangle over several tiles", causal=True, seqlen_q=200, seqlen_new=200),
    C("causal_wide", "Sq > Skv: standard alignment, late rows see every key", causal=True, seqlen_q=100, seqlen_new=40),
    C("causal_tall", "Sq < Skv, no past: standard alignment leaves keys unseen", causal=True, seqlen_q=40,
      seqlen_new=170),
    C("causal_past", "Sq < Skv through a past: offset is the past's length", causal=True, seqlen_q=40, seqlen_new=40,
      seqlen_past=130),
    C("causal_past_longer_new", "a past and Sq != Snew", causal=True, seqlen_q=9, seqlen_new=30, seqlen_past=100),
    C("lower_right", "Sq < Skv, the last query sees the last key", causal=True, causal_alignment="lower_right",
      seqlen_q=40, seqlen_new=170),
    C("lower_right_empty", "Sq > Skv: the first rows attend nothing and give 0", causal=True,
      causal_alignment="lower_right", seqlen_q=170, seqlen_new=40),
    C("window", "both limits: whole tiles are skipped at either end", window_left=30, window_right=12, seqlen_q=300,
      seqlen_new=300),
    C("window_causal", "a sliding window with a past (Mistral)", causal=True, window_left=16, seqlen_q=80,
      seqlen_new=80, seqlen_past=200),
    C("window_zero", "each query sees one key alone", window_left=0, window_right=0, seqlen_q=70, seqlen_new=70),
    C("window_lower_right", "a window aligned to the end, Sq != Skv", window_left=20, window_right=3,
      causal_alignment="lower_right", seqlen_q=50, seqlen_new=170),
    C("window_past_the_end", "late rows lie wholly beyond the keys: 0", window_left=5, seqlen_q=150, seqlen_new=60),
    # Masks
    C("mask_bool", "full bool mask", mask="bool", batch=2, seqlen_q=40, seqlen_new=140),
    C("mask_padding", "a padded batch (BERT)", mask="bool", mask_dims="B11K", batch=3, seqlen_q=70, seqlen_new=70),
    C("mask_rows", "every third row attends nothing: 0 and -inf, not NaN", mask="bool_rows", mask_dims="QK",
      seqlen_q=70, seqlen_new=140),
    C("mask_rank1", "one row of keys", mask="bool", mask_dims="K", seqlen_q=20, seqlen_new=70),
    C("mask_column", "one column goes for all keys: whole queries are excluded", mask="bool_rows", mask_dims="BHQ1",
      batch=2, seqlen_q=70, seqlen_new=140),
    C("mask_blocks", "documents of 24 tokens behind each other", mask="bool_blocks", mask_dims="QK", seqlen_q=200,
      seqlen_new=200),
    C("mask_float", "a relative position bias per head", mask="float", mask_dims="HQK", num_heads=3, kv_num_heads=3,
      seqlen_new=140),
    C("mask_float_inf", "finite values and -inf, with causal", mask="float_inf", mask_dims="1HQK", causal=True,
      seqlen_new=64),
    C("mask_min", "finfo.min stays finite: such rows average uniformly", mask="float_min", mask_dims="B1QK", batch=2,
      seqlen_new=140),
    C("mask_min_float16", "finfo.min of f16 (-65504) leaves the scores in it", mask="float_min", dtype="float16",
      seqlen_new=140),
    C("mask_short", "keys beyond the mask are excluded", mask="bool", mask_keys=90, seqlen_q=40, seqlen_new=140),
    C("mask_short_float", "the same for a float mask with a past", mask="float", mask_keys=90, mask_dims="QK",
      seqlen_q=40, seqlen_new=40, seqlen_past=100),
    C("mask_gqa", "a mask per query head, grouped heads", mask="float_inf", num_heads=4, kv_num_heads=2, seqlen_q=40,
      seqlen_new=70),
    C("mask_decode", "one query, a padding mask, a cache", mask="bool", mask_dims="B11K", batch=2, seqlen_q=1,
      seqlen_new=1, seqlen_past=140),
    # Padding
    C("nonpad", "ragged batch, one entry without any key; padding must not enter the statistics", batch=4,
      nonpad=(140, 77, 1, 0), seqlen_q=20, seqlen_new=140, data="k_bias"),
    C("nonpad_causal", "offset is nonpad - Sq, negative for one entry", batch=3, nonpad=(140, 77, 9), seqlen_q=20,
      seqlen_new=140, causal=True),
    # Softcap and scale
    C("softcap", "Gemma's cap bites: peaked scores", softcap=5.0, data="llm", seqlen_new=140),
    C("softcap_mask", "the cap comes before the mask, so -inf stays", softcap=2.0, mask="float_inf", causal=True,
      data="k_bias"),
    C("softcap_plain", "the cap without smoothing", softcap=5.0, smooth_k=False, seqlen_new=140),
    C("scale", "a scale of its own (T5 has 1)", scale=0.3, seqlen_new=140),
    # Data that hurts
    C("sink", "one key takes most of the weight", data="sink", seqlen_q=40, seqlen_new=520),
    C("k_bias", "K channels far from zero: what smoothing is for", data="k_bias", seqlen_q=40, seqlen_new=260),
    C("k_bias_rough", "the same without smoothing", data="k_bias", smooth_k=False, seqlen_q=40, seqlen_new=260),
    C("v_mean", "V far from zero: an error of the row sum shows", data="v_mean", seqlen_q=40, seqlen_new=260),
    C("outlier", "a few channels ten times the others", data="outlier", seqlen_q=40, seqlen_new=260),
    C("llm", "what real layers show, with causal and grouped heads", data="llm", num_heads=4, causal=True, seqlen_q=150,
      seqlen_new=150),
    C("zeros", "zero query, key and channel: scale 1, no division by zero", data="zeros", seqlen_q=40, seqlen_new=70),
    C("nonfinite", "NaN and inf stay in the rows and channels that they belong to", data="nonfinite", batch=2,
      causal=True, seqlen_q=40, seqlen_new=70),
)  # fmt: skip
