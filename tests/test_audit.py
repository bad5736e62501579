"""The audit's answer, by a pip-audit that says what we want: silence is never taken for safety."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "audit.py"
CLEAN = {"name": "numpy", "version": "2.0", "vulns": []}
BAD = {"name": "pillow", "version": "1.0", "vulns": [{"id": "X-1", "fix_versions": ["2.0"]}]}
UNKNOWN = {"name": "torch", "skip_reason": "not found"}


def audited(tmp_path: Path, says: str, *options: str) -> subprocess.CompletedProcess[str]:
    program = tmp_path / "pip-audit"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\necho refused >&2\n")
    program.chmod(0o755)
    command = [sys.executable, str(SCRIPT), "--with", str(program), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("packages", "code", "strict", "says"),
    [
        ([CLEAN], 0, 0, "1 packages looked up, 0 vulnerabilities"),
        ([CLEAN, BAD], 1, 1, "VULNERABLE: pillow 1.0: X-1, mended in 2.0"),
        ([CLEAN, UNKNOWN], 0, 1, "NOT LOOKED UP: 1 packages (torch)"),
        ([UNKNOWN], 0, 1, "0 packages looked up"),
    ],
)
def test_what_was_looked_up_is_said(
    tmp_path: Path, packages: list[object], code: int, strict: int, says: str
) -> None:
    answer = json.dumps({"dependencies": packages})
    plain, demanding = audited(tmp_path, answer), audited(tmp_path, answer, "--strict")
    assert (plain.returncode, demanding.returncode) == (code, strict), plain.stderr
    assert says in plain.stdout + plain.stderr


def test_no_answer_is_no_audit(tmp_path: Path) -> None:
    done = audited(tmp_path, "")
    assert done.returncode == 0 and "NOT DONE: refused" in done.stderr
    assert audited(tmp_path, "", "--strict").returncode == 1
