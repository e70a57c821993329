"""INT8 quantization of Q, K and V: symmetric, ties to even, codes within [-127, 127].

Everything is float32 arithmetic in the order that the backends use, so that their codes are equal to these. A code is
made by multiplying with the inverse of the scale, never by dividing: ``inverse = 127 / amax`` (of K: ``1 / scale``).
Callers replace non-finite tokens by zeros first; ``intfa_onnx.reference`` tells what becomes of them.
"""

from __future__ import annotations

import numpy as np

MAX_CODE = 127
# A group with a smaller amax counts as all-zero: its scale or the inverse would leave float32's normal numbers.
MIN_AMAX = np.float32(2.0**-119)


def round_up_22_bits(scale: np.ndarray) -> np.ndarray:
    """Round positive float32 scales up to 22 significant bits.

    ``scale * 3 * 2^22`` is then exact in float32, so that a kernel can remove that bias by one fused multiply-add.
    """
    bits = np.ascontiguousarray(scale, np.float32).view(np.uint32)
    return ((bits + np.uint32(3)) & np.uint32(0xFFFFFFFC)).view(np.float32).reshape(np.shape(scale))


def encode(x: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Return int8 ``clamp(rint(x * inverse))``; both float32 and finite, ``inverse`` broadcasts to ``x``."""
    return np.clip(np.rint(x * inverse), -MAX_CODE, MAX_CODE).astype(np.int8)


def quantize_static(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return int8 ``clamp(rint(x / scale))`` for a scale that calibration gave; it broadcasts to ``x``."""
    return np.clip(np.rint(x / scale), -MAX_CODE, MAX_CODE).astype(np.int8)


def quantize_per_token(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantize to INT8 with one scale per token.

    ``scale = amax / 127``; an all-zero token gets scale 1.

    Args:
        x: float32 [batch, heads, seqlen, head_dim], finite.
    Returns:
        codes: int8, shape of ``x``.
        scale: float32 [batch, heads, seqlen], in units of ``x`` per code.
    Source: INT-FlashAttention (arXiv 2409.16997), section 3.
    """
    scale, inverse = _scale_and_inverse(np.abs(x).max(axis=-1))
    return encode(x, inverse[..., None]), scale


def quantize_per_channel(x: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantize to INT8 with one scale per channel: for V, whose channels the output keeps apart.

    Args:
        x: float32 [batch, heads, seqlen, head_dim], finite.
        counted: bool [batch, heads, seqlen], the tokens that set the scale; the others' codes may saturate.
    Returns:
        codes: int8, shape of ``x``.
        scale: float32 [batch, heads, 1, head_dim].
    """
    scale, inverse = _scale_and_inverse(np.abs(x).max(axis=-2, keepdims=True, initial=0, where=counted[..., None]))
    return encode(x, inverse), scale


def quantize_per_head(x: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantize to INT8 with one scale per (batch, head), as the paper does with V.

    Args:
        x: float32 [batch, heads, seqlen, head_dim], finite.
        counted: bool [batch, heads, seqlen], the tokens that set the scale; the others' codes may saturate.
    Returns:
        codes: int8, shape of ``x``.
        scale: float32 [batch, heads, 1, 1].
    Source: INT-FlashAttention (arXiv 2409.16997), section 3.
    """
    scale, inverse = _scale_and_inverse(
        np.abs(x).max(axis=(-2, -1), keepdims=True, initial=0, where=counted[..., None])
    )
    return encode(x, inverse), scale


def quantize_keys(k: np.ndarray, group_tile: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Quantize K to INT8 with scales of 22 significant bits, one per token or four per tile.

    Args:
        k: float32 [batch, heads, seqlen, head_dim], finite.
        group_tile: 0 for one scale per token. Otherwise the keys per tile, a multiple of 8: keys of a tile with equal
            ``(j % 8) // 2`` share a scale, which are the keys that one lane of a tensor core's accumulator holds.
    Returns:
        codes: int8, shape of ``k``.
        scale: float32 [batch, heads, seqlen]; ``scale >= amax / 127`` of its group.
    """
    amax = np.abs(k).max(axis=-1)
    if group_tile:
        seqlen = amax.shape[-1]
        padded = np.zeros((*amax.shape[:-1], -(-seqlen // group_tile) * group_tile), np.float32)
        padded[..., :seqlen] = amax
        tiles = padded.reshape(*amax.shape[:-1], -1, group_tile // 8, 4, 2)  # j = tile, 8-block, group, member
        shared = np.broadcast_to(tiles.max(axis=(-3, -1), keepdims=True), tiles.shape)
        amax = shared.reshape(padded.shape)[..., :seqlen]
    scale = round_up_22_bits(_scale_and_inverse(amax)[0])
    return encode(k, (np.float32(1) / scale)[..., None]), scale


def smooth_keys(k: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Subtract from each key the mean of the counted ones; the softmax cancels it.

    The sum is float64, rounded once, so that it does not depend on the order of the tokens.

    Args:
        k: float32 [batch, heads, seqlen, head_dim], finite.
        counted: bool [batch, heads, seqlen].
    Returns:
        smoothed: float32, shape of ``k``.
        mean: float32 [batch, heads, 1, head_dim]; 0 where nothing counts.
    Source: SageAttention (arXiv 2410.02367), section 4.2.
    """
    count = np.maximum(counted.sum(axis=-1), 1)[..., None, None]
    mean = (np.sum(k, axis=-2, keepdims=True, dtype=np.float64, where=counted[..., None]) / count).astype(np.float32)
    return k - mean, mean


def _scale_and_inverse(amax: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    zero = amax < MIN_AMAX
    amax = np.where(zero, np.float32(MAX_CODE), amax)
    return amax / np.float32(MAX_CODE), np.float32(MAX_CODE) / amax
