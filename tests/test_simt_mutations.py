"""Bugs seeded into the product's kernels: the simulators must find every one, or they are not worth their time.

A mutation is a replacement in a copy of the source; a text that is no longer there fails the test, and the mutation
must then follow the kernel. Found means another result than the unpatched kernel's, or a report. Each names a case that
exercises the place, and the modes of the host SIMT that must find it; None where only the PTX interpreter can.
"""

import functools
from dataclasses import dataclass, field

import numpy as np
import pytest
from cases import CASES
from native.simt import attention, toolchain
from native.simt.attention import AttentionSimulator
from native.simt.simulator import DEFAULT_MODE, Mode, SimulatorError, all_modes

LATE = [Mode(copies="late"), Mode("greedy_last", "late")]
GREEDY = [Mode("greedy_first", "early"), Mode("greedy_last", "early")]
KERNEL = "cuda/attention_sm80.cuh"
CODES = "cuda/code_rows.cuh"
WAIT = "    ptx::cp_async_wait<kNumStages - 2>();\n"
BARRIER = "    ptx::sync_block();  // the tile is visible to all, and all have left the stage that the next copy "
BARRIER += "overwrites\n"
FETCH = "    if constexpr (!Shape::kMaskInNextStage) fetch_ahead(tile);\n"
CLAMP = "    if (params.k_in_place) KCodes::clamp(k_tile);\n"
V_SCALE = "    ptx::st_shared(scales + 4 * c, scale);\n"
V_SCALE_OF_TILE_0 = "    if (tile > 0) scale = params.packed.v_scale[block.index * kDim + c];\n" + V_SCALE
# A launch again, earlier than it may be; the one in its place is skipped.
PROLOGUE = "  const int64_t planes = 2 * problem.batch;  // K and V\n"
QUANTIZE = "launch(kernels.quantize_kv, {plan.num_tiles, problem.kv_num_heads, planes}, kPrologueThreads,"
EARLY_QUANTIZE = PROLOGUE + f"  (void){QUANTIZE} kernels.quantize_smem, stream, prologue);\n"
MERGE_PARAMS = "  const MergeParams merge = merge_params(params, tensors, plan);\n"
EARLY_MERGE = MERGE_PARAMS + "  (void)launch(kernels.merge, {problem.seqlen_q, problem.num_heads, problem.batch},"
EARLY_MERGE += " kMergeThreads, 0, stream, merge);\n"
OTHER_WRITES = "global race: another block of this launch also writes here"
OTHER_READS = "global race: read of what another block of this launch writes"
HEAD_OF_ROW = "return row - query(row) * heads;"
CAUSAL_QUERY = "params.rows.query(Work::of<Shape>(params).warp_row + 16 * m + 8 * h + lane / 4);"
MASK_HEAD = "(work.head + rows.head(row)) * mask.head"
MMA = "mma.sync.aligned.m16n8k32.row.col.s32.{}.s8.s32 {{%0,%1,%2,%3}},{{%4,%5,%6,%7}},{{%8,%9}}"


@dataclass(frozen=True)
class Mutation:
    """A patch, and who must find it on which case."""

    patches: dict[str, list[tuple[str, str]]]
    case: str = "causal_past"
    arithmetic: str = "tile"
    modes: list[Mode] | None = field(default_factory=lambda: [DEFAULT_MODE])
    interpreter: bool = False  # also by the PTX interpreter, in any mode
    report: str = ""  # in the interpreter's words


def swapped(asm: str) -> str:
    """The two registers of B in the other order."""
    return asm.replace("{%8,%9}", "{%9,%8}")


MUTATIONS = {
    "wait_off_by_one": Mutation({KERNEL: [(WAIT, WAIT.replace("- 2", "- 1"))]}, modes=LATE, interpreter=True),
    "no_barrier": Mutation({KERNEL: [(BARRIER, "")]}, modes=GREEDY, interpreter=True),
    "fetch_before_barrier": Mutation({KERNEL: [(BARRIER + FETCH, FETCH + BARRIER)]}, modes=GREEDY, interpreter=True),
    "no_warp_sync_after_queries": Mutation(
        {KERNEL: [("  ptx::sync_warp();\n  int32_t start[4];", "  int32_t start[4];")]}, modes=GREEDY
    ),
    "key_order_not_permuted": Mutation(
        {"cuda/prologue.cuh": [("packed_row(row), channel / 16", "row, channel / 16")]}
    ),
    "causal_sees_one_more": Mutation(
        {"cuda/scoring.cuh": [("query + offset + window_right + 1))", "query + offset + window_right + 2))")]}
    ),
    "padding_enters_statistics": Mutation(
        {"cuda/prologue.cuh": [("params.chunk_tokens, block.valid)", "params.chunk_tokens, params.seqlen_kv)")]},
        case="nonpad",
    ),
    "qk_operands_swapped": Mutation(
        {"cuda/ptx.cuh": [(MMA.format("s8"), swapped(MMA.format("s8")))]}, modes=None, interpreter=True
    ),
    "pv_operands_swapped": Mutation(
        {"cuda/ptx.cuh": [(MMA.format("u8"), swapped(MMA.format("u8")))]}, modes=None, interpreter=True
    ),
    # Heads packed into the rows of a tile. The first keeps to its tensors, since there are fewer queries than heads.
    "head_is_the_query_of_the_row": Mutation(
        {"cuda/row_map.cuh": [(HEAD_OF_ROW, "return query(row);")]}, case="gqa_decode"
    ),
    "causal_end_of_the_row": Mutation(
        {KERNEL: [(CAUSAL_QUERY, CAUSAL_QUERY.replace("params.rows.query", ""))]}, case="llm"
    ),
    "mask_of_the_first_head": Mutation(
        {"cuda/scoring.cuh": [(MASK_HEAD, "work.head * mask.head")]}, case="mask_gqa"
    ),
    # INT8 K read in place.
    "codes_clamped_after_the_barrier": Mutation(
        {KERNEL: [(CLAMP, ""), (BARRIER + FETCH, BARRIER + CLAMP + FETCH)]}, case="int8_tensor", interpreter=True
    ),
    "lowest_code_kept": Mutation({CODES: [("if ((any & 0x80808080) == 0) return;", "return;")]}, case="int8_tensor"),
    "codes_not_permuted": Mutation({CODES: [("packed_key(thread / kWide)", "thread / kWide")]}, case="int8_channel"),
    "a_row_beyond_the_codes": Mutation(
        {CODES: [("params.seqlen_kv - 1 - tile", "params.seqlen_kv - tile")]},
        case="int8_tensor", modes=None, interpreter=True,
    ),
    # Between the blocks of a launch. In the order in which the simulators run them, some of the results are right.
    "splits_share_partial_results": Mutation(
        {"cuda/epilogue.cuh": [("return work.split * params.split_y + ", "return ")]},
        case="many_tiles", interpreter=True, report=OTHER_WRITES,
    ),
    "chunks_share_partial_statistics": Mutation(
        {"cuda/prologue.cuh": [("block.index * params.num_chunks + chunk;", "block.index * params.num_chunks;")]},
        interpreter=True, report=OTHER_WRITES,
    ),
    "every_tile_stores_the_mean": Mutation(
        {"cuda/prologue.cuh": [("if (tile == 0) params.packed.k_mean", "params.packed.k_mean")]},
        modes=None, interpreter=True, report=OTHER_WRITES,
    ),
    "scale_from_another_block": Mutation(
        {"cuda/prologue.cuh": [(V_SCALE, V_SCALE_OF_TILE_0)]}, modes=None, interpreter=True, report=OTHER_READS
    ),
    # Between launches, which the stream orders.
    "quantized_before_statistics": Mutation(
        {"cuda/dispatch.cu": [(PROLOGUE, EARLY_QUANTIZE), ("status = " + QUANTIZE, "status; if (false) " + QUANTIZE)]}
    ),
    "merged_before_its_parts": Mutation(
        {"cuda/dispatch.cu": [
            (MERGE_PARAMS, EARLY_MERGE), ("return launch(kernels.merge,", "return {}; launch(kernels.merge,"),
        ]},
        case="many_tiles",
    ),
}  # fmt: skip


@functools.cache
def original() -> AttentionSimulator:
    return AttentionSimulator()


@functools.cache
def mutant(name: str) -> tuple[AttentionSimulator, object]:
    library, tree = attention.build_mutant(name, MUTATIONS[name].patches)
    return AttentionSimulator(library), tree


def run(simulator: AttentionSimulator, mutation: Mutation, mode: Mode, ptx=None) -> np.ndarray:
    case = next(c for c in CASES if c.name == mutation.case)
    precision, scheme = ("int8_qk", "tile") if mutation.arithmetic == "half" else ("int8", mutation.arithmetic)
    attributes = attention.case_attributes(case, precision, scheme)
    return simulator.attention(attributes=attributes, mode=mode, ptx=ptx, **attention.case_arguments(case))["y"]


def found(name: str, mode: Mode, ptx=None) -> bool:
    mutation = MUTATIONS[name]
    expected = run(original(), mutation, DEFAULT_MODE)
    try:
        result = run(mutant(name)[0], mutation, mode, ptx)
    except SimulatorError:
        return True
    return not np.array_equal(result.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", MUTATIONS)
def test_host_finds(name):
    modes = MUTATIONS[name].modes
    if modes is None:
        assert not found(name, DEFAULT_MODE), "no such operand, or no such order of blocks, is seen by the host"
    else:
        missed = [str(mode) for mode in modes if not found(name, mode)]
        assert not missed


@pytest.mark.parametrize("name", [name for name, m in MUTATIONS.items() if m.interpreter])
def test_interpreter_finds(name):
    if toolchain.nvcc() is None:
        pytest.skip("nvcc is not installed, so there is no PTX to interpret")
    simulator, tree = mutant(name)
    ptx = simulator.load_ptx(toolchain.ptx(tree / "cuda" / "kernels_d64.cu", f"mutant-{name}", plugin=tree))
    modes = [DEFAULT_MODE, Mode("greedy_first", "early"), Mode("random", "random", 2)]
    assert not [str(mode) for mode in modes if not found(name, mode, ptx)]
    if report := MUTATIONS[name].report:
        with pytest.raises(SimulatorError, match=report):
            run(simulator, MUTATIONS[name], DEFAULT_MODE, ptx)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, m in MUTATIONS.items() if m.modes is not None])
def test_how_many_modes_find(name):
    """At least a third of all modes; the count is in the failure's text."""
    modes = all_modes(seeds=(1, 2, 3))
    finders = [str(mode) for mode in modes if found(name, mode)]
    assert len(finders) >= len(modes) / 3, f"{len(finders)} of {len(modes)}: {finders}"
