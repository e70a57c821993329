"""The CUDA kernels, prologue to output, in both simulators over the cases of cases.py.

Three statements per case and precision:
- the host SIMT's result is within the case's bound of the float64 truth (truth.py);
- it is the reference's (with the kernels' tile_n) but for codes of P that flip by one, as exp2 differs by an ulp;
- the PTX interpreter, on what nvcc emitted, gives the same bits and finds no race.
Every mode of the host SIMT gives the same bits too: by default each case runs in two modes that rotate through all of
them, with -m slow in all, and random ones with several seeds.
"""

import functools

import ml_dtypes
import numpy as np
import pytest
from cases import CASES, AttentionCase, typed_inputs
from native.simt import toolchain
from native.simt.attention import (
    HEAD_DIMS,
    AttentionSimulator,
    build_ptx,
    case_arguments,
    case_attributes,
)
from native.simt.simulator import Mode, all_modes
from truth import HALF, PAPER, TILE, truth_of

from intfa_onnx import reference

TILE_N = 64
ARITHMETICS = {"tile": ("int8", "tile", TILE), "paper": ("int8", "paper", PAPER), "half": ("int8_qk", "tile", HALF)}
MODES = all_modes()


@functools.cache
def simulator() -> AttentionSimulator:
    return AttentionSimulator()


@functools.cache
def module(head_dim: int):
    return simulator().load_ptx(build_ptx(head_dim))


def kernel_dim(case: AttentionCase) -> int:
    """The head size of the kernel that serves a case."""
    return next(d for d in HEAD_DIMS if d >= max(case.head_dim, case.head_dim_v))


def cases():
    return [
        pytest.param(case, name, id=f"{case.name}-{name}")
        for case in CASES
        for name in ARITHMETICS
        if not (name == "half" and case.dtype == "int8" and case.static_scales != "tensor")  # one is enough
    ]


def run(case: AttentionCase, arithmetic: str, mode: Mode, ptx=None) -> dict[str, np.ndarray]:
    precision, scheme, _ = ARITHMETICS[arithmetic]
    arguments = case_arguments(case)
    return simulator().attention(attributes=case_attributes(case, precision, scheme), mode=mode, ptx=ptx, **arguments)


def bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(np.uint8)


def assert_same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name in one:
        np.testing.assert_array_equal(bits(one[name]), bits(other[name]), name)


def modes_of(case: AttentionCase, arithmetic: str) -> list[Mode]:
    """Two of the twelve, rotating so that neighbours in the list get others."""
    at = CASES.index(case) * len(ARITHMETICS) + list(ARITHMETICS).index(arithmetic)
    return [MODES[at % len(MODES)], MODES[(at * 5 + 7) % len(MODES)]]


@pytest.mark.parametrize(("case", "arithmetic"), cases())
def test_host_against_truth_and_reference(case, arithmetic):
    precision, scheme, bound = ARITHMETICS[arithmetic]
    first, second = modes_of(case, arithmetic)
    simulator().take_statistics()
    result = run(case, arithmetic, first)
    assert simulator().take_statistics()["bank_conflicts"] == 0
    y, lse = result["y"].astype(np.float64), result["lse"]
    output = result["y"].dtype
    if output == np.float32:
        truth_of(case, bound, TILE_N).check(y, lse)

    inputs = typed_inputs(case)
    expected = reference.attention(
        *(inputs.get(n) for n in ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")),
        *(inputs.get(n) for n in ("q_scale", "k_scale", "v_scale")),
        **case.attributes(),
        precision=precision,
        scheme=scheme,
        tile_n=TILE_N,
        output_dtype=np.float32,
    )
    expected_y = expected.y
    if case.layout == "BSHD":
        expected_y = expected_y.reshape(case.batch, case.seqlen_q, case.num_heads, -1).swapaxes(1, 2)
    check_against_reference(case, y, lse, expected_y, expected.lse, output)
    assert_same_bits(result, run(case, arithmetic, second))


def check_against_reference(case, y, lse, expected_y, expected_lse, output) -> None:
    """A flipped code moves y by at most 1/255 of V's range over the row sum, which is at least 1: a few may flip."""
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected_y))
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(expected_lse))
    magnitude = np.nanmax(np.abs(np.where(np.isinf(expected_y), 0, expected_y)), axis=(0, 2), keepdims=True)
    rounding = 2.0**-23 if output == np.float32 else float(ml_dtypes.finfo(output).eps)
    allowed = 2e-3 * magnitude + rounding * np.abs(expected_y) + 1e-30
    error = np.abs(np.nan_to_num(y - expected_y))
    worst = np.unravel_index((error / np.nan_to_num(allowed, nan=1)).argmax(), error.shape)
    assert not (error > allowed).any(), f"at {worst}: {y[worst]}, reference {expected_y[worst]}"
    finite = np.isfinite(expected_lse) & (expected_lse > -1e38)
    np.testing.assert_allclose(lse[finite], expected_lse[finite], rtol=1e-6, atol=2e-3)


@pytest.mark.parametrize(("case", "arithmetic"), cases())
def test_interpreter_gives_the_same_bits(case, arithmetic):
    if toolchain.nvcc() is None:
        pytest.skip("nvcc is not installed, so there is no PTX to interpret")
    mode = modes_of(case, arithmetic)[0]
    assert_same_bits(run(case, arithmetic, mode), run(case, arithmetic, mode, module(kernel_dim(case))))


@pytest.mark.slow
@pytest.mark.parametrize(("case", "arithmetic"), cases())
def test_every_mode_gives_the_same_bits(case, arithmetic):
    ptx = module(kernel_dim(case)) if toolchain.nvcc() is not None else None
    expected = run(case, arithmetic, Mode())
    for mode in all_modes(seeds=(1, 2, 3)):
        assert_same_bits(expected, run(case, arithmetic, mode))
        if ptx is not None:
            assert_same_bits(expected, run(case, arithmetic, mode, ptx))
