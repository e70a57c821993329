"""The doctor: well on this machine, and right about each thing that can be wrong."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import platform
import re
import sys
from pathlib import Path

import onnxruntime
import pytest

import intfa_onnx
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
    assert re.search(
        r"libintfa_ort\.so, \d+\.\d MB, exports RegisterCustomOps.* needs glibc 2\.\d+$", found["native library"]
    )


def test_library_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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

    monkeypatch.setattr(doctor, "open_session", lambda model, providers: Zeros())
    check = states()["operator in ONNX Runtime"]
    assert check.state == "broken"
    assert "is off by" in check.found


def test_library_for_a_newer_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.5"))
    check = states()["native library"]
    assert check.state == "broken"
    assert re.search(r"needs glibc 2\.\d\d, and this system has 2\.5$", check.found)


def test_library_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intfa_onnx, "__version__", "9.9")
    assert "the package of version 9.9" in states()["native library"].found


def test_library_without_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda path: object())
    check = states()["native library"]
    assert check.state == "broken"
    assert "does not export RegisterCustomOps, intfa_version" in check.found


def test_two_onnxruntimes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Distribution:
        def __init__(self, name: str):
            self.metadata = {"Name": name}

    both = [Distribution("onnxruntime"), Distribution("onnxruntime-gpu")]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: both)
    check = states()["onnxruntime"]
    assert check.state == "broken"
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in check.remedy


@pytest.mark.parametrize(("version", "state"), [("9.3.0", "absent"), ("10.16.1.11", "ok"), ("11.4.0", "ok")])
def test_tensorrt_versions(monkeypatch: pytest.MonkeyPatch, version: str, state: str) -> None:
    module = type(sys)("tensorrt")
    module.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    check = states()["tensorrt"]
    assert check.state == state
    assert check.found.startswith(version)
