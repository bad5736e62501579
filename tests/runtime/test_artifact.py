import base64
import json
import zlib
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from stg_runtime.artifact import (
    MEAN_STEPS,
    SCHEMA_VERSION,
    Metadata,
    Parity,
    Size,
    pack_mean_image,
    pack_spot,
    parse_metadata,
    unpack_mean_image,
    unpack_spot,
)
from stg_runtime.errors import InputError

SHAPE = (3, 20, 24)
CLIPS = np.random.default_rng(2).integers(0, 256, (2, 5, 4, 3, 3), dtype=np.uint8)
GRAPH = Size(frames=40, height=20, width=24)


def make(**changes: Any) -> Metadata:
    fields: dict[str, Any] = {
        "recipe": "st",
        "reference_std": 1.0,
        "step_size": 0.3,
        "noise_scale": 1.0,
        "n_steps": 20,
        "init_std": 0.1,
        "pixel_mean": (101.5, 0.1, 1 / 3),
        "pixel_scale": 37.25,
        "size": Size(frames=32, height=20, width=24),
        "margin_frames": 4,
        "fps": 30000 / 1001,
        "free_axes": ("N", "T"),
        "graph_size": GRAPH,
        "min_size": Size(frames=9, height=20, width=24),
        "clips": ("ab" * 32,),
        "precision": "fp32",
        "opset": 18,
        "lowering": "none",
        "versions": {"stg": "0.1.0", "torch": "2.13"},
        "parity": (Parity(shape=(1, 3, 40, 20, 24), energy_error=1e-7, energy_grad_error=3.1e-7),),
    }
    return Metadata(**fields | changes)


def mean_image(seed: int = 0) -> np.ndarray:
    """On the grid that a stored mean image keeps."""
    steps = np.random.default_rng(seed).integers(0, 255 * MEAN_STEPS + 1, SHAPE)
    steps.flat[:2] = [0, 255 * MEAN_STEPS]
    return (steps / MEAN_STEPS).astype(np.float32)


def refused(text: str) -> str:
    with pytest.raises(InputError) as caught:
        parse_metadata(text, "clip.stg.onnx")
    message = str(caught.value)
    assert "\n" not in message and message.startswith("clip.stg.onnx: ") and len(message) < 500
    assert "export" in message  # the way out
    return message


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mean_image": pack_mean_image(mean_image())},
        {"first_noise": "space-time", "spot": pack_spot(CLIPS), "spot_shape": CLIPS.shape[:4]},
        {"free_axes": (), "noise_scale": 0.0, "init_std": 0.0, "margin_frames": 0},
        {"free_axes": ("N", "T", "H", "W"), "pixel_mean": (1e-30,), "clips": ()},
        {"recipe": 'δ "quoted" \\ \u2028', "precision": "fp16", "parity": ()},
    ],
)
def test_metadata_survives_the_file_bit_for_bit(changes: dict[str, Any]) -> None:
    metadata = make(**changes)
    again = parse_metadata(metadata.to_json(), "clip.stg.onnx")
    assert again == metadata
    assert again.to_json() == metadata.to_json()
    assert np.array_equal(again.mean(), metadata.mean())
    assert again.schema_version == json.loads(metadata.to_json())["schema_version"]


def test_metadata_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        make().step_size = 0.1


@pytest.mark.parametrize("text", ["", "{", "nonsense", '{"schema_version": 1,}', "\x00"])
def test_what_is_not_json_is_refused(text: str) -> None:
    assert "not JSON" in refused(text)


@pytest.mark.parametrize("value", [[], 3, None, "text", {}])
def test_json_of_something_else_is_refused(value: object) -> None:
    assert "metadata schema None" in refused(json.dumps(value))


@pytest.mark.parametrize("version", [0, 2, 99, "1", None])
def test_another_schema_version_is_refused_whatever_else_it_holds(version: object) -> None:
    for rest in ({}, json.loads(make().to_json())):
        message = refused(json.dumps(rest | {"schema_version": version}))
        assert f"metadata schema {version}" in message and f"schema {SCHEMA_VERSION}" in message


@pytest.mark.parametrize(
    "field", [name for name, field in Metadata.model_fields.items() if field.is_required()]
)
def test_a_missing_field_is_refused(field: str) -> None:
    value = json.loads(make().to_json())
    del value[field]
    assert field in refused(json.dumps(value))


def test_an_unknown_field_is_refused() -> None:
    value = json.loads(make().to_json())
    assert "colour" in refused(json.dumps(value | {"colour": 1}))
    value["size"]["depth"] = 3
    assert "size.depth" in refused(json.dumps(value))


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("reference_std", 0),
        ("reference_std", -1.0),
        ("reference_std", float("nan")),
        ("step_size", 0.0),
        ("step_size", float("inf")),
        ("noise_scale", -0.1),
        ("n_steps", 0),
        ("n_steps", 1.5),
        ("init_std", -1),
        ("pixel_mean", []),
        ("pixel_mean", [1, 2, 3, 4, 5]),
        ("pixel_mean", ["grey"]),
        ("pixel_scale", 0),
        ("margin_frames", -1),
        ("fps", 0),
        ("fps", "fast"),
        ("free_axes", ["C"]),
        ("size", {"frames": 0, "height": 1, "width": 1}),
        ("graph_size", {"frames": 1, "height": -1, "width": 1}),
        ("min_size", None),
        ("precision", "bf16"),
        ("opset", 0),
        ("versions", [1]),
        ("parity", [{"shape": [1, 0], "energy_error": 0, "energy_grad_error": 0}]),
        ("mean_image", 7),
        ("recipe", None),
    ],
)
def test_a_field_out_of_range_is_refused(field: str, wrong: object) -> None:
    value = json.loads(make().to_json())
    assert field in refused(json.dumps(value | {field: wrong}))


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("n_steps", 10**400),
        ("margin_frames", 10**400),
        ("margin_size", 1 << 30),
        ("reference_std", 1e200),
        ("step_size", 1e-300),
        ("pixel_scale", 1e308),
        ("init_std", 1e30),
        ("pixel_mean", [100.0, 110.0, 1e9]),
        ("pixel_mean", [100.0, -1.0, 120.0]),
        ("pixel_mean", [float("nan"), 110.0, 120.0]),
        ("stride", [1 << 31] * 3),
        ("receptive_field", [3 << 31, 1, 1]),
        ("padding", [1 << 24] * 3),
        ("margin_frames", 1 << 24),
        (
            "layers",
            [{"filters": 1, "kernel": [1 << 31] * 3, "stride": [1] * 3, "padding": [0] * 3}],
        ),
        ("equalizer", {"time": [0.0], "space": [[1.0]]}),
    ],
)
def test_numbers_that_nothing_can_be_computed_from_are_refused(field: str, wrong: object) -> None:
    value = json.loads(make().to_json())
    assert f"damaged stg metadata: {field}" in refused(json.dumps(value | {field: wrong}))


@pytest.mark.parametrize(
    "changes",
    [
        {"min_size": {"frames": 41, "height": 20, "width": 24}},
        {
            key: {"frames": 1 << 20, "height": 99, "width": 9}
            for key in ("size", "graph_size", "min_size")
        },
        {"stride": [1] * 3, "receptive_field": [9] * 3, "padding": [9] * 3},
        {"stride": [1] * 3, "receptive_field": [99] * 3, "padding": [44] * 3},
    ],
)
def test_sizes_that_no_network_has_are_refused(changes: dict[str, Any]) -> None:
    value = json.loads(make().to_json())
    assert "min_size" in refused(json.dumps(value | changes))


def test_an_unstable_step_is_refused() -> None:
    make(reference_std=0.5, step_size=0.999)
    value = json.loads(make().to_json())
    for step_size in (1.0, 1.001, 50.0):
        message = refused(json.dumps(value | {"reference_std": 0.5, "step_size": step_size}))
        assert "step_size" in message and "below 2 * reference_std (1.0)" in message


# The mean image


def test_channel_means_are_broadcast() -> None:
    mean = make().mean()
    assert mean.dtype == np.float32 and mean.shape == (3, 1, 1)
    assert mean.ravel().tolist() == np.array([101.5, 0.1, 1 / 3], np.float32).tolist()
    assert make().channels == 3


def test_a_mean_image_on_its_grid_is_kept_exactly() -> None:
    image = mean_image()
    again = unpack_mean_image(pack_mean_image(image), SHAPE)
    assert again.dtype == np.float32 and np.array_equal(again, image)
    metadata = make(mean_image=pack_mean_image(image))
    assert np.array_equal(metadata.mean(), image)


def test_a_mean_image_off_its_grid_is_rounded_to_it() -> None:
    image = np.random.default_rng(0).uniform(0, 255, SHAPE).astype(np.float32)
    error = np.abs(unpack_mean_image(pack_mean_image(image), SHAPE) - image)
    assert 0 < error.max() <= 0.5 / MEAN_STEPS


def test_a_damaged_or_wrong_mean_image_is_refused() -> None:
    text = pack_mean_image(mean_image())
    raw = base64.b64decode(text)
    turned = bytearray(raw)
    turned[len(raw) // 2] ^= 0x10
    value = json.loads(make().to_json())
    for wrong in (
        "",
        "not base64!",
        text[:-8],
        base64.b64encode(b"not deflated").decode(),
        base64.b64encode(raw[: len(raw) // 2]).decode(),
        base64.b64encode(bytes(turned)).decode(),
        pack_mean_image(mean_image()[:, :-1]),
        pack_mean_image(np.concatenate([mean_image()] * 2)),
    ):
        with pytest.raises(ValueError, match="mean_image"):
            unpack_mean_image(wrong, SHAPE)
        assert "mean_image" in refused(json.dumps(value | {"mean_image": wrong})), wrong[:20]


def test_a_mean_image_without_its_checksum_is_refused() -> None:
    raw = base64.b64decode(pack_mean_image(mean_image()))
    with pytest.raises(ValueError, match="mean_image"):
        unpack_mean_image(base64.b64encode(raw[:-4]).decode(), SHAPE)


def test_a_zip_bomb_is_refused_in_little_memory() -> None:
    import tracemalloc

    bomb = base64.b64encode(zlib.compress(bytes(1 << 28), 9)).decode()
    tracemalloc.start()
    with pytest.raises(ValueError, match="does not hold 2880 bytes"):
        unpack_mean_image(bomb, SHAPE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * len(bomb)  # 256 MiB inflated, 350 kB deflated


def test_a_mean_image_larger_than_any_is_refused_before_it_is_inflated() -> None:
    with pytest.raises(ValueError, match="is larger than"):
        unpack_mean_image("", (3, 1 << 20, 1 << 20))


@pytest.mark.parametrize("axes", [["H"], ["W"], ["N", "T", "H", "W"]])
def test_a_mean_image_fixes_height_and_width(axes: list[str]) -> None:
    value = json.loads(make(mean_image=pack_mean_image(mean_image())).to_json())
    assert "fixes height and width" in refused(json.dumps(value | {"free_axes": axes}))


def test_spot_clips_come_back_and_others_are_refused() -> None:
    packed = pack_spot(CLIPS)
    assert np.array_equal(unpack_spot(packed, CLIPS.shape), CLIPS)
    for shape in ((2, 5, 4, 3, 4), (1, 5, 4, 3, 3)):
        with pytest.raises(ValueError, match="does not hold"):
            unpack_spot(packed, shape)
    with pytest.raises(ValueError, match="larger than"):
        unpack_spot(packed, (1 << 20, 5, 4, 3, 3))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"spot": None}, "belong together"),
        ({"first_noise": "white"}, "belong together"),
        ({"spot_shape": None}, "belong together"),
        ({"first_noise": "time", "free_axes": ("T",)}, "does not fit graph_size"),
        ({"first_noise": "time", "free_axes": ("T", "H")}, "fixes height and width"),
        ({"spot_shape": (2, 5, 4, 4)}, "does not hold"),
    ],
)
def test_a_spot_that_does_not_fit_is_refused(changes: dict[str, Any], says: str) -> None:
    spot = {"first_noise": "space-time", "spot": pack_spot(CLIPS), "spot_shape": CLIPS.shape[:4]}
    with pytest.raises(ValidationError, match=says):
        make(**spot | changes)


def test_a_models_spot_noise_has_the_clips_colours() -> None:
    spot = {"first_noise": "space-time", "spot": pack_spot(CLIPS), "spot_shape": CLIPS.shape[:4]}
    metadata = make(**spot)
    noise = metadata.spot_noise
    assert noise is not None and make().spot_noise is None
    shape = (3, 5, 4, 3)
    still = np.zeros(noise.noise_size(shape), np.float32)
    still[1] = 1  # chooses the second clip
    levels = noise.make(still, shape)[:, 0, 0, 0] * metadata.pixel_scale + metadata.mean().ravel()
    np.testing.assert_allclose(levels, CLIPS[1].mean((0, 1, 2)), rtol=1e-4)


def test_a_mean_video_has_an_image_for_each_frame_of_the_graph() -> None:
    size = make().graph_size
    shape = (3, size.frames, size.height, size.width)
    video = np.random.default_rng(2).integers(0, 65280, shape).astype(np.float32) / 256
    fields = {"mean_image": pack_mean_image(video), "mean_per_frame": True}
    metadata = make(**fields, free_axes=("N",))
    assert np.array_equal(metadata.mean(), video)
    assert np.array_equal(parse_metadata(metadata.to_json(), "m.onnx").mean(), video)
    with pytest.raises(ValueError, match="T is a free axis"):
        make(**fields, free_axes=("N", "T"))
    with pytest.raises(ValueError, match="does not hold"):
        make(mean_image=pack_mean_image(video), free_axes=("N",))
