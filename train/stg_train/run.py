"""A training run and its folder: start, resume, learn, leave something to look at.

RUN/recipe.toml              the resolved recipe
RUN/observed.npy             the prepared clips, uint8, N x T x H x W x 3
RUN/checkpoint.safetensors   the newest state
RUN/metrics.jsonl            one line per update
RUN/chains/*.png             contact sheets of the chains as they learn
RUN/chains.mp4               clips and chains side by side, newest

and of clips with hidden pixels what `stg_train.incomplete` says.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stg_runtime.contact_sheet import contact_sheet, save_image
from stg_runtime.errors import InputError
from stg_runtime.files import (
    TEMPORARY_PREFIX,
    atomic_path,
    atomic_write_text,
    remove_leftovers,
)
from stg_runtime.threads import usable_threads
from stg_runtime.video import tile, to_pixels
from stg_runtime.video_write import write_video
from stg_train.checkpoint import (
    Checkpoint,
    load_parameters,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from stg_train.descriptor import Descriptor, Energy
from stg_train.incomplete import (
    LEFT,
    MASK,
    TRUTH,
    Recovered,
    finish,
    read_incomplete,
    read_run_mask,
)
from stg_train.learn import (
    Learner,
    Metrics,
    build_energy,
    choose_device,
    choose_precision,
    depth_at,
)
from stg_train.observed import Observed, read_observed
from stg_train.recipe import Recipe, load_recipe

CHECKPOINT = "checkpoint.safetensors"
OBSERVED = "observed.npy"
METRICS = "metrics.jsonl"
RECIPE = "recipe.toml"

Report = Callable[[Metrics], None]


def versions() -> dict[str, str]:
    """Versions that a checkpoint and an exported model record."""
    return {name: importlib.metadata.version(name) for name in ("stg", "torch", "numpy")}


def resolve(recipe: Recipe) -> Recipe:
    """Replace "auto" and None by what they mean on this machine."""
    device = choose_device(recipe.device)
    return recipe.model_copy(
        update={
            "device": str(device),
            "precision": choose_precision(recipe.precision, device),
            "threads": recipe.threads or usable_threads(),
        }
    )


class Run:
    """A run's folder with the learner that works in it. Make one with `start` or `resume`."""

    def __init__(self, folder: Path, learner: Learner) -> None:
        self.folder = folder
        self.learner = learner

    @classmethod
    def start(cls, folder: Path, recipe: Recipe, *, overwrite: bool = False) -> Run:
        """Prepare the clips and a fresh folder.

        Raises:
            InputError: a clip that cannot be used, or a folder that is not empty.
        """
        recipe = resolve(recipe)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"-o {folder}: exists and is not a folder")
        if folder.is_dir():
            foreign = [item.name for item in folder.iterdir() if not _is_ours(item.name)]
            if foreign:
                raise InputError(
                    f"-o {folder}: not a run of stg-train (it holds {foreign[0]}); name another"
                )
            # Without a checkpoint a start was cut off, and there is nothing to lose.
            if (folder / CHECKPOINT).exists() and not overwrite:
                raise InputError(
                    f"-o {folder}: already a run; continue it with --resume, or replace it with "
                    "--overwrite"
                )
        torch.set_num_threads(recipe.threads or 1)
        # Everything that can be wrong with the input is found before the folder is touched.
        if recipe.data.mask is None:
            observed, truth = read_observed(recipe.data, recipe.pixels), None
        else:
            observed, truth = read_incomplete(recipe.data, recipe.pixels, recipe.seed)
        learner = Learner(recipe, observed)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _clear(folder)
            recipe.save(folder / RECIPE)
            with atomic_path(folder / OBSERVED) as temporary, temporary.open("wb") as file:
                np.save(file, observed.pixels)
            for name, array in ((MASK, observed.observed_mask), (TRUTH, truth)):
                if array is not None:
                    with atomic_path(folder / name) as temporary, temporary.open("wb") as file:
                        np.save(file, array)
            save_checkpoint(folder / CHECKPOINT, learner, versions())
        except OSError as error:
            raise InputError(f"-o {folder}: cannot be written ({error})") from None
        return cls(folder, learner)

    @classmethod
    def resume(cls, folder: Path, *, updates: int | None = None, device: str | None = None) -> Run:
        """Continue from the folder's checkpoint; on the CPU, bit for bit.

        Args:
            folder: of the run.
            updates: a new total, to learn longer; the fall of the learning rate moves with it.
            device: another device.

        Raises:
            InputError: not a run, or its files do not belong together.
        """
        checkpoint = read_checkpoint(folder / CHECKPOINT)
        recipe = checkpoint.recipe
        _refuse_edited(folder / RECIPE, recipe)
        if updates is not None and updates < checkpoint.update:
            raise InputError(
                f"--updates {updates}: {folder} has made {checkpoint.update} already; give more"
            )
        if updates is not None:
            learning = recipe.learning.model_copy(update={"updates": updates})
            recipe = recipe.model_copy(update={"learning": learning})
        if device is not None:
            recipe = recipe.model_copy(update={"device": str(choose_device(device))})
        else:
            choose_device(recipe.device)
        torch.set_num_threads(recipe.threads or usable_threads())
        learner = Learner(recipe, _read_observed(folder / OBSERVED, checkpoint))
        restore(learner, checkpoint, folder / CHECKPOINT)
        return cls(folder, learner)

    def save(self) -> None:
        """Write a checkpoint."""
        save_checkpoint(self.folder / CHECKPOINT, self.learner, versions())

    def learn(self, report: Report | None = None, stop: Callable[[], bool] = lambda: False) -> bool:
        """Update until the recipe's number of updates; checkpoints and pictures on the way.

        Args:
            report: called with the figures of each update.
            stop: asked after each update; True writes a checkpoint and leaves. (An exception in
                the middle of an update would leave random states that no longer fit it.)

        Returns:
            Whether all updates were made.

        Raises:
            DivergenceError: see `Learner.update`; the last checkpoint stays as it is.
        """
        recipe, learner = self.learner.recipe, self.learner
        # What a stop left of updates after the checkpoint is made again.
        remove_leftovers(self.folder)
        _truncate_metrics(self.folder / METRICS, learner.update_count)
        recipe.save(self.folder / RECIPE)
        board = _tensorboard(self.folder)
        total, output = recipe.learning.updates, recipe.output
        try:
            with (self.folder / METRICS).open("a", encoding="utf-8") as log:
                while learner.update_count < total:
                    metrics = learner.update()
                    log.write(json.dumps(asdict(metrics)) + "\n")
                    log.flush()
                    if board is not None:
                        for name, value in asdict(metrics).items():
                            board.add_scalar(name, value, metrics.update)
                    if report is not None:
                        report(metrics)
                    made = learner.update_count
                    leaving = made == total or stop()
                    if leaving or made % output.checkpoint_every == 0:
                        self.save()
                    if made == total or made % output.sheet_every == 0:
                        self.picture()
                    if leaving:
                        break
        finally:
            if board is not None:
                board.close()
        return learner.update_count >= total

    def finish_recovery(self) -> Recovered:
        """Write what was recovered of incomplete clips, once learning is done; see `finish`."""
        return finish(self.learner, self.folder)

    def picture(self) -> None:
        """Write a contact sheet and a short video of the observed windows and the chains."""
        observed = self.learner.observed

        def pixels(x: torch.Tensor) -> NDArray[np.uint8]:
            frames = [
                to_pixels(video.float().contiguous().numpy(), observed.mean, observed.scale)
                for video in x.cpu()
            ]
            return np.stack(frames)

        windows, chains = pixels(self.learner.windows[:4]), pixels(self.learner.chains[:4])
        rows = [(f"observed {i}", video) for i, video in enumerate(windows)]
        rows += [(f"chain {i}", video) for i, video in enumerate(chains)]
        sheets = self.folder / "chains"
        sheets.mkdir(exist_ok=True)
        sheet = contact_sheet(rows)
        save_image(sheets / f"update-{self.learner.update_count:06d}.png", sheet)
        stack = np.concatenate([windows, chains])
        write_video(
            self.folder / "chains.mp4",
            tile(stack, columns=max(len(windows), len(chains))) if len(stack) > 1 else stack[0],
            observed.fps,
            overwrite=True,
        )


def load_energy(folder: Path) -> tuple[Energy, Checkpoint]:
    """The learned energy of a run, on the CPU in float32, with its checkpoint.

    Raises:
        InputError: not a run of stg-train.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder that stg-train -o wrote")
    checkpoint = read_checkpoint(folder / CHECKPOINT)
    energy = build_energy(checkpoint.recipe, len(checkpoint.mean))
    load_parameters(energy, checkpoint, folder / CHECKPOINT)
    descriptor = energy.descriptor
    assert isinstance(descriptor, Descriptor)
    # The layers that the last update made learned with; one about to be added is untrained.
    descriptor.depth = depth_at(checkpoint.recipe, max(checkpoint.update - 1, 0))
    return energy.eval(), checkpoint


def _read_observed(path: Path, checkpoint: Checkpoint) -> Observed:
    try:
        pixels = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot read the run's prepared clips ({error})") from None
    mask = None
    if checkpoint.recipe.data.mask is not None:
        mask = read_run_mask(path.with_name(MASK), pixels)
    observed = Observed(pixels, checkpoint.fps, checkpoint.mean, checkpoint.scale, mask)
    if observed.hashes() != checkpoint.clips:
        raise InputError(f"{path}: not the clips that {CHECKPOINT} was trained on; they differ")
    return observed


def _truncate_metrics(path: Path, update: int) -> None:
    """Drop the lines of updates that the checkpoint does not hold; they will be made again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break  # a kill can cut the last line short
        if record["update"] > update:
            break
        kept.append(line + "\n")
    atomic_write_text(path, "".join(kept))


def _is_ours(name: str) -> bool:
    """Does a run leave a file or folder of this name, or a killed one such a temporary?"""
    names = (CHECKPOINT, METRICS, OBSERVED, RECIPE, "chains", "chains.mp4", "tensorboard", *LEFT)
    return name in names or name.startswith(TEMPORARY_PREFIX)


def _refuse_edited(path: Path, stored: Recipe) -> None:
    """A run's recipe is what it was learned with; an edit of the file would not be followed."""
    if not path.exists():
        return
    there, kept = (
        recipe.model_dump(exclude={"device": True, "learning": {"updates"}})
        for recipe in (load_recipe(str(path)), stored)
    )
    if there != kept:
        raise InputError(
            f"{path}: differs from what the run was started with; to learn with other settings "
            f"start another run: stg-train -o NEW --recipe {path}"
        )


def _clear(folder: Path) -> None:
    """Remove what an earlier run wrote; the checkpoint first, so that no mixture can be resumed."""
    for name in (CHECKPOINT, METRICS, OBSERVED, RECIPE, "chains.mp4", *LEFT):
        (folder / name).unlink(missing_ok=True)
    for sheet in folder.glob("chains/update-*.png"):
        sheet.unlink()
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    remove_leftovers(folder)


def _tensorboard(folder: Path) -> Any:
    """A TensorBoard writer when tensorboard is installed, else None."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))
