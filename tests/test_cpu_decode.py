"""A head that few queries read is packed tile by tile, or its codes multiplied where they lie, to the same bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from c_abi import OK, make_call
from cases import AttentionCase

from intfa_onnx import native
from intfa_onnx.errors import UnsupportedError

try:
    native.get_library_path("ort")
except UnsupportedError as error:
    pytest.skip(str(error), allow_module_level=True)

BLOCK_ROWS = 64  # queries of a head that share one packing
FEW = AttentionCase(
    "decode",
    "some queries, keys in several tiles and a part of one",
    seqlen_q=3,
    seqlen_new=300,
    seqlen_past=77,
    seed=5,
)


@pytest.mark.parametrize("head_dim", [64, 72, 8])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("precision", ["int8", "int8_qk"])
@pytest.mark.parametrize("queries", [1, 3])
def test_tile_by_tile_equals_whole_heads(dtype: str, head_dim: int, precision: str, queries: int) -> None:
    static_scales = "head" if dtype == "int8" else ""
    few = replace(
        FEW, seqlen_q=queries, dtype=dtype, head_dim=head_dim, head_dim_v=head_dim, static_scales=static_scales
    )
    many = replace(few, seqlen_q=BLOCK_ROWS + few.seqlen_q)
    calls = [make_call(case, precision=precision) for case in (few, many)]
    for name in ("K", "V", "past_key", "past_value", "q_scale", "k_scale", "v_scale"):
        if name in calls[0].arrays:
            calls[1].arrays[name][:] = calls[0].arrays[name]
    calls[1].arrays["Q"][:, :, : few.seqlen_q] = calls[0].arrays["Q"]
    for call in calls:
        assert call.run() == (OK, "")
    for output in ("y", "lse"):
        found, expected = calls[0].arrays[output], calls[1].arrays[output][:, :, : few.seqlen_q]
        np.testing.assert_array_equal(found.view(np.uint8), np.ascontiguousarray(expected).view(np.uint8), output)
    for output in ("present_key", "present_value"):
        np.testing.assert_array_equal(
            calls[0].arrays[output].view(np.uint8), calls[1].arrays[output].view(np.uint8), output
        )


IN_PLACE = replace(
    FEW, dtype="int8", static_scales="channel", batch=2, num_heads=4, kv_num_heads=2, seqlen_q=1, data="llm"
)
FEW_ROWS = 8  # rows up to which a head's codes are read where they lie


IN_PLACE_CASES = (
    replace(IN_PLACE, name="group"),
    replace(IN_PLACE, name="one row", num_heads=2),
    replace(IN_PLACE, name="all rows", num_heads=8, seqlen_q=2),
    replace(IN_PLACE, name="odd rows and sizes", seqlen_q=3, head_dim=72, head_dim_v=40),
    replace(IN_PLACE, name="one vector and a half", head_dim=96, head_dim_v=96),
    replace(IN_PLACE, name="two vectors", head_dim=128, head_dim_v=128),
    replace(IN_PLACE, name="largest", head_dim=256, head_dim_v=256),
    replace(IN_PLACE, name="one key", seqlen_past=0, seqlen_new=1),
    replace(IN_PLACE, name="strided", layout="BSHD", seqlen_past=0),
    replace(IN_PLACE, name="strided with a past", layout="BSHD", seqlen_past=130),
    replace(IN_PLACE, name="causal", seqlen_q=3, causal=True, seqlen_past=300, seqlen_new=3),
    replace(IN_PLACE, name="window", window_left=70, window_right=0, seqlen_past=370, seqlen_new=7),
    replace(IN_PLACE, name="softcap", softcap=3.0, static_scales="head"),
    replace(IN_PLACE, name="mask", mask="bool", mask_dims="B11K"),
    replace(IN_PLACE, name="mask of rows", seqlen_q=3, mask="float_inf"),
    replace(IN_PLACE, name="padding", nonpad=(131, 375)),
    replace(IN_PLACE, name="no key", nonpad=(0, 1)),
)


@pytest.mark.parametrize("case", IN_PLACE_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("form", [{}, {"scheme": "paper"}, {"tile_n": 48}], ids=["tile", "paper", "tile_n"])
def test_codes_in_place_equal_packed_ones(case: AttentionCase, form: dict) -> None:
    # so many queries more that a group of heads has more rows than are taken in place
    packed = replace(case, seqlen_q=case.seqlen_q + FEW_ROWS)
    calls = [make_call(c, **form) for c in (case, packed)]
    rng = np.random.default_rng(1)
    for name, array in calls[0].arrays.items():
        if name in ("y", "lse", "present_key", "present_value"):
            continue
        if array.dtype == np.int8:  # all codes, -128 among them
            array[:] = rng.integers(-128, 128, array.shape)
        queries = {"Q": 1 if case.layout == "BSHD" else 2, "attn_mask": -2}.get(name)
        if queries is None or array.shape == calls[1].arrays[name].shape:
            calls[1].arrays[name][:] = array
        else:
            np.moveaxis(calls[1].arrays[name], queries, 0)[: case.seqlen_q] = np.moveaxis(array, queries, 0)
    for call in calls:
        assert call.run() == (OK, "")
    for output in ("y", "lse", "present_key", "present_value"):
        found, expected = (call.arrays[output] for call in calls)
        if output == "y" and case.layout == "BSHD":
            expected = expected[:, : case.seqlen_q]
        elif output in ("y", "lse"):
            expected = expected[:, :, : case.seqlen_q]
        np.testing.assert_array_equal(found.view(np.uint8), np.ascontiguousarray(expected).view(np.uint8), output)


@pytest.mark.parametrize(("precision", "static_scales"), [("int8", ""), ("int8", "head"), ("int8_qk", "")])
def test_non_finite_keys_of_later_tiles_are_found(precision: str, static_scales: str) -> None:
    # the window leaves out the first tile: a mark at the wrong tile would not be seen
    case = replace(FEW, seqlen_past=0, causal_alignment="lower_right", window_left=200, static_scales=static_scales)
    call = make_call(case, precision=precision)
    call.arrays["K"][0, 0, 290] = np.inf
    call.arrays["V"][0, 1, 150, 5] = np.nan
    assert call.run() == (OK, "")
    bad = np.isnan(call.arrays["y"])
    assert bad[0, 0].all()
    assert bad[0, 1, :, 5].all()
    assert bad.sum() == FEW.seqlen_q * (FEW.head_dim_v + 1)
