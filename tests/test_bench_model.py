"""Two models end to end: what is verified first, what each figure is, which runtimes there are."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from intfa_onnx import cli
from intfa_onnx.bench import engines
from intfa_onnx.bench.model import bench_models
from intfa_onnx.errors import IntfaError, ModelError, UnsupportedError

ort = pytest.importorskip("onnxruntime")
FEED = {"x": np.ones((2, 3), np.float32)}


def scaled(path: Path, factor: float, output: str = "y") -> Path:
    """Write a model that multiplies its input."""
    constant = numpy_helper.from_array(np.float32(factor), "factor")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", output)]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], [output])], "g", info[:1], info[1:], initializer=[constant]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_figures(tmp_path) -> None:
    a, b = scaled(tmp_path / "a.onnx", 1.0), scaled(tmp_path / "b.onnx", 1.01)
    result = bench_models(a, b, FEED, rounds=3, runs=4)
    assert result.error == pytest.approx(0.01, rel=1e-3)
    for timing in (result.first, result.second):
        assert 0 < timing.p50 <= timing.p95 <= timing.p99
        assert 0.1 < timing.per_second * timing.p50 < 10
        assert len(timing.rounds) == 3
        assert 2**24 < timing.peak_memory < 2**34  # a Python process with ONNX Runtime
        assert timing.session_start > 0
        assert timing.device_memory == 0


def test_a_wrong_model_gets_no_time(tmp_path) -> None:
    a, b = scaled(tmp_path / "a.onnx", 1.0), scaled(tmp_path / "b.onnx", 1.3)
    with pytest.raises(ModelError, match=r"'y'.*off by 0\.3 .*limit 0\.2"):
        bench_models(a, b, FEED, rounds=3, runs=1)
    with pytest.raises(ModelError, match="differ in their outputs: y against z"):
        bench_models(a, scaled(tmp_path / "c.onnx", 1.0, output="z"), FEED, rounds=3, runs=1)
    with pytest.raises(ModelError, match="off by nan"):
        bench_models(a, scaled(tmp_path / "d.onnx", float("nan")), FEED, rounds=3, runs=1)


def test_equal_infinities_are_no_error(tmp_path) -> None:
    a, b = scaled(tmp_path / "a.onnx", 1.0), scaled(tmp_path / "b.onnx", 1.01)
    feed = {"x": np.array([[np.inf, 1.0, -np.inf]], np.float32)}
    assert bench_models(a, b, feed, rounds=3, runs=1).error == pytest.approx(0.01, rel=1e-3)


def test_a_model_that_does_not_run_is_an_error(tmp_path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(IntfaError, match=r"broken\.onnx"):
        bench_models(broken, broken, {}, rounds=3, runs=1)


def test_absent_runtimes_say_so(tmp_path) -> None:
    model = scaled(tmp_path / "a.onnx", 1.0)
    with pytest.raises(UnsupportedError, match="supported: cpu, cuda, tensorrt"):
        bench_models(model, model, FEED, runtime="tpu")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        with pytest.raises(IntfaError, match=r"needs a GPU|CUDAExecutionProvider"):
            bench_models(model, model, FEED, runtime="cuda")


def test_tensorrt_engine_is_built_for_the_inputs(monkeypatch) -> None:
    """TensorRT at the boundary: the model strongly typed, one profile of the inputs' shapes, outputs on the host."""
    pytest.importorskip("polygraphy")
    import polygraphy.backend.trt as backend

    seen: dict = {}

    class Runner:
        def __init__(self, engine: object) -> None:
            seen["engine"] = engine

        def activate(self) -> None:
            seen["active"] = True

        def infer(self, feed: dict) -> dict:
            return {"y": 2 * feed["x"]}

    monkeypatch.setattr(engines, "import_tensorrt", lambda: types.SimpleNamespace())
    monkeypatch.setattr(engines, "load_trt_plugin", lambda: seen.update(plugin=True))
    monkeypatch.setattr(backend, "TrtRunner", Runner)
    monkeypatch.setattr(backend, "NetworkFromOnnxPath", lambda path, **options: (path, options))
    monkeypatch.setattr(backend, "EngineFromNetwork", lambda network, config: (network, config))
    monkeypatch.setattr(backend, "CreateConfig", lambda profiles: profiles)
    run = engines.open_tensorrt("m.onnx", FEED, threads=1)
    network, (profile,) = seen["engine"]
    assert network == ("m.onnx", {"strongly_typed": True})
    assert {tuple(profile["x"].min), tuple(profile["x"].opt), tuple(profile["x"].max)} == {(2, 3)}
    assert seen["active"]
    assert seen["plugin"]
    np.testing.assert_array_equal(run(FEED)["y"], 2 * FEED["x"])


def test_without_tensorrt(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UnsupportedError, match="TensorRT cannot be imported"):
        engines.open_tensorrt("m.onnx", FEED, threads=1)


def test_command(tmp_path, capsys) -> None:
    # A name that rich would take for markup, were it asked to.
    a, b = scaled(tmp_path / "[red]a.onnx", 1.0), scaled(tmp_path / "b.onnx", 1.01)
    assert cli.main(["bench", "model", str(a), str(b), "--rounds", "3", "--shapes", "x:4x3", "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["inputs"] == {"x": [4, 3]}
    assert document["header"]["data"] == "random inputs"
    assert [row["model"] for row in document["rows"]] == ["[red]a.onnx", "b.onnx"]
    said = " ".join(captured.err.split())  # lines are broken where the terminal ends
    assert f"Speedup of b.onnx over [red]a.onnx: {document['faster_by']}; its outputs are off by 1.00 %" in said
    assert said.count("[red]a") == 2  # in the table too
    for text in ("p50 ms", "p95 ms", "p99 ms", "runs/s", "peak MB", "Versions: intfa-onnx"):
        assert text in captured.err
