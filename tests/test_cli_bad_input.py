"""Bad input through the command line: exit code 2, one line that says what and what helps, nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from small_models import attention_model, plain_model

from intfa_onnx.cli import main
from intfa_onnx.errors import IntfaError
from intfa_onnx.session import open_session


def save(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def fail(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail; return its one line."""
    assert main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("intfa-onnx: ")
    assert "internal error" not in lines[0]
    return lines[0]


COMMANDS = [("rewrite", "-o", "out.onnx"), ("inspect",)]
NOT_ONNX = {"empty": b"", "text": b"This is a text, not a model.\n", "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
@pytest.mark.parametrize("content", list(NOT_ONNX.values()), ids=list(NOT_ONNX))
def test_not_an_onnx_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    content: bytes,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").write_bytes(content)
    assert "model.onnx" in fail(capsys, command[0], "model.onnx", *command[1:])
    assert not Path("out.onnx").exists()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_truncated_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    kept: float,
) -> None:
    monkeypatch.chdir(tmp_path)
    content = attention_model().SerializeToString()
    Path("model.onnx").write_bytes(content[: int(kept * len(content))])
    assert "model.onnx" in fail(capsys, command[0], "model.onnx", *command[1:])
    assert not Path("out.onnx").exists()


def test_absent_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "absent.onnx" in fail(capsys, "inspect", tmp_path / "absent.onnx")
    assert "absent.onnx" in fail(capsys, "compare", tmp_path / "absent.onnx", tmp_path / "absent.onnx")


def test_a_folder_is_not_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(tmp_path) in fail(capsys, "inspect", tmp_path)


def test_unknown_opset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save(attention_model(opset=999), tmp_path / "model.onnx")
    assert "999" in fail(capsys, "rewrite", model, "-o", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_unsupported_head_size_is_rejected_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save(attention_model(264), tmp_path / "model.onnx")
    assert main(["rewrite", str(model), "-o", str(tmp_path / "out.onnx"), "--json"]) == 0
    (attention,) = json.loads(capsys.readouterr().out)["attentions"]
    assert attention["decision"] == "rejected"
    assert "264" in attention["reason"]
    assert "256" in attention["reason"], "says what is supported"
    onnx.checker.check_model(str(tmp_path / "out.onnx"))


def test_existing_output_needs_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save(attention_model(), tmp_path / "model.onnx")
    output = tmp_path / "out.onnx"
    output.write_text("precious")
    assert "--force" in fail(capsys, "rewrite", model, "-o", output)
    assert output.read_text() == "precious"
    assert main(["rewrite", str(model), "-o", str(output), "--force"]) == 0
    onnx.checker.check_model(str(output))


def test_existing_report_needs_force_and_stops_before_the_model_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save(attention_model(), tmp_path / "model.onnx")
    report = tmp_path / "report.json"
    report.write_text("precious")
    assert "--force" in fail(capsys, "rewrite", model, "-o", tmp_path / "out.onnx", "--report", report)
    assert report.read_text() == "precious"
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("report", ["model.onnx", "out.onnx", "absent/report.json"])
def test_a_report_in_the_wrong_place_stops_before_the_model_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], report: str
) -> None:
    model = save(attention_model(), tmp_path / "model.onnx")
    before = model.read_bytes()
    fail(capsys, "rewrite", model, "-o", tmp_path / "out.onnx", "--report", tmp_path / report, "--force")
    assert model.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("where", ["a file/out.onnx", "absent/out.onnx"])
def test_unwritable_folder_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str) -> None:
    model = save(attention_model(), tmp_path / "model.onnx")
    (tmp_path / "a file").write_text("not a folder")
    before = sorted(tmp_path.rglob("*"))
    assert str((tmp_path / where).parent) in fail(capsys, "rewrite", model, "-o", tmp_path / where)
    assert sorted(tmp_path.rglob("*")) == before


def test_full_file_system_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """/proc accepts no new file, not even root's."""
    if not Path("/proc/self").exists():
        pytest.skip("no /proc")
    model = save(attention_model(), tmp_path / "model.onnx")
    assert "/proc/out.onnx" in fail(capsys, "rewrite", model, "-o", "/proc/out.onnx")


def run_script(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, whose stdout is a file and not a capture."""
    command = [sys.executable, "-m", "intfa_onnx.cli", *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, **options)


def test_no_space_for_the_output(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    model = save(attention_model(), tmp_path / "model.onnx")
    with open("/dev/full", "w") as full:
        answer = run_script("inspect", str(model), "--json", stdout=full)
    assert (answer.returncode, answer.stderr) == (2, "intfa-onnx: output: No space left on device\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_interrupted_while_it_copies_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """By the user, and by `timeout` or a container's end: weights half copied may be large."""
    script = """
        import shutil, sys, time

        def copy(source, target):
            open(target, "wb").write(b"half")
            print("copying", flush=True)
            time.sleep(60)

        shutil.copyfile = copy
        from intfa_onnx.cli import main

        sys.argv = ["intfa-onnx", "rewrite", "model.onnx", "-o", "target/out.onnx"]
        sys.exit(main())
    """
    model = attention_model()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(16, np.float32), "weight"))
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "target").mkdir()
    command = [sys.executable, "-c", textwrap.dedent(script)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, text=True, **pipes) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "copying\n"
        process.send_signal(number)
        assert process.stderr.read() == "intfa-onnx: interrupted\n"
        assert process.wait() == 2
    assert list((tmp_path / "target").iterdir()) == []


def test_a_path_that_the_output_cannot_spell(tmp_path: Path) -> None:
    """What is written is reported, in a terminal of whatever encoding: exit code 0."""
    model = save(attention_model(), tmp_path / "model.onnx")
    for name, encoding in (("größe.onnx", "ascii"), (os.fsdecode(b"gr\xf6sse.onnx"), "utf-8")):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        answer = run_script(
            "rewrite", str(model), "-o", str(tmp_path / name), stdout=subprocess.DEVNULL, env=environment
        )
        assert (answer.returncode, answer.stderr) == (0, "")
        assert (tmp_path / name).exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("rewrite", "model.onnx"),
        ("rewrite", "model.onnx", "-o", "out.onnx", "--precision", "int4"),
        ("rewrite", "model.onnx", "-o", "out.onnx", "--scheme", "best"),
        ("compare", "model.onnx", "model.onnx", "--shapes", "Q"),
        ("compare", "model.onnx", "model.onnx", "--shapes", "Q:2xtwo"),
        ("compare", "model.onnx", "model.onnx", "--shapes", "Q:2x2x4x17"),
        ("compare", "model.onnx", "model.onnx", "--shapes", "Q:2x2x-4x16"),
        ("compare", "model.onnx", "model.onnx", "--shapes", "Q:0x2x4x16"),
        ("compare", "model.onnx", "model.onnx", "--shapes", "Q:2x2x4x16", "--shapes", "Q:2x2x5x16"),
        ("compare", "model.onnx", "model.onnx", "--seed", "-1"),
        ("compare", "model.onnx", "model.onnx", "--min-cosine", "2"),
        ("compare", "model.onnx", "model.onnx", "--shapes", "absent:2x2x4x16"),
        ("compare", "model.onnx", "model.onnx", "--shapes", "Q:99999999x2x9999x16"),
        ("compare", "model.onnx", "model.onnx", "--inputs", "model.onnx"),
        ("compare", "model.onnx", "model.onnx", "--inputs", "feed.npz", "--shapes", "Q:2x2x4x16"),
        ("compare", "model.onnx", "model.onnx", "--runner-b", "gpu"),
        ("compare", "model.onnx", "plain.onnx"),
        ("libpath", "trt5"),
        ("optimise", "model.onnx"),
    ],
    ids=" ".join,
)
def test_wrong_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    save(attention_model(), Path("model.onnx"))
    save(plain_model(), Path("plain.onnx"))
    np.savez("feed.npz", **dict.fromkeys("QKV", np.zeros((2, 2, 4, 16), np.float32)))
    fail(capsys, *arguments)


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--debug", "inspect", str(tmp_path / "absent.onnx")]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_mismatched_shapes_at_run_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = save(attention_model(), tmp_path / "model.onnx")
    assert main(["rewrite", str(model), "-o", str(tmp_path / "out.onnx")]) == 0
    capfd.readouterr()
    rng = np.random.default_rng(0)
    shapes = {"Q": (2, 2, 4, 16), "K": (3, 2, 4, 16), "V": (3, 2, 4, 16)}
    archive = tmp_path / "inputs.npz"
    np.savez(archive, **{name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})
    line = fail(capfd, "compare", tmp_path / "out.onnx", tmp_path / "out.onnx", "--inputs", archive)
    assert "out.onnx" in line
    assert "batch" in line, "the kernel says which dimension differs"
    assert "--shapes" in line
    assert "2" in line
    assert "3" in line


def test_library_not_registered(tmp_path: Path) -> None:
    model = save(attention_model(), tmp_path / "model.onnx")
    output = tmp_path / "out.onnx"
    assert main(["rewrite", str(model), "-o", str(output)]) == 0
    with pytest.raises(IntfaError, match=r"not a registered function/op.*intfa_onnx\.register\(session_options\)"):
        open_session(output, register_library=False)


def test_onnxruntime_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save(attention_model(), tmp_path / "model.onnx")
    monkeypatch.setattr(onnxruntime, "__version__", "1.17.3")
    line = fail(capsys, "compare", model, model)
    assert "1.17.3" in line
    assert "1.18" in line
