"""Clips of other stuff, generated: what defaults must be good for that were not chosen on them.

    python bench/clips.py OUT_DIR [NAME ...] [--frames 96] [--seed 0] [--suffix .mp4]

Each clip is 96x96 pixels at 25 frames per second and follows from its name and the seed, to the
bit on one machine. Three kinds: alike everywhere and always (clouds, puddle, lava), alike always
but not everywhere, in a scene that stands still or without one (smoke, campfire, rain, snow,
waterfall, grass, flag), and light that flickers in a fixed scene (candle, neon).
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stg_runtime.video_write import write_video

Array = NDArray[np.float64]
Generator = np.random.Generator
SIZE = 96
FPS = 25.0
Y, X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64)


def lookup(image: Array, y: Array, x: Array, *, wrap: bool = False) -> Array:
    """An image, (H, W) or (H, W, C), at fractional places, bilinear; clamped or wrapped."""
    height, width = image.shape[:2]
    if not wrap:
        y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
    fy, fx = y - y0, x - x0
    if image.ndim == 3:
        fy, fx = fy[..., None], fx[..., None]
    y1, x1 = y0 + 1, x0 + 1
    if wrap:
        y0, y1, x0, x1 = y0 % height, y1 % height, x0 % width, x1 % width
    else:
        y1, x1 = np.minimum(y1, height - 1), np.minimum(x1, width - 1)
    upper = image[y0, x0] * (1 - fx) + image[y0, x1] * fx
    lower = image[y1, x0] * (1 - fx) + image[y1, x1] * fx
    return np.asarray(upper * (1 - fy) + lower * fy)


def smooth(low: float, high: float, value: Array) -> Array:
    """0 below `low`, 1 above `high`, a cubic between them."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def blend(under: Array, over: object, alpha: Array) -> Array:
    """`over`, a colour or an image, laid upon an image with opacity `alpha`, (H, W)."""
    a = alpha[..., None]
    return np.asarray(under * (1 - a) + np.asarray(over, np.float64) * a)


def ramp(value: Array, stops: list[tuple[float, tuple[int, int, int]]]) -> Array:
    """Colours along a scale, linear between `stops`."""
    at = [stop for stop, _ in stops]
    return np.stack([np.interp(value, at, [c[i] for _, c in stops]) for i in range(3)], -1)


class Drift:
    """A Gaussian field with a power-law spectrum that drifts and churns, stationary in both.

    Args:
        generator: of its waves.
        shape: (H, W); it wraps around.
        exponent: amplitudes fall as wavenumber to minus this; more is smoother.
        stretch: (y, x) of the blobs.
        smallest: of the waves, px.
    """

    def __init__(
        self,
        generator: Generator,
        shape: tuple[int, int] = (SIZE, SIZE),
        *,
        exponent: float = 1.8,
        stretch: tuple[float, float] = (1.0, 1.0),
        smallest: float = 2.5,
    ) -> None:
        ky, kx = np.meshgrid(np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1]), indexing="ij")
        self.ky, self.kx = ky, kx
        k = np.hypot(ky * stretch[0], kx * stretch[1])
        k[0, 0] = 1
        amplitude = k**-exponent * np.exp(-((np.hypot(ky, kx) * smallest) ** 2))
        amplitude[0, 0] = 0
        amplitude /= np.sqrt((amplitude**2).sum())
        draws = generator.standard_normal((2, *shape))
        self.waves = (draws[0] + 1j * draws[1]) * amplitude
        self.rate = generator.standard_normal(shape) * np.sqrt(k)

    def at(self, time: float, *, wind: tuple[float, float] = (0, 0), churn: float = 0) -> Array:
        """The field, variance 1: `wind` in px per frame (y, x), `churn` in radians per frame."""
        phase = 2 * np.pi * (self.ky * wind[0] + self.kx * wind[1]) + churn * self.rate
        return np.asarray(
            np.fft.ifft2(self.waves * np.exp(-1j * phase * time), norm="forward").real
        )


class Fluid:
    """Stable fluids on a periodic square: semi-Lagrangian advection, exact projection by FFT.

    Source: J. Stam, "Stable Fluids", SIGGRAPH 1999; vorticity confinement, Fedkiw, Stam, Jensen,
    "Visual Simulation of Smoke", SIGGRAPH 2001.
    """

    def __init__(self, size: int) -> None:
        self.y, self.x = np.mgrid[0:size, 0:size].astype(np.float64)
        self.v = np.zeros((size, size))  # downwards, px per step
        self.u = np.zeros((size, size))
        ky, kx = np.meshgrid(*2 * (2 * np.pi * np.fft.fftfreq(size),), indexing="ij")
        self.ky, self.kx, self.k2 = ky, kx, np.where(ky**2 + kx**2 == 0, 1, ky**2 + kx**2)

    def step(self, force_y: Array, force_x: Array, confinement: float, drag: float) -> None:
        """Move the velocity on by one step."""
        vorticity = np.asarray(np.gradient(self.u, axis=0)) - np.gradient(self.v, axis=1)
        gy, gx = (np.gradient(np.abs(vorticity), axis=axis) for axis in (0, 1))
        length = np.hypot(gy, gx) + 1e-6
        v = self.v + force_y + confinement * vorticity * gx / length
        u = self.u + force_x - confinement * vorticity * gy / length
        v, u = (self.carry(part) * (1 - drag) for part in (v, u))
        fv, fu = np.fft.fft2(v), np.fft.fft2(u)
        inward = (self.ky * fv + self.kx * fu) / self.k2
        self.v = np.fft.ifft2(fv - self.ky * inward).real
        self.u = np.fft.ifft2(fu - self.kx * inward).real

    def carry(self, what: Array) -> Array:
        """What flows along, one step later."""
        return lookup(what, self.y - self.v, self.x - self.u, wrap=True)


def _plume(
    generator: Generator,
    frames: int,
    *,
    size: int,
    radius: float,
    buoyancy: float,
    cooling: float,
    confinement: float,
    substeps: int,
    burn_in: int,
    sources: int = 1,
) -> list[Array]:
    """Density of a plume from the lower edge, after a burn-in: the lower middle, (SIZE, SIZE)."""
    fluid, density = Fluid(size), np.zeros((size, size))
    sponge = smooth(0, 24, fluid.y) * (1 - smooth(size - 4, size - 1, fluid.y))
    bottom, kept = size - 10, []
    wobble = np.zeros(2 * sources)
    for step in range((frames + burn_in) * substeps):
        wobble += 0.12 * generator.standard_normal(len(wobble)) - 0.03 * wobble
        feed = np.zeros_like(density)
        for i in range(sources):
            middle = (
                size / 2 + (i - (sources - 1) / 2) * 2.4 * radius + radius * 0.5 * wobble[2 * i]
            )
            blob = np.exp(
                -(((fluid.x - middle) / radius) ** 2) - ((fluid.y - bottom) / (0.55 * radius)) ** 2
            )
            feed = np.maximum(feed, blob * np.clip(1 + 0.5 * wobble[2 * i + 1], 0.3, 1.6))
        density = np.maximum(density, feed)
        push = 0.012 * generator.standard_normal() * density
        fluid.step(-buoyancy * density, push, confinement, 0.004)
        damp = 0.25 + 0.75 * sponge
        fluid.v, fluid.u = fluid.v * damp, fluid.u * damp
        density = np.clip(fluid.carry(density) * (1 - cooling) - cooling * 0.12, 0, None) * sponge
        if step % substeps == 0 and step >= burn_in * substeps:
            side = (size - SIZE) // 2
            kept.append(density[size - SIZE :, side : side + SIZE])
    return kept


def smoke(generator: Generator, frames: int) -> Array:
    """Pale smoke from a chimney before a dusky sky; slow."""
    plume = _plume(
        generator, frames, size=144, radius=6, buoyancy=0.03, cooling=0.004, confinement=0.06,
        substeps=2, burn_in=110,
    )  # fmt: skip
    sky = ramp(Y / SIZE, [(0, (52, 60, 92)), (0.6, (112, 92, 108)), (1, (168, 112, 92))])
    brick = 1 - 0.25 * ((Y % 6 < 1) | ((X + 5 * (Y // 6 % 2)) % 10 < 1))
    chimney = ((X > 36) & (X < 60) & (Y > 86)).astype(float)
    video = []
    for density in plume:
        light = np.clip(0.75 + 2.2 * np.gradient(density, axis=1), 0.45, 1.1)
        image = blend(sky, light[..., None] * (232, 228, 224), 1 - np.exp(-2.6 * density))
        video.append(blend(image, brick[..., None] * (96, 52, 44), chimney))
    return np.stack(video)


FLAME = [
    (0.0, (4, 3, 6)), (0.12, (40, 8, 4)), (0.3, (150, 30, 6)), (0.5, (236, 104, 14)),
    (0.75, (255, 190, 60)), (1.0, (255, 242, 190)),
]  # fmt: skip


def campfire(generator: Generator, frames: int) -> Array:
    """Saturated flames on black over glowing logs; fast."""
    plume = _plume(
        generator, frames, size=144, radius=9, buoyancy=0.11, cooling=0.022, confinement=0.12,
        substeps=3, burn_in=40, sources=3,
    )  # fmt: skip
    logs = np.zeros((SIZE, SIZE))
    for slope, offset in ((0.12, 86), (-0.14, 92)):
        logs = np.maximum(logs, 1 - smooth(3, 4.5, np.abs(Y - offset - slope * (X - 48))))
    logs *= (np.abs(X - 48) < 34).astype(float)
    bark = 0.7 + 0.3 * np.sin(0.9 * Y + 0.25 * X)
    ember = Drift(generator, smallest=4)
    video = []
    for t, heat in enumerate(plume):
        glow = smooth(0.2, 1.6, ember.at(t, churn=0.02))
        image = ramp(heat, FLAME) + (14, 5, 1) * np.array(heat.mean() / 0.15)
        wood = bark[..., None] * (44, 26, 18) + glow[..., None] * (190, 60, 8)
        video.append(blend(image, wood, logs * (0.9 - 0.6 * smooth(0.3, 0.9, heat))))
    return np.stack(video)


def _streaks(
    generator: Generator, frames: int, count: int, speed: float, slant: float, length: float,
    width: float,
) -> list[Array]:  # fmt: skip
    """Brightness, (H, W), of drops that fall through the frame."""
    fall = SIZE + 2 * length
    begin = generator.uniform(0, fall, count)
    pace = speed * generator.uniform(0.8, 1.2, count)
    columns = generator.uniform(-20, SIZE + 20, (count, 200))
    strength = generator.uniform(0.4, 1, count)
    images = []
    for t in range(frames):
        image = np.zeros((SIZE, SIZE))
        way = begin + pace * t
        for i in range(count):
            y = way[i] % fall - length
            x = columns[i, int(way[i] // fall)] + slant * y
            top, left = int(y - length) - 1, int(x - slant * length / 2) - 6
            rows = slice(max(top, 0), max(min(int(y + length) + 2, SIZE), 0))
            cols = slice(max(left, 0), max(min(left + 13, SIZE), 0))
            dy, dx = Y[rows, cols] - y, X[rows, cols] - x
            across = dx - slant * dy
            image[rows, cols] += strength[i] * np.exp(
                -((across / width) ** 2) - (np.abs(dy) / (length / 2)) ** 4
            )
        images.append(image)
    return images


def rain(generator: Generator, frames: int) -> Array:
    """Rain before dark trees and a grey sky; three depths of streaks."""
    far, texture = Drift(generator, exponent=1.2), Drift(generator, exponent=1.0)
    trees = smooth(46, 52, Y + 9 * far.at(0)[48][None, :])
    scene = blend(
        ramp(Y / SIZE, [(0, (104, 112, 120)), (1, (140, 146, 148))]),
        (1 + 0.25 * texture.at(0))[..., None] * (38, 50, 44),
        trees,
    )
    near = _streaks(generator, frames, 26, 13.0, -0.12, 15, 0.8)
    middle = _streaks(generator, frames, 70, 8.5, -0.12, 9, 0.6)
    behind = _streaks(generator, frames, 160, 5.0, -0.12, 5, 0.5)
    veil = Drift(generator, exponent=2.2)
    video = []
    for t in range(frames):
        mist = 0.10 + 0.05 * veil.at(t, wind=(0.8, 0.5), churn=0.02)
        image = blend(scene, (150, 156, 160), np.clip(mist, 0, 1))
        drops = 0.55 * near[t] + 0.42 * middle[t] + 0.3 * behind[t]
        video.append(blend(image, (205, 214, 222), np.clip(drops, 0, 0.8)))
    return np.stack(video)


def snow(generator: Generator, frames: int) -> Array:
    """Snow at night before hills and a lit window; slow and drifting."""
    hills = Drift(generator, exponent=1.6).at(0)
    scene = ramp(Y / SIZE, [(0, (14, 20, 44)), (0.7, (40, 48, 84)), (1, (58, 66, 104))])
    scene = blend(scene, (96, 106, 140), smooth(-1, 1, Y - 74 - 6 * hills[10][None, :]))
    scene = blend(scene, (30, 24, 28), ((np.abs(X - 70) < 10) & (np.abs(Y - 70) < 9)).astype(float))
    scene = blend(
        scene, (255, 196, 84), ((np.abs(X - 70) < 4) & (np.abs(Y - 69) < 4)).astype(float)
    )
    layers = []
    for count, speed, radius in ((110, 0.55, 0.7), (60, 0.95, 1.1), (22, 1.6, 1.9)):
        start = generator.uniform(-6, SIZE + 6, (count, 2))
        pace = speed * generator.uniform(0.8, 1.2, count)
        sway = generator.uniform(0, 2 * np.pi, count)
        rate = generator.uniform(0.06, 0.16, count)
        layers.append((start, pace, sway, rate, radius))
    video = []
    for t in range(frames):
        flakes, span = np.zeros((SIZE, SIZE)), SIZE + 12
        for start, pace, sway, rate, radius in layers:
            y = (start[:, 0] + pace * t + 6) % span - 6
            x = (start[:, 1] + 0.35 * pace * t + 2.5 * radius * np.sin(sway + rate * t) + 6) % span
            for fy, fx in zip(y, x - 6, strict=True):
                top, left = max(int(fy) - 5, 0), max(int(fx) - 5, 0)
                part = (slice(top, max(int(fy) + 6, 0)), slice(left, max(int(fx) + 6, 0)))
                flakes[part] += np.exp(-((Y[part] - fy) ** 2 + (X[part] - fx) ** 2) / radius**2)
        video.append(blend(scene, (236, 240, 250), np.clip(flakes, 0, 0.95)))
    return np.stack(video)


def puddle(generator: Generator, frames: int) -> Array:
    """Rings of raindrops on water that mirrors a bright sky: alike everywhere and always."""
    height, speed = np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE))
    ground = Drift(generator, exponent=1.4)
    sky = Drift(generator, exponent=2.0)
    floor, cloud = ground.at(0), sky.at(0)
    video = []
    for step in range(3 * (frames + 40)):
        for _ in range(generator.poisson(0.22)):
            y, x = generator.uniform(0, SIZE, 2)
            dy, dx = (Y - y + 48) % SIZE - 48, (X - x + 48) % SIZE - 48
            height -= generator.uniform(0.6, 1.5) * np.exp(-(dy**2 + dx**2) / 3.5)
        around = sum(np.roll(height, shift, axis) for axis in (0, 1) for shift in (1, -1))
        assert isinstance(around, np.ndarray)
        speed = (speed + 0.16 * (around - 4 * height)) * 0.986
        height = (height + speed) * 0.997
        if step % 3 == 0 and step >= 120:
            sy = np.roll(height, -1, 0) - np.roll(height, 1, 0)
            sx = np.roll(height, -1, 1) - np.roll(height, 1, 1)
            seen = lookup(floor, Y + 9 * sy, X + 9 * sx, wrap=True)
            mirrored = lookup(cloud, Y + 30 * sy, X + 30 * sx, wrap=True)
            image = (70, 84, 88) + seen[..., None] * (16, 15, 10)
            image = image + (28 * smooth(-0.5, 1.5, mirrored))[..., None] * (1.0, 1.05, 1.1)
            video.append(image + (190 * (0.8 * sy - 0.35 * sx))[..., None] * (1.0, 1.04, 1.06))
    return np.stack(video)


def lava(generator: Generator, frames: int) -> Array:
    """Boiling mud of saturated red: bubbles swell, shine and burst; alike everywhere."""
    stir = Drift(generator, exponent=2.2)
    bubbles = []
    rate, life_mean = 1.7, 20
    for born in range(-60, frames):
        for _ in range(generator.poisson(rate)):
            y, x = generator.uniform(0, SIZE, 2)
            bubbles.append(
                (born, life_mean * generator.uniform(0.6, 1.5), y, x, generator.uniform(2.5, 7.5))
            )
    video = []
    for t in range(frames):
        swirl = stir.at(t, churn=0.025)
        height = 1.6 * swirl
        heat = smooth(0.2, 2.0, -swirl)
        for born, life, y, x, most in bubbles:
            age = (t - born) / life
            if not 0 <= age < 1.35:
                continue
            dy, dx = (Y - y + 48) % SIZE - 48, (X - x + 48) % SIZE - 48
            r = np.hypot(dy, dx)
            if age < 1:
                radius = most * np.sqrt(age)
                height = np.maximum(height, np.sqrt(np.clip(radius**2 - r**2, 0, None)) + 0.5)
            else:  # the ring that a burst leaves, and the heat within
                spread = most * (1 + 2.2 * (age - 1))
                fade = 1 - (age - 1) / 0.35
                height = height + 2.2 * fade * np.exp(-(((r - spread) / 1.5) ** 2))
                heat = np.maximum(heat, fade * np.exp(-((r / (0.8 * most)) ** 2)))
        sy = (np.roll(height, -1, 0) - np.roll(height, 1, 0)) / 2
        sx = (np.roll(height, -1, 1) - np.roll(height, 1, 1)) / 2
        normal = 1 / np.sqrt(1 + sy**2 + sx**2)
        light = np.clip((0.75 - 0.5 * sy - 0.4 * sx) * normal, 0.12, 1.4)
        shine = np.clip((0.62 - 0.6 * sy - 0.5 * sx) * normal, 0, None) ** 24 * 3
        image = light[..., None] * (168, 38, 18) + heat[..., None] * (120, 92, 10)
        video.append(image + np.minimum(shine, 1)[..., None] * (190, 170, 150))
    return np.stack(video)


def clouds(generator: Generator, frames: int) -> Array:
    """White clouds that drift over a blue sky and change; slow, light, alike everywhere."""
    low, detail = Drift(generator, exponent=1.7), Drift(generator, exponent=1.3)
    video = []
    for t in range(frames):
        body = low.at(t, wind=(0.15, 0.9), churn=0.008)
        field = body + 0.35 * detail.at(t, wind=(0.15, 1.1), churn=0.03)
        cover = smooth(-0.2, 0.9, field)
        shade = np.clip(1.02 - 0.16 * np.clip(np.roll(body, 4, 0), -0.5, 2), 0.7, 1)
        video.append(
            blend(
                np.full((SIZE, SIZE, 3), (64, 118, 190.0)),
                shade[..., None] * (246, 246, 250),
                cover,
            )
        )
    return np.stack(video)


def grass(generator: Generator, frames: int) -> Array:
    """Blades of grass in gusts, a dark gap here and there; the roots stand still."""
    count, large = 230, 2 * SIZE
    depth = np.sort(generator.uniform(0, 1, count))
    root_x = generator.uniform(-0.1, 1.1, count) * large
    root_y = (0.45 + 0.75 * depth) * large
    tall = (0.45 + 0.3 * depth) * generator.uniform(0.8, 1.25, count) * large * 0.85
    lean = generator.normal(0, 0.16, count)
    hue = generator.uniform(0, 1, count)
    own = generator.uniform(0, 2 * np.pi, (count, 2))
    own_rate = generator.uniform(0.25, 0.5, count)
    gust = Drift(generator, (16, 128), exponent=1.3, smallest=3)
    backdrop = ramp(
        np.linspace(0, 1, large)[:, None] * np.ones(large),
        [(0, (120, 150, 96)), (0.4, (50, 74, 30)), (1, (18, 30, 12))],
    )
    video = []
    for t in range(frames):
        image = backdrop.copy()
        wind = gust.at(t, wind=(0, 1.6), churn=0.05)
        for i in range(count):
            blow = wind[int(8 * depth[i]), int(root_x[i] / large * 40 + 20) % 128]
            bend = lean[i] + 0.20 + 0.22 * blow + 0.05 * np.sin(own[i, 0] + own_rate[i] * t)
            rows = np.arange(max(int(root_y[i] - tall[i]), 0), min(int(root_y[i]), large))
            if not len(rows):
                continue
            up = np.clip((root_y[i] - rows) / tall[i], 0, 1)  # 0 at the root
            middle = root_x[i] + bend * tall[i] * up**1.8
            half = (2.2 + 2.6 * depth[i]) * (1 - up) ** 0.7
            bright = (0.35 + 0.75 * up) * (0.65 + 0.35 * depth[i])
            colour = np.array((70 + 60 * hue[i], 130 + 30 * hue[i], 34.0))
            reach = np.arange(-6, 7)
            columns = np.rint(middle)[:, None].astype(int) + reach
            alpha = np.clip(half[:, None] + 0.5 - np.abs(columns - middle[:, None]), 0, 1)
            inside = (columns >= 0) & (columns < large)
            r = np.broadcast_to(rows[:, None], columns.shape)[inside]
            c, a = columns[inside], alpha[inside][:, None]
            fold = 1 - 0.22 * (columns > middle[:, None])
            tone = (bright[:, None] * fold)[inside][:, None] * colour
            image[r, c] = image[r, c] * (1 - a) + tone * a
        video.append(image.reshape(SIZE, 2, SIZE, 2, 3).mean((1, 3)))
    return np.stack(video)


def _flag_cloth() -> Array:
    """A flag of three stripes with a white disc, (64, 128, 3), with the weave's texture."""
    v, u = np.mgrid[0:64, 0:128].astype(np.float64)
    cloth = np.empty((64, 128, 3))
    cloth[:] = (196, 30, 40)
    cloth[(v >= 21) & (v < 43)] = (244, 236, 214)
    cloth[v >= 43] = (24, 72, 150)
    disc = smooth(-1, 1, 13 - np.hypot(v - 32, u - 58))
    cloth = blend(cloth, (238, 176, 30), disc)
    return np.asarray(cloth * (1 + 0.05 * np.sin(2.4 * u) * np.sin(2.4 * v))[..., None])


def flag(generator: Generator, frames: int) -> Array:
    """A flag that waves on its pole: waves that travel and grow away from it, shaded."""
    cloth = _flag_cloth()
    waves = [
        (0.8 * generator.uniform(0.9, 1.1), k, w * generator.uniform(0.9, 1.1), slant)
        for k, w, slant in ((0.085, 0.36, 0.012), (0.15, 0.62, -0.02), (0.24, 0.93, 0.035))
    ]
    phases = generator.uniform(0, 2 * np.pi, len(waves))
    slow = Drift(generator, (8, 256), exponent=1.5)
    sky = ramp(Y / SIZE, [(0, (150, 190, 226)), (1, (214, 226, 232))])
    pole = smooth(-0.5, 0.5, 2 - np.abs(X - 7))
    video = []
    for t in range(frames):
        breeze = slow.at(t, wind=(0, 1), churn=0.01)[0, 128]
        # u runs along the cloth, 0 at the pole; its waves lift it and turn it to the light.
        u = np.clip((X - 9) / 0.82, 0, None)
        lift, slope = np.zeros_like(u), np.zeros_like(u)
        growth = np.clip(u / 45, 0, 1)
        for (size, k, w, slant), phase in zip(waves, phases, strict=True):
            angle = k * u + slant * Y - w * t + phase
            lift += growth * size * (4.2 - 9 * k) * np.sin(angle)
            slope += growth * size * (4.2 - 9 * k) * k * np.cos(angle)
        droop = 0.0016 * u**2 * (1 - 0.5 * breeze)
        v = (Y - 22 - 0.75 * lift - droop) / 0.78
        across = u + 2.5 * slope
        inside = smooth(-0.7, 0.7, v) * smooth(-0.7, 0.7, 64 - v) * smooth(-0.7, 0.7, 96 - across)
        inside = inside * (X > 8.5)
        light = np.clip(0.86 - 0.62 * slope, 0.35, 1.25)
        image = blend(sky, light[..., None] * lookup(cloth, v, across), inside)
        video.append(blend(image, (120 - 12 * np.abs(X - 6))[..., None] * (1, 0.95, 0.9), pole))
    return np.stack(video)


def waterfall(generator: Generator, frames: int) -> Array:
    """White water that falls between dark wet rocks, faster further down, into spray."""
    threads = Drift(generator, (384, SIZE), exponent=1.3, stretch=(5.0, 1.0))
    fine = Drift(generator, (384, SIZE), exponent=0.8, stretch=(4.0, 1.0))
    fog = Drift(generator, exponent=2.0)
    rough = Drift(generator, exponent=1.2).at(0)
    left, right = 22 + 5 * rough[:, 5], 72 + 6 * rough[:, 50]
    water = smooth(-2, 2, X - left[:, None]) * smooth(-2, 2, right[:, None] - X)
    rocks = np.clip(1 + 0.45 * rough, 0.2, 2)[..., None] * (52, 50, 44)
    rocks[..., 1] += 14 * smooth(0.6, 1.8, rough)
    first, second = threads.at(0), fine.at(0)
    # y = 2.2 f + 0.021 f^2 after f frames of falling: the texture is carried along that way.
    fallen = (-2.2 + np.sqrt(2.2**2 + 4 * 0.021 * Y)) / (2 * 0.021)  # frames since the edge
    video = []
    for t in range(frames):
        a = lookup(first, 3.2 * (fallen - t), X + 1.2 * np.sin(0.07 * Y), wrap=True)
        b = lookup(second, 3.2 * (fallen - 1.13 * t) + 50, X, wrap=True)
        white = smooth(-1.1, 1.7, a + 0.6 * b)
        stream = (70, 92, 104) + white[..., None] * np.array((176, 158, 150))
        spray = smooth(64, 98, Y) * (0.72 + 0.25 * fog.at(t, wind=(-0.7, 0.4), churn=0.06))
        image = blend(rocks, stream, water)
        video.append(blend(image, (222, 230, 234), np.clip(spray, 0, 0.95)))
    return np.stack(video)


def _unsteady(generator: Generator, frames: int, memory: float) -> Array:
    """Gaussian noise of variance 1 with a memory of so many frames."""
    keep = np.exp(-1 / memory)
    value, values = generator.standard_normal(), []
    for _ in range(frames):
        value = keep * value + np.sqrt(1 - keep**2) * generator.standard_normal()
        values.append(value)
    return np.asarray(values)


def candle(generator: Generator, frames: int) -> Array:
    """A candle in a dark room: the flame bends and flickers, and the wall with it."""
    bend = 3.2 * _unsteady(generator, frames, 9) + 1.0 * _unsteady(generator, frames, 2)
    tall = 24 + 2.6 * _unsteady(generator, frames, 4)
    power = 1 + 0.09 * _unsteady(generator, frames, 3)
    wall = 1 + 0.10 * Drift(generator, exponent=1.0).at(0)
    wax = (np.abs(X - 48) < 9) & (Y > 60)
    video = []
    for t in range(frames):
        up = (58 - Y) / tall[t]  # 0 at the wick, 1 at the tip
        middle = 48 + bend[t] * np.clip(up, 0, 1.5) ** 1.6
        width = 6.0 * np.sqrt(np.clip(up + 0.12, 0, None)) * np.clip(1.02 - up, 0, None) ** 0.85
        edge = (width - np.abs(X - middle)) / 2.2
        flame = smooth(-0.1, 1, edge)
        distance = np.hypot(X - 48 - 0.6 * bend[t], (Y - 46) * 0.9)
        glow = power[t] * (np.exp(-distance / 26) + 0.35 * np.exp(-distance / 9))
        image = (glow * wall)[..., None] * (150, 84, 34) + (7, 6, 10)
        light = np.clip(power[t] * (1.15 - (Y - 60) / 34), 0.1, 1.2) * (1 - 0.05 * np.abs(X - 48))
        image = blend(image, light[..., None] * (226, 180, 116), wax.astype(float))
        wick = ((np.abs(X - 48) < 1) & (Y > 54) & (Y <= 60)).astype(float)
        image = blend(image, (40, 20, 14), wick)
        core = smooth(0.4, 2.4, edge)
        colour = ramp(core, [(0, (255, 120, 20)), (0.5, (255, 206, 96)), (1, (255, 246, 206))])
        blue = smooth(0.12, -0.06, up)[..., None]
        video.append(blend(image, colour * (1 - 0.6 * blue) + blue * (10, 20, 120), flame))
    return np.stack(video)


def neon(generator: Generator, frames: int) -> Array:
    """A neon sign on bricks whose tubes hum and fail at random; saturated colours."""

    def tube(points: list[tuple[float, float]]) -> Array:
        distance = np.full((SIZE, SIZE), np.inf)
        for (x0, y0), (x1, y1) in pairwise(points):
            length = (x1 - x0) ** 2 + (y1 - y0) ** 2
            t = np.clip(((X - x0) * (x1 - x0) + (Y - y0) * (y1 - y0)) / length, 0, 1)
            distance = np.minimum(
                distance, np.hypot(X - x0 - t * (x1 - x0), Y - y0 - t * (y1 - y0))
            )
        return distance

    angles = np.linspace(0, 2 * np.pi, 33)
    across = 16.8 * np.sin(angles) ** 3
    high = np.array([13, -5, -2, -1]) @ np.cos(np.arange(1, 5)[:, None] * angles)
    heart = [(48 + x, 30 - 1.05 * y) for x, y in zip(across, high, strict=True)]
    wave = [(14 + 68 * s, 66 + 5 * np.sin(2 * np.pi * 2 * s)) for s in np.linspace(0, 1, 33)]
    bar = [(20.0, 82.0), (76.0, 82.0)]
    tubes = [
        (tube(heart), (255, 40, 110)),
        (tube(wave), (40, 200, 255)),
        (tube(bar), (255, 190, 40)),
    ]
    brick = Drift(generator, exponent=0.9).at(0) * 0.14 + 1
    brick = brick * np.where((Y % 8 < 1) | ((X + 8 * (Y // 8 % 2)) % 16 < 1), 0.55, 1)
    states, video = [], []
    for mean_on, mean_off in ((22, 3), (40, 2), (9, 5)):
        on, level, levels = True, 1.0, []
        hum = _unsteady(generator, frames, 1.5)
        for t in range(frames):
            if generator.uniform() < 1 / (mean_on if on else mean_off):
                on = not on
            level += 0.75 * ((1.0 if on else 0.06) - level)
            levels.append(level * (1 + 0.07 * hum[t] + 0.05 * (-1) ** t))
        states.append(levels)
    for t in range(frames):
        lit = np.full((SIZE, SIZE, 3), (20.0, 18, 22))
        cores = np.zeros((SIZE, SIZE, 3))
        for (distance, colour), levels in zip(tubes, states, strict=True):
            glow = levels[t] * (0.55 * np.exp(-distance / 5) + 0.25 * np.exp(-distance / 18))
            lit = lit + glow[..., None] * np.array(colour)
            core = smooth(2.2, 0.8, distance)
            cores = cores + (core * levels[t])[..., None] * (0.5 * np.array(colour) + 127)
            cores = cores + (core * (1 - min(levels[t], 1)))[..., None] * 60.0
        video.append(lit * brick[..., None] + cores)
    return np.stack(video)


CLIPS: dict[str, Callable[[Generator, int], Array]] = {
    clip.__name__: clip
    for clip in (
        smoke, campfire, rain, snow, puddle, lava, clouds, grass, flag, waterfall, candle, neon,
    )
}  # fmt: skip


def render(name: str, frames: int = 96, seed: int = 0) -> NDArray[np.uint8]:
    """The clip of a name, uint8, (T, H, W, 3), with a little of a camera's noise."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    video = CLIPS[name](generator, frames)
    video = video + generator.normal(0, 1.0, video.shape)
    return np.clip(np.rint(video), 0, 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CLIPS))
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--suffix", default=".mp4", help=".mp4 or .npy")
    options = parser.parse_intermixed_args()
    unknown = sorted(set(options.names) - set(CLIPS))
    if unknown:
        parser.error(f"{unknown[0]}: no such clip; there are {', '.join(CLIPS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or CLIPS:
        path = options.out / f"{name}{options.suffix}"
        write_video(path, render(name, options.frames, options.seed), FPS, overwrite=True)
        print(path)


if __name__ == "__main__":
    main()
