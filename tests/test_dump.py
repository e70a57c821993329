"""A part cut out around an attention: read like the whole, runnable, small, and without the user's weights."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from attention_graphs import KT, TAIL, VARIANTS, parse, run
from onnx import numpy_helper
from test_rewrite_scopes import function_model, if_model, loop_model
from test_rewrite_variants import NEGATIVES

import intfa_onnx
from intfa_onnx import ModelError
from intfa_onnx.cli import main
from intfa_onnx.dump import dump
from intfa_onnx.report import AttentionReport

BLOCK = """
    h{i} = MatMul (x{i}, w{i})
    Q{i} = Reshape (h{i}, heads)
    q{i} = Transpose <perm = [0, 2, 1, 3]> (Q{i})
    k{i} = Transpose <perm = [0, 2, 3, 1]> (Q{i})
    s{i} = MatMul (q{i}, k{i})
    t{i} = {op} (s{i})
    p{i} = Softmax <axis = -1> (t{i})
    c{i} = MatMul (p{i}, q{i})
    o{i} = Transpose <perm = [0, 2, 1, 3]> (c{i})
    r{i} = Reshape (o{i}, merged)
    x{next} = Add (x{i}, r{i})
"""


def deep_model(layers: int = 12, op: str = "Identity") -> onnx.ModelProto:
    """A tower of self-attentions with weights that must not get out."""
    body = "".join(BLOCK.format(i=i, next=i + 1, op=op) for i in range(layers)) + f"Y = Identity (x{layers})"
    constants = (
        "heads = Constant <value = int64[4] {0, 0, 2, 8}> ()\n merged = Constant <value = int64[3] {0, 0, 16}> ()\n"
    )
    head = '<ir_version: 9, opset_import: ["": 18]> g (float[B, S, 16] x0) => (float[B, S, 16] Y)'
    model = onnx.parser.parse_model(f"{head} {{ {constants} {body} }}")
    for node in model.graph.node:
        node.name, node.doc_string = f"/{node.output[0]}", "File secret.py, line 1"
    secret = np.full((16, 16), 0.1234, np.float32)
    model.graph.initializer.extend(numpy_helper.from_array(secret, f"w{i}") for i in range(layers))
    return model


def check_part(model: onnx.ModelProto, row: AttentionReport) -> onnx.ModelProto:
    """Cut an attention out and check what every part has to be; return it."""
    part = dump(model, row.label())
    assert part.problem == ""
    onnx.checker.check_model(part.model, full_check=True)
    again = [a for a in intfa_onnx.rewrite(part.model).attentions if a.node == row.node]
    assert [(a.decision, a.reason, a.absorbed) for a in again] == [(row.decision, row.reason, row.absorbed)]
    return part.model


@pytest.mark.parametrize("name", NEGATIVES)
def test_part_of_a_rejected_attention_is_rejected_for_the_same_reason(name):
    body, inputs, outputs, _ = NEGATIVES[name]
    keys = 1 if name == "constant K" else 4  # as many as the constants of two of these have
    model = parse(body, inputs, outputs="float[B, 2, S, 16] Y" + outputs)
    for dim in (d for v in model.graph.input for d in v.type.tensor_type.shape.dim if d.dim_param == "T"):
        dim.dim_value = keys
    [row] = intfa_onnx.rewrite(model).attentions
    check_part(model, row)


@pytest.mark.parametrize("name", VARIANTS)
def test_part_of_a_found_attention_is_found(name):
    model = parse(*VARIANTS[name])
    [row] = intfa_onnx.rewrite(model).attentions
    check_part(model, row)


@pytest.mark.parametrize("make", [function_model, if_model, loop_model])
def test_attention_in_a_body(make):
    model = make()
    for row in intfa_onnx.rewrite(model).attentions:
        check_part(model, row)


@pytest.mark.parametrize("op", ["Identity", "Relu"])
def test_part_is_small_and_says_nothing_of_the_weights(op):
    model = deep_model(op=op)
    row = intfa_onnx.rewrite(model).attentions[-1]
    assert row.decision == ("replaced" if op == "Identity" else "rejected")
    part = check_part(model, row)
    assert len(part.graph.node) <= 12
    assert not any(n.doc_string or n.metadata_props for n in part.graph.node)
    kept = [numpy_helper.to_array(t) for t in part.graph.initializer]
    kept += [numpy_helper.to_array(n.attribute[0].t) for n in part.graph.node if n.op_type == "Constant"]
    floats = [a for a in kept if a.dtype == np.float32]
    assert not any(np.isclose(a, 0.1234).any() for a in floats)
    assert [0, 0, 2, 8] in [a.tolist() for a in kept if a.dtype == np.int64]


def test_constants_that_decide_structure_stay():
    table = [[0.0, -np.inf], [0.0, 0.0]]
    model = parse(KT + "s = MatMul (Q, Kt)\n t = Mul (s, scale)\n u = Add (t, mask)\n X = Add (u, bias)\n" + TAIL)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(x, np.float32), n) for n, x in (("mask", table), ("bias", [[0.25, 0.75]] * 2))
    )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[2].dim_value = 2
    part = check_part(model, intfa_onnx.rewrite(model).attentions[0])
    found = {t.name: numpy_helper.to_array(t) for t in part.graph.initializer}
    assert found["mask"].tolist() == table
    assert found["bias"].shape == (2, 2)
    assert not np.isin(found["bias"], [0.25, 0.75]).any()
    scalars = [numpy_helper.to_array(n.attribute[0].t) for n in part.graph.node if n.op_type == "Constant"]
    assert 0.3 in [round(float(x), 6) for x in scalars]


def test_cut_is_as_large_as_its_reason():
    """A nearer cut would be rejected too, but for having no product."""
    body = KT + "s = MatMul (Q, Kt)\n t = Mul (s, R)\n u = Identity (t)\n v = Identity (u)\n X = Identity (v)\n" + TAIL
    model = parse(body, ", float[B, 1, 1, T] R")
    [row] = intfa_onnx.rewrite(model).attentions
    assert "from key to key" in row.reason
    check_part(model, row)


def test_unknown_and_ambiguous_names():
    with pytest.raises(ModelError, match=r"0 attentions are named 'no such'\. Give one of: '/p0', '/p1'"):
        dump(deep_model(2), "no such")
    model = deep_model(2)
    for node in model.graph.node:
        node.name = "same" if node.op_type == "Softmax" else node.name
    with pytest.raises(ModelError, match="2 attentions are named 'same'"):
        dump(model, "same")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """What inspect prints about a rejected attention is the command that writes the part."""
    path, output = tmp_path / "model.onnx", tmp_path / "attention.onnx"
    onnx.save(deep_model(2, "Relu"), path)
    assert main(["inspect", str(path)]) == 0
    command = next(line for line in capsys.readouterr().out.splitlines() if "--dump" in line)
    arguments = [str(output) if a == "attention.onnx" else a for a in shlex.split(command)[1:]]
    assert main(arguments) == 0
    assert "no product Q K^T" in capsys.readouterr().out
    part = onnx.load(output)
    shapes = {v.name: [d.dim_value or 3 for d in v.type.tensor_type.shape.dim] for v in part.graph.input}
    run(part, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})

    before = output.read_bytes()
    assert main(arguments) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*arguments, "--force", "--json"]) == 0
    assert output.read_bytes() == before
    assert list(tmp_path.iterdir()) in ([path, output], [output, path])
    assert main(["inspect", str(path), "--dump", "/p0"]) == 2
    assert "give both" in capsys.readouterr().err
