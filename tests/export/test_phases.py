"""Other ways to compute a layer give the same layer."""

import pytest
import torch

from stg_export.phases import phase_input_grad

CASES = [  # sizes, kernel, stride, padding
    ((20,), (5,), (3,), (0,)),
    ((21,), (15,), (7,), (4,)),
    ((9, 12), (3, 4), (1, 2), (1, 1)),
    ((12, 9), (2, 1), (3, 4), (0, 0)),  # kernels smaller than the stride
    ((10, 11, 12), (4, 4, 4), (2, 2, 2), (1, 1, 1)),
    ((7, 9, 8), (3, 5, 5), (1, 1, 1), (1, 2, 2)),
    ((17, 18, 19), (15, 7, 3), (7, 3, 2), (4, 3, 2)),
    ((3, 6, 6), (7, 4, 4), (2, 2, 2), (3, 3, 0)),  # shorter than the kernel
    ((8, 8, 8), (2, 3, 3), (1, 2, 2), (0, 1, 1)),
]


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), CASES)
def test_phases_are_the_input_gradient(
    size: tuple, kernel: tuple, stride: tuple, padding: tuple
) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(6, 2, *kernel, generator=generator, dtype=torch.float64)
    x = torch.randn(3, 2, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    convolve = (torch.conv1d, torch.conv2d, torch.conv3d)[len(size) - 1]
    y = convolve(x, weight, None, stride, padding)
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad(y, x, grad)
    found = phase_input_grad(grad, size, weight, stride, padding)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
