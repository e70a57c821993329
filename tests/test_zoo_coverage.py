"""benchmarks/coverage.py: its record and page belong together, and it fails where a model came out wrong."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import wrong_rewrite

pytest.importorskip("torch")
pytest.importorskip("transformers")
from zoo.export import export, variants
from zoo.peers import Peers

import intfa_onnx

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks/results/coverage.json"


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coverage_of_the_zoo", ROOT / "benchmarks/coverage.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def report(coverage: ModuleType, tmp_path: Path) -> Any:
    """Returns the exit code for a document, and the page."""

    def run(document: dict[str, Any]) -> tuple[int, str]:
        results, page = tmp_path / "coverage.json", tmp_path / "coverage.md"
        results.write_text(json.dumps(document))
        with pytest.raises(coverage.typer.Exit) as done:
            coverage.main(tmp_path, results, page, 1, peers=False, report_only=True, as_json=True)
        return done.value.exit_code, page.read_text()

    return run


def test_the_page_is_that_of_the_record(report: Any) -> None:
    assert report(json.loads(RECORD.read_text())) == (0, (ROOT / "docs/coverage.md").read_text())


def test_the_record_holds_what_is_promised(coverage: ModuleType) -> None:
    total = coverage.summary(json.loads(RECORD.read_text())["results"])
    assert total["per instance"] >= 0.99
    assert total["mean over models"] >= 0.97
    assert [total[name] for name in ("wrong", "negatives fused", "too many", "crashes")] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("encoder", {"wrong": True, "verified": 0}),
        ("negative", {"replaced": 1}),
        ("encoder", {"replaced": 1000}),
        ("encoder", {"crash": "ValueError: broken"}),
    ],
)
def test_anything_wrong_is_a_failure(family: str, change: dict[str, Any], report: Any) -> None:
    document = json.loads(RECORD.read_text())
    next(row for row in document["results"] if row["family"] == family).update(change)
    assert report(document)[0] == 1


def test_a_wrong_rewrite_reaches_the_totals(
    coverage: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the model to the exit code's total, with V read in K's place; right again with other code."""
    (variant,) = variants(["keras_bert"])
    exported = export(variant, tmp_path)
    record = json.loads((tmp_path / f"{variant.stem}.json").read_text())
    assert exported.file
    totals, right = [], intfa_onnx.rewrite
    for rewrite, code in ((wrong_rewrite.values_for_keys, "wrong"), (right, "wrong"), (right, "right")):
        monkeypatch.setattr(intfa_onnx, "rewrite", rewrite)
        row = coverage.measure(record, tmp_path, False, code)
        total = coverage.summary([{**row, "negative": False}])
        totals.append((total["wrong"], total["verified"]))
    assert totals == [(1, 0), (1, 0), (0, row["attentions"])]  # the second was kept: it is of the same code


def test_a_verdict_is_of_the_code_that_it_runs(coverage: ModuleType, tmp_path: Path) -> None:
    """All that a process has loaded after the check, and not the command line."""
    script = """if True:
        import sys
        from pathlib import Path
        from zoo.export import export, variants
        from zoo.verify import verify
        [variant] = variants(["keras_bert"])
        path = Path(sys.argv[1], export(variant, Path(sys.argv[1])).file)
        assert verify(path, variant.build()).verified
        print(*(m.__file__ for name, m in sys.modules.items() if name.split(".")[0] == "intfa_onnx"), sep="\\n")
    """
    command = [sys.executable, "-c", script, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    loaded = {Path(line) for line in answer.stdout.splitlines()}
    package = Path(intfa_onnx.__file__).parent
    sources = coverage.sources(package)
    assert package / "patterns/elements.py" in loaded
    assert loaded <= sources
    assert sources.isdisjoint([package / "cli.py", package / "doctor.py", *package.glob("bench/*.py")])


def test_nobody_is_asked_for_a_model_type_or_heads() -> None:
    required = [p.name for p in inspect.signature(intfa_onnx.rewrite).parameters.values() if p.default is p.empty]
    assert required == ["model"]
    given = " ".join(inspect.signature(intfa_onnx.rewrite).parameters)
    assert not any(word in given for word in ("type", "head", "hidden"))


def test_a_peer_that_dies_or_hangs_is_asked_the_next(tmp_path: Path) -> None:
    (variant,) = variants(["contrib_multi_head_attention"])
    path = tmp_path / str(export(variant, tmp_path).file)
    peers = Peers()
    question = "ONNX Runtime optimizer", path
    assert peers.ask(*question, replace(variant, name="no such model")) == "the process died"
    assert peers.ask(*question, variant) == 1
    peers.seconds = 0
    assert peers.ask(*question, variant) == "no answer within 0 s"
