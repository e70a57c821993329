"""The truth for a case in float64, and how far an INT8 scheme may be from it.

Written from the contract, not from ``intfa_onnx.reference``: the keys that a query attends as a list, then a plain
softmax over all of them. Nothing of the package is used.

The bound is first-order propagation of rounding noise. Rounding to a step s is taken for noise of variance s^2/12;
y = sum_j p_j v_j moves by sum_j p_j (v_j - y) d_j if the scores move by d_j, and

- Q's noise moves all scores of its row together: d_j = scale * (eq . k_j);
- K's noise is independent per key: d_j = scale * (q . ek_j);
- P's noise is one code of the tile's (tile) or the running (paper) maximum, or the steps of the grid that its codes are
  looked up on. Weights far below a code all round the same way, so the rounding of the exact weights is added as it
  falls. The paper divides by the sum of the unrounded P, so there the error of P acts on v_j, not on v_j - y;
- V's noise is averaged by p.

The lse moves by sum_j p_j d_j, and by P's noise where the row sum is of the rounded P.

A case passes if its root mean square error is at most ``RMS_FACTOR`` times the predicted one, and no element is off by
more than ``PEAK_FACTOR`` times its own: the noise of an element is a sum of many bounded terms, hence close to normal,
and the cases have under 10^5 elements (4.5 sigma). The rest is for the chance of small cases and for what first order
leaves out. Nothing was fitted: actual over predicted rms is 0.7 to 1.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from cases import AttentionCase, make_inputs

RMS_FACTOR = 1.25
PEAK_FACTOR = 7.0


@dataclass(frozen=True)
class Scheme:
    """What of a scheme enters the bound."""

    p_codes: int  # the code of P = 1; 0 for a P and V in float16
    paper: bool = False
    grid: bool = False  # the codes of P come from a table of 256 points (``grid_codes``)


TILE, TILE_GRID, PAPER = Scheme(255), Scheme(255, grid=True), Scheme(127, paper=True)
HALF, PAPER_HALF = Scheme(0), Scheme(0, paper=True)


def grid_codes(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes that the grid gives for 255 P, and the grid's steps there in codes.

    Log2 of P belongs to the point ``i = rint(255 (1 + log2(P) / 10)^2)`` and takes the code of P at that point, at
    least 1 but for point 0.
    """
    with np.errstate(divide="ignore"):
        position = np.maximum(1 + np.log2(weight / 255) / 10, 0)
    point = np.rint(255 * position**2)
    code = np.where(point == 0, 0, np.maximum(1, np.rint(255 * np.exp2(10 * (np.sqrt(point / 255) - 1)))))
    steps_per_octave = np.maximum(2 * 255 * position / 10, 1e-9)
    return code, weight * math.log(2) / steps_per_octave


@dataclass(frozen=True)
class Truth:
    """The exact outputs of a case, and the expected error (one sigma) of each element of y."""

    y: np.ndarray  # float64 [B, Hq, Sq, Dv]
    lse: np.ndarray  # float64 [B, Hq, Sq]
    sigma: np.ndarray  # float64 [B, Hq, Sq, Dv]
    lse_sigma: np.ndarray  # float64 [B, Hq, Sq]: the same for lse

    def check(self, y: np.ndarray, lse: np.ndarray, output_step: float = 2.0**-24) -> None:
        """Assert that an INT8 result is within the bound: NaN and infinities at the same places, the errors small.

        ``output_step``: half a unit in the last place of y's type, relative.
        """
        np.testing.assert_array_equal(np.isnan(y), np.isnan(self.y), "NaN of y")
        np.testing.assert_array_equal(np.isnan(lse), np.isnan(self.lse), "NaN of lse")
        np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(self.lse), "-inf of lse")
        error, sigma = np.nan_to_num(y - self.y), np.nan_to_num(self.sigma)
        floor = (1e-6 + output_step) * (np.nanmax(np.abs(self.y), initial=0) or 1.0)  # arithmetic in float32
        ratio = np.abs(error) / (PEAK_FACTOR * sigma + floor)
        worst = np.unravel_index(ratio.argmax(), ratio.shape)
        rms, allowed = math.sqrt(np.mean(error**2)), RMS_FACTOR * math.sqrt(np.mean(sigma**2)) + floor
        assert ratio.max() <= 1, f"at {worst}: {y[worst]}, exact {self.y[worst]}, expected error {sigma[worst]:.3g}"
        assert rms <= allowed, f"rms error {rms:.3g}, allowed {allowed:.3g}"
        seen = np.isfinite(self.lse) & (self.lse > -1e38)  # of a row at finfo.min only the sign and size are promised
        allowed_lse = PEAK_FACTOR * self.lse_sigma[seen] + 1e-5 * (1 + np.abs(self.lse[seen]))
        error_lse = np.abs(lse[seen] - self.lse[seen])
        assert (error_lse <= allowed_lse).all(), (
            f"lse is off by {(error_lse / allowed_lse).max():.3g} times the allowed"
        )


def truth_of(
    case: AttentionCase, scheme: Scheme, tile_n: int = 128, inputs: dict[str, np.ndarray] | None = None
) -> Truth:
    """Compute the outputs of a case one query at a time; ``inputs`` takes the place of ``make_inputs(case)``."""
    data = _Data(case, scheme, make_inputs(case) if inputs is None else inputs)
    y = np.zeros((case.batch, case.num_heads, case.seqlen_q, case.head_dim_v))
    sigma, lse, lse_sigma = np.zeros_like(y), np.zeros(y.shape[:3]), np.zeros(y.shape[:3])
    for b, h in np.ndindex(case.batch, case.num_heads):
        y[b, h], lse[b, h], sigma[b, h], lse_sigma[b, h] = data.head(b, h, tile_n)
    return Truth(y, lse, sigma, lse_sigma)


class _Data:
    """A case's arrays with the past in front, and the steps of their quantization."""

    def __init__(self, case: AttentionCase, scheme: Scheme, inputs: dict[str, np.ndarray]) -> None:
        inputs = {name: x.astype(np.float64) if x.dtype == np.float32 else x for name, x in inputs.items()}
        past_k, past_v = inputs.get("past_key", inputs["K"][:, :, :0]), inputs.get("past_value", inputs["V"][:, :, :0])
        self.case, self.scheme, self.inputs = case, scheme, inputs
        q, k, v = inputs["Q"], np.concatenate([past_k, inputs["K"]], 2), np.concatenate([past_v, inputs["V"]], 2)
        self.lengths = inputs.get("nonpad_kv_seqlen", np.full(case.batch, case.seqlen_kv))
        self.scale = case.scale or 1 / math.sqrt(case.head_dim)
        self.group = case.num_heads // case.kv_num_heads
        if case.static_scales:
            steps = [_along_heads(inputs[name]) for name in ("q_scale", "k_scale", "v_scale")]
            if case.dtype == "int8":
                q, k, v = (np.maximum(x, -127) * s for x, s in zip((q, k, v), steps, strict=True))
            else:  # saturation is part of what is asked for, not noise; a float V in float16 takes no scale
                q, k = (np.clip(x, -127 * s, 127 * s) for x, s in zip((q, k), steps[:2], strict=True))
                v = np.clip(v, -127 * steps[2], 127 * steps[2]) if scheme.p_codes else v
            rounds = case.dtype != "int8"
            q_step, k_step, v_step = (
                np.broadcast_to(s * rounds, x.shape) for s, x in zip(steps, (q, k, v), strict=True)
            )
            smoothed = k
        else:
            smooth = case.smooth_k and not scheme.paper
            smoothed, v_step = k.copy(), np.zeros_like(v)
            for b, h in np.ndindex(case.batch, case.kv_num_heads):
                counted_k = np.isfinite(k[b, h, : self.lengths[b]]).all(1)
                if smooth and counted_k.any():
                    smoothed[b, h] -= k[b, h, : self.lengths[b]][counted_k].mean(0)
                values = v[b, h, : self.lengths[b]]
                amax = np.abs(np.where(np.isfinite(values), values, 0.0)).max(0, initial=0)
                v_step[b, h] = (amax.max() if scheme.paper else amax) / 127
            q_step = np.broadcast_to(np.abs(q).max(-1, keepdims=True) / 127, q.shape)
            k_step = np.broadcast_to(np.abs(smoothed).max(-1, keepdims=True) / 127, k.shape)
        # Under a softcap what smoothing took off is put back with Q's noise on it.
        self.q, self.k, self.v, self.felt_k = q, k, v, k if case.softcap else smoothed
        self.q_step, self.k_step = (np.where(np.isfinite(s[..., 0]), s[..., 0], 0.0) for s in (q_step, k_step))
        self.v_step = v_step

    def attended(self, b: int, h: int, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the keys that a query attends, and what the mask adds to their scores."""
        case, mask = self.case, self.inputs.get("attn_mask")
        keys = np.arange(min(int(self.lengths[b]), case.seqlen_kv))
        position = i + case.seqlen_past
        if case.nonpad:
            position = i + int(self.lengths[b]) - case.seqlen_q
        elif case.causal_alignment == "lower_right":
            position = i + case.seqlen_kv - case.seqlen_q
        if case.causal:
            keys = keys[keys <= position]
        if case.window_left >= 0:
            keys = keys[keys >= position - case.window_left]
        if case.window_right >= 0:
            keys = keys[keys <= position + case.window_right]
        if mask is None:
            return keys, np.zeros(keys.size)
        for index, size in zip((b, h, i)[4 - mask.ndim :], mask.shape[:-1], strict=True):
            mask = mask[index if size > 1 else 0]
        if mask.size == 1:
            mask = np.repeat(mask, case.seqlen_kv)
        keys = keys[keys < mask.size]
        if mask.dtype == np.bool_:
            keys = keys[mask[keys]]
            return keys, np.zeros(keys.size)
        keys = keys[mask[keys] != -np.inf]
        return keys, mask[keys]

    def head(self, b: int, h: int, tile_n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return y and lse of one head's rows, [Sq, Dv] and [Sq], and the expected error of each."""
        case, g = self.case, h // self.group
        attended = np.zeros((case.seqlen_q, case.seqlen_kv), bool)
        bias = np.zeros(attended.shape)
        for i in range(case.seqlen_q):
            keys, added = self.attended(b, h, i)
            attended[i, keys], bias[i, keys] = True, added
        q, k, v = self.q[b, h], self.k[b, g], self.v[b, g]
        bad_row = (~np.isfinite(q).all(1) & attended.any(1)) | (attended & ~np.isfinite(k).all(1)).any(1)
        bad_y = bad_row[:, None] | (attended.astype(float) @ ~np.isfinite(v) > 0)
        q, k, v, felt_k = (np.where(np.isfinite(x), x, 0.0) for x in (q, k, v, self.felt_k[b, g]))

        scores = q @ k.T * self.scale
        slope = np.ones_like(scores)
        if case.softcap:
            slope = 1 - np.tanh(scores / case.softcap) ** 2
            scores = case.softcap * np.tanh(scores / case.softcap)
        scores = np.where(attended, scores + bias, -np.inf)
        top = np.where(attended.any(1), scores.max(1, initial=-np.inf), 0.0)[:, None]
        p = np.exp(scores - top)
        total = p.sum(1, keepdims=True)
        with np.errstate(divide="ignore"):
            lse = (top + np.log(total))[:, 0]
        total = np.where(total == 0, 1.0, total)
        p /= total
        y = p @ v

        moved = p * slope * self.scale
        both = (moved @ (v[:, :, None] * felt_k[:, None]).reshape(len(k), -1)).reshape(*y.shape, -1)
        noise_q = self.q_step[b, h][:, None] * np.linalg.norm(both - y[:, :, None] * (moved @ felt_k)[:, None], axis=2)
        key_noise = moved * self.k_step[b, g] * np.linalg.norm(q, axis=1)[:, None]
        noise_k = _spread(key_noise, v, y)
        # The lse moves by sum_j p_j d_j; Q's noise acts on it through the keys as they are, their mean included.
        lse_variance = (self.q_step[b, h] * np.linalg.norm(moved @ k, axis=1)) ** 2 + (key_noise**2).sum(1)
        around = np.zeros_like(y) if self.scheme.paper else y
        if self.scheme.p_codes:
            noise_v = np.sqrt(p**2 @ self.v_step[b, g] ** 2)
            step, error = self._p_noise(scores, tile_n)
            fixed = (error @ v - error.sum(1, keepdims=True) * around) / total
            noise_p = _spread(step / total, v, around)
            if not self.scheme.paper:
                lse_variance += ((step / total) ** 2).sum(1) + 12 * (error.sum(1) / total[:, 0]) ** 2
        else:  # float16: a step is at most 2^-10 of the value, and at least 2^-24
            noise_v = np.sqrt(p**2 @ (v * 2.0**-10) ** 2)
            step = np.where(attended, np.maximum(p * 2.0**-10, 2.0**-24 / total), 0.0)
            noise_p = _spread(step, v, y)
            lse_variance += (step**2).sum(1)
            fixed = np.zeros_like(y)
        variance = (noise_q**2 + noise_k**2 + noise_v**2 + noise_p**2) / 12 + fixed**2
        sigma, lse_sigma = np.sqrt(variance), np.sqrt(lse_variance / 12)
        return np.where(bad_y, np.nan, y), np.where(bad_row, np.nan, lse), np.where(bad_y, np.nan, sigma), lse_sigma

    def _p_noise(self, scores: np.ndarray, tile_n: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the step of each P and the error of the exact one's rounding, as multiples of exp(row max)."""
        step, error = np.zeros_like(scores), np.zeros_like(scores)
        top = scores.max(1, keepdims=True, initial=-np.inf)
        running = np.full_like(top, -np.inf)
        for start in range(0, scores.shape[1], tile_n):
            tile = scores[:, start : start + tile_n]
            tile_max = tile.max(1, keepdims=True)
            running = np.maximum(running, tile_max)
            reference = running if self.scheme.paper else tile_max
            finite = np.where(np.isfinite(reference), reference, 0.0)
            weight = np.exp(tile - finite) * self.scheme.p_codes
            unit = np.exp(reference - np.where(np.isfinite(top), top, 0.0)) / self.scheme.p_codes
            codes, code_step = grid_codes(weight) if self.scheme.grid else (np.rint(weight), 1.0)
            step[:, start : start + tile_n] = np.where(np.isfinite(tile), unit * np.maximum(code_step, 1), 0.0)
            error[:, start : start + tile_n] = unit * (codes - weight)
        return step, error


def _spread(weight: np.ndarray, v: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Return ``sqrt(sum_j weight_j^2 (v_j - around)^2)``; weight [Sq, Skv], v [Skv, Dv], around [Sq, Dv]."""
    w = weight**2
    square = w @ v**2 - 2 * around * (w @ v) + around**2 * w.sum(1, keepdims=True)
    return np.sqrt(np.maximum(square, 0.0))


def _along_heads(scale: np.ndarray) -> np.ndarray:
    return scale[:, None, :] if scale.ndim == 2 else scale[:, None, None]
