"""The report: one self-contained HTML page about a run, or about a clip and what was made of it.

No network, no other file: videos are H.264 in base64, pictures JPEG, curves SVG. The page's content
security policy lets nothing run or load but what is in it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from stg_runtime.curves import chart
from stg_runtime.errors import InputError, StgError
from stg_runtime.files import atomic_write_text
from stg_runtime.measures import MEASURES, Comparison, compare, table
from stg_runtime.record import MEASURES as RECORD
from stg_runtime.record import PATH, SYNTHESIZED, read_record
from stg_runtime.video import DEFAULT_FPS, Clip, Frames, count_clips, read_clip
from stg_runtime.video_write import write_video

_OBSERVED = "observed.npy"  # as stg-train names them; the runtime knows no training code
_RECIPE = "recipe.toml"
_METRICS = "metrics.jsonl"

_MOST_OBSERVED = 4  # clips shown
_ENLARGED_TO = 192  # px: smaller videos are enlarged, as H.264 halves the colours' resolution
_JPEG_QUALITY = 88

Metrics = list[dict[str, float]]


@dataclass(frozen=True)
class Content:
    """What a report shows; what is empty is left out.

    Attributes:
        title: of the page.
        observed: name and clip, uint8, (T, H, W, 3).
        synthesized: name and video.
        fps: frames per second that all are shown at.
        lead: one line below the title.
        measures: of the synthesized videos.
        why_no_measures: why `measures` is None.
        path: frames of a chain on its way, uint8, (P, F, H, W, 3).
        path_steps: Langevin steps made at each of the P stops.
        metrics: one record per update, of metrics.jsonl.
        recipe: text of the recipe.
        versions: of the packages at work.
    """

    title: str
    observed: Sequence[tuple[str, Frames]]
    synthesized: Sequence[tuple[str, Frames]]
    fps: float
    lead: str = ""
    measures: Comparison | None = None
    why_no_measures: str = ""
    path: Frames | None = None
    path_steps: Sequence[int] = ()
    metrics: Metrics = field(default_factory=list)
    recipe: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def is_run(path: Path) -> bool:
    """Whether a path is a folder that stg-train wrote (and not one of images)."""
    return path.is_dir() and (path / _RECIPE).is_file() and (path / _OBSERVED).is_file()


def read_run(folder: Path) -> Content:
    """Gather what a run's folder holds, finished or not.

    Raises:
        InputError: a file of the run is missing or damaged.
    """
    try:
        recipe = (folder / _RECIPE).read_text(encoding="utf-8")
        name = str(tomllib.loads(recipe).get("name", ""))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{folder / _RECIPE}: cannot be read ({error})") from None
    metrics = read_metrics(folder / _METRICS)
    record = read_record(folder / RECORD)
    updates = record.update if record else int(metrics[-1]["update"]) if metrics else 0
    lead = f"recipe {name}, {updates} updates"
    if record is None:
        return Content(
            title=folder.resolve().name,
            observed=_clips(folder / _OBSERVED, "observed"),
            synthesized=[],
            fps=DEFAULT_FPS,
            lead=f"{lead}, not finished",
            metrics=metrics,
            recipe=recipe,
        )
    path = _stops(folder / PATH, len(record.path_steps))
    return Content(
        title=folder.resolve().name,
        observed=_clips(folder / _OBSERVED, "observed"),
        synthesized=_clips(folder / SYNTHESIZED, "synthesized"),
        fps=record.fps,
        lead=f"{lead}; synthesized from fresh noise in {record.n_steps} steps, seed {record.seed}",
        measures=record.measures,
        why_no_measures=record.why_none,
        path=path,
        path_steps=record.path_steps,
        metrics=metrics,
        recipe=recipe,
        versions=record.versions,
    )


def of_clip(title: str, clips: Sequence[tuple[str, Clip]]) -> Content:
    """A report on a clip that no run is known of; add what was made with `with_synthesized`.

    Args:
        title: of the page.
        clips: name and clip.
    """
    observed = [(Path(name).name, clip.frames) for name, clip in clips]
    return Content(title=title, observed=observed, synthesized=[], fps=clips[0][1].fps)


def with_synthesized(content: Content, videos: Sequence[tuple[str, Clip]]) -> Content:
    """The same report on other synthesized videos, measured here.

    Args:
        content: what is known so far; its rate is that of the page.
        videos: name and video, of the clip's size.

    Raises:
        InputError: a video of another size, see `compare`.
    """
    frames = [clip.frames for _, clip in videos]
    found = compare([clip for _, clip in content.observed], frames, [name for name, _ in videos])
    return replace(
        content,
        lead=content.lead.split(";")[0],
        synthesized=[(Path(name).name, clip.frames) for name, clip in videos],
        measures=found,
        why_no_measures="",
        path=None,
        path_steps=(),
    )


def _clips(path: Path, name: str) -> list[tuple[str, Frames]]:
    count = count_clips(path)
    clips = [read_clip(path, clip=clip).frames for clip in range(count)]
    return [(name if count == 1 else f"{name} {clip}", frames) for clip, frames in enumerate(clips)]


def _stops(path: Path, count: int) -> Frames | None:
    if not path.is_file() or not count:
        return None
    stops = np.stack([frames for _, frames in _clips(path, "")])
    if len(stops) != count:
        raise InputError(f"{path}: holds {len(stops)} stops, {RECORD} tells of {count}")
    return stops


def read_metrics(path: Path) -> Metrics:
    """The numbers of each line of a metrics.jsonl that can be drawn; other lines are left out."""
    if not path.is_file():
        return []
    found: Metrics = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record: Any = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            numbers = {
                key: float(value)
                for key, value in record.items()
                if isinstance(value, int | float) and _can_be_drawn(value)
            }
            if "update" in numbers:
                found.append(numbers)
    return found


def _can_be_drawn(value: float) -> bool:
    """Not so large or small that an axis cannot be divided; false of infinity and NaN."""
    return value == 0 or 1e-100 <= abs(value) <= 1e100


def write_report(path: Path, content: Content) -> None:
    """Write the page, whole or not at all.

    Raises:
        InputError: a rate that no video can have.
        StgError: the encoder failed or the disk is full.
    """
    atomic_write_text(path, build(content))


def build(content: Content) -> str:
    """The page. Every text that comes from outside is escaped."""
    assert content.observed
    # One rate for all, so that frame t is beside frame t.
    videos = [*content.observed[:_MOST_OBSERVED], *content.synthesized]
    style, script = (_part(name).strip() for name in ("report.css", "report.js"))
    return Template(_part("report.html")).substitute(
        title=html.escape(content.title),
        lead=html.escape(content.lead),
        fps=f"{content.fps:g}",
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        videos="\n".join(_video(name, frames, content.fps) for name, frames in videos),
        measures=_measures(content),
        path=_path(content),
        curves=_curves(content.metrics),
        recipe=_recipe(content.recipe),
        versions=_versions(content.versions),
    )


def _part(name: str) -> str:
    return (resources.files("stg_runtime.page") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _video(name: str, frames: Frames, fps: float) -> str:
    factor = max(1, _ENLARGED_TO // max(frames.shape[1:3]))
    large = frames.repeat(factor, 1).repeat(factor, 2)
    with tempfile.TemporaryDirectory(prefix="stg-report-") as folder:
        file = Path(folder) / "video.mp4"
        try:
            write_video(file, large, fps)
        except StgError as error:  # the file is nobody's but ours
            shown = f"video {name!r}, by way of {tempfile.gettempdir()}"
            raise type(error)(str(error).replace(str(file), shown)) from None
        source = _data("video/mp4", file.read_bytes())
    label = html.escape(name)
    shape = "x".join(str(extent) for extent in frames.shape[:3])
    return (
        f'<figure><video src="{source}" width="{large.shape[2]}" height="{large.shape[1]}" loop '
        f'muted playsinline autoplay preload="auto" aria-label="{label}"></video>'
        f"<figcaption>{label} <span>({shape})</span></figcaption></figure>"
    )


def _measures(content: Content) -> str:
    if content.measures is None:
        if not content.why_no_measures:
            return ""
        return f"<h2>Measures</h2>\n<p>None: {html.escape(content.why_no_measures)}</p>"
    head, *rows = table(content.measures, [name for name, _ in content.synthesized])
    cells = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    body = "\n".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    said = "\n".join(
        f"<dt>{html.escape(item.label)}</dt><dd>{html.escape(item.what)}</dd>" for item in MEASURES
    )
    return (
        f'<h2>Measures</h2>\n<div class="scroll"><table><thead><tr>{cells}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n<details><summary>What they are</summary>\n"
        "<p>“Best” is what a perfect new video reads; “clip’s halves” is the clip’s second half "
        "against its first, which is how near more of the same comes.</p>\n"
        f"<dl>{said}</dl></details>"
    )


def _path(content: Content) -> str:
    if content.path is None:
        return ""
    last = len(content.path) - 1
    images = []
    for stop, (frames, steps) in enumerate(zip(content.path, content.path_steps, strict=True)):
        hidden = "" if stop == last else " hidden"
        label = f"after {steps} of {content.path_steps[-1]} steps"
        images.append(f'<img src="{_jpeg(frames)}" alt="{label}"{hidden}>')
    return (
        '<h2>From noise to video</h2>\n<div class="path">\n'
        + "\n".join(images)
        + f'\n<label>Langevin steps: <output id="steps" for="step">{label}</output>\n'
        f'<input type="range" id="step" min="0" max="{last}" value="{last}"></label>\n'
        '<p class="quiet">Frames of the first synthesized video, evenly spaced in time.</p></div>'
    )


def _jpeg(frames: Frames) -> str:
    """Frames side by side, (F, H, W, 3)."""
    from PIL import Image

    factor = max(1, _ENLARGED_TO // max(frames.shape[1:3]))
    strip = np.concatenate(list(frames), axis=1).repeat(factor, 0).repeat(factor, 1)
    buffer = io.BytesIO()
    Image.fromarray(strip).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return _data("image/jpeg", buffer.getvalue())


def _curves(metrics: Metrics) -> str:
    if len(metrics) < 2:
        return ""
    returned = [record["update"] for record in metrics if "returned_to" in record]

    def series(key: str) -> list[tuple[float, float]]:
        return [(record["update"], record[key]) for record in metrics if key in record]

    if series("residual"):  # of denoising, where an update's energies are those of other noise
        shown = {"Noise left after denoising, share of its variance": "residual"}
    else:
        shown = {"Energy per value": "energy", "Response of the network per value": "response"}
    shown["Norm of the learning gradient"] = "grad_norm"
    charts = [_figure(title, key, series, returned) for title, key in shown.items()]
    note = (
        '<p class="quiet">Dashed: the guard went back to earlier parameters.</p>'
        if returned
        else ""
    )
    return f'<h2>Training</h2>\n<div class="curves">{"".join(charts)}</div>{note}'


def _figure(title: str, key: str, series: Any, returned: list[float]) -> str:
    if key in ("grad_norm", "residual"):
        drawn = chart([series(key)], marks=returned, logarithmic=True)
        keys = ""
    else:
        drawn = chart([series(f"{key}_{side}") for side in ("observed", "synthesized")], returned)
        keys = (
            ' <span class="key first">observed</span> <span class="key second">synthesized</span>'
        )
    return f"<figure>{drawn}<figcaption>{title}{keys}</figcaption></figure>"


def _recipe(text: str) -> str:
    if not text:
        return ""
    return (
        "<h2>Recipe</h2>\n<details><summary>recipe.toml</summary>"
        f"<pre>{html.escape(text)}</pre></details>"
    )


def _versions(versions: dict[str, str]) -> str:
    if not versions:
        return ""
    items = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
        for name, value in versions.items()
    )
    return f"<h2>Versions</h2>\n<dl>{items}</dl>"
