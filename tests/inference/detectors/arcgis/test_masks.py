from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.features import rasterize
from torchvision.models.detection.roi_heads import paste_masks_in_image

from kestrel.inference.detectors.arcgis.masks import outlines
from kestrel.inference.outlines import outline

SIDE = 96


def ring() -> torch.Tensor:
    """A mask of 28 x 28 with a hole in its middle."""
    mask = torch.ones(1, 1, 28, 28)
    mask[..., 10:18, 10:18] = 0
    return mask


def covered_by(shape: Any, side: int = SIDE) -> np.ndarray:
    """The pixels whose centres a shape covers."""
    if shape is None:
        return np.zeros((side, side), dtype=bool)
    return rasterize([(shape, 1)], out_shape=(side, side)).astype(bool)


def random_boxes(n: int, seed: int = 0) -> torch.Tensor:
    """Boxes in the tile, at its edges, of all sizes from a hundredth of a pixel."""
    random = np.random.default_rng(seed)
    centres, sizes = random.uniform(0, SIDE, (n, 2)), 10 ** random.uniform(-2, 2, (n, 2))
    return torch.from_numpy(np.hstack([centres - sizes / 2, centres + sizes / 2]).clip(0, SIDE)).float()


def test_a_hole_in_the_mask_is_a_hole_in_the_outline() -> None:
    (shape,) = outlines(ring(), torch.tensor([[10.0, 20.0, 66.0, 76.0]]), SIDE)
    assert (shape.geom_type, len(shape.interiors)) == ("Polygon", 1)
    assert shapely.Polygon(shape.exterior).area == pytest.approx(56 * 56, rel=0.05)
    assert shapely.Polygon(shape.interiors[0]).area == pytest.approx(16 * 16, rel=0.2)
    assert not shape.contains(shapely.Point(38, 48))


def test_an_outline_runs_along_the_edges_of_pixels() -> None:
    covered = np.zeros((4, 5), dtype=bool)
    covered[1:3, 2:5] = True
    shape = outline(covered, left=10, top=20)
    assert shape.equals(shapely.box(12, 21, 15, 23))
    assert len(shape.exterior.coords) == 5


def test_outlines_cover_the_pixels_that_torchvision_pastes() -> None:
    torch.manual_seed(0)
    boxes = random_boxes(300)
    masks = torch.nn.functional.interpolate(torch.rand(300, 1, 7, 7), size=(28, 28), mode="bilinear")
    pasted = paste_masks_in_image(masks, boxes, (SIDE, SIDE))[:, 0].numpy() >= 0.5
    shapes = outlines(masks, boxes, SIDE)
    assert 100 < sum(shape is not None for shape in shapes) < 300
    assert any(shape is not None and shape.geom_type == "MultiPolygon" for shape in shapes)
    for shape, expected in zip(shapes, pasted):
        assert np.array_equal(covered_by(shape), expected)


def test_outlines_end_with_the_tile() -> None:
    (shape,) = outlines(torch.ones(1, 1, 28, 28), torch.tensor([[0.0, 0.0, 96.0, 96.0]]), SIDE)
    assert (0, 0, SIDE, SIDE) == shape.bounds
    assert shape.area > SIDE * SIDE - 20  # masks are rounded at their corners


def test_a_mask_that_covers_no_pixel_has_no_outline() -> None:
    assert outlines(torch.full((1, 1, 28, 28), 0.4), torch.tensor([[10.0, 20.0, 66.0, 76.0]]), SIDE) == [None]
    assert outlines(torch.empty(0, 1, 28, 28), torch.empty(0, 4), SIDE) == []


def test_parts_of_a_mask_are_one_multipolygon() -> None:
    mask = torch.zeros(1, 1, 28, 28)
    mask[..., 2:12, 2:12] = mask[..., 16:26, 16:26] = 1
    (shape,) = outlines(mask, torch.tensor([[0.0, 0.0, 56.0, 56.0]]), SIDE)
    assert (shape.geom_type, len(shape.geoms)) == ("MultiPolygon", 2)


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_outlines_of_any_mask_are_valid_and_cover_it(covered: np.ndarray) -> None:
    shape = outline(covered)
    if shape is None:
        assert not covered.any()
        return
    assert shape.is_valid
    assert shape.area == covered.sum()
    assert np.array_equal(rasterize([(shape, 1)], out_shape=covered.shape).astype(bool), covered)


def test_a_thousand_masks_of_a_large_tile_need_no_thousand_tiles() -> None:
    # Pasted whole, as torchvision does it, these would be 67 GB.
    corners = torch.from_numpy(np.random.default_rng(0).uniform(0, 4000, (1000, 2))).float()
    shapes = outlines(ring().expand(1000, -1, -1, -1), torch.cat([corners, corners + 30], dim=1), 4096)
    assert all(len(shape.interiors) == 1 for shape in shapes)
