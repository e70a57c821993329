"""INT8 K read in place by the mma.sync kernels: every bit as with K packed by the prologue, and nothing of it copied.

Packed: the same problem with K a byte off its alignment, which no 16-byte copy can read. The packed path runs against
truth, reference and CPU backend in test_simt_attention.py; so does this one, whose INT8 cases are aligned there.
"""

from dataclasses import replace

import numpy as np
import pytest
import test_simt_attention as mma_sync
from cases import AttentionCase
from native.simt import toolchain
from native.simt.attention import case_arguments, case_attributes
from native.simt.simulator import DEFAULT_MODE

UNWRITTEN = 0xFF  # what the workspace is filled with


def case(name: str, why: str, **fields: object) -> AttentionCase:
    """One of INT8, with a K/V head for each of two query heads, and dimensions alike."""
    fields = {"dtype": "int8", "static_scales": "head", "head_dim_v": fields.get("head_dim", 64), **fields}
    return AttentionCase(name, why, **fields)  # type: ignore[arg-type]


CASES = [
    case("d32", "a chunk per thread, a ragged end", head_dim=32, seqlen_q=40, seqlen_new=100, num_heads=3,
         kv_num_heads=3),
    case("past", "new tokens behind a past within a tile; packed heads, causal", num_heads=8, seqlen_q=5, seqlen_new=41,
         seqlen_past=100, causal=True, static_scales="channel"),
    case("d96", "rows that threads share otherwise from pass to pass", head_dim=96, seqlen_q=70, seqlen_new=77,
         seqlen_past=66),
    case("d128", "several blocks of queries", head_dim=128, seqlen_q=130, seqlen_new=200),
    case("d256", "a single past token", head_dim=256, seqlen_q=40, seqlen_new=135, seqlen_past=1),
    case("strides", "heads interleaved with tokens, grouped, batches", layout="BSHD", batch=2, num_heads=4,
         seqlen_q=37, seqlen_new=70),
    case("nonpad", "tokens that exist and do not count", batch=3, nonpad=(140, 77, 0), seqlen_q=20, seqlen_new=140),
    case("window", "tiles that no row attends", window_left=30, window_right=12, seqlen_q=200, seqlen_new=300),
    case("split", "keys split among blocks", batch=2, seqlen_q=1, seqlen_new=1, seqlen_past=600, causal=True),
    case("mask", "scored, a mask that covers fewer keys", mask="float_inf", mask_keys=90, seqlen_q=40, seqlen_new=140),
    case("mask_d128", "scored, two strips of a mask", mask="bool", head_dim=128, seqlen_q=140, seqlen_new=90,
         seqlen_past=50),
    case("mask_d256", "half: terms in the stage that is fetched next", mask="float", head_dim=256, seqlen_q=70,
         seqlen_new=200),
    case("softcap", "scored without a mask", softcap=3.0, seqlen_q=40, seqlen_new=140),
]  # fmt: skip


def placed(x: np.ndarray, offset: int) -> np.ndarray:
    """A copy with its strides kept, ``offset`` bytes behind a multiple of 16."""
    order = np.argsort([-s for s in x.strides], kind="stable")
    raw = np.empty(x.nbytes + 32, np.uint8)
    start = -raw.ctypes.data % 16 + offset
    flat = raw[start : start + x.nbytes].view(x.dtype).reshape([x.shape[i] for i in order])
    out = flat.transpose(np.argsort(order))
    out[...] = x
    return out


def arguments_of(case: AttentionCase, **offsets: int) -> dict:
    """Its arguments, with codes of all values in K and what is named at an offset."""
    arguments, rng = case_arguments(case), np.random.default_rng(1)
    for name in ("k", "past_key"):
        if name in arguments:
            x = placed(arguments[name], offsets.get(name, 0))
            x[...] = rng.integers(-128, 127, x.shape, endpoint=True)
            arguments[name] = x
    return arguments


def run(case: AttentionCase, arithmetic: str, mode=DEFAULT_MODE, ptx=None, device: int = 80, **offsets: int) -> dict:
    precision, scheme, _ = mma_sync.ARITHMETICS[arithmetic]
    attributes = case_attributes(case, precision, scheme)
    arguments = arguments_of(case, **offsets)
    return mma_sync.simulator().attention(
        attributes=attributes, mode=mode, ptx=ptx, device=device, present=True, **arguments
    )


def in_place() -> bool:
    """Whether the last problem's K was."""
    return "K in place" in mma_sync.simulator().chosen


@pytest.mark.parametrize("arithmetic", mma_sync.ARITHMETICS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_bits_of_packed_keys(case, arithmetic):
    """In one mode of the host SIMT and, where there is nvcc, in the interpreter, which refuses what lies outside."""
    expected = run(case, arithmetic, k=1)
    assert not in_place()
    assert len(np.unique(expected["y"])) > 1
    mode = mma_sync.MODES[(CASES.index(case) * 5 + len(arithmetic)) % len(mma_sync.MODES)]
    for ptx in [None] if toolchain.nvcc() is None else [None, mma_sync.module(mma_sync.kernel_dim(case))]:
        result = run(case, arithmetic, mode, ptx)
        assert in_place()
        mma_sync.assert_same_bits(expected, result)


def packed_keys(case: AttentionCase, arithmetic: str) -> np.ndarray:
    """The bytes of K in the packed tiles that the last problem left, [tiles, 64 * Dp]."""
    dim = mma_sync.kernel_dim(case)
    tile_bytes = 64 * dim * (3 if arithmetic == "half" else 2) + 4 * 64
    tiles = case.batch * case.kv_num_heads * -(-case.seqlen_kv // 64)
    written = mma_sync.simulator().workspace[: tiles * tile_bytes].reshape(tiles, tile_bytes)
    assert not (written[:, 64 * dim :].reshape(tiles, -1) == UNWRITTEN).all(axis=1).any(), "V and the scales"
    return written[:, : 64 * dim]


@pytest.mark.parametrize("arithmetic", mma_sync.ARITHMETICS)
def test_nothing_of_k_is_copied(arithmetic):
    """In the workspace K's place keeps what it was filled with; what comes to shared memory is as much as before."""
    copies = []
    for offset in (0, 1):
        mma_sync.simulator().take_statistics()
        run(CASES[1], arithmetic, k=offset)
        copies.append(mma_sync.simulator().take_statistics()["async_copies"])
        assert (packed_keys(CASES[1], arithmetic) == UNWRITTEN).all() == (offset == 0)
    assert copies[0] == copies[1]


def test_where_k_stays_in_place():
    """Whole 16-byte chunks of the kernel's head size, in all of K, in the mma.sync kernels."""
    past, strides = CASES[1], next(c for c in CASES if c.name == "strides")
    seen = {}

    def check(name: str, case: AttentionCase, arithmetic: str = "tile", **how: int) -> None:
        run(case, arithmetic, **how)
        seen[name] = in_place()

    check("aligned", past)
    check("strides", strides)
    check("k off", past, k=8)
    check("past off", past, past_key=8)
    check("padded", replace(past, head_dim=48, head_dim_v=48))
    check("padded by V", replace(past, head_dim_v=96))
    check("float", replace(past, dtype="float16"))
    check("wgmma", past, device=90)
    check("sm_90, half", past, "half", device=90)
    assert {name for name, place in seen.items() if place} == {"aligned", "strides", "sm_90, half"}
    assert not mma_sync.simulator().chosen.startswith("attention_wgmma")
