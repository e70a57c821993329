"""The public entry: load -> raise -> plan -> lower -> result."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir

from intfa_onnx.report import AttentionReport


@dataclass(frozen=True)
class RewriteResult:
    """A rewritten model and what became of each of its attentions.

    Attributes:
        model: the rewritten model. External data is referenced, not loaded.
        attentions: one row per attention found, in graph order.
        portable: whether the file carries the float function body of the operator.
        nodes_before: number of nodes before and
        nodes_after: after the rewrite, bodies and functions included.
    """

    model: ir.Model
    attentions: tuple[AttentionReport, ...]
    portable: bool = False
    nodes_before: int = 0
    nodes_after: int = 0

    def to_proto(self) -> onnx.ModelProto:
        """Return the model as a protobuf message (external data stays referenced)."""
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the model atomically.

        Raises:
            ModelError: ``path`` exists and ``force`` is not set, or cannot be written; nothing half-written is left.
        """
        raise NotImplementedError

    def to_json(self) -> str:
        """Return the report as a JSON object: ``summary`` and ``attentions``."""
        return json.dumps(self.to_dict(), indent=2)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        raise NotImplementedError

    def summary(self) -> str:
        """Return one line: how many attentions were found, replaced, kept and rejected."""
        raise NotImplementedError


def rewrite(
    model: str | os.PathLike[str] | onnx.ModelProto | ir.Model,
    *,
    precision: str = "int8",
    scheme: str = "tile",
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    portable: bool = False,
    target: str = "ort",
) -> RewriteResult:
    """Replace the attentions of a model by ``intfa::IntFlashAttention``.

    The given model is not changed.

    Args:
        model: a path, an ``onnx.ModelProto`` or an ``onnx_ir.Model``.
        precision: "int8" (both products) or "int8_qk" (P.V in 16-bit floating point).
        scheme: "tile" or "paper".
        only: globs of node names; an attention that matches none of them is kept. Empty: all.
        skip: globs of node names; an attention that matches one of them is kept.
        portable: add a model-local function with the operator's float meaning, so that ONNX Runtime also runs the file
            where the native library is absent.
        target: "ort" or "trt". TensorRT's parser prefers a function body to a plugin, so "trt" refuses ``portable``.

    Raises:
        ModelError: the model cannot be read.
        UnsupportedError: an unknown precision, scheme or target, or ``portable`` with a TensorRT target.
    """
    raise NotImplementedError
