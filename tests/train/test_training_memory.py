"""What training takes is foreseen, and refused before anything is made."""

import re
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support import refused, run
from torch._subclasses.fake_tensor import FakeTensorMode

from stg_runtime.errors import InputError
from stg_runtime.memory import MIB, resident_memory
from stg_train.memory import Tally, foresee, refuse_larger
from stg_train.recipe import Recipe, load_recipe
from stg_train.run import Run


def large(**overrides: object) -> Recipe:
    """Of shapes alone: no clip is read."""
    given = {"data.size": [224, 224], "langevin.chains": 8, "device": "cpu", "precision": "fp32"}
    return load_recipe("st", overrides={**given, **overrides})


def test_a_tally_counts_what_is_alive_and_the_most_there_was() -> None:
    with FakeTensorMode(), Tally(copies=True) as tally:
        x = torch.empty(1000)
        y = (x + 1).mul_(2)  # in place: nothing new
        view = y[:10]
        assert tally.live == tally.peak == 8000
        del y
        assert tally.live == 8000, view  # the view keeps it
        del view
        assert (tally.live, tally.peak) == (4000, 8000)


def test_the_need_grows_evenly_with_chains_and_with_windows() -> None:
    needs = [foresee(large(**{"langevin.chains": n}), 1) for n in (8, 9, 10)]
    window = 4 * 3 * large().data.trained_frames * 224 * 224
    assert [b.held - a.held for a, b in pairwise(needs)] == [window, window]
    first, second = (b.work - a.work for a, b in pairwise(needs))
    assert first == pytest.approx(second, rel=0.01) and first > window
    batches = [foresee(large(**{"data.batch": 8}), clips).work for clips in (1, 4, 8, 80)]
    assert batches[0] < batches[1] < batches[2] == batches[3]


def test_a_coarser_scale_adds_what_it_holds() -> None:
    one, three = foresee(large(), 1), foresee(large(**{"learning.regime": "multi-grid"}), 1)
    assert one.held < three.held < 2 * one.held


def test_every_size_that_a_refusal_names_fits() -> None:
    recipe = large()
    limit = resident_memory() + 900 * MIB
    assert foresee(recipe, 1).total > limit
    with pytest.raises(InputError) as caught:
        refuse_larger(recipe, 1, f"{limit >> 10}K")
    message = str(caught.value)
    assert re.search(r"needs about \d+M of memory \(\d+M for the program, \d+M for ", message)
    found = dict(re.findall(r"--(chains|window|size) ([\dx]+)", message))
    assert set(found) == {"chains", "window", "size"}, message
    for option, text in found.items():
        section = "langevin" if option == "chains" else "data"
        value = [int(v) for v in text.split("x")] if option == "size" else int(text)
        changed = large(**{f"{section}.{option}": value})
        # A little room: this process grows from test to test.
        refuse_larger(changed, 1, f"{(limit >> 10) + (8 << 10)}K")


def test_a_recipe_of_billions_is_refused_at_once() -> None:
    """What would fit is found among some values, not among all."""
    most = {"data.frames": 1 << 31, "data.window": 1 << 31, "data.size": [4, 8]}
    recipe = large(**most, **{"langevin.chains": 4096, "data.batch": 4096})
    began = time.process_time()
    with pytest.raises(InputError, match="of memory"):
        refuse_larger(recipe, 1 << 31, "1G")
    assert time.process_time() - began < 20
    with pytest.raises(InputError, match="more than 68719476736 pixels; take fewer"):
        large(**most | {"data.size": [8, 8]})


def test_a_size_is_named_only_where_the_option_alone_will_do() -> None:
    recipe = large(**{"network.padding": "valid", "data.window_size": [200, 200]})
    with pytest.raises(InputError) as caught:
        refuse_larger(recipe, 1, f"{(resident_memory() + 700 * MIB) >> 10}K")
    for size in re.findall(r"--size (\d+)x(\d+)", str(caught.value)):
        assert min(map(int, size)) >= 200, str(caught.value)


def test_a_run_that_goes_on_is_told_nothing_that_it_cannot_change(
    tiny: Recipe, tmp_path: Path
) -> None:
    Run.start(tmp_path / "run", tiny).close()
    with pytest.raises(InputError, match="100M are there") as caught:
        Run.resume(tmp_path / "run", max_memory="100M")
    assert "would fit" not in str(caught.value) and "--chains" not in str(caught.value)


def test_a_run_that_does_not_fit_leaves_nothing(tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="100M are there"):
        Run.start(tmp_path / "runs" / "run", tiny, max_memory="100M")
    assert not (tmp_path / "runs").exists()


def test_a_malformed_limit_is_refused(clip: Path, tmp_path: Path) -> None:
    result = run("stg-train", clip, "-o", tmp_path / "run", "--max-memory", "lots")
    refused(result, "--max-memory lots: expected a size such as 2G or 500M")
    assert not (tmp_path / "run").exists()
