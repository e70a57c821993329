"""Reading and writing: every bad input has its message, a file is written whole or not at all, weights stay on disk."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
from attention_graphs import VARIANTS, parse
from onnx import TensorProto, helper

import intfa_onnx
from intfa_onnx import ModelError


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(parse(*VARIANTS["added mask"]), path)
    return path


def external_model(folder: Path, location: str = "weights.bin", length: int = 64 * 4) -> Path:
    """A model with one weight in an external file, added to the output of an attention."""
    model = parse(VARIANTS["plain"][0].replace("Y =", "A =") + "\n Y = Add (A, weight)")
    weight = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[length // 4 // 16, 16])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": 0, "length": length}.items():
        weight.external_data.add(key=key, value=str(value))
    model.graph.initializer.append(weight)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def folders(parent: Path) -> tuple[Path, Path]:
    """Where a model is, and where it is to go."""
    source, target = parent / "source", parent / "target"
    source.mkdir()
    target.mkdir()
    return source, target


def test_missing_file(tmp_path):
    with pytest.raises(ModelError, match=r"cannot read '.*none\.onnx': No such file"):
        intfa_onnx.rewrite(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty, not an ONNX model"),
        (b"this is a text file\n" * 10, "is not an ONNX model"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is not an ONNX model"),
        (b"\x08\x09", "is cut off or damaged"),
    ],
    ids=["empty", "text", "image", "only a header"],
)
def test_not_onnx(tmp_path, content, message):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        intfa_onnx.rewrite(path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.98])
def test_truncated(model_path, part):
    data = model_path.read_bytes()
    model_path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ModelError, match="cut off or damaged"):
        intfa_onnx.rewrite(model_path)


def test_every_truncation_is_a_model_error(model_path):
    """No prefix of a model is taken for a model, and none raises anything else."""
    data = model_path.read_bytes()
    for length in range(0, len(data), 7):
        model_path.write_bytes(data[:length])
        with pytest.raises(ModelError):
            intfa_onnx.rewrite(model_path)


def test_unknown_opset(model_path):
    model = onnx.load(model_path)
    model.opset_import[0].version = 99
    model_path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"opset 99 of ai\.onnx \(supported by the installed onnx .*: 1 to \d+\)"):
        intfa_onnx.rewrite(model_path)


def test_missing_external_data(tmp_path):
    path = external_model(tmp_path)
    with pytest.raises(ModelError, match=r"keeps tensor 'weight' in 'weights\.bin', which is missing in '.*'"):
        intfa_onnx.rewrite(path)


def test_truncated_external_data(tmp_path):
    path = external_model(tmp_path)
    (tmp_path / "weights.bin").write_bytes(bytes(100))
    with pytest.raises(ModelError, match="has 100 bytes, but tensor 'weight' ends at byte 256"):
        intfa_onnx.rewrite(path)


def test_existing_output(model_path, tmp_path):
    result, output = intfa_onnx.rewrite(model_path), tmp_path / "out.onnx"
    output.write_bytes(b"precious")
    with pytest.raises(ModelError, match=r"out\.onnx' exists"):
        result.save(output)
    assert output.read_bytes() == b"precious"
    result.save(output, force=True)
    onnx.checker.check_model(output)


def test_output_over_the_input(model_path):
    result = intfa_onnx.rewrite(model_path)
    result.save(model_path, force=True)
    assert "IntFlashAttention" in {n.op_type for n in onnx.load(model_path).graph.node}


def test_missing_and_wrong_folder(model_path, tmp_path):
    result = intfa_onnx.rewrite(model_path)
    with pytest.raises(ModelError, match=r"does not exist\. Create it first"):
        result.save(tmp_path / "none" / "out.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        result.save(tmp_path)


def test_a_pipe_is_not_replaced_by_a_file(model_path, tmp_path):
    """Nor is /dev/null, which root could rename away."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ModelError, match=r"pipe' is a device or a pipe"):
        intfa_onnx.rewrite(model_path).save(pipe, force=True)
    assert pipe.is_fifo()


def test_a_name_that_no_file_can_have(model_path, tmp_path):
    with pytest.raises(ModelError, match=r"cannot write .*: File name too long"):
        intfa_onnx.rewrite(model_path).save(tmp_path / ("x" * 300 + ".onnx"))


def test_more_than_one_protobuf_message_holds(tmp_path, monkeypatch):
    """A weight of 256 bytes within the model, and a limit that is 2 GiB in truth."""
    path = external_model(tmp_path)
    weights(tmp_path)
    result = intfa_onnx.rewrite(onnx.load(path))
    monkeypatch.setattr("intfa_onnx.model_io._PROTOBUF_LIMIT", 255)
    with pytest.raises(
        ModelError, match=r"would hold 256 bytes .*\(limit 255\)\. Save the original with external data"
    ):
        result.save(tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
    monkeypatch.setattr("intfa_onnx.model_io._PROTOBUF_LIMIT", 256)
    result.save(tmp_path / "out.onnx")


def test_unwritable_folder(model_path, tmp_path, monkeypatch):
    """The test may run as root, to whom every folder is writable: the system call is made to refuse."""

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(ModelError, match=r"cannot write .*: Permission denied\. Choose a writable folder"):
        intfa_onnx.rewrite(model_path).save(tmp_path / "out.onnx")
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_failure_in_the_middle_leaves_nothing(tmp_path, monkeypatch):
    """A full disk shows at the last system call; neither the model nor its weights stay."""
    source, target = folders(tmp_path)
    path = external_model(source)
    (source / "weights.bin").write_bytes(bytes(256))
    result = intfa_onnx.rewrite(path)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ModelError, match="No space left on device"):
        result.save(target / "out.onnx")
    assert os.listdir(target) == []
    assert sorted(os.listdir(source)) == ["model.onnx", "weights.bin"]


def test_failure_in_the_middle_keeps_what_was_to_be_replaced(tmp_path, monkeypatch):
    """With force, a model and its weights are replaced together or not at all."""
    source, target = folders(tmp_path)
    path = external_model(source)
    weights(source)
    (target / "weights.bin").write_bytes(b"precious")
    (target / "out.onnx").write_bytes(b"precious too")
    result = intfa_onnx.rewrite(path)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ModelError, match="No space left on device"):
        result.save(target / "out.onnx", force=True)
    assert {f.name: f.read_bytes() for f in target.iterdir()} == {
        "weights.bin": b"precious",
        "out.onnx": b"precious too",
    }


@pytest.mark.parametrize("existing", [False, True])
def test_failure_between_two_files(tmp_path, monkeypatch, existing):
    """The weights are in place when the model's rename fails: they go again, unless they took the place of others."""
    source, target = folders(tmp_path)
    path = external_model(source)
    array = weights(source)
    if existing:
        (target / "weights.bin").write_bytes(b"precious")
    result, replace = intfa_onnx.rewrite(path), os.replace

    def fail_at_the_model(old, new):
        if Path(new).suffix == ".onnx":
            raise OSError(5, "Input/output error")
        replace(old, new)

    monkeypatch.setattr("os.replace", fail_at_the_model)
    with pytest.raises(ModelError, match="Input/output error"):
        result.save(target / "out.onnx", force=True)
    assert {f.name: f.read_bytes() for f in target.iterdir()} == ({"weights.bin": array.tobytes()} if existing else {})


def test_output_is_readable_by_others(model_path, tmp_path):
    """A temporary file is private; the result follows the umask, as any other file."""
    intfa_onnx.rewrite(model_path).save(tmp_path / "out.onnx")
    (tmp_path / "plain").touch()
    assert (tmp_path / "out.onnx").stat().st_mode == (tmp_path / "plain").stat().st_mode


def weights(folder: Path) -> np.ndarray:
    array = np.arange(64, dtype=np.float32)
    (folder / "weights.bin").write_bytes(array.tobytes())
    return array.reshape(4, 16)


def test_external_data_in_the_same_folder_is_referenced(tmp_path):
    path = external_model(tmp_path)
    array = weights(tmp_path)
    before = (tmp_path / "weights.bin").stat()
    intfa_onnx.rewrite(path).save(tmp_path / "out.onnx")
    after = (tmp_path / "weights.bin").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert sorted(os.listdir(tmp_path)) == ["model.onnx", "out.onnx", "weights.bin"]
    loaded = onnx.load(tmp_path / "out.onnx")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(loaded.graph.initializer[0]), array)


def test_external_data_goes_with_the_model(tmp_path):
    source, target = folders(tmp_path)
    path = external_model(source)
    array = weights(source)
    intfa_onnx.rewrite(path).save(target / "out.onnx")
    assert sorted(os.listdir(target)) == ["out.onnx", "weights.bin"]
    for folder, name in ((source, "model.onnx"), (target, "out.onnx")):  # onnx would refuse a hard link in both
        loaded = onnx.load(folder / name)
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(loaded.graph.initializer[0]), array)


def test_external_data_of_a_constant_goes_too(tmp_path):
    """A Constant node may keep its tensor outside, as an initializer may."""
    source, target = folders(tmp_path)
    path = external_model(source)
    array = weights(source)
    model = onnx.load(path, load_external_data=False)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["weight"], value=model.graph.initializer.pop()))
    path.write_bytes(model.SerializeToString())
    intfa_onnx.rewrite(path).save(target / "out.onnx")
    assert (target / "weights.bin").read_bytes() == array.tobytes()
    (source / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"in 'weights\.bin', which is missing"):
        intfa_onnx.rewrite(path)


def test_external_data_is_not_written_outside_of_the_folder(tmp_path):
    """A model may name any path; with force, one above the output's folder was overwritten."""
    for folder in ("source/inner", "target/inner"):
        (tmp_path / folder).mkdir(parents=True)
    path = external_model(tmp_path / "source" / "inner", location="../weights.bin")
    weights(tmp_path / "source")
    (tmp_path / "target" / "weights.bin").write_bytes(b"precious")
    with pytest.raises(ModelError, match=r"location '\.\./weights\.bin' is outside of the model's folder"):
        intfa_onnx.rewrite(path).save(tmp_path / "target" / "inner" / "out.onnx", force=True)
    assert (tmp_path / "target" / "weights.bin").read_bytes() == b"precious"
    assert list((tmp_path / "target" / "inner").iterdir()) == []


def test_the_output_is_not_its_own_external_data(tmp_path):
    """With force, the model would take the place of its weights: next to the original, and in another folder."""
    path = external_model(tmp_path)
    array = weights(tmp_path)
    (tmp_path / "target").mkdir()
    for output in (tmp_path / "weights.bin", tmp_path / "target" / "weights.bin"):
        with pytest.raises(ModelError, match=r"weights\.bin' is where the model's external data is"):
            intfa_onnx.rewrite(path).save(output, force=True)
    assert (tmp_path / "weights.bin").read_bytes() == array.tobytes()
    assert list((tmp_path / "target").iterdir()) == []


def test_other_external_data_is_not_overwritten(tmp_path):
    source, target = folders(tmp_path)
    path = external_model(source)
    weights(source)
    (target / "weights.bin").write_bytes(b"precious")
    result = intfa_onnx.rewrite(path)
    with pytest.raises(ModelError, match=r"external data file '.*weights\.bin' exists"):
        result.save(target / "out.onnx")
    assert (target / "weights.bin").read_bytes() == b"precious"
    assert os.listdir(target) == ["weights.bin"]


@pytest.mark.parametrize(
    ("length", "folder", "seconds"), [(3 * 2**30, "source", 2), (256 * 2**20, "target", 10)], ids=["3 GiB", "copied"]
)
def test_weights_are_not_read(tmp_path, length, folder, seconds):
    """A sparse file: reading it would take as much memory. Next to the model it is not even copied."""
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    path, output = external_model(tmp_path / "source", length=length), tmp_path / folder / "out.onnx"
    with open(tmp_path / "source" / "weights.bin", "wb") as file:
        file.truncate(length)
    script = f"""
        import resource, time
        import intfa_onnx
        base, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        result = intfa_onnx.rewrite({str(path)!r})
        result.save({str(output)!r})
        assert result.attentions[0].decision == "replaced", result.attentions
        print(time.perf_counter() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024)
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=60
    )
    took, mebibytes = map(float, out.stdout.split())
    # Measured 0.02 s (0.3 s with the copy) and 2 MiB; the limits leave room for a busy machine.
    assert took < seconds
    assert mebibytes < 100
    assert (tmp_path / folder / "weights.bin").stat().st_size == length


def test_model_in_memory():
    """A ModelProto, and an onnx_ir.Model, which is not changed."""
    model = parse(*VARIANTS["plain"])
    from_proto = intfa_onnx.rewrite(model)
    again = intfa_onnx.rewrite(from_proto.model)
    assert again.attentions[0].decision == "kept"


def test_external_data_of_a_model_in_memory(tmp_path, monkeypatch):
    """Its data is looked for in the current folder, at once: saving said that the output could not be written."""
    source, target = folders(tmp_path)
    proto = onnx.load(external_model(source), load_external_data=False)
    array = weights(source)
    monkeypatch.chdir(target)
    with pytest.raises(ModelError, match=r"'weights\.bin', which is missing in .*target.* give the model by its path"):
        intfa_onnx.rewrite(proto)
    monkeypatch.chdir(source)
    intfa_onnx.rewrite(proto).save(target / "out.onnx")
    assert (target / "weights.bin").read_bytes() == array.tobytes()


def test_the_current_folder_may_change_before_the_model_is_saved(tmp_path, monkeypatch):
    source, target = folders(tmp_path)
    external_model(source)
    array = weights(source)
    monkeypatch.chdir(tmp_path)
    result = intfa_onnx.rewrite("source/model.onnx")
    monkeypatch.chdir(target)
    result.save("out.onnx")
    assert (target / "weights.bin").read_bytes() == array.tobytes()


def test_two_models_may_share_a_target_folder(tmp_path):
    """The second finds the weights of the first, which have the same content."""
    path = external_model(tmp_path)
    weights(tmp_path)
    (tmp_path / "target").mkdir()
    result = intfa_onnx.rewrite(path)
    result.save(tmp_path / "target" / "a.onnx")
    result.save(tmp_path / "target" / "b.onnx")
    assert sorted(os.listdir(tmp_path / "target")) == ["a.onnx", "b.onnx", "weights.bin"]


def test_helper_is_external(tmp_path):
    """The models above do keep their weight outside."""
    path = external_model(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    assert proto.graph.initializer[0].data_location == helper.TensorProto.EXTERNAL
