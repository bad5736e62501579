"""Budgets, and windows that stay within them."""

import math

import pytest
from networks import SMALL, Network

from stg_runtime.artifact import Axis
from stg_runtime.errors import InputError
from stg_runtime.memory import MIB, choose_windows, parse_memory, show_memory
from stg_runtime.windows import cover, reach


@pytest.mark.parametrize(
    ("text", "count"),
    [("2G", 2 << 30), ("500M", 500 * MIB), ("1.5GiB", 3 << 29), ("64k", 1 << 16), ("7", 7)],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_memory(text) == count


@pytest.mark.parametrize("text", ["", "G", "-1G", "0", "0.4", "2 gigs", "1e9", "9" * 400])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="2G or 500M"):
        parse_memory(text)


def test_a_shown_size_is_enough() -> None:
    for count in (1, 3 * MIB + 1, 11 << 30):
        assert parse_memory(show_memory(count)) >= count


@pytest.mark.parametrize("periodic", [(), ("T",), ("H", "W")])
def test_windows_stay_below_their_limit_with_the_least_work(periodic: tuple[Axis, ...]) -> None:
    metadata = Network(SMALL).metadata
    lengths = (120, 64, 80)
    works = []
    for share in (0.1, 0.3, 0.6, 3.0):
        limit = share * math.prod(lengths)
        found = choose_windows(metadata, lengths, limit, periodic)
        assert found is not None and found.largest <= limit
        longest = [
            max(
                piece.length
                for piece in cover(
                    length, reach(metadata, axis), pieces=count, periodic=axis in periodic
                )
            )
            for axis, length, count in zip("THW", lengths, found.pieces, strict=True)
        ]
        assert math.prod(longest) == found.largest
        works.append(found.work)
    assert works == sorted(works, reverse=True)
    assert choose_windows(metadata, lengths, 100, periodic) is None
