"""How much memory a training run takes, before it starts.

The network's share is counted, not fitted: the very code of a walk and of a learning gradient runs
on fake tensors, which have shapes and no values, and the storages alive are added up. What NumPy
does before and after learning is counted in whole videos. `bench/memory.py --train` compares the
sum with what runs take.
"""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stg_runtime.artifact import LARGEST_SPOT
from stg_runtime.errors import InputError
from stg_runtime.fill import fill_bytes
from stg_runtime.grids import FACTOR
from stg_runtime.memory import MIB, budget, resident_memory, show_memory
from stg_train.chains import autocast, walk
from stg_train.denoiser import Denoiser, denoised
from stg_train.descriptor import Energy, min_size, resolve_kernels
from stg_train.learn import build_network
from stg_train.recipe import Recipe

_CHANNELS = 3
_FLOAT = 4  # bytes
_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)
_FIRST_BLOCKED = 4  # channels up to which oneDNN reads a plain tensor
_BLOCK = 16  # channels of a block of oneDNN's, where it has AVX-512
# Compiled kernels, an encoder, its threads and tables: what the program takes on its way whatever
# the sizes are (measured on runs of 16 x 16 pixels).
_ON_THE_WAY = 56 * MIB
_MEASURES = 40 * MIB
# An update takes more than is alive at once: the heap is in pieces, and in bf16 oneDNN needs room
# for gradients of weights (st at 192x192, four chains: 1.22 and 1.3).
_IN_PIECES = {"fp32": 1.2, "bf16": 1.3}
# Of exemplars the heap keeps what fits it, tensors below 32 MiB: as measured (`bench/memory.py`).
_KEPT_SHARE, _KEPT_MOST = 0.7, 140 * MIB
_PER_PIXEL = 150  # bytes of an encoder for each pixel of a frame: it looks ahead some forty frames


@dataclass(frozen=True)
class Need:
    """Bytes that a training run takes at most.

    Attributes:
        program: that this process holds already, and what comes with the libraries on the way.
        held: by network, optimizer, chains and first noise, all the time.
        work: on top, by the stage that takes most.
        stage: its name.
        mapped: of the prepared clips, read from their file; the system drops these when memory runs
            short, so that they are no part of `total`.
        on_device: of `held` and updates, without the program and first noise in NumPy.
    """

    program: int
    held: int
    work: int
    stage: str
    mapped: int
    on_device: int

    @property
    def total(self) -> int:
        """Bytes that must be there."""
        return self.program + self.held + self.work


class Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages alive that were made under it, and their peak.

    Args:
        copies: oneDNN's copies inside a convolution count, too, as on a processor.
    """

    def __init__(self, copies: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._copies = copies
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        inside = _copies(args, made) if self._copies and func in _CONVOLUTIONS else 0
        self.peak = max(self.peak, self.live + inside)
        return made

    def _count(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._alive:
            return

        def gone(_: object) -> None:
            self.live -= size
            del self._alive[key]

        self.live += size
        self._alive[key] = weakref.ref(storage, gone)


def _copies(args: tuple[Any, ...], made: Any) -> int:
    """Bytes that oneDNN takes inside a convolution, or inside its backward pass.

    As measured for eight layers of ours, forward and backward (PyTorch 2.13, AVX-512): in float32
    each tensor is copied to blocks of 16 channels, the weights' gradient when others are gone; in
    channels-last bf16 only the weights are copied, and their gradient is made in float32.
    """
    tensors = [t for t in args[:3] if isinstance(t, Tensor)]
    forward = isinstance(made, Tensor)
    weight = tensors[1 if forward else 2]
    if weight.dtype == torch.bfloat16:
        return _bytes(weight) * (1 if forward else 2)
    if forward:
        return _blocked(tensors[0]) + _bytes(weight) + _blocked(made)
    grad, x, _ = tensors
    inner = _bytes(x) if made[0] is not None else 0
    return max(_blocked(grad) + _blocked(x) + inner, _bytes(weight) + _blocked(grad))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _blocked(tensor: Tensor) -> int:
    channels = tensor.shape[1]
    if channels <= _FIRST_BLOCKED:
        return 0
    return _bytes(tensor) // channels * _BLOCK * -(-channels // _BLOCK)


def foresee(recipe: Recipe, clips: int, *, processes: int = 1) -> Need:
    """What a run will take, on a processor within 15 %; see `bench/memory.py`.

    Args:
        recipe: with `device` and `precision` resolved.
        clips: how many training clips there are.
        processes: that share the chains and the windows; the need is that of one.
    """
    counted = [_scale(item, clips, processes) for item in _scales(recipe)]
    held = sum(scale.held for scale in counted)
    stage, work = max(
        (item for scale in counted for item in scale.stages.items()), key=lambda item: item[1]
    )
    state = sum(scale.state for scale in counted)
    # safetensors takes every tensor as bytes, and makes the file's bytes of these.
    copies = 2 if recipe.precision == "fp32" else 3  # to contiguous ones first
    if copies * state > work:
        stage, work = "a checkpoint", copies * state
    pixels = math.prod(recipe.data.size)
    program = resident_memory() + _ON_THE_WAY + _PER_PIXEL * pixels
    mapped = clips * recipe.data.frames * pixels * _CHANNELS
    on_device = sum(scale.on_device for scale in counted)
    return Need(program, held, work, stage, mapped, on_device)


@dataclass(frozen=True)
class _Scale:
    """Bytes of one scale, see `Need`; `state` is what a checkpoint holds of it."""

    held: int
    state: int
    on_device: int
    stages: dict[str, int]


def _scales(recipe: Recipe) -> Iterator[Recipe]:
    now: Recipe | None = recipe
    while now is not None:
        yield now
        now = now.coarser()


def refuse_larger(
    recipe: Recipe,
    clips: int,
    max_memory: str | None,
    *,
    processes: int = 1,
    started: bool = False,
) -> None:
    """Refuse a run that does not fit, before anything of it is made.

    On a GPU what the network and its chains take there is held against what is free there, without
    the work space of its convolutions: a run that is refused would not fit, one that is not may
    still be too large.

    Args:
        recipe: with `device` and `precision` resolved.
        clips: how many training clips there are.
        max_memory: of this process, as `stg_runtime.memory.budget` takes it.
        processes: that share the run.
        started: the run goes on, and what it was started with can no longer be made smaller.

    Raises:
        InputError: what is needed, what there is, and the largest settings that would fit.
    """
    on_gpu = recipe.device != "cpu"
    if on_gpu:
        limit: int | None = torch.cuda.mem_get_info(recipe.device)[0]
    else:
        limit = budget(max_memory)
    if limit is None:
        return

    def taken(need: Need) -> int:
        return need.on_device if on_gpu else need.total

    def fits(changed: Recipe) -> bool:
        return taken(foresee(changed, clips, processes=processes)) <= limit

    try:
        need = foresee(recipe, clips, processes=processes)
    except InputError:  # about the network, and said better where it is made
        return
    if taken(need) <= limit:
        return
    parts = (
        "on the GPU"
        if on_gpu
        else (
            f"{show_memory(need.program)} for the program, {show_memory(need.held)} for network, "
            f"chains and first noise, {show_memory(need.work)} for {need.stage}"
        )
    )
    if started:
        help_ = "go on where there is more"
    else:
        smaller = [
            f"{option} {text(changed)}"
            for option, steps, text in _OPTIONS
            if (changed := _largest(steps(recipe, clips), fits))
        ]
        help_ = f"{' or '.join(smaller)} would fit" if smaller else "no one option makes it fit"
    where = "--max-memory" if max_memory is not None and not on_gpu else "free"
    raise InputError(
        f"training needs about {show_memory(taken(need))} of memory ({parts}), and "
        f"{show_memory(limit)} are there ({where}); {help_}"
    )


def _largest(steps: Sequence[Recipe], fits: Callable[[Recipe], bool]) -> Recipe | None:
    """The last of the recipes, each larger than the one before, that fits."""
    low, high = 0, len(steps)  # those below `low` fit, those from `high` on do not
    while low < high:
        middle = (low + high) // 2
        if fits(steps[middle]):
            low = middle + 1
        else:
            high = middle
    return steps[low - 1] if low else None


def _with(recipe: Recipe, section: str, **values: object) -> Recipe:
    changed = getattr(recipe, section).model_copy(update=values)
    return recipe.model_copy(update={section: changed})


def _values(first: int, end: int) -> range:
    """Of `first` to `end` - 1 all, or some 256: a recipe may ask for billions."""
    return range(first, end, max(1, (end - first) // 256))


def _fewer_chains(recipe: Recipe, clips: int) -> list[Recipe]:
    return [_with(recipe, "langevin", chains=n) for n in _values(1, recipe.langevin.chains)]


def _smaller_batches(recipe: Recipe, clips: int) -> list[Recipe]:
    return [_with(recipe, "data", batch=n) for n in _values(1, min(recipe.data.batch, clips))]


def _shorter_windows(recipe: Recipe, clips: int) -> list[Recipe]:
    if not recipe.network.is_free(0):  # such a network is as long as its clips
        return []
    least = min_size(
        recipe.network.specs(), (recipe.data.trained_frames, *recipe.data.trained_size)
    )
    return [_with(recipe, "data", window=n) for n in _values(least[0], recipe.data.trained_frames)]


def _smaller_sizes(recipe: Recipe, clips: int) -> list[Recipe]:
    """Sixteenths of the size, as whole steps of the coarsest scale."""
    data, step = recipe.data, FACTOR ** (recipe.scales - 1)
    found = []
    for share in range(1, 16):
        size = tuple(extent * share // (16 * step) * step for extent in data.size)
        if data.window_size is not None and any(map(operator.lt, size, data.window_size)):
            continue  # a recipe's own, that no option makes smaller
        changed = _with(recipe, "data", size=size)
        with suppress(InputError):  # smaller than the network
            for scale in _scales(changed):
                resolve_kernels(
                    scale.network.specs(), (scale.data.trained_frames, *scale.data.trained_size)
                )
            if min(size) > 0:
                found.append(changed)
    return found


_Steps = Callable[[Recipe, int], list[Recipe]]
_OPTIONS: tuple[tuple[str, _Steps, Callable[[Recipe], str]], ...] = (
    ("--chains", _fewer_chains, lambda recipe: str(recipe.langevin.chains)),
    ("--batch", _smaller_batches, lambda recipe: str(recipe.data.batch)),
    ("--window", _shorter_windows, lambda recipe: str(recipe.data.window)),
    ("--size", _smaller_sizes, lambda recipe: "x".join(map(str, recipe.data.size))),
)
"""What a user can make smaller: recipes of rising need, and how to name one."""


def _scale(recipe: Recipe, clips: int, processes: int) -> _Scale:
    data, learning, langevin = recipe.data, recipe.learning, recipe.langevin
    chains = -(-langevin.chains // processes)
    windows = -(-min(data.batch, clips) // processes)
    window = _FLOAT * _CHANNELS * data.trained_frames * math.prod(data.trained_size)
    whole = _FLOAT * _CHANNELS * data.frames * math.prod(data.size)
    weights, update = _update(recipe, clips, chains, windows)
    copies = 1 + (learning.updates >= 10) + (learning.select_every is not None)  # own, kept, best
    moments = 2
    state = weights * (copies + moments) + langevin.chains * window
    held = weights * (copies + moments) + (chains + windows) * window
    hidden = data.mask is not None
    if hidden:  # first values, chains, what is visible
        held += clips * (2 * whole + whole // 12)
        state += 2 * clips * whole
    on_device = held + update
    if recipe.pixels.mean == "video":
        held += whole
    noise = _first_noise(recipe, clips)
    held += noise.held
    luminance, pixels = whole // _CHANNELS, data.frames * math.prod(data.size)
    pieces = _IN_PIECES.get(recipe.precision, 1.0)
    updating, sampling = int(pieces * update), _sampled(recipe, clips)
    if recipe.network.exemplars is not None:
        updating, sampling = (
            work + min(int(_KEPT_SHARE * work), _KEPT_MOST) for work in (update, sampling)
        )
    stages = {
        # Before there are chains and moments.
        "first noise": noise.fitting + weights - held,
        # Gradients stay from the update on.
        "an update": max(updating, weights + noise.on_device),
        "synthesis": weights + max(noise.making, sampling),
        "measures": weights + _MEASURES + 5 * whole + clips * luminance,
        # As of masks that hide a quarter; what this one hides is not known yet.
        "a recovery": weights + (14 * whole + fill_bytes(pixels, pixels // 4) if hidden else 0),
    }
    return _Scale(held, state, on_device, stages)


def _update(recipe: Recipe, clips: int, chains: int, windows: int) -> tuple[int, int]:
    """Bytes of the weights; and of the gradients and all that is in the making in an update."""
    data, langevin = recipe.data, recipe.langevin
    shape = (_CHANNELS, data.trained_frames, *data.trained_size)
    device = torch.device("cpu")  # fake: nothing is there
    if recipe.learning.regime == "denoising":
        return _denoised(recipe)
    layout = torch.contiguous_format if recipe.precision == "fp32" else torch.channels_last_3d
    with FakeTensorMode(), Tally(recipe.device == "cpu") as tally:
        energy = _energy(recipe, layout, clips)
        weights = sum(_bytes(value) for value in energy.state_dict().values())
        x = torch.empty((chains, *shape)).contiguous(memory_format=layout)
        observed = torch.empty((windows, *shape)).contiguous(memory_format=layout)
        before = tally.live
        energy.requires_grad_(False)
        walked, _ = walk(
            energy,
            x,
            n_steps=2,
            step_size=langevin.step_size,
            noise_scale=1.0,
            draw=lambda _, like: torch.empty_like(like),
            precision=recipe.precision,
        )
        walking = tally.peak - before + weights  # with the gradients of the update before
        energy.requires_grad_(True)
        tally.peak = 0
        with autocast(recipe.precision, device):
            response = energy.descriptor(torch.cat([walked, observed]))
        torch.autograd.backward(response.sum())
        return weights, max(walking, tally.peak - before)


def _denoised(recipe: Recipe) -> tuple[int, int]:
    """The same of a step of denoising."""
    with FakeTensorMode(), Tally(recipe.device == "cpu") as tally:
        energy = _energy(recipe, torch.contiguous_format)
        weights = sum(_bytes(parameter) for parameter in energy.parameters())
        before = tally.live
        assert isinstance(energy.descriptor, Denoiser)
        noised = torch.empty((1, _CHANNELS, *recipe.patch))
        clean, _ = denoised(energy.descriptor, noised, (0, 0), recipe.precision)
        torch.autograd.backward(clean.square().sum())
        return weights, tally.peak - before


def _sampled(recipe: Recipe, clips: int) -> int:
    """Bytes of a walk of one video with its margins, float32."""
    data, output = recipe.data, recipe.output
    frames = data.frames + 2 * output.margin_frames
    if not recipe.network.is_free(0):
        frames = data.trained_frames
    size = [extent + 2 * output.margin_size for extent in data.size]
    with FakeTensorMode(), Tally(recipe.device == "cpu") as tally:
        energy = _energy(recipe, torch.contiguous_format, clips)
        energy.requires_grad_(False)
        before = tally.live
        walk(
            energy,
            torch.empty((1, _CHANNELS, frames, *size)),
            n_steps=1,
            step_size=recipe.langevin.step_size,
            noise_scale=1.0,
            draw=lambda _, like: torch.empty_like(like),
        )
        # The video, its noise from NumPy, pixels of the ones before; and one video at a time leaves
        # more of the heap in pieces than several.
        video = _FLOAT * _CHANNELS * frames * math.prod(size)
        return int(1.2 * (tally.peak - before) + 6 * video)


def _energy(recipe: Recipe, layout: torch.memory_format, clips: int = 1) -> Energy:
    descriptor = build_network(recipe, _CHANNELS, clips)
    for parameter in descriptor.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=layout)
    return Energy(descriptor, recipe.langevin.reference_std)


@dataclass(frozen=True)
class _Noise:
    """Bytes of spot noise, see `stg_runtime.spot`: held, while fitted, while a video is made."""

    held: int = 0
    fitting: int = 0
    on_device: int = 0
    making: int = 0


def _first_noise(recipe: Recipe, clips: int) -> _Noise:
    kind, data = recipe.langevin.first_noise, recipe.data
    if kind == "white":
        return _Noise()
    pixels = math.prod(data.size)
    frames = min(data.frames, max(1, LARGEST_SPOT // (_CHANNELS * pixels)))
    one = _FLOAT * _CHANNELS * frames * pixels
    count = min(clips, max(1, LARGEST_SPOT // (one // _FLOAT)))
    # Held are the clips as they are, as spots, and these on the device; along time colours by rank,
    # too. While they are fitted, the clips are there twice, and two fits' spots; the rest of each
    # figure is what spectra, ranks and draws were measured to take, in clips.
    if kind == "time":
        padded = one * (frames + data.trained_frames) // frames
        return _Noise((4 * count + 1) * one, (5 * count + 9) * one, 10 * padded, 12 * one)
    return _Noise(3 * count * one, (5 * count + 7) * one, 7 * one, 7 * one)
