import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stg_runtime.errors import InputError
from stg_runtime.video import read_clip
from stg_train.sea import GRAVITY, QUANTIZATION, Sea, luminance, main

SIZE = {"height": 32, "width": 40}
FAINT = {**SIZE, "contrast": 20.0}  # black is 6 standard deviations off: nothing is clipped
FRAMES = 48
SEEDS = 16


def periodogram(seed: int) -> np.ndarray:
    x = luminance(Sea(**FAINT, seed=seed).render(FRAMES))
    return np.abs(np.fft.fftn(x)) ** 2 / x.size


@pytest.fixture(scope="module")
def periodograms() -> np.ndarray:
    return np.stack([periodogram(seed) for seed in range(SEEDS)])


def half_plane() -> np.ndarray:
    """One of each pair of spatial frequencies k and -k, whose Fourier values are conjugate."""
    y, x = np.meshgrid(np.fft.fftfreq(SIZE["height"]), np.fft.fftfreq(SIZE["width"]), indexing="ij")
    return ((x > 0) | ((x == 0) & (y > 0))) & (x > -0.5) & (y > -0.5)


def test_the_periodogram_is_the_closed_form_times_an_exponential(periodograms: np.ndarray) -> None:
    # Every Fourier value is a sum of circular complex Gaussian amplitudes, so every periodogram
    # value over its expectation is exponential with mean 1, and those of different spatial
    # frequencies and seeds are independent: Kolmogorov's bound holds at each temporal frequency.
    ratio = periodograms / (Sea(**FAINT).spectrum(FRAMES) + QUANTIZATION)
    for w in range(FRAMES):
        sample = np.sort(ratio[:, w][:, half_plane()], axis=None)
        cdf = -np.expm1(-sample)
        steps = np.arange(sample.size + 1) / sample.size
        distance = max(np.max(cdf - steps[:-1]), np.max(steps[1:] - cdf))
        assert distance * np.sqrt(sample.size) < 2.1, w  # 1.5e-4 each, 0.7 % for all 48


def test_the_mean_spectrum_matches_the_closed_form_in_every_band(periodograms: np.ndarray) -> None:
    expected = Sea(**FAINT).spectrum(FRAMES) + QUANTIZATION
    # Bands of power: 0 dB is the crest of the spectrum, the last ones are rounding noise only.
    band = np.floor(-10 * np.log10(expected / expected.max()) / 6).astype(int)
    assert band.max() > 8
    for number in range(band.max() + 1):
        inside = np.where(band == number, expected, 0)
        got = np.where(band == number, periodograms.mean(0), 0).sum()
        # At one spatial frequency all temporal ones may move together, and k mirrors -k: the
        # variance of the sum is at most 2 sum_k (sum_w expected)^2, over the number of seeds.
        spread = np.sqrt(2 * (inside.sum(0) ** 2).sum() / SEEDS)
        assert abs(got - inside.sum()) < 5 * spread, number


def test_the_spectrum_sums_to_the_variance() -> None:
    sea = Sea(**SIZE, contrast=7.5)
    assert sea.spectrum(FRAMES).shape == (FRAMES, 32, 40)
    assert sea.spectrum(FRAMES).mean() == pytest.approx(7.5**2)
    assert sea.wave_power.sum() == pytest.approx(7.5**2)


def test_energy_lies_on_the_dispersion_relation_and_not_elsewhere() -> None:
    sea = Sea(**SIZE)
    frames = 128
    x = luminance(sea.render(frames))
    window = np.hanning(frames + 2)[1:-1, None, None]
    power = np.abs(np.fft.fftn(x * window)) ** 2
    # Independent of the module: wavenumbers on the water, omega^2 = g k (1 + (k / 367 per m)^2),
    # as gravity and surface tension are equal at a wavelength of 1.7 cm.
    ky = 2 * np.pi * np.fft.fftfreq(32) / (0.04 * 2.0)
    kx = 2 * np.pi * np.fft.fftfreq(40) / 0.04
    k = np.hypot(ky[:, None], kx[None, :])
    hertz = np.sqrt(GRAVITY * k * (1 + (k / 367) ** 2)) / (2 * np.pi)
    bins = hertz * frames / 25.0
    w = np.abs(np.fft.fftfreq(frames, 1 / frames))[:, None, None]
    # The Hann window's line is 4 bins wide and falls by 18 dB an octave beyond; 5 bins off, less
    # than 1e-4 of it is left, and rounding noise is 1/12 of 38^2.
    elsewhere = np.abs(w - bins) > 5
    assert power[elsewhere].sum() < 3e-4 * power.sum()
    assert elsewhere.mean() > 0.75


@pytest.mark.parametrize(("direction", "sign"), [(0, (1, 0)), (90, (0, 1)), (180, (-1, 0))])
def test_waves_travel_where_they_should(direction: float, sign: tuple[int, int]) -> None:
    sea = Sea(direction=direction, light=direction, foreshortening=1.0, spreading=40.0)
    x = luminance(sea.render(40))
    moved, right, down = (np.gradient(x, axis=axis) for axis in (0, 2, 1))
    # Least squares for x_t + u x_x + v x_y = 0, the motion in px per frame.
    columns = np.stack([right.ravel(), down.ravel()], 1)
    motion = np.linalg.lstsq(columns, -moved.ravel(), rcond=None)[0]
    along, across = motion @ sign, motion @ sign[::-1]
    assert 0.3 < along < 2.0
    assert abs(across) < 0.3 * along


def test_ripples_are_slowest_at_1_7_centimetres() -> None:
    # Where gravity and surface tension are equal: 0.23 m/s, a textbook figure.
    sea = Sea(height=4, width=256, metres_per_px=0.002)
    k = 2 * np.pi * np.arange(1, 128) / (256 * 0.002)
    speed = sea.angular_frequency[0, 1:128] / k
    assert speed.min() == pytest.approx(0.231, abs=0.001)
    assert 2 * np.pi / k[speed.argmin()] == pytest.approx(0.0171, abs=0.0005)


def test_light_from_the_side_shows_no_waves_that_run_straight_down() -> None:
    power = Sea(light=0.0).wave_power
    assert power[:, 0].sum() < 1e-12 * power.sum() < Sea().wave_power[:, 0].sum()


def test_a_longer_fetch_makes_slower_beats() -> None:
    short, long = Sea(fetch=200.0), Sea(fetch=800.0)
    mean = [(sea.wave_power * sea.angular_frequency).sum() / 38**2 for sea in (short, long)]
    assert mean[1] < 0.9 * mean[0]


def test_frequencies_are_well_sampled_in_time() -> None:
    spectrum = Sea().spectrum(96).sum((1, 2))
    hertz = np.abs(np.fft.fftfreq(96, 1 / 25))
    assert spectrum[hertz < 5].sum() > 0.98 * spectrum.sum()
    assert spectrum[hertz > 0.7].sum() > 0.9 * spectrum.sum()  # lively


@pytest.mark.parametrize("seed", range(3))
def test_clipping_is_rare(seed: int) -> None:
    video = Sea(seed=seed).render(48)
    assert np.mean((video == 0) | (video == 255)) < 0.005
    assert video.mean((0, 1, 2)) == pytest.approx([64, 114, 128], abs=0.5)


def test_a_seed_fixes_every_bit_and_another_gives_another_sea() -> None:
    sea = Sea(**SIZE, seed=5)
    video = sea.render(20)
    assert np.array_equal(video, Sea(**SIZE, seed=5).render(20))
    assert np.array_equal(video[:7], sea.render(7))
    # Two seas' mean product is sum_k Re(a_k conj(b_k)) / 2, of variance sum_k wave_power^2 / 2.
    product = (luminance(video) * luminance(Sea(**SIZE, seed=6).render(20))).mean()
    assert abs(product) < 5 * np.sqrt((sea.wave_power**2).sum() / 2)


def test_space_wraps_around() -> None:
    # The step across the edge is no larger than steps inside.
    x = luminance(Sea().render(8))
    for axis in (1, 2):
        steps = np.abs(np.diff(x, axis=axis, append=np.take(x, [0], axis)))
        inside = steps.mean()
        assert np.take(steps, -1, axis).mean() < 1.5 * inside


@pytest.mark.parametrize(
    "wrong",
    [{"height": 2}, {"fps": 0.0}, {"wind_speed": float("nan")}, {"seed": -1}, {"contrast": -1.0}],
)
def test_impossible_seas_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sea(**wrong)


def test_the_command_writes_refuses_and_replaces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sea.npy"
    options = [str(out), "--frames", "3", "--size", "16x20", "--seed", "4"]
    assert main(options) == 0
    assert np.array_equal(read_clip(out).frames, Sea(16, 20, seed=4).render(3))
    before = out.read_bytes()
    capsys.readouterr()
    for bad, said in (
        (options, "--overwrite"),
        ([*options[:1], "--overwrite", "--size", "16"], "HxW"),
        ([*options[:1], "--overwrite", "--frames", "0"], "0 frames"),
        ([str(tmp_path / "sea.mov")], ".mov"),
    ):
        assert main(bad) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1 and said in printed.err
        assert out.read_bytes() == before
        assert [item.name for item in tmp_path.iterdir()] == ["sea.npy"]
    assert main([*options[:-1], "5", "--overwrite"]) == 0
    assert out.read_bytes() != before


def test_the_module_runs_as_a_program_without_torch(tmp_path: Path) -> None:
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['sea', *sys.argv[1:]]; "
        "runpy.run_module('stg_train.sea', run_name='__main__')"
    )
    out = tmp_path / "sea.mp4"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out), "--frames", "4"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    clip = read_clip(out)
    assert clip.frames.shape == (4, 64, 64, 3) and clip.fps == 25
