"""Cuts the surroundings of one attention out of a model, as a small model that can be shown to others.

What decides how the attention is read stays: operators, names, sizes, small integers, scalars, masks. Weights become
random numbers, and nothing is said about where a node came from. How much is needed is found by trying: the cut grows
until the rewriter says of it what it says of the whole model, and until it runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from intfa_onnx.errors import ModelError
from intfa_onnx.inputs import random_inputs
from intfa_onnx.patterns import View, anchors, match_anchor
from intfa_onnx.patterns.dims import Token
from intfa_onnx.patterns.match import node_name
from intfa_onnx.plan import Options, plan
from intfa_onnx.report import AttentionReport
from intfa_onnx.rewrite import ModelSource, scopes, working_copy
from intfa_onnx.session import explain

# Nodes upstream of the attention that are tried, one number after the other; the last is the whole model.
_STEPS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 10**6)
_STEPS_DOWN = 8  # from the softmax to the product with V, and past it
_MAX_NODES = 1000
_MAX_WEIGHTS = 2**30  # bytes
_MAX_KEPT = 256  # elements of an integer constant that may decide structure
_EXCLUDED = -1e4  # a mask of at most this excludes a key
_PRODUCTS = ("MatMul", "Einsum", "Gemm", "Attention", "MultiHeadAttention")
_REARRANGING = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Identity")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Dump:
    """A part of a model around one attention.

    Attributes:
        model: the part, with random weights.
        report: what the rewriter says of it.
        problem: why it does not run in ONNX Runtime; empty where it does.
    """

    model: onnx.ModelProto
    report: AttentionReport
    problem: str = ""


def dump(source: ModelSource, node: str, seed: int = 0) -> Dump:
    """Cut out the attention at an anchor.

    Args:
        source: the model; it is not changed, and no weight of it is copied.
        node: name of the anchor as ``inspect`` prints it, with its scope where it is not in the main graph.
        seed: of the random weights.

    Raises:
        ModelError: the model cannot be read, has no such attention or several, or no part of it that may be cut out
            (up to 1000 nodes and 1 GiB) is read like the whole.
    """
    model = working_copy(source)
    view = View(model)
    anchor, wanted = _find(model, view, node)
    best: Dump | None = None
    for siblings in (False, True):
        for steps in _STEPS:
            chosen = _neighbourhood(view, anchor, steps, siblings)
            if len(chosen) > _MAX_NODES or _weight(chosen) > _MAX_WEIGHTS:
                break
            part = _part(model, view, chosen, np.random.default_rng(seed))
            if _same_reading(part, wanted) is None:
                continue
            problem = _try_to_run(part, seed)
            found = _same_reading(part, wanted)
            if found is None:
                continue
            made = Dump(ir.to_proto(part), found, problem)
            if not made.problem and found.absorbed == wanted.absorbed:
                return made
            if best is None or (best.problem and not made.problem):
                best = made
    if best is None:
        raise ModelError(
            f"'{node}' cannot be cut out: no part of at most {_MAX_NODES} nodes is read like the whole model. "
            "Send the reason that inspect prints, and the exporter and its version"
        )
    return best


def _find(model: ir.Model, view: View, node: str) -> tuple[ir.Node, AttentionReport]:
    rows = [
        (anchor, plan(match_anchor(view, family, anchor), scope, Options()).report)
        for scope, container in scopes(model)
        for family, anchor in anchors(container)
    ]
    found = [(a, r) for a, r in rows if r.label() == node] or [(a, r) for a, r in rows if r.node == node]
    if len(found) != 1:
        names = ", ".join(f"'{r.label()}'" for _, r in found or rows) or "none"
        raise ModelError(f"{len(found)} attentions are named '{node}'. Give one of: {names}")
    return found[0]


def _same_reading(part: ir.Model, wanted: AttentionReport) -> AttentionReport | None:
    """Return what the rewriter says of the anchor in ``part``, if it says what it said of the whole."""
    view = View(part)
    for family, anchor in anchors(part.graph):
        if (node_name(anchor), family.NAME) == (wanted.node, wanted.pattern):
            row = plan(match_anchor(view, family, anchor), "", Options()).report
            return row if (row.decision, row.reason) == (wanted.decision, wanted.reason) else None
    return None


def _try_to_run(part: ir.Model, seed: int) -> str:
    """Return why the part does not run in ONNX Runtime, or is no valid model; declare the ranks that it finds."""
    try:
        import onnxruntime
    except ImportError:
        return "onnxruntime is not installed, so it was not tried"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        data = ir.to_proto(part).SerializeToString()
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        results = session.run(None, random_inputs(part, seed=seed))
        for value, result in zip(part.graph.outputs, results, strict=True):
            if value.shape is None:
                value.shape = ir.Shape([None] * result.ndim)
        onnx.checker.check_model(ir.to_proto(part))
    except Exception as error:  # ONNX Runtime has a class for each status
        return explain(str(error))
    return ""


# ---- which nodes ----


def _neighbourhood(view: View, anchor: ir.Node, steps: int, siblings: bool) -> set[ir.Node]:
    """Return the nodes within ``steps`` above the attention, and down to where its result leaves it.

    Args:
        view: facts about the model.
        anchor: the anchor.
        steps: nodes above; those that compute integers and booleans are not counted, for there structure is decided.
        siblings: with the other readers of the scores.
    """
    chosen = _downstream(anchor)
    if siblings:
        chosen.update(n for scores in _scores(anchor) for n, _ in scores.uses())
    budget = dict.fromkeys(chosen, steps)
    queue = deque(chosen)
    while queue:
        node = queue.popleft()
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if value is None or producer is None or _is_opaque(producer):
                continue
            left = budget[node] - 1
            if left < 0 and _may_be_cut(view, value) and producer.op_type != "Constant":
                continue
            left = max(left, 0)
            if producer not in budget or budget[producer] < left:
                budget[producer] = left
                queue.append(producer)
    return set(budget)


def _downstream(anchor: ir.Node) -> set[ir.Node]:
    """Return the anchor and what follows it to the products, and what rearranges their result."""
    is_past = {anchor: anchor.op_type in _PRODUCTS}  # node -> whether it is a product or after one
    frontier = [anchor]
    for _ in range(_STEPS_DOWN):
        following = []
        for node, reader in ((n, r) for n in frontier for o in n.outputs for r, _ in o.uses()):
            if reader in is_past or _is_opaque(reader) or (is_past[node] and reader.op_type not in _REARRANGING):
                continue
            is_past[reader] = is_past[node] or reader.op_type in _PRODUCTS
            following.append(reader)
        frontier = following
    return set(is_past)


def _scores(anchor: ir.Node) -> Iterator[ir.Value]:
    """Yield the values between the product Q K^T and the anchor, by whatever input."""
    pending, seen = [anchor], {anchor}
    while pending:
        node = pending.pop()
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if value is None or producer is None or producer in seen or len(seen) > 16:
                continue
            yield value
            seen.add(producer)
            if producer.op_type not in _PRODUCTS:
                pending.append(producer)


def _is_opaque(node: ir.Node) -> bool:
    """Return whether a node has a body, or an operator that only this model knows: its results are inputs then."""
    bodies = any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
    return bodies or node.domain not in ("", "ai.onnx", "com.microsoft")


def _may_be_cut(view: View, value: ir.Value) -> bool:
    """Return whether a value may become an input: one whose numbers decide nothing."""
    return view.dtype(value) in _FLOATS and view.rank(value) is not None


# ---- the model made of them ----


def _part(model: ir.Model, view: View, chosen: set[ir.Node], rng: np.random.Generator) -> ir.Model:
    """Return a model of the chosen nodes alone; what they read and none of them computes is an input."""
    nodes = [n for _, container in scopes(model) for n in container if n in chosen]
    computed = {o for n in nodes for o in n.outputs}
    values = {o: ir.Value(name=o.name) for o in computed}
    symbols: dict[Token, str] = {}
    inputs: list[ir.Value] = []
    weights: list[ir.Value] = []
    for old in (v for n in nodes for v in n.inputs):
        if old is None or old in values:
            continue
        values[old] = new = ir.Value(name=old.name)
        if old.const_value is not None and not old.is_graph_input():
            new.const_value = _harmless(old.const_value, rng)
            new.type, new.shape = ir.TensorType(old.const_value.dtype), ir.Shape(old.const_value.shape.numpy())
            weights.append(new)
            continue
        new.type, new.shape = _type(view, old), _shape(view, old, symbols)
        inputs.append(new)
    copies = [_copy(node, values, rng) for node in nodes]
    outputs = [o for n in nodes for o in n.outputs if _leaves(o, chosen)]
    for old in outputs:
        values[old].type, values[old].shape = _type(view, old), _shape(view, old, symbols)
    domains = {n.domain for n in nodes} - {"", "ai.onnx"}
    imports = {"": view.opset(nodes[0])} | {d: model.opset_imports.get(d, 1) for d in domains}
    graph = ir.Graph(
        inputs,
        [values[o] for o in outputs],
        nodes=copies,
        initializers=weights,
        opset_imports=imports,
        name="attention",
    )
    return ir.Model(graph, ir_version=model.ir_version or 8)


def _leaves(value: ir.Value, chosen: set[ir.Node]) -> bool:
    """Return whether a value is an output of the part: of the model too, or read only by what stays behind."""
    readers = [n for n, _ in value.uses()]
    return value.is_graph_output() or (bool(readers) and not any(n in chosen for n in readers))


def _type(view: View, value: ir.Value) -> ir.TensorType:
    return ir.TensorType(view.dtype(value) or ir.DataType.FLOAT)


def _shape(view: View, value: ir.Value, symbols: dict[Token, str]) -> ir.Shape | None:
    """Return the sizes of a value; those that are not known but equal get one symbol."""
    sizes = view.dims.of(value)
    if sizes is None:
        return None
    return ir.Shape([s if isinstance(s, int) else symbols.setdefault(s, f"n{len(symbols)}") for s in sizes])


def _copy(node: ir.Node, values: dict[ir.Value, ir.Value], rng: np.random.Generator) -> ir.Node:
    if any(a.is_ref() for a in node.attributes.values()):
        raise ModelError(
            f"'{node_name(node)}' takes an attribute from the call of its function: it cannot be cut out. "
            "Inline the functions of the model first (onnx.inliner.inline_local_functions)"
        )
    attributes = [
        ir.AttrTensor(a.name, _harmless(a.as_tensor(), rng)) if a.type == ir.AttributeType.TENSOR else a
        for a in node.attributes.values()
    ]
    return ir.Node(
        node.domain,
        node.op_type,
        [None if v is None else values[v] for v in node.inputs],
        attributes,
        outputs=[values[o] for o in node.outputs],
        name=node.name,
    )


def _weight(nodes: set[ir.Node]) -> int:
    """Return the bytes of the constants that nodes read."""
    constants = {v for n in nodes for v in n.inputs if v is not None and v.const_value is not None}
    return sum(v.const_value.nbytes for v in constants if v.const_value is not None)


def _harmless(tensor: ir.TensorProtocol, rng: np.random.Generator) -> ir.TensorProtocol:
    """Return random numbers in the place of a weight; a constant that decides structure as it is.

    That is a scalar, a boolean tensor, a small tensor of integers, and a float mask: nothing but 0, 1 and numbers that
    exclude. Random integers stay between the least and the greatest there were, for they may be indices.
    """
    dtype, shape = tensor.dtype, tuple(int(s) for s in tensor.shape.numpy())
    if tensor.size <= 1 or dtype in (ir.DataType.BOOL, ir.DataType.STRING):
        return tensor
    numbers = tensor.numpy()
    if dtype not in _FLOATS:
        if tensor.size <= _MAX_KEPT:
            return tensor
        low, high = int(numbers.min()), int(numbers.max())
        return ir.tensor(rng.integers(low, high + 1, shape).astype(numbers.dtype), dtype)
    if np.all((numbers == 0) | (numbers == 1) | (numbers <= _EXCLUDED)):
        return tensor
    if min(shape[-2:]) == 1 or len(shape) == 1:  # a bias, a gain, a variance
        return ir.tensor(rng.uniform(0.5, 1.5, shape).astype(numbers.dtype), dtype)
    return ir.tensor((rng.standard_normal(shape) / np.sqrt(shape[-2])).astype(numbers.dtype), dtype)
