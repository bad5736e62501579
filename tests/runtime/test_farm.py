"""What a farm asks a cluster for, with a stand-in for Ray that works at once."""

from types import SimpleNamespace
from typing import Any

import pytest

from stg_runtime import farm
from stg_runtime.farm import RETRIES, Order, make_on_farm


class Ray:
    """Runs a task where it is asked for, and remembers the options."""

    exceptions = SimpleNamespace(RayTaskError=KeyError, RayError=OSError)

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

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
