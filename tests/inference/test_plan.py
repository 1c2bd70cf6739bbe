from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel.inference.detectors.protocol import Traits
from kestrel.inference.models.arguments import resolve_arguments
from kestrel.inference.models.definition import ModelClass, ModelDefinition, TileSpec
from kestrel.inference.plan import Plan, make_plan
from kestrel.inference.region import Region
from kestrel.inference.tiling import Window
from kestrel.tests.fixtures.rasters import info

DENSE = Traits(stride=32, receptive_field_radius=70, is_dense=True)


def plan(
    given_arguments: dict[str, Any] | None = None, traits: Traits = DENSE, side: int = 5000, device: str = "cpu",
    **tile: Any,
) -> Plan:  # fmt: skip
    definition = ModelDefinition("m", "onnx", "m.onnx", (ModelClass(1, "a", (0, 0, 0)),), tile=TileSpec(**tile))
    arguments = given_arguments or {}
    region = Region(info(side, side), Window(0, 0, side, side), None)
    return make_plan(definition, resolve_arguments(definition, arguments).values, arguments, traits, region, device)


def test_padding_follows_from_what_the_network_sees() -> None:
    result = plan()
    assert (96, True) == (result.grid.padding, result.is_exact)
    assert result.grid.tile_size >= 6 * 96


def test_tiles_grow_with_the_padding_but_not_beyond_reason() -> None:
    assert 1536 == plan(traits=Traits(32, 300, True)).grid.tile_size
    assert (True, 320) == (plan(traits=Traits(32, 300, True)).is_exact, plan(traits=Traits(32, 300, True)).grid.padding)


def test_a_given_tile_size_is_kept_up_to_the_stride() -> None:
    assert 640 == plan({"tile_size": 620}).grid.tile_size
    assert 640 == plan({"tile_size": 640}).grid.tile_size


@pytest.mark.parametrize("empty", [None, ""])
def test_an_argument_left_empty_is_one_not_given(empty: Any) -> None:
    assert plan() == plan({"tile_size": empty, "padding": empty, "batch_size": empty})


def test_a_padding_that_is_too_small_is_told() -> None:
    result = plan({"padding": 32})
    assert (32, False) == (result.grid.padding, result.is_exact)
    assert any("sees 70 pixels" in note for note in result.notes)


def test_the_package_s_padding_counts_before_the_measured_one_and_the_user_s_before_both() -> None:
    assert 128 == plan(padding=128).grid.padding
    assert 64 == plan({"padding": 64}, padding=128).grid.padding


def test_one_tile_that_holds_the_raster_is_exact_whatever_the_padding() -> None:
    result = plan({"padding": 0}, side=500)
    assert (1, True, 512) == (len(result.grid), result.is_exact, result.grid.tile_size)


def test_a_fixed_size_network_gets_its_own_size() -> None:
    result = plan(traits=Traits(32, 70, True, network_size=640))
    assert (640, (640, 640), True) == (result.grid.tile_size, result.network_size, result.is_exact)


def test_other_tiles_than_the_network_s_are_resized_and_never_exact() -> None:
    result = plan({"tile_size": 1280}, traits=Traits(32, 70, True, network_size=640))
    assert (1280, (640, 640), False) == (result.grid.tile_size, result.network_size, result.is_exact)
    assert any("resized" in note for note in result.notes)


@pytest.mark.parametrize(
    ("stride", "network", "expected"), [(128, 320, 80), (128, 300, 75), (32, 300, 75), (128, 512, 128)]
)
def test_a_network_with_a_small_size_of_its_own_still_sees_beyond_the_seams(
    stride: int, network: int, expected: int
) -> None:
    assert expected == plan(traits=Traits(stride, None, False, network_size=network)).grid.padding


def test_a_given_padding_is_kept_where_the_stride_leaves_no_room_for_it() -> None:
    result = plan({"padding": 40, "tile_size": 256}, Traits(128, None, False))
    assert (40, 256) == (result.grid.padding, result.grid.tile_size)


def test_a_network_that_suppresses_inside_is_never_exact() -> None:
    result = plan(traits=Traits(32, None, False))
    assert (False, 128) == (result.is_exact, result.grid.padding)


@pytest.mark.parametrize(
    ("stated", "max_batch", "device", "expected"),
    [
        (None, None, "cpu", 1),
        (None, None, "cuda:0", 8),
        (16, None, "cpu", 16),
        (16, 1, "cuda:0", 1),
        (None, 4, "cuda:0", 4),
    ],
)
def test_batches_are_as_large_as_stated_and_as_the_network_takes(
    stated: int | None, max_batch: int | None, device: str, expected: int
) -> None:
    arguments = {} if stated is None else {"batch_size": stated}
    assert expected == plan(arguments, Traits(32, 70, True, max_batch=max_batch), device=device).batch_size


@given(
    st.integers(32, 2000), st.integers(0, 999), st.sampled_from([1, 8, 32, 128]), st.none() | st.integers(0, 600),
    st.integers(1, 5000), st.none() | st.sampled_from([320, 640]), st.booleans(),
)  # fmt: skip
def test_any_plan_has_tiles_that_advance_and_fit_the_stride(
    tile_size: int, padding: int, stride: int, radius: int | None, side: int, network: int | None, is_dense: bool
) -> None:
    arguments = {"tile_size": tile_size, "padding": min(padding, (tile_size - 1) // 2)}
    for subset in (arguments, {"tile_size": tile_size}, {}):
        result = plan(subset, Traits(stride, radius, is_dense, network_size=network), side)
        grid = result.grid
        assert 0 <= 2 * grid.padding < grid.tile_size
        assert (0, 0) == (grid.tile_size % grid.stride, grid.padding % grid.stride)
        if is_dense and network is None:
            assert stride == grid.stride
        tiles = [grid[0], grid[len(grid) - 1]]
        assert all(tile.inner.width > 0 and tile.inner.height > 0 for tile in tiles)
        is_seamless = radius is not None and grid.padding >= radius and grid.stride == stride
        assert not result.is_exact or len(grid) == 1 or is_seamless


RAW = Traits(1, None, is_dense=False, network_size=300, max_batch=1, padding=22, wants_raw=True)


def test_a_network_that_knows_one_padding_gets_it_whatever_was_asked_for() -> None:
    assert 22 == plan({"padding": 100}, RAW).grid.padding
    assert 22 == plan(traits=RAW).grid.padding


def test_a_program_gets_blocks_of_its_own_size_whatever_was_asked_for() -> None:
    result = plan({"tile_size": 512}, RAW)
    assert (300, (300, 300), 1) == (result.grid.tile_size, result.network_size, result.batch_size)


def test_chips_of_a_fixed_network_lie_where_the_packages_own_padding_puts_them() -> None:
    chips = Traits(1, None, is_dense=False, network_size=224)
    grid = plan(traits=chips, size=224, padding=56, is_variable=False).grid
    assert (224, 56, 112) == (grid.tile_size, grid.padding, grid.columns.step)
