"""What a farm asks a cluster for, with a stand-in for Ray that works at once."""

from types import SimpleNamespace
from typing import Any

import pytest

from stg_runtime import farm
from stg_runtime.errors import InputError
from stg_runtime.farm import RETRIES, Order, check_room, connect, make_on_farm


class Ray:
    """Runs a task where it is asked for, and remembers the options."""

    exceptions = SimpleNamespace(RayTaskError=KeyError, RayError=OSError)

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"Alive": True, "Resources": {"CPU": 2.0}},
            {"Alive": True, "Resources": {"CPU": 1.0, "GPU": 1.0}},
            {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
        ]

    def put(self, value: Any) -> Any:
        return value

    def remote(self, function: Any) -> Any:
        def options(**asked: Any) -> Any:
            self.asked = asked
            return SimpleNamespace(remote=lambda *arguments: (function, arguments))

        return SimpleNamespace(options=options)

    def wait(self, waiting: list, num_returns: int) -> tuple[list, list]:
        return waiting[-1:], waiting[:-1]

    def get(self, task: Any) -> Any:
        function, arguments = task
        return function(*arguments)


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 0), ("cuda", 1), ("tensorrt", 1)])
def test_a_task_asks_for_what_it_computes_on(
    device: str, gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(farm, "_make", lambda order, number: (f"video {number}", 7))
    order: Any = Order(b"", device, 3, None, (1, 1, 1), None)  # type: ignore[arg-type]
    ray = Ray()
    made = list(make_on_farm(ray, order, [4, 5]))
    assert made == [(5, "video 5", 7), (4, "video 4", 7)]
    assert ray.asked == {
        "num_cpus": 3,
        "num_gpus": gpus,
        "max_retries": RETRIES,
        "retry_exceptions": False,
    }


@pytest.mark.parametrize(
    ("threads", "device", "says"),
    [
        (2, "cpu", ""),
        (3, "cpu", "--threads 3: .* the largest has 2; pass --threads 2 or less"),
        (1, "cuda", ""),
        (2, "cuda", "the largest has 1; pass --threads 1 or less"),
    ],
)
def test_what_no_machine_can_make_is_refused(threads: int, device: str, says: str) -> None:
    if not says:
        check_room(Ray(), threads, device)
        return
    with pytest.raises(InputError, match=says):
        check_room(Ray(), threads, device)


def test_a_cluster_without_gpus_makes_nothing_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray()
    monkeypatch.setattr(ray, "nodes", lambda: Ray().nodes()[:1])
    with pytest.raises(InputError, match=r"--device tensorrt: no machine .* has a GPU"):
        check_room(ray, 1, "tensorrt")


def test_an_address_where_nobody_listens_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(farm.importlib.util, "find_spec", lambda name: name)
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(InputError, match=f"--ray {address}: nobody answers"):
            connect(address)
    with pytest.raises(InputError, match="expected local or HOST:PORT"):
        connect("127.0.0.1:x")
