"""Recipes: the built-in ones work at both scales; mistakes are named in one line."""

from pathlib import Path

import pytest

from stg_runtime.errors import InputError
from stg_train.descriptor import Descriptor
from stg_train.recipe import builtin_recipes, load_recipe

# Filters, kernel and stride of each layer as the paper and its public code have them, at the sizes
# they were used at.
PAPER = {
    "st": ((70, 224, 224), [(120, (15, 15, 15)), (40, (7, 7, 7)), (20, (2, 3, 3))]),
    "fc-s": ((70, 100, 100), [(120, (7, 7, 7)), (30, (5, 50, 50)), (5, (2, 1, 1))]),
    "fc-s-large": ((70, 224, 224), [(120, (7, 7, 7)), (30, (4, 75, 75)), (5, (2, 1, 1))]),
}


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("name", builtin_recipes())
def test_builtin_recipes_resolve(name: str, scale: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, scale=scale)
    assert recipe.name == name
    saved = tmp_path / "recipe.toml"
    recipe.save(saved)
    assert load_recipe(str(saved)) == recipe


@pytest.mark.parametrize("prefix", ["", "paper-"])
@pytest.mark.parametrize("name", PAPER)
def test_paper_scale_keeps_the_papers_networks(name: str, prefix: str) -> None:
    recipe = load_recipe(prefix + name, scale="paper")
    size, layers = PAPER[name]
    assert (recipe.data.frames, *recipe.data.size) == size
    descriptor = Descriptor(recipe.network.specs(), 3, size)
    assert [(conv.out_channels, conv.kernel_size) for conv in descriptor.convs] == layers


def test_paper_recipes_are_literal() -> None:
    recipe = load_recipe("paper-st", scale="paper")
    assert recipe.learning.regime == "persistent"
    assert len(recipe.learning.growth) == 2
    assert (recipe.langevin.reference_std, recipe.langevin.step_size) == (1.0, 0.3)
    assert (recipe.pixels.scale, recipe.network.init_std) == (1.0, 0.001)


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        ("fcs", {}, "did you mean fc-s"),
        ("fc-s", {"learning.updates": 0}, "learning.updates.*greater than or equal to 1.*got 0"),
        ("fc-s", {"data.window": 65}, "window 65 is longer than the clip's 64 frames"),
        ("fc-s", {"langevin.step_size": 1.0}, "below 2 . reference_std"),
        ("st", {"langevin.first_noise": "time"}, "of one frame size"),
        ("action", {"langevin.first_noise": "space-time"}, "needs langevin.first_noise"),
        ("fc-s", {"learning.updatse": 3}, "unknown key learning.updatse, did you mean updates"),
        ("fc-s", {"learning.growth": [3, 2]}, "rising"),
        ("fc-s", {"learning.growth": [3]}, "2 layers are to be added"),
        ("fc-s", {"device": "gpu"}, "device"),
        ("missing.toml", {}, "missing.toml: cannot read"),
    ],
)
def test_mistakes_take_one_line(name: str, overrides: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        load_recipe(name, overrides=overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"data.mask_grow": 3}, "need --mask, which is not given"),
        ({"data.mask_resize": True}, "need --mask, which is not given"),
        ({"data.mask": "region:4", "data.windows": 3}, "leave --windows and --align out"),
        ({"data.mask": "m.npy", "data.align": True}, "leave --windows and --align out"),
    ],
)
def test_options_of_masks_are_of_use_or_refused(overrides: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_recipe("st", overrides=overrides)


def test_unknown_key_of_a_layer_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    text = load_recipe("fc-s").to_toml().replace("filters = 32", "filers = 32")
    file.write_text(text)
    with pytest.raises(InputError, match=r"network.layers.0.filers, did you mean filters"):
        load_recipe(str(file))


def test_tables_that_are_none_are_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    for text, says in (
        ("data = 3", "data must be a table"),
        ("[scale]\nsmall = 3", "scale.small"),
        ("langevin = 3", "langevin must be a table"),
        ('[data]\nwindow = "x"', "name: Field required"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=says):
            load_recipe(str(file), overrides={"data.frames": 3, "langevin.chains": 2})


def test_a_scale_that_a_recipe_does_not_have_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    load_recipe("fc-s").save(file)
    with pytest.raises(InputError, match=r"no \[scale.paper\]"):
        load_recipe(str(file), scale="paper")


def test_not_toml(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("this is = = not TOML")
    with pytest.raises(InputError, match="not valid TOML"):
        load_recipe(str(file))


def test_fewer_frames_shorten_the_window() -> None:
    assert load_recipe("fc-s", overrides={"data.frames": 20}).data.trained_frames == 20
    assert load_recipe("fc-s", overrides={"data.frames": 50}).data.trained_frames == 32


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.batch", True),
        ("langevin.noise_scale", True),
        ("data.size", [True, 64]),
        ("seed", True),
    ],
)
def test_true_is_no_number(key: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"{key}: expected a number or text, not true or false"):
        load_recipe("fc-s", overrides={key: value})
    assert load_recipe("fc-s", overrides={"data.allow_cuts": True}).data.allow_cuts
