import os
from pathlib import Path

import pytest

from stg_runtime.threads import usable_threads


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    return 6


@pytest.mark.parametrize(
    ("text", "threads"),
    [
        ("max 100000\n", 6),
        ("200000 100000\n", 2),
        ("250000 100000\n", 3),  # two and a half cores' time: a third thread has use for it
        ("100000 100000", 1),
        ("5000 100000", 1),
        ("100000 50000", 2),
        ("9900000 100000", 6),
        ("", 6),
        ("nonsense", 6),
        ("1 2 3", 6),
    ],
)
def test_a_quota_bounds_the_threads(tmp_path: Path, cores: int, text: str, threads: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert usable_threads(tmp_path / "cpu.max") == threads


def test_without_a_quota_all_cores_are_used(tmp_path: Path, cores: int) -> None:
    assert usable_threads(tmp_path / "absent") == cores
    assert usable_threads(tmp_path) == cores  # not a file


def test_the_affinity_counts_and_its_absence_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert usable_threads(tmp_path / "absent") == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_threads(tmp_path / "absent") == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_threads(tmp_path / "absent") == 1


def test_here_there_is_at_least_one() -> None:
    assert 1 <= usable_threads() <= (os.cpu_count() or 1)
