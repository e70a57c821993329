"""Bugs seeded into the wgmma kernels: the simulators must find every one in every mode, unless the bug says otherwise.

A bug is a replacement in the kernel's text; a text that is no longer there fails the tests: the bug must then follow
the kernel. Found means an error or another result than the kernel's.
"""

import functools
from dataclasses import replace

import numpy as np
import pytest
from cases import CASES
from native.simt import hopper_bugs, toolchain
from native.simt.attention import AttentionSimulator, build_hopper_ptx, build_wide, case_arguments, case_attributes
from native.simt.hopper_bugs import OWN, SHARED, BuggyHopper
from native.simt.simulator import DEFAULT_MODE, Mode, SimulatorError, all_modes

SINK = next(c for c in CASES if c.name == "sink")
CASE_OF = {
    "v1": SINK,  # five tiles, so that both stages come round
    # Of five tiles a block attends one or two: first, last or between, and one of them by its last warp alone.
    "scored": replace(SINK, num_heads=1, kv_num_heads=1, seqlen_q=520, mask="bool_blocks", mask_dims="QK"),
    # Six items for two blocks: three of 8 queries, which leave two warpgroups without any, then three in which causal
    # leaves the warpgroups different numbers of tiles, two of these in one block. 15 tiles per block, three stages.
    "persistent": replace(
        SINK, num_heads=3, kv_num_heads=3, seqlen_q=200, seqlen_new=640, causal=True, causal_alignment="lower_right"
    ),
}
MODES = all_modes()
# One visibility per schedule, for the tests that are always run.
FEW_MODES = [Mode("round_robin", "late"), Mode("random", "random"), Mode("greedy_first", "early"), Mode("greedy_last")]

WAIT_S, WAIT_PV = "    ptx::wgmma_wait<0>(s[0]);\n", "      ptx::wgmma_wait<0>(acc);\n"
COMMIT_S, COMMIT_PV = "    ptx::wgmma_commit();\n", "      ptx::wgmma_commit();\n"
FENCE_S, FENCE_PV = "    ptx::wgmma_fence();\n", "      ptx::wgmma_fence();\n"
RELEASE_K = "    release(stage.empty_k(), lane);\n"
RELEASE_V = "      if (part == kDim / Shape::kPart - 1) release(stage.empty_v(), lane);\n"
SCALE = "    scale_scores</*kBiased=*/false>(s, stage.k_scales() + 16 * (lane & 3));\n"
PARITY = "parity(i / Shape::kStages & 1)"
ARRIVE = "  ptx::sync_warp();\n  if (lane == 0) ptx::mbarrier_arrive(barrier);\n"
WAIT = "\n    ptx::mbarrier_wait(stage.{}(), stage.parity);\n"
QUERIES = "    const uint64_t queries = Tile::operand(q_tile()), keys = Tile::operand(stage.tile);\n"
DECLARE_PV = "      int32_t acc[Shape::kPart / 8][4];\n"

SHARED_BUGS = {
    # waiting for data
    "k_not_waited_for": [(WAIT.format("full_k"), "\n")],
    "v_not_waited_for": [(WAIT.format("full_v"), "\n")],
    "waits_for_the_other_phase": [(PARITY, "parity((i / Shape::kStages & 1) ^ 1)")],
    "phase_never_turns": [(PARITY, "parity(0)")],
    # giving stages back
    "k_released_before_its_products": [(RELEASE_K, ""), (WAIT_S, RELEASE_K + WAIT_S)],
    "k_released_before_its_scales": [(RELEASE_K, ""), (SCALE, RELEASE_K + SCALE)],
    "v_released_before_its_products": [(WAIT_PV + RELEASE_V, RELEASE_V + WAIT_PV)],
    "one_warp_frees_k_for_all": [("(empty_k(), Shape::kWarps)", "(empty_k(), 1)")],
    "one_warp_frees_v_for_all": [("(empty_v(), Shape::kWarps)", "(empty_v(), 1)")],
    "one_arrival_too_many_expected": [("(empty_k(), Shape::kWarps)", "(empty_k(), Shape::kWarps + 1)")],
    "lane_0_releases_for_those_behind": [(ARRIVE, ARRIVE.split("\n", 1)[1])],
    # wgmma
    "s_read_in_flight": [(WAIT_S, "")],
    "pv_read_in_flight": [(WAIT_PV, "")],
    "s_wait_off_by_one": [(WAIT_S, WAIT_S.replace("<0>", "<1>"))],
    "pv_wait_off_by_one": [(WAIT_PV, WAIT_PV.replace("<0>", "<1>"))],
    "s_not_committed": [(COMMIT_S + WAIT_S, WAIT_S)],
    "pv_not_committed": [(COMMIT_PV + WAIT_PV, WAIT_PV)],
    "s_without_wgmma_fence": [(QUERIES + FENCE_S, QUERIES)],
    "pv_without_wgmma_fence": [(DECLARE_PV + FENCE_PV, DECLARE_PV)],
    # proxies and barriers
    "q_without_proxy_fence": [("    ptx::fence_async_proxy();\n", "")],
    "barriers_unknown_to_the_copies": [("  ptx::fence_mbarrier_init();\n", "")],
    "fewer_bytes_announced": [("Shape::kKeys * (kDim + 4)", "Shape::kKeys * kDim")],
    # places
    "v_halves_swapped": [("c / 2 * kTileN * kDim", "(1 - c / 2) * kTileN * kDim")],
    "v_columns_swapped": [("256 * (c % 2)", "256 * (1 - c % 2)")],
    "row_groups_too_close": [("tile, 8 * kRowBytes", "tile, 4 * kRowBytes")],
}
REFILL = "ptx::mbarrier_wait(stage.empty_{}(), stage.parity);\n"
LOAD_WAIT = "ptx::mbarrier_wait(stage.empty_{}(), stage.parity ^ 1);"
SYNC_QUERIES = "    ptx::sync_warpgroup(1 + warpgroup);\n    rows.begin();\n"
GIVE, TAKE = "ptx::give_registers<Shape::kLoadingRegisters>();", "ptx::take_registers<Shape::kRegisters>();"
SKIPPED_K = "  ptx::mbarrier_wait(stage.full_k(), stage.parity);\n  release(stage.empty_k(), lane);\n  ptx"
SKIPPED_V = "  ptx::mbarrier_wait(stage.full_v(), stage.parity);\n  release(stage.empty_v(), lane);\n}"
VOTE = "ptx::warpgroup_any(1, attended)"
ITEM = "return turn * ctas + (turn & 1 ? ctas - 1 - cta : cta);"
BUGS = {
    "v1": {
        **SHARED_BUGS,
        "k_stage_taken_without_waiting": [(REFILL.format("k"), "\n")],
        "v_stage_taken_without_waiting": [(REFILL.format("v"), "\n")],
        "no_barrier_after_q": [("  ptx::sync_block();  // Q, the limits", "  // Q, the limits")],
    },
    "scored": {
        "nothing_skipped": [(VOTE, "ptx::warpgroup_any(1, true)")],
        "each_warp_skips_for_itself": [(VOTE, "ptx::warp_any(attended)")],
        "vote_of_three_warps": [(VOTE, VOTE.replace("attended", "attended && ptx::thread_index() < 96"))],
        "warps_vote_apart": [(VOTE, VOTE.replace("1", "1 + (ptx::thread_index() >> 5)"))],
        "vote_meets_a_plain_barrier": [
            (VOTE, f"(ptx::thread_index() < 32 ? (ptx::sync_warpgroup(1), attended) : {VOTE})")
        ],
        "skipped_stage_not_given_back": [("        give_back(stage, lane);\n", "")],
        "skipped_k_not_waited_for": [(SKIPPED_K, SKIPPED_K.split("\n", 1)[1])],
        "skipped_v_not_waited_for": [(SKIPPED_V, SKIPPED_V.split("\n", 1)[1])],
        "skipped_k_not_refilled": [("        k_used();\n", "")],
        "skipped_v_not_refilled": [("        v_used();\n", "")],
    },
    "persistent": {
        **SHARED_BUGS,
        "k_stage_taken_without_waiting": [(LOAD_WAIT.format("k"), "")],
        "v_stage_taken_without_waiting": [(LOAD_WAIT.format("v"), "")],
        "loader_waits_for_the_next_phase": [(LOAD_WAIT.format("k"), REFILL.format("k"))],
        "no_barrier_after_q": [(SYNC_QUERIES, "    rows.begin();\n")],
        "q_overwritten_under_products": [("    ptx::sync_warpgroup(1 + warpgroup);  // all", "    // all")],
        "barriers_used_before_they_exist": [("  ptx::sync_block();\n", "")],
        "warpgroups_share_a_barrier": [
            (SYNC_QUERIES, SYNC_QUERIES.replace("1 + warpgroup", "1")),
            ("    ptx::sync_warpgroup(1 + warpgroup);  // all", "    ptx::sync_warpgroup(1);  // all"),
        ],
        # setmaxnreg
        "registers_not_given": [(GIVE, "")],
        "too_many_registers_taken": [(TAKE, "ptx::take_registers<168>();")],
        "registers_given_by_one_warp": [(GIVE, "if (threadIdx.x < 32 * Shape::kWarps + 32) " + GIVE)],
        "no_multiple_of_8": [(GIVE, "ptx::give_registers<28>();")],
        "registers_taken_that_it_has": [(TAKE, "ptx::take_registers<104>();")],
        # the list of work
        "item_skipped": [(ITEM, ITEM.replace("ctas - 1", "ctas - 2"))],
        "last_item_skipped": [("params.rows.groups * params.batch;", "params.rows.groups * params.batch - 1;")],
        "items_done_twice": [(ITEM, "turn /= 2; " + ITEM)],
        "all_blocks_do_the_same": [("cta = ptx::cta_x()", "cta = 0")],
        "loader_skips_an_item": [("; ++turn) {", "; turn += 2) {")],
        # which tiles
        "loader_stops_a_tile_early": [("tile < tiles.last;", "tile < tiles.last - 1;")],
        "loader_brings_a_tile_too_many": [("tile < tiles.last;", "tile <= tiles.last;")],
        "causal_end_of_the_first_query": [("limits, first_row, 64)", "limits, first_row, 1)")],
        "causal_from_the_warps_query": [("work.warp_row - (warp & 3) * Shape::kWarpRows", "work.warp_row")],
        "causal_mask_missing": [("limits(params).end(query)", "limits(params).end(query + 63)")],
        "tiles_not_handed_on": [("    hand_on(rows.last_visit(), visits);\n", "")],
        "visits_not_counted_on": [("    visits = ptx::ld_shared_s32(rows.own_notes() + 4);\n", "")],
    },
}

# Whether lanes are behind lane 0 when it arrives is the schedule's choice; the greedy last thread never is.
MISSED_BY = {"lane_0_releases_for_those_behind": ("greedy_last",)}


@functools.cache
def library(kernel: str) -> BuggyHopper:
    return BuggyHopper(hopper_bugs.build(BUGS[kernel], kernel))


@functools.cache
def expected(kernel: str) -> tuple[np.ndarray, int]:
    return library(kernel).run(0, CASE_OF[kernel], DEFAULT_MODE)


def found(name: str, kernel: str, mode: Mode) -> bool:
    """By an error, another result, or another number of products."""
    try:
        y, products = library(kernel).run(1 + list(BUGS[kernel]).index(name), CASE_OF[kernel], mode)
    except SimulatorError:
        return True
    right, expected_products = expected(kernel)
    return products != expected_products or not np.array_equal(y.view(np.uint32), right.view(np.uint32))


@pytest.mark.parametrize("kernel", CASE_OF)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_without_a_bug(mode, kernel):
    y, products = library(kernel).run(0, CASE_OF[kernel], mode)
    np.testing.assert_array_equal(y, expected(kernel)[0])
    assert products == expected(kernel)[1]


@pytest.mark.parametrize("modes", [FEW_MODES, pytest.param(MODES, marks=pytest.mark.slow)], ids=["few", "all"])
@pytest.mark.parametrize(("kernel", "name"), [(kernel, name) for kernel in BUGS for name in BUGS[kernel]])
def test_found_in_every_mode(kernel, name, modes):
    asked = [mode for mode in modes if mode.schedule not in MISSED_BY.get(name, ())]
    assert not [str(mode) for mode in asked if not found(name, kernel, mode)]


@pytest.mark.parametrize(
    "changes",
    [{}, {"causal": True}, {"softcap": 3.0}, {"mask_dims": "HQK", "num_heads": 3}, {"mask": "bool_rows"}],
    ids=str,
)
def test_skipping_changes_no_bits(changes):
    """A tile that no query of a block attends adds nothing where it is computed."""
    case = replace(CASE_OF["scored"], **changes)
    skipped, products = library("scored").run(0, case, DEFAULT_MODE)
    computed, all_products = library("scored").run(
        1 + list(BUGS["scored"]).index("nothing_skipped"), case, DEFAULT_MODE
    )
    assert products <= all_products
    assert (products < all_products) == (case.mask == "bool_blocks")
    np.testing.assert_array_equal(skipped.view(np.uint32), computed.view(np.uint32))


PTX = "cuda/ptx_sm90.cuh"
IN_REGISTERS = 'INTFA_WGMMA_REGISTERS(wgmma_u8s8, "u8.s8", 128, 64, {}, 66, 67, 68, 69)'
# Each is a compilation by nvcc, so these are samples; the first two are in what the host does not run.
INTERPRETED = {
    ("v1", "a_registers_swapped"): {PTX: [(IN_REGISTERS.format("64, 65"), IN_REGISTERS.format("65, 64"))]},
    ("v1", "a_and_b_swapped"): {PTX: [('"},%64,%65,p;}"', '"},%65,%64,p;}"')]},
    **{
        ("v1", name): {SHARED: SHARED_BUGS[name]}
        for name in ("k_released_before_its_products", "pv_read_in_flight", "s_not_committed", "q_without_proxy_fence")
    },
    **{
        ("scored", name): {SHARED: BUGS["scored"][name]}
        for name in ("each_warp_skips_for_itself", "vote_meets_a_plain_barrier")
    },
    **{
        ("persistent", name): {OWN["persistent"]: BUGS["persistent"][name]}
        for name in (
            "registers_not_given",
            "q_overwritten_under_products",
            "k_stage_taken_without_waiting",
            "warpgroups_share_a_barrier",
        )
    },
}
DEFINED = {
    "v1": "INTFA_WGMMA(intfa_attention_wgmma_d128, false, 128)",
    "scored": "INTFA_WGMMA(intfa_attention_wgmma_scored_d128, true, 128)",
    "persistent": "INTFA_PERSISTENT(intfa_attention_wgmma192_d128, 128)",
}


@functools.cache
def simulator(kernel: str) -> AttentionSimulator:
    return AttentionSimulator(build_wide() if kernel == "persistent" else None)


@functools.cache
def module(kernel: str, name: str):
    tree = toolchain.patched_tree(f"hopper-{kernel}-{name}", INTERPRETED.get((kernel, name), {}))
    source = tree / "cuda" / "one.cu"
    source.write_text(f'#include "cuda/instances_sm90.cuh"\n{DEFINED[kernel]}\n')
    built = toolchain.ptx(source, f"hopper-{kernel}-{name}", plugin=tree, arch="90a")
    return simulator(kernel).load_ptx(build_hopper_ptx(128, built, f"hopper-{kernel}-{name}-joined"))


def interpret(kernel: str, name: str, mode: Mode) -> np.ndarray:
    case = replace(CASE_OF[kernel], head_dim=128, head_dim_v=128)
    arguments = {"attributes": case_attributes(case, "int8", "tile"), "device": 90, **case_arguments(case)}
    arguments["multiprocessors"] = 3  # of which each has several items of the list
    return simulator(kernel).attention(mode=mode, ptx=module(kernel, name), **arguments)["y"]


@pytest.mark.parametrize(("kernel", "name"), INTERPRETED)
def test_interpreter_finds(kernel, name):
    if toolchain.nvcc() is None:
        pytest.skip("nvcc is not installed, so there is no PTX to interpret")
    right = interpret(kernel, "", DEFAULT_MODE)
    for mode in FEW_MODES:
        try:
            result = interpret(kernel, name, mode)
        except SimulatorError:
            continue
        assert not np.array_equal(result.view(np.uint32), right.view(np.uint32)), f"not found: {mode}"
