"""The examples in the help of every command and in the pages of docs run as they are written."""

from __future__ import annotations

import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from attention_graphs import check_same, fused, run
from typer.main import get_command

import intfa_onnx
from intfa_onnx import cli, patterns
from intfa_onnx.patterns import match

pytest.importorskip("onnxruntime")
pytest.importorskip("polygraphy")
ROOT = Path(__file__).resolve().parent.parent
SLOW = ("bench op", "bench scale", "bench report")  # benchmarks, and all plots


def examples_of_help(command: Any = None) -> list[str]:
    command = command or get_command(cli.app)
    lines = (command.help or "").replace("\\\n", " ").replace("\\[", "[").splitlines()
    found = [" ".join(line.split()) for line in lines if line.strip().startswith("intfa-onnx ")]
    return found + [e for part in getattr(command, "commands", {}).values() for e in examples_of_help(part)]


def examples_of_pages() -> list[str]:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))
    blocks = re.findall(r"^```\w*\n(.*?)^```", pages, re.DOTALL | re.MULTILINE)
    lines = [" ".join(line.split()) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("intfa-onnx ")]


def parameter(example: str) -> Any:
    marks = [pytest.mark.slow] if any(part in example for part in SLOW) else []
    if "--device cuda" in example or ("build-engine" in example and "--dry-run" not in example):
        marks.append(pytest.mark.gpu)
    return pytest.param(example, marks=marks)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what the examples read: models, inputs, an engine, records of benchmarks."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18]>
        g (int64[B, S] input_ids, int64[B, S] attention_mask) => (float[B, 2, S, 16] y)
          <int64[2] front = {1, 2}, int64[1] last = {3}, int64[4] heads = {1, 2, 1, 16}, float one = {1},
           float low = {-3e38}> {
            ids = Cast <to = 1> (input_ids)
            waves = Sin (ids)
            x0 = Unsqueeze (waves, front)
            x1 = Transpose <perm = [0, 1, 3, 2]> (x0)
            x = Expand (x1, heads)
            seen = Cast <to = 1> (attention_mask)
            padding = Sub (one, seen)
            hidden = Mul (padding, low)
            mask = Unsqueeze (hidden, front)
            t = Transpose <perm = [0, 1, 3, 2]> (x)
            product = MatMul (x, t)
            scores = Add (product, mask)
            p = Softmax <axis = -1> (scores)
            y = MatMul (p, x)
        }"""
    )
    for node in model.graph.node:
        node.name = "/layer.0/Softmax" if node.op_type == "Softmax" else f"/layer.0/{node.output[0]}"
    folder = tmp_path_factory.mktemp("examples")
    onnx.save(model, folder / "model.onnx")
    intfa_onnx.rewrite(model).save(folder / "model.int8.onnx")
    intfa_onnx.rewrite(model, target="trt").save(folder / "model.trt.onnx")
    ids = np.arange(20).reshape(2, 10)
    np.savez(folder / "real.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    (folder / "model.plan").write_bytes(b"an engine")
    shutil.copytree(ROOT / "benchmarks/results", folder / "benchmarks/results")
    shutil.copy(ROOT / "benchmarks/results/op_cpu_avx512vnni_1t_d64.json", folder / "h200.json")
    return folder


@pytest.mark.parametrize("example", [parameter(e) for e in dict.fromkeys(examples_of_help() + examples_of_pages())])
def test_example(
    example: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, module in (("build-engine", "tensorrt"), ("bench plot", "matplotlib"), ("bench report", "matplotlib")):
        if part in example and "--dry-run" not in example:
            pytest.importorskip(module)
    here = tmp_path / "here"
    shutil.copytree(files, here)
    monkeypatch.chdir(here)
    _, *arguments = shlex.split(example.partition(" | ")[0])
    for written in [b for a, b in pairwise(arguments) if a in ("-o", "--output")]:
        Path(written).unlink(missing_ok=True)
    code = cli.main(arguments)
    said = capsys.readouterr()
    assert code == 0, said
    assert "names no attention" not in said.err


def test_every_command_has_an_example() -> None:
    named = {" ".join(e.split()[1:3]) for e in examples_of_help()}
    commands = get_command(cli.app).commands
    wanted = {name for name in commands if name not in ("bench", "libpath")}  # libpath's are of other programs
    wanted |= {f"bench {name}" for name in commands["bench"].commands}
    assert not {w for w in wanted if not any(n == w or n.startswith(f"{w} ") for n in named)}


def test_the_family_that_docs_add(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/patterns.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    family = dict(vars(match))
    exec("if True:\n" + code, family)
    monkeypatch.setattr(patterns, "FAMILIES", (*patterns.FAMILIES, SimpleNamespace(**family)))
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18, "com.example": 1]>
        g (float[B, 2, S, 16] Q, float[B, 2, T, 16] K, float[B, 2, T, 16] V, float[B, 2, S, T] bias)
          => (float[B, 2, S, 16] Y) { Y = com.example.FusedSdpa (Q, K, V, bias) }"""
    )
    result = intfa_onnx.rewrite(model, portable=True)
    assert [(a.pattern, a.decision) for a in result.attentions] == [("example", "replaced")]
    rng = np.random.default_rng(0)
    shapes = {"Q": (2, 2, 5, 16), "K": (2, 2, 7, 16), "V": (2, 2, 7, 16), "bias": (2, 2, 5, 7)}
    feed = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    scores = feed["Q"] @ feed["K"].swapaxes(2, 3) + feed["bias"]
    p = np.exp(scores - scores.max(-1, keepdims=True))
    check_same(run(result.to_proto(), feed)[0], p / p.sum(-1, keepdims=True) @ feed["V"])
    assert len(fused(result.to_proto())) == 1
