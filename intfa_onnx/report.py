"""What became of each attention of a model: the rows that ``rewrite`` returns and the command line prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

Decision = Literal["replaced", "kept", "rejected"]


@dataclass(frozen=True)
class AttentionReport:
    """One attention anchor of a model and what became of it.

    Attributes:
        node: name of the anchor node (the Softmax, or the attention operator), or its first output's name.
        scope: "" for the main graph; else the path of the body, e.g. ``/loop_1.body`` or ``function my.domain::Block``.
        pattern: the family that recognised it (a module of ``intfa_onnx.patterns``).
        decision: "replaced"; "kept" (a supported attention that the user or its present state asks to leave alone);
            "rejected" (looks like attention, but is not replaced; ``reason`` says why).
        reason: why, in one line; empty where replaced.
        head_dim: size of a Q/K head, where known.
        head_dim_v: size of a V head, where known.
        num_heads: query heads, where known.
        kv_num_heads: key/value heads, where known.
        precision: "int8" or "int8_qk", where replaced.
        scheme: "tile" or "paper", where replaced.
        absorbed: what the one node now does that separate nodes did before: "k_transpose", "scale", "mask", "causal",
            "window", "softcap", "gqa", "bshd", "past".
        notes: what differs on inputs that the original does not handle, e.g. rows that it turns into NaN, and why a
            mask that limits positions stays a tensor.
        output: name of the value that the attention computes; unchanged by the rewrite.
    """

    node: str
    scope: str
    pattern: str
    decision: Decision
    reason: str = ""
    head_dim: int | None = None
    head_dim_v: int | None = None
    num_heads: int | None = None
    kv_num_heads: int | None = None
    precision: str | None = None
    scheme: str | None = None
    absorbed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    output: str = ""

    def label(self) -> str:
        """Return the name that tells the attention from all others of the model."""
        return f"{self.scope}: {self.node}" if self.scope else self.node

    def is_meant_by(self, pattern: str) -> bool:
        """Return whether a pattern of ``only`` or ``skip`` means this attention: by its node's name or by its label.

        A pattern is a glob, or the name itself: names may hold brackets, which mean something else in a glob.
        """
        return any(name == pattern or fnmatchcase(name, pattern) for name in (self.node, self.label()))

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain JSON types."""
        return {**asdict(self), "absorbed": list(self.absorbed), "notes": list(self.notes)}
