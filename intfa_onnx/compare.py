"""Compare two models, or one model on two runners, output by output with Polygraphy's comparators."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from intfa_onnx.errors import IntfaError, ModelError, UnsupportedError
from intfa_onnx.session import explain

if TYPE_CHECKING:
    from polygraphy.backend.base import BaseRunner

RUNNERS = ("ort-cpu", "ort-cuda", "trt", "reference")


@dataclass(frozen=True)
class OutputMetrics:
    """How far one output of the second run is from the first's."""

    name: str
    shape: tuple[int, ...]
    cosine: float
    rel_l2: float  # ||b - a|| / ||a||
    psnr_db: float  # infinite where both are equal
    max_abs: float
    passed: bool

    def as_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON; numbers that JSON lacks (infinite, NaN) become None."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Comparison:
    """The outputs of both runs, compared under one pair of thresholds."""

    outputs: tuple[OutputMetrics, ...]
    min_cosine: float
    max_rel_l2: float | None

    @property
    def passed(self) -> bool:
        """True if every output is within both thresholds."""
        return all(o.passed for o in self.outputs)

    def as_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return {
            "passed": self.passed,
            "min_cosine": self.min_cosine,
            "max_rel_l2": self.max_rel_l2,
            "outputs": [o.as_dict() for o in self.outputs],
        }


def compare(
    model_a: str | os.PathLike[str],
    model_b: str | os.PathLike[str],
    feed: Mapping[str, np.ndarray],
    *,
    runner_a: str = "ort-cpu",
    runner_b: str = "ort-cpu",
    min_cosine: float = 0.999,
    max_rel_l2: float | None = None,
) -> Comparison:
    """Run both models on the same inputs and compare every output.

    Infinities and NaNs must stand at the same places; there they count as equal, elsewhere the output fails.

    Args:
        model_a: path of the baseline.
        model_b: path of the candidate; its outputs have the baseline's names.
        feed: one array per input.
        runner_a: one of ``RUNNERS``. On ``ort-cuda`` every ``IntFlashAttention`` has to run on CUDA.
        runner_b: as ``runner_a``.
        min_cosine: least cosine similarity of an output that passes.
        max_rel_l2: greatest relative L2 error that passes; None does not check it.
    Raises:
        UnsupportedError: Polygraphy or a runner is not installed.
        ModelError: a model does not load or run, or the outputs do not match in name or shape.
    """
    first = run(model_a, runner_a, feed)
    second = run(model_b, runner_b, feed)
    check_same_outputs(first, second)
    return measure(first, second, min_cosine=min_cosine, max_rel_l2=max_rel_l2)


def check_same_outputs(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> None:
    """Check that two models have given outputs that can be compared.

    Raises:
        ModelError: their names or shapes differ.
    """
    if first.keys() != second.keys():
        raise ModelError(f"the models differ in their outputs: {', '.join(first)} against {', '.join(second)}")
    for name in first:
        if first[name].shape != second[name].shape:
            raise ModelError(
                f"output {name!r} has shape {first[name].shape} in one and {second[name].shape} in the other"
            )


def relative_l2(a: np.ndarray, b: np.ndarray) -> float:
    """Return ``||b - a|| / ||a||`` in float64; infinities and NaNs at the same places count as equal."""
    a, b = _without_equal_nonfinite(a, b)
    return float(np.linalg.norm(b - a) / (np.linalg.norm(a) or 1.0))


def measure(
    first: Mapping[str, np.ndarray],
    second: Mapping[str, np.ndarray],
    *,
    min_cosine: float = -math.inf,
    max_rel_l2: float | None = None,
) -> Comparison:
    """Compare arrays of the same names and shapes, the first ones being the baseline; as :func:`compare` does.

    Raises:
        UnsupportedError: Polygraphy is not installed.
    """
    _require_polygraphy()
    from polygraphy.comparator import (
        Comparator,
        CosineSimilarityCompareFunc,
        PsnrCompareFunc,
        RunResults,
        SimpleCompareFunc,
    )
    from polygraphy.logger import G_LOGGER

    pairs = {name: _without_equal_nonfinite(first[name], second[name]) for name in first}
    results = RunResults()
    results.add([{name: a for name, (a, _) in pairs.items()}], runner_name="a")
    results.add([{name: b for name, (_, b) in pairs.items()}], runner_name="b")
    functions = [
        SimpleCompareFunc(check_error_stat="max", atol=math.inf, rtol=math.inf),  # reports; the thresholds are ours
        CosineSimilarityCompareFunc(min_cosine),
        PsnrCompareFunc(-math.inf),
    ]
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), np.errstate(invalid="ignore"):  # a NaN shows in the metrics
        simple, cosine, psnr = (
            dict(r["a", "b"][0]) for r in Comparator.compare_accuracy(results, compare_func=functions)
        )
        rel_l2 = {name: relative_l2(a, b) for name, (a, b) in pairs.items()}
    outputs = tuple(
        OutputMetrics(
            name=name,
            shape=a.shape,
            cosine=float(cosine[name].cosine_similarity),
            rel_l2=rel_l2[name],
            psnr_db=float(psnr[name].psnr),
            max_abs=float(simple[name].max_absdiff),
            passed=bool(cosine[name]) and (max_rel_l2 is None or rel_l2[name] <= max_rel_l2),
        )
        for name, (a, _) in pairs.items()
    )
    return Comparison(outputs, min_cosine, max_rel_l2)


def run(model: str | os.PathLike[str], runner: str, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a model once on one of ``RUNNERS`` and return its outputs by name.

    Raises:
        UnsupportedError: Polygraphy or the runner is not installed, or an input or output holds strings.
        ModelError: the model does not load or run.
    """
    _require_polygraphy()
    _refuse_strings(model, "input", feed)
    if runner not in RUNNERS:
        raise UnsupportedError(f"runner {runner!r} is unknown; there are {', '.join(RUNNERS)}")
    from polygraphy.logger import G_LOGGER

    from intfa_onnx.runner import OrtRunner, ReferenceRunner, tensorrt_runner
    from intfa_onnx.session import CPU, CUDA

    makers: tuple[Callable[[], BaseRunner], ...] = (
        lambda: OrtRunner(model),
        lambda: OrtRunner(model, providers=(CUDA, CPU)),
        lambda: tensorrt_runner(model, {name: array.shape for name, array in feed.items()}),
        lambda: ReferenceRunner(model),
    )
    make = dict(zip(RUNNERS, makers, strict=True))[runner]
    try:
        # Polygraphy logs each failure, then raises it: the exception alone is enough.
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1), make() as active:
            outputs = active.infer(dict(feed))
    except IntfaError:
        raise
    except Exception as error:  # each runtime raises its own classes
        raise ModelError(
            f"'{os.fspath(model)}' fails on runner {runner}: {explain(str(error))} (made-up inputs may not fit each "
            "other: give sizes with --shapes, or real inputs with --inputs)"
        ) from error
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    _refuse_strings(model, "output", arrays)
    return arrays


def _refuse_strings(model: str | os.PathLike[str], kind: str, arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if array.dtype.kind in "OSU":
            raise UnsupportedError(
                f"{kind} {name!r} of '{os.fspath(model)}' holds strings (supported: numbers). Take it out of the model"
            )


def _require_polygraphy() -> None:
    try:
        from polygraphy.comparator import CosineSimilarityCompareFunc  # noqa: F401, older versions lack it
    except ImportError as error:
        raise UnsupportedError(
            f"polygraphy >= 0.53 is needed ({error}). Install it: pip install 'intfa-onnx[polygraphy]'"
        ) from error


def _without_equal_nonfinite(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both in float64, with 0 where both have the same infinity or both a NaN."""
    a, b = np.array(a, np.float64), np.array(b, np.float64)
    equal = ~np.isfinite(a) & ((a == b) | (np.isnan(a) & np.isnan(b)))
    a[equal] = b[equal] = 0.0
    return a, b
