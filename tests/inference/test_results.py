from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import shapely
from affine import Affine

from kestrel.inference.detections import make_detections
from kestrel.inference.merge import Band, Found
from kestrel.inference.models.definition import ModelClass
from kestrel.inference.rasters.source import RasterInfo
from kestrel.inference.results import _inside, _is_wanted

INFO = RasterInfo(100, 50, 1, "uint8", Affine.identity(), "")


def test_boxes_end_with_the_raster_and_what_lies_beside_it_is_dropped() -> None:
    boxes = [[-5, -6, 10, 10], [90, 40, 104, 60], [20, 20, 30, 30], [101, 0, 110, 10], [0, -9, 10, -1]]
    n = len(boxes)
    found = Found(
        make_detections(boxes, np.ones(n), np.zeros(n)), np.zeros(n, np.int64), np.zeros(n, np.int8), np.ones(n, bool)
    )
    (band,) = _inside(iter([Band(found, 12.0)]), INFO)
    expected = [[0, 0, 10, 10], [90, 40, 100, 50], [20, 20, 30, 30]]
    assert (expected, 12.0) == (band.found.detections.boxes.tolist(), band.frontier)


def of_shapes(*shapes: shapely.Geometry) -> Found:
    n = len(shapes)
    detections = make_detections(shapely.bounds(shapes), np.ones(n), np.zeros(n), shapes=shapes)
    return Found(detections, np.zeros(n, np.int64), np.zeros(n, np.int8), np.ones(n, bool))


def inside(*shapes: shapely.Geometry) -> list[shapely.Geometry]:
    (band,) = _inside(iter([Band(of_shapes(*shapes), 0.0)]), INFO)
    assert band.found.detections.shapes is not None
    return list(band.found.detections.shapes)


def test_outlines_end_with_the_raster_and_keep_their_holes() -> None:
    outline = shapely.box(-5, 10, 10, 20).difference(shapely.box(2, 12, 4, 14))
    (cut,) = inside(outline, shapely.box(-9, 0, -1, 9))
    assert (96, 1, 0) == (cut.area, len(cut.interiors), cut.bounds[0])


def test_of_an_outline_that_only_touches_the_edge_nothing_is_left() -> None:
    assert [] == inside(shapely.box(-5, 0, 0, 5))


def test_an_outline_cut_into_two_becomes_one_object_of_two_parts() -> None:
    (cut,) = inside(shapely.Polygon([(-5, 0), (10, 0), (10, 2), (-2, 2), (-2, 4), (10, 4), (10, 6), (-5, 6)]))
    assert ("MultiPolygon", 40) == (cut.geom_type, cut.area)


@pytest.mark.parametrize("shape", [shapely.Point(5, 5), shapely.LineString([(0, 0), (5, 5)])])
def test_points_and_lines_inside_the_raster_stay(shape: shapely.Geometry) -> None:
    assert [shape] == inside(shape)


def test_points_beside_the_raster_are_dropped() -> None:
    assert [] == inside(shapely.Point(-1, 5))


@pytest.mark.parametrize(("interest", "expected"), [((), [True, True, True]), (("Tree",), [True, False, False])])
def test_objects_of_interest_are_those_of_the_definition(interest: tuple[str, ...], expected: list[bool]) -> None:
    classes = (ModelClass(1, "Tree", (0, 0, 0)), ModelClass(2, "Car", (0, 0, 0)))
    run: Any = SimpleNamespace(
        job=SimpleNamespace(objects_of_interest=interest),
        package=SimpleNamespace(definition=SimpleNamespace(classes=classes)),
    )
    attributes = [{"ClassText": "Tree"}, {"ClassText": "Bus"}, {"ClassText": "Car"}]
    found = make_detections(np.zeros((3, 4)), np.ones(3), [0, 0, 1], attributes=attributes)
    wanted = np.array([0] if interest else [0, 1])
    assert expected == _is_wanted(run, found, wanted).tolist()
