from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel.inference.detections import make_detections
from kestrel.inference.models.definition import InputSpec
from kestrel.inference.preprocess import Preprocess, make_normalisation
from kestrel.inference.tiling import Tile, Window

sizes = st.integers(8, 200)


@given(sizes, sizes, st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 2**32 - 1))
def test_boxes_come_back_from_the_network_to_where_they_were(
    tile_size: int, network_size: int, x: int, y: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    low = random.uniform(0, tile_size, (5, 2))
    in_tile = np.hstack([low, low + random.uniform(0, 20, (5, 2))])
    scale = network_size / tile_size
    seen = make_detections(in_tile * scale, np.ones(5), np.zeros(5), low * scale)
    tile = Tile(0, Window(0, 0, 1, 1), Window(x, y, tile_size, tile_size))
    back = Preprocess(network_size, network_size).to_raster(seen, tile.outer)
    assert np.allclose(in_tile + np.array([x, y, x, y]), back.boxes, rtol=0, atol=1e-6)
    assert np.allclose(low + np.array([x, y]), back.anchors, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float64])
def test_a_tile_of_the_right_size_goes_in_as_it_is(dtype: type) -> None:
    pixels = np.arange(3 * 16 * 16).reshape(3, 16, 16).astype(dtype)
    result = Preprocess(16, 16).to_network(pixels, Window(0, 0, 16, 16))
    assert (np.uint8 if dtype == np.uint8 else np.float32) == result.dtype
    assert pixels.tolist() == result.tolist()


@given(sizes, sizes, st.floats(0, 2), st.floats(0, 2), st.sampled_from([np.uint8, np.float32]))
def test_a_resized_slope_keeps_its_values_in_place(
    tile_size: int, network_size: int, across: float, down: float, dtype: type
) -> None:
    # The value of a slope at a pixel's centre tells where it is; at the rim, values beyond the last centre are held.
    def slope(n: int) -> np.ndarray:
        place = np.clip((np.arange(n) + 0.5) * tile_size / n, 0.5, tile_size - 0.5)
        return (across * place[None, :] + down * place[:, None])[None]

    scale = 255 / max(1.0, slope(tile_size).max())
    pixels = (slope(tile_size) * scale).astype(np.float32).astype(dtype)
    result = Preprocess(network_size, network_size).to_network(pixels, Window(0, 0, tile_size, tile_size))
    assert (1, network_size, network_size) == result.shape
    assert dtype == result.dtype
    tolerance = 1.6 if dtype == np.uint8 else 0.01
    assert np.allclose(slope(network_size) * scale, result, rtol=0, atol=tolerance)


@given(st.lists(st.tuples(st.floats(1e-3, 2), st.floats(-5, 5), st.floats(0.1, 5)), min_size=3, max_size=3))
def test_normalisation_is_the_definitions_formula(factors: list[tuple[float, float, float]]) -> None:
    scale, mean, std = (tuple(row[i] for row in factors) for i in range(3))
    normalisation = make_normalisation(InputSpec(scale=scale, mean=mean, std=std))
    batch = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4)).astype(np.uint8)
    column = [np.array(values)[:, None, None] for values in (scale, mean, std)]
    expected = (batch * column[0] - column[1]) / column[2]
    result = normalisation.apply(batch)
    assert np.float32 == result.dtype
    assert np.allclose(expected, result, rtol=1e-4, atol=1e-4)


def test_one_number_stands_for_all_bands() -> None:
    one = make_normalisation(InputSpec(scale=(0.5,), mean=(2.0,), std=(4.0,)))
    each = make_normalisation(InputSpec(scale=(0.5,) * 3, mean=(2.0,) * 3, std=(4.0,) * 3))
    assert np.array_equal(one.gain, each.gain)
    assert np.array_equal(one.bias, each.bias)


def test_pixels_that_go_in_as_they_are_are_not_touched() -> None:
    normalisation = make_normalisation(InputSpec())
    batch = np.arange(12, dtype=np.uint8).reshape(1, 3, 2, 2)
    assert normalisation.is_identity
    assert batch.tolist() == normalisation.apply(batch).tolist()
    assert not make_normalisation(InputSpec(mean=(0.0, 0.0, 1.0))).is_identity
