"""Bugs seeded into the wgmma kernel: the simulators must find every one in every mode, unless the bug says otherwise.

A bug is a replacement in the kernel's text; a text that is no longer there fails the tests: the bug must then follow
the kernel. Found means an error or another result than the kernel's.
"""

import functools
from dataclasses import replace

import numpy as np
import pytest
from cases import CASES
from native.simt import hopper_bugs, toolchain
from native.simt.attention import AttentionSimulator, build_ptx, case_arguments, case_attributes
from native.simt.hopper_bugs import KERNEL, BuggyHopper
from native.simt.simulator import DEFAULT_MODE, Mode, SimulatorError, all_modes

SINK = next(c for c in CASES if c.name == "sink")
# One warpgroup: five tiles, so that both stages come round. Three: seven for four stages; from eight on keys are split.
CASE_OF = {1: SINK, 3: replace(SINK, seqlen_q=192, seqlen_new=7 * 128)}
LARGE = replace(SINK, head_dim=128, head_dim_v=128)
MODES = all_modes()

WAIT_S, WAIT_PV = "    ptx::wgmma_wait<0>(s[0]);\n", "      ptx::wgmma_wait<0>(acc);\n"
COMMIT_S, COMMIT_PV = "    ptx::wgmma_commit();\n", "      ptx::wgmma_commit();\n"
FENCE_S, FENCE_PV = "    ptx::wgmma_fence();\n", "      ptx::wgmma_fence();\n"
RELEASE_K = "    release(stage.empty_k());\n"
RELEASE_V = "      if (part == kDim / Shape::kPart - 1) release(stage.empty_v());\n"
SCALE = "    scale_scores</*kBiased=*/false>(s, stage.k_scales() + 16 * t);\n"
PARITY = "parity(i / Shape::kStages & 1)"
ARRIVE = "    ptx::sync_warp();\n    if (lane == 0) ptx::mbarrier_arrive(barrier);\n"
WAIT = "ptx::mbarrier_wait(stage.{}(), stage.parity);\n"
REFILL = "ptx::mbarrier_wait(refilled.empty_{0}(), refilled.parity);\n"
DECLARE_S, DECLARE_PV = "    int32_t s[1][kKeys / 8][4];\n", "      int32_t acc[Shape::kPart / 8][4];\n"

BUGS = {
    # waiting for data
    "k_not_waited_for": [(WAIT.format("full_k"), "\n")],
    "v_not_waited_for": [(WAIT.format("full_v"), "\n")],
    "waits_for_the_other_phase": [(PARITY, "parity((i / Shape::kStages & 1) ^ 1)")],
    "phase_never_turns": [(PARITY, "parity(0)")],
    # giving stages back
    "k_released_before_its_products": [(RELEASE_K, ""), (WAIT_S, RELEASE_K + WAIT_S)],
    "k_released_before_its_scales": [(RELEASE_K, ""), (SCALE, RELEASE_K + SCALE)],
    "v_released_before_its_products": [(WAIT_PV + RELEASE_V, RELEASE_V + WAIT_PV)],
    "k_stage_taken_without_waiting": [(REFILL.format("k"), "\n")],
    "v_stage_taken_without_waiting": [(REFILL.format("v"), "\n")],
    "one_warp_frees_k_for_all": [("(empty_k(), Shape::kWarps)", "(empty_k(), 1)")],
    "one_warp_frees_v_for_all": [("(empty_v(), Shape::kWarps)", "(empty_v(), 1)")],
    "lane_0_releases_for_those_behind": [(ARRIVE, ARRIVE.split("\n", 1)[1])],
    # wgmma
    "s_read_in_flight": [(WAIT_S, "")],
    "pv_read_in_flight": [(WAIT_PV, "")],
    "s_wait_off_by_one": [(WAIT_S, WAIT_S.replace("<0>", "<1>"))],
    "pv_wait_off_by_one": [(WAIT_PV, WAIT_PV.replace("<0>", "<1>"))],
    "s_not_committed": [(COMMIT_S + WAIT_S, WAIT_S)],
    "pv_not_committed": [(COMMIT_PV + WAIT_PV, WAIT_PV)],
    "s_without_wgmma_fence": [(DECLARE_S + FENCE_S, DECLARE_S)],
    "pv_without_wgmma_fence": [(DECLARE_PV + FENCE_PV, DECLARE_PV)],
    # proxies and barriers
    "q_without_proxy_fence": [("  ptx::fence_async_proxy();\n", "")],
    "no_barrier_after_q": [("  ptx::sync_block();  // Q, the limits", "  // Q, the limits")],
    "barriers_unknown_to_the_copies": [("    ptx::fence_mbarrier_init();\n", "")],
    "fewer_bytes_announced": [("Shape::kKeys * (kDim + 4)", "Shape::kKeys * kDim")],
    # places
    "v_halves_swapped": [("c / 2 * kTileN * kDim", "(1 - c / 2) * kTileN * kDim")],
    "v_columns_swapped": [("kTileN, c % 2)", "kTileN, 1 - c % 2)")],
    "row_groups_too_close": [("256 * column, 8 * kRowBytes", "256 * column, 4 * kRowBytes")],
}

# Whether lanes are behind lane 0 when it arrives is the schedule's choice; the greedy last thread never is.
MISSED_BY = {"lane_0_releases_for_those_behind": ("greedy_last",)}


@functools.cache
def library(warpgroups: int) -> BuggyHopper:
    return BuggyHopper(hopper_bugs.build(BUGS, warpgroups))


@functools.cache
def expected(warpgroups: int) -> np.ndarray:
    return library(warpgroups).run(0, CASE_OF[warpgroups], DEFAULT_MODE)


def found(name: str, warpgroups: int, mode: Mode) -> bool:
    try:
        result = library(warpgroups).run(1 + list(BUGS).index(name), CASE_OF[warpgroups], mode)
    except SimulatorError:
        return True
    return not np.array_equal(result.view(np.uint32), expected(warpgroups).view(np.uint32))


@pytest.mark.parametrize("warpgroups", CASE_OF)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_without_a_bug(mode, warpgroups):
    np.testing.assert_array_equal(library(warpgroups).run(0, CASE_OF[warpgroups], mode), expected(warpgroups))


@pytest.mark.parametrize("warpgroups", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", BUGS)
def test_found_in_every_mode(name, warpgroups):
    modes = [mode for mode in MODES if mode.schedule not in MISSED_BY.get(name, ())]
    assert not [str(mode) for mode in modes if not found(name, warpgroups, mode)]


PTX = "cuda/ptx_sm90.cuh"
IN_REGISTERS = 'INTFA_WGMMA_REGISTERS(wgmma_u8s8, "u8.s8", 128, 64, {}, 66, 67, 68, 69)'
INTERPRETED = {  # each is a compilation by nvcc, so these are samples; the first two are in what the host does not run
    "a_registers_swapped": {PTX: [(IN_REGISTERS.format("64, 65"), IN_REGISTERS.format("65, 64"))]},
    "a_and_b_swapped": {PTX: [('"},%64,%65,p;}"', '"},%65,%64,p;}"')]},
    **{
        name: {KERNEL: BUGS[name]}
        for name in ("k_released_before_its_products", "pv_read_in_flight", "s_not_committed", "q_without_proxy_fence")
    },
}


def buggy_ptx(name: str):
    tree = toolchain.patched_tree(f"hopper-{name}", INTERPRETED.get(name, {}))
    source = tree / "cuda" / "one.cu"
    source.write_text('#include "cuda/instances_sm90.cuh"\nINTFA_WGMMA(intfa_attention_wgmma_d128, false, 1, 128)\n')
    kernel = toolchain.ptx(source, f"hopper-{name}", plugin=tree, arch="90a")
    joined = toolchain.BUILD / f"hopper-{name}.ptx"
    joined.write_text(build_ptx(128).read_text() + kernel.read_text())
    return simulator().load_ptx(joined)


@functools.cache
def simulator() -> AttentionSimulator:
    return AttentionSimulator()


def interpret(name: str, mode: Mode) -> np.ndarray:
    arguments = {"attributes": case_attributes(LARGE, "int8", "tile"), "device": 90, **case_arguments(LARGE)}
    return simulator().attention(mode=mode, ptx=module(name), **arguments)["y"]


@functools.cache
def module(name: str):
    return buggy_ptx(name)


@pytest.mark.parametrize("name", INTERPRETED)
def test_interpreter_finds(name):
    if toolchain.nvcc() is None:
        pytest.skip("nvcc is not installed, so there is no PTX to interpret")
    right = interpret("", DEFAULT_MODE)
    for mode in MODES:
        try:
            result = interpret(name, mode)
        except SimulatorError:
            continue
        assert not np.array_equal(result.view(np.uint32), right.view(np.uint32)), f"not found: {mode}"
