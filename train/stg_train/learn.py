"""Analysis by synthesis: K Langevin steps, then one Adam step on g(synthesized) - g(observed).

Source: Xie, Zhu, Wu, CVPR 2017, Algorithm 1 (persistent chains, layer-wise growth); Nijkamp, Hill,
Zhu, Wu, "Learning Non-Convergent Non-Persistent Short-Run MCMC Toward Energy-Based Model", NeurIPS
2019 (chains restarted from noise at every update); Du, Mordatch, "Implicit Generation and Modeling
with Energy-Based Models", NeurIPS 2019 (chains restarted now and then); Gao, Lu, Zhou, Zhu, Wu,
"Learning Generative ConvNets via Multi-grid Modeling and Sampling", CVPR 2018 (several scales);
Vincent, "A Connection Between Score Matching and Denoising Autoencoders", 2011 (denoising).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stg_runtime.errors import DivergenceError, InputError
from stg_runtime.grids import refine, to_finer
from stg_runtime.memory import give_back
from stg_train.chains import ChainNoise, autocast, walk
from stg_train.denoiser import Denoiser, denoised, init_denoiser
from stg_train.descriptor import Descriptor, Energy, Network, fan_in, init_he, init_normal
from stg_train.exemplars import Exemplars
from stg_train.incomplete import Recovery
from stg_train.observed import Observed
from stg_train.parallel import ALONE, World
from stg_train.recipe import Recipe
from stg_train.spot import TorchSpot

_log = logging.getLogger(__name__)

# Updates that the running means of gradient norm and response go back over.
MEMORY = 20

# The guard against collapse. The responses of chains and clips track each other while learning goes
# well, within a tenth or so; a ratio beyond LOST has never come back by itself.
# Parameters are worth keeping when that ratio, and that of the clips' response to its running mean,
# is below HEALTHY: responses that rise fast end in a collapse also from there.
HEALTHY = 1.25
LOST = 3.0
KEEP_EVERY = 10  # updates
SLOWER = 0.7  # factor on the learning rate after each return to the kept parameters
MOST_RETURNS = 8

# Chains this many times larger than the observed clips' own size have left for good; the paper's
# own scaling overshoots to 14 times early in training and comes back.
EXPLODED = 50.0


@dataclass(frozen=True)
class Metrics:
    """Figures of one update.

    Attributes:
        update: number of parameter updates made. Of several scales, these are the finest's.
        layers: layers in use.
        energy_observed: mean E of the observed windows, per value of a video.
        energy_synthesized: mean E of the chains after their walk, per value.
        response_observed: mean g of the observed windows, per value.
        response_synthesized: mean g of the chains, per value.
        grad_norm: norm of the learning gradient over all parameters.
        chain_mean: mean of the chains, model units.
        chain_std: standard deviation of the chains, model units.
        chain_max: largest absolute value of the chains, model units.
        learning_rate: factor on the rates at this update.
        returned_to: the update whose parameters the guard went back to instead of this update's
            step, or None.
        score: of fresh samples after this update, see `stg_train.select`; None where none was made.
        residual: in denoising, the mean squared error per voxel of patches with their noise taken
            out, in units of that noise's variance; their noised patches are then what is called
            synthesized and chains above.
    """

    update: int
    layers: int
    energy_observed: float
    energy_synthesized: float
    response_observed: float
    response_synthesized: float
    grad_norm: float
    chain_mean: float
    chain_std: float
    chain_max: float
    learning_rate: float
    returned_to: int | None = None
    score: float | None = None
    residual: float | None = None


@dataclass(frozen=True)
class Kept:
    """Parameters that the guard can go back to, or that made the best samples.

    Attributes:
        update: number of updates they had.
        parameters: the energy's state.
        returns: how often the guard has gone back so far.
    """

    update: int
    parameters: dict[str, Tensor]
    returns: int


def build_network(recipe: Recipe, channels: int, clips: int = 1) -> Network:
    """The network of a recipe for so many clips, its weights as PyTorch leaves them."""
    if recipe.network.exemplars is not None:
        size = (clips, recipe.data.frames, *recipe.data.size)
        return Exemplars(recipe.network.exemplars.spec(), channels, size)
    layers = recipe.network.specs(channels)
    if recipe.network.form == "denoiser":
        places = recipe.data.size if recipe.pixels.mean == "image" else None
        return Denoiser(layers, channels, places)
    return Descriptor(layers, channels, (recipe.data.trained_frames, *recipe.data.trained_size))


def build_energy(recipe: Recipe, channels: int, clips: int = 1) -> Energy:
    """The untrained energy of a recipe, its weights drawn from the recipe's seed."""
    network = build_network(recipe, channels, clips)
    generator = torch.Generator().manual_seed(recipe.seed)
    if isinstance(network, Denoiser):
        init_denoiser(network, generator)
    elif isinstance(network, Descriptor) and recipe.network.init == "he":
        init_he(network, generator)
    elif isinstance(network, Descriptor):
        init_normal(network, recipe.network.init_std, generator)
    return Energy(network, recipe.langevin.reference_std)


def depth_at(recipe: Recipe, update: int) -> int:
    """Layers in use when `update` updates have been made."""
    growth = recipe.learning.growth
    if not growth:
        return len(recipe.network.specs())
    return 1 + sum(update >= grown for grown in growth)


def grown_at(recipe: Recipe, update: int) -> int:
    """The update at which the newest layer in use was added; 0 for the first."""
    return max((grown for grown in recipe.learning.growth if grown <= update), default=0)


def choose_device(name: str, world: World = ALONE) -> torch.device:
    """The device a recipe asks for; of several processes, each takes the GPU of its local rank.

    Raises:
        InputError: a GPU that is not there; never a silent fall back to the CPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and world.size > 1:
        device = torch.device("cuda", world.local_rank)
    if device.type == "cuda" and not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU-only build"
        raise InputError(
            f"--device {name}: PyTorch {torch.__version__} ({build}) finds no usable GPU here; "
            "install a CUDA build of PyTorch and a driver, or pass --device cpu"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"--device {name}: there are {torch.cuda.device_count()} GPUs here, counted from 0"
        )
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """Resolve precision "auto": bf16 where the device multiplies it natively.

    Raises:
        InputError: "tf32" on a processor.
    """
    if name == "tf32" and device.type != "cuda":
        raise InputError("--precision tf32: for GPUs only; choose fp32 or bf16, or leave it out")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = torch.cpu.get_capabilities()
    return "bf16" if native.get("avx512_bf16") or native.get("amx_bf16") else "fp32"


class Learner:
    """The state of a training run and its update.

    Args:
        recipe: with `device` and `precision` resolved.
        observed: the prepared clips.
    """

    def __init__(self, recipe: Recipe, observed: Observed, world: World = ALONE) -> None:
        self.recipe = recipe
        self.observed = observed
        self.world = world
        if recipe.langevin.chains < world.size:
            raise InputError(
                f"{world.size} processes share {recipe.langevin.chains} chain(s); give at least "
                f"one each (--chains {world.size}), or start fewer processes"
            )
        if recipe.learning.regime == "denoising" and world.size > 1:
            raise InputError("a run that denoises learns in one process; start it without torchrun")
        if observed.observed_mask is not None and world.size > 1:
            raise InputError("a run with --mask learns in one process; start it without torchrun")
        self.device = torch.device(recipe.device)
        channels = observed.pixels.shape[-1]
        # Channels-last suits bf16 convolutions on both processor and GPU, and TF32 ones on a GPU.
        self._layout = (
            torch.contiguous_format if recipe.precision == "fp32" else torch.channels_last_3d
        )
        if self.device.type == "cuda":
            # "fp32" means it: PyTorch would let convolutions use TF32 unasked.
            tf32 = recipe.precision == "tf32"
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        self.energy = build_energy(recipe, channels, len(observed.pixels)).to(self.device)
        if isinstance(self.descriptor, Exemplars):
            every = range(len(observed.pixels))
            self.descriptor.see(observed.windows(every, [0] * len(every), recipe.data.frames))
        if isinstance(self.descriptor, Denoiser) and self.descriptor.places is not None:
            self.descriptor.see_places(observed.variance())
        for parameter in self.energy.parameters():
            if parameter.ndim == 5:
                parameter.data = parameter.data.contiguous(memory_format=self._layout)
        # What the chains walk on. On a GPU "reduce-overhead" makes the gradient one CUDA graph.
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"
        self._walked: nn.Module = self.energy
        if recipe.compile:
            self._walked = cast(nn.Module, torch.compile(self.energy, mode=mode))
        self.optimizer = self._optimizer()
        self.update_count = 0
        self.norm_mean = 0.0  # running means; 0 before the first update
        self.response_mean = 0.0
        self.kept: Kept | None = None
        # The parameters with the best samples so far, and how good these are: `stg_train.select`.
        self.best: Kept | None = None
        self.best_score = math.inf
        self.returns = 0
        # Noise is drawn on the device; the choice of windows is the same on every device.
        self.numbers = world.share(recipe.langevin.chains)  # of this process's chains
        self.noise = ChainNoise(recipe.seed, self.numbers, self.device)
        self.choice = torch.Generator().manual_seed(recipe.seed)
        self.noise.begin(0)
        kind = recipe.langevin.first_noise
        self.spot = None if kind == "white" else observed.spot(kind, recipe.langevin.noise_cells)
        self._spot = None if self.spot is None else TorchSpot(self.spot, self.device)
        coarser = recipe.coarser()
        self.coarser: Learner | None = None
        if coarser is not None:
            with _named(coarser):
                self.coarser = Learner(coarser, observed.halved(recipe.pixels), world)
        self.chains = self._fresh_chains(channels, self.noise)
        self.windows = torch.empty(0)
        self.recovery = None if observed.observed_mask is None else Recovery(recipe, observed)

    @property
    def descriptor(self) -> Network:
        """The network being learned."""
        assert isinstance(self.energy.descriptor, Network)
        return self.energy.descriptor

    def scales(self) -> list[Learner]:
        """This learner and, in multi-grid learning, those of the coarser scales."""
        return [self, *(self.coarser.scales() if self.coarser is not None else [])]

    def _optimizer(self) -> torch.optim.Adam:
        learning = self.recipe.learning
        groups = []
        for conv in self.descriptor.convs:
            assert isinstance(conv, nn.Conv3d)
            scale = math.sqrt(2 / fan_in(conv)) if learning.rate == "fan-in" else 1.0
            groups.append({"params": [conv.weight], "base": learning.learning_rate * scale})
            if conv.bias is not None:
                groups.append({"params": [conv.bias], "base": learning.bias_rate})
        if isinstance(self.descriptor, Denoiser) and self.descriptor.places is not None:
            groups.append({"params": [self.descriptor.places], "base": learning.bias_rate})
        if isinstance(self.descriptor, Exemplars):
            groups.append({"params": [self.descriptor.looseness], "base": learning.learning_rate})
            rate = learning.learning_rate * self.descriptor.lag_scale
            groups.append({"params": [self.descriptor.lags], "base": rate})
            biases = [level.biases for level in self.descriptor.widths()]
            groups.append({"params": biases, "base": learning.bias_rate})
        for group in groups:
            group["lr"] = group["base"]
        return torch.optim.Adam(groups, betas=learning.betas)

    def _fresh_chains(
        self,
        channels: int,
        noise: ChainNoise,
        carried: Sequence[bool] = (),
        coarse: Tensor | None = None,
    ) -> Tensor:
        """Chains at their first noise; where `carried`, what the caller will write over.

        With a coarser scale, at where its chains lead: `coarse`, or its chains as they are.
        """
        shape = (
            noise.count,
            channels,
            self.recipe.data.trained_frames,
            *self.recipe.data.trained_size,
        )
        x = torch.empty(shape, device=self.device, memory_format=self._layout)
        if self.coarser is not None:
            coarse = self.coarser.chains if coarse is None else coarse
            return x.copy_(self._refined(noise, (shape[1], shape[2], shape[3], shape[4]), coarse))
        if self._spot is None:
            return noise.like(x).mul_(self.recipe.langevin.init_std)
        video = (shape[1], shape[2], shape[3], shape[4])
        size = self._spot.noise_size(video)
        for i, (row, drawn) in enumerate(zip(x, noise.each(size), strict=True)):
            if not (carried and carried[i]):
                row.copy_(self._spot.make(drawn, video))
        return x

    def _refined(
        self, noise: ChainNoise, video: tuple[int, int, int, int], coarse: Tensor
    ) -> Tensor:
        """The coarser chains at this scale, with the fine detail of spot noise, or none."""
        assert self.coarser is not None
        first = None
        if self.spot is not None:
            drawn = [n.cpu().numpy() for n in noise.each(self.spot.noise_size(video))]
            first = np.stack([self.spot.make(values, video) for values in drawn])
        return torch.from_numpy(refine(first, self.from_coarser(coarse)))

    def from_coarser(self, coarse: Tensor) -> NDArray[np.float32]:
        """Chains of the coarser scale, (N, C, T, H / 2, W / 2), in the units of this one."""
        assert self.coarser is not None
        there, here = self.coarser.observed, self.observed
        x = coarse.float().cpu().contiguous().numpy()
        return to_finer(x, there.mean, there.scale, here.mean, here.scale)

    def _restart(self) -> None:
        """Start chains from noise where the regime says so."""
        learning = self.recipe.learning
        if learning.regime == "persistent":
            return
        carried = [False] * self.noise.count
        if learning.regime == "rejuvenated":
            carried = [chance >= learning.restart for chance in self.noise.chances()]
        fresh = self._fresh_chains(self.chains.shape[1], self.noise, carried)
        for i, stays in enumerate(carried):  # an index of booleans would wait for a GPU
            if stays:
                fresh[i].copy_(self.chains[i])
        self.chains = fresh

    def _draw(self, step: int, x: Tensor) -> Tensor:
        return self.noise.like(x)

    def first_chains(self) -> Tensor:
        """What `all_chains` gives before the first update, without the other processes."""
        numbers = range(self.recipe.langevin.chains)
        noise = ChainNoise(self.recipe.seed, numbers, self.device)
        noise.begin(0)
        coarse = None if self.coarser is None else self.coarser.first_chains()
        return self._fresh_chains(self.chains.shape[1], noise, coarse=coarse)

    def all_chains(self) -> Tensor:
        """The chains of all processes in the order of their numbers; all must call it together."""
        if self.world.size == 1:
            return self.chains
        shape = (self.recipe.langevin.chains, *self.chains.shape[1:])
        chains = torch.zeros(shape, device=self.device)
        chains[self.numbers] = self.chains
        self.world.sum_([chains])
        return chains

    def _observed_windows(self) -> tuple[Tensor, int]:
        """This process's share of the update's windows, and how many there are in all."""
        data = self.recipe.data
        n_clips, n_frames = self.observed.pixels.shape[:2]
        clips = torch.randperm(n_clips, generator=self.choice)[: data.batch].tolist()
        last = n_frames - data.trained_frames
        if self.recovery is not None:
            return self._recovered_windows(clips, last), len(clips)
        starts = torch.randint(last + 1, (len(clips),), generator=self.choice).tolist()
        mine = self.world.share(len(clips))
        x = self.observed.windows(
            [clips[i] for i in mine], [starts[i] for i in mine], data.trained_frames
        )
        if data.window_size is not None:
            height, width = data.window_size
            tops, lefts = (
                torch.randint(whole - part + 1, (len(clips),), generator=self.choice).tolist()
                for whole, part in zip(data.size, data.window_size, strict=True)
            )
            x = torch.stack(
                [
                    video[..., tops[i] : tops[i] + height, lefts[i] : lefts[i] + width]
                    for video, i in zip(x, mine, strict=True)
                ]
            )
        return x.to(self.device, memory_format=self._layout), len(clips)

    def _recovered_windows(self, clips: list[int], last: int) -> Tensor:
        """Windows of incomplete clips, after a walk of their hidden pixels."""
        assert self.recovery is not None
        # Beyond both ends and brought back: windows at the ends are as likely as frames need.
        over = self.recovery.border if last else 0
        drawn = torch.randint(-over, last + over + 1, (len(clips),), generator=self.choice)
        starts = drawn.clamp(0, last).tolist()
        # Negative numbers: no chain of the run has this noise.
        noise = ChainNoise(self.recipe.seed, [-1 - i for i in range(len(clips))], self.device)
        noise.begin(self.update_count + 1)
        x = self.recovery.walk_windows(
            self.energy,
            clips,
            starts,
            self.recipe.data.trained_frames,
            lambda _step, like: noise.like(like),
        )
        return x.to(memory_format=self._layout)

    def rate_factor(self) -> float:
        """Factor on the learning rates at the coming update.

        1, then falling linearly, and less after each return of the guard.
        """
        learning = self.recipe.learning
        slower = SLOWER**self.returns
        begin = learning.decay_from * learning.updates
        if self.update_count < begin:
            return slower
        left = max(learning.updates - self.update_count, 0) / max(learning.updates - begin, 1)
        return slower * (learning.final_rate + (1 - learning.final_rate) * left)

    def update(self) -> Metrics:
        """Walk the chains, then move the parameters once.

        Raises:
            DivergenceError: a chain or an energy became non-finite or exploded, or every top
                response is zero; the parameters are those before this update.
        """
        if self.coarser is not None:
            with _named(self.coarser.recipe):
                found = self.coarser.update()
            if found.returned_to is not None:
                height, width = self.coarser.recipe.data.size
                _log.warning(
                    "warning: scale %dx%d lost the clips at update %d; back to update %d",
                    *(height, width, found.update, found.returned_to),
                )
        if self.recipe.learning.regime == "denoising":
            return self._denoise()
        recipe, langevin = self.recipe, self.recipe.langevin
        self.descriptor.depth = depth_at(recipe, self.update_count)
        self.noise.begin(self.update_count + 1)
        self._restart()
        self.energy.requires_grad_(False)
        # Before the walk: their copy to a GPU waits for what was enqueued.
        windows, n_windows = self._observed_windows()
        chains, energies = walk(
            self._walked,
            self.chains,
            n_steps=langevin.n_steps,
            step_size=langevin.step_size,
            noise_scale=langevin.noise_at,
            draw=self._draw,
            precision=recipe.precision,
        )
        self.energy.requires_grad_(True)
        if self.device.type == "cpu":
            # The walk leaves the heap in pieces that the larger gradient of learning cannot use.
            give_back()

        self.optimizer.zero_grad(set_to_none=True)
        with autocast(recipe.precision, self.device):
            response = self.descriptor(torch.cat([chains, windows]))
        # Values of all processes' videos: what each adds up to a mean over all of them.
        n_chain_values = langevin.chains * chains[0].numel()
        n_window_values = n_windows * chains[0].numel()
        synthesized = response[: len(chains)].sum() / n_chain_values
        observed = response[len(chains) :].sum() / n_window_values
        # Ascent on the log-likelihood: raise g where the data are, lower it where the chains are.
        torch.autograd.backward(synthesized - observed)
        gradients = [p.grad for p in self.descriptor.parameters() if p.grad is not None]
        self.world.sum_(gradients)
        means = torch.stack(
            [
                synthesized.detach().double(),
                observed.detach().double(),
                chains.sum(dtype=torch.float64) / n_chain_values,
                chains.square().sum(dtype=torch.float64) / n_chain_values,
                windows.square().sum(dtype=torch.float64) / n_window_values,
            ]
        )
        self.world.sum_([means])
        bad = (~torch.isfinite(energies)).any(1)
        steps_left = torch.arange(len(bad), 0, -1, device=self.device)  # K at the first step
        largest = torch.stack(
            [
                torch.nn.utils.get_total_norm(gradients).double(),
                chains.abs().max().double(),
                (bad * steps_left).max().double(),
            ]
        )
        self.world.max_(largest)
        # The update's only wait for a GPU.
        syn, obs, mean, chain_square, square, grad_norm, chain_max, bad_left = torch.cat(
            [means, largest]
        ).tolist()
        variance = langevin.reference_std**2
        metrics = Metrics(
            update=self.update_count + 1,
            layers=self.descriptor.depth,
            energy_observed=(0.5 * square - obs) / variance,
            energy_synthesized=(0.5 * chain_square - syn) / variance,
            response_observed=obs,
            response_synthesized=syn,
            grad_norm=grad_norm,
            chain_mean=mean,
            chain_std=math.sqrt(max(chain_square - mean**2, 0.0)),
            chain_max=chain_max,
            learning_rate=self.rate_factor(),
        )
        self._check(metrics, energies, langevin.n_steps - int(bad_left), math.sqrt(square))
        self.chains, self.windows = chains, windows
        # A new layer changes every response: what was kept and averaged before it says nothing now.
        grown = grown_at(recipe, self.update_count)
        self.update_count += 1
        age = self.update_count - grown
        if self.kept is not None and self.kept.update < grown:
            self.kept = None
        ratio = 1.0
        if self.descriptor.may_collapse:
            ratio = _ratio(metrics.response_synthesized, metrics.response_observed)
        if self.kept is not None and ratio > LOST:
            self._go_back(metrics)
            return replace(metrics, returned_to=self.kept.update)
        if metrics.grad_norm == 0:
            raise DivergenceError(
                f"update {metrics.update}: every top response of the network is zero, nothing can "
                f"be learned any more; lower {self._settings()}"
            )
        response = metrics.response_observed
        self.response_mean = _running(self.response_mean, response, age)
        healthy = max(ratio, _ratio(response, self.response_mean)) < HEALTHY
        if healthy and self.update_count % KEEP_EVERY == 0:
            # Before the step: these are the parameters that were found to be good.
            self.kept = Kept(self.update_count - 1, self.parameters(), self.returns)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * metrics.learning_rate
        self._clip(gradients, metrics.grad_norm, age)
        self.optimizer.step()
        return metrics

    def _denoise(self) -> Metrics:
        """Take noise out of patches of the clips, and move the parameters once for each.

        Raises:
            DivergenceError: a gradient is not finite.
        """
        recipe, learning = self.recipe, self.recipe.learning
        network = self.descriptor
        assert isinstance(network, Denoiser)
        # Another number than any chain's.
        noise = ChainNoise(recipe.seed, [-1], self.device)
        noise.begin(self.update_count + 1)
        low, high = map(math.log, learning.noise)
        rate = self.rate_factor()
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * rate
        residual = norms = 0.0
        for _ in range(learning.denoisings):
            patch, at = self._patch()
            level = math.exp(low + (high - low) * self._chance())
            noised = patch + level * noise.like(patch)
            clean, response = denoised(network, noised, at, recipe.precision)
            loss = ((clean - patch) / level).square().mean()
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            gradients = [p.grad for p in network.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            if not math.isfinite(norm):
                raise DivergenceError(
                    f"update {self.update_count + 1}: the gradient of learning is not finite "
                    f"(residual {float(loss.detach()):.3g}); lower learning.learning_rate (now "
                    f"{learning.learning_rate:g})"
                )
            self._clip(gradients, norm, MEMORY if self.norm_mean else 1)
            self.optimizer.step()
            residual += float(loss.detach()) / learning.denoisings
            norms += norm / learning.denoisings
        with torch.no_grad():
            observed = network(patch, at) / patch.numel()
        self.update_count += 1
        variance, x = recipe.langevin.reference_std**2, noised.detach()
        means = [float(response.detach()) / x.numel(), float(observed)]
        energies = [
            (0.5 * float(video.square().mean()) - mean) / variance
            for video, mean in zip((x, patch), means, strict=True)
        ]
        # For pictures.
        self.windows, _ = self._observed_windows()
        return Metrics(
            update=self.update_count,
            layers=network.depth,
            energy_observed=energies[1],
            energy_synthesized=energies[0],
            response_observed=means[1],
            response_synthesized=means[0],
            grad_norm=norms,
            chain_mean=float(x.mean()),
            chain_std=float(x.std(correction=0)),
            chain_max=float(x.abs().max()),
            learning_rate=rate,
            residual=residual,
        )

    def _chance(self) -> float:
        return float(torch.rand((), generator=self.choice))

    def _patch(self) -> tuple[Tensor, tuple[int, int]]:
        """A random patch of a random clip, (1, C, T, H, W), and its top and left."""
        patch = self.recipe.patch
        clip, start, top, left = (
            int(self._chance() * (most - size + 1))
            for most, size in zip(self.observed.pixels.shape[:4], (1, *patch), strict=True)
        )
        x = self.observed.windows([clip], [start], patch[0])
        x = x[..., top : top + patch[1], left : left + patch[2]].contiguous()
        return x.to(self.device), (top, left)

    def shown_chains(self) -> Tensor:
        """The chains, for pictures; in denoising, which walks none, where they would lead now."""
        if self.recipe.learning.regime != "denoising":
            return self.chains
        langevin = self.recipe.langevin
        noise = ChainNoise(self.recipe.seed, self.numbers, self.device)
        noise.begin(0)  # always from the same noise
        x = self._fresh_chains(self.chains.shape[1], noise)
        self.energy.requires_grad_(False)
        x, _ = walk(
            self.energy,
            x,
            n_steps=langevin.n_steps,
            step_size=langevin.step_size,
            noise_scale=langevin.noise_at,
            draw=lambda _, like: noise.like(like),
            precision=self.recipe.precision,
        )
        self.energy.requires_grad_(True)
        return x

    def parameters(self) -> dict[str, Tensor]:
        """A copy of the energy's state."""
        return {name: value.clone() for name, value in self.energy.state_dict().items()}

    def _go_back(self, metrics: Metrics) -> None:
        """Take the kept parameters again, forget Adam's moments, go on more slowly."""
        assert self.kept is not None
        if self.returns >= MOST_RETURNS:
            raise DivergenceError(
                f"update {metrics.update}: learning collapsed {MOST_RETURNS + 1} times (response "
                f"of the chains {metrics.response_synthesized:.3g}, of the clips "
                f"{metrics.response_observed:.3g}); lower {self._settings()}"
            )
        self.energy.load_state_dict(self.kept.parameters)
        self.optimizer.state.clear()
        self.returns += 1
        if self.recovery is not None:
            self.recovery.restart()
        if self.recipe.learning.regime in ("persistent", "rejuvenated"):
            # Chains that collapsed with the network would pull it down again.
            self.chains = self._fresh_chains(self.chains.shape[1], self.noise)

    def _settings(self) -> str:
        return (
            f"langevin.step_size (now {self.recipe.langevin.step_size:g}) or "
            f"learning.learning_rate (now {self.recipe.learning.learning_rate:g})"
        )

    def _clip(self, gradients: list[Tensor], norm: float, age: int) -> None:
        clip = self.recipe.learning.clip
        limit = math.inf if clip is None or age == 1 else clip * self.norm_mean
        if norm > limit:
            for gradient in gradients:
                gradient.mul_(limit / norm)
            norm = limit
        self.norm_mean = _running(self.norm_mean, norm, age)

    def _check(
        self, metrics: Metrics, energies: Tensor, finite_steps: int, observed_rms: float
    ) -> None:
        langevin = self.recipe.langevin
        where = f"update {metrics.update}"
        settings = self._settings()
        if finite_steps < langevin.n_steps:
            last = f"{float(energies[finite_steps - 1].mean()):.3g}" if finite_steps else "none"
            raise DivergenceError(
                f"{where}, Langevin step {finite_steps + 1}: an energy is not finite (the one "
                f"before: {last}); lower {settings}"
            )
        figures = (metrics.energy_synthesized, metrics.energy_observed, metrics.grad_norm)
        if not all(math.isfinite(figure) for figure in figures):
            raise DivergenceError(
                f"{where}: energy of the chains {metrics.energy_synthesized:.3g}, of the clips "
                f"{metrics.energy_observed:.3g}, gradient norm {metrics.grad_norm:.3g}; all must "
                f"be finite. Lower {settings}"
            )
        rms = math.hypot(metrics.chain_mean, metrics.chain_std)
        if rms > EXPLODED * max(observed_rms, langevin.init_std):
            raise DivergenceError(
                f"{where}: the chains exploded to {rms:.3g} model units (the clips have "
                f"{observed_rms:.3g}); lower {settings}"
            )


@contextmanager
def _named(recipe: Recipe) -> Iterator[None]:
    """Say in an error which of several scales it is about."""
    try:
        yield
    except (DivergenceError, InputError) as error:
        height, width = recipe.data.size
        text = str(error)
        if not text.startswith("scale "):
            text = f"scale {height}x{width} of multi-grid learning: {text}"
        raise type(error)(text) from None


def _running(mean: float, value: float, age: int) -> float:
    """A mean over the last `MEMORY` values or so; over all `age` of them while they are fewer."""
    return mean + (value - mean) / min(age, MEMORY)


def _ratio(a: float, b: float) -> float:
    """The larger of a / b and b / a; infinite when one of them is not positive."""
    return max(a / b, b / a) if min(a, b) > 0 else math.inf
