"""What each attention of a rewritten model costs by itself: which one to keep where the whole loses too much."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from intfa_onnx import model_io, op_schema
from intfa_onnx.compare import OutputMetrics, measure, run
from intfa_onnx.errors import ModelError
from intfa_onnx.reference_op import evaluate


@dataclass(frozen=True)
class AttentionErrors:
    """The error of each attention on the inputs that it gets within the model."""

    attentions: tuple[OutputMetrics, ...]  # the greatest relative L2 error first; ``name`` is the node's
    num_unmeasured: int  # inside If, Loop, Scan or a function, where no value can be read

    def as_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON; there is no threshold for one attention, so none says whether it passed."""
        attentions = [{k: x for k, x in a.as_dict().items() if k != "passed"} for a in self.attentions]
        return {"attentions": attentions, "num_unmeasured": self.num_unmeasured}


def attention_errors(
    model: str | os.PathLike[str], feed: Mapping[str, np.ndarray], *, runner: str = "ort-cpu"
) -> AttentionErrors:
    """Run a rewritten model once and compare each ``IntFlashAttention`` with float64 attention on the same Q, K and V.

    What an attention inherits from those before it is not counted, so the errors do not add up to that of the model.
    The float64 scores of one attention are in memory at a time: several arrays of B x H x Sq x Skv x 8 bytes.

    Args:
        model: path of the rewritten model.
        feed: one array per input.
        runner: one of ``intfa_onnx.compare.RUNNERS``.
    Raises:
        UnsupportedError: Polygraphy or the runner is not installed.
        ModelError: the model does not load or run, or has no attention that can be measured.
    """
    loaded = model_io.load(model)
    nodes = [node for node in loaded.graph if node.op_type == op_schema.OP_TYPE]
    num_all = sum(node.op_type == op_schema.OP_TYPE for node in model_io.all_nodes(loaded))
    if not nodes:
        raise ModelError(
            f"'{os.fspath(model)}' has no {op_schema.OP_TYPE} in its main graph ({num_all} elsewhere), so there is "
            "nothing to measure by attention. Give a model that `intfa-onnx rewrite` has written"
        )
    known = dict(feed)  # what need not be computed
    for node in nodes:
        for value in (*node.inputs, node.outputs[0]):
            if value is None or value.name in known:
                continue
            assert value.name is not None
            if value.const_value is not None:
                known[value.name] = value.const_value.numpy()
            elif not value.is_graph_output():
                loaded.graph.outputs.append(value)
    with _scratch_file(Path(model)) as path:
        model_io.save(loaded, path)
        known |= run(path, runner, feed)
    metrics = [_metrics(node, known) for node in nodes]
    return AttentionErrors(tuple(sorted(metrics, key=lambda m: -m.rel_l2)), num_all - len(nodes))


@contextmanager
def _scratch_file(model: Path) -> Iterator[Path]:
    """Yield where to write a variant of a model: beside it, so that external data is not copied, if that is allowed."""
    with tempfile.TemporaryDirectory() as folder:
        beside = os.access(model.parent, os.W_OK)
        path = (model.parent if beside else Path(folder)) / f".{model.stem}.{os.getpid()}.onnx"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def _metrics(node: ir.Node, known: Mapping[str, np.ndarray]) -> OutputMetrics:
    attributes = {name: a.value for name, a in node.attributes.items()}
    exact = {"precision": "float", "output_dtype": ir.DataType.DOUBLE.value}
    truth = evaluate([None if v is None else known[str(v.name)] for v in node.inputs], attributes | exact)
    name = str(node.name)
    return measure({name: truth.y}, {name: known[str(node.outputs[0].name)]}).outputs[0]
