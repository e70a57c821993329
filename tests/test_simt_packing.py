"""Query heads that share a K/V head packed into the rows of a tile: every bit as with each head alone.

Alone: the same problem with each K/V head repeated for every query head that it serves, so that nothing is packed.
Statistics, codes and tiles of keys are the same then, so y and lse must be, bit by bit; only K and V are read more
often. The cases that are packed also run against truth, reference, CPU backend and interpreter, in
test_simt_attention.py and test_simt_hopper.py; those that matter to packing alone are here.
"""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
import test_simt_attention as mma_sync
import test_simt_hopper as hopper
from cases import CASES, AttentionCase
from native.simt import toolchain
from native.simt.attention import case_arguments, case_attributes
from native.simt.simulator import Mode
from truth import truth_of

PER_KV_HEAD = ("k", "v", "past_key", "past_value", "k_scale", "v_scale")


def case(name: str, why: str, group: int, kv_num_heads: int = 1, **fields: object) -> AttentionCase:
    """One whose K/V heads serve ``group`` query heads each."""
    return AttentionCase(name, why, num_heads=group * kv_num_heads, kv_num_heads=kv_num_heads, **fields)  # type: ignore[arg-type]


OWN = [
    case("over_a_tile", "more heads than a tile has rows: tiles cut a query", 130, seqlen_q=1, seqlen_new=70,
         head_dim=32, head_dim_v=32),
    case("cut_queries", "a group that divides no tile: tiles cut queries, each of which has its own causal end", 5,
         kv_num_heads=2, seqlen_q=27, seqlen_new=27, seqlen_past=190, causal=True, batch=2),
    case("split", "keys split among blocks, a window that some splits lie outside of", 3, seqlen_q=2, seqlen_new=1100,
         head_dim=32, head_dim_v=32, causal=True, causal_alignment="lower_right", window_left=800),
    case("split_all", "the same without a window, both outputs of several types of row", 8, kv_num_heads=2, seqlen_q=1,
         seqlen_new=1, seqlen_past=700, causal=True, dtype="float16", layout="BSHD"),
    case("mask_per_head", "a mask with strides of heads and of queries", 3, kv_num_heads=2, seqlen_q=6, seqlen_new=200,
         mask="float_inf", mask_dims="1HQK"),
    case("mask_per_query", "a mask without heads", 4, seqlen_q=6, seqlen_new=140, mask="bool_rows", mask_dims="B1QK",
         batch=2),
    case("mask_d256", "half: terms of the mask in the stage that is fetched next, 64 rows", 6, seqlen_q=12,
         seqlen_new=200, head_dim=256, head_dim_v=256, mask="float_inf", mask_dims="HQK"),
    case("scale_per_head", "static scales per head, a softcap that sees each row's own shift", 4, kv_num_heads=2,
         seqlen_q=5, seqlen_new=130, static_scales="head", softcap=3.0),
    case("shift_of_each_row", "a mean of K that the lse has to get back", 4, kv_num_heads=2, seqlen_q=5,
         seqlen_new=130, data="k_bias"),
    case("padded", "lengths of each batch entry, which set the causal end", 3, batch=3, nonpad=(140, 77, 2), seqlen_q=3,
         seqlen_new=140, causal=True),
    case("not_finite", "NaN for the rows of one head, of one key, of one channel", 3, kv_num_heads=2, seqlen_q=8,
         seqlen_new=70, data="nonfinite", causal=True, mask="bool"),
]  # fmt: skip
PACKED = [*OWN, *(c for c in CASES if c.num_heads > c.kv_num_heads)]


def alone(arguments: dict, group: int) -> dict:
    """The arguments with every K/V head repeated for each query head."""

    def repeated(name: str, x: np.ndarray) -> np.ndarray:
        axis = 0 if name.endswith("scale") else 1
        return x if x.shape[axis] == 1 and axis == 0 else np.repeat(x, group, axis)

    return {name: repeated(name, x) if name in PER_KV_HEAD else x for name, x in arguments.items()}


def params():
    """Not the paper's scheme where other rows' causal ends bring a tile that a row does not attend: it rounds there."""
    both = [(c, a) for c in PACKED for a in mma_sync.ARITHMETICS]
    return [pytest.param(c, a, id=f"{c.name}-{a}") for c, a in both if (c.name, a) != ("llm", "paper")]


def canonical(result: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With one NaN for all: which of them comes out, nothing defines."""
    return {name: np.where(np.isnan(x), x.dtype.type(np.nan), x) for name, x in result.items()}


def check_same_bits(case: AttentionCase, arithmetic: str, device: int, simulator, module) -> None:
    """In one mode of the host SIMT and, where there is nvcc, in the interpreter."""
    precision, scheme, _ = mma_sync.ARITHMETICS[arithmetic]
    common = {"attributes": case_attributes(case, precision, scheme), "device": device}
    arguments, group = case_arguments(case), case.num_heads // case.kv_num_heads
    expected = simulator.attention(**common, **alone(arguments, group))
    assert "packed" not in simulator.chosen
    splits = "split" in simulator.chosen
    mode = mma_sync.MODES[PACKED.index(case) * 5 % len(mma_sync.MODES)]
    for ptx in [None] if toolchain.nvcc() is None else [None, module(mma_sync.kernel_dim(case))]:
        result = simulator.attention(**common, **arguments, mode=mode, ptx=ptx)
        assert f"{group} heads packed" in simulator.chosen, simulator.chosen
        assert ("split" in simulator.chosen) == splits
        mma_sync.assert_same_bits(canonical(expected), canonical(result))


@pytest.mark.parametrize(("case", "arithmetic"), params())
def test_the_bits_of_each_head_alone(case, arithmetic):
    check_same_bits(case, arithmetic, 80, mma_sync.simulator(), mma_sync.module)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in OWN if mma_sync.kernel_dim(c) > 32])
def test_the_bits_of_each_head_alone_on_hopper(case):
    check_same_bits(case, "tile", 90, hopper.simulator(), hopper.module)
    assert hopper.simulator().chosen.startswith("attention_wgmma")


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in OWN if c.dtype == "float32"])
def test_against_truth(case):
    result = mma_sync.run(case, "tile", Mode())
    truth_of(case, mma_sync.TILE, mma_sync.TILE_N).check(result["y"].astype(np.float64), result["lse"])


@pytest.mark.parametrize(
    ("group", "seqlen_q", "packed"),
    [
        (8, 1, True),  # one tile instead of eight
        (4, 32, True),  # exactly one
        (4, 128, False),  # four either way
        (2, 127, False),  # two either way
        (4, 129, True),  # 5 instead of 8
        (1, 1, False),
    ],
)
def test_packed_where_it_saves_tiles(group, seqlen_q, packed):
    """Of 128 rows."""
    mma_sync.run(case("", "", group, seqlen_q=seqlen_q, head_dim=32, head_dim_v=32), "tile", Mode())
    assert ("packed" in mma_sync.simulator().chosen) == packed


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 6, 7, 12, 127, 128, 129, 1000, 46340, 46341, 65535])
def test_rows_are_divided_exactly(heads):
    """Up to the last row for which the map says that it is."""
    found = (ctypes.c_int * 2)()
    row_map = mma_sync.simulator().library.row_map
    row_map.restype = ctypes.c_bool
    last = 2**31 // heads - 1
    multiples = [heads * n for n in (1, last // heads // 2, last // heads)]
    for row in {0, last, *(m + d for m in multiples for d in (-1, 0, 1) if m + d <= last)}:
        assert row_map(heads, row, found)
        assert tuple(found) == divmod(row, heads)
    assert heads == 1 or not row_map(heads, last + 1, found)


def test_keys_and_values_are_read_once():
    """Decoding with eight heads per K/V head: an eighth of the copies to shared memory, an eighth of the MMAs."""
    decode = replace(PACKED[1], seqlen_q=1, seqlen_new=300, num_heads=16, seqlen_past=0)
    simulator = mma_sync.simulator()
    attributes, counted = case_attributes(decode, "int8", "tile"), []
    for arguments in (case_arguments(decode), alone(case_arguments(decode), 8)):
        simulator.take_statistics()
        simulator.attention(attributes=attributes, **arguments)
        counted.append(simulator.take_statistics())
    assert [8 * counted[0][of] == counted[1][of] for of in ("async_copies", "mma")] == [True, True], counted
