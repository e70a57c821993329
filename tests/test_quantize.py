"""Quantization: the codes and scales themselves, on groups that hurt."""

from __future__ import annotations

import numpy as np
import pytest

from intfa_onnx import quantize

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 40, 24)).astype(np.float32)
ALL = np.ones(X.shape[:3], bool)


def largest_error_in_steps(x: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> float:
    return float(np.abs(codes.astype(np.float64) - x.astype(np.float64) / scale).max())


@pytest.mark.parametrize(
    ("codes", "scale"),
    [
        pytest.param(*(lambda c, s: (c, s[..., None]))(*quantize.quantize_per_token(X)), id="token"),
        pytest.param(*(lambda c, s: (c, s[..., None]))(*quantize.quantize_keys(X)), id="keys"),
        pytest.param(*(lambda c, s: (c, s[..., None]))(*quantize.quantize_keys(X, 16)), id="key groups"),
        pytest.param(*quantize.quantize_per_channel(X, ALL), id="channel"),
        pytest.param(*quantize.quantize_per_head(X, ALL), id="head"),
    ],
)
def test_codes_are_the_nearest_and_use_the_range(codes: np.ndarray, scale: np.ndarray) -> None:
    # Half a step, and an ulp of 127 (2^-17) for the float32 product.
    assert largest_error_in_steps(X, codes, scale) <= 0.5 + 2.0**-16
    assert codes.dtype == np.int8
    assert codes.min() >= -127
    group_max = np.abs(codes).max(axis=tuple(i for i, n in enumerate(scale.shape) if n == 1), keepdims=True)
    assert group_max.max() == 127


def test_ties_go_to_even() -> None:
    x = np.array([[[[127, 0.5, 1.5, 2.5, -0.5, -1.5]]]], np.float32)  # scale is 1
    codes, scale = quantize.quantize_per_token(x)
    assert scale.item() == 1
    assert codes.ravel().tolist() == [127, 0, 2, 2, 0, -2]


@pytest.mark.parametrize("tiny", [0.0, 1e-38, 1e-45])
def test_zero_group_gets_scale_one(tiny: float) -> None:
    x = X.copy()
    x[0, 1, 5], x[..., 7] = tiny, tiny
    for codes, scale in (quantize.quantize_per_token(x), quantize.quantize_keys(x)):
        assert scale[0, 1, 5] == 1
        assert not codes[0, 1, 5].any()
        assert np.isfinite(scale).all()
    codes, scale = quantize.quantize_per_channel(x, ALL)
    assert (scale[..., 7] == 1).all()
    assert not codes[..., 7].any()


def test_round_up_22_bits() -> None:
    x = np.exp(RNG.uniform(-60, 60, 10000)).astype(np.float32)
    rounded = quantize.round_up_22_bits(x)
    assert (rounded >= x).all()
    assert (rounded <= x * np.float32(1 + 2.0**-21)).all()
    # The use of it: 3 * 2^22 * scale needs no rounding, so one fused multiply-add removes that bias exactly.
    assert (np.float64(3 * 2**22) * rounded == (np.float32(3 * 2**22) * rounded).astype(np.float64)).all()
    assert (quantize.round_up_22_bits(rounded) == rounded).all()


def test_key_groups_are_what_a_lane_holds() -> None:
    tile = 32
    _, scale = quantize.quantize_keys(X, tile)
    for start in range(0, X.shape[2], tile):
        for group in range(4):
            keys = [j for j in range(start, min(start + tile, X.shape[2])) if (j - start) % 8 // 2 == group]
            amax = np.abs(X[:, :, keys]).max(axis=(2, 3), keepdims=True)[..., 0]
            assert (scale[:, :, keys] == quantize.round_up_22_bits(amax / np.float32(127))).all()


def test_counted_tokens_alone_set_the_scale() -> None:
    x, counted = X.copy(), ALL.copy()
    x[:, :, 30:] *= 100
    counted[:, :, 30:] = False
    for function in (quantize.quantize_per_channel, quantize.quantize_per_head):
        codes, scale = function(x, counted)
        alone_codes, alone_scale = function(x[:, :, :30], counted[:, :, :30])
        np.testing.assert_array_equal(scale, alone_scale)
        np.testing.assert_array_equal(codes[:, :, :30], alone_codes)
    smoothed, mean = quantize.smooth_keys(x, counted)
    np.testing.assert_allclose(mean, x[:, :, :30].astype(np.float64).mean(2, keepdims=True), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(smoothed, x - mean)
    assert not quantize.smooth_keys(x, np.zeros_like(ALL))[1].any()


def test_static_scale_saturates() -> None:
    x = np.array([-300, -127.5, 0.5, 1.5, 126.6, 300], np.float32)
    assert quantize.quantize_static(x, np.float32(1)).tolist() == [-127, -127, 0, 2, 127, 127]
