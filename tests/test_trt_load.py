"""The TensorRT plugin in NVIDIA's own code: loaded in every way and order by TensorRT 10 and 11, and by its parser."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import tensorrt_packages
from onnx import TensorProto, helper
from small_models import attention_model

import intfa_onnx
from intfa_onnx import native, op_schema
from intfa_onnx.errors import UnsupportedError

# The runtime without the builder: real registries, small, and they load without a driver.
LEAN = {"10": "tensorrt_lean==10.16.*", "11": "tensorrt_lean==11.4.*"}
# Its builder and parser work without a GPU too; plugins end there, for its engines have none.
RTX = "tensorrt_rtx==1.7.*"

pytestmark = pytest.mark.xdist_group("trt_load")


@pytest.fixture(scope="module")
def library() -> Path:
    try:
        return native.get_library_path("trt")
    except UnsupportedError as error:
        pytest.skip(str(error))


def perform(python: Path, module: str, *steps: str) -> tuple[list[dict[str, Any]], str]:
    command = [str(python), tensorrt_packages.__file__, module, *steps]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, f"{steps}: {answer.stdout} {answer.stderr[-2000:]}"
    return [json.loads(line) for line in answer.stdout.splitlines() if line.startswith("{")], answer.stderr


def tool(name: str) -> str:
    return shutil.which(name) or pytest.skip(f"{name} is not installed")


def test_exports_and_dependencies(library: Path) -> None:
    symbols = subprocess.run([tool("nm"), "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    assert {line.split()[-1] for line in symbols.stdout.splitlines()} == {"getCreators", "setLoggerFinder"}
    dynamic = subprocess.run([tool("readelf"), "-d", library], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"NEEDED.*\[(.*?)\.so", dynamic))
    # nothing of TensorRT or CUDA, which are found in the process or linked in
    assert needed <= {"libstdc++", "libm", "libgcc_s", "libc", "libpthread", "libdl", "librt", "ld-linux-x86-64"}
    assert "libstdc++" in needed  # linked statically it would raise the oldest glibc
    assert "NODELETE" in dynamic
    versions = subprocess.run([tool("readelf"), "-V", library], capture_output=True, text=True, check=True).stdout
    # RHEL 9's glibc, as for libintfa_ort.so
    assert max(tuple(map(int, v.split("."))) for v in re.findall(r"Name: GLIBC_(2[\d.]+)", versions)) <= (2, 34)


@pytest.mark.parametrize("version", LEAN)
@pytest.mark.parametrize(
    "order",
    ["dlopen", "load", "dlopen load", "load dlopen", "load load", "dlopen load unload load", "load unload load"],
)
def test_load_orders(version: str, order: str, library: Path) -> None:
    """One creator whatever the order, it makes plugins, and the process ends without a crash."""
    python = tensorrt_packages.environment(LEAN[version])
    steps = [f"{step}:{library}" if step != "unload" else step for step in order.split()]
    lines, stderr = perform(python, "tensorrt_lean", *steps, "create")
    assert lines[0]["creators"] == 0
    for before, line in itertools.pairwise(lines):
        assert line["creators"] == (0 if line["step"] == "unload" else 1)
        if line["step"] == "load":
            # TensorRT itself refuses a library that it has loaded already
            assert line["loaded"] == (before["step"] != "load")
    created = lines[-1]
    assert created["created"]
    assert created["capabilities"] == [True, True, True]
    assert created["refused"]
    assert "intfa: IntFlashAttention 'layer': attribute 'is_casual' is unknown (supported: q_num_heads" in stderr
    types = {int: "INT32", float: "FLOAT32", str: "CHAR"}
    assert created["fields"] == {
        name: types[type(a.default)]
        for name, a in op_schema.ATTRIBUTES.items()
        if name not in ("plugin_namespace", "plugin_version")
    }


@pytest.mark.parametrize("version", LEAN)
def test_plugin_before_tensorrt(version: str, library: Path, tmp_path: Path) -> None:
    """Polygraphy opens plugins before it imports tensorrt: the plugin finds libnvinfer beside its own package."""
    python = tensorrt_packages.environment(LEAN[version])
    packages = next((python.parent.parent / "lib").glob("python*/site-packages"))
    (tmp_path / "tensorrt_libs").mkdir()
    (tmp_path / f"tensorrt_libs/libnvinfer.so.{version}").symlink_to(
        packages / f"tensorrt_lean_libs/libnvinfer_lean.so.{version}"
    )
    (tmp_path / "intfa_onnx/lib").mkdir(parents=True)
    ours = shutil.copy(library, tmp_path / "intfa_onnx/lib")
    lines, _ = perform(python, "tensorrt_lean", f"early:{ours}", f"load:{ours}", "create")
    assert [line["creators"] for line in lines] == [1, 1, 1]
    assert lines[1]["loaded"]


def test_without_tensorrt_the_library_still_opens(library: Path) -> None:
    script = f"import ctypes; ctypes.CDLL({str(library)!r})"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize(
    ("order", "creators"),
    [
        ("dlopen builder create drop", [1, 0, 1, 1]),
        ("builder create drop", [0, 1, 1]),
        ("load builder create drop", [1, 1, 1, 1]),
        ("builder load create drop unload", [0, 1, 1, 1, 0]),
        ("dlopen copy drop", [1, 1, 1]),
        ("load copy create drop", [1, 1, 1, 1]),
    ],
)
def test_registry_of_a_builder(order: str, creators: list[int], library: Path, tmp_path: Path) -> None:
    """A builder's registry takes what it has with it when it goes; the process-wide one has its creator again by then.

    ``copy`` is what an engine brings with it after --setPluginsToSerialize: the library from another file.
    """
    python = tensorrt_packages.environment(RTX)
    other = shutil.copy(library, tmp_path / "plugin_of_an_engine.so")
    steps = [
        {"copy": f"builder:{other}", "drop": step, "create": step, "unload": step}.get(step, f"{step}:{library}")
        for step in order.split()
    ]
    lines, _ = perform(python, "tensorrt_rtx", *steps)
    assert [line["creators"] for line in lines[1:]] == creators
    assert all(line.get("loaded", True) and line.get("created", True) for line in lines)


def test_refusal_in_the_log_of_tensorrt(library: Path) -> None:
    lines, stderr = perform(tensorrt_packages.environment(RTX), "tensorrt_rtx", f"builder:{library}", "create")
    (line,) = lines[-1]["log"]
    assert line.startswith("intfa: IntFlashAttention 'layer': attribute 'is_casual' is unknown (supported: ")
    assert "is_casual" not in stderr


PARSE = """
import sys
import tensorrt_rtx as trt
log = trt.Logger(trt.Logger.INFO)
builder = trt.Builder(log)
assert builder.get_plugin_registry().load_library(sys.argv[2]) is not None
network = builder.create_network(0)
parser = trt.OnnxParser(network, log)
parser.parse_from_file(sys.argv[1])
"""


def parsed_fields(model: onnx.ModelProto, library: Path, folder: Path) -> tuple[dict[str, str], str]:
    """Return the fields of the first plugin that the parser asks for, and what the parser said."""
    onnx.save(model, folder / "model.onnx")
    command = [str(tensorrt_packages.environment(RTX)), "-c", PARSE, str(folder / "model.onnx"), str(library)]
    answer = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "INTFA_LOG": "1"}, cwd=folder
    )
    said = answer.stdout + answer.stderr  # it ends in abort(): RTX has no plugin layers
    found = re.search(r"intfa: TensorRT: (.*?): intfa [\d.]+;(.*);\n", said)
    assert found, said[-3000:]
    return dict(pair.split("=", 1) for pair in found[2].split(";")), said


def test_parser_passes_every_attribute(library: Path, tmp_path: Path) -> None:
    """Each attribute with a value of its own, through NVIDIA's parser into the plugin."""
    chosen: dict[str, Any] = {
        "q_num_heads": 4,
        "kv_num_heads": 2,
        "scale": 0.375,
        "is_causal": 1,
        "causal_alignment": "lower_right",
        "softcap": 30.5,
        "window_left": 17,
        "window_right": 3,
        "precision": "int8_qk",
        "scheme": "paper",
        "k_granularity": "group",
        "smooth_k": 0,
        "output_dtype": TensorProto.FLOAT16,
        "plugin_inputs": "Q,K,V",
        "plugin_outputs": 2,
        "plugin_namespace": "intfa",
        "plugin_version": "1",
    }
    assert set(chosen) == set(op_schema.ATTRIBUTES)
    heads = {"Q": 4, "K": 2, "V": 2}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8, h * 16]) for n, h in heads.items()]
    node = helper.make_node(op_schema.OP_TYPE, list("QKV"), ["Y"], name="the layer", domain=op_schema.DOMAIN, **chosen)
    y = helper.make_tensor_value_info("Y", TensorProto.FLOAT16, None)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(op_schema.DOMAIN, 1)]
    model = helper.make_model(helper.make_graph([node], "g", inputs, [y]), opset_imports=opsets, ir_version=9)
    fields, _ = parsed_fields(model, library, tmp_path)
    expected = {n: str(x) for n, x in chosen.items() if n not in ("plugin_namespace", "plugin_version")}
    assert fields == expected


@pytest.mark.parametrize("target", ["ort", "trt", "ort-trt-ep"])
def test_parser_finds_the_plugin_of_a_rewritten_model(target: str, library: Path, tmp_path: Path) -> None:
    model = intfa_onnx.rewrite(attention_model(scale=0.3), target=target).to_proto()
    fields, said = parsed_fields(model, library, tmp_path)
    assert float(fields["scale"]) == pytest.approx(0.3, rel=1e-6)
    assert "Successfully created plugin: IntFlashAttention" in said
    # a node that leaves attributes to their defaults is warned of, each time
    assert ("not found in plugin node" in said) == (target == "ort")


def test_parser_reads_a_rewritten_minilm(library: Path, tmp_path: Path) -> None:
    """An exported encoder of MiniLM's shape, with its padding mask: its first layer arrives with its own values."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from zoo.export import Variant, export

    variant = Variant("minilm", "dynamo", 18, "sdpa")
    result = intfa_onnx.rewrite(tmp_path / str(export(variant, tmp_path).file), target="trt")
    assert [a.decision for a in result.attentions] == ["replaced"] * variant.build().attentions
    model = result.to_proto()
    node = next(n for n in model.graph.node if n.op_type == op_schema.OP_TYPE)
    assert len(node.input) == 4  # with a mask
    expected = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    fields, said = parsed_fields(model, library, tmp_path)
    assert f"TensorRT: {node.name}:" in said
    for name, text in fields.items():
        value = expected[name]
        if isinstance(value, float):
            assert float(text) == pytest.approx(value, rel=1e-6)
        else:
            assert text == (value.decode() if isinstance(value, bytes) else str(value))
    assert int(fields["q_num_heads"]) > 0  # packed heads
