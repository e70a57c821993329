"""ONNX Runtime's own errors come out with what helps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_models import attention_model, embedding_model

from intfa_onnx.errors import ModelError
from intfa_onnx.session import open_session


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


def test_newer_than_the_runtime() -> None:
    assert message(attention_model(opset=999).SerializeToString()).endswith("export with a lower opset")
    model = attention_model()
    model.ir_version = 99
    assert message(model.SerializeToString()).endswith("export with a lower IR version")


def test_threads_and_providers() -> None:
    session = open_session(attention_model().SerializeToString(), threads=1)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.get_session_options().intra_op_num_threads == 1
