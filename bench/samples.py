"""How close synthesized video is to its clip: a few figures, and a contact sheet to look at.

    python bench/samples.py RUN MODEL.onnx [--seeds 1001 1002] [--sheet OUT.png] [--json OUT.json]

Figures, on luminance, observed against synthesized (same number of frames):
spatial dB, temporal dB: root mean square of 10 log10 of the ratio of radially averaged spatial, and
of temporal, power spectra; motion, sharpness, contrast: ratios of the mean absolute difference of
neighbouring frames, of neighbouring pixels, and of standard deviations; moving contrast: ratio of
the mean standard deviation over time; mean image: correlation of the means over time; same frames:
root mean square difference at equal times over the clip's standard deviation (0: a replay);
between seeds: the same between the first two seeds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stg_runtime.backends import open_backend
from stg_runtime.contact_sheet import contact_sheet, save_image
from stg_runtime.doctor import processor, version
from stg_runtime.synthesize import plan, synthesize
from stg_runtime.threads import usable_threads

Luma = NDArray[np.float64]


def luminance(frames: NDArray[np.uint8]) -> Luma:
    return frames.astype(np.float64) @ np.array([0.299, 0.587, 0.114])


def spatial_power(luma: Luma) -> Luma:
    height, width = luma.shape[1:]
    taper = np.hanning(height)[:, None] * np.hanning(width)
    power = (np.abs(np.fft.fft2((luma - luma.mean()) * taper)) ** 2).mean(0)
    radius = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.fftfreq(width) * width)
    rings = radius.astype(int)
    return np.array([power[rings == ring].mean() for ring in range(1, min(height, width) // 2)])


def temporal_power(luma: Luma) -> Luma:
    moving = (luma - luma.mean(0)) * np.hanning(len(luma))[:, None, None]
    return (np.abs(np.fft.rfft(moving, axis=0)) ** 2).mean((1, 2))[1:]


def decibels(a: Luma, b: Luma) -> float:
    return float(np.sqrt(np.mean((10 * np.log10(a / b)) ** 2)))


def figures(observed: NDArray[np.uint8], synthesized: NDArray[np.uint8]) -> dict[str, float]:
    a, b = luminance(observed), luminance(synthesized)

    def ratio(measure: object) -> float:
        assert callable(measure)
        return float(measure(b) / measure(a))

    return {
        "spatial dB": decibels(spatial_power(b), spatial_power(a)),
        "temporal dB": decibels(temporal_power(b), temporal_power(a)),
        "motion": ratio(lambda v: np.abs(np.diff(v, axis=0)).mean()),
        "sharpness": ratio(
            lambda v: np.abs(np.diff(v, axis=1)).mean() + np.abs(np.diff(v, axis=2)).mean()
        ),
        "contrast": ratio(np.std),
        "moving contrast": ratio(lambda v: v.std(0).mean()),
        "mean image": float(np.corrcoef(a.mean(0).ravel(), b.mean(0).ravel())[0, 1]),
        "same frames": float(np.sqrt(((a - b) ** 2).mean()) / a.std()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1001, 1002])
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    observed = np.load(options.run / "observed.npy")[0]
    backend = open_backend(options.model)
    trained = backend.metadata.n_steps
    videos, rows = {}, {}
    for steps in (trained, 3 * trained):
        for seed in options.seeds:
            job = plan(backend.metadata, n_steps=steps, seed=seed)
            began = time.perf_counter()
            video = synthesize(backend.chains(job.graph), backend.metadata, job, number=0)
            name = f"K {steps}, seed {seed}"
            rows[name] = {**figures(observed, video), "seconds": time.perf_counter() - began}
            videos[name] = video
    first, second = list(videos.values())[:2]
    apart = luminance(first) - luminance(second)
    between = float(np.sqrt((apart**2).mean()) / luminance(observed).std())
    names = list(next(iter(rows.values())))
    print(f"{'':<18}" + " ".join(f"{name:>{max(7, len(name))}}" for name in names))
    for name, row in rows.items():
        cells = [f"{row[key]:>{max(7, len(key))}.3f}" for key in names]
        print(f"{name:<18}" + " ".join(cells))
    print(f"between seeds {between:.3f}")
    if options.sheet:
        sheet = contact_sheet([("observed", observed), *videos.items()], columns=10)
        save_image(options.sheet, sheet)
    if options.json:
        result = {
            "what": f"samples of {options.run.name} from fresh noise against its clip",
            "date": datetime.date.today().isoformat(),
            "hardware": {"processor": processor(), "threads": usable_threads()},
            "versions": {"stg": version("stg"), "onnxruntime": version("onnxruntime")},
            "recipe": backend.metadata.recipe,
            "rows": rows,
            "between seeds": between,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
