"""The report is one file that needs nothing else, whatever it is given."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stg_runtime.curves import HEIGHT, WIDTH, chart
from stg_runtime.errors import InputError
from stg_runtime.measures import MEASURES, compare
from stg_runtime.record import Record, read_record
from stg_runtime.report import (
    Content,
    build,
    is_run,
    of_clip,
    read_metrics,
    read_run,
    with_synthesized,
    write_report,
)
from stg_runtime.video import Clip, read_clip

HOSTILE = """x</title><script>alert(1)</script><img src=x onerror=alert(1)>'"&$style ${script}"""


def video(seed: int, frames: int = 16, size: int = 24) -> np.ndarray:
    generator = np.random.default_rng(seed)
    t, y, x = np.mgrid[0:frames, 0:size, 0:size]
    wave = 120 + 50 * np.sin(0.5 * x - 0.6 * t + 0.3 * y + seed)
    noisy = wave[..., None] + generator.normal(0, 8, (frames, size, size, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def content(**changes: object) -> Content:
    clip, new = video(0), [video(1), video(2)]
    fields = {
        "title": "fire",
        "observed": [("observed", clip)],
        "synthesized": [("new 0", new[0]), ("new 1", new[1])],
        "fps": 25.0,
        "lead": "recipe fc-s",
        "measures": compare([clip], new),
        "path": np.stack([video(i, frames=4) for i in range(5)]),
        "path_steps": (0, 5, 10, 15, 20),
        "metrics": [
            {
                "update": float(u),
                "energy_observed": -u / 3,
                "energy_synthesized": -u / 4,
                "response_observed": 0.1 * u,
                "response_synthesized": 0.11 * u,
                "grad_norm": 1 / u,
            }
            for u in range(1, 700)
        ],
        "recipe": 'name = "fc-s"\n',
        "versions": {"stg": "0.1.0"},
        **changes,
    }
    return Content(**fields)


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_nothing_is_loaded_from_anywhere() -> None:
    text = build(content())
    page = Page(text)
    outside = re.sub(r"data:[a-z]+/[a-z0-9]+;base64,[A-Za-z0-9+/=]*", "data:", text)
    assert "http:" not in outside and "https:" not in outside and "url(" not in outside
    assert "import" not in outside and "fetch(" not in outside
    for _, attributes in page.tags:
        for name in ("src", "href", "poster", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:").startswith("data:"), attributes
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    assert not page.all("link") and not page.all("iframe")
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all(
        "meta"
    )
    assert "prefers-color-scheme: dark" in text
    assert len(text) < 3_000_000


def test_the_security_policy_lets_its_own_script_and_style_in_and_no_other() -> None:
    text = build(content())
    policy = next(meta["content"] for meta in Page(text).all("meta") if "http-equiv" in meta)
    assert policy is not None and "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("style", "script"):
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(inside) == 1
        digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_texts_from_outside_are_escaped() -> None:
    clip = video(0)
    text = build(
        content(
            title=HOSTILE,
            lead=HOSTILE,
            observed=[(HOSTILE, clip)],
            synthesized=[(HOSTILE, video(1)), (HOSTILE, video(2))],
            recipe=HOSTILE,
            versions={HOSTILE: HOSTILE},
        )
    )
    page = Page(text)
    assert "alert(1)" in page.text and "<script>alert" not in text and "<img src=x" not in text
    assert page.text.count(HOSTILE) >= 8
    assert len(page.all("script")) == 1 and len(page.all("img")) == 5
    assert HOSTILE in build(content(measures=None, why_no_measures=HOSTILE)).replace(
        "&lt;", "<"
    ).replace("&gt;", ">").replace("&#x27;", "'").replace("&quot;", '"').replace("&amp;", "&")


def test_the_videos_are_the_videos(tmp_path: Path) -> None:
    page = Page(build(content()))
    sources = page.all("video")
    assert len(sources) == 3
    for attributes, seed in zip(sources, (0, 1, 2), strict=True):
        data = base64.b64decode((attributes["src"] or "").removeprefix("data:video/mp4;base64,"))
        (tmp_path / "v.mp4").write_bytes(data)
        shown = read_clip(tmp_path / "v.mp4")
        assert shown.fps == 25 and shown.frames.shape == (16, 192, 192, 3)
        error = np.abs(shown.frames[:, ::8, ::8].astype(int) - video(seed)).mean()
        assert error < 15
        for needed in ("muted", "playsinline", "loop", "aria-label"):
            assert needed in attributes


def test_the_path_is_a_slider_over_its_stops() -> None:
    page = Page(build(content()))
    images = page.all("img")
    assert [image["alt"] for image in images] == [
        f"after {steps} of 20 steps" for steps in (0, 5, 10, 15, 20)
    ]
    assert ["hidden" in image for image in images] == [True] * 4 + [False]
    (slider,) = page.all("input")
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "4", "4")
    data = base64.b64decode((images[2]["src"] or "").removeprefix("data:image/jpeg;base64,"))
    strip = np.asarray(Image.open(io.BytesIO(data)))[::8, ::8].astype(int)
    want = np.concatenate(list(video(2, frames=4)), axis=1)
    assert np.abs(strip - want).mean() < 15


def test_every_measure_and_curve_is_there() -> None:
    page = Page(build(content()))
    for item in MEASURES:
        assert item.label in page.text and item.what in page.text
    assert len(page.all("svg")) == 3 and len(page.all("polyline")) == 5


def test_what_is_unknown_is_left_out() -> None:
    bare = of_clip("clip.mp4", [("folder/clip.mp4", Clip(video(0), 30.0))])
    page = Page(build(bare))
    assert len(page.all("video")) == 1 and not page.all("svg") and not page.all("table")
    full = with_synthesized(bare, [("folder/new.npy", Clip(video(1), 25.0))])
    page = Page(build(full))
    assert "new.npy" in page.text and "folder" not in page.text and len(page.all("table")) == 1
    with pytest.raises(InputError, match=r"small\.npy is 20x24"):
        with_synthesized(bare, [("small.npy", Clip(video(1)[:, :20], 25.0))])


def a_run(folder: Path) -> Path:
    folder.mkdir()
    clip, new = video(0), np.stack([video(1), video(2)])
    (folder / "recipe.toml").write_text('name = "fc-s"\n')
    np.save(folder / "observed.npy", clip[None])
    np.save(folder / "synthesized.npy", new)
    np.save(folder / "path.npy", np.stack([video(i, frames=4) for i in range(3)]))
    lines = [json.dumps({"update": u, "grad_norm": 0.5, "returned_to": None}) for u in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"update": 4, "gra')
    Record(
        update=3,
        seed=7,
        n_steps=20,
        fps=30,
        path_steps=(0, 10, 20),
        measures=compare([clip], list(new)),
        versions={"stg": "1"},
    ).save(folder / "measures.json")
    return folder


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    assert is_run(run) and not is_run(tmp_path)
    found = read_run(run)
    assert found.title == "run" and found.fps == 30 and found.path_steps == (0, 10, 20)
    assert np.array_equal(found.synthesized[1][1], video(2))
    assert found.measures == compare([video(0)], [video(1), video(2)])
    assert [record["update"] for record in found.metrics] == [1, 2, 3]
    assert "3 updates" in found.lead and "seed 7" in found.lead
    write_report(tmp_path / "report.html", found)
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_an_unfinished_run_shows_what_there_is(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    for name in ("measures.json", "synthesized.npy", "path.npy"):
        (run / name).unlink()
    found = read_run(run)
    assert found.measures is None and not found.synthesized and "not finished" in found.lead
    assert len(Page(build(found)).all("video")) == 1


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("measures.json", b"{"),
        ("measures.json", b'{"schema_version": 2}'),
        ("recipe.toml", b"name = "),
        ("recipe.toml", b"\xff\xfe"),
        ("recipe.toml", b"a = " + b"[" * 100_000),
        ("synthesized.npy", b"no array"),
        ("path.npy", None),
    ],
)
def test_a_damaged_run_is_one_clear_line(tmp_path: Path, name: str, data: bytes | None) -> None:
    run = a_run(tmp_path / "run")
    if data is None:
        np.save(run / name, np.stack([video(i, frames=4) for i in range(2)]))
    else:
        (run / name).write_bytes(data)
    with pytest.raises(InputError, match=name) as caught:
        read_run(run)
    assert "\n" not in str(caught.value)


def test_a_record_keeps_every_figure(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    record = read_record(run / "measures.json")
    assert record is not None and record.measures == compare([video(0)], [video(1), video(2)])
    assert read_record(tmp_path / "none.json") is None


def test_metrics_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"update": 1, "a": NaN, "b": 2, "c": "x"}\n[1]\nnot json\n{"a": 3}\n')
    assert read_metrics(path) == [{"update": 1.0, "b": 2.0}]


@pytest.mark.parametrize("value", ["1" + "0" * 400, "[" * 100_000, "1e308", "-1e308", "5e-324"])
def test_metrics_that_no_axis_holds_are_left_out(tmp_path: Path, value: str) -> None:
    run = a_run(tmp_path / "run")
    lines = [f'{{"update": {n}, "energy_observed": {n}, "grad_norm": 1}}' for n in (1, 2)]
    lines.insert(1, f'{{"update": 2, "energy_observed": {value}, "grad_norm": {value}}}')
    (run / "metrics.jsonl").write_text("\n".join(lines))
    page = build(read_run(run))
    assert "nan" not in page.lower().split("<h2>training")[1].split("</svg>")[0]


def test_a_video_that_cannot_be_encoded_is_called_by_its_name() -> None:
    clip = Clip(video(0), 5000)
    with pytest.raises(InputError, match=r"^video 'fast.npy', by way of .*5000 frames") as caught:
        build(of_clip("title", [("fast.npy", clip)]))
    assert "video.mp4" not in str(caught.value)


def points(svg: str) -> list[list[tuple[float, float]]]:
    found = re.findall(r'points="([^"]*)"', svg)
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in found]


def test_curves_stay_in_their_frame_and_keep_their_extremes() -> None:
    curve = [(float(x), np.sin(x / 9)) for x in range(5000)]
    curve[1234] = (1234.0, 50.0)
    (line,) = points(chart([curve]))
    assert len(line) <= 300
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in line)
    top = min(line, key=lambda point: point[1])
    assert top[0] == pytest.approx(52 + 1234 / 4999 * 300, abs=0.2)


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize(
    "curve",
    [[], [(1.0, 3.0)], [(1.0, 0.0), (2.0, 0.0)], [(1.0, -1e30), (2.0, 1e30)], [(1.0, 1e-9)] * 3],
)
def test_any_curve_can_be_drawn(curve: list[tuple[float, float]], logarithmic: bool) -> None:
    drawn = chart([curve], logarithmic=logarithmic)
    assert drawn.startswith("<svg") and "nan" not in drawn and "inf" not in drawn


def test_a_browser_plays_it(tmp_path: Path) -> None:
    """The script runs under the page's own policy, and the videos have a length."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on this machine")
    write_report(tmp_path / "report.html", content())
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--timeout=5000", "--dump-dom"]
    options += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
    page = (tmp_path / "report.html").as_uri()
    shown = subprocess.run([browser, *options, page], capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0
    assert not [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    # Written by the script from the videos' own length.
    assert re.search(r'id="time"[^>]*>frame \d+ of 16<', shown.stdout), shown.stdout[-2000:]
