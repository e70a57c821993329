"""The doctor: well on this machine, and right about each thing that can be wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnxruntime
import pytest

from intfa_onnx import doctor, native
from intfa_onnx.cli import main
from intfa_onnx.doctor import Check, diagnose, usable


def states() -> dict[str, Check]:
    return {check.name: check for check in diagnose()}


def test_this_installation_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "rewritten models run here" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["usable"] is True
    found = {check["name"]: check["found"] for check in report["checks"]}
    assert found["onnxruntime"] == onnxruntime.__version__
    assert "CPUExecutionProvider" in found["operator in ONNX Runtime"]


def test_library_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import intfa_onnx

    monkeypatch.setattr(intfa_onnx, "__path__", [str(tmp_path)])
    found = states()
    assert found["native library"].state == "broken"
    assert "pip install" in found["native library"].found
    assert found["operator in ONNX Runtime"].found == "not tried: see above"
    assert main(["doctor"]) == 1
    assert "cannot run" in capsys.readouterr().out


def test_library_that_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / "libintfa_ort.so"
    library.write_text("not a library")
    monkeypatch.setattr(native, "get_library_path", lambda host="ort": library)
    check = states()["native library"]
    assert check.state == "broken"
    assert "reinstall" in check.remedy


def test_onnxruntime_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = states()
    assert found["onnxruntime"].state == "broken"
    assert "intfa-onnx[ort]" in found["onnxruntime"].remedy
    assert not usable(tuple(found.values()))


def test_onnxruntime_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.17.3")
    check = states()["operator in ONNX Runtime"]
    assert check.state == "broken"
    assert "1.17.3 is too old" in check.found


def test_optional_packages_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "tensorrt", "polygraphy"):
        monkeypatch.setitem(sys.modules, name, None)
    found = states()
    assert {found[name].state for name in ("torch", "tensorrt", "polygraphy")} == {"absent"}
    assert usable(tuple(found.values()))


def test_operator_that_computes_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that loads but returns zeros must not pass for well."""

    class Zeros:
        def run(self, names: object, feed: dict[str, object]) -> list[object]:
            return [0 * feed["V"]]  # type: ignore[operator]

    monkeypatch.setattr(doctor, "open_session", lambda model: Zeros())
    check = states()["operator in ONNX Runtime"]
    assert check.state == "broken"
    assert "is off by" in check.found
