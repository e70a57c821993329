"""The CUDA kernels, prologue to output, in both simulators over the cases of cases.py.

Per case and precision:
- the host SIMT's result is within the case's bound of the float64 truth (truth.py);
- it is the reference's (with the kernels' tile_n) but for codes of P that flip by one, as exp2 differs by an ulp;
- the PTX interpreter, on what nvcc emitted, gives the same bits and finds no race.
- it is the CPU backend's likewise, the native library that a GPU's result will be compared with.
Every mode of the host SIMT gives the same bits too: by default each case runs in two modes that rotate through all of
them, with -m slow in all, and random ones with several seeds.
"""

import dataclasses
import functools

import c_abi
import cpu_copies
import ml_dtypes
import numpy as np
import pytest
from c_abi import OK, make_call, view_arrays
from cases import CASES, AttentionCase, make_inputs, typed_inputs
from native.simt import toolchain
from native.simt.attention import (
    HEAD_DIMS,
    AttentionSimulator,
    build_ada,
    build_ptx,
    case_arguments,
    case_attributes,
)
from native.simt.simulator import DEFAULT_MODE, Mode, all_modes
from truth import HALF, PAPER, TILE, truth_of

from intfa_onnx import reference
from intfa_onnx.errors import UnsupportedError

TILE_N = 64
ARITHMETICS = {"tile": ("int8", "tile", TILE), "paper": ("int8", "paper", PAPER), "half": ("int8_qk", "tile", HALF)}
MODES = all_modes()


def variant(name: str, of: str, **changes: object) -> AttentionCase:
    """A case that matters to these kernels alone."""
    return dataclasses.replace(next(c for c in CASES if c.name == of), name=name, **changes)


VARIANTS = [
    # half: the mask's terms lie in the stage that is fetched next
    variant("d256_mask", "mask_float_inf", head_dim=256, head_dim_v=256, seqlen_q=70, seqlen_new=330),
    variant("d256_mask_skipped", "mask_short", head_dim=256, head_dim_v=256, seqlen_q=70, seqlen_new=330),
    variant("bfloat16_past", "causal_past", dtype="bfloat16"),
    variant("int8_past", "int8_channel", static_scales="tensor", seqlen_q=70),
    variant("bfloat16_bshd", "bshd_gqa_float16", dtype="bfloat16"),
    variant("int8_bshd", "int8_channel", layout="BSHD"),
    # a mask's terms pass through shared memory strip by strip, at each head size
    variant("d32_mask_bfloat16", "mask_float_inf", dtype="bfloat16", head_dim=32, head_dim_v=32, seqlen_new=130),
    variant("d96_softcap_mask", "softcap_mask", head_dim=96, head_dim_v=96, seqlen_q=70, seqlen_new=140),
    variant("d128_mask_blocks", "mask_blocks", head_dim=128, head_dim_v=128),
    # splits of the keys in which nothing is attended
    variant("split_nonpad", "nonpad", seqlen_q=3, seqlen_new=1100, nonpad=(1100, 70, 1, 0)),
    variant("split_mask", "mask_short", seqlen_q=3, seqlen_new=1100),
]
ADA = [variant("mask_ada", "mask_float_inf", head_dim=32, head_dim_v=32, seqlen_new=330)]
GROUPED = ["plain", "ragged", "causal_past", "nonpad", "gqa", "bshd_gqa_float16", "mask_float_inf", "d128", "k_bias"]


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
        for case in (*CASES, *VARIANTS)
        for name in ARITHMETICS
        if not (name == "half" and case.dtype == "int8" and case.static_scales != "tensor")  # one is enough
    ]


def run(
    case: AttentionCase, arithmetic: str, mode: Mode, ptx=None, k_granularity: str = "auto"
) -> dict[str, np.ndarray]:
    precision, scheme, _ = ARITHMETICS[arithmetic]
    attributes = case_attributes(case, precision, scheme, k_granularity)
    return simulator().attention(attributes=attributes, mode=mode, ptx=ptx, present=True, **case_arguments(case))


def bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(np.uint8)


def assert_same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name in one:
        np.testing.assert_array_equal(bits(one[name]), bits(other[name]), name)


def modes_of(case: AttentionCase, arithmetic: str) -> list[Mode]:
    """Two of the twelve, rotating so that neighbours in the list get others."""
    at = (*CASES, *VARIANTS).index(case) * len(ARITHMETICS) + list(ARITHMETICS).index(arithmetic)
    return [MODES[at % len(MODES)], MODES[(at * 5 + 7) % len(MODES)]]


def truth_params():
    """By default the tile scheme, whose case list is the longest; the truth is slow Python."""
    return [
        pytest.param(*param.values, id=param.id, marks=[] if param.values[1] == "tile" else pytest.mark.slow)
        for param in cases()
        if param.values[0].dtype in ("float32", "int8")  # others round y once more than the bound knows
    ]


@pytest.mark.parametrize(("case", "arithmetic"), truth_params())
def test_host_against_truth(case, arithmetic):
    result = run(case, arithmetic, modes_of(case, arithmetic)[0])
    truth_of(case, ARITHMETICS[arithmetic][2], TILE_N).check(result["y"].astype(np.float64), result["lse"])


@pytest.mark.parametrize(("case", "arithmetic"), cases())
def test_host_against_reference(case, arithmetic):
    first, second = modes_of(case, arithmetic)
    simulator().take_statistics()
    result = run(case, arithmetic, first)
    assert simulator().take_statistics()["bank_conflicts"] == 0
    check_against_reference(case, arithmetic, result)
    check_caches(case, result)
    assert_same_bits(result, run(case, arithmetic, second))


def check_caches(case: AttentionCase, result: dict[str, np.ndarray]) -> None:
    """Past and new tokens behind each other, bit by bit."""
    arguments = case_arguments(case)
    for new, name in (("k", "key"), ("v", "value")):
        tokens = [arguments[f"past_{name}"], arguments[new]] if case.seqlen_past else [arguments[new]]
        np.testing.assert_array_equal(bits(result[f"present_{name}"]), bits(np.concatenate(tokens, axis=2)), name)


@pytest.mark.parametrize(("case", "arithmetic"), cases())
def test_host_against_the_cpu_backend(case, arithmetic, monkeypatch):
    try:
        library = cpu_copies.with_rounded_codes()
    except UnsupportedError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(c_abi, "library", lambda: library)
    precision, scheme, _ = ARITHMETICS[arithmetic]
    call = make_call(case, precision=precision, scheme=scheme, tile_n=TILE_N)
    assert call.run() == (OK, "")
    expected = view_arrays(case, call.arrays)
    result = run(case, arithmetic, modes_of(case, arithmetic)[0])
    check_close(case, arithmetic, result, expected["y"].astype(np.float64), expected["lse"])
    for name in ("present_key", "present_value"):
        np.testing.assert_array_equal(bits(result[name]), bits(expected[name]), name)


@functools.cache
def ada() -> AttentionSimulator:
    return AttentionSimulator(build_ada())


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("name", ["d32", "gqa", "d8", "mask_ada"])
def test_sequences_of_sm89(name, arithmetic):
    """From sm_86 on other instructions lead to sm_80's results.

    Codes are the same; a row's sum of P is made of other parts, so it and what is divided by it differ by roundings of
    float32: 2^-20 is sixteen of them.
    """
    case = next(c for c in (*CASES, *ADA) if c.name == name)
    expected = run(case, arithmetic, DEFAULT_MODE)
    precision, scheme, _ = ARITHMETICS[arithmetic]
    arguments = {"attributes": case_attributes(case, precision, scheme), "present": True, **case_arguments(case)}
    result = ada().attention(**arguments)
    for output in ("y", "lse"):
        bound = 2.0**-20 * max(1.0, np.abs(expected[output][np.isfinite(expected[output])]).max())
        np.testing.assert_allclose(result[output], expected[output], rtol=0, atol=bound)
    for mode in modes_of(CASES[0], arithmetic):
        assert_same_bits(result, ada().attention(mode=mode, **arguments))
    if toolchain.nvcc() is not None:
        ptx = ada().load_ptx(toolchain.ptx(toolchain.PLUGIN / "cuda" / "kernels_d32.cu", "attention-ada", arch="89"))
        assert_same_bits(result, ada().attention(ptx=ptx, **arguments))


@pytest.mark.parametrize("arithmetic", ["tile", "half"])
@pytest.mark.parametrize("name", GROUPED)
def test_group_granularity(name, arithmetic):
    """Four scales of K per tile: the reference's result, another than with a scale per key, and B's bits."""
    case = next(c for c in CASES if c.name == name)
    mode = modes_of(case, arithmetic)[0]
    result = run(case, arithmetic, mode, k_granularity="group")
    check_against_reference(case, arithmetic, result, k_granularity="group")
    assert not np.array_equal(bits(result["y"]), bits(run(case, arithmetic, mode)["y"]))
    if toolchain.nvcc() is not None:
        ptx = module(kernel_dim(case))
        assert_same_bits(result, run(case, arithmetic, mode, ptx, k_granularity="group"))


def check_against_reference(
    case: AttentionCase,
    arithmetic: str,
    result: dict[str, np.ndarray],
    tile_n: int = TILE_N,
    k_granularity: str = "token",
) -> None:
    """Assert what :func:`check_close` does, against the numpy reference."""
    precision, scheme, _ = ARITHMETICS[arithmetic]
    inputs = typed_inputs(case)
    names = ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen", "q_scale", "k_scale", "v_scale")
    expected = reference.attention(
        *(inputs.get(name) for name in names),
        **case.attributes(),
        precision=precision,
        scheme=scheme,
        tile_n=tile_n,
        k_granularity=k_granularity,
        output_dtype=np.float32,
    )
    y = expected.y.astype(np.float64)
    if case.layout == "BSHD":
        y = y.reshape(case.batch, case.seqlen_q, case.num_heads, -1).swapaxes(1, 2)
    check_close(case, arithmetic, result, y, expected.lse)


def check_close(
    case: AttentionCase,
    arithmetic: str,
    result: dict[str, np.ndarray],
    expected_y: np.ndarray,
    expected_lse: np.ndarray,
) -> None:
    """Assert equality up to rare flips of a code of P by one, and the rounding of float sums and of the output.

    A flip moves y by a step of P over the row sum, which is at least 1, times the range of V; the relative L2 error
    of the whole is held to 2e-3, so flips must be rare.
    """
    y, lse, output = result["y"].astype(np.float64), result["lse"], result["y"].dtype
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected_y), "NaN of y")
    np.testing.assert_array_equal(np.isnan(lse), np.isnan(expected_lse), "NaN of lse")
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(expected_lse), "-inf of lse")

    v = make_inputs(case)["V"].astype(np.float64)
    if case.dtype == "int8":
        v *= make_inputs(case)["v_scale"].max()
    spread = np.ptp(v[np.isfinite(v)])
    step = {"tile": 1 / 255, "paper": 1 / 127, "half": 2.0**-11}[arithmetic]
    # Scores that carry finfo.min of float16 have float32's spacing there, 2^-7: the order of operations shows.
    spacing = 2.0**-7 if (case.mask, case.dtype) == ("float_min", "float16") else 0.0
    eps = float(ml_dtypes.finfo(output).eps)
    error = np.abs(np.nan_to_num(y - expected_y))
    allowed = (step + spacing) * spread + eps * np.abs(np.nan_to_num(expected_y))
    worst = np.unravel_index((error / allowed).argmax(), error.shape)
    assert error[worst] <= allowed[worst], f"at {worst}: {y[worst]}, reference {expected_y[worst]}"
    norm = np.linalg.norm(np.nan_to_num(expected_y))
    assert np.linalg.norm(error) <= (2e-3 + spacing + eps) * norm + 1e-12, np.linalg.norm(error) / norm
    finite = np.isfinite(expected_lse) & (expected_lse > -1e38)
    # The row sum moves by a step per flip; lse of scores near 1e5 has a spacing of 2^-7.
    np.testing.assert_allclose(lse[finite], expected_lse[finite], rtol=1e-6, atol=step + spacing)


def count_products(case: AttentionCase, arithmetic: str) -> int:
    """How many MMAs a case takes."""
    simulator().take_statistics()
    run(case, arithmetic, DEFAULT_MODE)
    return simulator().take_statistics()["mma"]


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize(
    ("name", "rows"),  # whose tiles are skipped together: the block's where positions exclude them, a warp's by a mask
    [
        ("causal", 128),
        ("window_causal", 128),
        ("lower_right_empty", 128),
        ("window", 128),
        ("window_past_the_end", 128),
        ("mask_short", 128),
        ("mask_blocks", 32),
    ],
)
def test_tiles_without_an_attended_key_are_skipped(name, rows, arithmetic):
    case = next(c for c in CASES if c.name == name)
    # [row, key] in whole blocks; rows beyond the last query read its mask and attend nothing by position
    i, j = np.ogrid[: -(-case.seqlen_q // 128) * 128, : case.seqlen_kv]
    key = i + (case.seqlen_kv - case.seqlen_q if case.causal_alignment == "lower_right" else case.seqlen_past)
    attended = np.ones(np.broadcast_shapes(i.shape, j.shape), bool)
    if case.causal:
        attended &= j <= key
    if case.window_left >= 0:
        attended &= j >= key - case.window_left
    if case.window_right >= 0:
        attended &= j <= key + case.window_right
    if case.mask == "none":
        attended &= i < case.seqlen_q
    else:
        mask = make_inputs(case)["attn_mask"]
        attended[:, mask.shape[-1] :] = False
        if rows < 128:  # [Sq, Skv]
            attended &= mask[np.minimum(i[:, 0], case.seqlen_q - 1)]
    padded = np.pad(attended, ((0, 0), (0, -case.seqlen_kv % TILE_N)))
    visits = padded.reshape(len(padded) // rows, rows, -1, TILE_N).any(axis=(1, 3))
    everything = dataclasses.replace(case, causal=False, window_left=-1, window_right=-1, mask="none")
    assert 0 < visits.sum() < visits.size
    counted = count_products(case, arithmetic), count_products(everything, arithmetic)
    assert counted[0] * visits.size == counted[1] * visits.sum(), (counted, visits)


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
