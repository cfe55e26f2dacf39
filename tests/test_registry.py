"""Names → things, and what an unknown name is told."""

from __future__ import annotations

import pytest

import condconv
from condconv.errors import ArgumentError, UnknownNameError
from condconv.registry import Registry, unknown_name_message


def test_it_finds_refuses_duplicates_and_suggests() -> None:
    registry: Registry[int] = Registry("colour")
    assert registry.register("crimson", 1) == registry["crimson"] == 1
    registry.register("violet", 2)
    assert registry.names() == list(registry) == ["crimson", "violet"] and len(registry) == 2 and "violet" in registry
    with pytest.raises(ArgumentError, match="colour 'violet' is already registered"):
        registry.register("violet", 3)
    with pytest.raises(UnknownNameError, match="unknown colour 'crimsen'; did you mean 'crimson'"):
        registry["crimsen"]
    with pytest.raises(UnknownNameError, match="unknown colour 'x'; known: crimson, violet$"):
        registry["x"]


def test_a_long_list_is_cut() -> None:
    message = unknown_name_message("model", "zzz", [f"net{i:02}" for i in range(40)])
    assert message.endswith("net10, net11 and 28 more") and "net12" not in message


def test_a_renamed_public_name_works_and_names_its_successor() -> None:
    with pytest.warns(DeprecationWarning, match="condconv.TemperatureSchedule is now condconv.RoutingSchedule"):
        assert condconv.TemperatureSchedule is condconv.RoutingSchedule
