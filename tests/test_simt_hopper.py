"""The wgmma kernels in the simulators' Hopper, through the product's launcher, over the cases of cases.py.

Simulated, not run on a GPU. Per case: within the bound of the float64 truth; the reference's with tiles of 128 keys but
for flips of P's codes by one; the same bits in every mode; and where one tile holds all keys, so that its size plays no
role, the mma.sync kernel's result. Every access to shared memory is checked for races across both proxies as it runs.
"""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
import test_simt_attention as mma_sync
from cases import CASES, AttentionCase
from native.sass.gates_sm90 import wgmma_per_tile
from native.simt import toolchain
from native.simt.attention import (
    WIDE_DIMS,
    AttentionSimulator,
    build_hopper_ptx,
    build_wide,
    case_arguments,
    case_attributes,
)
from native.simt.simulator import Mode, all_modes
from truth import TILE, truth_of

from intfa_onnx import reference
from intfa_onnx.c_abi import Problem

TILE_N = 128
HEAD_DIMS = (64, 96, 128, 256)  # that have a wgmma kernel
MODES = all_modes()
# Stages come round from the third tile on; keys are split among blocks from the eighth on.
LONG = [
    replace(case, name=f"{case.name}_{keys}", seqlen_new=keys)
    for case in CASES
    for keys in (700, 1100)
    if case.name in ("d40", "d96", "d128", "d256")
]
# Tiles that the mask excludes for all rows of a block, more of them than there are stages.
MASKED = [
    replace(
        case,
        name=f"d{dim}_{case.name}_270",
        head_dim=dim,
        head_dim_v=dim,
        seqlen_q=270,
        seqlen_new=270,
        num_heads=1,
        kv_num_heads=1,
    )
    for case in CASES
    for dim in (128, 256)
    if case.name == "mask_blocks"
]
TAKEN = [case for case in [*CASES, *LONG, *MASKED] if mma_sync.kernel_dim(case) in HEAD_DIMS]


def params(cases):
    return [pytest.param(case, id=case.name) for case in cases]


@functools.cache
def simulator() -> AttentionSimulator:
    return AttentionSimulator()


@functools.cache
def wide() -> AttentionSimulator:
    return AttentionSimulator(build_wide())


@functools.cache
def module(head_dim: int):
    return simulator().load_ptx(build_hopper_ptx(head_dim))


def run(case: AttentionCase, mode: Mode, device: int = 90, arithmetic: str = "tile", ptx=None) -> dict[str, np.ndarray]:
    precision, scheme, _ = mma_sync.ARITHMETICS[arithmetic]
    attributes = case_attributes(case, precision, scheme)
    return simulator().attention(attributes=attributes, mode=mode, device=device, ptx=ptx, **case_arguments(case))


def modes_of(case: AttentionCase) -> list[Mode]:
    """Two of the twelve, rotating."""
    at = TAKEN.index(case)
    return [MODES[at % len(MODES)], MODES[(at * 5 + 7) % len(MODES)]]


@functools.cache
def counted_run(case: AttentionCase) -> tuple[dict[str, np.ndarray], int]:
    """What several tests look at: by wgmma, in the first of the case's modes, and how many products that took."""
    simulator().take_statistics()
    result = run(case, modes_of(case)[0])
    assert simulator().chosen.startswith("attention_wgmma_"), simulator().chosen
    return result, simulator().take_statistics()["mma"]


def first_run(case: AttentionCase) -> dict[str, np.ndarray]:
    """What the first run gave."""
    return counted_run(case)[0]


@pytest.mark.parametrize("case", params(TAKEN))
def test_against_reference(case):
    result, second = first_run(case), modes_of(case)[1]
    mma_sync.check_against_reference(case, "tile", result, tile_n=TILE_N)
    mma_sync.assert_same_bits(result, run(case, second))


@pytest.mark.parametrize("case", params(c for c in TAKEN if c.dtype in ("float32", "int8")))
def test_against_truth(case):
    result = first_run(case)
    truth_of(case, TILE, TILE_N).check(result["y"].astype(np.float64), result["lse"])


@pytest.mark.parametrize("case", params(c for c in TAKEN if c.seqlen_past + c.seqlen_new <= 64))
def test_one_tile_is_the_same_on_mma_sync(case):
    """Same codes, exact sums and products: not a bit differs."""
    wgmma, mma = first_run(case), run(case, Mode(), device=80)
    assert not simulator().chosen.startswith("attention_wgmma_")
    mma_sync.assert_same_bits(wgmma, mma)


# [head, 64 queries, 128 keys]: where a mask lets some query attend some key.
ATTENDED = np.array(
    [[[1, 0, 0, 0, 1], [0, 0, 1, 0, 0], [0, 1, 1, 0, 0]], [[0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]]], bool
)
ONE_HEAD = ATTENDED[:1]
MASKS_THAT_EXCLUDE = {
    "heads": ATTENDED,
    "queries": ONE_HEAD,
    "float": ATTENDED,
    "keys": ONE_HEAD[:, 2:],
    "columns": ATTENDED[1:].any(axis=2, keepdims=True),
}


def one_key_of_a_query(attended: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bool [head, query, key]: one is true in each of the tiles, whose sizes of 1 stand for all queries or all keys."""
    heads, blocks, tiles = attended.shape
    mask = np.zeros((heads, 150 if blocks > 1 else 1, 600 if tiles > 1 else 1), bool)
    for head, block, tile in np.argwhere(attended):
        query, key = (
            at * size + rng.integers(min(size, length - at * size))
            for at, size, length in ((block, 64, mask.shape[1]), (tile, TILE_N, mask.shape[2]))
        )
        mask[head, query, key] = True
    return mask


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("kind", MASKS_THAT_EXCLUDE)
def test_tiles_that_a_mask_excludes_are_skipped(kind, head_dim):
    """A single element keeps a tile; without any, there is no product. A query that attends one key gets its V."""
    rng, attended = np.random.default_rng(head_dim), MASKS_THAT_EXCLUDE[kind]
    mask = one_key_of_a_query(attended, rng)
    q, k, v = (rng.standard_normal((1, 2, tokens, head_dim)).astype(np.float32) for tokens in (150, 600, 600))
    attributes = case_attributes(AttentionCase("", "", head_dim=head_dim, head_dim_v=head_dim), "int8", "tile")
    given = np.where(mask, np.float32(0.5), np.float32(-np.inf)) if kind == "float" else mask
    simulator().take_statistics()
    result = simulator().attention(q, k, v, attributes, device=90, mask=given)
    products = simulator().take_statistics()["mma"]
    assert simulator().chosen.startswith("attention_wgmma_scored"), simulator().chosen
    assert products == np.broadcast_to(attended, ATTENDED.shape).sum() * wgmma_per_tile(head_dim, TILE_N)
    expected = reference.attention(q, k, v, given, precision="int8", scheme="tile", tile_n=TILE_N)
    empty = np.broadcast_to(~mask.any(axis=2), (2, 150))[None]
    assert not result["y"][empty].any()
    np.testing.assert_array_equal(np.isneginf(result["lse"]), empty)
    # A key alone in its tile has the largest code, whatever its score: there is none that could flip. 2^-20 is sixteen
    # roundings of float32.
    atol = 2.0**-20 if kind != "columns" else np.ptp(v) / 255
    np.testing.assert_allclose(result["y"], expected.y, rtol=0, atol=atol)


WIDE = [c for c in TAKEN if mma_sync.kernel_dim(c) in WIDE_DIMS and c.mask == "none" and c.softcap == 0]


def splits(case: AttentionCase) -> bool:
    """Whether blocks of 64 queries split the keys, whose parts are then rounded on their own."""
    return case.seqlen_past + case.seqlen_new > 7 * TILE_N


def run_wide(case: AttentionCase, mode: Mode, multiprocessors: int = 3, ptx=None) -> dict[str, np.ndarray]:
    """By blocks of 192 queries, on so few SMs that each has several items of the list."""
    arguments = {"attributes": case_attributes(case, "int8", "tile"), "device": 90, **case_arguments(case)}
    result = wide().attention(mode=mode, multiprocessors=multiprocessors, ptx=ptx, **arguments)
    assert "tile 192x128" in wide().chosen, wide().chosen
    return result


@functools.cache
def expected_of_wide(case: AttentionCase) -> dict[str, np.ndarray]:
    """What blocks of 64 queries give; or where these split the keys, an item for each SM."""
    if not splits(case):
        return first_run(case)
    result = run_wide(case, Mode(), multiprocessors=132)
    mma_sync.check_against_reference(case, "tile", result, tile_n=TILE_N)
    return result


@pytest.mark.parametrize("case", params(WIDE))
def test_blocks_of_192_queries_give_the_same_bits(case):
    """Three warpgroups share K and V; what a row computes does not depend on its block."""
    first, second = modes_of(case)
    mma_sync.assert_same_bits(expected_of_wide(case), run_wide(case, first))
    if toolchain.nvcc() is not None:
        ptx = module(mma_sync.kernel_dim(case))
        mma_sync.assert_same_bits(expected_of_wide(case), run_wide(case, second, ptx=ptx))


@pytest.mark.parametrize(
    ("multiprocessors", "heads", "seqlen_q", "tile_m"),
    [
        (132, 89, 192, 192),  # one round of 3, as for 267 blocks of 64
        (132, 88, 192, 64),  # two of 64 do
        (132, 132, 192, 192),
        (132, 133, 192, 64),  # two rounds of three, against four
        (132, 198, 192, 192),  # 6 against 5: a quarter more at most
        (132, 264, 1, 64),  # most of the 192 would not be there
        (114, 77, 192, 192),  # H100 PCIe: 1 round against 3
        (114, 76, 192, 64),
        (78, 53, 192, 192),  # H20
        (78, 52, 192, 64),
        (16, 11, 192, 192),  # a seventh of an H100, by MIG
        (16, 10, 192, 64),
        (1, 1, 192, 192),  # as where there is no GPU, of which the launch tells
    ],
)
def test_blocks_of_192_queries_where_they_fill_the_gpu(multiprocessors, heads, seqlen_q, tile_m):
    """As many rounds of the SMs that there are as of three blocks of 64, or up to a quarter more."""
    simulator().set_gpu(90, multiprocessors)
    sizes = {"batch": 1, "num_heads": heads, "kv_num_heads": heads, "head_dim": 64, "head_dim_v": 64}
    said = simulator().describe(Problem(seqlen_q=seqlen_q, seqlen_new=130, **sizes))
    assert f"tile {tile_m}x128" in said, said


@pytest.mark.slow
@pytest.mark.parametrize("case", params(TAKEN))
def test_every_mode_gives_the_same_bits(case):
    ptx = module(mma_sync.kernel_dim(case)) if toolchain.nvcc() is not None else None
    kernels = [(run, first_run)] + [(run_wide, expected_of_wide)] * (case in WIDE)
    for (kernel, expected), mode in itertools.product(kernels, all_modes(seeds=(1, 2, 3))):
        mma_sync.assert_same_bits(expected(case), kernel(case, mode))
        if ptx is not None:
            mma_sync.assert_same_bits(expected(case), kernel(case, mode, ptx=ptx))


@pytest.mark.parametrize(("name", "arithmetic"), [("d32", "tile"), ("causal", "paper"), ("causal", "half")])
def test_what_stays_on_mma_sync(name, arithmetic):
    """Kernels that wgmma's table lacks: the same bits on either device."""
    case = next(c for c in CASES if c.name == name)
    hopper = run(case, Mode(), device=90, arithmetic=arithmetic)
    assert not simulator().chosen.startswith("attention_wgmma_")
    mma_sync.assert_same_bits(hopper, run(case, Mode(), device=80, arithmetic=arithmetic))


def test_grouped_scales_stay_on_mma_sync():
    case = next(c for c in CASES if c.name == "k_bias")
    attributes, results = case_attributes(case, "int8", "tile", k_granularity="group"), []
    for device in (80, 90):
        results.append(simulator().attention(attributes=attributes, device=device, **case_arguments(case)))
        assert simulator().chosen.startswith("attention_tile_")
    mma_sync.assert_same_bits(*results)


def test_before_hopper_there_is_no_wgmma():
    run(TAKEN[0], Mode(), device=89)
    assert simulator().chosen.startswith("attention_tile_")


@pytest.mark.parametrize("case", params(TAKEN))
def test_interpreter_gives_the_same_bits(case):
    if toolchain.nvcc() is None:
        pytest.skip("nvcc is not installed, so there is no PTX to interpret")
    expected, products = counted_run(case)
    simulator().take_statistics()
    result = run(case, modes_of(case)[0], ptx=module(mma_sync.kernel_dim(case)))
    counted = simulator().take_statistics()
    assert counted["instructions"] > 0
    mma_sync.assert_same_bits(expected, result)
    assert counted["mma"] == products
