"""The comparison: its numbers against plain numpy, and what must not pass."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from intfa_onnx.compare import compare
from intfa_onnx.errors import ModelError, UnsupportedError

X = np.array([1.0, -2.0, 3.0, 4.0], np.float32)


def save(path: Path, body: str, output: str = "Y") -> Path:
    """Save a model of one input X, float[4], and one output."""
    text = f"""<ir_version: 9, opset_import: ["": 18]> m (float[4] X) => (float[4] {output}) {{ {body} }}"""
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    return save(tmp_path / "a.onnx", "Y = Identity (X)")


@pytest.mark.parametrize("runner", ["ort-cpu", "reference"])
def test_metrics_are_those_of_numpy(identity: Path, tmp_path: Path, runner: str) -> None:
    other = save(tmp_path / "b.onnx", "Y = Softplus (X)")
    (y,) = compare(identity, other, {"X": X}, runner_a=runner, runner_b=runner).outputs
    b = np.log1p(np.exp(X.astype(np.float64)))
    assert y.cosine == pytest.approx(X @ b / np.linalg.norm(X) / np.linalg.norm(b), abs=1e-6)
    assert y.rel_l2 == pytest.approx(np.linalg.norm(b - X) / np.linalg.norm(X), rel=1e-6)
    assert y.max_abs == pytest.approx(np.abs(b - X).max(), rel=1e-6)
    assert y.psnr_db == pytest.approx(10 * np.log10(X.max() ** 2 / np.mean((b - X) ** 2)), rel=1e-6)


def test_cosine_is_blind_to_size_and_rel_l2_is_not(identity: Path, tmp_path: Path) -> None:
    doubled = save(tmp_path / "b.onnx", "Y = Add (X, X)")
    assert compare(identity, doubled, {"X": X}).passed
    assert not compare(identity, doubled, {"X": X}, max_rel_l2=0.9).passed
    assert compare(identity, doubled, {"X": X}, max_rel_l2=1.1).passed


def test_one_output_that_fails_fails_the_whole(tmp_path: Path) -> None:
    """And its row says which one."""
    text = """<ir_version: 9, opset_import: ["": 18]>
      m (float[4] X) => (float[4] Y, float[4] Z) {{ Y = Identity (X) Z = {} (X) }}"""
    for name, op in (("a", "Identity"), ("b", "Neg")):
        onnx.save(onnx.parser.parse_model(text.format(op)), tmp_path / f"{name}.onnx")
    found = compare(tmp_path / "a.onnx", tmp_path / "b.onnx", {"X": X})
    assert not found.passed
    assert [(o.name, o.passed) for o in found.outputs] == [("Y", True), ("Z", False)]


def test_outputs_of_another_shape(identity: Path, tmp_path: Path) -> None:
    """A shape that would broadcast is no match."""
    other = tmp_path / "b.onnx"
    text = """<ir_version: 9, opset_import: ["": 18]>
      m (float[4] X) => (float[1] Y) { Y = ReduceMax <keepdims = 1> (X) }"""
    onnx.save(onnx.parser.parse_model(text), other)
    with pytest.raises(ModelError, match=r"output 'Y' has shape \(4,\) in one and \(1,\) in the other"):
        compare(identity, other, {"X": X})


def test_equal_infinities_and_nans_pass(identity: Path) -> None:
    x = np.array([1.0, np.inf, -np.inf, np.nan], np.float32)
    (y,) = compare(identity, identity, {"X": x}, min_cosine=1.0).outputs
    assert y.passed
    assert y.max_abs == 0


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
def test_a_nonfinite_value_in_one_output_fails(identity: Path, tmp_path: Path, value: float) -> None:
    x = X.copy()
    x[1] = value
    finite = save(
        tmp_path / "b.onnx",
        "lo = Constant <value = float {-9.0}> () hi = Constant <value = float {9.0}> () "
        "nan = IsNaN (X) c = Clip (X, lo, hi) Y = Where (nan, hi, c)",
    )
    result = compare(identity, finite, {"X": x}, min_cosine=-1.0)
    assert not result.passed
    assert result.as_dict()["outputs"][0]["cosine"] is None, "JSON has no NaN"


def test_outputs_of_different_names(identity: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "b.onnx", "Z = Identity (X)", output="Z")
    with pytest.raises(ModelError, match="differ in their outputs: Y against Z"):
        compare(identity, other, {"X": X})


def test_wrong_feed(identity: Path) -> None:
    with pytest.raises(ModelError, match=r"a\.onnx' fails on runner ort-cpu"):
        compare(identity, identity, {"X": np.zeros(5, np.float32)})


def test_unknown_runner(identity: Path) -> None:
    with pytest.raises(UnsupportedError, match="'gpu' is unknown; there are ort-cpu, ort-cuda, trt, reference"):
        compare(identity, identity, {"X": X}, runner_b="gpu")


@pytest.mark.parametrize(
    ("runner", "remedy"),
    [("ort-cuda", r"has no CUDAExecutionProvider \(it has .*intfa-onnx\[ort-gpu\]"), ("trt", r"intfa-onnx\[trt\]")],
)
def test_an_absent_runner_is_refused_with_the_remedy(
    identity: Path, monkeypatch: pytest.MonkeyPatch, runner: str, remedy: str
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UnsupportedError, match=remedy):
        compare(identity, identity, {"X": X}, runner_b=runner)


def test_without_polygraphy(identity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy.comparator", None)
    with pytest.raises(UnsupportedError, match=r"intfa-onnx\[polygraphy\]"):
        compare(identity, identity, {"X": X})


def test_strings_are_refused(tmp_path: Path) -> None:
    strings = 'T = Constant <value = string[1] {"a"}> () Y = Identity (X)'
    path = tmp_path / "model.onnx"
    text = f"""<ir_version: 9, opset_import: ["": 18]> m (float[4] X) => (float[4] Y, string[1] T) {{ {strings} }}"""
    onnx.save(onnx.parser.parse_model(text), path)
    with pytest.raises(UnsupportedError, match=r"output 'T' of .* holds strings"):
        compare(path, path, {"X": X})
    with pytest.raises(UnsupportedError, match=r"input 'X' of .* holds strings"):
        compare(path, path, {"X": np.array(["a"] * 4)})
