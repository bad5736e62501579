"""A training run and its folder: start, resume, learn, leave something to look at.

RUN/recipe.toml              the resolved recipe
RUN/observed.npy             the prepared clips, uint8, N x T x H x W x 3
RUN/checkpoint.safetensors   the newest state
RUN/metrics.jsonl            one line per update
RUN/chains/*.png             contact sheets of the chains as they learn
RUN/chains.mp4               clips and chains side by side, newest

and, of a finished run,

RUN/synthesized.npy          new videos from fresh noise, uint8, N x T x H x W x 3
RUN/path.npy                 frames of the first one on its way from noise
RUN/measures.json            how close they are to the clips, and whether they are new
RUN/report.html              all of it, to look at

and of clips with hidden pixels what `stg_train.incomplete` says. While a program works in it,
RUN/lock says which; see `stg_runtime.lock`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stg_runtime.contact_sheet import contact_sheet, save_image
from stg_runtime.errors import DivergenceError, InputError
from stg_runtime.files import (
    TEMPORARY_PREFIX,
    atomic_files,
    atomic_save_array,
    atomic_write_text,
    remove_leftovers,
    write_failed,
)
from stg_runtime.interrupts import signals_wait
from stg_runtime.lock import LOCK, FolderLock
from stg_runtime.measures import Comparison, compare
from stg_runtime.memory import give_back
from stg_runtime.record import MEASURES, PATH, REPORT, SYNTHESIZED, Record
from stg_runtime.report import read_run, write_report
from stg_runtime.threads import usable_threads
from stg_runtime.video import count_clips, load_array, tile, to_pixels
from stg_runtime.video_write import write_video
from stg_train.checkpoint import (
    Checkpoint,
    checkpoint_bytes,
    load_parameters,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from stg_train.descriptor import Energy, Network
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
from stg_train.memory import refuse_larger
from stg_train.observed import Observed, read_observed
from stg_train.parallel import ALONE, World
from stg_train.recipe import Recipe, load_recipe
from stg_train.sample import sample
from stg_train.select import keep_best, sample_score, take_best

CHECKPOINT = "checkpoint.safetensors"
OBSERVED = "observed.npy"
METRICS = "metrics.jsonl"
RECIPE = "recipe.toml"

FINISHED = (MEASURES, SYNTHESIZED, PATH, REPORT)
"""What `Run.finish` writes: of the parameters at the end, so learning on removes it."""

_START = (RECIPE, MASK, TRUTH, OBSERVED, CHECKPOINT)
"""What a run begins with, where it has a mask, a truth; without the checkpoint it is none."""

SAMPLES = 2  # videos made at the end

Report = Callable[[Metrics], None]

_log = logging.getLogger(__name__)  # warnings reach stderr without any set-up


def versions() -> dict[str, str]:
    """Versions that a checkpoint and an exported model record."""
    return {name: importlib.metadata.version(name) for name in ("stg", "torch", "numpy")}


def resolve(recipe: Recipe, world: World = ALONE) -> Recipe:
    """Replace "auto" and None by what they mean on this machine, for this process."""
    device = choose_device(recipe.device, world)
    return recipe.model_copy(
        update={
            "device": str(device),
            "precision": choose_precision(recipe.precision, device),
            "threads": recipe.threads or usable_threads(),
        }
    )


class Run:
    """A run's folder with the learner that works in it. Make one with `start` or `resume`.

    No other process can work in the folder until `close`, or until nothing refers to it any more.
    """

    def __init__(self, folder: Path, learner: Learner, lock: FolderLock | None = None) -> None:
        self.folder = folder
        self.learner = learner
        self._lock = lock

    def close(self) -> None:
        """Let other processes work in the folder."""
        if self._lock is not None:
            self._lock.release()

    @classmethod
    def start(
        cls,
        folder: Path,
        recipe: Recipe,
        *,
        overwrite: bool = False,
        max_memory: str | None = None,
        world: World = ALONE,
        tell: Callable[[str], None] = lambda _: None,
    ) -> Run:
        """Prepare the clips and a fresh folder.

        Args:
            folder: of the run; of several processes, one that all of them see.
            recipe: of the run.
            overwrite: an earlier run may be replaced.
            max_memory: of this process, "2G"; None for most of what is free.
            world: the processes that share the run; the first prepares, the others wait for it.
            tell: told what takes long, once the input is found to be right.

        Raises:
            InputError: a clip that cannot be used, a folder that is not empty, or one that another
                process works in; more memory is needed than there is.
        """
        recipe = resolve(recipe, world)
        torch.set_num_threads(recipe.threads or 1)
        prepared = world.on_first(
            lambda: cls._prepare(folder, recipe, overwrite, max_memory, world, tell)
        )
        if prepared is not None:
            return cls(folder, *prepared)
        checkpoint = read_checkpoint(folder / CHECKPOINT)
        return cls(folder, Learner(recipe, read_run_clips(folder, checkpoint), world))

    @staticmethod
    def _prepare(
        folder: Path,
        recipe: Recipe,
        overwrite: bool,
        max_memory: str | None,
        world: World,
        tell: Callable[[str], None],
    ) -> tuple[Learner, FolderLock]:
        """The learner of a fresh run, its clips and first checkpoint written, its folder locked."""
        lock: FolderLock | None = None
        refuse_folder(folder, overwrite)
        clips = sum(count_clips(Path(video)) for video in recipe.data.videos)
        clips *= recipe.data.windows or 1
        refuse_larger(recipe, clips, max_memory, processes=world.size)
        # Everything that can be wrong with the input is found before a file appears or changes.
        made = [item for item in (folder, *folder.parents) if not item.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(folder, f"-o {folder}")
            refuse_folder(folder, overwrite)  # now that nobody else can make it one
            remove_leftovers(folder)
            # Only when all of the new run is on the disk does it take the old one's place.
            with atomic_files(folder, _START) as hidden:
                truth = None
                with hidden[OBSERVED].open("w+b") as file:
                    if recipe.data.mask is None:
                        observed = read_observed(recipe.data, recipe.pixels, file)
                    else:
                        observed, truth = read_incomplete(recipe.data, recipe.pixels, recipe.seed)
                        np.save(file, observed.pixels)
                        tell("filling the hidden pixels for a start ...")
                learner = Learner(recipe, observed, world)
                give_back()
                for name, array in ((MASK, observed.observed_mask), (TRUTH, truth)):
                    if array is not None:
                        np.save(hidden[name], array)
                hidden[RECIPE].write_text(recipe.to_toml(), encoding="utf-8")
                chains = [scale.first_chains() for scale in learner.scales()]
                state = checkpoint_bytes(learner, chains, versions())
                hidden[CHECKPOINT].write_bytes(state)
            with signals_wait():
                for item in _outdated(folder):
                    item.unlink()
                shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        except BaseException as error:
            if lock is not None:
                lock.release()
            _remove_empty(made)
            if isinstance(error, OSError):
                reason = write_failed(f"-o {folder}", error)
                raise InputError(str(reason)) from None
            raise
        return learner, lock

    @classmethod
    def resume(
        cls,
        folder: Path,
        *,
        updates: int | None = None,
        device: str | None = None,
        max_memory: str | None = None,
        world: World = ALONE,
    ) -> Run:
        """Continue from the folder's checkpoint; on the CPU with as many processes, bit for bit.

        Args:
            folder: of the run.
            updates: a new total, to learn longer; the fall of the learning rate moves with it.
            device: another device.
            max_memory: see `start`.
            world: the processes that share the run; their number may have changed.

        Raises:
            InputError: not a run, its files do not belong together, or another process works in it.
        """
        if not (folder / CHECKPOINT).is_file():
            read_checkpoint(folder / CHECKPOINT)  # says what is wrong
        lock = world.on_first(lambda: _lock(folder))
        try:
            learner = cls._restored(folder, updates, device, max_memory, world)
            return cls(folder, learner, lock)
        except BaseException:
            if lock is not None:
                lock.release()
            raise

    @staticmethod
    def _restored(
        folder: Path,
        updates: int | None,
        device: str | None,
        max_memory: str | None,
        world: World,
    ) -> Learner:
        """The learner of a run's folder, where its checkpoint was taken."""
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
        if device is not None or world.size > 1:
            chosen = choose_device(device or recipe.device, world)
            recipe = recipe.model_copy(update={"device": str(chosen)})
        else:
            choose_device(recipe.device)
        clips = len(checkpoint.clips)
        refuse_larger(recipe, clips, max_memory, processes=world.size, started=True)
        torch.set_num_threads(recipe.threads or usable_threads())
        learner = Learner(recipe, read_run_clips(folder, checkpoint), world)
        restore(learner, checkpoint, folder / CHECKPOINT)
        return learner

    def save(self) -> None:
        """Write a checkpoint."""
        # What an update leaves in the heap is in small pieces, and a checkpoint needs large ones.
        give_back()
        save_checkpoint(self.folder / CHECKPOINT, self.learner, versions())

    def learn(self, report: Report | None = None, stop: Callable[[], bool] = lambda: False) -> bool:
        """Update until the recipe's number of updates; checkpoints and pictures on the way.

        Args:
            report: called with the figures of each update.
            stop: asked after each update; True writes a checkpoint and leaves. (An exception in
                the middle of an update would leave random states that no longer fit it.)

        Returns:
            Whether learning is done.

        Raises:
            DivergenceError: see `Learner.update`; the last checkpoint stays as it is. Where fresh
                samples were measured (`learning.select_every`), learning ends there instead, with
                the parameters whose samples were best.
        """
        recipe, learner = self.learner.recipe, self.learner
        world = learner.world
        if world.first:
            # What a stop left of updates after the checkpoint is made again.
            remove_leftovers(self.folder)
            _truncate_metrics(self.folder / METRICS, learner.update_count)
            recipe.save(self.folder / RECIPE)
            if learner.update_count < recipe.learning.updates:
                _remove_finished(self.folder)
        board = _tensorboard(self.folder) if world.first else None
        total, output = recipe.learning.updates, recipe.output
        log_path = self.folder / METRICS if world.first else Path(os.devnull)
        try:
            with log_path.open("a", encoding="utf-8") as log:
                while learner.update_count < total:
                    try:
                        metrics = self._select(learner.update())
                    except DivergenceError as error:
                        if learner.best is None or world.size > 1:  # all would have to agree
                            raise
                        self._end_early(error)
                        return True
                    log.write(json.dumps(asdict(metrics)) + "\n")
                    log.flush()
                    if board is not None:
                        for name, value in asdict(metrics).items():
                            if value is not None:
                                board.add_scalar(name, value, metrics.update)
                    if report is not None and world.first:
                        report(metrics)
                    made = learner.update_count
                    leaving = made == total or world.any(stop())
                    # Before the checkpoint: a kill between them makes the update, and it, again.
                    if world.first and (made == total or made % output.sheet_every == 0):
                        self.picture()
                    if leaving or made % output.checkpoint_every == 0:
                        self.save()
                    if leaving:
                        break
        except OSError as error:
            raise write_failed(error.filename or log_path, error) from None
        finally:
            if board is not None:
                board.close()
        return learner.update_count >= total

    def _end_early(self, error: DivergenceError) -> None:
        """Make the best parameters those of a finished run; its recipe says how long it learned."""
        learner = self.learner
        _log.warning("warning: learning ends early: %s", error)
        take_best(learner)
        for scale in learner.scales():
            made = {"updates": learner.update_count}
            learning = scale.recipe.learning.model_copy(update=made)
            scale.recipe = scale.recipe.model_copy(update={"learning": learning})
        self.save()
        learner.recipe.save(self.folder / RECIPE)
        if len(learner.windows):  # none yet, where the first update after a resume ended it
            self.picture()

    def _select(self, metrics: Metrics) -> Metrics:
        """Measure fresh samples where it is their turn; at the end, take the best parameters."""
        learner = self.learner
        learning, made = learner.recipe.learning, learner.update_count
        if learning.select_every is None or not learner.world.first:
            return metrics  # the other processes' parameters are not written
        last = made == learning.updates
        if last or made % learning.select_every == 0:
            found = sample_score(learner)
            if found is not None:
                keep_best(learner, found)
                metrics = replace(metrics, score=found if math.isfinite(found) else None)
        if last:
            take_best(learner)
        return metrics

    def finish(self) -> Record:
        """Synthesize from fresh noise, measure what comes, and write the report.

        The samples are those of `sample`, in both regimes, with a seed that follows from the
        recipe's. Each file appears whole; the report comes last.

        Raises:
            DivergenceError: a sample is not finite; nothing is written.
            StgError: a file could not be written.
        """
        learner, observed = self.learner, self.learner.observed
        _remove_finished(self.folder)
        seed = learner.recipe.seed + 1
        samples = sample(learner, count=SAMPLES, seed=seed)
        for name, array in ((SYNTHESIZED, samples.videos), (PATH, samples.path)):
            atomic_save_array(self.folder / name, array)
        measures: Comparison | None = None
        why_none = ""
        give_back()
        try:
            measures = compare(list(observed.pixels), list(samples.videos))
        except InputError as error:  # a clip of a few frames or pixels
            why_none = str(error)
        record = Record(
            update=learner.update_count,
            seed=seed,
            n_steps=learner.recipe.langevin.n_steps,
            fps=observed.fps,
            path_steps=samples.path_steps,
            measures=measures,
            why_none=why_none,
            versions=versions(),
        )
        record.save(self.folder / MEASURES)
        write_report(self.folder / REPORT, read_run(self.folder))
        return record

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

        learner = self.learner
        windows, chains = pixels(learner.windows[:4]), pixels(learner.shown_chains()[:4])
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


def refuse_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that a new run must not be made in.

    Raises:
        InputError: not a folder, one of other files, or a run and `overwrite` is not set.
    """
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
            f"-o {folder}: already a run; continue it with --resume, or replace it with --overwrite"
        )
    if folder.is_dir():
        _refuse_fixed(folder)


def load_energy(folder: Path) -> tuple[Energy, Checkpoint]:
    """The learned energy of a run, on the CPU in float32, with its checkpoint.

    Raises:
        InputError: not a run of stg-train.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder that stg-train -o wrote")
    checkpoint = read_checkpoint(folder / CHECKPOINT)
    return energy_of(checkpoint, folder / CHECKPOINT), checkpoint


def energy_of(checkpoint: Checkpoint, path: Path) -> Energy:
    """The learned energy of a checkpoint, or of a coarser scale of it; see `load_energy`."""
    energy = build_energy(checkpoint.recipe, len(checkpoint.mean), len(checkpoint.clips))
    load_parameters(energy, checkpoint, path)
    descriptor = energy.descriptor
    assert isinstance(descriptor, Network)
    # The layers that the last update made learned with; one about to be added is untrained.
    descriptor.depth = depth_at(checkpoint.recipe, max(checkpoint.update - 1, 0))
    return energy.eval()


def read_run_clips(folder: Path, checkpoint: Checkpoint) -> Observed:
    """The prepared clips of a run.

    Raises:
        InputError: they are missing, damaged or not those of the checkpoint.
    """
    path = folder / OBSERVED
    pixels = load_array(path)
    if pixels.dtype != np.uint8 or pixels.ndim != 5:
        raise InputError(
            f"{path}: {pixels.dtype} of shape {pixels.shape}; a run's clips are uint8 of "
            "N x T x H x W x C"
        )
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
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            made = json.loads(line)["update"]
            if made > update:
                break
        except (ValueError, TypeError, LookupError, RecursionError):
            continue  # a kill can cut the last line short
        kept.append(line + "\n")
    atomic_write_text(path, "".join(kept))


def _is_ours(name: str) -> bool:
    """Does a run leave a file or folder of this name, or a killed one such a temporary?"""
    names = (
        LOCK,
        CHECKPOINT,
        METRICS,
        OBSERVED,
        RECIPE,
        "chains",
        "chains.mp4",
        "tensorboard",
        *LEFT,
    )
    return name in names + FINISHED or name.startswith(TEMPORARY_PREFIX)


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


def _outdated(folder: Path) -> list[Path]:
    """What an earlier run left besides `_START`."""
    names = {METRICS, "chains.mp4", *LEFT, *FINISHED}.difference(_START)
    found = [*(folder / name for name in sorted(names)), *folder.glob("chains/update-*.png")]
    return [item for item in found if item.exists() or item.is_symlink()]


def _refuse_fixed(folder: Path) -> None:
    """Refuse to replace a run some of whose files could not be removed."""
    old = [*(folder / name for name in _START if (folder / name).exists()), *_outdated(folder)]
    for item in old:
        if item.is_dir() and not item.is_symlink():
            raise InputError(f"-o {folder}: {item} is a folder, of no run; name another")
        if not os.access(item.parent, os.W_OK | os.X_OK):
            raise InputError(
                f"-o {folder}: {item} cannot be replaced, its folder is not writable; name another"
            )


def _remove_empty(made: Sequence[Path]) -> None:
    """Take away the folders that a start made, innermost first, when nothing came of it."""
    for item in made:
        with suppress(OSError):
            item.rmdir()


def _lock(folder: Path) -> FolderLock:
    try:
        return FolderLock(folder)
    except OSError as error:
        raise InputError(str(write_failed(folder, error))) from None


def _remove_finished(folder: Path) -> None:
    for name in FINISHED:
        (folder / name).unlink(missing_ok=True)


def _tensorboard(folder: Path) -> Any:
    """A TensorBoard writer when tensorboard is installed, else None."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))
