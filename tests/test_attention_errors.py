"""The error of each attention by itself, against a float64 softmax written out here."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from small_models import attention_model
from test_model_io import external_model

from intfa_onnx import rewrite
from intfa_onnx.attention_errors import attention_errors
from intfa_onnx.errors import ModelError
from intfa_onnx.session import open_session

# `coarse` quantizes K to a dozen codes; its own inputs carry the error of `fine`. One more stands in a branch.
CHAIN = """<ir_version: 9, opset_import: ["": 18, "intfa": 1]>
chain (float[2, 2, S, 16] Q, float[2, 2, S, 16] V, bool[2, 1, 1, S] mask, bool again) => (float[2, 2, S, 16] Y)
  <float[1] coarse_scale = {0.5}> {
    A = intfa.IntFlashAttention (Q, Q, V, mask)
    B = intfa.IntFlashAttention <scale = 0.5> (A, Q, V, , , , , , coarse_scale)
    Y = If (again) <
      then_branch = once_more () => (float[2, 2, S, 16] C) { C = intfa.IntFlashAttention (B, B, B) },
      else_branch = enough () => (float[2, 2, S, 16] D) { D = Identity (B) }
    >
}"""


def save_chain(folder: Path, outputs: tuple[str, ...] = ()) -> Path:
    """Save the chain, with more outputs if that is wanted."""
    model = onnx.parser.parse_model(CHAIN)
    for node, name in zip(model.graph.node, ("fine", "coarse"), strict=False):
        node.name = name
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    path = folder / f"{len(outputs)}.onnx"
    onnx.save(model, path)
    return path


def softmax_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, attended: np.ndarray) -> np.ndarray:
    """Return float64 attention."""
    scores = np.where(attended, scale * q.astype(np.float64) @ k.astype(np.float64).swapaxes(2, 3), -np.inf)
    p = np.exp(scores - scores.max(axis=3, keepdims=True))
    return p @ v.astype(np.float64) / p.sum(axis=3, keepdims=True)


def test_each_against_float64_on_its_own_inputs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    q, v = (rng.standard_normal((2, 2, 40, 16)).astype(np.float32) for _ in range(2))
    mask = rng.random((2, 1, 1, 40)) < 0.7
    feed = {"Q": q, "V": v, "mask": mask, "again": np.array(False)}
    result = attention_errors(save_chain(tmp_path), feed)
    a, b = open_session(save_chain(tmp_path, ("A", "B"))).run(["A", "B"], feed)
    truths = {
        "fine": (a, softmax_attention(q, q, v, 0.25, mask)),
        "coarse": (b, softmax_attention(a, q, v, 0.5, np.array(True))),
    }
    assert [m.name for m in result.attentions] == ["coarse", "fine"]
    for m in result.attentions:
        y, truth = truths[m.name]
        assert m.rel_l2 == pytest.approx(np.linalg.norm(y - truth) / np.linalg.norm(truth), rel=1e-9)
        assert m.max_abs == pytest.approx(np.abs(y - truth).max(), rel=1e-9)
    coarse, fine = result.attentions
    assert coarse.rel_l2 > 3 * fine.rel_l2
    assert result.num_unmeasured == 1


@pytest.mark.parametrize("writable", [True, False])
def test_weights_beside_the_model_are_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writable: bool
) -> None:
    """They may be many gigabytes. Where nobody may write they are, into a folder that goes again."""
    path, copied = external_model(tmp_path), []
    (tmp_path / "weights.bin").write_bytes(bytes(256))
    rewrite(path).save(tmp_path / "out.onnx")
    before = sorted(tmp_path.iterdir())
    copy = shutil.copyfile
    monkeypatch.setattr(shutil, "copyfile", lambda source, target: copied.append(copy(source, target)))
    monkeypatch.setattr(os, "access", lambda folder, mode: writable)
    feed = {name: np.ones((1, 2, 4, 16), np.float32) for name in "QKV"}
    assert len(attention_errors(tmp_path / "out.onnx", feed).attentions) == 1
    assert bool(copied) is not writable
    assert sorted(tmp_path.iterdir()) == before
    assert not any(Path(file).exists() for file in copied)


def test_a_model_without_one_is_refused(tmp_path: Path) -> None:
    onnx.save(attention_model(), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"no IntFlashAttention in its main graph \(0 elsewhere\).*intfa-onnx rewrite"):
        attention_errors(tmp_path / "m.onnx", {})
