"""ONNX Runtime's own errors come out with what helps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from small_models import attention_model, embedding_model

import intfa_onnx
from intfa_onnx import native
from intfa_onnx.doctor import probe_model
from intfa_onnx.errors import ModelError, UnsupportedError
from intfa_onnx.session import CPU, CUDA, check_placement, open_session


def message(model: Path | bytes) -> str:
    with pytest.raises(ModelError) as error:
        open_session(model)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_not_a_model() -> None:
    assert message(b"not a model").endswith("-> not an ONNX file, or cut short; export it again")


def test_absent_file(tmp_path: Path) -> None:
    text = message(tmp_path / "absent.onnx")
    assert "absent.onnx" in text
    assert text.endswith("is not there")


def test_absent_external_data(tmp_path: Path) -> None:
    model = embedding_model(1000)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros(1000, np.float32), "table"))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    text = message(path)
    assert "weights.bin" in text
    assert text.endswith("keep the model's external data file beside it")


def test_for_the_tensorrt_provider() -> None:
    model = intfa_onnx.rewrite(attention_model(), target="ort-trt-ep").to_proto()
    text = message(model.SerializeToString())
    assert "trt_extra_plugin_lib_paths" in text
    assert text.endswith("rewrite the original with --target ort")


def test_newer_than_the_runtime() -> None:
    assert message(attention_model(opset=999).SerializeToString()).endswith("export with a lower opset")
    model = attention_model()
    model.ir_version = 99
    assert message(model.SerializeToString()).endswith("export with a lower IR version")


def test_threads_and_providers() -> None:
    session = open_session(attention_model().SerializeToString(), threads=1)
    assert session.get_providers() == [CPU]
    assert session.get_session_options().intra_op_num_threads == 1


def test_a_missing_provider_is_refused() -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(UnsupportedError, match=r"has no CUDAExecutionProvider \(it has .*CPUExec.*ort-gpu"):
        open_session(probe_model().SerializeToString(), providers=(CUDA, CPU))


def test_a_provider_that_does_not_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As onnxruntime-gpu on a machine without a driver: the provider is built in, and the session has only the CPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    with (
        pytest.warns(UserWarning, match="not in available provider"),
        pytest.raises(UnsupportedError, match="CUDAExecutionProvider did not start, and onnxruntime fell back to CPU"),
    ):
        open_session(probe_model().SerializeToString(), providers=(CUDA, CPU))


def recorded_session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    native.register(options)
    return onnxruntime.InferenceSession(probe_model().SerializeToString(), options, providers=[CPU])


def test_a_node_on_another_provider_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    session = recorded_session()
    check_placement(session, CPU)
    monkeypatch.setattr(session, "get_providers", lambda: [CUDA, CPU])
    with pytest.raises(UnsupportedError, match=r"1 of 1 IntFlashAttention nodes do not run on CUDA.*'probe' is on CPU"):
        check_placement(session, CUDA)


def test_placement_that_is_not_recorded_is_not_taken_for_good() -> None:
    with pytest.raises(
        UnsupportedError, match=r"needs onnxruntime 1\.24 or newer and the config entry session\.record"
    ):
        check_placement(open_session(probe_model().SerializeToString()), CPU)
