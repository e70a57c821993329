"""The performance page and the plots: recorded figures, all of them, and nothing else."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest

from intfa_onnx import cli
from intfa_onnx.bench import plot, report
from intfa_onnx.bench.op import OURS
from intfa_onnx.errors import ModelError, UnsupportedError

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "benchmarks/results", ROOT / "docs/performance.md"
HEADER = {"date": "2026-01-01", "device": "cpu", "threads": 1, "data": "normal", "gpu": None}
HEADER |= {"cpu": {"model": "a processor"}, "versions": {"numpy": "2.0"}}


def op_document() -> dict:
    row = {"candidate": OURS, "error": 0.0123, "seconds": 0.004567, "spread": 0.02, "tops": 0.5}
    results = []
    for seqlen in (256, 128):  # not in order
        problem = {"batch": 1, "num_heads": 8, "head_dim": 64, "causal": False, "seqlen": seqlen}
        rows = [row | {"tops": seqlen / 1000}, {"candidate": "other", "skipped": "absent"}]
        results.append({"problem": problem, "label": f"B1 H8 S{seqlen} D64", "rows": rows})
    results[0]["io"] = {"bytes": 5e9, "over_bound": 7.25}
    return {"kind": "op", "header": HEADER, "results": results}


def model_document() -> dict:
    row = {"model": "a.onnx", "session_start": 0.5, "p50": 0.001, "p95": 0.002, "p99": 0.003}
    row |= {"per_second": 900.0, "peak_memory": 2**27, "device_memory": 2**21}
    document = {"kind": "model", "header": HEADER, "inputs": {"ids": [8, 128]}, "error": 0.0125}
    return document | {"rows": [row, row | {"model": "b.onnx"}], "faster_by": "noise"}


def scale_document() -> dict:
    row = {"layers": 500, "nodes": 15000, "weight_bytes": 12e9, "steps": {"rewrite": 4.5, "save": 0.25}}
    row |= {"seconds": 4.75, "cpu_seconds": 6.0, "peak_memory": 2**28, "bytes_read": 2**20}
    start = {"library load": {"seconds": 0.00035, "spread": 0.15}}
    operator = {"sequence length": op_document()["results"]}
    document = {"kind": "scale", "header": HEADER, "operator": operator}
    return document | {"rewriting": [row, row | {"nodes": 7500}], "start": start}


def write(folder: Path, **documents: dict) -> Path:
    folder.mkdir(exist_ok=True)
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


def test_page_holds_recorded_figures(tmp_path) -> None:
    results = write(tmp_path / "r", a=op_document(), b=model_document(), c=scale_document(), accuracy={"x": 1})
    page = tmp_path / "docs/performance.md"
    report.write(results, page)
    text = page.read_text()
    for expected in (
        "| B1 H8 S256 D64 | intfa int8 | 4.567 | 2 % | 0.256 | - | 1.23 |  |",
        "| other | - | - | - | - | - | absent |",
        "- B1 H8 S256 D64: 5.000 GB into and out of the SMs, 7.2 times the lower bound",
        "Inputs: ids 8x128. Speedup of b.onnx over a.onnx: noise; its outputs are off by 1.25 % of their norm.",
        "| a.onnx | 1.00 | 2.00 | 3.00 | 900.0 | 128 | 2 | 0.50 |",
        "| 500 | 15000 | 12.0 | 4.50 | 0.25 | 0.400 | 256 | 1 |",
        "| library load | 0.35 | 15 % |",
        "| operator over sequence length | candidate |",
    ):
        assert expected in text
    assert "accuracy" not in text
    plots = {p.name for p in page.parent.glob("*.png")}
    assert plots == {"performance_a.png", "performance_c.png"} == set(re.findall(r"\]\((.*?)\)", text))


def test_the_committed_page_is_generated() -> None:
    """A number that is typed in, or whose JSON is gone or changed, makes them differ."""
    assert PAGE.read_text(encoding="utf-8") == report.page(RESULTS, PAGE.stem)
    plotted = [p for p in RESULTS.glob("*.json") if report.read(p).get("kind") in plot.KINDS]
    assert {p.name for p in PAGE.parent.glob("performance_*.png")} == {report.plot_name(PAGE.stem, p) for p in plotted}


def test_the_committed_plots_show_the_recorded_figures() -> None:
    for path in RESULTS.glob("*.json"):
        document = report.read(path)
        if document.get("kind") in plot.KINDS:
            image = PAGE.with_name(report.plot_name(PAGE.stem, path)).read_bytes()
            assert plot.digest(document).encode() in image, path.name


def test_a_plot_carries_the_digest_of_its_figures(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    document = op_document()
    plot.draw(document, tmp_path / "a.png")
    image = (tmp_path / "a.png").read_bytes()
    other = copy.deepcopy(document)
    other["results"][0]["rows"][0]["tops"] += 1e-9
    assert plot.digest(document).encode() in image
    assert plot.digest(other).encode() not in image


def test_parts_of_a_scale_that_were_not_measured_are_left_out(tmp_path) -> None:
    document = scale_document()
    results = write(tmp_path / "r", a={key: document[key] for key in ("kind", "header", "start")})
    report.write(results, page := tmp_path / "page.md")
    assert "| library load |" in page.read_text()
    assert "layers" not in page.read_text()


def test_a_problem_in_a_line() -> None:
    (result, _) = op_document()["results"]
    result["rows"][1] |= {"seconds": 0.01, "intfa_is_faster_by": "2.19x"}
    ours = "B1 H8 S256 D64: 4.567 ms, 0.3 TOPS"
    assert report.op_sentence(result) == f"{ours}; speedup: 2.19x over other"
    result["rows"][0] |= {"skipped": "no GPU"}
    assert report.op_sentence(result) == "B1 H8 S256 D64: intfa int8 skipped, no GPU"


def test_lines_of_the_plot() -> None:
    assert plot.tops_lines(op_document()) == {"B1 H8 D64": {OURS: [(128, 0.128), (256, 0.256)]}}


def test_plot_command(tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    results = write(tmp_path, op=op_document(), scale=scale_document(), model=model_document())
    for name in ("op", "scale"):
        assert cli.main(["bench", "plot", str(results / f"{name}.json")]) == 0
        assert (results / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["bench", "plot", str(results / "model.json")]) == 2
    assert "'model' has no plot" in capsys.readouterr().err
    assert cli.main(["bench", "plot", str(results / "op.json"), "-o", str(tmp_path / "no/such.png")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_what_is_not_a_result_is_refused(tmp_path) -> None:
    (tmp_path / "broken.json").write_text('{"kind": "op", "header": {}}')
    with pytest.raises(ModelError, match=r"broken\.json"):
        report.write(tmp_path, tmp_path / "page.md")
    with pytest.raises(ModelError, match="bench op --json"):
        plot.draw({"kind": "op", "results": [{}]}, tmp_path / "x.png")
    with pytest.raises(UnsupportedError, match="no plot"):
        plot.draw({}, tmp_path / "x.png")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ModelError, match=r"broken\.json.*not JSON"):
        report.page(tmp_path)
