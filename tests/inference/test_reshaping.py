from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio.features
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel.inference.detections import Detections, make_detections
from kestrel.inference.detectors.protocol import Traits
from kestrel.inference.georeference import angles_of
from kestrel.inference.outlines import outline
from kestrel.inference.reshaping import reshaped, reshaped_geometry, simplified
from kestrel.inference.squaring import square
from kestrel.tests.fixtures.rasters import NORTH_UP, write_raster
from kestrel.tests.fixtures.runs import run
from kestrel.tests.fixtures.segmenter import Segmenter, write_segmenter


def arguments(**given: Any) -> dict[str, Any]:
    return {"shape": "model", "simplify": 0.0, "square_corners": False, **given}


def of(*shapes: shapely.Geometry) -> Detections:
    n = len(shapes)
    return make_detections(shapely.bounds(shapes), np.ones(n), np.zeros(n), shapes=shapes)


def pixels(shape: shapely.Geometry, side: int = 120) -> shapely.Geometry:
    """Give the shape as a mask has it: along pixels."""
    return outline(rasterio.features.rasterize([shape], (side, side)).astype(bool))


def overlap(shape: shapely.Geometry, other: shapely.Geometry) -> float:
    return shape.intersection(other).area / shape.union(other).area


def turned_house(degrees: float) -> shapely.Polygon:
    house = shapely.box(30, 40, 90, 70).union(shapely.box(30, 40, 55, 95))  # an L
    return shapely.affinity.rotate(house, degrees, origin=(60, 60))


RING = shapely.Point(50, 50).buffer(30).difference(shapely.Point(50, 50).buffer(20))


def test_nothing_changes_unless_asked_for() -> None:
    found = of(pixels(RING))
    assert found is reshaped(found, "polygon", arguments())


@pytest.mark.parametrize(("shape", "geometry", "expected"), [
    ("model", "polygon", "polygon"), ("box", "polygon", "box"), ("point", "polygon", "point"), ("box", "box", "box"),
    ("point", "box", "point"), ("box", "line", "line"), ("point", "line", "point"), ("box", "point", "point"),
])  # fmt: skip
def test_areas_become_rectangles_and_everything_becomes_points(shape: str, geometry: str, expected: str) -> None:
    assert expected == reshaped_geometry(geometry, arguments(shape=shape))


def test_a_rectangle_goes_around_the_object() -> None:
    boxes = reshaped(of(pixels(RING), shapely.box(2, 3, 4, 9)), "polygon", arguments(shape="box"))
    assert (None, [[20, 20, 80, 80], [2, 3, 4, 9]]) == (boxes.shapes, boxes.boxes.tolist())


def test_a_point_is_the_centre_and_always_inside() -> None:
    shapes = [RING, shapely.box(2, 3, 4, 9), shapely.LineString([(0, 0), (0, 8), (8, 8)]), shapely.Point(1, 2)]
    points = reshaped(of(*shapes), "polygon", arguments(shape="point")).shapes
    assert points is not None
    assert ["Point"] * 4 == [point.geom_type for point in points]
    assert all(shape.distance(point) == 0 for shape, point in zip(shapes, points))
    assert [(3, 6), (1, 2)] == [(points[1].x, points[1].y), (points[3].x, points[3].y)]
    boxes = make_detections([[2, 3, 4, 9]], [1], [0])
    assert [shapely.Point(3, 6)] == list(reshaped(boxes, "box", arguments(shape="point")).shapes)


def test_simplified_outlines_have_fewer_corners_and_stay_within_the_tolerance() -> None:
    shape = pixels(RING)
    (simple,) = reshaped(of(shape), "polygon", arguments(simplify=1.5)).shapes
    assert shapely.get_num_coordinates(simple) < shapely.get_num_coordinates(shape) / 3
    assert 1 == len(simple.interiors)
    assert simple.hausdorff_distance(shape) <= 1.5 + 1e-9


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 80))
def test_no_tolerance_empties_or_breaks_an_outline(seed: int, tolerance: float) -> None:
    random = np.random.default_rng(seed)
    covered = random.random((12, 14)) < random.uniform(0.1, 0.9)
    covered[0, 0] = True
    shapes = np.array([outline(covered), outline(covered.repeat(3, 0))])
    simple = simplified(shapes, tolerance)
    assert shapely.is_valid(simple).all()
    assert (shapely.area(simple) > 0).all()
    squared = square(shapes, simple, tolerance)
    assert shapely.is_valid(squared).all()
    assert (shapely.area(squared) > 0).all()


@pytest.mark.parametrize("degrees", [0, 7, 20, 44, 45, 71, 90])
def test_a_building_gets_its_corners_back(degrees: float) -> None:
    house = turned_house(degrees)
    shape = pixels(house)
    (squared,) = reshaped(of(shape), "polygon", arguments(square_corners=True)).shapes
    ring = shapely.get_coordinates(squared)
    edges = np.diff(ring, axis=0)
    angles = np.degrees(np.arctan2(edges[:, 1], edges[:, 0])) % 90
    assert 7 == len(ring)
    assert np.ptp((angles - angles[0] + 45) % 90) < 1e-6
    assert abs((angles[0] - degrees + 45) % 90 - 45) < 2.5
    assert overlap(squared, house) > 0.93
    assert overlap(squared, shape) > 0.9


def test_a_courtyard_is_squared_too_and_a_small_hole_remains() -> None:
    yard = turned_house(20).difference(shapely.affinity.rotate(shapely.box(36, 46, 50, 85), 20, origin=(60, 60)))
    shape = pixels(yard).difference(shapely.box(62, 55, 64, 56))
    (squared,) = reshaped(of(shape), "polygon", arguments(square_corners=True)).shapes
    assert sorted(len(ring.coords) for ring in squared.interiors) == [5, 5]
    assert overlap(squared, yard) > 0.88


def test_what_is_not_square_keeps_its_simplified_outline() -> None:
    bean = pixels(shapely.LineString([(20, 20), (60, 90), (100, 20)]).buffer(9))
    found = of(bean)
    (plain,) = reshaped(found, "polygon", arguments(simplify=1.0)).shapes
    (squared,) = reshaped(found, "polygon", arguments(simplify=1.0, square_corners=True)).shapes
    assert plain.equals(squared)


TURNED = shapely.box(10, 20, 40, 30)  # wide


@pytest.mark.parametrize(("degrees", "expected"), [(0, 90), (30, 120), (90, 0), (135, 45), (-30, 60)])
def test_the_direction_is_that_of_the_long_side_clockwise_from_north(degrees: float, expected: float) -> None:
    # y runs down in pixels, so what turns counter-clockwise there turns clockwise on the map.
    shape = shapely.affinity.rotate(TURNED, degrees)
    shapes = np.array([shape, shape.reverse(), shapely.Polygon(np.roll(shape.exterior.coords[:-1], 1, axis=0))])
    assert [expected] * 3 == pytest.approx(angles_of(shapes, NORTH_UP).tolist())


def test_the_direction_is_the_map_s_where_pixels_are_turned_or_no_squares() -> None:
    shapes = np.array([TURNED])
    assert [0] == angles_of(shapes, Affine(0, 1, 0, 1, 0, 0)).tolist()
    assert [0] == angles_of(shapes, Affine(1, 0, 0, 0, -10, 0)).tolist()  # 30 wide, 100 high
    assert [45] == pytest.approx(angles_of(shapes, Affine.rotation(45)).tolist())
    assert 0 == len(angles_of(np.empty(0, object), NORTH_UP))


def test_what_is_no_rectangle_any_more_has_the_direction_of_the_one_around_it() -> None:
    turned = shapely.affinity.rotate(TURNED, 30)
    without_corner = turned.difference(shapely.Point(turned.exterior.coords[0]).buffer(1, quad_segs=1))
    assert [120] == pytest.approx(angles_of(np.array([without_corner]), NORTH_UP).tolist(), abs=1)


def test_turned_rectangles_carry_their_direction_and_are_not_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traits = Traits(
        stride=1, receptive_field_radius=None, is_dense=False, geometry="polygon", is_oriented=True,
        fields=({"name": "Angle", "type": "number"},),
    )  # fmt: skip

    def as_rectangles(found: Detections, image: Any) -> Detections:
        return found if found.shapes is None else of(*shapely.oriented_envelope(found.shapes))

    image = np.zeros((1, 100, 140), np.uint8)
    image[0, 10:20, 30:70] = image[0, 60:90, 100:106] = 2
    image[0, 30:38, 0:138] = 4  # longer than a tile sees
    model = write_segmenter(tmp_path, monkeypatch, Segmenter(traits, as_rectangles))
    raster = write_raster(tmp_path / "raster.tif", image)
    for shape, geometry in (("model", "polygon"), ("point", "point")):
        result = run(tmp_path / shape, raster, model, arguments={"tile_size": 80, "padding": 20, "shape": shape})
        assert ([90, 0], geometry) == (
            [item["Angle"] for item in result.objects[0].attributes],
            result.summary["geometry"],
        )
