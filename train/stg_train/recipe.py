"""Recipes: everything a training run is made from, as one validated TOML file."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from stg_runtime.artifact import check_stable, first_error
from stg_runtime.errors import InputError
from stg_runtime.files import atomic_write_text, check_regular
from stg_runtime.grids import FACTOR, check_scales, coarser_seed
from stg_runtime.langevin import noise_at
from stg_runtime.spot import CELLS, MOST_CELLS
from stg_train.descriptor import ConvSpec
from stg_train.exemplars import ExemplarSpec

Scale = Literal["small", "paper"]
Regime = Literal["short-run", "persistent", "rejuvenated", "multi-grid", "denoising"]


def _unicode(text: str) -> str:
    """Text that a file can hold: a stranger's JSON may have half of a character."""
    text.encode()
    return text


_LARGEST = 1 << 31  # beyond what any machine holds, and far from what Python turns into floats
_LARGEST_CLIP = 1 << 36  # pixels; what is counted of them in bytes stays below 2^63
_Text = Annotated[str, AfterValidator(_unicode)]
_Count = Annotated[int, Field(ge=1, le=_LARGEST)]
_NonNegativeInt = Annotated[int, Field(ge=0, le=_LARGEST)]
# Beyond these, squares leave float32's range.
_Positive = Annotated[float, Field(ge=1e-30, le=1e30)]
_NonNegative = Annotated[float, Field(ge=0, le=1e30)]
_Extent = _Count | Literal["full"]
_Fraction = Annotated[float, Field(ge=0, le=1)]
_Beta = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """Python takes true for 1; of a recipe it is a slip of the pen."""
        assert info.field_name is not None
        if cls.model_fields[info.field_name].annotation is not bool and _holds_truth(value):
            raise ValueError("expected a number or text, not true or false")
        return value


def _printable(text: str) -> str:
    """A name is shown on terminals and in pages, and stored as UTF-8."""
    if not text.isprintable():
        raise ValueError("holds characters that cannot be shown")
    return text


def _holds_truth(value: object) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_truth, value))
    return isinstance(value, bool)


class Data(_Section):
    """The training clips.

    Attributes:
        videos: files or image folders; filled in from the command line.
        mask: what is hidden of every clip: a file, white (nonzero in an .npy) where hidden, or a
            pattern, `region:60`, `fixed-region:60`, `frames:0.5`, `salt-pepper:0.5`, drawn from
            the recipe's seed. None: nothing.
        mask_resize: bring a mask of another size or length to the video's.
        mask_grow: source pixels by which a mask from a file hides more on every side.
        size: (H, W) of the prepared clips, pixels.
        frames: frames taken from each video.
        start: first frame taken.
        crop: (x, y, width, height) cut out before resizing, pixels of the source.
        window: frames of the random window that an update sees; a longer clip than the window
            keeps the network from using the ends as a clock. None: all frames.
        window_size: (H, W) of the random window in space that an update sees, pixels: larger clips
            than it keep a network that is free in space from using the edges as a map. None: all.
        batch: clips per update, drawn without replacement; all when there are fewer.
        allow_cuts: learn from clips of several shots; otherwise a cut is refused.
    """

    videos: tuple[str, ...] = ()
    mask: str | None = None
    mask_resize: bool = False
    mask_grow: _NonNegativeInt = 0
    size: tuple[_Count, _Count]
    frames: _Count
    start: _NonNegativeInt = 0
    crop: tuple[_NonNegativeInt, _NonNegativeInt, _Count, _Count] | None = None
    window: _Count | None = None
    window_size: tuple[_Count, _Count] | None = None
    batch: Annotated[int, Field(ge=1, le=4096)] = 8
    windows: _Count | None = None
    align: bool = False
    allow_cuts: bool = False

    @model_validator(mode="after")
    def _windows_or_align(self) -> Data:
        if self.align and self.windows is not None:
            raise ValueError(
                "--windows and --align exclude each other: alignment takes one clip from each video"
            )
        return self

    @model_validator(mode="after")
    def _mask_is_of_use(self) -> Data:
        if self.mask is None and (self.mask_resize or self.mask_grow):
            raise ValueError("--mask-resize and --mask-grow need --mask, which is not given")
        if self.mask is not None and (self.windows is not None or self.align):
            raise ValueError(
                "--mask hides pixels of each whole VIDEO; leave --windows and --align out, or cut "
                "the clips and their masks beforehand"
            )
        return self

    @model_validator(mode="after")
    def _is_countable(self) -> Data:
        if self.frames * math.prod(self.size) > _LARGEST_CLIP:
            raise ValueError(
                f"clips of {self.frames} frames of {self.size[0]}x{self.size[1]} hold more than "
                f"{_LARGEST_CLIP} pixels; take fewer frames or a smaller size"
            )
        return self

    @model_validator(mode="after")
    def _window_fits(self) -> Data:
        if self.window_size is not None:
            if self.window_size[0] > self.size[0] or self.window_size[1] > self.size[1]:
                raise ValueError(
                    f"window_size {self.window_size[0]}x{self.window_size[1]} is larger than the "
                    f"clip's {self.size[0]}x{self.size[1]} pixels"
                )
            if self.mask is not None:
                raise ValueError("window_size needs whole clips; leave it or --mask out")
        if self.window is not None and self.window > self.frames:
            raise ValueError(f"window {self.window} is longer than the clip's {self.frames} frames")
        return self

    @property
    def trained_frames(self) -> int:
        """Frames of one training window."""
        return self.window or self.frames

    @property
    def trained_size(self) -> tuple[int, int]:
        """(H, W) of one training window, pixels."""
        return self.window_size or self.size


class Layer(_Section):
    """One convolution and ReLU; see `ConvSpec`."""

    filters: _Count
    kernel: tuple[_Extent, _Extent, _Extent]
    stride: tuple[_Count, _Count, _Count]
    padding: tuple[_NonNegativeInt, _NonNegativeInt, _NonNegativeInt]


class Exemplars(_Section):
    """How an exemplar network looks at the clips; see `ExemplarSpec`."""

    frames: Annotated[int, Field(ge=3, le=255)] = 5
    window: _Count = 6
    stride: _Count = 2
    shares: Annotated[tuple[_Positive, ...], Field(min_length=1, max_length=8)] = (0.34, 0.33, 0.33)
    temperature: _Positive = 0.02

    @model_validator(mode="after")
    def _windows_cover(self) -> Exemplars:
        if self.frames % 2 == 0:
            raise ValueError(f"frames must be odd; it is {self.frames}")
        if self.window < 2 * self.stride:
            raise ValueError(
                f"window must be at least twice the stride; they are {self.window}, {self.stride}"
            )
        if abs(math.fsum(self.shares) - 1) > 1e-6:
            raise ValueError(f"shares must add up to 1; they make {math.fsum(self.shares):g}")
        return self

    def spec(self) -> ExemplarSpec:
        """As the network takes it."""
        return ExemplarSpec(**self.model_dump())


class Network(_Section):
    """The descriptor.

    Attributes:
        form: "descriptor", the sum of the top responses, as in the paper; "denoiser", how far a
            video is from what a residual network makes of it, see `stg_train.denoiser`: layers of
            stride 1 that keep the size, of equally many filters, and one back to the video's
            channels, of the first one's kernel, that is not named here; or "exemplars", how near a
            video comes, place by place, to moments of the clips, see `stg_train.exemplars`: no
            layers, and `exemplars`.
        exemplars: of form = "exemplars".
        layers: convolutions, bottom first.
        padding: "zeros" pads every layer as it says. "valid" pads none along axes that no "full"
            layer covers: there the network sees nothing but video, and nothing tells it where the
            ends and edges are. Values near them are then seen by fewer units, so a margin is
            synthesized and cut (`output.margin_frames`, `output.margin_size`): receptive field less
            stride is enough.
        init: "he" for sqrt(2 / fan_in), "normal" for one `init_std` everywhere (the paper's code).
        init_std: standard deviation for init = "normal".
    """

    form: Literal["descriptor", "denoiser", "exemplars"] = "descriptor"
    exemplars: Exemplars | None = None
    layers: tuple[Layer, ...] = ()
    padding: Literal["zeros", "valid"] = "zeros"
    init: Literal["he", "normal"] = "he"
    init_std: _Positive = 0.001

    @model_validator(mode="after")
    def _has_its_parts(self) -> Network:
        exemplars = self.form == "exemplars"
        if exemplars != (self.exemplars is not None):
            raise ValueError('form = "exemplars" and the table network.exemplars belong together')
        if exemplars and (self.layers or self.padding != "zeros"):
            raise ValueError('form = "exemplars" has no layers and needs padding = "zeros"')
        if not exemplars and not self.layers:
            raise ValueError("layers: at least one is needed")
        return self

    @model_validator(mode="after")
    def _is_a_denoiser(self) -> Network:
        if self.form == "denoiser":
            first = self.layers[0]
            for layer in self.layers:
                sides = zip(layer.kernel, layer.padding, strict=True)
                odd = all(k != "full" and k % 2 and p == k // 2 for k, p in sides)
                if not odd or layer.stride != (1, 1, 1) or layer.filters != first.filters:
                    raise ValueError(
                        'form = "denoiser" needs layers of equally many filters, stride [1, 1, 1], '
                        "odd kernels and padding of half of them"
                    )
            if self.padding != "zeros":
                raise ValueError('form = "denoiser" needs padding = "zeros"')
        return self

    def specs(self, channels: int = 3) -> list[ConvSpec]:
        """The layers as the network takes them, for a video of `channels`.

        Of exemplars, the one layer that has their units: one for each time that sees a frame.
        """
        if self.exemplars is not None:
            frames = self.exemplars.frames
            return [ConvSpec(1, (frames, "full", "full"), (1, 1, 1), (frames - 1, 0, 0))]
        pads = [self.padding == "zeros" or not self.is_free(axis) for axis in range(3)]
        layers = self.layers
        if self.form == "denoiser":
            layers = (*layers, layers[0].model_copy(update={"filters": channels}))
        return [
            ConvSpec(
                layer.filters,
                layer.kernel,
                layer.stride,
                (
                    layer.padding[0] * pads[0],
                    layer.padding[1] * pads[1],
                    layer.padding[2] * pads[2],
                ),
            )
            for layer in layers
        ]

    def is_free(self, axis: int) -> bool:
        """Is no layer "full" along an axis: 0, 1, 2 for T, H, W?"""
        if self.form == "exemplars":
            return axis == 0
        return all(layer.kernel[axis] != "full" for layer in self.layers)


class Pixels(_Section):
    """From grey levels to model units: (pixel - mean) / scale.

    Attributes:
        mean: "channel" subtracts one grey level per colour, "image" the clips' mean over time at
            every pixel: what stands still is then exactly the mean, and the network spends itself
            on what moves. An image locks the height and width of the model. "video" subtracts the
            clips' mean at every pixel of every frame, for several clips in step: what they share
            is then exactly the mean, its movement too. It locks the length as well.
        scale: "std" for the clips' own standard deviation around the mean, or grey levels per
            model unit.
    """

    mean: Literal["channel", "image", "video"] = "channel"
    scale: Literal["std"] | _Positive = "std"


class Langevin(_Section):
    """The chains.

    Attributes:
        reference_std: sigma of the Gaussian reference, model units.
        step_size: delta, model units. a = step_size^2 / (2 reference_std^2) is the share of the way
            to its mean that the reference alone takes a chain per step; above 0.2 training has
            collapsed, below 0.1 white first noise outlives the steps.
        noise_scale: factor on the Langevin noise.
        noise_end: share of `noise_scale` that is left at the last step, between which it falls by
            the same factor at each: annealed Langevin dynamics, for an energy of many noise levels.
        n_steps: Langevin steps per update, and at synthesis.
        first_noise: "white", or spot noise with the clips' own covariance: along "time" for scenes
            in which every place has its own behaviour, along "space-time" for textures that look
            alike everywhere; see `stg_runtime.spot`.
        noise_cells: along time, how many cells across and down the frame have noise of their own;
            1 where the whole scene moves as one, as its light does.
        init_std: of white first noise, model units.
        chains: how many are walked together.
    """

    reference_std: _Positive
    step_size: _Positive
    noise_scale: _NonNegative = 1.0
    noise_end: Annotated[float, Field(gt=0, le=1)] = 1.0
    n_steps: _Count = 20
    first_noise: Literal["white", "time", "space-time"] = "white"
    noise_cells: Annotated[int, Field(ge=1, le=MOST_CELLS)] = CELLS
    init_std: _NonNegative = 1.0
    chains: Annotated[int, Field(ge=1, le=4096)] = 1

    def noise_at(self, step: int, n_steps: int | None = None) -> float:
        """Factor on the noise of step 1 to `n_steps` of a walk, the recipe's own if not given."""
        steps, scale, end = n_steps or self.n_steps, self.noise_scale, self.noise_end
        return noise_at(step, steps, noise_scale=scale, noise_end=end)

    @model_validator(mode="after")
    def _step_is_stable(self) -> Langevin:
        check_stable(self.step_size, self.reference_std)
        return self


class Learning(_Section):
    """Analysis by synthesis with Adam.

    Attributes:
        regime: "short-run" restarts the chains from noise at every update, and the model then
            synthesizes from noise in the same number of steps; "persistent" carries them on, as the
            paper does, and the model then describes its chains but seldom synthesizes from noise;
            "rejuvenated" carries each on but restarts it with probability `restart`: the model then
            synthesizes from noise, in n_steps and in several times as many. "multi-grid" learns
            several scales at once, each with an energy of its own; the coarsest starts from noise
            at every update, each other from the coarser one's result; see `stg_runtime.grids`.
            "denoising" walks no chains: the network learns to take noise out of the clips
            (denoising score matching), and needs `network.form` = "denoiser".
        noise: (least, most) standard deviation of the noise that is taken out, model units.
        patch: (T, H, W) of the random part of a clip that a step of denoising sees.
        denoisings: steps of denoising in an update, one patch each.
        scales: of multi-grid learning, each half as high and wide as the next; 1 is short-run.
        restart: probability that a rejuvenated chain restarts from noise at an update.
        updates: of the parameters.
        learning_rate: Adam's, for weights, see `rate`; of exemplars for their precision.
        rate: "fan-in" multiplies each layer's weight rate by sqrt(2 / fan_in), so that every layer
            moves by the same share of its initial size; "flat" does not.
        bias_rate: Adam's rate for biases.
        betas: Adam's.
        clip: gradients longer than `clip` times their running mean are scaled down to that. Adam's
            second moment lags behind a gradient that grows, and its steps with it; without this,
            chains and network drive each other up (sea, updates 100 to 350). None: never.
        decay_from: share of the updates after which the rates fall linearly.
        final_rate: share of the rates left at the end.
        select_every: updates after which two fresh videos are synthesized and measured, always from
            the same noise; the run ends with the parameters whose videos were the best, and not
            with the last. None: with the last, as the paper does.
        growth: updates at which the second, third, ... layer is added (layer-wise growth); empty:
            all layers from the start.
    """

    regime: Regime = "short-run"
    scales: Annotated[int, Field(ge=1, le=6)] = 3
    restart: Annotated[float, Field(gt=0, le=1)] = 0.3
    noise: tuple[_Positive, _Positive] = (0.03, 0.6)
    patch: tuple[_Count, _Count, _Count] = (8, 32, 32)
    denoisings: Annotated[int, Field(ge=1, le=100_000)] = 25
    updates: _Count
    learning_rate: _Positive
    rate: Literal["fan-in", "flat"] = "fan-in"
    bias_rate: _Positive = 1e-3
    betas: tuple[_Beta, _Beta] = (0.5, 0.999)
    clip: _Positive | None = 1.5
    decay_from: _Fraction = 0.6
    final_rate: _Fraction = 0.05
    select_every: _Count | None = None
    growth: tuple[_Count, ...] = ()

    @model_validator(mode="after")
    def _growth_rises(self) -> Learning:
        if list(self.growth) != sorted(set(self.growth)):
            raise ValueError("growth must name rising update numbers")
        return self


class Incomplete(_Section):
    """Learning from clips with hidden pixels; of use where `data.mask` hides some.

    Attributes:
        regime: "restart" begins the walk of the hidden pixels at their first values before every
            update; "persistent" goes on where the last one ended, as in the paper. With short-run
            learning a persistent recovery drifts into modes that the chains never visit (flat
            patches, after 200 updates on the river), and then teaches them to the network.
        n_steps: Langevin steps that the hidden pixels of an update's windows make before it.
        finish_steps: the longest noise-free descent that is tried for the final estimate.
    """

    regime: Literal["restart", "persistent"] = "restart"
    n_steps: _Count = 5
    finish_steps: _Count = 20


class Output(_Section):
    """What a run leaves behind.

    Attributes:
        margin_frames: frames synthesized beyond each end of a video and cut, because zero padding
            in time makes the ends pale; about the receptive field's reach. A network that is full
            in time has a fixed length, and a video is shorter than the clips by the margins.
        margin_size: the same in space, pixels beyond each edge, for networks that are free there.
        checkpoint_every: updates between checkpoints.
        sheet_every: updates between contact sheets and videos of the chains.
    """

    margin_frames: _NonNegativeInt = 4
    margin_size: _NonNegativeInt = 0
    checkpoint_every: _Count = 50
    sheet_every: _Count = 50


class Recipe(_Section):
    """A whole recipe; the sections are the tables of its TOML file.

    Attributes:
        precision: of the convolutions in training: "fp32", "tf32" (GPUs), "bf16" (weights stay
            float32), or "auto", bf16 where the processor multiplies it natively.
        device: "auto", "cpu", "cuda" or "cuda:i".
        compile: let torch.compile translate the energy that the chains walk on, a minute or so
            before the first update; it needs a C++ compiler, and Triton on a GPU.
        threads: processor threads; None for all this process may use.
    """

    name: Annotated[str, Field(max_length=100), AfterValidator(_printable)]
    description: _Text = ""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    threads: _Count | None = None
    compile: bool = False
    data: Data
    network: Network
    pixels: Pixels = Pixels()
    langevin: Langevin
    learning: Learning
    output: Output = Output()
    incomplete: Incomplete = Incomplete()

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise ValueError(f"--device {value}: expected auto, cpu, cuda or cuda:i")
        return value

    @model_validator(mode="after")
    def _mean_video_fits(self) -> Recipe:
        locked = any(layer.kernel[0] == "full" for layer in self.network.layers)
        if self.pixels.mean == "video" and (
            not locked or self.data.trained_frames != self.data.frames
        ):
            raise ValueError(
                'pixels.mean = "video" needs a network that is full in time (recipe action) and no '
                "data.window: each frame has its own mean"
            )
        return self

    @model_validator(mode="after")
    def _first_noise_fits(self) -> Recipe:
        locked = any("full" in layer.kernel[1:] for layer in self.network.layers)
        if self.langevin.first_noise == "time" and self.pixels.mean == "channel" and not locked:
            raise ValueError(
                'langevin.first_noise = "time" is of one frame size, needs pixels.mean = "image" '
                'or a spatially full layer; "space-time" is for networks that are free in space'
            )
        if self.langevin.noise_cells != CELLS and self.langevin.first_noise != "time":
            raise ValueError('langevin.noise_cells is of langevin.first_noise = "time" alone')
        if self.langevin.first_noise != "white" and self.pixels.mean == "video":
            raise ValueError('pixels.mean = "video" needs langevin.first_noise = "white"')
        return self

    @model_validator(mode="after")
    def _growth_matches(self) -> Recipe:
        if self.learning.growth and len(self.learning.growth) != len(self.network.layers) - 1:
            raise ValueError(
                f"learning.growth names {len(self.learning.growth)} updates, but "
                f"{len(self.network.layers) - 1} layers are to be added"
            )
        return self

    @model_validator(mode="after")
    def _free_in_space(self) -> Recipe:
        free = self.network.is_free(1) and self.network.is_free(2)
        if free and self.pixels.mean == "channel":
            return self
        for key, given in (
            ("data.window_size", self.data.window_size is not None),
            ("output.margin_size", self.output.margin_size > 0),
        ):
            if given:
                raise ValueError(
                    f'{key} is for textures alike everywhere: it needs pixels.mean = "channel" and '
                    "no spatially full layer (recipe st)"
                )
        return self

    @model_validator(mode="after")
    def _denoising_fits(self) -> Recipe:
        if (self.learning.regime == "denoising") != (self.network.form == "denoiser"):
            raise ValueError(
                'learning.regime = "denoising" and network.form = "denoiser" belong together; take '
                "--recipe denoising or denoising-st, or leave the regime out"
            )
        if self.network.form == "denoiser":
            low, high = self.learning.noise
            if low >= high:
                raise ValueError(f"learning.noise must rise; it is {low:g}, {high:g}")
            if self.data.mask is not None or self.pixels.mean == "video" or self.learning.growth:
                raise ValueError(
                    'learning.regime = "denoising" learns from whole clips, one mean image and all '
                    "layers at once; leave --mask, pixels.mean and learning.growth out"
                )
        return self

    @model_validator(mode="after")
    def _exemplars_fit(self) -> Recipe:
        exemplars = self.network.exemplars
        if exemplars is None:
            return self
        if self.learning.regime == "multi-grid":
            raise ValueError(
                'network.form = "exemplars" has all its scales in one network; leave '
                'learning.regime = "multi-grid" out, or take --recipe fc-s'
            )
        if self.data.mask is not None or self.pixels.mean != "image" or self.learning.growth:
            raise ValueError(
                'network.form = "exemplars" learns from whole clips of one scene, with pixels.mean '
                '= "image" and no growth; take --recipe fc-s where there is a --mask'
            )
        if self.data.frames < exemplars.frames:
            raise ValueError(
                f"clips of {self.data.frames} frames are shorter than an exemplar's "
                f"{exemplars.frames}; take more --frames, or --recipe fc-s"
            )
        return self

    @model_validator(mode="after")
    def _scales_fit(self) -> Recipe:
        if self.learning.regime == "multi-grid":
            if self.data.mask is not None:
                raise ValueError(
                    'learning.regime = "multi-grid" learns from whole clips; leave --mask out, or '
                    "choose another --regime"
                )
            try:
                scales = self.learning.scales
                check_scales(scales, self.data.size, "--size")
                check_scales(scales, self.data.trained_size, "data.window_size")
                check_scales(scales, (self.output.margin_size,), "output.margin_size")
            except InputError as error:
                raise ValueError(f"{error}, or learning.scales smaller") from None
        return self

    @property
    def patch(self) -> tuple[int, int, int]:
        """(T, H, W) of a patch that a step of denoising sees: not more than the clips have."""
        whole = (self.data.frames, *self.data.size)
        t, h, w = map(min, self.learning.patch, whole)
        return t, h, w

    @property
    def scales(self) -> int:
        """Scales of the model, this one and those coarser than it."""
        return self.learning.scales if self.learning.regime == "multi-grid" else 1

    def coarser(self) -> Recipe | None:
        """The recipe of the next coarser scale of multi-grid learning; None for the coarsest."""
        if self.scales == 1:
            return None
        size, window = (
            None if extent is None else (extent[0] // FACTOR, extent[1] // FACTOR)
            for extent in (self.data.size, self.data.window_size)
        )
        return self.model_copy(
            update={
                "seed": coarser_seed(self.seed, 63),
                "data": self.data.model_copy(update={"size": size, "window_size": window}),
                "output": self.output.model_copy(
                    update={"margin_size": self.output.margin_size // FACTOR}
                ),
                "learning": self.learning.model_copy(update={"scales": self.learning.scales - 1}),
            }
        )

    def to_toml(self) -> str:
        """The recipe as a file that `load_recipe` reads back to the same recipe."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def save(self, path: Path) -> None:
        """Write the recipe, whole or not at all."""
        atomic_write_text(path, self.to_toml())


def builtin_recipes() -> list[str]:
    """Names of the recipes that come with stg."""
    files = resources.files("stg_train.recipes").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load_recipe(
    name: str, *, scale: Scale | None = None, overrides: dict[str, Any] | None = None
) -> Recipe:
    """Read a built-in recipe or a recipe file and check it.

    A recipe may hold tables ``[scale.small.*]`` and ``[scale.paper.*]``, laid over the rest.

    Args:
        name: a built-in name, or a path that ends in .toml.
        scale: which of the recipe's sizes; None for small, where it has sizes.
        overrides: dotted keys ("data.size") and values laid over the recipe; None values do not.

    Raises:
        InputError: unknown recipe or key (the nearest known one is named), value out of range.
    """
    if name.lower().endswith(".toml"):
        source = name
        check_regular(Path(name))
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{name}: cannot read the recipe ({error})") from None
    else:
        known = builtin_recipes()
        if name not in known:
            raise InputError(
                f"--recipe {name}: no such recipe{_nearest(name, known)}; built in are "
                f"{', '.join(known)}, or give a file that ends in .toml"
            )
        source = f"recipe {name}"
        text = (resources.files("stg_train.recipes") / f"{name}.toml").read_text(encoding="utf-8")
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise InputError(f"{source}: not valid TOML: {' '.join(str(error).split())}") from None
    scales = table.pop("scale", {})
    if not isinstance(scales, dict) or not set(scales) <= {"small", "paper"}:
        raise InputError(f"{source}: [scale.*] may hold `small` and `paper` only")
    if scale is not None and scale not in scales:
        raise InputError(f"{source}: has no [scale.{scale}] tables; leave --scale {scale} out")
    tables = {**table, **{f"scale.{key}": value for key, value in scales.items()}}
    for key in ("data", "learning", "scale.small", "scale.paper"):
        if not isinstance(tables.get(key, {}), dict):
            raise InputError(f"{source}: {key} must be a table, [{key}]; it is {tables[key]!r}")
    merge(table, scales.get(scale or "small", {}))
    for key, value in (overrides or {}).items():
        if value is not None:
            *path, last = key.split(".")
            section = table
            for part in path:
                section = section.setdefault(part, {})
                if not isinstance(section, dict):
                    raise InputError(
                        f"{source}: {part} must be a table, [{part}]; it is {section!r:.60}"
                    )
            section[last] = value
    data, given = table.get("data", {}), overrides or {}
    shorter = given.get("data.frames") and not given.get("data.window")
    if shorter and isinstance(data.get("window"), int):
        # Whoever asks for fewer frames than the recipe's window means all of them.
        data["window"] = min(data["window"], given["data.frames"])
    return parse_recipe(table, source)


def parse_recipe(table: dict[str, Any], source: str) -> Recipe:
    """Check a recipe's tables; `source` names them in the message of the InputError."""
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        # A misspelt key is also a missing one; the spelling is what the user can mend.
        unknown = [fault for fault in faults if fault["type"] == "extra_forbidden"]
        if unknown:
            fault = unknown[0]
            where = ".".join(str(part) for part in fault["loc"])
            known = _known_keys(fault["loc"])
            raise InputError(
                f"{source}: unknown key {where}{_nearest(str(fault['loc'][-1]), known)}; "
                f"known here: {', '.join(known)}"
            ) from None
        raise InputError(f"{source}: {first_error(error)}") from None


def merge(base: dict[str, Any], over: dict[str, Any]) -> None:
    """Lay one table over another, table by table, in place."""
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merge(base[key], value)
        else:
            base[key] = value


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f", did you mean {close[0]}?" if close else ""


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Recipe
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if part == "layers":
            model = Layer
        for kind in (annotation, *get_args(annotation)):  # a section, or one that may be missing
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                model = kind
    return sorted(model.model_fields)
