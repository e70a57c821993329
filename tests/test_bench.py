"""The benchmark's own logic: what it verifies, what it refuses to claim, what the page may contain."""

from __future__ import annotations

import json

import numpy as np
import pytest

from intfa_onnx.bench import report
from intfa_onnx.bench.candidate import Candidate
from intfa_onnx.bench.limits import bounds, find_device, percent_of_limit
from intfa_onnx.bench.op import OURS, bench_problem
from intfa_onnx.bench.peers_cpu import CPU_PEERS
from intfa_onnx.bench.problem import DATA_KINDS, Problem
from intfa_onnx.bench.timing import Timing, measure, ratio
from intfa_onnx.errors import IntfaError, ModelError, UnsupportedError

SMALL = Problem(1, 2, 2, 40, 16, causal=True)


@pytest.mark.parametrize("data", DATA_KINDS)
@pytest.mark.parametrize("causal", [False, True])
def test_truth_is_attention(data: str, causal: bool) -> None:
    problem = Problem(1, 4, 2, 33, 16, causal, data)
    q, k, v = problem.inputs()
    positions, truth = problem.sampled_truth(q, k, v, rows=7)
    assert 2 <= len(positions) <= 7
    assert {0, 32} <= set(positions.tolist())
    for row, i in enumerate(positions):
        for head in range(4):
            keys = i + 1 if causal else 33
            weights = np.exp([q[0, head, i].astype(float) @ k[0, head // 2, j].astype(float) / 4 for j in range(keys)])
            expected = weights @ v[0, head // 2, :keys] / weights.sum()
            np.testing.assert_allclose(truth[0, head, row], expected, rtol=1e-6, atol=1e-9)


def test_ratio_is_taken_within_a_round() -> None:
    """Both slow down threefold in the second half; the ratio does not notice."""
    slow, fast = Timing((2.0, 2.0, 6.0, 6.0)), Timing((1.0, 1.0, 3.0, 3.0))
    assert str(ratio(slow, fast)) == "2.00x"
    assert slow.spread > 0.9


def test_ratio_within_the_noise_is_not_printed() -> None:
    assert str(ratio(Timing((1.0, 1.1, 0.9, 1.0)), Timing((1.0, 1.0, 1.0, 1.0)))) == "noise"
    assert str(ratio(Timing((1.0, 1.6, 1.05, 1.7)), Timing((1.0, 1.0, 1.0, 1.0)))) == "noise"


def test_measure_interleaves() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    timings = measure(calls, rounds=4, round_seconds=0, timer=lambda call, repeats: (call(), 1.0)[1])
    assert order[-8:] == list("abababab")
    assert all(len(t.rounds) == 4 for t in timings.values())


def test_a_wrong_candidate_gets_no_time() -> None:
    def zeros(problem: Problem, inputs: object, threads: int) -> Candidate:
        shape = (problem.batch, problem.num_heads, problem.seqlen, problem.head_dim)
        return Candidate(lambda: None, lambda: np.zeros(shape, np.float32))

    def nan(problem: Problem, inputs: object, threads: int) -> Candidate:
        shape = (problem.batch, problem.num_heads, problem.seqlen, problem.head_dim)
        return Candidate(lambda: None, lambda: np.full(shape, np.nan, np.float32))

    def absent(problem: Problem, inputs: object, threads: int) -> Candidate:
        raise UnsupportedError("not installed")

    result = bench_problem(SMALL, {"zeros": zeros, "nan": nan, "absent": absent}, rounds=3, round_seconds=0)
    assert [r.timing for r in result.rows] == [None] * 3
    assert "wrong result" in result.rows[0].skipped
    assert "wrong result" in result.rows[1].skipped
    assert result.rows[2].skipped == "not installed"


def test_every_cpu_peer_computes_attention() -> None:
    pytest.importorskip("onnxruntime")
    result = bench_problem(SMALL, CPU_PEERS, rounds=3, round_seconds=0)
    skipped = {r.candidate: r.skipped for r in result.rows if r.timing is None}
    assert not {name: why for name, why in skipped.items() if "torch cannot be imported" not in why}
    errors = {r.candidate: r.error for r in result.rows if r.error is not None}
    assert errors["ort unfused"] < 1e-5
    assert 1e-4 < errors[OURS] < 0.06  # quantized, so not exact


def test_limits() -> None:
    assert find_device("NVIDIA H200").name == "H200"
    assert find_device("NVIDIA A100-SXM4-80GB").name == "A100"
    assert find_device("NVIDIA L40S") is None
    problem = Problem(1, 16, 16, 8192, 128, causal=False)
    device = find_device("NVIDIA H200")
    least = bounds(problem, device, 2)
    assert least["int8"] == pytest.approx(4 * 16 * 8192**2 * 128 / 1979e12)
    resource, percent = percent_of_limit(problem, device, 2 * max(least.values()))
    assert percent == pytest.approx(50)
    assert least[resource] == max(least.values())


def test_page_holds_recorded_figures_only(tmp_path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    header = {"date": "2026-01-01", "device": "cpu", "threads": 1, "data": "normal", "gpu": None}
    header |= {"cpu": {"model": "a processor"}, "versions": {"numpy": "2.0"}}
    row = {"candidate": OURS, "error": 0.0123, "seconds": 0.004567, "spread": 0.02, "tops": 0.5}
    problem = {"head_dim": 64, "causal": False, "seqlen": 128}
    entry = {"problem": problem, "label": "B1 H8 S128 D64", "rows": [row, {"candidate": "other", "skipped": "absent"}]}
    (results / "a_cpu.json").write_text(json.dumps({"kind": "op", "header": header, "results": [entry]}))
    (results / "accuracy.json").write_text("{}")
    page = tmp_path / "docs" / "performance.md"
    page.parent.mkdir()
    report.write(results, page)
    text = page.read_text()
    assert "| B1 H8 S128 D64 | intfa int8 | 4.567 | 2 % | 0.500 | - | 1.23 |  |" in text
    assert "absent" in text
    assert (page.parent / "performance_a_cpu.png").stat().st_size > 1000


def test_page_refuses_what_is_not_a_result(tmp_path) -> None:
    (tmp_path / "broken.json").write_text('{"kind": "op", "header": {}}')
    with pytest.raises(ModelError, match=r"broken\.json"):
        report.write(tmp_path, tmp_path / "page.md")


def test_a_model_that_does_not_run_is_an_error(tmp_path) -> None:
    pytest.importorskip("onnxruntime")
    from intfa_onnx.bench.model import bench_models

    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(IntfaError, match=r"broken\.onnx"):
        bench_models(broken, broken, {}, rounds=3, runs=1)
