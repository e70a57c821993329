"""What to do with each attention found: replace, keep or reject, at which precision, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace

from intfa_onnx import op_schema
from intfa_onnx.errors import UnsupportedError
from intfa_onnx.patterns.match import AttentionMatch, Rejection, node_name
from intfa_onnx.patterns.pad import pad_heads
from intfa_onnx.report import AttentionReport, Decision

# trt: for TensorRT's own parser; ort-trt-ep: for ONNX Runtime's TensorRT execution provider.
TARGETS = ("ort", "trt", "ort-trt-ep")


@dataclass(frozen=True)
class Options:
    """What the user asked for; see ``rewrite``."""

    precision: str = "int8"
    scheme: str = "tile"
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    portable: bool = False
    target: str = "ort"

    def check(self) -> None:
        """Check the choices.

        Raises:
            UnsupportedError: an unknown precision, scheme or target, or a combination that cannot work.
        """
        for name, found, known in (
            ("precision", self.precision, op_schema.ATTRIBUTES["precision"].choices),
            ("scheme", self.scheme, op_schema.ATTRIBUTES["scheme"].choices),
            ("target", self.target, TARGETS),
        ):
            if found not in known:
                raise UnsupportedError(f"{name} '{found}' is unknown (supported: {', '.join(known)})")
        if self.portable and self.target != "ort":
            raise UnsupportedError(
                f"portable does not go with the target {self.target}: TensorRT's parser prefers the function body "
                "to the plugin, and would run attention in float. Rewrite without --portable for TensorRT"
            )


@dataclass(frozen=True, eq=False)
class PlannedAttention:
    """A match to lower, or a report only."""

    match: AttentionMatch | None
    report: AttentionReport


def plan(found: AttentionMatch | Rejection, scope: str, options: Options) -> PlannedAttention:
    """Decide about one attention."""
    name = node_name(found.anchor)
    if isinstance(found, Rejection):
        decision: Decision = "kept" if found.supported else "rejected"
        return PlannedAttention(None, AttentionReport(name, scope, found.family, decision, found.reason))
    row = AttentionReport(
        node=name,
        scope=scope,
        pattern=found.family,
        decision="kept",
        head_dim=found.head_dim,
        head_dim_v=found.head_dim_v,
        num_heads=found.num_heads,
        kv_num_heads=found.kv_num_heads,
        output=next(iter(found.outputs)).name or "",
    )
    decision, reason = _decide(found, row, options)
    if decision != "replaced":
        return PlannedAttention(None, replace(row, decision=decision, reason=reason))
    match = pad_heads(found)
    row = replace(
        row,
        decision=decision,
        precision=options.precision,
        scheme=options.scheme,
        absorbed=found.absorbed,
        notes=match.notes,
    )
    return PlannedAttention(match, row)


def _decide(match: AttentionMatch, row: AttentionReport, options: Options) -> tuple[Decision, str]:
    for pattern in options.skip:
        if row.is_meant_by(pattern):
            return "kept", f"--skip '{pattern}'"
    if options.only and not any(row.is_meant_by(pattern) for pattern in options.only):
        return "kept", "matches no --only pattern"
    for label, size in (("head_dim", match.head_dim), ("head_dim_v", match.head_dim_v)):
        if size is None:
            return "rejected", (
                f"{label} is not known statically (supported: 1 to {op_schema.MAX_HEAD_DIM}). "
                "Export with a static head size to replace it"
            )
        if not 1 <= size <= op_schema.MAX_HEAD_DIM:
            return (
                "rejected",
                f"{label}={size} is unsupported (supported: 1 to {op_schema.MAX_HEAD_DIM}). It stays in float",
            )
    return "replaced", ""
