"""``IntFlashAttention`` in numpy: the float64 truth, and the INT8 schemes step by step.

The arithmetic of the INT8 schemes, which the backends follow. All of it is float32, each operation rounded on its own
(no fused multiply-add), in this order; S and P.V are exact integers whatever computes them::

    row_factor = q_scale * (softmax_scale * log2(e))        softmax_scale = 1 / sqrt(D) if not given
    row_offset = float(q_codes . k_mean) * row_factor       what smoothing took off the row, summed in float64
    x = (float(S) * k_scale) * row_factor                   in log2 units
    softcap:  x = tanh((x + row_offset) / cap) * cap        cap = softcap * log2(e)
    x = x + max(mask * log2(e), -FLT_MAX)                   and -inf where the key is not attended
    tile:     code = rint(255 * exp2(x - m_tile));  m_new = max(m_run, m_tile)
              a = exp2(m_run - m_new);  b = exp2(m_tile - m_new)
              O = a * O + b * float(P.V);  l = a * l + b * float(sum code)
    paper:    p = exp2(x - m_new);  O = a * O + float(rint(127 * p).V);  l = a * l + sum p
    int8_qk:  p = float16(exp2(x - m_new));  O = a * O + p.V;  l = a * l + sum p            V in float16
    y = O / l * v_scale                                     O / (127 * l) for paper; 1 for a V in float16
    lse = (m_run + row_offset) * ln(2) + log(l)             log(l / 255) for tile; no row_offset with a softcap

Implementations differ in ``exp2``, ``tanh`` and the order of float sums by some ulp, by which a code may change by one.
With ``code_grid`` the codes of ``tile`` are those that the CPU backend looks up, where the processor has an instruction
for that (docs/cpu.md): log2 of P belongs to a point of a grid, and P to the code of that point.

``scheme="paper"`` is INT-FlashAttention as published (arXiv 2409.16997): no smoothing, one scale per token of K and per
head of V; ``smooth_k`` and ``k_granularity`` have no effect on it. With ``int8_qk`` it is the paper's half INT8.

Which keys a query attends: not beyond ``nonpad_kv_seqlen`` nor beyond a mask shorter than Skv; bool mask true, float
mask not -inf; and with ``position = i + offset``: ``j <= position`` (causal), ``j >= position - window_left``,
``j <= position + window_right``. The offset is ``nonpad_kv_seqlen[b] - Sq`` if that input is given, else the past's
length ("standard", ONNX Attention's rule) or ``Skv - Sq`` ("lower_right"). A query that attends nothing gives 0 and
lse -inf; one whose keys all have the mask value finfo.min averages them, and its lse is some number below -2e38.

Non-finite input: NaN rows for a non-finite query (that attends anything) and for the queries that attend a non-finite
key; NaN in channel c for those that attend a key with non-finite ``V[j, c]``. A non-finite key does not count for the
mean of K, nor a non-finite element of V for its channel's amax: nothing else is touched. A V that float16 cannot hold
is non-finite for ``int8_qk``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from intfa_onnx import op_schema, quantize
from intfa_onnx.errors import UnsupportedError

DEFAULT_TILE_N = 128
PRECISIONS = ("float", *op_schema.ATTRIBUTES["precision"].choices)

LOG2E = np.float32(math.log2(math.e))
LN2 = np.float32(math.log(2))
LOWEST = np.finfo(np.float32).min
# Products of codes are computed as float32 matrix products: exact while every partial sum stays under 2^24.
MAX_TILE_N = 2**24 // (255 * 127) // 8 * 8
# The code of P at each point of the CPU's grid (plugin/cpu/code_grid.h).
GRID_CODES = np.rint(255 * np.exp2(10 * (np.sqrt(np.arange(256) / 255) - 1))).clip(1).astype(np.float32)
GRID_CODES[0] = 0


@dataclass(frozen=True)
class AttentionResult:
    """Outputs of the operator."""

    y: np.ndarray  # [B, Hq, Sq, Dv], or [B, Sq, Hq*Dv] for 3-D inputs
    present_key: np.ndarray  # [B, Hkv, Skv, D], past then new
    present_value: np.ndarray  # [B, Hkv, Skv, Dv]
    lse: np.ndarray  # float32 (float64 for precision "float") [B, Hq, Sq], natural log


@dataclass(frozen=True)
class _Problem:
    """An attention with everything resolved: 4-D, the past in front, one explicit mask, no NaN or inf in the data."""

    q: np.ndarray  # [B, Hq, Sq, D], float32 or float64, or int8 codes
    k: np.ndarray  # [B, Hkv, Skv, D]
    v: np.ndarray  # [B, Hkv, Skv, Dv]
    attended: np.ndarray  # bool [B, Hq, Sq, Skv]
    bias: np.ndarray | None  # [B, Hq, Sq, Skv], float32 or float64, nats
    k_counted: np.ndarray  # bool [B, Hkv, Skv]: the tokens that count for statistics
    v_counted: np.ndarray  # bool [B, 1, Skv]
    q_scale: np.ndarray | None  # float32 [1 or Hq, 1, 1]
    k_scale: np.ndarray | None  # float32 [1 or Hkv, 1, 1]
    v_scale: np.ndarray | None  # float32 [1 or Hkv, 1, 1 or Dv]
    softmax_scale: float
    softcap: float

    def heads(self, x: np.ndarray) -> np.ndarray:
        """Repeat [B, Hkv, ...] for the query heads that share each KV head."""
        return np.repeat(x, self.q.shape[1] // self.k.shape[1], axis=1)


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    attn_mask: np.ndarray | None = None,
    past_key: np.ndarray | None = None,
    past_value: np.ndarray | None = None,
    nonpad_kv_seqlen: np.ndarray | None = None,
    q_scale: np.ndarray | None = None,
    k_scale: np.ndarray | None = None,
    v_scale: np.ndarray | None = None,
    *,
    q_num_heads: int = 0,
    kv_num_heads: int = 0,
    scale: float = 0.0,
    is_causal: bool | int = False,
    causal_alignment: str = "standard",
    softcap: float = 0.0,
    window_left: int = -1,
    window_right: int = -1,
    precision: str = "int8",
    scheme: str = "tile",
    k_granularity: str = "auto",
    smooth_k: bool | int = True,
    tile_n: int = DEFAULT_TILE_N,
    code_grid: bool = False,
    output_dtype: Any = None,
) -> AttentionResult:
    """Compute ``IntFlashAttention``; see the module's text for the arithmetic and ``op_schema`` for the contract.

    Args:
        q: [B, Hq, Sq, D] or [B, Sq, Hq*D]; float32, float16, bfloat16, int8, or float64 (for the truth).
        k: [B, Hkv, Skv, D] or [B, Skv, Hkv*D], ``Hq % Hkv == 0``.
        v: [B, Hkv, Skv, Dv] or [B, Skv, Hkv*Dv].
        attn_mask: bool (true = attend) or float (added, in nats), broadcastable to [B, Hq, Sq, Skv]; its last dimension
            may be shorter than Skv.
        past_key: [B, Hkv, Spast, D], stands before ``k``.
        past_value: [B, Hkv, Spast, Dv], stands before ``v``.
        nonpad_kv_seqlen: int64 [B].
        q_scale: float32 [1] or [Hq]; required for int8.
        k_scale: float32 [1] or [Hkv]; required for int8. Smoothing has no effect where it is given.
        v_scale: float32 [1], [Hkv] or [Hkv, Dv]; required for int8. Unused where V is float16 (int8_qk of a float V).
        q_num_heads: heads of a 3-D ``q``.
        kv_num_heads: heads of a 3-D ``k`` and ``v``.
        scale: of the scores; 0 for ``1 / sqrt(D)``.
        is_causal: a query attends no later key.
        causal_alignment: "standard" or "lower_right".
        softcap: 0 for none.
        window_left: -1 for unbounded.
        window_right: -1 for unbounded.
        precision: "int8", "int8_qk", or "float": the exact result, in float64; it leaves float inputs as they are.
        scheme: "tile" or "paper".
        k_granularity: "token" or "group"; "auto" is "token" here.
        smooth_k: subtract the mean of K before it is quantized.
        tile_n: keys per tile, part of the numerics; a multiple of 8.
        code_grid: codes of P by the CPU's grid instead of rounding; for precision "int8" of scheme "tile".
        output_dtype: numpy type of ``y``; None for that of ``q``. Required for int8.
    Raises:
        UnsupportedError: shapes or attributes that contradict each other or the contract.
    """
    packed = q.ndim == 3
    if packed:
        q = _unpack("Q", q, q_num_heads)
        k, v = _unpack("K", k, kv_num_heads), _unpack("V", v, kv_num_heads)
    if (past_key is None) != (past_value is None):
        raise UnsupportedError("past_key and past_value come together; one of them is missing")
    seqlen_past = 0
    if past_key is not None and past_value is not None:
        seqlen_past = past_key.shape[2]
        k, v = np.concatenate((past_key, k), axis=2), np.concatenate((past_value, v), axis=2)
    _check_choices(precision=precision, scheme=scheme, k_granularity=k_granularity, causal_alignment=causal_alignment)
    _check_shapes(q, k, v, tile_n)
    is_codes = q.dtype == np.int8
    if is_codes and (output_dtype is None or q_scale is None or k_scale is None or v_scale is None):
        raise UnsupportedError("int8 Q, K, V need q_scale, k_scale, v_scale and output_dtype; one of them is missing")

    batch, num_heads, seqlen_q, head_dim = q.shape
    kv_num_heads, seqlen_kv, head_dim_v = v.shape[1:]
    valid = np.full(batch, seqlen_kv) if nonpad_kv_seqlen is None else nonpad_kv_seqlen.reshape(batch)
    offset = valid - seqlen_q
    if nonpad_kv_seqlen is None and causal_alignment == "standard":
        offset = np.full(batch, seqlen_past)
    bias, attended = _mask(attn_mask, (batch, num_heads, seqlen_q, seqlen_kv))
    attended = attended & _within(valid, offset, seqlen_q, seqlen_kv, bool(is_causal), window_left, window_right)

    compute = np.float64 if precision == "float" else np.float32
    if is_codes:
        data = tuple(np.maximum(x, -quantize.MAX_CODE) for x in (q, k, v))
    else:
        data = tuple(x.astype(compute) for x in (q, k, v))
        if precision == "int8_qk":
            data = (*data[:2], _round_to_float16(data[2]))
    finite_q, finite_k, finite_v = (np.isfinite(x) for x in data)
    q_finite, k_finite = finite_q.all(axis=-1), finite_k.all(axis=-1)
    padding = np.arange(seqlen_kv) >= valid[:, None, None]
    problem = _Problem(
        q=np.where(q_finite[..., None], data[0], 0),
        k=np.where(k_finite[..., None], data[1], 0),
        v=np.where(finite_v, data[2], 0),
        attended=attended,
        bias=None if bias is None else bias.astype(compute),
        k_counted=k_finite & ~padding,
        v_counted=~padding,  # a non-finite element of V is a zero by now, and the others of its token count
        q_scale=_static_scale("q_scale", q_scale, (num_heads,)),
        k_scale=_static_scale("k_scale", k_scale, (kv_num_heads,)),
        v_scale=_static_scale("v_scale", v_scale, (kv_num_heads, head_dim_v)),
        softmax_scale=scale or float(np.float32(1) / np.sqrt(np.float32(head_dim))),
        softcap=softcap,
    )
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if precision == "float":
            y, lse = _exact(problem)
        else:
            y, lse = _int8(problem, precision, scheme, k_granularity, bool(smooth_k), tile_n, code_grid)
    if not k_finite.all() or not finite_v.all():
        _mark_attended(y, lse, attended, problem.heads(~k_finite), problem.heads(~finite_v))
    bad_rows = ~q_finite & attended.any(axis=-1)
    y[bad_rows], lse[bad_rows] = np.nan, np.nan

    y = y.astype(output_dtype or q.dtype)
    if packed:
        y = y.swapaxes(1, 2).reshape(batch, seqlen_q, -1)
    return AttentionResult(y, k, v, lse)


def _exact(p: _Problem) -> tuple[np.ndarray, np.ndarray]:
    """Return y and lse in float64."""
    q, k, v = p.q, p.k, p.v
    if q.dtype == np.int8:
        assert p.q_scale is not None
        assert p.k_scale is not None
        assert p.v_scale is not None
        q, k, v = (x.astype(np.float64) * s for x, s in ((q, p.q_scale), (k, p.k_scale), (v, p.v_scale)))
    x = (q @ p.heads(k).swapaxes(-1, -2)) * p.softmax_scale
    if p.softcap:
        x = p.softcap * np.tanh(x / p.softcap)
    if p.bias is not None:
        x = x + p.bias
    x = np.where(p.attended, x, -np.inf)
    row_max = x.max(axis=-1, keepdims=True, initial=-np.inf)
    weights = np.exp(x - _finite_max(row_max))
    row_sum = weights.sum(axis=-1, keepdims=True)
    y = weights @ p.heads(v) / np.where(row_sum == 0, 1, row_sum)
    return y, (row_max + np.log(row_sum))[..., 0]


def _int8(
    p: _Problem, precision: str, scheme: str, k_granularity: str, smooth_k: bool, tile_n: int, code_grid: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return y and lse in float32 by one of the INT8 schemes; see the module's text."""
    half_pv, tiled = precision == "int8_qk", scheme == "tile" and precision == "int8"
    group_tile = tile_n if k_granularity == "group" and scheme == "tile" else 0
    q_codes, q_scale = _query_codes(p)
    k_codes, k_scale, k_mean = _key_codes(p, smooth_k and scheme == "tile", group_tile)
    v_codes, v_scale = _value_codes(p, half_pv, per_head=scheme == "paper")
    q_codes, k_codes, v_codes = (x.astype(np.float32) for x in (q_codes, p.heads(k_codes), p.heads(v_codes)))
    k_scale = p.heads(k_scale)

    cap = np.float32(p.softcap) * LOG2E
    row_factor = q_scale * (np.float32(p.softmax_scale) * LOG2E)  # [B, Hq, Sq]
    taken_off = (q_codes.astype(np.float64) * p.heads(k_mean)).sum(axis=-1)
    row_offset = taken_off.astype(np.float32) * row_factor
    mask_log2 = None if p.bias is None else np.maximum(p.bias * LOG2E, LOWEST)
    top = np.float32(1 if half_pv else 255 if tiled else 127)  # the code of P = 1

    rows = q_codes.shape[:3]
    row_max = np.full(rows, -np.inf, np.float32)
    row_sum = np.zeros(rows, np.float32)
    output = np.zeros((*rows, v_codes.shape[-1]), np.float32)
    for start in range(0, k_codes.shape[2], tile_n):
        keys = slice(start, start + tile_n)
        s = q_codes @ k_codes[:, :, keys].swapaxes(-1, -2)  # exact
        x = (s * k_scale[:, :, None, keys]) * row_factor[..., None]
        if cap:
            x = np.tanh((x + row_offset[..., None]) / cap) * cap
        if mask_log2 is not None:
            x = x + mask_log2[..., keys]
        x = np.where(p.attended[..., keys], x, np.float32(-np.inf))

        tile_max = x.max(axis=-1)
        new_max = np.maximum(row_max, tile_max)
        x = x - _finite_max(tile_max if tiled else new_max)[..., None]
        if tiled:
            codes = summed = _grid_codes(x) if code_grid else np.rint(top * np.exp2(x))
        else:
            exponential = np.exp2(x)
            codes = _round_to_float16(exponential) if half_pv else np.rint(top * exponential)
            summed = codes if half_pv else exponential  # the paper sums P before it is rounded
        old = np.exp2(row_max - _finite_max(new_max))
        new = np.exp2(tile_max - _finite_max(new_max)) if tiled else np.ones_like(old)
        output = old[..., None] * output + new[..., None] * (codes @ v_codes[:, :, keys])
        row_sum = old * row_sum + new * summed.sum(axis=-1)
        row_max = new_max

    # O and l both carry the code of P = 1, except l where it sums P itself.
    divisor = row_sum if tiled else top * row_sum
    y = output / np.where(row_sum == 0, np.float32(1), divisor)[..., None] * p.heads(v_scale)
    shift = np.float32(0) if cap else row_offset
    lse = (row_max + shift) * LN2 + (np.log(row_sum) - (np.log(top) if tiled else np.float32(0)))
    return y, lse


def _grid_codes(x: np.ndarray) -> np.ndarray:
    """Return the codes of P = 2^x: of point ``rint(255 (1 + x / 10)^2)``, at least 1 but before the grid begins."""
    position = np.fmax(1 + x / np.float32(10), 0)
    return GRID_CODES[np.rint(255 * position**2).astype(int)]


def _query_codes(p: _Problem) -> tuple[np.ndarray, np.ndarray]:
    """Return codes of Q and float32 scales [B, Hq, Sq]."""
    if p.q_scale is None:
        return quantize.quantize_per_token(p.q)
    codes = p.q if p.q.dtype == np.int8 else quantize.quantize_static(p.q, p.q_scale)
    return codes, np.broadcast_to(p.q_scale[..., 0], codes.shape[:3])


def _key_codes(p: _Problem, smooth: bool, group_tile: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return codes of K, float32 scales [B, Hkv, Skv], and the mean taken off, [B, Hkv, 1, D]."""
    k = p.k
    mean = np.zeros((*k.shape[:2], 1, k.shape[3]), np.float32)
    if p.k_scale is not None:
        codes = k if k.dtype == np.int8 else quantize.quantize_static(k, p.k_scale)
        return codes, np.broadcast_to(quantize.round_up_22_bits(p.k_scale)[..., 0], codes.shape[:3]), mean
    if smooth:
        k, mean = quantize.smooth_keys(k, p.k_counted)
    return *quantize.quantize_keys(np.where(p.k_counted[..., None], k, np.float32(0)), group_tile), mean


def _value_codes(p: _Problem, half_pv: bool, per_head: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return codes of V and float32 scales broadcastable to [B, Hkv, 1, Dv]; for float16 V, itself and 1."""
    if p.v.dtype == np.int8:
        assert p.v_scale is not None
        codes, scale = p.v, p.v_scale
    elif half_pv:
        codes, scale = p.v, np.ones((1, 1, 1), np.float32)
    elif p.v_scale is not None:
        codes, scale = quantize.quantize_static(p.v, p.v_scale), p.v_scale
    elif per_head:
        codes, scale = quantize.quantize_per_head(p.v, p.v_counted)
    else:
        codes, scale = quantize.quantize_per_channel(p.v, p.v_counted)
    return codes, np.broadcast_to(scale, (*codes.shape[:2], 1, codes.shape[3]))


def _mark_attended(y: np.ndarray, lse: np.ndarray, attended: np.ndarray, bad_k: np.ndarray, bad_v: np.ndarray) -> None:
    """Write NaN where a query attends a non-finite key [B, Hq, Skv] or element of V [B, Hq, Skv, Dv]."""
    rows = (attended & bad_k[:, :, None]).any(axis=-1)
    y[(attended.astype(np.float32) @ bad_v.astype(np.float32)) > 0] = np.nan
    y[rows], lse[rows] = np.nan, np.nan


def _mask(attn_mask: np.ndarray | None, shape: tuple[int, ...]) -> tuple[np.ndarray | None, np.ndarray]:
    """Return what a mask adds (None for bool) and which keys it leaves, both of ``shape`` [B, Hq, Sq, Skv]."""
    if attn_mask is None:
        return None, np.broadcast_to(True, shape)
    is_bool = attn_mask.dtype == np.bool_
    mask = attn_mask if is_bool else attn_mask.astype(np.float64)
    missing = shape[-1] - mask.shape[-1]
    if missing > 0 and mask.shape[-1] != 1:
        widths = [(0, 0)] * (mask.ndim - 1) + [(0, missing)]
        mask = np.pad(mask, widths, constant_values=False if is_bool else -np.inf)
    try:
        mask = np.broadcast_to(mask, shape)
    except ValueError as error:
        raise UnsupportedError(
            f"attn_mask of shape {list(attn_mask.shape)} does not broadcast to [B, Hq, Sq, Skv] = {list(shape)}"
        ) from error
    return (None, mask) if is_bool else (np.where(np.isneginf(mask), 0.0, mask), ~np.isneginf(mask))


def _within(
    valid: np.ndarray, offset: np.ndarray, seqlen_q: int, seqlen_kv: int, causal: bool, left: int, right: int
) -> np.ndarray:
    """Return bool [B, 1, Sq, Skv]: the key exists and stands within the query's limits."""
    keys = np.arange(seqlen_kv)
    position = (np.arange(seqlen_q) + offset[:, None])[:, None, :, None]
    within = np.broadcast_to(keys < valid[:, None, None, None], (valid.size, 1, seqlen_q, seqlen_kv))
    if causal:
        within = within & (keys <= position)
    if left >= 0:
        within = within & (position - keys <= left)  # in this form no window overflows
    if right >= 0:
        within = within & (keys - position <= right)
    return within


def _finite_max(row_max: np.ndarray) -> np.ndarray:
    """Replace the -inf of a row without keys, so that ``x - max`` stays -inf and is not NaN."""
    return np.where(np.isneginf(row_max), np.zeros((), row_max.dtype), row_max)


def _round_to_float16(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # beyond 65504 is inf, which counts as non-finite input
        return x.astype(np.float16).astype(np.float32)


def _unpack(name: str, x: np.ndarray, num_heads: int) -> np.ndarray:
    """[B, S, H*D] -> [B, H, S, D]."""
    if x.ndim != 3 or num_heads <= 0 or x.shape[2] % num_heads:
        raise UnsupportedError(
            f"{name} of shape {list(x.shape)} with {num_heads} heads (supported: [B, S, H*D] for all of Q, K, V; "
            "set q_num_heads and kv_num_heads)"
        )
    return x.reshape(*x.shape[:2], num_heads, -1).swapaxes(1, 2)


def _static_scale(name: str, scale: np.ndarray | None, sizes: tuple[int, ...]) -> np.ndarray | None:
    """Bring [1], [H] or [H, D] to the form [H, 1, D] that multiplies [B, H, S, D]."""
    if scale is None:
        return None
    if scale.shape not in ((), (1,), sizes[:1], sizes):
        raise UnsupportedError(f"{name} of shape {list(scale.shape)} (supported: [1], {', '.join(map(str, sizes))})")
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise UnsupportedError(f"{name} has a value that is not positive and finite; calibrate it again")
    scale = scale.astype(np.float32)
    return scale[:, None, :] if scale.ndim == 2 else scale.reshape(-1, 1, 1)


def _check_choices(**chosen: str) -> None:
    for name, value in chosen.items():
        choices = PRECISIONS if name == "precision" else op_schema.ATTRIBUTES[name].choices
        if value not in choices:
            raise UnsupportedError(f"{name}={value!r} is unknown (supported: {', '.join(choices)})")


def _check_shapes(q: np.ndarray, k: np.ndarray, v: np.ndarray, tile_n: int) -> None:
    shapes = f"Q {list(q.shape)}, K {list(k.shape)}, V {list(v.shape)}"
    if not (q.ndim == k.ndim == v.ndim == 4 and k.shape[:3] == v.shape[:3]):
        raise UnsupportedError(f"{shapes} (supported: all 4-D or all 3-D, K and V of equal heads and length)")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or not k.shape[1] or q.shape[1] % k.shape[1]:
        raise UnsupportedError(f"{shapes} (supported: one batch, one head_dim of Q and K, Hq a multiple of Hkv)")
    if not (q.dtype == k.dtype == v.dtype):
        raise UnsupportedError(f"Q, K, V of types {q.dtype}, {k.dtype}, {v.dtype} (supported: one type for all)")
    if tile_n <= 0 or tile_n % 8 or tile_n > MAX_TILE_N:
        raise UnsupportedError(f"tile_n={tile_n} (supported: multiples of 8 up to {MAX_TILE_N})")
