"""The command line on good input: each command, its text and its JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import cpu_copies
import numpy as np
import onnx
import pytest
from small_models import attention_model, plain_model

import intfa_onnx
from intfa_onnx.cli import main
from intfa_onnx.op_schema import DOMAIN, OP_TYPE


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(attention_model(), path)
    return path


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> Any:
    assert main([str(a) for a in arguments]) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def our_nodes(path: Path) -> list[onnx.NodeProto]:
    return [node for node in onnx.load(path).graph.node if (node.domain, node.op_type) == (DOMAIN, OP_TYPE)]


def test_rewrite_replaces_and_reports(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, report = tmp_path / "out.onnx", tmp_path / "report.json"
    assert main(["rewrite", str(model), "-o", str(output), "--report", str(report)]) == 0
    assert "replaced" in capsys.readouterr().out
    assert len(our_nodes(output)) == 1
    (attention,) = json.loads(report.read_text())["attentions"]
    assert attention["decision"] == "replaced"
    assert attention["head_dim"] == 16


def test_rewrite_passes_its_options_on(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.onnx"
    found = run_json(
        capsys, "rewrite", model, "-o", output, "--precision", "int8_qk", "--scheme", "paper", "--portable", "--json"
    )
    (attention,) = found["attentions"]
    assert (attention["precision"], attention["scheme"]) == ("int8_qk", "paper")
    (node,) = our_nodes(output)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert (attributes["precision"], attributes["scheme"]) == (b"int8_qk", b"paper")
    assert [f.name for f in onnx.load(output).functions] == [OP_TYPE]


@pytest.mark.parametrize(("option", "replaced"), [("--only", 1), ("--skip", 0)])
def test_rewrite_by_name(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, replaced: int
) -> None:
    output = tmp_path / "out.onnx"
    run_json(capsys, "rewrite", model, "-o", output, option, "attention/*", "--json")
    assert len(our_nodes(output)) == replaced
    run_json(capsys, "rewrite", model, "-o", output, option, "no such node", "--json", "--force")
    assert len(our_nodes(output)) == 1 - replaced


def test_a_pattern_that_names_nothing_is_told(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped --skip would otherwise quantize what was to stay in float."""
    assert main(["rewrite", str(model), "-o", str(tmp_path / "out.onnx"), "--skip", "atention/*"]) == 0
    captured = capsys.readouterr()
    assert "wrote" in captured.out
    assert "'atention/*'" in captured.err


@pytest.mark.parametrize("name", ["model[mlp]/Softmax[0]", "model[/mlp]/Softmax", "a:key:b"])
def test_names_are_printed_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """What looks like rich's markup, or its emoji, is neither: not in a table, not in the name of a file."""
    model = attention_model()
    for node in model.graph.node:
        node.name = name if node.op_type == "Softmax" else ""
    (tmp_path / "[").mkdir()
    path, output = tmp_path / "[" / "x].onnx", tmp_path / "[red].onnx"
    onnx.save(model, path)
    assert main(["inspect", str(path)]) == 0
    assert name in capsys.readouterr().out
    assert main(["rewrite", str(path), "-o", str(output)]) == 0
    assert name in capsys.readouterr().out
    assert main(["compare", str(path), str(output), "--per-attention"]) == 0
    assert name in capsys.readouterr().out


def test_rewrite_without_attention_still_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, output = tmp_path / "plain.onnx", tmp_path / "out.onnx"
    onnx.save(plain_model(), model)
    assert main(["rewrite", str(model), "-o", str(output)]) == 0
    assert "no attention found" in capsys.readouterr().out
    onnx.checker.check_model(str(output))


def test_inspect_changes_nothing(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = model.read_bytes()
    (attention,) = run_json(capsys, "inspect", model, "--json")["attentions"]
    assert attention["node"] == "attention/Softmax_P"
    assert main(["inspect", str(model)]) == 0
    assert "attention/Softmax_P" in capsys.readouterr().out
    assert model.read_bytes() == before
    assert list(model.parent.iterdir()) == [model]


def test_inspect_tells_the_kind_of_a_file(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.onnx"
    for options, portable in ((), False), (("--portable",), True):
        run_json(capsys, "rewrite", model, "-o", output, "--force", "--json", *options)
        found = run_json(capsys, "inspect", output, "--json")
        assert found["portable"] is portable
        assert [a["decision"] for a in found["attentions"]] == ["kept"]


def test_compare_passes_and_fails(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.onnx"
    assert main(["rewrite", str(model), "-o", str(output)]) == 0
    capsys.readouterr()
    shapes = [argument for name in "QKV" for argument in ("--shapes", f"{name}:2x2x40x16")]
    result = run_json(capsys, "compare", model, output, *shapes, "--json")
    (y,) = result["outputs"]
    assert y["name"] == "Y"
    assert y["shape"] == [2, 2, 40, 16]
    assert 0 < y["rel_l2"] < 0.05, "INT8 is neither exact nor far off"
    run_json(capsys, "compare", model, output, *shapes, "--max-rel-l2", y["rel_l2"] / 2, "--json", code=1)
    run_json(capsys, "compare", model, output, *shapes, "--min-cosine", "1", "--json", code=1)
    assert main(["compare", str(model), str(output), "--min-cosine", "1"]) == 1
    printed = capsys.readouterr().out
    assert "failed" in printed
    assert "--per-attention shows" in printed


def test_compare_per_attention(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The one attention of the model is all of it, so both errors are the same but for the baseline's float32."""
    output = tmp_path / "out.onnx"
    assert main(["rewrite", str(model), "-o", str(output)]) == 0
    capsys.readouterr()
    result = run_json(capsys, "compare", model, output, "--per-attention", "--json")
    (whole,), (attention,) = result["outputs"], result["attentions"]
    assert attention["name"] == "attention/Softmax_P"
    assert attention["rel_l2"] == pytest.approx(whole["rel_l2"], rel=1e-3)
    assert result["num_unmeasured"] == 0
    assert main(["compare", str(model), str(output), "--per-attention", "--min-cosine", "1"]) == 1
    assert "--skip" in capsys.readouterr().out


def test_compare_on_given_inputs(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.onnx"
    onnx.save(attention_model(scale=0.5), other)
    archive = tmp_path / "inputs.npz"
    zeros = np.zeros((1, 2, 4, 16), np.float32)  # all scores are 0, whatever the scale: both models give the same
    np.savez(archive, Q=zeros, K=zeros, V=np.random.default_rng(0).standard_normal(zeros.shape).astype(np.float32))
    (y,) = run_json(capsys, "compare", model, other, "--inputs", archive, "--json")["outputs"]
    assert y["max_abs"] == 0
    assert y["psnr_db"] is None
    run_json(capsys, "compare", model, other, "--min-cosine", "0.99999", "--json", code=1)


def test_compare_kernel_with_reference(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    assert main(["rewrite", str(model), "-o", str(output)]) == 0
    # Where P is rounded both compute the same integers; exp2 and the order of float sums differ, by ulps of float32.
    command = ["compare", output, output, "--runner-b", "reference", "--max-rel-l2", "1e-5"]
    subprocess.run([sys.executable, "-m", "intfa_onnx.cli", *command], env=cpu_copies.rounding(), check=True)


def test_libpath(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["libpath", "ort"]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == intfa_onnx.__version__


@pytest.mark.parametrize(
    "command", ["rewrite", "inspect", "compare", "libpath", "build-engine", "serve-layout", "doctor"]
)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Example" in text
    assert text.count("intfa-onnx " + command) >= 2, "once as the usage, once as the example"


def test_installed_script_prints_one_line_and_no_traceback(tmp_path: Path) -> None:
    script = Path(sysconfig.get_path("scripts")) / "intfa-onnx"
    if not script.exists():
        pytest.skip("the package runs from its sources, without an installed script")
    answer = subprocess.run([script, "inspect", tmp_path / "absent.onnx"], capture_output=True, text=True)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert len(answer.stderr.splitlines()) == 1
    assert "absent.onnx" in answer.stderr
