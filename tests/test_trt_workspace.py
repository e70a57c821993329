"""TensorRT reserves workspace once for a range of shapes: it has to be enough for every smaller one (simulated)."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from native.simt.attention import AttentionSimulator

from intfa_onnx.c_abi import DTYPES, Problem

FLOAT16 = DTYPES.index("float16")


@pytest.fixture(scope="module")
def simulator() -> AttentionSimulator:
    return AttentionSimulator()


def workspace(simulator: AttentionSimulator, function: str, **fields: Any) -> int:
    problem = Problem(dtype=FLOAT16, output_dtype=FLOAT16, smooth_k=1, **fields)
    found = ctypes.c_size_t()
    simulator.call(function, ctypes.byref(problem), ctypes.byref(found))
    return found.value


@pytest.mark.parametrize(
    ("device", "built_on", "run_on"),
    [(80, 108, 108), (90, 132, 132), (90, 16, 16), (90, 132, 16), (90, 16, 132)],
)
@pytest.mark.parametrize("seed", range(20))
def test_enough_for_every_smaller_problem(
    seed: int, device: int, built_on: int, run_on: int, simulator: AttentionSimulator
) -> None:
    """Also where the engine runs on a GPU with more or fewer SMs, which chooses other kernels on Hopper."""
    rng = np.random.default_rng(seed)
    kv_heads = int(rng.integers(1, 5))
    head_dim = int(rng.choice([32, 64, 80, 128, 256]))
    fixed = {
        "num_heads": kv_heads * int(rng.integers(1, 5)),
        "kv_num_heads": kv_heads,
        "head_dim": head_dim,
        "head_dim_v": head_dim,
        "precision": int(rng.integers(2)),
        "scheme": int(rng.integers(2)),
        "mask_present": int(rng.integers(2)),
    }
    most = [int(rng.integers(1, 9)), int(rng.choice([1, 16, 300, 4096])), int(rng.choice([64, 2048, 2200, 20000]))]

    def fields(sizes: list[int]) -> dict[str, int]:
        batch, seqlen_q, seqlen_kv = sizes
        return {**fixed, "batch": batch, "seqlen_q": seqlen_q, "seqlen_new": seqlen_kv}

    simulator.set_gpu(device, built_on)
    reserved = workspace(simulator, "attention_max_workspace", **fields(most))
    simulator.set_gpu(device, run_on)
    for _ in range(100):
        sizes = [int(rng.choice([1, s, rng.integers(0, s + 1)])) for s in most]
        assert workspace(simulator, "attention_workspace", **fields(sizes)) <= reserved, (fixed, most, sizes)


def test_a_smaller_problem_may_need_more(simulator: AttentionSimulator) -> None:
    """Fewer queries are split among more blocks, whose partial results need room: why there is a function for it."""
    simulator.set_gpu(80, 108)
    common = {"num_heads": 8, "kv_num_heads": 8, "head_dim": 64, "head_dim_v": 64, "batch": 1, "seqlen_new": 8192}
    exact = workspace(simulator, "attention_workspace", seqlen_q=4096, **common)
    smaller = workspace(simulator, "attention_workspace", seqlen_q=128, **common)
    assert exact < smaller <= workspace(simulator, "attention_max_workspace", seqlen_q=4096, **common)


@pytest.mark.parametrize("multiprocessors", [132, 114, 78, 16])
def test_enough_where_one_block_per_sm_works_through_a_list(
    multiprocessors: int, simulator: AttentionSimulator
) -> None:
    """That kernel splits no keys and needs no room for parts; the smaller problems, which another kernel takes, do."""
    simulator.set_gpu(90, multiprocessors)
    common = {"num_heads": 16, "kv_num_heads": 16, "head_dim": 128, "head_dim_v": 128}
    most = {"batch": 4, "seqlen_q": 4096, "seqlen_new": 8192, **common}
    assert "one block per SM" in simulator.describe(Problem(dtype=FLOAT16, output_dtype=FLOAT16, smooth_k=1, **most))
    exact = workspace(simulator, "attention_workspace", **most)
    reserved = workspace(simulator, "attention_max_workspace", **most)
    split = 0
    for batch, seqlen_q in [(4, 1), (4, 64), (1, 64), (1, 128), (1, 192), (1, 1000), (4, 4095)]:
        smaller = {**most, "batch": batch, "seqlen_q": seqlen_q}
        split += "keys split" in simulator.describe(Problem(dtype=FLOAT16, output_dtype=FLOAT16, smooth_k=1, **smaller))
        assert workspace(simulator, "attention_workspace", **smaller) <= reserved
    assert split > 0
    # More than exact: rows of 256 blocks in float32, with their lse.
    assert exact < reserved
