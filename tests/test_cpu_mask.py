"""Tiles that a mask leaves as they are take a shorter way in the CPU kernel, to the same bits."""

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

PADDING = 290  # the first key that no query attends
CASE = AttentionCase(
    "tiles", "three tiles of keys, two of query rows", mask="bool", seqlen_q=70, seqlen_new=300, seed=3
)


def outputs(case: AttentionCase, attended: np.ndarray, allowed: float) -> tuple[np.ndarray, np.ndarray]:
    """Bits of y and lse; ``allowed`` is what a float mask holds for an attended key."""
    call = make_call(case)
    mask = call.arrays["attn_mask"]
    mask[:] = attended if mask.dtype == np.bool_ else np.where(attended, np.float32(allowed), np.float32(-np.inf))
    assert call.run() == (OK, "")
    found = call.arrays["y"].copy()
    call.arrays["V"][:, :, PADDING:] *= -1  # what nothing attends; the scales stay
    assert call.run() == (OK, "")
    np.testing.assert_array_equal(call.arrays["y"], found)
    return found.view(np.uint32), call.arrays["lse"].view(np.uint32)


@pytest.mark.parametrize("dims", ["QK", "1K"])
def test_a_mask_of_zeros_changes_no_bit(dims: str) -> None:
    attended = np.ones((CASE.seqlen_q if dims == "QK" else 1, CASE.seqlen_new), np.bool_)
    attended[:, PADDING:] = False
    if dims == "QK":
        attended[20, 5] = attended[69, 200] = False  # one row of 16 in a tile
    floats = replace(CASE, mask="float", mask_dims=dims)
    expected = outputs(floats, attended, -0.0)  # adds nothing either, but has not the bits of 0
    for found in (outputs(floats, attended, 0.0), outputs(replace(CASE, mask_dims=dims), attended, 0.0)):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
