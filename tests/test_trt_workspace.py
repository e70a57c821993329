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


@pytest.mark.parametrize("device", [80, 90])
@pytest.mark.parametrize("seed", range(20))
def test_enough_for_every_smaller_problem(seed: int, device: int, simulator: AttentionSimulator) -> None:
    rng = np.random.default_rng(seed)
    simulator.runtime.simt_set_device(device)
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

    reserved = workspace(simulator, "attention_max_workspace", **fields(most))
    for _ in range(100):
        sizes = [int(rng.choice([1, s, rng.integers(0, s + 1)])) for s in most]
        assert workspace(simulator, "attention_workspace", **fields(sizes)) <= reserved, (fixed, most, sizes)


def test_a_smaller_problem_may_need_more(simulator: AttentionSimulator) -> None:
    """Fewer queries are split among more blocks, whose partial results need room: why there is a function for it."""
    simulator.runtime.simt_set_device(80)
    common = {"num_heads": 8, "kv_num_heads": 8, "head_dim": 64, "head_dim_v": 64, "batch": 1, "seqlen_new": 8192}
    exact = workspace(simulator, "attention_workspace", seqlen_q=4096, **common)
    smaller = workspace(simulator, "attention_workspace", seqlen_q=128, **common)
    assert exact < smaller <= workspace(simulator, "attention_max_workspace", seqlen_q=4096, **common)
