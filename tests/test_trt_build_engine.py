"""build-engine and load_trt_plugin: the commands that they print, and what they tell TensorRT's Python package."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_tensorrt
import onnx
import pytest
import tensorrt_packages
from onnx import TensorProto
from small_models import attention_model, function_model, plain_model

import intfa_onnx
from intfa_onnx import native
from intfa_onnx.cli import main
from intfa_onnx.errors import UnsupportedError

SHAPES = [argument for name in "QKV" for argument in ("--shapes", f"{name}:1x2x8x16,2x2x64x16,4x2x512x16")]


@pytest.fixture
def library() -> Path:
    try:
        return native.get_library_path("trt")
    except UnsupportedError as error:
        pytest.skip(str(error))


@pytest.fixture
def model(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A rewritten model; the working folder is where it lies."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.onnx"
    onnx.save(intfa_onnx.rewrite(attention_model(), target="trt").to_proto(), path)
    return path


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The fake, as the module ``tensorrt``."""
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    monkeypatch.setattr(fake_tensorrt, "told", {})
    monkeypatch.setattr(fake_tensorrt, "_registry", fake_tensorrt.IPluginRegistry())
    return fake_tensorrt


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["build-engine", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_attention_in_a_function(library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(intfa_onnx.rewrite(function_model(), target="trt").to_proto(), path)
    code, out, err = run(capsys, path, "-o", tmp_path / "model.plan", *SHAPES, "--dry-run")
    assert (code, err) == (0, "")
    assert "trtexec" in out


def test_commands(model: Path, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, model, "-o", "model.plan", *SHAPES, "--timing-cache", "t.cache", "--dry-run")
    assert (code, err) == (0, "")
    trtexec, polygraphy = out.splitlines()
    assert trtexec == (
        f"trtexec --onnx={model} --saveEngine=model.plan --stronglyTyped --staticPlugins={library} "
        "--minShapes=Q:1x2x8x16,K:1x2x8x16,V:1x2x8x16 --optShapes=Q:2x2x64x16,K:2x2x64x16,V:2x2x64x16 "
        "--maxShapes=Q:4x2x512x16,K:4x2x512x16,V:4x2x512x16 --timingCacheFile=t.cache"
    )
    assert shlex.split(polygraphy) == [
        *("polygraphy", "convert", str(model), "-o", "model.plan", "--strongly-typed", "--plugins", str(library)),
        *("--trt-min-shapes", "Q:[1,2,8,16]", "K:[1,2,8,16]", "V:[1,2,8,16]"),
        *("--trt-opt-shapes", "Q:[2,2,64,16]", "K:[2,2,64,16]", "V:[2,2,64,16]"),
        *("--trt-max-shapes", "Q:[4,2,512,16]", "K:[4,2,512,16]", "V:[4,2,512,16]"),
        *("--save-timing-cache", "t.cache"),
    ]
    assert not Path("model.plan").exists()


def test_polygraphy_takes_its_command(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Polygraphy itself reads the options, and fails no earlier than at TensorRT, which is not installed."""
    pytest.importorskip("polygraphy")
    code, out, _ = run(capsys, model, "-o", "model.plan", *SHAPES, "--dry-run", "--json")
    assert code == 0
    command = json.loads(out)["polygraphy"]
    script = "import sys; from polygraphy.tools import main; sys.argv[0] = 'polygraphy'; main()"
    answer = subprocess.run([sys.executable, "-c", script, *command[1:]], capture_output=True, text=True)
    said = answer.stdout + answer.stderr
    assert "unrecognized arguments" not in said
    assert "usage:" not in said
    assert re.search("tensorrt", said, re.IGNORECASE), said


def test_builds_through_the_python_package(model: Path, library: Path, tensorrt: Any, capsys: Any) -> None:
    Path("t.cache").write_bytes(b"old timings")
    options = ("--timing-cache", "t.cache", "--embed-plugin", "--json")
    code, out, err = run(capsys, model, "-o", "model.plan", *SHAPES, *options)
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert (said["engine"], said["bytes"]) == ("model.plan", len(b"an engine"))
    # only trtexec can embed a plugin
    assert "polygraphy" not in said
    assert f"--dynamicPlugins={library}" in said["trtexec"]
    assert f"--setPluginsToSerialize={library}" in said["trtexec"]
    assert Path("model.plan").read_bytes() == b"an engine"
    assert Path("t.cache").read_bytes() == b"old timings and new timings"
    told = json.loads(fake_tensorrt.TOLD.read_text())
    sizes = [[1, 2, 8, 16], [2, 2, 64, 16], [4, 2, 512, 16]]
    assert told == {
        "loaded": [str(library)],
        "flags": 1 << fake_tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED,
        "parsed": str(model),
        "profile": {name: sizes for name in "QKV"},
        "embedded": [str(library)],
    }
    assert sorted(p.name for p in Path().iterdir()) == ["model.onnx", "model.plan", "t.cache", "told.json"]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("load", "TensorRT 10.16.1.11 does not load"),
        ("parse", "cannot parse '.*model.onnx': Plugin not found"),
        ("build", "cannot build '.*model.onnx': intfa: IntFlashAttention 'layer': head_dim=12 is unsupported"),
    ],
)
def test_refusals_of_tensorrt(step: str, message: str, model: Path, tensorrt: Any, capsys: Any) -> None:
    fake_tensorrt.FAIL.write_text(step)
    code, out, err = run(capsys, model, "-o", "model.plan", *SHAPES)
    assert code == 2
    assert re.search(message, err)
    assert len(err.splitlines()) == 1
    assert out.startswith("trtexec")
    assert not Path("model.plan").exists()


def test_without_tensorrt(model: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    code, out, err = run(capsys, model, "-o", "model.plan", *SHAPES)
    assert code == 2
    assert "TensorRT cannot be imported" in err
    assert "pip install 'intfa-onnx[trt]'" in err
    assert [line.split()[0] for line in out.splitlines()] == ["trtexec", "polygraphy"]  # to be run elsewhere
    with pytest.raises(UnsupportedError, match="TensorRT cannot be imported"):
        intfa_onnx.load_trt_plugin()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the sizes of Q, K, V are dynamic. Give each, e.g. --shapes Q:1x1x1x1"),
        (["--shapes", "Q:1x2x8x16"], "the sizes of K, V are dynamic"),
        ([*SHAPES, "--shapes", "mask:1x8"], "--shapes mask: the model has no such input"),
        ([*SHAPES, "--shapes", "Q:1x2x8x16"], "--shapes gives 'Q' twice"),
        (["--shapes", "Q:1x2x8"], "--shapes Q: the model's input is"),
        (["--shapes", "Q:1x3x8x16"], "--shapes Q: the model's input is"),
        (["--shapes", "Q:1x2x8x16,2x2x8x16"], "is not NAME:DIMS or NAME:MIN,OPT,MAX"),
        (["--shapes", "Q:1x2x8x16,2x2x8x16,1x2x9x16"], "is not in the order MIN,OPT,MAX"),
        (["--shapes", "Q:1xB"], "is not NAME:DIMS"),
    ],
)
def test_bad_shapes(arguments: list[str], message: str, model: Path, capsys: Any) -> None:
    code, out, err = run(capsys, model, "-o", "model.plan", *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_help_has_examples(capsys: Any) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert "Examples" in out
    assert out.count("intfa-onnx build-engine") >= 3


def test_does_not_overwrite(model: Path, tensorrt: Any, capsys: Any) -> None:
    Path("model.plan").write_text("mine")
    code, _, err = run(capsys, model, "-o", "model.plan", *SHAPES)
    assert code == 2
    assert "'model.plan' exists" in err
    assert Path("model.plan").read_text() == "mine"
    assert run(capsys, model, "-o", "model.plan", *SHAPES, "--force")[0] == 0
    assert Path("model.plan").read_bytes() == b"an engine"
    code, _, err = run(capsys, model, "-o", "no/model.plan", *SHAPES)
    assert (code, "the folder 'no' does not exist" in err) == (2, True)
    code, _, err = run(capsys, model, "-o", "other.plan", *SHAPES, "--timing-cache", "no/cache")
    assert (code, "the folder 'no' does not exist" in err) == (2, True)
    assert not Path("other.plan").exists(), "said before the minutes that a build takes"


@pytest.mark.parametrize("arguments", [["-o", "model.onnx"], ["-o", "model.plan", "--timing-cache", "model.onnx"]])
def test_the_model_is_not_overwritten(arguments: list[str], model: Path, tensorrt: Any, capsys: Any) -> None:
    before = model.read_bytes()
    code, _, err = run(capsys, model, *arguments, *SHAPES, "--force")
    assert (code, "would overwrite each other" in err) == (2, True)
    assert model.read_bytes() == before


def test_models_that_would_not_run(library: Path, tmp_path: Path, capsys: Any) -> None:
    plain, portable, boolean = (tmp_path / f"{name}.onnx" for name in ("plain", "portable", "boolean"))
    onnx.save(plain_model(), plain)
    onnx.save(intfa_onnx.rewrite(attention_model(), portable=True).to_proto(), portable)
    masked = intfa_onnx.rewrite(attention_model()).to_proto()
    masked.graph.node[0].input.append("mask")
    masked.graph.input.append(onnx.helper.make_tensor_value_info("mask", TensorProto.BOOL, ["S", "S"]))
    onnx.save(masked, boolean)
    for path, message in (
        (plain, "has no IntFlashAttention. Rewrite it first: intfa-onnx rewrite"),
        (portable, "is portable"),
        (boolean, "has a boolean mask"),
    ):
        code, _, err = run(capsys, path, "-o", tmp_path / "model.plan", *SHAPES)
        assert code == 2
        assert message in err


def test_load_trt_plugin_twice(library: Path, tensorrt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert intfa_onnx.load_trt_plugin() == intfa_onnx.load_trt_plugin() == library
    assert fake_tensorrt.told["loaded"] == [str(library)]
    monkeypatch.setattr(fake_tensorrt, "__version__", "8.6.1")
    with pytest.raises(UnsupportedError, match=r"TensorRT 8\.6\.1 is unsupported \(supported: 10 and 11\)"):
        intfa_onnx.load_trt_plugin()


def test_the_fake_has_the_names_of_the_real_package() -> None:
    """Every class and attribute of the fake is there in NVIDIA's package of the same API."""
    tree = ast.parse(Path(fake_tensorrt.__file__).read_text())
    names = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            names += [f"{node.name}.{f.name}" for f in node.body if isinstance(f, ast.FunctionDef)]
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            names.append(node.name)
    names += ["IBuilderConfig.plugins_to_serialize", "IPluginRegistry.all_creators", "OnnxParser.num_errors"]
    names += ["NetworkDefinitionCreationFlag.STRONGLY_TYPED", "ILogger.Severity.ERROR", "Logger.WARNING", "__version__"]
    script = (
        "import sys, functools, tensorrt_rtx as trt\n"
        "for name in sys.argv[1:]: functools.reduce(getattr, name.replace('Severity.__', '__').split('.'), trt)\n"
    )
    names = [name for name in names if not name.startswith("Severity.")]
    python = tensorrt_packages.environment("tensorrt_rtx==1.7.*")
    answer = subprocess.run([str(python), "-c", script, *names], capture_output=True, text=True, env=dict(os.environ))
    assert answer.returncode == 0, answer.stderr
