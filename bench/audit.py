"""Known vulnerabilities of the pinned packages, as pip-audit finds them where it can ask.

    python bench/audit.py                       in an environment of its own; `make audit`
    python bench/audit.py --with pip-audit      one that is installed

pip-audit calls a package that its advisory service does not answer for "skipped", and a list of
nothing but these "no known vulnerabilities". So the packages that were looked up are counted here.
Exit code 1 where one is known to be vulnerable, and with --strict where one was not looked up.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
SECONDS = 300


def audit(program: str, constraints: Path) -> tuple[list[str], list[str], int]:
    """What is vulnerable, one line each; what was not looked up; how many were.

    Raises:
        RuntimeError: pip-audit gave no answer; its last line.
    """
    options = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(
        [program, "-r", str(constraints), *options],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        said = done.stderr.strip().splitlines() or ["no output"]
        raise RuntimeError(said[-1][:300]) from None
    skipped = [item["name"] for item in packages if "skip_reason" in item]
    vulnerable = [
        f"{item['name']} {item['version']}: {fault['id']}, mended in "
        f"{', '.join(fault.get('fix_versions') or ['no version'])}"
        for item in packages
        for fault in item.get("vulns", ())
    ]
    return vulnerable, skipped, len(packages) - len(skipped)


def installed(folder: Path) -> str:
    """Pip-audit in a fresh environment, so that it adds nothing to ours; its program.

    Raises:
        RuntimeError: it cannot be installed from here.
    """
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet", "pip-audit"]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        raise RuntimeError("pip-audit cannot be installed from here")
    return str(folder / "bin" / "pip-audit")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--with", dest="program", help="a pip-audit that is installed")
    parser.add_argument("--constraints", type=Path, default=CONSTRAINTS)
    parser.add_argument("--strict", action="store_true", help="1 where one was not looked up")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as name:
            program = arguments.program or installed(Path(name) / "audit")
            vulnerable, skipped, count = audit(program, arguments.constraints)
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        print(f"audit: NOT DONE: {error}", file=sys.stderr)
        return int(arguments.strict)
    for line in vulnerable:
        print(f"audit: VULNERABLE: {line}", file=sys.stderr)
    print(f"audit: {count} packages looked up, {len(vulnerable)} vulnerabilities known")
    if skipped:
        shown = ", ".join(skipped[:5]) + (", ..." if len(skipped) > 5 else "")
        print(f"audit: NOT LOOKED UP: {len(skipped)} packages ({shown})", file=sys.stderr)
    return int(bool(vulnerable or (arguments.strict and skipped)))


if __name__ == "__main__":
    raise SystemExit(main())
