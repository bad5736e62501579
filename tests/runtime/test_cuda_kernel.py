"""The CUDA kernel's own source, built for the host, against NumPy; and NVRTC takes it."""

import ctypes
import hashlib
import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stg_runtime.backends.cuda import compile as cuda_compile
from stg_runtime.backends.cuda.chains import WALK
from stg_runtime.backends.cuda.compile import SOURCE, kernels
from stg_runtime.errors import InputError
from stg_runtime.langevin import langevin_step, standard_normal

needs_nvrtc = pytest.mark.skipif(
    importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.core") is None,
    reason="cuda-core is not installed (extra: dev)",
)
GRID = [(0, 0, 0), (5, 7, 3), (2**64 - 1, 2**63, 1), (2**63 + 1, 2**64 - 1, 2**31)]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("host") / "langevin.so"
    strict = ["-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
    command = [compiler, *strict, "-shared", "-fPIC", "-x", "c++", SOURCE, "-o", library]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def at(array: NDArray | None) -> ctypes.c_void_p:
    if array is None:
        return ctypes.c_void_p()
    pointer: ctypes.c_void_p = array.ctypes.data_as(ctypes.c_void_p)  # keeps the array alive
    return pointer


def walk(**fields: float) -> NDArray:
    state = np.zeros(1, WALK)
    for name, value in fields.items():
        state[name] = value
    return state


def start(
    host: ctypes.CDLL, size: int, *, seed: int, chains: list[int], std: float = 1.0
) -> NDArray[np.float32]:
    x = np.full((len(chains), size), np.nan, np.float32)
    host.host_start(
        *(at(x), at(walk(seed=seed)), at(np.array(chains, np.uint64)), ctypes.c_float(std)),
        *(ctypes.c_uint64(size), len(chains)),
    )
    return x


@pytest.mark.parametrize(("seed", "chain", "step"), GRID)
def test_the_integers_are_numpys_to_the_bit(
    host: ctypes.CDLL, seed: int, chain: int, step: int
) -> None:
    words = np.empty(4096, np.uint64)
    host.host_words(
        *(ctypes.c_uint64(seed), ctypes.c_uint64(chain), ctypes.c_uint32(step)),
        *(ctypes.c_uint64(len(words) // 4), at(words)),
    )
    key, counter = np.array([seed, chain], np.uint64), np.array([0, step, 0, 0], np.uint64)
    expected = np.random.Philox(key=key, counter=counter).random_raw(len(words))
    assert np.array_equal(words, expected)


def test_normals_agree_with_numpy_within_rounding(host: ctypes.CDLL) -> None:
    """Both differ from the exact value by a few units in the last place of their own log and cos.

    Over 4 million values: 4 ulp of each other; 2.8 (ours) and 3.6 (NumPy's, AVX-512) of the truth.
    """
    size = 1 << 20
    (ours,) = start(host, size, seed=5, chains=[7])
    numpys = standard_normal(size, seed=5, chain=7, step=0)
    assert np.abs(ours - numpys).max() < 2e-6
    assert (np.abs(ours - numpys) <= 8 * np.spacing(np.abs(numpys)) + 1e-9).all()
    key, counter = np.array([5, 7], np.uint64), np.zeros(4, np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
    u = generator.random(size, dtype=np.float32).reshape(-1, 2)
    radius = np.sqrt(-2 * np.log1p(-u[:, 0].astype(float)))
    angle = (u[:, 1] * np.float32(2 * np.pi)).astype(float)
    exact = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).ravel()
    assert (np.abs(ours - exact) <= 4 * np.spacing(np.abs(exact).astype(np.float32)) + 1e-9).all()


@pytest.mark.parametrize("size", [1, 7, 8, 12, 2044, 2048, 4099])
def test_every_size_and_only_its_values(host: ctypes.CDLL, size: int) -> None:
    guarded = np.full(3 * size + 8, 77, np.float32)
    host.host_start(
        *(at(guarded), at(walk(seed=1)), at(np.array([4, 0, 9], np.uint64)), ctypes.c_float(0.5)),
        *(ctypes.c_uint64(size), 3),
    )
    assert (guarded[3 * size :] == 77).all()
    for number, x in zip([4, 0, 9], guarded[: 3 * size].reshape(3, size), strict=True):
        expected = 0.5 * standard_normal(size, seed=1, chain=number, step=0)
        np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("size", [5, 8, 1004, 1024])
@pytest.mark.parametrize("noise_scale", [0.0, 1.0])
@pytest.mark.parametrize("clamp", [False, True])
def test_the_step_is_the_formula(
    host: ctypes.CDLL, size: int, noise_scale: float, clamp: bool
) -> None:
    rng = np.random.default_rng(size)
    x, grad, values = rng.standard_normal((3, 2, size), dtype=np.float32)
    known = (rng.random((2, size)) < 0.3).astype(np.uint8)
    energy, energies = np.array([3, 4], np.float32), np.zeros((2, 2), np.float32)
    delta = 0.3
    state = walk(
        seed=9,
        step=6,
        row=1,
        drift=np.float32(delta**2 / 2),
        spread=np.float32(delta * noise_scale),
    )
    noise = np.stack([standard_normal(size, seed=9, chain=c, step=6) for c in (2, 0)])
    ours = np.stack([np.empty(size, np.float32)] * 2)
    expected = langevin_step(x, grad, noise, step_size=delta, noise_scale=noise_scale)
    np.copyto(ours, x)
    host.host_step(
        *(at(ours), at(grad), at(known if clamp else None), at(values if clamp else None)),
        *(at(energy), at(energies), at(state), at(np.array([2, 0], np.uint64))),
        *(ctypes.c_uint64(size), 2, 2),
    )
    if clamp:
        expected = np.where(known, values, expected)
        assert np.array_equal(ours[known == 1], values[known == 1])
    if noise_scale == 0:  # nothing but products and differences: equal bits
        descended = x - grad * np.float32(delta**2 / 2)
        assert np.array_equal(ours, np.where(known, values, descended) if clamp else descended)
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)
    assert energies.tolist() == [[0, 0], [3, 4]]
    assert (state["step"][0], state["row"][0]) == (7, 2)


def test_the_update_rounds_as_numpys(host: ctypes.CDLL) -> None:
    """Given its own noise, the step has the bits of NumPy's: x - g * drift, then + z * spread."""
    size, delta = 1000, 0.01
    x, grad = np.random.default_rng(0).standard_normal((2, 1, size), dtype=np.float32)
    zero = np.zeros((1, size), np.float32)
    state = walk(seed=3, step=2, spread=1)
    arguments = (at(np.zeros(1, np.float32)), at(np.zeros(1, np.float32)))
    chain, sizes = at(np.array([1], np.uint64)), (ctypes.c_uint64(size), 1, 1)
    noise = zero.copy()
    host.host_step(at(noise), at(zero), at(None), at(None), *arguments, at(state), chain, *sizes)
    drift, spread = np.float32(delta**2 / 2), np.float32(delta)
    state = walk(seed=3, step=2, drift=drift, spread=spread)
    ours = x.copy()
    host.host_step(at(ours), at(grad), at(None), at(None), *arguments, at(state), chain, *sizes)
    assert np.array_equal(ours, (x - grad * drift) + noise * spread)


@needs_nvrtc
@pytest.mark.parametrize("arch", ["75", "80", "86", "89", "90", "100", "120"])
def test_nvrtc_compiles_it(arch: str, tmp_path: Path) -> None:
    code = kernels(f"sm_{arch}", tmp_path)
    assert code.startswith(b"\x7fELF")
    for name in ("start", "step", "hold", "words", "draw", "along", "colour", "fourier", "take"):
        assert f"stg_{name}".encode() in code


@needs_nvrtc
def test_the_cache_holds_it_and_mends_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = kernels("sm_90", tmp_path)
    (entry,) = (tmp_path / "kernels").iterdir()
    assert entry.read_bytes() == hashlib.sha256(code).digest() + code

    def never(source: str, arch: str) -> bytes:
        raise AssertionError("compiled again")

    with monkeypatch.context() as patch:
        patch.setattr(cuda_compile, "_compile", never)
        assert kernels("sm_90", tmp_path) == code
        with pytest.raises(AssertionError):
            kernels("sm_80", tmp_path)
    damaged = bytearray(entry.read_bytes())
    damaged[-1] ^= 1
    entry.write_bytes(damaged)
    assert kernels("sm_90", tmp_path) == code
    assert entry.read_bytes()[32:] == code
    # A cache that cannot be written is done without.
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    assert kernels("sm_90", blocked) == code


def test_without_cuda_core_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'stg\[gpu\]'"):
        kernels("sm_90")
