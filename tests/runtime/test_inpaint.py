"""Inpainting: known pixels stay to the bit; boxes, lengths, and the seam's measure."""

import numpy as np
import pytest
from numpy.typing import NDArray

from stg_runtime.artifact import Metadata, Size, pack_spot
from stg_runtime.backends.host import HostChains
from stg_runtime.errors import DivergenceError, InputError
from stg_runtime.inpaint import inpaint, plan, seam

SHAPE = (14, 40, 50)


def metadata(**changes: object) -> Metadata:
    values: dict[str, object] = {
        "recipe": "test", "reference_std": 2.0, "step_size": 0.5, "noise_scale": 1.0, "n_steps": 6,
        "init_std": 1.0, "pixel_mean": (100.0, 110.0, 120.0), "pixel_scale": 20.0,
        "size": Size(frames=8, height=16, width=16), "margin_frames": 2, "fps": 25.0,
        "free_axes": ("N", "T", "H", "W"), "graph_size": Size(frames=12, height=16, width=16),
        "min_size": Size(frames=4, height=8, width=8), "clips": (), "precision": "fp32",
        "opset": 18, "lowering": "none", "versions": {}, "parity": (),
    }  # fmt: skip
    return Metadata.model_validate(values | changes)


class Spring:
    """E = |x|^2 / 2 per video: the hidden pixels go to the mean colour."""

    description = "spring"
    threads = 1

    def __init__(self, meta: Metadata) -> None:
        self.metadata = meta

    def bind(self, x: NDArray[np.float32], energy_grad: NDArray[np.float32]) -> None:
        self.x, self.grad = x, energy_grad

    def run(self, *, release: bool = False) -> NDArray[np.float32]:
        np.copyto(self.grad, self.x)
        return (self.x**2).sum((1, 2, 3, 4)) / 2

    def chains(self, shape: tuple[int, int, int, int, int]) -> HostChains:
        return HostChains(self, shape)


class Breaking(Spring):
    def run(self, *, release: bool = False) -> NDArray[np.float32]:
        return super().run() * np.float32(np.nan)


@pytest.fixture
def frames() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)


@pytest.fixture
def known() -> NDArray[np.bool_]:
    mask = np.ones(SHAPE, bool)
    mask[5:8, 12:20, 30:41] = False
    return mask


@pytest.mark.parametrize("init", ["noise", "interpolate"])
@pytest.mark.parametrize("crop", ["none", "auto", (25, 8, 20, 16)])
def test_known_pixels_stay_and_hidden_ones_are_not_read(
    frames: NDArray[np.uint8], known: NDArray[np.bool_], init: str, crop: object
) -> None:
    backend = Spring(metadata())
    job = plan(backend.metadata, known, crop=crop, init=init, seed=4)  # type: ignore[arg-type]
    made = inpaint(backend, job, frames, known).frames  # type: ignore[arg-type]
    assert made.shape == frames.shape and made.dtype == np.uint8
    np.testing.assert_array_equal(made[known], frames[known])
    other = np.where(known[..., None], frames, 255 - frames)
    np.testing.assert_array_equal(inpaint(backend, job, other, known).frames, made)  # type: ignore[arg-type]
    seeds = [plan(backend.metadata, known, crop=crop, init=init, seed=5)]  # type: ignore[arg-type]
    assert (inpaint(backend, seeds[0], frames, known).frames != made).any()  # type: ignore[arg-type]


def test_the_hole_goes_where_the_energy_leads(
    frames: NDArray[np.uint8], known: NDArray[np.bool_]
) -> None:
    """Without noise the spring takes every hidden value to the mean colour, whatever the start."""
    backend = Spring(metadata(noise_scale=0.0))
    job = plan(backend.metadata, known, n_steps=80)
    made = inpaint(backend, job, frames, known).frames  # type: ignore[arg-type]
    assert (made[~known] == (100, 110, 120)).all()


def test_auto_is_the_box_around_the_mask() -> None:
    known = np.ones((14, 100, 200), bool)
    known[5:8, 40:50, 60:90] = False
    job = plan(metadata(), known, crop="auto")
    assert job.box == (44, 24, 62, 42)  # 16 pixels more on each side
    assert job.frames == (1, 12) and job.graph == (1, 3, 15, 42, 62)
    fixed = metadata(free_axes=("N", "T"), graph_size=Size(frames=12, height=32, width=48))
    assert plan(fixed, known, crop="auto").box == (51, 29, 48, 32)
    known[6, 0, 0] = known[6, 99, 199] = False
    assert plan(metadata(), known, crop="auto").box == (0, 0, 200, 100)
    with pytest.raises(InputError, match="the mask has a height of 100, the model walks 32 only"):
        plan(fixed, known, crop="auto")


def test_what_the_model_cannot_walk_is_refused(known: NDArray[np.bool_]) -> None:
    fixed = metadata(free_axes=("N", "T"))
    with pytest.raises(InputError, match="takes a height of 16 only, got 40; pass --crop"):
        plan(fixed, known)
    with pytest.raises(InputError, match="fills videos of 8 frames only, got 14"):
        plan(metadata(free_axes=("N", "H", "W")), known)
    with pytest.raises(InputError, match="leaves hidden pixels out; the mask spans 30,12,11,8"):
        plan(metadata(), known, crop=(0, 0, 20, 20))
    with pytest.raises(InputError, match="reaches outside the video's frames of 50x40"):
        plan(metadata(), known, crop=(40, 0, 20, 20))
    with pytest.raises(InputError, match="takes a height of at least 8, got 4"):
        plan(metadata(), np.pad(~known[:, 12:13, :], ((0, 0), (1, 2), (0, 0))) == 0)


def test_short_videos_are_long_enough_with_their_margins() -> None:
    known = np.ones((1, 16, 16), bool)
    known[0, 4:8, 4:8] = False
    backend = Spring(metadata())
    job = plan(backend.metadata, known)
    assert job.graph[2] == 5
    frames = np.full((1, 16, 16, 3), 9, np.uint8)
    assert inpaint(backend, job, frames, known).frames.shape == frames.shape  # type: ignore[arg-type]


def test_divergence_is_an_error(frames: NDArray[np.uint8], known: NDArray[np.bool_]) -> None:
    backend = Breaking(metadata())
    with pytest.raises(DivergenceError, match="non-finite at step 1"):
        inpaint(backend, plan(backend.metadata, known), frames, known)  # type: ignore[arg-type]


def test_the_seam_of_an_untouched_video_is_none_and_of_a_patch_is_seen() -> None:
    """On one texture everywhere the ratio is 1; a patch of another level shows in step and kink."""
    rng = np.random.default_rng(0)
    frames = rng.integers(90, 130, (20, 60, 60, 3), dtype=np.uint8)
    known = np.ones(frames.shape[:3], bool)
    known[:, 20:40, 15:45] = False
    whole = seam(frames, known)
    assert whole is not None
    assert whole.ratio == pytest.approx(1, abs=0.03)
    assert whole.step / whole.step_around == pytest.approx(1, abs=0.03)
    frames[~known] += 60
    patch = seam(frames, known)
    assert patch is not None
    assert patch.step > 3 * patch.step_around and patch.ratio > 2
    assert patch.kink_around == pytest.approx(whole.kink_around)
    known[:] = True
    known[3] = False
    assert seam(frames, known) is None


def test_flat_waves_around_a_long_hole_are_no_seam() -> None:
    """They differ more from row to row than along one, and most of the edge lies along them."""
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 20, (20, 60, 60)) + rng.normal(0, 2, (20, 60, 60))
    waves = np.cumsum(rows, 2) / np.sqrt(1 + np.arange(60)) + 120  # long crests
    frames = np.repeat(waves[..., None], 3, -1).clip(0, 255).astype(np.uint8)
    known = np.ones(frames.shape[:3], bool)
    known[:, 28:32, 10:50] = False
    whole = seam(frames, known)
    assert whole is not None
    assert whole.ratio == pytest.approx(1, abs=0.08)


def test_spot_noise_meets_the_known_pixels_without_a_seam() -> None:
    t, y, x = np.mgrid[0:14, 0:40, 0:50]
    rng = np.random.default_rng(3)
    waves = sum(
        np.cos(0.5 * a * x + 0.5 * b * y + 0.4 * c * t + phase)
        for a, b, c, phase in rng.normal(size=(40, 4)) * (1, 1, 1, 9)
    )
    frames = np.repeat((110 + 20 * waves / waves.std())[..., None], 3, -1).clip(0, 255)
    frames = frames.astype(np.uint8)
    known = np.ones(SHAPE, bool)
    known[:, 12:30, 15:37] = False
    spot = {"first_noise": "space-time", "spot": pack_spot(frames[None]), "spot_shape": (1, *SHAPE)}
    almost_still = {"step_size": 1e-4, "noise_scale": 0.0}
    found = {}
    for name, more in (("spot", spot), ("white", {})):
        backend = Spring(metadata(**almost_still, **more))
        made = [
            inpaint(
                backend,
                plan(backend.metadata, known, crop="none", init="noise", seed=seed),
                frames,
                known,
            ).frames
            for seed in (1, 2)
        ]
        assert np.array_equal(made[0][known], frames[known])
        hidden = made[0][~known].astype(int)
        assert np.abs(hidden - made[1][~known]).mean() > 2, "another seed is another river"
        across = seam(made[0], known)
        assert across is not None
        found[name] = across.ratio
    assert found["spot"] - 1 < (found["white"] - 1) / 10, found


@pytest.mark.parametrize("init", ["noise", "interpolate"])
def test_a_bank_is_seen_at_other_times_and_stays_as_it_is(init: str) -> None:
    """The model knows the river; what the passenger's head hides of the bank it cannot know."""
    rng = np.random.default_rng(4)
    frames = rng.integers(90, 131, (*SHAPE, 3), dtype=np.uint8)
    river = frames[:, 12:].copy()
    frames[:, :12] = rng.integers(0, 30, (12, SHAPE[2], 3), dtype=np.uint8)  # alike in every frame
    known = np.ones(SHAPE, bool)
    known[4:8, 4:24, 10:22] = False
    spot = {
        "first_noise": "space-time", "spot": pack_spot(river[None]),
        "spot_shape": (1, *river.shape[:3]),
    }  # fmt: skip
    backend = Spring(metadata(**spot))
    job = plan(backend.metadata, known, init=init, seed=1)  # type: ignore[arg-type]
    hidden_otherwise = np.where(known[..., None], frames, 255 - frames)
    found = inpaint(backend, job, hidden_otherwise, known)
    np.testing.assert_array_equal(found.frames[:, :10], frames[:, :10])
    assert found.beside == pytest.approx(8 / 20, abs=0.11)  # two rows are near both
    assert (found.frames[4:8, 14:24, 10:22] != frames[4:8, 14:24, 10:22]).any()
