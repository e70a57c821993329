"""A head that one block of queries reads is packed tile by tile, and gives the same bits as one packed whole."""

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


def test_non_finite_keys_of_later_tiles_are_found() -> None:
    # the window leaves out the first tile: a mark at the wrong tile would not be seen
    call = make_call(replace(FEW, seqlen_past=0, causal_alignment="lower_right", window_left=200))
    call.arrays["K"][0, 0, 290] = np.inf
    call.arrays["V"][0, 1, 150, 5] = np.nan
    assert call.run() == (OK, "")
    bad = np.isnan(call.arrays["y"])
    assert bad[0, 0].all()
    assert bad[0, 1, :, 5].all()
    assert bad.sum() == FEW.seqlen_q * (FEW.head_dim_v + 1)
