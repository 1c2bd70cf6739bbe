"""The grid of pixels that a raster is read on: its size, its corners, what it covers."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from kestrel.inference.rasters.grid import wanted_grid
from kestrel.inference.rasters.source import GridRequest
from kestrel.tests.fixtures.rasters import UTM

TRANSFORMS = [
    Affine(0.5, 0, 500000, 0, -0.5, 5400000),
    Affine(0.5, 0, 500000.3, 0, 0.5, 5400000.1),
    Affine(-0.5, 0, 500000, 0, -0.5, 5400000),
    Affine(0.4, 0.3, 500000, 0.3, -0.4, 5400000),
    Affine(1e-5, 0, 179.9, 0, -1e-5, 60),
]


@given(
    transform=st.sampled_from(TRANSFORMS),
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    factor=st.sampled_from([None, 0.3, 1.0, 1.7, 4.0]),
    snap=st.tuples(st.floats(-700, 700), st.floats(-700, 700)),
)
def test_a_snapped_grid_has_a_corner_at_the_point_and_covers_the_raster_with_less_than_a_pixel_more(
    transform: Affine, size: tuple[int, int], factor: float | None, snap: tuple[float, float]
) -> None:
    side = np.hypot(transform.a, transform.d)
    point = transform * snap  # anywhere near, in pixels of the raster
    request = GridRequest(None if factor is None else factor * side, point)
    grid = wanted_grid(transform, *size, UTM, request)
    column, row = ~grid.transform * point
    assert (column, row) == (pytest.approx(round(column), abs=1e-4), pytest.approx(round(row), abs=1e-4))
    corners = np.array([~grid.transform * (transform * corner) for corner in ((0, 0), size)])
    low, high = corners.min(axis=0), corners.max(axis=0)
    assert (low > -1e-4).all()
    assert (low < 1 + 1e-4).all()
    assert (np.array([grid.width, grid.height]) - high > -1e-4).all()
    assert (np.array([grid.width, grid.height]) - high < 1 + 1e-4).all()


def test_the_own_corner_as_snap_point_changes_nothing() -> None:
    transform = TRANSFORMS[0]
    grid = wanted_grid(transform, 10, 20, UTM, GridRequest(snap=(transform.c + 7, transform.f - 3.5)))
    assert (grid.width, grid.height, grid.transform.almost_equals(transform)) == (10, 20, True)
