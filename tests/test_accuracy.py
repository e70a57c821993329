"""The accuracy page: made from the recorded results, and these can be measured again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import accuracy  # noqa: E402

DOCUMENT = json.loads((ROOT / "benchmarks/results/accuracy.json").read_text())


def test_page_is_generated() -> None:
    assert (ROOT / "docs/accuracy.md").read_text() == accuracy.page(DOCUMENT)


def test_every_setting_is_recorded() -> None:
    recorded = [accuracy.Setting(r["data"], r["head_dim"], r["seqlen"]) for r in DOCUMENT["results"]]
    assert recorded == accuracy.settings()


@pytest.mark.parametrize("data", accuracy.DATA)
def test_recorded_errors_are_reproduced(data: str) -> None:
    recorded = next(r for r in DOCUMENT["results"] if r["data"] == data)
    measured = accuracy.measure(accuracy.Setting(data, recorded["head_dim"], recorded["seqlen"]))
    for scheme, errors in recorded["errors"].items():
        # Same seed, same arithmetic: another BLAS sums in another order, which moves some codes.
        assert measured["errors"][scheme] == pytest.approx(errors, rel=0.02), scheme


def test_default_holds_its_error_at_every_length() -> None:
    """The claim of the page: flat in N for every kind of data, where the paper's scheme grows."""
    for data in accuracy.DATA:
        for head_dim in accuracy.HEAD_DIMS:
            rows = [r for r in DOCUMENT["results"] if r["data"] == data and r["head_dim"] == head_dim]
            errors = [r["errors"]["int8"]["l2"] for r in rows]
            assert max(errors) < 1.5 * errors[0], (data, head_dim, errors)
