"""Polygraphy's own command line with our extension and our pattern, as a user types it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import cpu_copies
import numpy as np
import onnx
import pytest
from small_models import attention_model

import intfa_onnx
from intfa_onnx.cli import main

pytest.importorskip("polygraphy")
pytest.importorskip("onnx_graphsurgeon")
yaml = pytest.importorskip("yaml")
if not importlib.metadata.entry_points(group="polygraphy.run.plugins", name="intfa"):
    pytest.skip("the package is not installed, so Polygraphy does not find its extension", allow_module_level=True)

SHAPES = ["--input-shapes", "Q:[1,2,5,16]", "K:[1,2,7,16]", "V:[1,2,7,16]"]


def polygraphy(*arguments: str | Path) -> str:
    """Run the command and return what it prints, without line breaks."""
    scripts = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    program = shutil.which("polygraphy", path=scripts)
    assert program
    command = [sys.executable, program, *map(str, arguments)]
    answer = subprocess.run(command, capture_output=True, text=True, env=cpu_copies.rounding())
    said = " ".join((answer.stdout + answer.stderr).split())
    assert answer.returncode == 0, said[-3000:]
    return said


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with model.onnx and its rewritten int8.onnx."""
    folder = tmp_path_factory.mktemp("polygraphy")
    onnx.save(attention_model(), folder / "model.onnx")
    intfa_onnx.rewrite(folder / "model.onnx").save(folder / "int8.onnx")
    return folder


def test_run_needs_no_path(models: Path) -> None:
    said = polygraphy("run", models / "int8.onnx", "--ort-custom", "--pluginref", *SHAPES, "--atol", "1e-6")
    assert "Pass Rate: 100.00%" in said


def test_run_fails_where_outputs_differ(models: Path, tmp_path: Path) -> None:
    """The run above compares something: another operator's attribute is seen."""
    model = onnx.load(models / "int8.onnx")
    (scale,) = (a for a in model.graph.node[0].attribute if a.name == "scale")
    scale.f = 1.0
    onnx.save(model, tmp_path / "other.onnx")
    polygraphy("run", tmp_path / "other.onnx", "--ort-custom", *SHAPES, "--save-outputs", tmp_path / "outputs.json")
    command = ("run", models / "int8.onnx", "--ort-custom", *SHAPES, "--load-outputs", tmp_path / "outputs.json")
    with pytest.raises(AssertionError, match="FAILED"):
        polygraphy(*command, "--atol", "1e-3")


def test_run_takes_other_outputs_and_providers(models: Path) -> None:
    """Polygraphy hands a changed model over as a loader; a part of a provider's name is enough."""
    said = polygraphy("run", models / "int8.onnx", "--ort-custom", "--onnx-outputs", "Y", "--providers", "cpu", *SHAPES)
    assert "PASSED" in said


def test_reference_of_a_whole_model(tmp_path: Path) -> None:
    """Every operator of an exported BERT has a reference, and ours equals the library's bits up to a rounding of P."""
    pytest.importorskip("transformers")
    from zoo.export import Variant, export

    variant = Variant("bert", "torchscript", 17, "eager")
    case = variant.build()
    result = intfa_onnx.rewrite(tmp_path / str(export(variant, tmp_path).file))
    assert len(result.attentions) == case.attentions
    result.save(tmp_path / "int8.onnx")
    shapes = [f"{name}:[{','.join(map(str, x.shape))}]" for name, x in case.feed({}).items()]
    options = ["--input-shapes", *shapes, "--val-range", "input_ids:[0,99]", "attention_mask:[1,1]"]
    said = polygraphy("run", tmp_path / "int8.onnx", "--ort-custom", "--pluginref", *options, "--atol", "1e-2")
    assert "Pass Rate: 100.00%" in said


def test_tensorrt_loads_the_plugin_by_itself(models: Path) -> None:
    from intfa_onnx import native

    try:
        library = native.get_library_path("trt")
    except intfa_onnx.UnsupportedError as error:
        pytest.skip(str(error))
    script = polygraphy("run", models / "int8.onnx", "--trt", "--gen", "-")
    assert f"LoadPlugins(plugins=['{library}']" in script
    assert "LoadPlugins" not in polygraphy("run", models / "int8.onnx", "--ort-custom", "--gen", "-")


def test_match_and_replace(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["libpath", "polygraphy"]) == 0
    plugins = ["--plugin-dir", capsys.readouterr().out.strip()]
    config, replaced = tmp_path / "config.yaml", tmp_path / "replaced.onnx"
    polygraphy("plugin", "match", models / "model.onnx", *plugins, "-o", config)
    (found,) = yaml.safe_load_all(config.read_text())
    (instance,) = found["instances"]
    assert (found["op"], instance["inputs"], instance["outputs"]) == ("IntFlashAttention", ["Q", "K", "V"], ["Y"])
    assert instance["attributes"]["scale"] == 0.25

    said = polygraphy("plugin", "replace", models / "model.onnx", *plugins, "--config", config, "-o", replaced)
    assert "replaced 1 instances" in said
    rng = np.random.default_rng(0)
    feed = {n: rng.standard_normal((1, 2, s, 16)).astype(np.float32) for n, s in zip("QKV", (5, 7, 7), strict=True)}
    np.testing.assert_array_equal(run(replaced, feed), run(models / "int8.onnx", feed))


def test_only_the_instances_that_are_left_are_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = onnx.compose.merge_models(
        onnx.compose.add_prefix(attention_model(), "a/"),
        onnx.compose.add_prefix(attention_model(), "b/"),
        io_map=[("a/Y", "b/Q")],
    )
    onnx.save(two, tmp_path / "two.onnx")
    assert main(["libpath", "polygraphy"]) == 0
    plugins = ["--plugin-dir", capsys.readouterr().out.strip()]
    config, replaced = tmp_path / "config.yaml", tmp_path / "replaced.onnx"
    polygraphy("plugin", "match", tmp_path / "two.onnx", *plugins, "-o", config)
    (found,) = yaml.safe_load_all(config.read_text())
    assert len(found["instances"]) == 2
    for kept, expected in ((found["instances"], 2), (found["instances"][1:], 1)):
        config.write_text(yaml.safe_dump({**found, "instances": kept}))
        polygraphy("plugin", "replace", tmp_path / "two.onnx", *plugins, "--config", config, "-o", replaced)
        nodes = [node for node in onnx.load(replaced).graph.node if node.op_type == "IntFlashAttention"]
        assert len(nodes) == expected
    assert nodes[0].name == "b/attention/Softmax_P"


def run(path: Path, feed: dict[str, np.ndarray]) -> Any:
    from intfa_onnx.session import open_session

    return open_session(path).run(None, feed)[0]
