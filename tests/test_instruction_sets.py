"""The CPU kernels on every instruction set that this machine has, not on its best one alone."""

from __future__ import annotations

import c_abi
import cpu_copies
import emulated_cpu
import pytest
import test_cpu_decode as decode
import test_cpu_mask as mask
import test_native_attention as attention
from c_abi import INVALID_ARGUMENT, make_call
from cases import AttentionCase

SETS = tuple(cpu_copies.FLAGS)
HERE = cpu_copies.of_this_machine()

# What differs between the sets: head sizes that fill no vector, types to convert, masks, windows, the running softmax.
FEW = ("many_tiles", "d40", "dv_larger", "gqa_decode", "float16", "bfloat16", "int8_channel", "causal", "window",
       "mask_rows", "mask_float_inf", "nonpad", "softcap", "sink", "k_bias", "v_mean", "nonfinite")  # fmt: skip
few_cases = pytest.mark.parametrize("case", [attention.BY_NAME[name] for name in FEW], ids=lambda c: c.name)

NEON = pytest.param("neon", marks=pytest.mark.slow)  # minutes to build, and minutes to emulate


@pytest.fixture(params=[*HERE[:-1], NEON])  # on the best one runs everything else
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the calls of a test run on one instruction set."""
    library = emulated_cpu.start() if request.param == "neon" else cpu_copies.load(request.param)
    assert library.intfa_cpu_instruction_set().decode() == request.param
    monkeypatch.setattr(c_abi, "library", lambda: library)
    return request.param


@pytest.mark.parametrize("value", ["", *SETS])
def test_the_best_up_to_the_limit_is_used(value: str) -> None:
    upto = SETS[: SETS.index(value) + 1] if value else SETS
    expected = [name for name in HERE if name in upto][-1]
    assert cpu_copies.load(value).intfa_cpu_instruction_set().decode() == expected


@pytest.mark.parametrize("value", ["avx9", "AVX2", "avx2 "])
def test_an_unknown_limit_is_refused_in_words(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_abi, "library", lambda: cpu_copies.load(value))
    call = make_call(attention.BY_NAME["plain"])
    said = f"INTFA_MAX_ISA={value} is unknown (supported: {', '.join(SETS)}); set one of these, or unset it"
    assert call.validate() == (INVALID_ARGUMENT, said)
    assert call.run() == (INVALID_ARGUMENT, said)
    assert not call.arrays["y"].any()


@pytest.mark.parametrize("scheme", ["tile", "tile int8_qk"])
@few_cases
def test_truth(instruction_set: str, case: AttentionCase, scheme: str) -> None:
    attention.test_within_the_predicted_noise_of_the_truth(case, scheme)


@few_cases
def test_reference(instruction_set: str, case: AttentionCase) -> None:
    attention.test_same_numbers_as_the_reference(case, "tile")


@few_cases
def test_codes(instruction_set: str, case: AttentionCase) -> None:
    """The reference's, hence the same ones on every instruction set."""
    attention.test_codes_and_scales_equal_the_reference(case, "group")


@pytest.mark.parametrize("head_dim", [64, 72])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_tile_by_tile(instruction_set: str, dtype: str, head_dim: int) -> None:
    decode.test_tile_by_tile_equals_whole_heads(dtype, head_dim, "int8", 3)


@pytest.mark.parametrize("form", [{}, {"scheme": "paper"}], ids=["tile", "paper"])
def test_codes_in_place(instruction_set: str, form: dict) -> None:
    for case in decode.IN_PLACE_CASES:
        decode.test_codes_in_place_equal_packed_ones(case, form)


def test_zero_masks(instruction_set: str) -> None:
    mask.test_a_mask_of_zeros_changes_no_bit("QK")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", attention.SCHEMES)
@attention.each_case
def test_every_case(instruction_set: str, case: AttentionCase, scheme: str) -> None:
    attention.test_within_the_predicted_noise_of_the_truth(case, scheme)
    attention.test_same_numbers_as_the_reference(case, scheme)
    for granularity in ("token", "group"):
        attention.test_codes_and_scales_equal_the_reference(case, granularity)
