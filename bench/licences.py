"""Licences of everything that stg needs, from the packages' own metadata; and the tested versions.

    python bench/licences.py -o docs/licences.md      the table, of what is installed here
    python bench/licences.py --check                  1 if one is neither permissive nor named
    python bench/licences.py --constraints constraints.txt

What a wheel bundles beyond its own code is not in its metadata; `BUNDLED` says what we know of it.
"""

from __future__ import annotations

import argparse
import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("", "cpu", "train", "gpu", "tensorrt", "tensorrt-rtx", "ray", "bench", "dev")

PERMISSIVE = (
    "MIT", "BSD", "Apache", "ISC", "PSF", "Python Software Foundation", "Zlib", "CC0", "0BSD",
    "BSL-1.0", "HPND", "Unlicense",
)  # fmt: skip

NAMED = {
    "hypothesis": "MPL-2.0: tests only, not distributed with stg",
    "pathspec": "MPL-2.0: a dependency of mypy, not distributed with stg",
}
"""Not permissive, each with the reason why it is here all the same."""

NVIDIA = re.compile(r"^(nvidia-|tensorrt)")
"""NVIDIA's own terms: proprietary, free to use; GPU extras and tests only."""

BUNDLED = {
    "av": "its wheel bundles FFmpeg (LGPL) with encoders, x264 (GPL) among them; build PyAV "
    "against another FFmpeg where that matters, .webm, .gif, .npy and PNG need no x264",
    "torch": "its wheel bundles libraries of several permissive licences",
    "numpy": "its wheel bundles OpenBLAS (BSD) and the GCC runtime (GPL with exception)",
}


def licence(found: Distribution) -> str:
    """As the metadata says it, shortened."""
    meta = found.metadata
    stated = meta.get("License-Expression") or ""
    if not stated:
        names = [c.split("::")[-1].strip() for c in meta.get_all("Classifier") or []
                 if c.startswith("License ::")]  # fmt: skip
        stated = ", ".join(name for name in names if name != "OSI Approved")
    if not stated:
        stated = next(iter((meta.get("License") or "").strip().splitlines()), "")
    return stated.removesuffix(" License").strip()[:120] or "not stated"


def needed() -> dict[str, set[str]]:
    """Every installed distribution that stg or one of its extras needs, with those extras."""
    found: dict[str, set[str]] = {}
    waiting = [("stg", extra, extra or "always") for extra in EXTRAS]
    seen = set()
    while waiting:
        item = waiting.pop()
        if item in seen:
            continue
        seen.add(item)
        name, extra, why = item
        try:
            requirements = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        if name != "stg":
            found.setdefault(canonicalize_name(name), set()).add(why)
        for text in requirements:
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is not None and not marker.evaluate({"extra": extra}):
                continue
            for wanted in ("", *requirement.extras):
                waiting.append((requirement.name, wanted, why))
    return found


def judge(name: str, stated: str) -> str:
    """One of "permissive", "NVIDIA", "named" and "unknown"."""
    if NVIDIA.match(name):
        return "NVIDIA"
    if name in NAMED:
        return "named"
    plain = re.sub(r"\s+WITH\s+[\w.-]+", "", stated)  # an exception only permits more
    parts = re.split(r"\s+(?:AND|OR)\s+|,\s*", plain)
    allowed = [any(word.lower() in part.lower() for word in PERMISSIVE) for part in parts]
    return "permissive" if all(allowed) else "unknown"


def rows() -> list[tuple[str, str, str, str]]:
    """Name, licence, judgement, extras."""
    made = []
    for name, extras in sorted(needed().items()):
        stated = licence(distribution(name))
        kind = judge(name, stated)
        order = [extra or "always" for extra in EXTRAS if (extra or "always") in extras]
        made.append((name, stated, kind, "always" if "always" in order else ", ".join(order)))
    return made


def table() -> str:
    """docs/licences.md."""
    lines = [
        "# Licences of what stg needs",
        "",
        "Written by `python bench/licences.py -o docs/licences.md` from the metadata of the",
        "packages in a test environment; `tests/test_licences.py` checks whatever is installed.",
        "Packages of extras that were not installed there (`gpu`, `tensorrt`, `ray`, `bench`) are",
        "listed as far as they share them with the others. stg itself is Apache-2.0.",
        "",
        "| package | licence, as stated | kind | needed for |",
        "| --- | --- | --- | --- |",
    ]
    for name, stated, kind, extras in rows():
        lines.append(f"| {name} | {stated} | {kind} | {extras} |")
    lines += ["", "Not permissive, and why it is here:", ""]
    lines += [f"- `{name}`: {why}." for name, why in sorted(NAMED.items())]
    lines.append("- `nvidia-*`, `tensorrt*`: NVIDIA's own terms, proprietary; extras `gpu` and")
    lines.append("  `tensorrt`, and the tests (TensorRT for RTX, NVRTC) only.")
    lines += ["", "What wheels bundle, which their metadata does not say:", ""]
    lines += [f"- `{name}`: {what}." for name, what in sorted(BUNDLED.items())]
    return "\n".join(lines) + "\n"


def constraints() -> str:
    """Every version that the tests ran with."""
    lines = [
        "# Versions that `make test` and CI install: what the tests were last run with, written by",
        "# `python bench/licences.py --constraints constraints.txt`. PyTorch is pinned here, not",
        "# in the package metadata: a range would let pip take a newer build with gigabytes of",
        "# CUDA libraries.",
    ]
    for name in sorted(needed()):
        lines.append(f"{name}=={distribution(name).version.split('+')[0]}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--constraints", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    if arguments.output:
        arguments.output.write_text(table(), encoding="utf-8")
    if arguments.constraints:
        arguments.constraints.write_text(constraints(), encoding="utf-8")
    unknown = [f"{name} ({stated})" for name, stated, kind, _ in rows() if kind == "unknown"]
    if unknown:
        raise SystemExit("neither permissive nor named in bench/licences.py: " + ", ".join(unknown))
    print(f"{len(rows())} packages")


if __name__ == "__main__":
    main()
