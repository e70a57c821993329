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

KINDS = {"op": "TOPS over sequence length", "scale": "seconds over size"}
DIGEST_KEY = "Source"  # a keyword of the PNG standard
Point = tuple[float, float]
_SIZES = {"sequence length": "seqlen", "heads": "num_heads", "batch": "batch"}  # their keys in a problem


def digest(document: dict[str, Any]) -> str:
    """Return what :func:`draw` writes into the PNG's metadata."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def draw(document: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw a recorded benchmark: TOPS over sequence length, or time over size, the operator's and the rewriter's.

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
        kind = " causal" if p["causal"] else " decode" if p.get("decode") else ""
        title = f"B{p['batch']} H{p['num_heads']} D{p['head_dim']}{kind}"
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


def seconds_lines(results: list[dict[str, Any]], size: str) -> dict[str, list[Point]]:
    """Return (size, seconds) by candidate; ``size`` is a key of the problems."""
    lines: dict[str, list[Point]] = {}
    for result in results:
        for row in result["rows"]:
            if "seconds" in row:
                lines.setdefault(row["candidate"], []).append((result["problem"][size], row["seconds"]))
    return lines


def _scale(document: dict[str, Any]) -> Any:
    from matplotlib import pyplot

    operator = document.get("operator", {})
    panels = [*operator, *(part for part in ("rewriting", "start") if part in document)]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.6), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        if panel == "rewriting":
            points = sorted((row["nodes"], row["seconds"]) for row in document["rewriting"])
            axis.plot(*zip(*points, strict=True), marker="o")
            axis.set(xlabel="nodes", ylabel="load, rewrite, save: seconds", xlim=(0, None), ylim=(0, None))
        elif panel == "start":
            axis.barh([*document["start"]], [entry["seconds"] for entry in document["start"].values()])
            axis.set(xlabel="once per process: seconds")
        else:
            for name, points in seconds_lines(operator[panel], _SIZES[panel]).items():
                axis.plot(*zip(*points, strict=True), marker="o", label=name, linewidth=3 if name == OURS else 1)
            axis.set(xlabel=panel, ylabel="seconds", xscale="log", yscale="log")
            axis.legend(fontsize=7)
    return figure


_PLOTS: dict[str, Callable[[dict[str, Any]], Any]] = {"op": _tops, "scale": _scale}
