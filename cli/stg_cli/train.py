"""stg-train: learn the energy of a video."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stg_cli.common import (
    INTERRUPTED,
    Debug,
    Overwrite,
    Threads,
    parse_crop,
    parse_size,
    progress_bar,
    require,
    run_app,
)
from stg_cli.compare import print_table
from stg_runtime.errors import DivergenceError, InputError, StgError
from stg_runtime.interrupts import signals_wait

if TYPE_CHECKING:
    from stg_train.learn import Metrics
    from stg_train.recipe import Recipe
    from stg_train.run import Run

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def train(
    run: Annotated[Path, typer.Option("-o", "--output", metavar="RUN", help="Folder of the run.")],
    videos: Annotated[
        list[Path] | None,
        typer.Argument(metavar="VIDEO...", help="Video files, image folders or .npy."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Built-in recipe or TOML file [default: chosen from the clips].",
        ),
    ] = None,
    scale: Annotated[
        Literal["small", "paper"] | None,
        typer.Option(help="Size of the recipe: for two cores, or for a GPU [default: small]."),
    ] = None,
    regime: Annotated[
        Literal["short-run", "persistent", "rejuvenated", "multi-grid", "denoising"] | None,
        typer.Option(
            help="Restart chains from noise at each update, carry them on, or now and then, or "
            "learn coarse to fine, or learn to take noise out, without chains."
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Train at this size, pixels.")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames taken from each video.")] = None,
    start: Annotated[int | None, typer.Option(min=0, help="First frame taken.")] = None,
    crop: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="Cut this out first, source pixels.")
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|PATTERN",
            help="Hidden pixels, to be recovered: a video, image, image folder or .npy, white "
            "(nonzero) where hidden; or region:60, fixed-region:60, frames:0.5, salt-pepper:0.5; "
            "or cdnet, the labels of VIDEO where it is a scene of CDnet.",
        ),
    ] = None,
    mask_resize: Annotated[
        bool, typer.Option("--mask-resize", help="Bring a mask of another size or length to fit.")
    ] = False,
    mask_grow: Annotated[
        int | None,
        typer.Option(min=0, max=1000, help="Pixels by which a mask file hides more, all around."),
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=1, help="Frames of the random window an update sees.")
    ] = None,
    windows: Annotated[
        int | None,
        typer.Option(min=1, help="Cut so many training clips from each VIDEO, evenly spaced."),
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Clips that an update sees.")] = None,
    chains: Annotated[int | None, typer.Option(min=1, help="Chains that an update walks.")] = None,
    align: Annotated[
        bool | None,
        typer.Option("--align/--no-align", help="Bring the clips of an action into step first."),
    ] = None,
    allow_cuts: Annotated[
        bool, typer.Option("--allow-cuts", help="Learn from clips of several shots, too.")
    ] = False,
    updates: Annotated[int | None, typer.Option(min=1, help="Parameter updates in all.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="Of weights, noise and windows.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="auto|cpu|cuda[:i]", help="Where to train.")
    ] = None,
    precision: Annotated[
        Literal["auto", "fp32", "tf32", "bf16"] | None, typer.Option(help="Of the convolutions.")
    ] = None,
    compile_: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Compile the energy with torch.compile."),
    ] = None,
    threads: Threads = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            "--max-memory", metavar="2G", help="Of this process [default: most of what is free]."
        ),
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(min=1, help="Updates between checkpoints.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue RUN from its checkpoint.")
    ] = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Learn the energy of a video.

    Example: stg-train fire.mp4 -o runs/fire

    Continue after a stop: stg-train -o runs/fire --resume

    Several GPUs: torchrun --nproc-per-node 8 -m stg_cli.train fire.mp4 -o runs/fire --chains 8
    """
    overrides: dict[str, Any] = {
        "data.videos": [str(video) for video in videos] if videos else None,
        "data.size": parse_size(size),
        "data.frames": frames,
        "data.start": start,
        "data.crop": parse_crop(crop),
        "data.window": window,
        "data.windows": windows,
        "data.batch": batch,
        "data.align": align,
        "langevin.chains": chains,
        "data.allow_cuts": allow_cuts or None,
        "data.mask": mask,
        "data.mask_grow": mask_grow,
        "data.mask_resize": mask_resize or None,
        "learning.regime": regime,
        "learning.updates": updates,
        "output.checkpoint_every": checkpoint_every,
        "seed": seed,
        "device": device,
        "precision": precision,
        "compile": compile_,
        "threads": threads,
    }
    require("train", "torch", "safetensors", "tomli_w")
    # torch takes a second to import; --help and usage errors do not wait for it.
    with signals_wait():
        from stg_train.parallel import join
        from stg_train.recipe import builtin_recipes, load_recipe
        from stg_train.run import Run, refuse_folder

    if max_memory is not None:
        from stg_runtime.memory import parse_memory

        parse_memory(max_memory)
    world = join()
    if resume:
        if overwrite:
            raise InputError("--resume and --overwrite exclude each other")
        work = Run.resume(run, updates=updates, device=device, max_memory=max_memory, world=world)
        try:
            given = {key: value for key, value in overrides.items() if value is not None}
            name = recipe or work.learner.recipe.name
            if recipe is not None or (scale is not None and name in builtin_recipes()):
                # The command that started the run may be repeated with --resume; it must say the
                # same.
                whole = load_recipe(name, scale=scale, overrides=overrides)
                said = _flat(whole.model_dump(exclude={"description": True}))
                if recipe is None:  # a length that was fitted to the clips
                    said = {
                        k: v for k, v in said.items() if k not in ("data.frames", "data.window")
                    }
                given = {**said, **given}
            _refuse_changes(run, work.learner.recipe, given)
        except BaseException:
            work.close()
            raise
        if work.learner.update_count >= work.learner.recipe.learning.updates:
            print(
                f"{run} has made its {work.learner.update_count} updates already; "
                "give --updates to learn longer",
                file=sys.stderr,
            )
    else:
        why = ""
        if recipe is None and videos:
            from stg_train.choose import choose

            # Before the choice, which measures: nobody is to wait for a refusal.
            world.on_first(lambda: refuse_folder(run, overwrite))
            names = [str(video) for video in videos]
            chosen = world.from_first(lambda: choose(names, scale, overrides))
            resolved = chosen.recipe
            why = f"recipe {resolved.name}: {chosen.why}; --recipe names another"
        else:
            resolved = load_recipe(recipe or "fc-s", scale=scale, overrides=overrides)
        if not resolved.data.videos:
            raise InputError("give at least one VIDEO (a file, an image folder or an .npy)")
        work = Run.start(
            run,
            resolved,
            overwrite=overwrite,
            max_memory=max_memory,
            world=world,
            tell=lambda text: print(text, file=sys.stderr),
        )
        if why and world.first:
            print(why, file=sys.stderr)
    try:
        _learn(work)
    finally:
        work.close()


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A recipe's tables as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _refuse_changes(run: Path, stored: Recipe, given: dict[str, Any]) -> None:
    """On --resume, an option that says something else than the run does is a mistake."""
    have = _flat(stored.model_dump())
    for key, value in given.items():
        # These may change, or were resolved from "auto" when the run was started.
        free = key in ("learning.updates", "device") or value in ("auto", None, ())
        want = list(value) if isinstance(value, tuple | list) else value
        kept = list(have[key]) if isinstance(have[key], tuple | list) else have[key]
        if not free and want != kept:
            raise InputError(
                f"{key} is {have[key]} in {run}, not {value}; --resume takes --updates and "
                "--device only, everything else stays as it was started"
            )


class _Stop:
    """Ctrl-C and SIGTERM: stop after the update under way; a second one stops at once."""

    def __init__(self) -> None:
        self.signal = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: object) -> None:
        if self.signal:
            raise SystemExit(128 + self.signal)
        self.signal = number
        print("stopping after this update (again to stop at once)", file=sys.stderr)

    def __call__(self) -> bool:
        return self.signal != 0


def _learn(work: Run) -> None:
    recipe = work.learner.recipe
    total, first = recipe.learning.updates, work.learner.update_count
    world = work.learner.world
    if not world.first:  # rank 0 speaks for all; an error of its own a process tells itself
        try:
            done = work.learn(stop=_Stop())
        except DivergenceError as error:
            raise SystemExit(error.exit_code) from None
        if done:
            world.any(False)  # rank 0 still synthesizes: a connection that ends early is its end
        raise SystemExit(0 if done else INTERRUPTED)
    together = f"{world.size} processes of " if world.size > 1 else ""
    print(
        f"{recipe.name}, {recipe.learning.regime}: {len(work.learner.observed.pixels)} clip(s) of "
        f"{recipe.data.frames}x{recipe.data.size[0]}x{recipe.data.size[1]}, {recipe.device}, "
        f"{recipe.precision}, {together}{recipe.threads} threads, seed {recipe.seed}",
        file=sys.stderr,
    )
    unlearned = [update for update in recipe.learning.growth if update >= total]
    if unlearned:
        layers = len(recipe.network.layers)
        print(
            f"warning: {layers - len(unlearned)} of {layers} layers are learned in {total} "
            f"updates; the next would be added at update {unlearned[0]} (learning.growth)",
            file=sys.stderr,
        )
    stop = _Stop()
    began = time.monotonic()
    with progress_bar() as bar:
        task = bar.add_task("updates", total=total, completed=first) if bar else None
        told = began

        def report(metrics: Metrics) -> None:
            nonlocal told
            if metrics.returned_to is not None:
                print(
                    f"update {metrics.update}: the chains lost the clips (response "
                    f"{metrics.response_synthesized:.3g} against {metrics.response_observed:.3g}); "
                    f"back to the parameters of update {metrics.returned_to}, learning more slowly",
                    file=sys.stderr,
                )
            now = time.monotonic()
            rate = (metrics.update - first) / max(now - began, 1e-9)
            residual = "" if metrics.residual is None else f"residual {metrics.residual:.3f}  "
            figures = residual + (
                f"E observed {metrics.energy_observed:.4g} synthesized "
                f"{metrics.energy_synthesized:.4g}  grad {metrics.grad_norm:.2g}  chain "
                f"{metrics.chain_mean:+.2f}±{metrics.chain_std:.2f}  {rate:.2f}/s"
            )
            if bar is not None and task is not None:
                bar.figures = figures
                bar.update(task, completed=metrics.update)
            elif now - told >= 10 or metrics.update in (first + 1, total):
                told = now
                left = (total - metrics.update) / rate
                print(
                    f"update {metrics.update}/{total}  {figures}  {left:.0f} s left",
                    file=sys.stderr,
                )

        try:
            done = work.learn(report, stop)
        except DivergenceError as error:
            raise DivergenceError(
                f"{error} in a copy of {work.folder}/recipe.toml and start another run with "
                f"--recipe; {work.folder} still holds its last good checkpoint"
            ) from None
    if not done:
        print(
            f"stopped at update {work.learner.update_count} of {total}; continue with "
            f"stg-train -o {work.folder} --resume",
            file=sys.stderr,
        )
        raise typer.Exit(128 + stop.signal if stop.signal else INTERRUPTED)
    seconds = time.monotonic() - began
    made, best = work.learner.update_count, work.learner.best
    if best is not None and best.update != made:
        print(f"kept: the parameters of update {best.update}, of the best samples", file=sys.stderr)
    if work.learner.recovery is not None:
        _recover(work)
    else:
        _finish(work)
    world.any(False)
    made_last = ("recovered.mp4", "report.html", "chains.mp4", "metrics.jsonl")
    look = next(name for name in made_last if (work.folder / name).exists())
    print(
        f"{work.folder}  ({made} updates, {seconds:.0f} s; look at "
        f"{work.folder / look}; next: stg-export {work.folder} -o MODEL.onnx)"
    )


def _finish(work: Run) -> None:
    """Samples, measures and report; the run is learned, whatever becomes of them."""
    from stg_runtime.measures import table

    print("synthesizing from fresh noise, measuring", file=sys.stderr)
    try:
        record = work.finish()
    except StgError as error:
        print(f"warning: no measures and no report: {error}", file=sys.stderr)
        return
    if record.measures is None:
        print(f"warning: no measures: {record.why_none}", file=sys.stderr)
        return
    print_table(table(record.measures, [f"new {i}" for i in range(len(record.measures.videos))]))


def _recover(work: Run) -> None:
    """Write the recovery and say how good it is, where that is known."""
    found = work.finish_recovery()
    error = ""
    if found.error is not None:
        error = (
            f"; mean absolute error over hidden pixels {found.error:.2f} of 255 grey levels, "
            f"first values {found.error_first:.2f}"
        )
    seams = [ratio for ratio in found.seams if ratio is not None]
    if seams:
        error += f"; seam {max(seams):.2f} of the gradient around it (1: invisible)"
    print(
        f"{work.folder / 'recovered.mp4'}  ({found.hidden:.1%} of the pixels recovered{error}; "
        f"the chain: {work.folder / 'recovered-sample.mp4'})"
    )


def main() -> None:
    """Entry point of stg-train."""
    try:
        run_app(app)
    except SystemExit as error:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise
        # One of several processes leaves out the interpreter's own end: it takes connections down,
        # and gloo's threads abort a process whose peer is gone already.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.code if isinstance(error.code, int) else int(error.code is not None))


if __name__ == "__main__":  # torchrun -m stg_cli.train
    main()
