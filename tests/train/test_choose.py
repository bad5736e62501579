"""Without a recipe, the clips choose: what looks alike everywhere may be free in space."""

from pathlib import Path

import numpy as np
import pytest
from support import refused, run

from stg_runtime.errors import InputError
from stg_train.choose import AS_ONE, COHERENT_FRAMES, choose, coherence
from stg_train.sea import Sea


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    waves = Sea(seed=3).render(40)
    np.save(folder / "sea.npy", waves)
    lamp = np.full_like(waves, 30)  # a scene: bright above, and only its middle flickers
    lamp[:, :20] = 200
    flicker = np.random.default_rng(0).uniform(0.3, 1, 40)
    y, x = np.mgrid[:64, :64]
    glow = 220 * np.exp(-((y - 40) ** 2 + (x - 30) ** 2) / 90)
    lit = lamp + flicker[:, None, None, None] * glow[None, :, :, None]
    np.save(folder / "lamp.npy", np.clip(lit, 0, 255).astype(np.uint8))
    np.save(folder / "stone.npy", waves[:1].repeat(1, 0))
    return folder


@pytest.mark.parametrize(("clip", "recipe"), [("sea", "st"), ("lamp", "exemplars")])
def test_a_texture_is_free_in_space_and_a_scene_is_not(clips: Path, clip: str, recipe: str) -> None:
    path = str(clips / f"{clip}.npy")
    chosen = choose([path], overrides={"data.videos": [path], "seed": 4})
    assert chosen.recipe.name == recipe, chosen.why
    # As long as the clip, and windows shorter than it; what was asked for stays.
    assert (chosen.recipe.data.frames, chosen.recipe.data.window) == (40, 26)
    assert chosen.recipe.seed == 4


@pytest.mark.parametrize("clip", ["sea", "lamp"])
def test_to_ask_for_the_frames_that_are_the_default_changes_nothing(
    clips: Path, tmp_path: Path, clip: str
) -> None:
    path = str(tmp_path / "long.npy")
    np.save(path, np.concatenate([np.load(clips / f"{clip}.npy")] * 2))
    silent = choose([path], overrides={"data.videos": [path]}).recipe
    asked = choose([path], overrides={"data.videos": [path], "data.frames": 64}).recipe
    assert silent.data.frames == 64
    assert asked == silent


def test_places_that_move_as_one_share_their_noise(clips: Path, tmp_path: Path) -> None:
    path = str(clips / "lamp.npy")
    chosen = choose([path], overrides={"data.videos": [path]})
    assert chosen.recipe.langevin.noise_cells == 1 and "move as one" in chosen.why
    asked = {"data.videos": [path], "langevin.noise_cells": 3}
    assert choose([path], overrides=asked).recipe.langevin.noise_cells == 3
    asked = {"data.videos": [path], "langevin.first_noise": "white"}
    assert choose([path], overrides=asked).recipe.langevin.first_noise == "white"
    # Sixteen lamps, each on its own.
    lamp = np.load(path)[:, 24:56, 14:46].astype(np.float32)
    rng = np.random.default_rng(1)
    wall = np.full((40, 64, 64, 3), 30.0)
    for y, x in ((y, x) for y in range(0, 64, 16) for x in range(0, 64, 16)):
        wall[:, y : y + 16, x : x + 16] = lamp[rng.permutation(40), ::2, ::2]
    path = str(tmp_path / "wall.npy")
    np.save(path, wall.astype(np.uint8))
    chosen = choose([path], overrides={"data.videos": [path]})
    assert chosen.recipe.langevin.noise_cells == 5 and "own behaviour" in chosen.why


def test_coherence_is_the_share_of_movement_that_goes_together() -> None:
    rng = np.random.default_rng(0)
    rough = rng.uniform(0, 255, (1, 200, 48, 32, 1)).astype(np.uint8)
    assert coherence(rough) < 0.02
    light = rng.uniform(0.2, 1, (1, 200, 1, 1, 1)) * rng.uniform(50, 255, (1, 1, 48, 32, 1))
    assert coherence(light.astype(np.uint8)) > 0.95
    assert coherence(np.concatenate([rough, light.astype(np.uint8)])) == pytest.approx(
        0.5, abs=0.03
    )
    assert coherence(light[:, : COHERENT_FRAMES - 1].astype(np.uint8)) == 0
    assert coherence(np.full((1, 30, 48, 32, 1), 7, np.uint8)) == 0


@pytest.mark.parametrize("frames", [24, 64])
def test_slow_places_are_not_coherent_by_chance(frames: int) -> None:
    rng = np.random.default_rng(2)
    weights = np.exp(-(np.arange(-15, 16) ** 2) / 2 / 25)
    rough = rng.standard_normal((frames + 30, 256))
    slow = np.apply_along_axis(np.convolve, 0, rough, weights, "valid").reshape(-1, 16, 16)
    for moving, as_one in ((slow, False), (np.broadcast_to(slow[:, :1, :1], slow.shape), True)):
        video = 120 + 20 * moving / moving.std()
        video = video.repeat(4, 1).repeat(4, 2).clip(0, 255).astype(np.uint8)[None, ..., None]
        assert (coherence(video) > AS_ONE) is as_one
    assert coherence(video[:, :, ::4, ::4].repeat(32, 2).repeat(32, 3)) > 0.9  # 512x512


def test_denoising_has_recipes_of_its_own(clips: Path) -> None:
    for clip, recipe in (("sea", "denoising-st"), ("lamp", "denoising")):
        path = str(clips / f"{clip}.npy")
        asked = {"data.videos": [path], "learning.regime": "denoising"}
        assert choose([path], overrides=asked).recipe.name == recipe


def test_clips_without_exemplars_take_a_convnet(clips: Path, tmp_path: Path) -> None:
    lamp = np.load(clips / "lamp.npy")
    for frames, recipe in ((2, "fc-s"), (4, "fc-s"), (5, "exemplars")):
        short = tmp_path / f"short-{frames}.npy"
        np.save(short, lamp[:frames])
        assert choose([str(short)], overrides={"data.videos": [str(short)]}).recipe.name == recipe
    two = [str(clips / "lamp.npy")] * 2
    for asked in ({"data.windows": 20, "data.frames": 20}, {"learning.regime": "multi-grid"}):
        assert choose(two, overrides={"data.videos": two, **asked}).recipe.name == "fc-s"


def test_a_mask_takes_a_convnet_but_where_another_regime_is_asked_for(clips: Path) -> None:
    path = str(clips / "lamp.npy")
    asked = {"data.videos": [path], "data.mask": "frames:0.3"}
    assert choose([path], overrides=asked).recipe.name == "fc-s"
    with pytest.raises(InputError, match="leave --mask"):
        choose([path], overrides={**asked, "learning.regime": "denoising"})


def test_a_still_image_and_an_action_need_no_measuring(clips: Path) -> None:
    still = str(clips / "stone.npy")
    assert choose([still], overrides={"data.videos": [still]}).recipe.name == "texture-2d"
    path = str(clips / "sea.npy")
    chosen = choose([path], overrides={"data.videos": [path], "data.align": True})
    assert chosen.recipe.name == "action"


def test_what_is_asked_for_and_cannot_be_is_said(clips: Path) -> None:
    path = str(clips / "sea.npy")
    with pytest.raises(InputError, match="90"):
        choose([path], overrides={"data.videos": [path], "data.frames": 90})


def test_what_cannot_be_measured_is_still_learned(clips: Path, tmp_path: Path) -> None:
    path = str(clips / "sea.npy")
    small = choose([path], overrides={"data.videos": [path], "data.size": [12, 12]})
    assert small.recipe.name == "exemplars" and "too small to measure" in small.why
    many = tmp_path / "many.npy"
    np.save(many, np.stack([np.load(path)[:36]] * 2))
    several = choose([str(many)], overrides={"data.videos": [str(many)], "data.size": [32, 32]})
    assert several.recipe.data.frames == 36


def test_nobody_waits_for_a_choice_to_be_refused(tmp_path: Path) -> None:
    """The folder is looked at before the clips, of which one is not even there."""
    (tmp_path / "notes.txt").write_text("mine")
    refused(run("stg-train", tmp_path / "none.mp4", "-o", tmp_path), "not a run of stg-train")
