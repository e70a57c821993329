"""The CPU kernel, through the C ABI, against the reference (same arithmetic) and against the float64 truth."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import c_abi
import numpy as np
import pytest
from c_abi import INVALID_ARGUMENT, OK, UNSUPPORTED, make_call
from cases import CASES, AttentionCase, typed_inputs
from truth import HALF, PAPER, PAPER_HALF, TILE, TILE_GRID, Scheme, grid_codes, truth_of

from intfa_onnx import c_abi as native_abi
from intfa_onnx import native, quantize, reference
from intfa_onnx.errors import UnsupportedError

try:
    native.get_library_path("ort")
except UnsupportedError as error:
    pytest.skip(str(error), allow_module_level=True)

SCHEMES: dict[str, tuple[Scheme, dict[str, Any]]] = {
    "tile": (TILE, {}),
    "tile int8_qk": (HALF, {"precision": "int8_qk"}),
    "paper": (PAPER, {"scheme": "paper"}),
    "paper int8_qk": (PAPER_HALF, {"scheme": "paper", "precision": "int8_qk"}),
}
BY_NAME = {case.name: case for case in CASES}
each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
cached_truth = cache(truth_of)


def run(case: AttentionCase, threads: int = 1, **options: Any) -> dict[str, np.ndarray]:
    """Run a case; y as float64 [B, H, S, D] whatever its type and layout."""
    call = make_call(case, **options)
    status, message = call.run(threads)
    assert status == OK, message
    y = call.arrays["y"].astype(np.float64)
    if case.layout == "BSHD":
        y = y.reshape(case.batch, case.seqlen_q, case.num_heads, case.head_dim_v).swapaxes(1, 2)
    return call.arrays | {"y": y}


def half_step(case: AttentionCase) -> float:
    """Half a unit in the last place of y's type, relative."""
    return {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(case.dtype, 2.0**-24)


@pytest.mark.parametrize("scheme", SCHEMES)
@each_case
def test_within_the_predicted_noise_of_the_truth(case: AttentionCase, scheme: str) -> None:
    noise, options = SCHEMES[scheme]
    result = run(case, **options)
    cached_truth(case, TILE_GRID if noise is TILE and c_abi.has_code_grid() else noise).check(
        result["y"], result["lse"], half_step(case)
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@each_case
def test_same_numbers_as_the_reference(case: AttentionCase, scheme: str) -> None:
    """The same codes, hence the same output up to float32 rounding, except where a code of P sits on a tie.

    Kernel and reference evaluate 2^x with their own polynomials, up to 2 ulp apart. A code then differs by one where
    255 * 2^x is that close to a half: for a share 255 * 2^-22 of the keys at most (a cap adds some ulp of tanh), and
    the row moves by 1/l of v_j - y, with l >= 255. In float16 a weight differs by 2^-10 of itself for a share 2^-12.
    On the grid it is x that they round apart, by an ulp of scores up to 32, and 51 points are one unit of x: a share
    51 * 2^-18, of steps of up to 4 codes.
    """
    _, options = SCHEMES[scheme]
    grid = scheme == "tile" and c_abi.has_code_grid()
    result = run(case, **options, output_dtype=np.dtype(np.float32))
    inputs = {name.lower(): x for name, x in typed_inputs(case).items()}
    expected = reference.attention(**inputs, **case.attributes(), **options, code_grid=grid, output_dtype=np.float32)
    expected_y = expected.y.astype(np.float64)
    if case.layout == "BSHD":
        expected_y = expected_y.reshape(case.batch, case.seqlen_q, case.num_heads, -1).swapaxes(1, 2)
    np.testing.assert_array_equal(np.isnan(result["y"]), np.isnan(expected_y))
    np.testing.assert_array_equal(np.isfinite(result["lse"]), np.isfinite(expected.lse))
    np.testing.assert_array_equal(np.isneginf(result["lse"]), np.isneginf(expected.lse))

    off, step = rows_with_ties(case, result["y"], expected_y, scheme, grid)

    finite = np.isfinite(expected.lse) & (np.abs(expected.lse) < 1e30)
    # a changed code of P moves the sum by up to a step of it, in the same rows; float32 holds |lse| < 100 to 4e-6
    lse_error = np.zeros_like(expected.lse)
    np.subtract(result["lse"], expected.lse, where=finite, out=lse_error)
    assert np.abs(lse_error[~off]).max(initial=0) <= (2.0**-10 if "int8_qk" in scheme else 1e-5)
    assert np.abs(lse_error).max() <= 2 * step


def rows_with_ties(
    case: AttentionCase, y: np.ndarray, expected: np.ndarray, scheme: str, grid: bool
) -> tuple[np.ndarray, float]:
    """Return the rows of y [B, H, Sq, Dv] that are not the reference's, and a step of P; assert that both are small."""
    error = np.linalg.norm(np.nan_to_num(y - expected), axis=-1)
    off = error > 1e-5 * np.linalg.norm(np.nan_to_num(expected), axis=-1)
    half = "int8_qk" in scheme
    ulps = 8 if case.softcap else 1
    share = case.seqlen_kv * ulps * (2.0**-12 if half else 51 * 2.0**-18 if grid else 255 * 2.0**-22)
    assert off.sum() <= 2 + min(share, 1) * off.size, f"{off.sum()} of {off.size} rows differ, share expected: {share}"
    largest_v = np.abs(np.nan_to_num(cached_values(case), posinf=0, neginf=0)).max()
    step = 2.0**-10 if half else 1 / 127 if scheme == "paper" else 4 / 255 if grid else 1 / 255
    assert (error[off] <= 2 * step * 2 * largest_v * math.sqrt(case.head_dim_v)).all()
    return off, step


@cache
def cached_values(case: AttentionCase) -> np.ndarray:
    v = typed_inputs(case)["V"].astype(np.float64)
    return v * 127 if case.dtype == "int8" else v


@pytest.mark.parametrize("granularity", ["token", "group"])
@each_case
def test_codes_and_scales_equal_the_reference(case: AttentionCase, granularity: str) -> None:
    call = make_call(replace(case, layout="BHSD"), k_granularity=granularity)
    inputs = typed_inputs(replace(case, layout="BHSD"))
    k = np.concatenate([inputs[n] for n in ("past_key", "K") if n in inputs], axis=2)
    v = np.concatenate([inputs[n] for n in ("past_value", "V") if n in inputs], axis=2)
    q, k, v = (x.astype(np.float32) for x in (inputs["Q"], k, v))
    group = case.num_heads // case.kv_num_heads
    for b, h in np.ndindex(case.batch, case.kv_num_heads):
        valid = min(case.nonpad[b], case.seqlen_kv) if case.nonpad else case.seqlen_kv
        heads = slice(h * group, (h + 1) * group)
        found = call.codes(b, h)
        expected = expected_codes(case, inputs, q[b, heads], k[b, h, :valid], v[b, h, :valid], h, heads, granularity)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, f"{name} of batch {b}, head {h}")


def expected_codes(
    case: AttentionCase,
    inputs: dict[str, np.ndarray],
    q: np.ndarray,  # [group, Sq, D]
    k: np.ndarray,  # [valid, D]
    v: np.ndarray,  # [valid, Dv]
    head: int,
    heads: slice,
    granularity: str,
) -> dict[str, np.ndarray]:
    if case.static_scales:
        scales = {n: inputs[n] for n in ("q_scale", "k_scale", "v_scale")}
        pick = lambda x, i: x[0] if x.size == 1 else x[i]  # noqa: E731
        q_scale = np.broadcast_to(np.reshape(pick(scales["q_scale"], heads), (-1, 1, 1)), (*q.shape[:2], 1))
        k_scale, v_scale = pick(scales["k_scale"], head), np.broadcast_to(pick(scales["v_scale"], head), v.shape[1])
        encode = lambda x, s: np.clip(np.rint(x if case.dtype == "int8" else x / s), -127, 127)  # noqa: E731
        return {
            "q": encode(q, q_scale).reshape(-1, q.shape[-1]),
            "q_scale": q_scale.reshape(-1),
            "k": encode(k, k_scale),
            "k_scale": np.full(len(k), quantize.round_up_22_bits(k_scale)),
            "v": encode(v, v_scale),
            "v_scale": v_scale,
        }
    finite_k = np.isfinite(k).all(-1)
    q, k = (np.where(np.isfinite(x).all(-1, keepdims=True), x, np.float32(0)) for x in (q, k))
    v = np.where(np.isfinite(v), v, np.float32(0))
    q_codes, q_scale = quantize.quantize_per_token(q[None])
    if not len(k):
        return {"q": q_codes.reshape(-1, q.shape[-1]), "q_scale": q_scale.reshape(-1)}
    expected = {}
    if case.smooth_k:
        smoothed, mean = quantize.smooth_keys(k[None, None], finite_k[None, None])
        expected["k_mean"] = mean.reshape(-1)
        k = np.where(finite_k[:, None], smoothed[0, 0], np.float32(0))  # a non-finite key is no smoothed zero
    k_codes, k_scale = quantize.quantize_keys(k[None, None], 128 if granularity == "group" else 0)
    v_codes, v_scale = quantize.quantize_per_channel(v[None, None], np.ones((1, 1, len(v)), bool))
    return expected | {
        "q": q_codes.reshape(-1, q.shape[-1]),
        "q_scale": q_scale.reshape(-1),
        "k": k_codes[0, 0],
        "k_scale": k_scale[0, 0],
        "v": v_codes[0, 0],
        "v_scale": v_scale.reshape(-1),
    }


@pytest.mark.parametrize("tile_n", [16, 48, 64, 80, 256, 1024])
@pytest.mark.parametrize("name", ["ragged", "many_tiles", "causal", "window", "sink", "mask_rows", "nonpad_causal"])
def test_tile_size_is_part_of_the_numerics(name: str, tile_n: int) -> None:
    case = BY_NAME[name]
    result = run(case, tile_n=tile_n)
    grid = c_abi.has_code_grid()
    truth_of(case, TILE_GRID if grid else TILE, tile_n).check(result["y"], result["lse"])
    if tile_n % 8 == 0 and tile_n <= reference.MAX_TILE_N:
        inputs = {n.lower(): x for n, x in typed_inputs(case).items()}
        expected = reference.attention(**inputs, **case.attributes(), tile_n=tile_n, code_grid=grid).y
        rows_with_ties(case, result["y"], expected, "tile", grid)


@pytest.mark.parametrize("scheme", ["tile", "tile int8_qk", "paper"])
@pytest.mark.parametrize("name", ["gqa", "many_tiles", "causal", "mask_float_inf", "nonpad", "gqa_decode"])
def test_result_does_not_depend_on_threads(name: str, scheme: str) -> None:
    case = BY_NAME[name]
    one = run(case, threads=1, **SCHEMES[scheme][1])
    for threads in (2, 3, 64):
        many = run(case, threads=threads, **SCHEMES[scheme][1])
        for output in ("y", "lse", "present_key", "present_value"):
            np.testing.assert_array_equal(many[output], one[output], output)


@pytest.mark.parametrize("name", ["causal_past", "float16", "bfloat16", "int8_channel"])
def test_present_holds_past_and_new(name: str) -> None:
    case = BY_NAME[name]
    result = run(case)
    for present, names in (("present_key", ("past_key", "K")), ("present_value", ("past_value", "V"))):
        expected = np.concatenate([result[n] for n in names if n in result], axis=2)
        np.testing.assert_array_equal(result[present].view(np.uint8), expected.view(np.uint8))


def test_strided_views() -> None:
    """Tensors inside larger ones: every stride is honoured, and nothing outside is read or written."""
    case = BY_NAME["batch_heads"]
    expected = run(case)
    call = make_call(case)
    for name, field in (("Q", "q"), ("K", "k"), ("V", "v"), ("y", "y")):
        x = call.arrays[name]
        wide = np.full([n + 2 for n in x.shape], np.nan, np.float32)
        inner = wide[1:-1, 1:-1, 1:-1, 1:-1]
        if name != "y":
            inner[:] = x
        call.arrays[name] = wide
        setattr(call.tensors, field, inner.ctypes.data)
        setattr(call.problem, f"{field}_strides", tuple(s // 4 for s in wide.strides[:3]))
    assert call.run(2) == (OK, "")
    inner = call.arrays["y"][1:-1, 1:-1, 1:-1, 1:-1]
    np.testing.assert_array_equal(inner, expected["y"])
    assert np.isnan(call.arrays["y"]).sum() == call.arrays["y"].size - inner.size


def test_padding_and_masked_keys_may_be_anything() -> None:
    case = replace(BY_NAME["nonpad"], mask="bool", mask_dims="B11K")
    expected = run(case)
    call = make_call(case)
    for b, length in enumerate(case.nonpad):
        for name in ("K", "V"):
            call.arrays[name][b, :, length:] = np.nan
    mask = np.broadcast_to(call.arrays["attn_mask"], (case.batch, 1, 1, case.seqlen_kv))
    assert call.run() == (OK, "")
    np.testing.assert_array_equal(call.arrays["y"], expected["y"])
    np.testing.assert_array_equal(call.arrays["lse"], expected["lse"])

    b, j = 0, int(np.flatnonzero(~mask[0, 0, 0])[0])  # not attended: no NaN may come of it
    call.arrays["K"][b, :, j] = np.inf
    call.arrays["V"][b, :, j] = np.nan
    assert call.run() == (OK, "")
    assert np.isfinite(call.arrays["y"]).all()


def test_values_beyond_float16_are_non_finite_for_int8_qk() -> None:
    case = BY_NAME["plain"]
    call = make_call(case, precision="int8_qk")
    call.arrays["V"][0, 1, 5, 3] = 7e4
    assert call.run() == (OK, "")
    bad = np.isnan(call.arrays["y"])
    assert bad[0, 1, :, 3].all()
    assert bad.sum() == case.seqlen_q


def test_exp2_is_within_one_ulp() -> None:
    x = -np.concatenate([np.linspace(0, 126, 400_001), np.geomspace(1e-30, 1, 10_000)]).astype(np.float32)
    y = np.empty_like(x)
    c_abi.library().intfa_exp2_cpu(x.ctypes.data, y.ctypes.data, x.size)
    exact = np.exp2(x.astype(np.float64))
    ulp = np.spacing(exact.astype(np.float32)).astype(np.float64)
    assert (np.abs(y - exact) / ulp).max() <= 1.0
    assert y[0] == 1.0


def test_sign_of_a_scale_does_not_matter() -> None:
    """With -q_scale the codes of Q have the other sign, and so have the scores: the same x, to the bit."""
    case = next(case for case in CASES if case.static_scales and case.dtype == "float32")
    call = make_call(case)
    assert call.run() == (OK, "")
    y = call.arrays["y"].copy()
    call.arrays["q_scale"] *= -1
    assert call.run() == (OK, "")
    np.testing.assert_array_equal(call.arrays["y"], y)


def test_codes_of_p() -> None:
    """Rounded, or those of the grid; either way up to ties of what they are rounded from, known to some ulp."""
    x = np.concatenate([np.linspace(-12, 0, 400_001), [-126, -1e30, -np.inf]]).astype(np.float32)
    codes = c_abi.tile_codes(x)
    weight = 255 * np.exp2(x.astype(np.float64))
    assert (np.diff(codes[:400_001]) >= 0).all()
    assert codes[400_000] == 255
    assert (codes[400_001:] == 0).all()
    if c_abi.has_code_grid():
        off = codes != grid_codes(weight)[0]
        assert off.mean() < 255 * 2.0**-20
        assert (np.abs(codes - weight) <= np.where(x < -4, 0.67, np.where(x < -2, 1.1, 2.2)))[:400_001].all()
    else:
        assert np.abs(codes - weight).max() <= 0.5 + 255 * 2.0**-22


@pytest.mark.parametrize("keys", [64, 1024])
def test_tail_keeps_its_weight(keys: int) -> None:
    """Codes under 1 of weights spread evenly over the octaves, as behind a sink: they sum to what they should."""
    x = np.linspace(-14, -6, keys, dtype=np.float32)
    weight = 255 * np.exp2(x.astype(np.float64))
    assert abs(c_abi.tile_codes(x).sum() / weight.sum() - 1) < (0.03 if c_abi.has_code_grid() else 0.1)


BAD_PROBLEMS = (
    ({"head_dim": 12}, UNSUPPORTED, "head_dim=12 is unsupported (supported: multiples of 8 from 8 to 256)"),
    ({"head_dim": 264}, UNSUPPORTED, "head_dim=264"),
    ({"head_dim_v": 0}, UNSUPPORTED, "head_dim_v=0"),
    ({"num_heads": 3}, INVALID_ARGUMENT, "num_heads=3 is not a positive multiple of kv_num_heads=2"),
    ({"kv_num_heads": 0}, INVALID_ARGUMENT, "kv_num_heads=0"),
    ({"batch": -1}, INVALID_ARGUMENT, "batch=-1"),
    ({"seqlen_new": -5}, INVALID_ARGUMENT, "seqlen_new=-5"),
    ({"seqlen_q": 2**40}, UNSUPPORTED, "2^31"),
    ({"seqlen_past": 2**63 - 1}, UNSUPPORTED, "2^31"),
    ({"precision": 2}, INVALID_ARGUMENT, "precision=2 is no value of its enumeration"),
    ({"scheme": -1}, INVALID_ARGUMENT, "scheme=-1 is no value of its enumeration"),
    ({"causal_alignment": 2}, INVALID_ARGUMENT, "(supported: 0 to 1)"),
    ({"k_granularity": 3}, INVALID_ARGUMENT, "(supported: 0 to 2)"),
    *(({name: 4}, INVALID_ARGUMENT, f"{name}=4 is no value") for name in ("q_scale", "k_scale", "v_scale")),
    ({"dtype": 4}, UNSUPPORTED, "bool (supported: float32"),
    ({"output_dtype": 3}, UNSUPPORTED, "output of type int8"),
    ({"dtype": 3}, INVALID_ARGUMENT, "q_scale is missing"),
    ({"tile_n": 24}, UNSUPPORTED, "tile_n=24 (supported: multiples of 16"),
    ({"tile_n": 8192}, UNSUPPORTED, "up to 4096"),
    ({"window_left": -2}, INVALID_ARGUMENT, "window_left=-2"),
    ({"window_right": 2**63 - 1}, INVALID_ARGUMENT, "(supported: 0 to 2^40, or -1 for unbounded)"),
    ({"softmax_scale": math.nan}, INVALID_ARGUMENT, "scale=nan"),
    ({"softcap": -1.0}, INVALID_ARGUMENT, "softcap=-1"),
    ({"q_scale": 3}, UNSUPPORTED, "q_scale per channel (supported: per tensor, per head)"),
    ({"mask_present": 1, "mask_dtype": 3}, UNSUPPORTED, "attn_mask of type int8"),
    ({"mask_present": 1, "mask_seqlen_kv": 999}, INVALID_ARGUMENT, "attn_mask covers 999 keys of"),
    ({"q_strides": (0, 0, -8)}, INVALID_ARGUMENT, "negative stride"),
)


@pytest.mark.parametrize(("fields", "code", "message"), BAD_PROBLEMS, ids=lambda x: str(x)[:40])
def test_refusals_say_what_is_wrong(fields: dict[str, Any], code: int, message: str) -> None:
    call = make_call(BY_NAME["plain"])
    for name, value in fields.items():
        setattr(call.problem, name, value)
    for found_code, found in (call.validate(), call.run()):
        assert message in found
        assert found_code == code


@pytest.mark.parametrize("missing", ["q", "k", "v", "y", "past_key", "past_value"])
def test_missing_pointers_are_named(missing: str) -> None:
    call = make_call(BY_NAME["causal_past"])
    setattr(call.tensors, missing, None)
    code, message = call.run()
    assert (code, message) == (INVALID_ARGUMENT, f"the problem needs {missing}, which is null")


def test_empty_problems_do_nothing() -> None:
    for fields in ({"batch": 0}, {"seqlen_q": 0}):
        call = make_call(BY_NAME["plain"])
        for name, value in fields.items():
            setattr(call.problem, name, value)
        call.arrays["y"][:] = 7
        assert call.run(2) == (OK, "")
        assert (call.arrays["y"] == 7).all()
    call = make_call(BY_NAME["plain"])
    call.problem.seqlen_new = 0  # no key at all: every row is empty
    assert call.run() == (OK, "")
    assert not call.arrays["y"].any()
    assert np.isneginf(call.arrays["lse"]).all()


def test_log_names_the_choice() -> None:
    script = "import c_abi, cases; c_abi.make_call(cases.CASES[0]).run()"
    folder = Path(__file__).parent
    path = os.pathsep.join([str(folder), *sys.path])
    answer = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"INTFA_LOG": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stderr.startswith("intfa: B=1 Hq=2 Hkv=2 Sq=128 Skv=128")
    assert f": cpu {native_abi.cpu_instruction_set()} " in answer.stderr
    assert "tile_n=128" in answer.stderr
