"""The benchmark's own logic: what it verifies, what it refuses to claim, what the page may contain."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from intfa_onnx import cli
from intfa_onnx.bench.calibrate import MEMORY_BYTES
from intfa_onnx.bench.candidate import Candidate, Peer
from intfa_onnx.bench.limits import Device
from intfa_onnx.bench.op import OURS, Machine, ProblemResult, bench_problem, bench_problems
from intfa_onnx.bench.peers_cpu import CPU_PEERS, caches
from intfa_onnx.bench.problem import DATA_KINDS, Problem
from intfa_onnx.bench.timing import Timing, host_timer, measure, ratio
from intfa_onnx.errors import UnsupportedError

SMALL = Problem(1, 2, 2, 40, 16, causal=True)


@pytest.mark.parametrize("data", DATA_KINDS)
@pytest.mark.parametrize(("causal", "decode"), [(False, False), (True, False), (False, True)])
def test_truth_is_attention(data: str, causal: bool, decode: bool) -> None:
    problem = Problem(1, 4, 2, 33, 16, causal, data, decode)
    q, k, v = problem.inputs()
    positions, truth = problem.sampled_truth(q, k, v, rows=7)
    assert positions.tolist() == [0] if decode else 2 <= len(positions) <= 7
    assert decode or {0, 32} <= set(positions.tolist())
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


def test_a_candidate_has_the_machine_to_itself() -> None:
    """The one before has left a thread that is busy for a while, as the pool of an ONNX Runtime session does."""
    left: list[threading.Thread] = []
    still_busy: list[bool] = []

    def spin() -> None:
        end = time.perf_counter() + 0.1
        while time.perf_counter() < end:
            pass

    def leave_one() -> None:
        left.append(threading.Thread(target=spin))
        left[-1].start()

    first = host_timer(leave_one, 1)
    second = host_timer(lambda: still_busy.append(left[-1].is_alive()), 1)
    assert len(left) == 2  # one call to wake its threads, one that counts
    assert not any(still_busy)
    assert first < 0.1 > second  # what is waited for counts for nobody


def test_a_wrong_candidate_gets_no_time() -> None:
    def zeros(problem: Problem, inputs: object, threads: int) -> Candidate:
        shape = (problem.batch, problem.num_heads, problem.seqlen, problem.head_dim)
        return Candidate(lambda: None, lambda: np.zeros(shape, np.float32))

    def nan(problem: Problem, inputs: object, threads: int) -> Candidate:
        shape = (problem.batch, problem.num_heads, problem.seqlen, problem.head_dim)
        return Candidate(lambda: None, lambda: np.full(shape, np.nan, np.float32))

    def absent(problem: Problem, inputs: object, threads: int) -> Candidate:
        raise UnsupportedError("not installed")

    peers = {"zeros": Peer(zeros), "nan": Peer(nan), "absent": Peer(absent)}
    result = bench_problem(SMALL, peers, rounds=3, round_seconds=0)
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


def test_a_step_of_a_decoder() -> None:
    """One query over a cache, grouped heads; a cache of codes moves a quarter of the bytes."""
    pytest.importorskip("onnxruntime")
    problem = Problem(1, 4, 2, 2048, 64, causal=False, decode=True)
    assert problem.operations == 4 * 4 * 2048 * 64
    assert problem.label() == "B1 H4/2 S2048 D64 decode"
    device = Device("test", int8_ops=1e30, bytes_per_second=1.0)
    result = bench_problem(problem, CPU_PEERS, rounds=3, round_seconds=0, machine=Machine(device))
    rows = {row["candidate"]: row for row in result.as_dict()["rows"]}
    cache, queries = 2 * 2 * 2048 * 64, 4 * 64
    for name, moved in ((OURS, 4 * (cache + 2 * queries)), ("intfa int8, codes given", cache + queries + 4 * queries)):
        assert rows[name]["percent_of_limit"] * rows[name]["seconds"] / 100 == pytest.approx(moved)
        assert rows[name]["limit"] == "memory"
        assert 1e-4 < rows[name]["error"] < 0.06
    assert rows["ort Attention-24"]["error"] < 1e-5
    assert rows["ort unfused"]["skipped"] == "has no grouped heads"


def test_a_decoder_step_reads_memory_and_not_the_last_call_s_cache() -> None:
    step = Problem(1, 4, 2, 2048, 64, causal=False, decode=True)
    _, k, v = step.inputs()
    turns = caches(step, k, v)
    assert sum(x.nbytes for cache in turns for x in cache) >= MEMORY_BYTES
    assert len({x.ctypes.data for cache in turns for x in cache}) == 2 * len(turns)
    assert len(caches(replace(step, decode=False), k, v)) == 1


def test_a_run_that_is_ended_leaves_what_it_measured(tmp_path, monkeypatch) -> None:
    pytest.importorskip("onnxruntime")
    output = tmp_path / "op.json"
    sizes = ["--seqlen", "2048", "--seqlen", "3072", "--head-dim", "64", "--heads", "4", "--group", "2", "--decode"]
    arguments = ["bench", "op", *sizes, "--rounds", "3", "--only", OURS, "--output", str(output)]
    assert cli.main(arguments) == 0
    assert [r["problem"]["seqlen"] for r in json.loads(output.read_text())["results"]] == [2048, 3072]

    def ends(sizes: list[Problem], peers: object, **options: object) -> Iterator[ProblemResult]:
        yield bench_problem(sizes[0], CPU_PEERS, rounds=3, round_seconds=0)
        raise KeyboardInterrupt

    monkeypatch.setattr("intfa_onnx.bench.cli.bench_problems", ends)
    with contextlib.suppress(KeyboardInterrupt):
        cli.main(arguments)
    (result,) = json.loads(output.read_text())["results"]
    assert result["label"] == "B1 H4/2 S2048 D64 decode"
    assert not list(tmp_path.glob("*.part"))


def test_sizes_that_do_not_fit_are_refused(tmp_path, capsys) -> None:
    for arguments, said in (
        (["--decode", "--causal"], "leave --causal out"),
        (["--heads", "6", "--group", "4"], "6 heads cannot share key heads by 4"),
        (["--seqlen", "8", "--head-dim", "8", "--only", OURS, "-o", str(tmp_path / "no/op.json")], "cannot write"),
    ):
        assert cli.main(["bench", "op", *arguments]) != 0
        assert said in capsys.readouterr().err


def test_a_peer_that_does_not_fit_is_skipped() -> None:
    """By memory before it is made, by time from the rate at the problem before."""

    def slow(problem: Problem, inputs: object, threads: int) -> Candidate:
        _, truth = problem.sampled_truth(*inputs, rows=problem.seqlen)
        return Candidate(lambda: time.sleep(1e-8 * problem.operations), lambda: truth.astype(np.float32))

    def greedy(problem: Problem, inputs: object, threads: int) -> Candidate:
        raise AssertionError("must not be made")

    sizes = [Problem(1, 2, 2, seqlen, 16, causal=False) for seqlen in (32, 64)]  # 1.3 and 5.2 ms
    peers = {"slow": Peer(slow), "greedy": Peer(greedy, scores=10**9)}
    first, second = bench_problems(sizes, peers, max_seconds=3e-3, rounds=3, round_seconds=0)
    assert first.rows[0].timing
    assert "limit 0.003 s" in second.rows[0].skipped
    assert all(r.rows[0].timing for r in bench_problems(sizes, {OURS: Peer(slow)}, max_seconds=3e-3, rounds=3))
    assert all("GiB of scores at once" in result.rows[1].skipped for result in (first, second))


def test_table_mode_prints_header_and_share_of_the_limit(capsys) -> None:
    pytest.importorskip("onnxruntime")
    arguments = ["--seqlen", "32", "--head-dim", "16", "--heads", "2", "--rounds", "3", "--no-causal", "--only", OURS]
    assert cli.main(["bench", "op", *arguments, "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["header"]["limits"]["int8_ops"] > 1e9
    (row,) = document["results"][0]["rows"]
    assert 0 < row["percent_of_limit"] < 120  # a measured limit may be off by the noise of its measurement
    assert row["limit"] in ("int8", "memory")
    for text in ("Data: normal", "CPU:", "Versions: intfa-onnx", "numpy"):
        assert text in captured.err
