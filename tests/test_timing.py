"""Contenders take turns; turns that were disturbed are measured again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from condconv.timing import Spread, Timing, finished, measure


def test_ratios_are_those_of_each_turn() -> None:
    ours, static = Timing(((2.0, 4.0, 3.0), (8.0,))), Timing(((1.0, 1.5, 2.0), (2.0,), (5.0,)))
    assert ours.over(static) == Spread(3.0, 2.2, 3.8)
    assert ours.ms.median == 3.5 and ours.calls == 4


def test_contenders_take_turns_and_a_hopeless_one_stops_early(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def takes(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            order.append(name)
            clock[0] += seconds

        return call

    found = measure({"a": takes("a", 0.5), "b": takes("b", 1.0), "slow": takes("slow", 4.0)}, burst_s=1.0)
    assert {name: timing.calls for name, timing in found.items()} == {"a": 18, "b": 9, "slow": 2}
    assert found["b"].over(found["a"]) == Spread(2.0, 2.0, 2.0)
    assert found["slow"].over(found["a"]).median == 8.0
    assert "".join(order).endswith("aabbaaaab")  # who begins changes from turn to turn


def test_a_turn_that_differs_is_measured_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], [0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def once_slow(slow: tuple[int, ...]) -> Callable[[], None]:
        calls[0] = 0

        def call() -> None:
            calls[0] += 1
            clock[0] += 2.0 if calls[0] in slow else 1.0

        return call

    # Four calls to warm up, then one call a turn.
    (found,) = measure({"a": once_slow((5,))}, burst_s=0.0, turns=4).values()
    assert found.turns == ((1000.0,),) * 4 and not found.unsteady and calls[0] == 4 + 4 + 1
    (found,) = measure({"a": once_slow((7, 9))}, burst_s=0.0, turns=4).values()
    assert found.unsteady == [2] and found.turns[2] == (2000.0,) and calls[0] == 4 + 4 + 1


def test_percentiles_are_those_of_the_calls() -> None:
    assert Timing((tuple(range(1, 51)), tuple(range(51, 102)))).p95_ms == 96.0


def test_on_a_cpu_a_call_is_its_own_end() -> None:
    call = lambda: None  # noqa: E731
    assert finished(call, torch.device("cpu")) is call
