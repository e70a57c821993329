"""The reference over every case: against the independent float64 truth, and the properties of the operator."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.reference
import pytest
from cases import CASES, DTYPES, AttentionCase, make_inputs, typed_inputs
from onnx import helper
from truth import HALF, PAPER, PAPER_HALF, TILE, Scheme, truth_of

from intfa_onnx import op_schema, reference
from intfa_onnx.errors import UnsupportedError
from intfa_onnx.reference_op import IntFlashAttention

SCHEMES: dict[str, tuple[Scheme, dict[str, Any]]] = {
    "tile": (TILE, {}),
    "tile int8_qk": (HALF, {"precision": "int8_qk"}),
    "paper": (PAPER, {"scheme": "paper"}),
    "paper int8_qk": (PAPER_HALF, {"scheme": "paper", "precision": "int8_qk"}),
}
BY_NAME = {case.name: case for case in CASES}
each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def run(case: AttentionCase, inputs: dict[str, np.ndarray] | None = None, **options: Any) -> reference.AttentionResult:
    """Run the reference on a case, y in float32 and [B, H, S, D] whatever the case's type and layout."""
    inputs = typed_inputs(case) if inputs is None else inputs
    arguments = {name.lower(): x for name, x in inputs.items()}
    result = reference.attention(**arguments, **{"output_dtype": np.float32} | case.attributes() | options)
    if case.layout == "BSHD":
        y = result.y.reshape(case.batch, case.seqlen_q, case.num_heads, case.head_dim_v).swapaxes(1, 2)
        return replace(result, y=y)
    return result


cached_truth = cache(truth_of)


# Static scales of float inputs saturate, which the float meaning does not know.
@pytest.mark.parametrize("case", [c for c in CASES if c.dtype == "int8" or not c.static_scales], ids=lambda c: c.name)
def test_float_is_the_truth(case: AttentionCase) -> None:
    truth = cached_truth(case, HALF)
    result = run(case, precision="float", output_dtype=np.float64)
    # float32 holds 1/sqrt(D) to 2^-24, which moves scores of up to 30 by 2e-6.
    np.testing.assert_allclose(result.y, truth.y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.lse, truth.lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
@each_case
def test_int8_within_the_predicted_noise(case: AttentionCase, scheme: str) -> None:
    noise, options = SCHEMES[scheme]
    result = run(case, **options)
    cached_truth(case, noise).check(result.y, result.lse)


@pytest.mark.parametrize("tile_n", [16, 64, 256])
@pytest.mark.parametrize("name", ["ragged", "many_tiles", "causal", "window", "sink", "mask_rows"])
def test_tile_size_is_part_of_the_numerics(name: str, tile_n: int) -> None:
    case = BY_NAME[name]
    result = run(case, tile_n=tile_n)
    truth_of(case, TILE, tile_n).check(result.y, result.lse)


def test_group_granularity_costs_little() -> None:
    # Four scales per tile instead of 128: K's noise grows by a group's amax over a token's, under 2 for N(0, 1).
    case = BY_NAME["ragged"]
    truth = cached_truth(case, TILE)
    errors = [np.linalg.norm(run(case, k_granularity=g).y - truth.y) for g in ("token", "group")]
    assert errors[0] < errors[1] < 2 * errors[0]


@pytest.mark.parametrize("precision", ["int8", "int8_qk"])
def test_paper_is_as_published(precision: str) -> None:
    """Neither smoothing nor coarser key scales change it."""
    options = {"scheme": "paper", "precision": precision}
    plain = run(replace(BY_NAME["k_bias"], smooth_k=False), **options)
    for other in (run(BY_NAME["k_bias"], **options), run(BY_NAME["k_bias"], k_granularity="group", **options)):
        np.testing.assert_array_equal(other.y, plain.y)
        np.testing.assert_array_equal(other.lse, plain.lse)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_output_type_and_states(dtype: str) -> None:
    case = replace(BY_NAME["causal_past"], dtype=dtype)
    inputs = typed_inputs(case)
    result = run(case, output_dtype=None)
    assert result.y.dtype == result.present_key.dtype == DTYPES[dtype]
    np.testing.assert_array_equal(result.present_key, np.concatenate([inputs["past_key"], inputs["K"]], 2))
    np.testing.assert_array_equal(result.present_value, np.concatenate([inputs["past_value"], inputs["V"]], 2))
    np.testing.assert_array_equal(result.y, run(case).y.astype(DTYPES[dtype]))
    assert run(case, output_dtype=ml_dtypes.bfloat16).y.dtype == DTYPES["bfloat16"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_without_keys_give_zero(scheme: str) -> None:
    case = BY_NAME["mask_rows"]
    result = run(case, **SCHEMES[scheme][1])
    assert not result.y[:, :, ::3].any()
    assert np.isneginf(result.lse[:, :, ::3]).all()
    assert np.isfinite(result.lse[:, :, 1::3]).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", ["batch", "seqlen_q", "seqlen_new"])
def test_empty_problems(size: str, scheme: str) -> None:
    result = run(replace(BY_NAME["plain"], **{size: 0}), **SCHEMES[scheme][1])
    assert not result.y.any()
    assert np.isneginf(result.lse).all()


def test_lowest_mask_averages_uniformly() -> None:
    case = BY_NAME["mask_min"]
    v = make_inputs(case)["V"].astype(np.float64)
    result = run(case)
    step = np.abs(v).max(2, keepdims=True) / 127
    assert (np.abs(result.y[:, :, ::3] - v.mean(2, keepdims=True)) <= 0.5 * step).all()  # V's rounding is all there is


@pytest.mark.parametrize("scheme", SCHEMES)
def test_lse_merges_two_halves(scheme: str) -> None:
    """Attention over a split KV cache, merged by lse, is within the noise of attention over the whole."""
    noise, options = SCHEMES[scheme]
    case = BY_NAME["k_bias"]
    inputs = typed_inputs(case)
    half = case.seqlen_new // 2
    parts = [run(case, inputs | {n: inputs[n][:, :, keys] for n in "KV"}, **options)
             for keys in (slice(half), slice(half, None))]  # fmt: skip
    lse = np.logaddexp(parts[0].lse, parts[1].lse)
    merged = sum(part.y * np.exp(part.lse - lse)[..., None] for part in parts)
    cached_truth(case, noise).check(merged, lse)


def test_smoothing_ignores_a_bias_of_the_keys() -> None:
    case = BY_NAME["ragged"]
    inputs = make_inputs(case)
    bias = np.random.default_rng(1).integers(-30, 30, (1, 1, 1, case.head_dim)).astype(np.float32)
    plain, biased = run(case, inputs), run(case, inputs | {"K": inputs["K"] + bias})
    # K + bias is rounded to float32 at 2^5: 2^-19 of error per element, which may move codes that sit on the edge.
    assert np.linalg.norm(biased.y - plain.y) < 1e-3 * np.linalg.norm(plain.y)
    moved = (inputs["Q"] * bias).sum(-1) / np.sqrt(case.head_dim)  # what the bias adds to every score of the row
    scale_of_q = np.abs(inputs["Q"]).max(-1) / 127
    noise = scale_of_q * np.linalg.norm(bias) / np.sqrt(case.head_dim)  # Q's rounding seen through the bias
    assert (np.abs(biased.lse - plain.lse - moved) < noise + 0.01).all()
    rough = run(case, inputs | {"K": inputs["K"] + bias}, smooth_k=False)
    assert np.linalg.norm(rough.y - plain.y) > 5 * np.linalg.norm(biased.y - plain.y)


def test_heads_are_independent_and_shared_in_order() -> None:
    case = BY_NAME["gqa"]
    inputs = make_inputs(case)
    result = run(case, inputs)
    for h in range(case.num_heads):
        g = h // (case.num_heads // case.kv_num_heads)
        alone = run(replace(case, num_heads=1, kv_num_heads=1),
                    {"Q": inputs["Q"][:, [h]], "K": inputs["K"][:, [g]], "V": inputs["V"][:, [g]]})  # fmt: skip
        # Equal integers; the float32 products behind them may be summed in another order only where P is float.
        np.testing.assert_array_equal(result.y[:, [h]], alone.y)
        np.testing.assert_array_equal(result.lse[:, [h]], alone.lse)


def test_order_of_keys_within_a_tile_does_not_matter() -> None:
    case = replace(BY_NAME["plain"], seqlen_new=100)  # one tile
    inputs = make_inputs(case)
    order = np.random.default_rng(1).permutation(case.seqlen_new)
    shuffled = run(case, inputs | {n: inputs[n][:, :, order] for n in "KV"})
    np.testing.assert_array_equal(shuffled.y, run(case, inputs).y)  # integers throughout, and the mean is float64


def test_padding_has_no_influence() -> None:
    case = BY_NAME["nonpad"]
    inputs = make_inputs(case)
    wild = {n: inputs[n].copy() for n in "KV"}
    for b, length in enumerate(case.nonpad):
        for x in wild.values():
            x[b, :, length:] = 1e30
        wild["K"][b, 0, length : length + 1] = np.nan
    for options in ({}, {"k_granularity": "group"}, {"precision": "int8_qk"}, {"scheme": "paper"}):
        clean, other = run(case, inputs, **options), run(case, inputs | wild, **options)
        np.testing.assert_array_equal(other.y, clean.y)
        np.testing.assert_array_equal(other.lse, clean.lse)


def test_nonfinite_touches_nothing_else() -> None:
    case = replace(BY_NAME["nonfinite"], data="normal")
    inputs = make_inputs(case)
    spoilt = {n: inputs[n].copy() for n in "QKV"}
    spoilt["Q"][0, 0, 9, 3], spoilt["K"][1, 1, 20, 0], spoilt["V"][1, 0, 30, 2] = np.nan, np.inf, np.nan
    result = run(case, spoilt)
    expected_nan = np.zeros(result.y.shape, bool)
    expected_nan[0, 0, 9] = True
    expected_nan[1, 1, 20:] = True  # causal: later queries attend key 20
    expected_nan[1, 0, 30:, 2] = True
    np.testing.assert_array_equal(np.isnan(result.y), expected_nan)
    clean = run(case, inputs)
    # The same to the last bit, but for the head whose K mean lost a token: there codes move by up to one.
    exact = ~expected_nan
    exact[1, 1] = False
    np.testing.assert_array_equal(result.y[exact], clean.y[exact])
    moved, sigma = result.y[1, 1, :20] - clean.y[1, 1, :20], truth_of(case, TILE).sigma[1, 1, :20]
    assert np.linalg.norm(moved) < 2 * np.linalg.norm(sigma)


def test_fully_masked_wins_over_nonfinite_query() -> None:
    case = BY_NAME["mask_rows"]
    inputs = make_inputs(case)
    inputs["Q"][:, :, :2] = np.nan
    result = run(case, inputs)
    assert not result.y[:, :, 0].any()  # attends nothing
    assert np.isnan(result.y[:, :, 1]).all()


def test_values_beyond_float16_count_as_nonfinite_for_int8_qk() -> None:
    case = BY_NAME["causal"]
    inputs = make_inputs(case)
    inputs["V"][0, 0, 50, 3] = 1e6
    result = run(case, inputs, precision="int8_qk")
    expected = np.zeros(result.y.shape, bool)
    expected[0, 0, 50:, 3] = True
    np.testing.assert_array_equal(np.isnan(result.y), expected)
    assert np.isfinite(run(case, inputs).y).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "int4"}, "precision='int4' is unknown .supported: float, int8, int8_qk"),
        ({"scheme": "best"}, "scheme='best'"),
        ({"tile_n": 12}, "tile_n=12 .supported: multiples of 8"),
        ({"q": np.zeros((1, 3, 4, 8), np.float32)}, "Hq a multiple of Hkv"),
        ({"q": np.zeros((1, 2, 4, 16), np.float32)}, "one head_dim of Q and K"),
        ({"v": np.zeros((1, 2, 5, 8), np.float32)}, "K and V of equal heads and length"),
        ({"q": np.zeros((1, 4, 16), np.float32)}, "Q of shape .1, 4, 16. with 0 heads"),
        ({"q": np.zeros((1, 2, 4, 8), np.float16)}, "one type for all"),
        ({"attn_mask": np.zeros((3, 4, 6), np.float32)}, r"attn_mask of shape .3, 4, 6. does not broadcast"),
        ({"past_key": np.zeros((1, 2, 4, 8), np.float32)}, "past_key and past_value come together"),
        ({"k_scale": np.array([0.0], np.float32)}, "k_scale has a value that is not positive"),
        ({"k_scale": np.ones(3, np.float32)}, "k_scale of shape .3."),
        ({n: np.zeros((1, 2, 6, 8), np.int8) for n in "qkv"}, "int8 Q, K, V need q_scale"),
    ],
)
def test_contradictions_are_refused(change: dict[str, Any], message: str) -> None:
    fine = {n: np.zeros((1, 2, s, 8), np.float32) for n, s in (("q", 4), ("k", 6), ("v", 6))}
    with pytest.raises(UnsupportedError, match=message):
        reference.attention(**fine | change)


@pytest.mark.parametrize(
    "name", ["plain", "bshd_gqa_float16", "bfloat16", "causal_past", "mask_float_inf", "int8_channel"]
)
def test_operator_in_a_model(name: str) -> None:
    """The same through ``onnx.reference``: inputs by position, attributes by name, all four outputs."""
    case = BY_NAME[name]
    inputs = typed_inputs(case)
    attributes = case.attributes() | {"precision": "int8_qk", "plugin_namespace": op_schema.DOMAIN}
    if case.dtype == "int8":
        attributes["output_dtype"] = onnx.TensorProto.FLOAT
    node = helper.make_node(
        op_schema.OP_TYPE,
        [n if n in inputs else "" for n in op_schema.INPUTS],
        list(op_schema.OUTPUTS),
        domain=op_schema.DOMAIN,
        **attributes,
    )
    graph = helper.make_graph(
        [node],
        "attention",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for n, x in inputs.items()
        ],
        [helper.make_empty_tensor_value_info(n) for n in op_schema.OUTPUTS],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(op_schema.DOMAIN, 1)])
    outputs = onnx.reference.ReferenceEvaluator(model, new_ops=[IntFlashAttention]).run(None, inputs)
    arguments = {n.lower(): x for n, x in inputs.items()}
    expected = reference.attention(
        **arguments, **case.attributes(), precision="int8_qk", output_dtype=np.float32 if case.dtype == "int8" else None
    )
    for output, wanted in zip(
        outputs, (expected.y, expected.present_key, expected.present_value, expected.lse), strict=True
    ):
        assert output.dtype == wanted.dtype
        np.testing.assert_array_equal(output, wanted)


def test_truth_refuses_a_wrong_result() -> None:
    """The check itself can fail: a row sum of unrounded P, a lost key, a stray NaN."""
    truth = cached_truth(BY_NAME["v_mean"], TILE)
    result = run(BY_NAME["v_mean"])
    for wrong in (result.y * 1.005, np.roll(result.y, 1, axis=2), np.where(result.y > 3.0, np.nan, result.y)):
        with pytest.raises(AssertionError):
            truth.check(wrong, result.lse)
    with pytest.raises(AssertionError, match="lse is off"):
        truth.check(result.y, result.lse + 0.02)
