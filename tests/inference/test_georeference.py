from __future__ import annotations

import numpy as np
import shapely
from affine import Affine
from hypothesis import assume, given
from hypothesis import strategies as st

from kestrel.inference.georeference import boxes_to_map, rings_to_wkb, shapes_to_wkb, to_map

units = st.floats(-2, 2)
affines = st.builds(Affine, units, units, st.floats(-1e6, 1e6), units, units, st.floats(-1e6, 1e6)).filter(
    lambda t: abs(t.determinant) > 1e-3
)
NAMED = {
    "north up": Affine(0.5, 0, 100, 0, -0.5, 200),
    "south up": Affine(0.5, 0, 100, 0, 0.5, 200),
    "mirrored": Affine(-0.5, 0, 100, 0, -0.5, 200),
    "turned": Affine.translation(100, 200) * Affine.rotation(30) * Affine.scale(0.5, -0.5),
    "turned and mirrored": Affine.translation(100, 200) * Affine.rotation(200) * Affine.scale(0.5, 0.25),
    "sheared": Affine(0.5, 0.2, 100, 0.1, -0.5, 200),
}
coordinates = st.integers(0, 20000)


@st.composite
def box_arrays(draw: st.DrawFn) -> np.ndarray:
    rows = draw(st.lists(st.tuples(coordinates, coordinates, st.integers(1, 500), st.integers(1, 500)), max_size=5))
    return np.array([(x, y, x + w, y + h) for x, y, w, h in rows], float).reshape(-1, 4)


@given(affines, box_arrays())
def test_going_to_the_map_and_back_is_the_identity(transform: Affine, boxes: np.ndarray) -> None:
    corners = boxes.reshape(-1, 2)
    back = to_map(to_map(corners, transform), ~transform)
    assert np.allclose(corners, back, rtol=0, atol=1e-4)


@given(affines, box_arrays())
def test_each_corner_lies_where_the_affine_puts_it(transform: Affine, boxes: np.ndarray) -> None:
    for box, ring in zip(boxes, boxes_to_map(boxes, transform)):
        x0, y0, x1, y1 = box
        expected = {tuple(np.round(transform @ corner if hasattr(transform, "__matmul__") else transform * corner, 4))
                    for corner in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))}  # fmt: skip
        assert expected == {tuple(point) for point in np.round(ring, 4)}
        assert ring[0].tolist() == ring[-1].tolist()


@given(affines | st.sampled_from(list(NAMED.values())), box_arrays())
def test_rings_run_counter_clockwise_whatever_the_orientation(transform: Affine, boxes: np.ndarray) -> None:
    assume(len(boxes) > 0)
    polygons = shapely.polygons(boxes_to_map(boxes, transform))
    assert all(polygon.exterior.is_ccw for polygon in polygons)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) * abs(transform.determinant)
    assert np.allclose(areas, shapely.area(polygons), rtol=1e-4, atol=1e-3)


@given(affines, box_arrays())
def test_wkb_is_read_by_others_with_the_very_same_coordinates(transform: Affine, boxes: np.ndarray) -> None:
    rings = boxes_to_map(boxes, transform)
    polygons = shapely.from_wkb(rings_to_wkb(rings))
    assert len(boxes) == len(polygons)
    for ring, polygon in zip(rings, polygons):
        assert ("Polygon", 0) == (polygon.geom_type, len(polygon.interiors))
        assert ring.tolist() == shapely.get_coordinates(polygon).tolist()


def test_a_north_up_box_has_the_corners_that_one_would_write() -> None:
    (ring,) = boxes_to_map(np.array([[2.0, 4.0, 6.0, 10.0]]), NAMED["north up"])
    assert [[101, 198], [101, 195], [103, 195], [103, 198], [101, 198]] == ring.tolist()


@given(affines | st.sampled_from(list(NAMED.values())))
def test_outlines_keep_their_holes_and_run_counter_clockwise(transform: Affine) -> None:
    outline = shapely.box(0, 0, 10, 10).difference(shapely.box(4, 4, 6, 6))
    both = np.array([outline, shapely.MultiPolygon([outline, shapely.box(20, 0, 22, 2)])])
    single, multiple = shapely.from_wkb(shapes_to_wkb(both, transform))
    assert (1, 2) == (len(single.interiors), len(multiple.geoms))
    assert single.exterior.is_ccw
    assert not single.interiors[0].is_ccw
    assert np.isclose(96 * abs(transform.determinant), single.area, rtol=1e-4)


def test_points_and_lines_lie_where_the_affine_puts_them() -> None:
    shapes = np.array([shapely.Point(2, 4), shapely.LineString([(0, 0), (2, 4)])])
    point, line = shapely.from_wkb(shapes_to_wkb(shapes, NAMED["north up"]))
    assert [(101, 198)] == list(point.coords)
    assert [(100, 200), (101, 198)] == list(line.coords)
