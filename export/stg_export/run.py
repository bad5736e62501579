"""From the folder of a training run to the model file that the runtime reads."""

from __future__ import annotations

import importlib.metadata
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from torch import nn

from stg_export.onnx import export_energy_grad
from stg_runtime.artifact import (
    Axis,
    ConvLayer,
    EqualizerTaps,
    Metadata,
    Parity,
    Precision,
    Size,
    named_faults,
    pack_mean_image,
    pack_spot,
)
from stg_runtime.backends.onnxruntime_cpu import require_onnxruntime
from stg_runtime.errors import InputError
from stg_runtime.grids import FACTOR, check_scales
from stg_runtime.memory import refuse_least, resident_memory
from stg_train.checkpoint import Checkpoint
from stg_train.descriptor import AXES, Energy, Network, min_size, top_units
from stg_train.exemplars import Exemplars
from stg_train.observed import Observed
from stg_train.run import CHECKPOINT, energy_of, load_energy, read_run_clips
from stg_train.sample import lengths

_AXES: Final[tuple[Axis, ...]] = ("T", "H", "W")


def export_run(
    folder: Path,
    path: Path,
    *,
    precision: Precision = "fp32",
    static: bool = False,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    opset: int = 18,
    lowering: str = "auto",
    overwrite: bool = False,
) -> Metadata:
    """Export a run as one .onnx file; of multi-grid learning, all scales of it.

    Args:
        folder: that stg-train wrote.
        path: the .onnx file.
        precision: see `export_energy_grad`.
        static: fix the size, (1, C, T, H, W) with the margins. Off: the number of videos, their
            length and, where the network allows, their height and width stay open.
        frames: length of a synthesized video; the training clips' by default.
        size: (H, W) of a synthesized video, pixels; the training clips' by default.
        opset: see `export_energy_grad`.
        lowering: see `export_energy_grad`.
        overwrite: an existing file may be replaced.

    Returns:
        What the file says of itself.

    Raises:
        InputError: not a run, an option out of range, or a size that the network does not take.
        StgError: the file misses the parity check; nothing was written.
    """
    energy, checkpoint = load_energy(folder)
    observed = None
    if checkpoint.recipe.langevin.first_noise != "white":
        observed = read_run_clips(folder, checkpoint)
    return _export_scale(
        folder,
        energy,
        checkpoint,
        observed,
        path,
        frames=frames,
        size=size,
        static=static,
        overwrite=overwrite,
        precision=precision,
        opset=opset,
        lowering=lowering,
    )


def _export_scale(
    folder: Path,
    energy: Energy,
    checkpoint: Checkpoint,
    observed: Observed | None,
    path: Path,
    *,
    frames: int | None,
    size: tuple[int, int] | None,
    static: bool,
    overwrite: bool,
    precision: Precision,
    opset: int,
    lowering: str,
) -> Metadata:
    """Export one scale and, inside of its file, the coarser ones; see `export_run`."""
    recipe = checkpoint.recipe
    trained = (recipe.data.trained_frames, *recipe.data.trained_size)
    descriptor = energy.descriptor
    assert isinstance(descriptor, Network)
    if isinstance(descriptor, Exemplars) and precision == "fp16":
        raise InputError(
            f"{folder}: an exemplar network compares sums too large for halves; leave "
            "--precision fp16 out"
        )
    # A mean of every pixel locks H and W; one of every frame, T (its network is full there anyway).
    mean_image = checkpoint.mean.shape[-2:] != (1, 1)
    free: tuple[Axis, ...] = tuple(
        axis
        for axis in _AXES
        if axis in descriptor.free_axes and not (mean_image and axis in ("H", "W"))
    )
    length, margin = lengths(recipe, descriptor)
    wanted = (frames or length, *(size or recipe.data.size))
    margins = (margin, recipe.output.margin_size, recipe.output.margin_size)
    layers = recipe.network.specs(len(checkpoint.mean))[: descriptor.depth]
    smallest = [
        least if axis in free else fixed
        for axis, least, fixed in zip(_AXES, min_size(layers, trained), trained, strict=True)
    ]
    graph = []
    for axis, name in enumerate(_AXES):
        needed = wanted[axis] + 2 * margins[axis]
        if name not in free and needed != trained[axis]:
            if (frames, size)[min(axis, 1)] is not None:
                raise InputError(
                    f"{folder}: its network is fixed to {AXES[axis]} "
                    f"{trained[axis] - needed + wanted[axis]}; got {wanted[axis]}. "
                    "Leave the option out, or train again at that size"
                )
            needed = trained[axis]
        if needed < smallest[axis]:
            raise InputError(
                f"{folder}: its network needs at least {AXES[axis]} {smallest[axis]}; got "
                f"{needed}. Use a larger size"
            )
        graph.append(needed)
    units = top_units(layers, trained)
    free_axes: tuple[Axis, ...] = () if static else ("N", *free)
    with named_faults(str(folder)):
        least = Size(frames=smallest[0], height=smallest[1], width=smallest[2])
        graph_size = Size(frames=graph[0], height=graph[1], width=graph[2])
    means = tuple(float(mean) for mean in checkpoint.mean.reshape(len(checkpoint.mean), -1).mean(1))
    spot, equalizer = None, None
    langevin = recipe.langevin
    if observed is not None and langevin.first_noise != "white":
        spot = observed.spot_pixels()
        fitted = observed.spot(langevin.first_noise, langevin.noise_cells).equalizer
        equalizer = None if fitted is None else EqualizerTaps.of(fitted)
    with named_faults(str(folder)):  # before the export, which takes a while
        described = Metadata(
            recipe=recipe.name,
            reference_std=langevin.reference_std,
            step_size=langevin.step_size,
            noise_scale=langevin.noise_scale,
            noise_end=langevin.noise_end,
            n_steps=langevin.n_steps,
            init_std=langevin.init_std,
            first_noise=langevin.first_noise,
            spot=None if spot is None else pack_spot(spot),
            spot_shape=None if spot is None else spot.shape[:4],
            equalizer=equalizer,
            noise_cells=langevin.noise_cells,
            pixel_mean=means,
            mean_image=pack_mean_image(checkpoint.mean) if mean_image else None,
            mean_per_frame=checkpoint.mean.ndim == 4,
            pixel_scale=checkpoint.scale,
            size=Size(
                frames=graph[0] - 2 * margins[0],
                height=graph[1] - 2 * margins[1],
                width=graph[2] - 2 * margins[2],
            ),
            margin_frames=margin,
            margin_size=recipe.output.margin_size,
            fps=checkpoint.fps,
            free_axes=free_axes,
            graph_size=graph_size,
            min_size=graph_size if static else least,
            stride=units.stride,
            receptive_field=units.receptive_field,
            padding=units.padding,
            layers=conv_layers(descriptor),
            clips=checkpoint.clips,
            precision=precision,
            opset=opset,
            lowering=lowering,
            versions=checkpoint.versions | _versions(),
            parity=(),
            scales=recipe.scales,
        )
    _refuse_larger(folder, described, descriptor)
    made: list[Metadata] = []

    def metadata(parity: tuple[Parity, ...], used: str, digest: str) -> Metadata:
        found = {"parity": parity, "lowering": used, "graph_sha256": digest}
        made.append(described.model_copy(update=found))
        return made[0]

    coarser = None
    if checkpoint.coarser is not None:
        check_scales(recipe.scales, wanted[1:], "--size")
        with tempfile.TemporaryDirectory(prefix="stg-export-") as temporary:
            inner = Path(temporary) / f"{path.stem}-{recipe.scales - 1}.onnx"
            _export_scale(
                folder,
                energy_of(checkpoint.coarser, folder / CHECKPOINT),
                checkpoint.coarser,
                None if observed is None else observed.halved(recipe.pixels),
                inner,
                frames=frames,
                size=(wanted[1] // FACTOR, wanted[2] // FACTOR),
                static=static,
                overwrite=False,
                precision=precision,
                opset=opset,
                lowering=lowering,
            )
            coarser = inner.read_bytes()
    export_energy_grad(
        energy,
        path,
        example_shape=(1, len(means), *graph),
        free_axes=free_axes,
        min_size=[1 if name == "N" else smallest[_AXES.index(name)] for name in free_axes],
        precision=precision,
        opset=opset,
        lowering=lowering,
        metadata=metadata,
        gradient_scale=recipe.langevin.reference_std**2,
        coarser=coarser,
        unit_weights=bool(free_axes),
        overwrite=overwrite,
    )
    return made[0]


def _refuse_larger(folder: Path, metadata: Metadata, descriptor: Network) -> None:
    """Refuse an export whose check cannot have the memory, with the least that it takes.

    In float64 PyTorch's convolution unfolds its input: a value for every place of the kernel and
    every response. Of exemplars the gradient holds what is compared, and its sums over windows.

    Raises:
        InputError: it does not fit.
    """
    graph, channels = metadata.graph_size, metadata.channels
    extent: Sequence[int] = (graph.frames, graph.height, graph.width)
    values, unfolded = 3 * channels * math.prod(extent), 0  # input, gradient and its float32
    layers = metadata.layers
    if isinstance(descriptor, Exemplars):
        values, layers = values + descriptor.compared(graph.frames), ()
    for layer in layers:
        sides = zip(extent, layer.kernel, layer.stride, layer.padding, strict=True)
        extent = [(size + 2 * p - k) // s + 1 for size, k, s, p in sides]
        unfolded = max(unfolded, channels * math.prod((*layer.kernel, *extent)))
        values += layer.filters * math.prod(extent)
        channels = layer.filters
    refuse_least(
        resident_memory() + 8 * (values + unfolded),
        f"{folder}: holding a model of {graph} against float64 autograd",
        "; export at a smaller --frames or --size (a file whose sizes are free makes larger videos "
        "all the same)",
    )


def conv_layers(descriptor: Network) -> tuple[ConvLayer, ...]:
    """The layers in use, for the metadata.

    Of exemplars, the one that compares them with a video: each is a filter of the frame's size.
    """
    if isinstance(descriptor, Exemplars):
        frames, (_, _, height, width) = descriptor.spec.frames, descriptor.clips.shape
        compared = ConvLayer(
            filters=len(descriptor.never),
            kernel=(frames, height, width),
            stride=(1, 1, 1),
            padding=(frames - 1, 0, 0),
        )
        return (compared,)

    def triple(values: Sequence[int | str]) -> tuple[int, int, int]:
        t, h, w = (int(value) for value in values)
        return t, h, w

    return tuple(
        ConvLayer(
            filters=conv.out_channels,
            kernel=triple(conv.kernel_size),
            stride=triple(conv.stride),
            padding=triple(conv.padding),
        )
        for conv in list(descriptor.convs)[: descriptor.depth]
        if isinstance(conv, nn.Conv3d)
    )


def _versions() -> dict[str, str]:
    """Versions of the tools that translated and checked the file."""
    found = {name: importlib.metadata.version(name) for name in ("onnx", "onnxscript")}
    onnxruntime = require_onnxruntime()  # from one of two distributions
    return found | {"onnxruntime": str(onnxruntime.__version__)}
