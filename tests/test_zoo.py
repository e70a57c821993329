"""A slice of the zoo: exported, rewritten, and run in float and in INT8 against the original."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
import zoo
from zoo import digest
from zoo.export import Variant, export, one_thread, variants
from zoo.verify import INT8_BOUND, verify

import intfa_onnx
from intfa_onnx.op_schema import OP_TYPE

# The rewriter's own tests have BERT, ViT, GPT-2 and Llama; the whole zoo runs by benchmarks/coverage.py.
FAMILIES = ("graph", "sdpa", "by hand", "torch.nn", "negative")
EXPORTERS = (("graph", 0), ("torchscript", 17), ("dynamo", 18))
SLICE = [v for v in variants() if zoo.DEFINITIONS[v.name].family in FAMILIES and (v.exporter, v.opset) in EXPORTERS]
SLICE += variants(["merged_decoder", "dynamic_quantized", "dynamic_quantized_products", "optimized_bert"])


@pytest.fixture(scope="module", autouse=True)
def single_thread() -> None:
    one_thread()


@pytest.mark.parametrize("variant", SLICE, ids=lambda v: v.stem)
def test_replaced_and_still_right(variant: Variant, tmp_path: Path) -> None:
    exported = export(variant, tmp_path)
    if exported.file is None:
        pytest.skip(f"the exporter refuses: {exported.error.splitlines()[0]}")
    case = variant.build()
    verdict = verify(tmp_path / exported.file, case, static=exported.static)
    assert not verdict.crash
    assert not verdict.float_wrong
    assert not verdict.wrong
    assert verdict.matched == verdict.replaced
    assert verdict.replaced == case.attentions, verdict.rejected


def test_an_export_is_kept_until_its_definition_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = next(v for v in variants(["qdq"]))
    first = export(variant, tmp_path)
    written = (tmp_path / "qdq-graph-0-graph.onnx").stat().st_mtime_ns
    assert export(variant, tmp_path) == first
    assert (tmp_path / "qdq-graph-0-graph.onnx").stat().st_mtime_ns == written
    monkeypatch.setattr("zoo.export.key", lambda _: "changed")
    assert export(variant, tmp_path).key == "changed"
    assert (tmp_path / "qdq-graph-0-graph.onnx").stat().st_mtime_ns > written


@pytest.mark.parametrize(
    ("module", "old", "new", "changed"),
    [
        ("torch_modules", "# ---- by hand ----", "def added():\n    return _TEXT\n", set()),
        ("torch_modules", '"""As in timm', '"""As in timm\'s older', set()),
        ("torch_modules", "is_causal=True))", "is_causal=True, scale=1))", {"sdpa_causal"}),
        ("torch_modules", "_TOKENS = {", "_TOKENS = {**{}, ", {"packed_qkv"}),
        ("case", "3:] = False", "2:] = False", {"sdpa_causal", "packed_qkv", "bert"}),
        ("case", "parameter.mul_(3)", "parameter.mul_(4)", {"packed_qkv", "bert"}),
        ("transformer_parts", "HIDDEN, HEADS, LAYERS = 64", "HIDDEN, HEADS, LAYERS = 32", {"bert"}),
        ("export", "external_data=False", "external_data=True", {"sdpa_causal", "packed_qkv", "bert"}),
    ],
)
def test_a_key_changes_with_what_the_definition_reaches(
    module: str, old: str, new: str, changed: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys() -> dict[str, str]:
        digest._names.cache_clear()
        digest.digest.cache_clear()
        names = {"sdpa_causal": "torch_modules", "packed_qkv": "torch_modules", "bert": "transformer_models"}
        return {name: digest.digest(source, name) for name, source in names.items()}

    before = keys()
    shutil.copytree(digest.FOLDER, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(digest, "FOLDER", tmp_path)
    assert keys() == before
    source = (tmp_path / f"{module}.py").read_text()
    assert old in source
    (tmp_path / f"{module}.py").write_text(source.replace(old, new, 1))
    after = keys()
    monkeypatch.undo()
    assert keys() == before
    assert {name for name in before if before[name] != after[name]} == changed


def test_a_refusal_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bool:
        raise RuntimeError("no such operator")

    monkeypatch.setattr("zoo.export._write", refuse)
    refused = export(next(v for v in variants(["qdq"])), tmp_path)
    assert (refused.file, refused.error) == (None, "RuntimeError: no such operator")
    assert [p.name for p in tmp_path.iterdir()] == ["qdq-graph-0-graph.json"]


def test_a_model_that_cannot_be_built_is_no_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(_: str) -> zoo.Case:
        raise ImportError("two libraries do not fit")

    monkeypatch.setattr(Variant, "build", build)
    with pytest.raises(ImportError):
        export(next(v for v in variants(["qdq"])), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("steps", [0, 1])
def test_a_killed_export_is_done_again(steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file gets its name when it is whole, then the record: there is no point where half of one counts."""
    variant, left = next(v for v in variants(["qdq"])), iter(range(steps))
    replace = Path.replace

    def killed(path: Path, target: Path) -> Path:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        export(variant, tmp_path)
    assert not list(tmp_path.glob("*.json"))
    monkeypatch.undo()
    assert export(variant, tmp_path).file == f"{variant.stem}.onnx"
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{variant.stem}.json", f"{variant.stem}.onnx"]


@pytest.fixture
def values_for_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewrite that is wrong: V is read in K's place."""
    original = intfa_onnx.rewrite

    def spoiled(path: Path, **options: bool) -> intfa_onnx.RewriteResult:
        result = original(path, **options)
        for node in result.model.graph.all_nodes():
            if node.op_type == OP_TYPE:
                node.replace_input_with(1, node.inputs[2])
        return result

    monkeypatch.setattr(intfa_onnx, "rewrite", spoiled)


@pytest.mark.usefixtures("values_for_keys")
@pytest.mark.parametrize("name", ["keras_bert", "dynamic_quantized"])
def test_a_wrong_model_is_seen(name: str, tmp_path: Path) -> None:
    (variant,) = variants([name])
    verdict = verify(tmp_path / str(export(variant, tmp_path).file), variant.build())
    assert verdict.replaced
    assert verdict.float_wrong
    assert verdict.verified == 0
    assert name != "keras_bert" or not verdict.int8_error < INT8_BOUND  # the other has a residual that is far larger


@pytest.mark.usefixtures("values_for_keys")
def test_a_wrong_attention_is_seen_where_the_output_hides_it(tmp_path: Path) -> None:
    """Each attention's own value is compared, so that right outputs do not prove a fusion."""
    case = variants(["attention_23"])[0].build()
    body = """{
        zero = Constant <value = float {0.0}> () kt = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul (q, kt)
        p = Softmax <axis = -1> (s) o = MatMul (p, v) n = Mul (o, zero) y = Add (n, q)
    }"""
    case.model = zoo.graphs._parse(body)
    onnx.save(case.model, tmp_path / "model.onnx")
    verdict = verify(tmp_path / "model.onnx", case)
    assert verdict.int8_error < INT8_BOUND
    assert (verdict.replaced, verdict.matched, verdict.verified) == (1, 0, 0)
    assert all(label.endswith(": o") for label in verdict.float_wrong)
