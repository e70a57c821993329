"""The Triton model repository: its configuration is read back by Triton's own message, its files are run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from small_models import attention_model, function_model, plain_model
from tritonclient.grpc import model_config_pb2

import intfa_onnx
from intfa_onnx import native, serve_layout
from intfa_onnx.cli import main
from intfa_onnx.errors import IntfaError, ModelError, UnsupportedError


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file that stands for the plugin library, which may not be built here and is only copied."""
    path = tmp_path / "libintfa_trt.so"
    path.write_bytes(b"plugin")
    known = native.get_library_path
    monkeypatch.setattr(native, "get_library_path", lambda host: path if host == "trt" else known(host))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return rewritten(attention_model(), tmp_path)


def rewritten(proto: onnx.ModelProto, folder: Path) -> Path:
    original, path = folder / "original.onnx", folder / "small.int8.onnx"
    onnx.save(proto, original)
    intfa_onnx.rewrite(original).save(path)
    return path


def read_config(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def declared(values: Any) -> dict[str, tuple[str, list[int]]]:
    names = model_config_pb2.DataType.Name
    return {v.name: (names(v.data_type), list(v.dims)) for v in values}


def test_config_says_what_triton_needs(model: Path, tmp_path: Path) -> None:
    layout = serve_layout.write(tmp_path / "repo", model, max_batch_size=8)
    assert (layout.models, layout.max_batch_size, layout.why_no_batching) == (("small",), 8, "")
    assert layout.launch == f"tritonserver --model-repository={tmp_path / 'repo'}"
    config = read_config(tmp_path / "repo" / "small")
    assert (config.name, config.backend, config.max_batch_size) == ("small", "onnxruntime", 8)
    assert declared(config.input) == {name: ("TYPE_FP32", [2, -1, 16]) for name in "QKV"}
    assert declared(config.output) == {"Y": ("TYPE_FP32", [2, -1, 16])}
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds > 0


def test_attention_in_a_function(tmp_path: Path) -> None:
    """It is no node of the graph, and the model is rewritten all the same."""
    layout = serve_layout.write(tmp_path / "repo", rewritten(function_model(), tmp_path))
    assert layout.models == ("small",)


def test_repository_holds_a_model_and_the_library_that_runs_it(model: Path, tmp_path: Path) -> None:
    """The files that the server is told of run as the ONNX Runtime backend runs them."""
    serve_layout.write(tmp_path / "repo", model)
    (library,) = read_config(tmp_path / "repo" / "small").model_operations.op_library_filename
    assert Path(library).parent == tmp_path / "repo" / "small"
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(tmp_path / "repo" / "small" / "1" / "model.onnx", options)
    x = np.random.default_rng(0).normal(size=(3, 2, 5, 16)).astype(np.float32)
    (found,) = session.run(None, dict.fromkeys("QKV", x))
    truth = onnxruntime.InferenceSession(tmp_path / "original.onnx").run(None, dict.fromkeys("QKV", x))[0]
    assert np.linalg.norm(found - truth) < 0.05 * np.linalg.norm(truth)


def test_external_data_comes_along(tmp_path: Path) -> None:
    proto = attention_model()
    weight = onnx.numpy_helper.from_array(np.full((16,), 2.0, np.float32), "weight")
    proto.graph.initializer.append(weight)
    proto.graph.node.append(onnx.helper.make_node("Mul", ["Y", "weight"], ["Z"]))
    proto.graph.output[0].name = "Z"
    original = tmp_path / "original.onnx"
    onnx.save(proto, original, save_as_external_data=True, location="weights.bin", size_threshold=0)
    intfa_onnx.rewrite(original).save(tmp_path / "small.onnx")
    serve_layout.write(tmp_path / "repo", tmp_path / "small.onnx")
    assert (tmp_path / "repo" / "small" / "1" / "weights.bin").stat().st_size == 64


def test_engine_is_served_beside_the_model(model: Path, plugin: Path, tmp_path: Path) -> None:
    engine = tmp_path / "small.engine"
    engine.write_bytes(b"engine")
    layout = serve_layout.write(tmp_path / "repo", model, engine=engine, name="bert", mounted_at="/models")
    assert layout.models == ("bert", "bert_trt")
    assert layout.launch == (
        "tritonserver --model-repository=/models --backend-config=tensorrt,plugins=/models/bert_trt/libintfa_trt.so"
    )
    ort, trt = (read_config(tmp_path / "repo" / name) for name in layout.models)
    assert list(ort.model_operations.op_library_filename) == ["/models/bert/libintfa_ort.so"]
    assert (trt.name, trt.backend, trt.max_batch_size) == ("bert_trt", "tensorrt", 32)
    assert declared(trt.input) == declared(ort.input)
    assert not trt.HasField("model_operations")
    assert (tmp_path / "repo" / "bert_trt" / "1" / "model.plan").read_bytes() == b"engine"
    assert (tmp_path / "repo" / "bert_trt" / plugin.name).read_bytes() == b"plugin"


def relabelled(name: str, dims: list[str | int]) -> onnx.ModelProto:
    """Return the small attention model with other dimensions declared for one of its inputs or outputs."""
    proto = attention_model()
    (value,) = (v for v in (*proto.graph.input, *proto.graph.output) if v.name == name)
    value.type.CopyFrom(onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, dims))
    return proto


@pytest.mark.parametrize(
    ("name", "dims", "reason"),
    [
        ("Q", [4, 2, "S", 16], "input 'Q' does not begin with a named dynamic dimension"),
        ("K", ["N", 2, "S", 16], "input 'K' begins with dimension 'N', another with 'B'"),
        ("Y", [4, 2, "S", 16], "output 'Y' does not begin with the batch dimension 'B'"),
        ("Y", ["S", 2, "S", 16], "output 'Y' does not begin with the batch dimension 'B'"),
    ],
)
def test_no_batching_where_there_is_no_batch_dimension(
    name: str, dims: list[str | int], reason: str, tmp_path: Path
) -> None:
    layout = serve_layout.write(tmp_path / "repo", rewritten(relabelled(name, dims), tmp_path))
    assert (layout.max_batch_size, layout.why_no_batching) == (0, reason)
    config = read_config(tmp_path / "repo" / "small")
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert all(len(value.dims) == 4 for value in (*config.input, *config.output))


def test_a_tensor_of_the_batch_alone_is_reshaped(tmp_path: Path) -> None:
    proto = attention_model()
    proto.graph.output.append(onnx.helper.make_tensor_value_info("mean", onnx.TensorProto.FLOAT, ["B"]))
    proto.graph.node.append(onnx.helper.make_node("ReduceMean", ["Q", "axes"], ["mean"], keepdims=0))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2, 3]), "axes"))
    serve_layout.write(tmp_path / "repo", rewritten(proto, tmp_path))
    config = read_config(tmp_path / "repo" / "small")
    (mean,) = (value for value in config.output if value.name == "mean")
    assert list(mean.dims) == [1]
    assert mean.HasField("reshape")
    assert list(mean.reshape.shape) == []


@pytest.mark.parametrize(
    ("declared_type", "message"),
    [
        (onnx.helper.make_tensor_type_proto(onnx.TensorProto.COMPLEX64, ["B"]), "'extra' is COMPLEX64 .*Add a Cast"),
        (onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None), "'extra' has no shape. Run onnx.shape_inf"),
    ],
    ids=["type", "shape"],
)
def test_a_tensor_that_triton_cannot_declare(declared_type: onnx.TypeProto, message: str, tmp_path: Path) -> None:
    proto = attention_model()
    proto.graph.input.add(name="extra").type.CopyFrom(declared_type)
    with pytest.raises(UnsupportedError, match=message):
        serve_layout.write(tmp_path / "repo", rewritten(proto, tmp_path), max_batch_size=0)


def test_names_are_quoted(tmp_path: Path) -> None:
    proto = attention_model()
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = 'odd "name" \\ é'
    serve_layout.write(tmp_path / "repo", rewritten(proto, tmp_path))
    assert [v.name for v in read_config(tmp_path / "repo" / "small").output] == ['odd "name" \\ é']


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"mounted_at": "models"}, UnsupportedError, "'models' is not absolute"),
        ({"name": "../up"}, UnsupportedError, "cannot be the name"),
        ({"max_batch_size": -1}, UnsupportedError, "-1 is negative"),
    ],
)
def test_bad_options_write_nothing(
    options: dict[str, Any], kind: type[IntfaError], message: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        serve_layout.write(tmp_path / "repo", model, **options)
    assert not (tmp_path / "repo").exists()


@pytest.mark.usefixtures("plugin")
def test_a_missing_engine_writes_nothing(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no engine 'no.plan'. Build it first: intfa-onnx build-engine"):
        serve_layout.write(tmp_path / "repo", model, engine="no.plan")
    assert not (tmp_path / "repo").exists()


def test_a_model_that_was_not_rewritten_is_refused(tmp_path: Path) -> None:
    onnx.save(plain_model(), tmp_path / "plain.onnx")
    with pytest.raises(ModelError, match=r"has no intfa::IntFlashAttention node. Rewrite it first"):
        serve_layout.write(tmp_path / "repo", tmp_path / "plain.onnx")
    assert not (tmp_path / "repo").exists()


def test_nothing_is_replaced_without_force(model: Path, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    serve_layout.write(repo, model, max_batch_size=8)
    with pytest.raises(ModelError, match=r"small' exists. Give another --name, or --force"):
        serve_layout.write(repo, model, max_batch_size=4)
    assert read_config(repo / "small").max_batch_size == 8
    serve_layout.write(repo, model, max_batch_size=4, force=True)
    assert read_config(repo / "small").max_batch_size == 4
    assert [path.name for path in repo.iterdir()] == ["small"]


def test_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repo = tmp_path / "repo"
    assert main(["serve-layout", str(repo), "--model", str(model)]) == 0
    printed = capsys.readouterr().out
    assert f"tritonserver --model-repository={repo}" in printed
    assert "dynamic batching: up to 32 requests" in printed
    assert main(["serve-layout", str(repo), "--model", str(model), "--max-batch-size", "0", "--force", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["models"] == ["small"]
    assert found["max_batch_size"] == 0
