"""The simulators find what they are there for: each seeded bug must fail, and the unpatched kernel pass in every mode.

A bug that needs a particular schedule or a late copy to show is listed with the modes that must find it, so that a
simulator that loses one of them fails here and not in silence.
"""

import numpy as np
import pytest
from native.simt import toolchain
from native.simt.simulator import Mode, Simulator, SimulatorError, all_modes, pointer

M, N, K = 64, 64, 448


def build(tree=None) -> Simulator:
    """The pipeline kernel and its driver, from a patched tree or the project's."""
    if tree is None:
        return Simulator(toolchain.host_library([toolchain.SIMT / "pipeline_driver.cc"], "libpipeline"))
    driver = tree / "simt" / "pipeline_driver.cc"
    return Simulator(toolchain.host_library([driver], f"libpipeline-{tree.name}", plugin=tree))


def build_ptx(simulator: Simulator, tree=None):
    if toolchain.nvcc() is None:
        pytest.skip("nvcc is not installed, so there is no PTX to interpret")
    if tree is None:
        return simulator.load_ptx(toolchain.ptx(toolchain.SIMT / "pipeline.cu", "pipeline"))
    return simulator.load_ptx(toolchain.ptx(tree / "simt" / "pipeline.cu", f"pipeline-{tree.name}", plugin=tree))


@pytest.fixture(scope="module")
def pipeline() -> Simulator:
    return build()


@pytest.fixture(scope="module")
def pipeline_ptx(pipeline):
    return build_ptx(pipeline)


def product(simulator: Simulator, mode: Mode, module=None) -> bool:
    """Whether the kernel's product is numpy's."""
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-128, 127, (rows, K), endpoint=True, dtype=np.int8) for rows in (M, N))
    c = np.zeros((M, N), np.int32)
    if module is None:
        simulator.use_host()
    else:
        simulator.use_ptx(module, [a, b, c])
    simulator.configure(mode)
    simulator.call("pipeline_run", pointer(a), pointer(b), pointer(c), M, N, K)
    return np.array_equal(c, a.astype(np.int32) @ b.astype(np.int32).T)


def found(simulator: Simulator, mode: Mode, module=None) -> bool:
    try:
        return not product(simulator, mode, module)
    except SimulatorError:
        return True


@pytest.mark.parametrize("mode", all_modes(seeds=(1, 2, 3)), ids=str)
def test_pipeline_on_host(pipeline, mode):
    pipeline.take_statistics()
    assert product(pipeline, mode)
    counts = pipeline.take_statistics()
    blocks, warps, tiles = (M // 32) * (N // 32), 2, K // 64
    assert counts["mma"] == blocks * warps * tiles * 8
    assert counts["ldmatrix"] == blocks * warps * tiles * 6
    assert counts["async_copies"] == blocks * tiles * 2 * 128
    assert counts["barriers"] == blocks * tiles * 2
    assert counts["bank_conflicts"] == 0


@pytest.mark.parametrize("mode", all_modes(), ids=str)
def test_pipeline_as_ptx(pipeline, pipeline_ptx, mode):
    pipeline.take_statistics()
    assert product(pipeline, mode, pipeline_ptx)
    counts = pipeline.take_statistics()
    assert counts["mma"] == (M // 32) * (N // 32) * 2 * (K // 64) * 8
    assert counts["bank_conflicts"] == 0


@pytest.mark.parametrize(
    ("kernel", "on_host", "as_ptx"),
    [
        ("divergent_shuffle", "divergence: a lane arrives in shfl", "member mask differs from the converged lanes"),
        ("divergent_barrier", "divergence: lanes of one warp arrive at the barrier", "barrier in divergent code"),
        ("missing_warp_at_barrier", "deadlock", "deadlock"),
        ("exit_before_copy", "exits with cp.async in flight", "exits with cp.async in flight"),
    ],
)
def test_defect_is_named(pipeline, pipeline_ptx, kernel, on_host, as_ptx):
    data = np.arange(64, dtype=np.uint32)
    pipeline.configure(Mode())
    pipeline.use_host()
    with pytest.raises(SimulatorError, match=on_host) as caught:
        pipeline.call("defect_run", kernel.encode(), pointer(data.copy()))
    assert "pipeline.cuh:" in str(caught.value) or "scheduler.cc" in str(caught.value)
    pipeline.use_ptx(pipeline_ptx, [data])
    with pytest.raises(SimulatorError, match=as_ptx):
        pipeline.call("defect_run", kernel.encode(), pointer(data))


def test_bank_conflicts_are_counted(pipeline, pipeline_ptx):
    """Per warp, four matrices whose eight rows all start in bank 0: seven extra passes each."""
    data = np.arange(64, dtype=np.uint32)
    for module in (None, pipeline_ptx):
        pipeline.use_host() if module is None else pipeline.use_ptx(module, [data])
        pipeline.take_statistics()
        pipeline.call("defect_run", b"bank_conflict", pointer(data))
        assert pipeline.take_statistics()["bank_conflicts"] == 2 * 4 * 7


KERNEL = "simt/pipeline.cuh"
WAIT = "    ptx::cp_async_wait<1>();\n"
VISIBLE = "    ptx::sync_block();  // the tile is visible to all\n"
REUSE = "    ptx::sync_block();  // everyone has read the stage that the next fetch overwrites\n"
MMA_ASM = "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10"

# name -> (patches, modes in which the host SIMT must see it; None: it cannot). The PTX interpreter must see every one
# in every mode: its race check does not depend on the schedule, and the others are wrong results.
LATE, RACY = [Mode(copies="late")], [Mode(s, c) for s in ("greedy_first", "greedy_last") for c in ("early", "late")]
MUTATIONS = {
    "wait-off-by-one": ({KERNEL: [(WAIT, WAIT.replace("1", "2"))]}, LATE),
    "no-barrier-after-wait": ({KERNEL: [(VISIBLE, "")]}, RACY),
    "no-barrier-before-reuse": ({KERNEL: [(REUSE, "")]}, RACY),
    "wrong-swizzle": ({KERNEL: [("(i / 4, i % 4), rows", "(i / 4, (i % 4) ^ (i >> 5 & 1)), rows")]}, LATE),
    "wrong-stage": ({KERNEL: [("smem + uint32_t(tile % 2 * 2 * kTileBytes);\n    for", "smem;\n    for")]}, LATE),
    "asm-operands-swapped": ({"cuda/ptx.cuh": [(MMA_ASM, MMA_ASM.replace("{%8,%9}", "{%9,%8}"))]}, None),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_host_finds_seeded_bug(name):
    patches, modes = MUTATIONS[name]
    simulator = build(toolchain.patched_tree(name, patches))
    if modes is None:
        assert not any(found(simulator, mode) for mode in all_modes()), "a host twin sees the instruction's operands"
    else:
        assert all(found(simulator, mode) for mode in modes), [str(m) for m in modes if not found(simulator, m)]


@pytest.mark.parametrize("name", MUTATIONS)
def test_interpreter_finds_seeded_bug(name, pipeline):
    patches, _ = MUTATIONS[name]
    module = build_ptx(pipeline, toolchain.patched_tree(f"{name}-ptx", patches))
    missed = [str(mode) for mode in all_modes() if not found(pipeline, mode, module)]
    assert not missed


def test_a_patch_that_does_not_apply_is_an_error():
    with pytest.raises(ValueError, match="occurs 0 times"):
        toolchain.patched_tree("stale", {KERNEL: [("this text is not there", "")]})
