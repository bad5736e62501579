"""The energy is what the paper says, its gradient is its gradient, its sizes are honest."""

import pytest
import torch

from stg_runtime.errors import InputError
from stg_train.chains import energy_and_grad
from stg_train.descriptor import ConvSpec, Descriptor, Energy, init_he, min_size, resolve_kernels

LAYERS = [
    ConvSpec(6, (4, 4, 4), (2, 2, 2), (1, 1, 1)),
    ConvSpec(5, (3, 5, 5), (1, 2, 2), (1, 0, 0)),
]
FULL = [*LAYERS[:1], ConvSpec(4, (3, "full", "full"), (1, 1, 1), (1, 0, 0))]


def build(layers: list[ConvSpec], size: tuple[int, int, int], sigma: float) -> Energy:
    descriptor = Descriptor(layers, 3, size)
    init_he(descriptor, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for conv in descriptor.convs:
            conv.bias.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    return Energy(descriptor, sigma)


@pytest.mark.parametrize("layers", [LAYERS, FULL], ids=["convolutional", "full"])
@pytest.mark.parametrize("sigma", [1.0, 0.02])
def test_energy_grad_matches_finite_differences(layers: list[ConvSpec], sigma: float) -> None:
    energy = build(layers, (7, 12, 12), sigma).double()
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 3, 7, 12, 12, generator=generator, dtype=torch.float64)
    _, grad = energy_and_grad(energy, x)
    for _ in range(5):
        direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        h = 1e-6
        with torch.no_grad():
            difference = (energy(x + h * direction) - energy(x - h * direction)) / (2 * h)
        exact = (grad * direction).flatten(1).sum(1)
        torch.testing.assert_close(difference, exact, rtol=1e-6, atol=1e-6 / sigma**2)


def test_energy_is_reference_minus_responses() -> None:
    energy = build(LAYERS, (7, 12, 12), 0.5)
    x = torch.randn(2, 3, 7, 12, 12)
    responses = x
    for conv in energy.descriptor.convs:
        responses = torch.relu(conv(responses))
    expected = x.square().sum((1, 2, 3, 4)) / (2 * 0.25) - responses.sum((1, 2, 3, 4)) / 0.25
    torch.testing.assert_close(energy(x), expected)


def test_depth_leaves_upper_layers_out() -> None:
    energy = build(LAYERS, (7, 12, 12), 1.0)
    energy.descriptor.depth = 1
    x = torch.randn(1, 3, 7, 12, 12)
    expected = torch.relu(energy.descriptor.convs[0](x)).sum()
    torch.testing.assert_close(energy.descriptor(x)[0], expected)
    energy.descriptor(x).sum().backward()
    assert energy.descriptor.convs[1].weight.grad is None


def test_min_size_is_the_smallest_that_works() -> None:
    smallest = min_size(LAYERS, (7, 12, 12))
    energy = build(LAYERS, smallest, 1.0)
    assert energy(torch.randn(1, 3, *smallest)).isfinite().all()
    for axis in range(3):
        smaller = list(smallest)
        smaller[axis] -= 1
        with pytest.raises(InputError, match=f"at least {smallest[axis]}"):
            resolve_kernels(LAYERS, (smaller[0], smaller[1], smaller[2]))


def test_full_layer_locks_space_and_leaves_time_free() -> None:
    energy = build(FULL, (7, 12, 10), 1.0)
    assert energy.descriptor.free_axes == ("T",)
    assert energy.descriptor.convs[1].kernel_size == (3, 6, 5)
    assert min_size(FULL, (7, 12, 10))[1:] == (12, 10)
    assert build(LAYERS, (7, 12, 12), 1.0).descriptor.free_axes == ("T", "H", "W")


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_bf16_gradients_of_short_videos_are_right(frames: int) -> None:
    """PyTorch's own are random where the kernel is longer than the video (see _convolve)."""
    layers = [ConvSpec(16, (3, 5, 5), (1, 1, 1), (1, 2, 2))]
    descriptor = Descriptor(layers, 32, (frames, 8, 8))
    init_he(descriptor, torch.Generator().manual_seed(0))
    with torch.no_grad():
        descriptor.convs[0].bias.fill_(100.0)  # every ReLU open: rounding switches none
    x = torch.randn(2, 32, frames, 8, 8, generator=torch.Generator().manual_seed(1))

    def gradient(precision: torch.dtype) -> torch.Tensor:
        weight = descriptor.convs[0].weight
        weight.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            descriptor(x).sum().backward()
        assert weight.grad is not None
        return weight.grad

    expected = gradient(torch.float32)
    for _ in range(20):
        error = (gradient(torch.bfloat16) - expected).norm() / expected.norm()
        assert float(error) < 0.01


def test_a_network_that_no_memory_holds_is_refused_before_it_is_made() -> None:
    layers = (ConvSpec(10**9, (7, 7, 7), (1, 1, 1), (0, 0, 0)),)
    with pytest.raises(InputError, match="layer 1 of the network would have 1e\\+12 weights"):
        Descriptor(layers, 3, (32, 32, 32))
