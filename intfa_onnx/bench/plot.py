"""Plots of recorded benchmarks. Each carries the digest of its JSON, so that a test can tell whose figures it shows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from intfa_onnx.bench.op import OURS
from intfa_onnx.errors import ModelError, UnsupportedError

KINDS = {"op": "TOPS over sequence length", "scale": "seconds over nodes"}
DIGEST_KEY = "Source"  # a keyword of the PNG standard
Point = tuple[float, float]


def digest(document: dict[str, Any]) -> str:
    """Return what :func:`draw` writes into the PNG's metadata."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def draw(document: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw a recorded benchmark: TOPS over sequence length, or the rewriter's time over the number of nodes.

    Args:
        document: what ``intfa-onnx bench op --json`` or ``bench scale --json`` prints.
        path: of the PNG.
    Raises:
        UnsupportedError: matplotlib is missing, or this kind of result has no plot.
        ModelError: the document is not such a result.
    """
    kind = document.get("kind")
    if kind not in KINDS:
        raise UnsupportedError(f"a result of kind {kind!r} has no plot (supported: {', '.join(KINDS)})")
    try:
        import matplotlib
    except ImportError as error:
        raise UnsupportedError(
            f"matplotlib cannot be imported ({error}). Install it: pip install 'intfa-onnx[bench]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = None
    try:
        figure = _PLOTS[kind](document)
        figure.tight_layout()
        figure.savefig(Path(path), dpi=100, format="png", metadata={DIGEST_KEY: digest(document)})
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"this is not what 'intfa-onnx bench {kind} --json' prints ({error!r})") from error
    finally:
        if figure is not None:
            pyplot.close(figure)


def tops_lines(document: dict[str, Any]) -> dict[str, dict[str, list[Point]]]:
    """Return (sequence length, TOPS) by panel and candidate; a panel is one batch, heads, head size and mask."""
    panels: dict[str, dict[str, list[Point]]] = {}
    for result in document["results"]:
        p = result["problem"]
        title = f"B{p['batch']} H{p['num_heads']} D{p['head_dim']}" + (" causal" if p["causal"] else "")
        lines = panels.setdefault(title, {})
        for row in result["rows"]:
            if "tops" in row:
                lines.setdefault(row["candidate"], []).append((p["seqlen"], row["tops"]))
    return {title: {name: sorted(points) for name, points in lines.items()} for title, lines in panels.items()}


def _tops(document: dict[str, Any]) -> Any:
    from matplotlib import pyplot

    panels = tops_lines(document)
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.6), squeeze=False)
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for name, points in lines.items():
            axis.plot(*zip(*points, strict=True), marker="o", label=name, linewidth=3 if name == OURS else 1)
        axis.set(title=title, xlabel="sequence length", ylabel="TOPS", ylim=(0, None))
        axis.set_xscale("log", base=2)
    axes[0][0].legend(fontsize=7)
    return figure


def _scale(document: dict[str, Any]) -> Any:
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(4.2, 3.6))
    points = sorted((row["nodes"], row["seconds"]) for row in document["rewriting"])
    axis.plot(*zip(*points, strict=True), marker="o")
    axis.set(xlabel="nodes", ylabel="load, rewrite, save: seconds", xlim=(0, None), ylim=(0, None))
    return figure


_PLOTS: dict[str, Callable[[dict[str, Any]], Any]] = {"op": _tops, "scale": _scale}
