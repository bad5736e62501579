"""Energies that the exporter's tests share, none of them trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stg_train.descriptor import ConvSpec, Descriptor, Energy, init_he

SIGMA = 0.0158113883  # the built-in recipes' reference_std: a factor of 4000 in the energy

CONVOLUTIONAL = (
    ConvSpec(12, (5, 5, 5), (2, 3, 2), (1, 2, 1)),
    ConvSpec(8, (3, 3, 3), (2, 2, 2), (0, 1, 0)),
)
FULL = (
    ConvSpec(10, (3, 5, 5), (2, 2, 2), (1, 2, 1)),
    ConvSpec(6, (4, "full", "full"), (2, 1, 1), (2, 0, 0)),
    ConvSpec(5, (2, 1, 1), (1, 1, 1), (1, 0, 0)),
)
SIZE = (11, 14, 15)  # that no stride divides


def stg_energy(layers: tuple[ConvSpec, ...], sigma: float = SIGMA) -> Energy:
    descriptor = Descriptor(layers, 3, SIZE)
    init_he(descriptor, torch.Generator().manual_seed(5))
    with torch.no_grad():
        for conv in descriptor.convs:
            conv.bias.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(6))
    return Energy(descriptor, sigma)


class Summed(nn.Module):
    """Energy from a network: the sum of its outputs."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.network = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).flatten(1).sum(1)


class Function(nn.Module):
    """Energy from a function of the input, and of a network's energy when there is one."""

    def __init__(self, function: Callable[..., Tensor], network: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.network = function, network

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) if self.network is None else self.function(x, self.network(x))


class Quadratic(nn.Module):
    """x' A x / 2, whose gradient is (A + A') x / 2."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(size, size))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * ((x @ self.matrix) * x).sum(1)


class Attending(nn.Module):
    """Self-attention among the positions of a sequence, (N, length, size)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(size, 4, batch_first=True)
        self.top = nn.Linear(size, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.attention(x, x, x, need_weights=False)
        return self.top(torch.tanh(y)).sum((1, 2))


def autograd(energy: nn.Module, x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Energy and gradient in float64, by PyTorch alone."""
    import copy

    double = copy.deepcopy(energy).double().eval()
    leaf = torch.from_numpy(x).double().requires_grad_(True)
    value = double(leaf)
    (grad,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach().numpy(), grad.numpy()


def run(path: Path, x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    value, grad = session.run(["energy", "energy_grad"], {"video": x})
    assert value.dtype == grad.dtype == np.float32
    return value, grad


def error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
