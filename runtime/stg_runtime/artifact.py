"""What the exporter writes and the runtime reads: tensor names, axes, and the metadata schema.

An exported model is one ONNX file. Input ``video`` (N, C, T, H, W) float32 in model units; outputs
``energy`` (N,) float32 and ``energy_grad`` float32 of the shape of ``video``, of the whole energy,
the Gaussian reference included. Where an axis is free, ``unit_weights`` (1, 1, T', H', W') float32
weighs the responses of the top units in the energy; it is 1 where nothing is given, so that it may
be left alone. One JSON value under `METADATA_KEY` in ``metadata_props`` says the rest, and
`DIGEST_KEY` holds a hash of all properties.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stg_runtime.equalizer import Equalizer
from stg_runtime.errors import InputError
from stg_runtime.langevin import noise_at
from stg_runtime.spot import CELLS, MOST_CELLS, Spot
from stg_runtime.video import to_model

VIDEO = "video"
ENERGY = "energy"
ENERGY_GRAD = "energy_grad"
UNIT_WEIGHTS = "unit_weights"
METADATA_KEY = "stg"
DIGEST_KEY = "stg.sha256"
SCHEMA_VERSION: Literal[1] = 1
LARGEST_SPOT = 1 << 26  # bytes
LARGEST_FILTER = 129  # taps of an equalizer along an axis
LARGEST_MEAN = 1 << 29  # bytes
LARGEST_REACH = 4096  # voxels that a network looks along an axis; ours look at most at some hundred
LARGEST_STRIDE = 128
LARGEST_LEAST = 1 << 28  # voxels of the smallest video that a network takes
LEAST_GAIN = 1e-6  # of an equalizer at rest: the sum of a filter's taps
MEAN_STEPS = 256  # steps per grey level that a stored mean is rounded to

Axis = Literal["N", "T", "H", "W"]
Precision = Literal["fp32", "fp16"]

# Whatever is computed from numbers of a file (squares, products, a float32) stays finite.
_Positive = Annotated[float, Field(ge=1e-12, le=1e12)]
_NonNegative = Annotated[float, Field(ge=0, le=1e12)]
_Level = Annotated[float, Field(ge=0, le=255)]
_Count = Annotated[int, Field(ge=1, le=1 << 31)]
_Tap = Annotated[float, Field(ge=-1e3, le=1e3)]
_Extent = Annotated[int, Field(ge=1, le=1 << 24)]
_Reach = Annotated[int, Field(ge=1, le=LARGEST_REACH)]
_Beyond = Annotated[int, Field(ge=0, le=LARGEST_REACH)]
_Step = Annotated[int, Field(ge=1, le=LARGEST_STRIDE)]
_Triple = tuple[_Reach, _Reach, _Reach]
_Stride = tuple[_Step, _Step, _Step]
_Padding = tuple[_Beyond, _Beyond, _Beyond]


def check_stable(step_size: float, reference_std: float) -> None:
    """Refuse a Langevin step that the reference term alone makes diverge.

    Raises:
        ValueError: it is 2 * reference_std or more.
    """
    if step_size >= 2 * reference_std:
        raise ValueError(
            f"step_size {step_size} must be below 2 * reference_std ({2 * reference_std}), or the "
            "reference term alone diverges"
        )


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Size(_Strict):
    """Frames, height and width of a video, in frames and pixels."""

    frames: _Extent
    height: _Extent
    width: _Extent

    def __str__(self) -> str:
        """`TxHxW`, as users write it."""
        return f"{self.frames}x{self.height}x{self.width}"


class Parity(_Strict):
    """One comparison of the file with float64 autograd, on a fresh random input.

    Errors are relative: ||file - reference|| / ||reference||.
    """

    shape: tuple[_Count, ...]
    energy_error: _NonNegative
    energy_grad_error: _NonNegative


class EqualizerTaps(_Strict):
    """An `Equalizer` as it is stored: time, (a,), and space, (b, b); a and b odd."""

    time: Annotated[tuple[_Tap, ...], Field(max_length=LARGEST_FILTER)]
    space: Annotated[tuple[tuple[_Tap, ...], ...], Field(max_length=LARGEST_FILTER)]

    @model_validator(mode="after")
    def _odd_and_square(self) -> EqualizerTaps:
        if len(self.time) % 2 == 0 or len(self.space) % 2 == 0:
            raise ValueError("an equalizer's filters have odd extents")
        if any(len(row) != len(self.space) for row in self.space):
            raise ValueError("an equalizer's filter over space is square")
        gains = sum(self.time), sum(map(sum, self.space))
        if min(map(abs, gains)) < LEAST_GAIN:
            raise ValueError("an equalizer's taps may not sum to 0")
        return self

    @classmethod
    def of(cls, equalizer: Equalizer) -> EqualizerTaps:
        """The taps of an equalizer."""
        rows = equalizer.space.tolist()
        return cls(time=tuple(equalizer.time.tolist()), space=tuple(tuple(row) for row in rows))

    def equalizer(self) -> Equalizer:
        """The equalizer with these taps."""
        return Equalizer(np.array(self.time, np.float32), np.array(self.space, np.float32))


class ConvLayer(_Strict):
    """One convolution of the network as it was trained; (T, H, W) each but `filters`."""

    filters: _Count
    kernel: _Triple
    stride: _Stride
    padding: _Padding


class Metadata(_Strict):
    """All that a runtime needs to know besides the graph.

    Attributes:
        schema_version: of this schema; a runtime refuses another.
        recipe: name of the recipe it was trained with.
        reference_std: sigma of the Gaussian reference, model units.
        step_size: delta of the Langevin step, model units.
        noise_scale: factor on the Langevin noise at the first step; 1 samples, 0 descends.
        noise_end: share of it that is left at the last, see `langevin.noise_at`.
        n_steps: Langevin steps it was trained with; also the default at synthesis.
        init_std: standard deviation of the chain's first noise where that is white, model units.
        first_noise: "white", or spot noise along "time" or "space-time"; see `stg_runtime.spot`.
        spot: clips that spot noise is made from, packed, or None; see `pack_spot`.
        spot_shape: (M, T, H, W) of these clips.
        equalizer: of the spot noise, or None.
        noise_cells: of spot noise along time, see `stg_runtime.spot.Spot`.
        pixel_mean: grey levels subtracted per channel; of a mean image, its mean.
        mean_image: grey levels subtracted at each pixel, or None; see `pack_mean_image`.
        mean_per_frame: `mean_image` holds one image for each frame of the graph, a mean video.
        pixel_scale: grey levels per model unit.
        size: default size of a synthesized video, after the margins are cut.
        margin_frames: frames synthesized beyond each end and cut, because the network pads there.
        margin_size: the same in space, pixels beyond each edge.
        fps: frames per second of the training clip.
        free_axes: axes whose size the graph leaves open; the others are fixed at `graph_size`.
        graph_size: what the graph takes on its fixed axes (margins included).
        min_size: smallest graph size on the free axes.
        stride: voxels between neighbouring top units of the network, (T, H, W); None, as the two
            below, where the exporter did not know the network.
        receptive_field: voxels that one top unit reads, (T, H, W).
        padding: voxels that the first top unit reads before the video begins, (T, H, W): unit j
            reads voxels j * stride - padding to j * stride - padding + receptive_field - 1.
        layers: of the network, bottom first, whatever the graph makes of them; empty where the
            exporter did not know it.
        clips: SHA-256 of each prepared training clip (uint8, T x H x W x C).
        precision: of the convolutions; inputs and outputs are float32 always.
        opset: ONNX operator set.
        lowering: how the graph computes the network ("none": as written).
        versions: of stg, torch and the other tools that made the file.
        parity: comparisons with float64 autograd made before the file was kept.
        scales: of a multi-grid model, this one included; the coarser ones are in the file, see
            `stg_runtime.grids`.
        graph_sha256: SHA-256 of the graph that was compared, as the file holds it; None in older
            files.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    recipe: str
    reference_std: _Positive
    step_size: _Positive
    noise_scale: _NonNegative
    noise_end: Annotated[float, Field(ge=1e-6, le=1)] = 1.0
    n_steps: Annotated[int, Field(ge=1, le=1_000_000)]
    init_std: _NonNegative
    first_noise: Literal["white", "time", "space-time"] = "white"
    spot: str | None = None
    spot_shape: tuple[_Count, _Count, _Count, _Count] | None = None
    equalizer: EqualizerTaps | None = None
    noise_cells: Annotated[int, Field(ge=1, le=MOST_CELLS)] = CELLS
    pixel_mean: Annotated[tuple[_Level, ...], Field(min_length=1, max_length=4)]
    mean_image: str | None = None
    mean_per_frame: bool = False
    pixel_scale: _Positive
    size: Size
    margin_frames: _Beyond
    fps: Annotated[float, Field(ge=1e-3, le=1e6)]
    free_axes: tuple[Axis, ...]
    graph_size: Size
    min_size: Size
    stride: _Stride | None = None
    receptive_field: _Triple | None = None
    padding: _Padding | None = None
    layers: tuple[ConvLayer, ...] = ()
    clips: tuple[str, ...]
    precision: Precision
    opset: _Count
    lowering: str
    versions: dict[str, str]
    parity: tuple[Parity, ...]
    margin_size: _Beyond = 0
    scales: Annotated[int, Field(ge=1, le=6)] = 1
    graph_sha256: Annotated[str, Field(pattern="[0-9a-f]{64}")] | None = None

    @property
    def channels(self) -> int:
        """Number of colour channels, C."""
        return len(self.pixel_mean)

    def noise_at(self, step: int, n_steps: int) -> float:
        """Factor on the noise of step 1 to `n_steps` of a walk, see `langevin.noise_at`."""
        return noise_at(step, n_steps, noise_scale=self.noise_scale, noise_end=self.noise_end)

    @model_validator(mode="after")
    def _step_is_stable(self) -> Metadata:
        check_stable(self.step_size, self.reference_std)
        return self

    @model_validator(mode="after")
    def _network_fits(self) -> Metadata:
        least, graph = (
            (size.frames, size.height, size.width) for size in (self.min_size, self.graph_size)
        )
        if any(low > size for low, size in zip(least, graph, strict=True)):
            raise ValueError(
                f"min_size {self.min_size} is larger than graph_size {self.graph_size}"
            )
        if math.prod(least) > LARGEST_LEAST:
            raise ValueError(f"min_size {self.min_size} is more than {LARGEST_LEAST} voxels")
        if self.padding is not None and self.receptive_field is not None:
            for low, padding, field in zip(least, self.padding, self.receptive_field, strict=True):
                if padding >= field or low + 2 * padding < field:
                    raise ValueError(
                        f"receptive_field {self.receptive_field}, padding {self.padding} and "
                        f"min_size {self.min_size} are no network's"
                    )
        return self

    @model_validator(mode="after")
    def _mean_image_fits(self) -> Metadata:
        if self.mean_image is not None:
            if {"H", "W"} & set(self.free_axes):
                raise ValueError("a mean image fixes height and width, but they are free axes")
            if self.mean_per_frame and "T" in self.free_axes:
                raise ValueError("a mean video fixes the number of frames, but T is a free axis")
            self.mean()
        return self

    @model_validator(mode="after")
    def _spot_fits(self) -> Metadata:
        if (self.first_noise != "white") != (self.spot is not None) or (self.spot is None) != (
            self.spot_shape is None
        ):
            raise ValueError("first_noise, spot and spot_shape do not belong together")
        if self.spot is not None and self.spot_shape is not None:
            if self.first_noise == "time" and {"H", "W"} & set(self.free_axes):
                raise ValueError("spot noise along time fixes height and width; they are free axes")
            size = (self.graph_size.height, self.graph_size.width)
            if self.first_noise == "time" and self.spot_shape[2:] != size:
                raise ValueError(f"spot_shape {self.spot_shape} does not fit graph_size {size}")
            unpack_spot(self.spot, (*self.spot_shape, self.channels))
        return self

    @cached_property
    def spot_noise(self) -> Spot | None:
        """What first noise is made from, or None for white noise."""
        if self.spot is None or self.spot_shape is None or self.first_noise == "white":
            return None
        pixels = unpack_spot(self.spot, (*self.spot_shape, self.channels))
        clips = [to_model(clip, self.mean(), self.pixel_scale) for clip in pixels]
        equalizer = None if self.equalizer is None else self.equalizer.equalizer()
        return Spot(np.stack(clips), self.first_noise, equalizer, self.noise_cells)

    def mean(self) -> NDArray[np.float32]:
        """Grey levels to add back, float32.

        Returns:
            (C, 1, 1); with a mean image (C, H, W); with a mean video (C, T, H, W), T frames of the
            graph.
        """
        if self.mean_image is None:
            return np.array(self.pixel_mean, np.float32).reshape(-1, 1, 1)
        frames = (self.graph_size.frames,) if self.mean_per_frame else ()
        shape = (self.channels, *frames, self.graph_size.height, self.graph_size.width)
        return unpack_mean_image(self.mean_image, shape)

    def to_json(self) -> str:
        """The value stored under `METADATA_KEY`."""
        return self.model_dump_json()


def pack_mean_image(mean: NDArray[np.float32]) -> str:
    """A mean image, (C, H, W), or video, (C, T, H, W), grey levels, as text.

    16-bit 1/256 grey levels, deflated, base64.
    """
    steps = np.rint(mean * MEAN_STEPS).astype("<u2")
    return base64.b64encode(zlib.compress(steps.tobytes(), 9)).decode()


def unpack_mean_image(text: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The inverse of `pack_mean_image`.

    Raises:
        ValueError: not such a text, of another size, or larger than `LARGEST_MEAN`.
    """
    if 2 * math.prod(shape) > LARGEST_MEAN:
        raise ValueError(f"mean_image of {shape} is larger than {LARGEST_MEAN} bytes")
    data = _inflate(text, 2 * math.prod(shape), "mean_image")
    levels = np.frombuffer(data, "<u2").reshape(shape).astype(np.float32)
    levels /= MEAN_STEPS
    return levels


def pack_spot(clips: NDArray[np.uint8]) -> str:
    """Clips, (M, T, H, W, C), as text: deflated, base64."""
    return base64.b64encode(zlib.compress(clips.tobytes(), 9)).decode()


def unpack_spot(text: str, shape: tuple[int, int, int, int, int]) -> NDArray[np.uint8]:
    """The inverse of `pack_spot`.

    Raises:
        ValueError: not such a text, of another size, or larger than `LARGEST_SPOT`.
    """
    if math.prod(shape) > LARGEST_SPOT:
        raise ValueError(f"spot of {shape} is larger than {LARGEST_SPOT} bytes")
    return np.frombuffer(_inflate(text, math.prod(shape), "spot"), np.uint8).reshape(shape)


def _inflate(text: str, size: int, name: str) -> bytes:
    """Bounded: a small hostile text can inflate to gigabytes."""
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(base64.b64decode(text, validate=True), size + 1)
    except (zlib.error, ValueError) as error:
        raise ValueError(f"{name} is damaged ({error})") from None
    if len(data) != size or not inflate.eof:
        raise ValueError(f"{name} does not hold {size} bytes")
    return data


def digest(properties: Mapping[str, str]) -> str:
    """SHA-256 of a file's ``metadata_props``, `DIGEST_KEY` left out, with the coarser scales."""
    rest = sorted(item for item in properties.items() if item[0] != DIGEST_KEY)
    return hashlib.sha256(json.dumps(rest).encode()).hexdigest()


def parse_metadata(text: str, source: str) -> Metadata:
    """Read and check the metadata of an exported model.

    Args:
        text: the JSON value stored under `METADATA_KEY`.
        source: file name, for messages.

    Raises:
        InputError: not JSON, of another schema version, or a field missing or out of range.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{source}: its stg metadata is not JSON ({error}); export it again"
        ) from None
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{source}: written with metadata schema {version}, this stg reads schema "
            f"{SCHEMA_VERSION}; export the run again with `stg-export`"
        )
    with named_faults(f"{source}: damaged stg metadata", "; export it again"):
        return Metadata.model_validate(value)


@contextmanager
def named_faults(what: str, hint: str = "") -> Iterator[None]:
    """Values out of range that pydantic finds in this block are the input's fault, not ours.

    Args:
        what: was read, before the fault in the message.
        hint: what the user could do, after it.

    Raises:
        InputError: the first fault, see `first_error`.
    """
    try:
        yield
    except ValidationError as error:
        raise InputError(f"{what}: {first_error(error)}{hint}") from None


def first_error(error: ValidationError) -> str:
    """One line for the first fault pydantic found: where, what it should be, what it is."""
    fault = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in fault["loc"]) or "value"
    shown = repr(fault["input"])
    shown = shown if len(shown) <= 100 else f"{shown[:100]}..."
    got = "" if isinstance(fault["input"], dict) else f" (got {shown})"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}{got}"
