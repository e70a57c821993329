"""benchmarks/gpu_session.sh with stand-ins for its tools: budgets, what stays of a failed run, and the table."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks/gpu_session.sh"
TOOLS = {
    "nvidia-smi": "echo 9.0",
    "cmake": 'echo "$@" >>"$CALLS"',
    "compute-sanitizer": 'echo "========= ERROR SUMMARY: 0 errors"',
    # The benchmark of `llm` data hangs, that of 4096 keys fails halfway; the others write a result.
    "python": """case "$*" in
  *"--data llm"*) sleep 60 ;;
  *"--seqlen 4096"*) echo '{"half":'; exit 3 ;;
  *"bench op"*) echo '{"kind": "op"}' ;;
  *pytest*) echo "5 passed in 0.1s" ;;
  *cuda_architectures*) echo "sm 90a" ;;
esac""",
}


def session(tmp_path: Path, *arguments: str, seconds: int) -> tuple[subprocess.CompletedProcess[str], Path]:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in TOOLS.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": str(tools / "python")}
    environment |= {"CALLS": str(tmp_path / "calls"), "INTFA_SESSION_SECONDS": str(seconds)}
    out = tmp_path / "out"
    command = ["bash", str(SCRIPT), *arguments, str(out)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False), out


def test_a_step_that_hangs_or_fails_costs_its_own_time_only(tmp_path) -> None:
    start = time.monotonic()
    done, out = session(tmp_path, seconds=9)
    assert time.monotonic() - start < 20
    assert done.returncode == 1
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    for step in ("build", "library", "tests", "memcheck", "racecheck", "d128_normal_1024", "d128_normal_16384"):
        assert " ok " in rows[step], rows
    assert "exit 3" in rows["d128_normal_4096"]
    assert "exit 124" in rows["d128_llm_1024"]  # the budget's end
    assert "no time" in rows["d64"]
    assert "5 passed" in rows["tests"]
    written = {p.name: json.loads(p.read_text()) for p in out.glob("*.json")}
    assert set(written) == {"op_cuda_d128_normal_1024.json", "op_cuda_d128_normal_16384.json"}
    assert "-DINTFA_CUDA_ARCHITECTURES=90a" in (tmp_path / "calls").read_text()


def test_dry_run_reaches_its_end(tmp_path) -> None:
    done, out = session(tmp_path, "--dry-run", seconds=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "build",
        "library",
        "tests",
        "sanitizer",
        "benchmark",
    ]
    assert (out / "dry_run.json").exists()


@pytest.mark.parametrize("script", ["gpu_session.sh", "bring_peers.sh"])
def test_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", str(SCRIPT.with_name(script))], check=True)


def test_an_unknown_option_is_refused() -> None:
    done = subprocess.run(["bash", str(SCRIPT), "--fast"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "supported: --dry-run, --help" in done.stderr
