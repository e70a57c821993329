"""The operator in numpy: float64 truth, and INT8 arithmetic as the native backends do it.

Notation: B batch, Hq query heads, Hkv key/value heads, Sq queries, Skv keys with the past, D and Dv head sizes. Scores are in
log2 units: ``x = score * log2(e)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from intfa_onnx import quantize
from intfa_onnx.errors import UnsupportedError

F32 = np.float32
F32_MAX = np.finfo(F32).max
LOG2_E = F32(math.log2(math.e))
LN_2 = F32(math.log(2))
P_MAX = F32(255)  # code of P = 1 in the tile scheme
PAPER_P_MAX = F32(127)
DEFAULT_TILE_N = 128


@dataclass(frozen=True)
class AttentionResult:
    """What the operator returns.

    Attributes:
        y: [B, Hq, Sq, Dv], or [B, Sq, Hq*Dv] for 3-D inputs.
        present_key: [B, Hkv, Skv, D], the past and the new keys.
        present_value: [B, Hkv, Skv, Dv].
        lse: float32 [B, Hq, Sq], natural log of the sum of exponentials of the masked scores; -inf where no key is attended.
    """

    y: NDArray
    present_key: NDArray
    present_value: NDArray
    lse: NDArray


def attention(
    q: NDArray,
    k: NDArray,
    v: NDArray,
    attn_mask: NDArray | None = None,
    past_key: NDArray | None = None,
    past_value: NDArray | None = None,
    nonpad_kv_seqlen: NDArray | None = None,
    q_scale: NDArray | None = None,
    k_scale: NDArray | None = None,
    v_scale: NDArray | None = None,
    *,
    q_num_heads: int = 0,
    kv_num_heads: int = 0,
    scale: float = 0.0,
    is_causal: bool = False,
    causal_alignment: str = "standard",
    softcap: float = 0.0,
    window_left: int = -1,
    window_right: int = -1,
    precision: str = "int8",
    scheme: str = "tile",
    k_granularity: str = "auto",
    smooth_k: bool = True,
    tile_n: int = DEFAULT_TILE_N,
    output_dtype: DTypeLike | None = None,
) -> AttentionResult:
    """Compute ``softmax(scale * Q K^T + mask) V``.

    Args:
        q: [B, Hq, Sq, D], or [B, Sq, Hq*D] with ``q_num_heads``; a float type, or int8 codes with ``q_scale``.
        k: [B, Hkv, Snew, D] or [B, Snew, Hkv*D].
        v: [B, Hkv, Snew, Dv] or [B, Snew, Hkv*Dv].
        attn_mask: bool (true = attend) or float (added), broadcastable to [B, Hq, Sq, Skv]; may cover fewer keys.
        past_key: [B, Hkv, Spast, D], concatenated in front.
        past_value: [B, Hkv, Spast, Dv].
        nonpad_kv_seqlen: int64 [B]; keys beyond are padding.
        q_scale: float32, per tensor [1] or per head [Hq].
        k_scale: float32, per tensor [1] or per head [Hkv].
        v_scale: float32, per tensor [1], per head [Hkv] or per channel [Hkv, Dv].
        q_num_heads: heads of 3-D ``q``.
        kv_num_heads: heads of 3-D ``k`` and ``v``.
        scale: softmax scale; 0 means ``1/sqrt(D)``.
        is_causal: query i attends key j only if ``j <= i + offset``.
        causal_alignment: "standard": offset is the past length, or ``nonpad_kv_seqlen - Sq``, or 0. "lower_right": ``Skv - Sq``.
        softcap: 0, or scores become ``softcap * tanh(score / softcap)`` before the mask.
        window_left: keys attended before ``i + offset``; -1 is unbounded.
        window_right: keys attended after it.
        precision: "int8"; "int8_qk", the second product in float16; "float", all in float64.
        scheme: "tile", or "paper" for INT-FlashAttention as published.
        k_granularity: "auto" and "token": one ``k_scale`` per token; "group": four per tile.
        smooth_k: subtract the mean key before quantization (tile scheme, without ``k_scale``).
        tile_n: keys per tile; part of the numerics.
        output_dtype: type of ``y``; default the type of float inputs, float32 for INT8 ones.
    Raises:
        UnsupportedError: unknown precision or scheme, or INT8 inputs without scales.
    Source: ONNX Attention, opset 25, for the meaning; ``scheme="paper"``: arXiv 2409.16997, algorithm 1.
    """
    if precision not in ("int8", "int8_qk", "float") or scheme not in ("tile", "paper"):
        raise UnsupportedError(
            f"precision {precision!r} with scheme {scheme!r} is unknown (supported: int8, int8_qk or float; tile or paper)"
        )
    is_3d = q.ndim == 3
    if is_3d:
        q, k, v = (_split_heads(x, heads) for x, heads in ((q, q_num_heads), (k, kv_num_heads), (v, kv_num_heads)))
    if past_key is not None and past_value is not None:
        k, v = np.concatenate([past_key, k], axis=2), np.concatenate([past_value, v], axis=2)
    if output_dtype is None:
        output_dtype = F32 if q.dtype == np.int8 else q.dtype

    batch, heads, seqlen_q, head_dim = q.shape
    seqlen_kv = k.shape[2]
    lengths = np.full(batch, seqlen_kv) if nonpad_kv_seqlen is None else np.asarray(nonpad_kv_seqlen).reshape(-1)
    valid = np.arange(seqlen_kv) < lengths[:, None]  # [B, Skv]
    if causal_alignment == "lower_right" or nonpad_kv_seqlen is not None:
        offset = lengths - seqlen_q
    else:
        offset = np.full(batch, 0 if past_key is None else past_key.shape[2])
    allowed = np.broadcast_to(
        _positions_allowed(seqlen_q, seqlen_kv, offset, is_causal, window_left, window_right) & valid[:, None, None, :],
        (batch, heads, seqlen_q, seqlen_kv),
    )
    bias = None
    if attn_mask is not None:
        mask = _extend_mask(attn_mask, seqlen_kv)
        if mask.dtype == np.bool_:
            allowed = allowed & mask
        else:
            allowed = allowed & ~np.isneginf(mask)
            bias = np.broadcast_to(mask.astype(F32), allowed.shape)

    masking = _Masking(allowed, bias, valid)
    softmax_scale = F32(scale or 1 / math.sqrt(head_dim))
    q_in, k_in, v_in, bad = _take_out_non_finite(q, k, v)
    if precision == "float":
        y, lse = _float64(q_in, k_in, v_in, masking, softmax_scale, softcap)
    else:
        smooth_k = smooth_k and scheme == "tile"
        q_codes, q_scales = _quantize_queries(q_in, q_scale)
        k_codes, k_scales, mean = _quantize_keys(
            k_in, k_scale, valid, bad.key_tokens, smooth_k, tile_n if k_granularity == "group" else None
        )
        scores = _Scores(q_codes, k_codes, q_scales, k_scales, mean, softmax_scale, softcap, masking)
        if precision == "int8_qk":
            values, v_scales = _half_values(v_in, v_scale), F32(1)
            y, lse = _forward_half(scores, _per_query_head(values, heads), tile_n)
        else:
            values, v_scales = _quantize_values(v_in, v_scale, valid, per_head=scheme == "paper")
            forward = _forward_paper if scheme == "paper" else _forward_tile
            y, lse = forward(scores, _per_query_head(values, heads), tile_n)
            y = y * _per_query_head(v_scales, heads)
        lse = lse + scores.lse_shift
    y, lse = _put_back_nan(y, lse, bad, allowed)
    y = y.astype(output_dtype)
    if is_3d:
        y = y.transpose(0, 2, 1, 3).reshape(batch, seqlen_q, -1)
    return AttentionResult(y, k, v, lse.astype(F32))


@dataclass(frozen=True)
class _Masking:
    allowed: NDArray  # bool [B, Hq, Sq, Skv]
    bias: NDArray | None  # float32 [B, Hq, Sq, Skv], in nats
    valid: NDArray  # bool [B, Skv]: not padding


class _Scores:
    """Tiles of scores from codes and scales, with softcap and mask."""

    def __init__(
        self,
        q_codes: NDArray,  # int8 [B, Hq, Sq, D]
        k_codes: NDArray,  # int8 [B, Hkv, Skv, D]
        q_scales: NDArray,  # float32 [B, Hq, Sq]
        k_scales: NDArray,  # float32 [B, Hkv, Skv]
        mean: NDArray | None,  # float32 [B, Hkv, D], what smoothing subtracted
        softmax_scale: np.float32,
        softcap: float,
        masking: _Masking,
    ) -> None:
        heads = q_codes.shape[1]
        self.q_codes, self.k_codes = q_codes, _per_query_head(k_codes, heads)
        self.row_scale = (q_scales * (softmax_scale * LOG2_E))[..., None]
        self.k_scales = _per_query_head(k_scales, heads)[:, :, None, :]
        self.softcap, self.masking = softcap, masking
        self.row_shift = F32(0)  # float32 [B, Hq, Sq, 1], log2 units
        if mean is not None:
            projection = q_codes.astype(np.float64) @ _per_query_head(mean, heads)[..., None]
            self.row_shift = projection.astype(F32) * self.row_scale
        self.seqlen_kv = k_codes.shape[2]

    @property
    def lse_shift(self) -> NDArray:
        """What smoothing took off each row's lse, in nats; nothing under a softcap, where it went back before the cap."""
        return F32(0) if self.softcap else np.squeeze(self.row_shift * LN_2, -1) if self.row_shift.ndim else F32(0)

    def tiles(self, tile_n: int) -> Iterator[tuple[slice, NDArray]]:
        """Yield the keys of each tile and its scores, float32 [B, Hq, Sq, keys], log2 units, -inf where not attended."""
        for start in range(0, self.seqlen_kv, tile_n):
            keys = slice(start, min(start + tile_n, self.seqlen_kv))
            s = _exact_product(self.q_codes, self.k_codes[:, :, keys].swapaxes(-1, -2))
            x = (s * self.k_scales[..., keys]) * self.row_scale
            if self.softcap:
                cap = F32(self.softcap) * LOG2_E
                x = cap * np.tanh((x + self.row_shift) / cap)
            if self.masking.bias is not None:
                x = np.maximum(x + _bias_log2(self.masking.bias[..., keys]), -F32_MAX)
            yield keys, np.where(self.masking.allowed[..., keys], x, F32(-np.inf))


def _forward_tile(scores: _Scores, v_codes: NDArray, tile_n: int) -> tuple[NDArray, NDArray]:
    """The tile scheme: P is u8 relative to its own tile's row maximum, so its error does not grow with the length.

    Returns y float32 [B, Hq, Sq, Dv] without V's scale, and lse float32 [B, Hq, Sq] without smoothing's shift.
    """
    o, total, running = _accumulators(scores, v_codes)
    for keys, x in scores.tiles(tile_n):
        top = x.max(axis=-1, keepdims=True)
        p = np.rint(P_MAX * np.exp2(x - _finite(top)))
        new = np.maximum(running, top)
        a, b = _weight(running, new), _weight(top, new)
        o = a * o + b * _exact_product(p, v_codes[:, :, keys])
        total = a * total + b * p.sum(axis=-1, keepdims=True)
        running = new
    return _finish(o, total, running, total / P_MAX)


def _forward_paper(scores: _Scores, v_codes: NDArray, tile_n: int) -> tuple[NDArray, NDArray]:
    """INT-FlashAttention as published: P is s8 relative to the running maximum, the row sum is of the float P."""
    o, total, running = _accumulators(scores, v_codes)
    for keys, x in scores.tiles(tile_n):
        new = np.maximum(running, x.max(axis=-1, keepdims=True))
        p = np.exp2(x - _finite(new))
        a = _weight(running, new)
        o = a * o + _exact_product(np.rint(PAPER_P_MAX * p), v_codes[:, :, keys])
        total = a * total + p.sum(axis=-1, keepdims=True)
        running = new
    return _finish(o, PAPER_P_MAX * total, running, total)


def _forward_half(scores: _Scores, values: NDArray, tile_n: int) -> tuple[NDArray, NDArray]:
    """Half INT8: P and V in float16, sums in float32; the row sum is of the rounded P."""
    o, total, running = _accumulators(scores, values)
    for keys, x in scores.tiles(tile_n):
        new = np.maximum(running, x.max(axis=-1, keepdims=True))
        p = np.exp2(x - _finite(new)).astype(np.float16).astype(F32)
        a = _weight(running, new)
        o = a * o + p @ values[:, :, keys]
        total = a * total + p.sum(axis=-1, keepdims=True)
        running = new
    return _finish(o, total, running, total)


def _accumulators(scores: _Scores, values: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    rows = scores.q_codes.shape[:3]
    return np.zeros((*rows, values.shape[-1]), F32), np.zeros((*rows, 1), F32), np.full((*rows, 1), -np.inf, F32)


def _finish(o: NDArray, divisor: NDArray, running: NDArray, total: NDArray) -> tuple[NDArray, NDArray]:
    """Divide by the row sum; a row without keys gives 0 and lse -inf."""
    empty = total == 0
    y = np.where(empty, F32(0), o / np.where(empty, F32(1), divisor))
    lse = np.where(empty, F32(-np.inf), (_finite(running) + np.log2(np.where(empty, F32(1), total))) * LN_2)
    return y, lse[..., 0]


def _finite(x: NDArray) -> NDArray:
    """Replace the maximum of no keys by 0, so that no -inf - -inf arises."""
    return np.where(np.isneginf(x), F32(0), x)


def _weight(maximum: NDArray, new: NDArray) -> NDArray:
    """Return ``2^(maximum - new)``, 0 where ``maximum`` is that of no keys."""
    return np.exp2(maximum - _finite(new))


def _float64(
    q: NDArray, k: NDArray, v: NDArray, masking: _Masking, softmax_scale: np.float32, softcap: float
) -> tuple[NDArray, NDArray]:
    heads = q.shape[1]
    x = q.astype(np.float64) @ _per_query_head(k, heads).astype(np.float64).swapaxes(-1, -2) * softmax_scale
    if softcap:
        x = softcap * np.tanh(x / softcap)
    if masking.bias is not None:
        x = x + masking.bias
    x = np.where(masking.allowed, x, -np.inf)
    top = x.max(axis=-1, keepdims=True, initial=-np.inf)
    p = np.exp(x - np.where(np.isneginf(top), 0, top))
    total = p.sum(axis=-1, keepdims=True)
    y = p @ _per_query_head(v, heads).astype(np.float64) / np.where(total == 0, 1, total)
    with np.errstate(divide="ignore"):
        return y, (top + np.log(total))[..., 0]


def _quantize_queries(q: NDArray, scale: NDArray | None) -> tuple[NDArray, NDArray]:
    if scale is None:
        return quantize.quantize_per_token(_need_float(q, "Q"))
    codes, scales = _static(q, scale)
    return codes, np.broadcast_to(scales[..., 0], q.shape[:3])


def _quantize_keys(
    k: NDArray, scale: NDArray | None, valid: NDArray, bad_tokens: NDArray, smooth: bool, group_tile: int | None
) -> tuple[NDArray, NDArray, NDArray | None]:
    if scale is not None:
        codes, scales = _static(k, scale)
        return codes, np.broadcast_to(scales[..., 0], k.shape[:3]), None
    k, mean = _need_float(k, "K"), None
    if smooth:
        k, mean = quantize.smooth_keys(k, valid[:, None, :] & ~bad_tokens)
    codes, scales = quantize.quantize_keys(k, valid, group_tile=group_tile)
    return codes, scales, mean


def _quantize_values(v: NDArray, scale: NDArray | None, valid: NDArray, per_head: bool) -> tuple[NDArray, NDArray]:
    """Return codes and the scale, [B, Hkv, 1, Dv] or [B, Hkv, 1, 1]."""
    if scale is not None:
        codes, scales = _static(v, scale)
        return codes, np.broadcast_to(scales, (*v.shape[:2], 1, scales.shape[-1]))
    if per_head:
        codes, scales = quantize.quantize_per_head(_need_float(v, "V"), valid)
        return codes, scales[:, :, None, None]
    codes, scales = quantize.quantize_per_channel(_need_float(v, "V"), valid)
    return codes, scales[:, :, None, :]


def _half_values(v: NDArray, scale: NDArray | None) -> NDArray:
    if v.dtype == np.int8:
        codes, scales = _static(v, _need_scale(scale))
        v = codes * scales
    return v.astype(np.float16).astype(F32)


def _static(x: NDArray, scale: NDArray) -> tuple[NDArray, NDArray]:
    """Return codes and the given scale as [1, H or 1, 1, channels or 1]."""
    scale = np.asarray(scale, F32)
    scale = scale.reshape(1, -1, 1, scale.shape[1] if scale.ndim == 2 else 1)
    return (np.maximum(x, np.int8(-127)) if x.dtype == np.int8 else quantize.quantize_static(x, scale)), scale


def _need_float(x: NDArray, name: str) -> NDArray:
    if x.dtype == np.int8:
        _need_scale(None, name)
    return x


def _need_scale(scale: NDArray | None, name: str = "V") -> NDArray:
    if scale is None:
        raise UnsupportedError(
            f"{name} is int8 but {name.lower()}_scale is not given; pass the scale it was quantized with"
        )
    return scale


@dataclass(frozen=True)
class _NonFinite:
    query_tokens: NDArray  # bool [B, Hq, Sq]
    key_tokens: NDArray  # bool [B, Hkv, Skv]
    values: NDArray  # bool [B, Hkv, Skv, Dv]


def _take_out_non_finite(q: NDArray, k: NDArray, v: NDArray) -> tuple[NDArray, NDArray, NDArray, _NonFinite]:
    """Return float32 (or int8) inputs with zeros for non-finite tokens and values, and where these were."""
    q, k, v = (x if x.dtype == np.int8 else x.astype(F32) for x in (q, k, v))
    bad_q, bad_k = (~np.isfinite(x).all(axis=-1) for x in (q, k))
    bad_v = ~np.isfinite(v)
    clean = (np.where(bad, x.dtype.type(0), x) for x, bad in ((q, bad_q[..., None]), (k, bad_k[..., None]), (v, bad_v)))
    return (*clean, _NonFinite(bad_q, bad_k, bad_v))  # type: ignore[return-value]  # three arrays


def _put_back_nan(y: NDArray, lse: NDArray, bad: _NonFinite, allowed: NDArray) -> tuple[NDArray, NDArray]:
    """A non-finite query spoils its row, a key the rows that attend it, a value one channel of these rows."""
    if not (bad.query_tokens.any() or bad.key_tokens.any() or bad.values.any()):
        return y, lse
    heads = y.shape[1]
    rows = bad.query_tokens & allowed.any(axis=-1)
    rows |= (allowed & _per_query_head(bad.key_tokens, heads)[:, :, None, :]).any(axis=-1)
    channels = allowed.astype(F32) @ _per_query_head(bad.values, heads).astype(F32) > 0
    return np.where(rows[..., None] | channels, np.nan, y), np.where(rows, np.nan, lse)


def _positions_allowed(
    seqlen_q: int, seqlen_kv: int, offset: NDArray, is_causal: bool, window_left: int, window_right: int
) -> NDArray:
    """Return bool [B, 1, Sq, Skv]: what causality and window let each query see."""
    position = np.arange(seqlen_q)[:, None] + offset[:, None, None, None]
    key = np.arange(seqlen_kv)
    allowed = np.ones((len(offset), 1, seqlen_q, seqlen_kv), np.bool_)
    if is_causal:
        allowed &= key <= position
    if window_left >= 0:
        allowed &= key >= position - window_left
    if window_right >= 0:
        allowed &= key <= position + window_right
    return allowed


def _extend_mask(mask: NDArray, seqlen_kv: int) -> NDArray:
    """Exclude the keys that a short mask does not cover; a last dimension of 1 is broadcast, as by any ONNX operator."""
    missing = seqlen_kv - mask.shape[-1]
    if missing <= 0 or mask.shape[-1] == 1:
        return mask
    fill = False if mask.dtype == np.bool_ else -np.inf
    return np.concatenate([mask, np.full((*mask.shape[:-1], missing), fill, mask.dtype)], axis=-1)


def _bias_log2(bias: NDArray) -> NDArray:
    with np.errstate(over="ignore"):
        return np.maximum(bias * LOG2_E, -F32_MAX)


def _split_heads(x: NDArray, heads: int) -> NDArray:
    batch, tokens, channels = x.shape
    if heads <= 0 or channels % heads:
        raise UnsupportedError(
            f"3-D input of {channels} channels needs q_num_heads and kv_num_heads that divide it, found {heads}"
        )
    return x.reshape(batch, tokens, heads, channels // heads).transpose(0, 2, 1, 3)


def _per_query_head(x: NDArray, heads: int) -> NDArray:
    """Repeat each KV head for the query heads that share it."""
    return x if x.shape[1] == heads else np.repeat(x, heads // x.shape[1], axis=1)


def _exact_product(a: NDArray, b: NDArray) -> NDArray:
    """Return the integer product of two arrays of codes as float32, exactly.

    float32 holds every partial sum below 2^24 exactly, in any order: 127 * 127 * 256 for Q K^T, 255 * 127 * 518 for P V.
    """
    dtype = (
        F32 if 255 * 127 * a.shape[-1] < 2**24 or a.shape[-1] * 127 * 127 < 2**24 and a.dtype == np.int8 else np.float64
    )
    return (a.astype(dtype) @ b.astype(dtype)).astype(F32)
