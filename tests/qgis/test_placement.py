"""Objects get to the coordinate reference system of the output, or the run says by name why not."""

from __future__ import annotations

import pytest
from qgis.core import QgsCoordinateReferenceSystem, QgsCoordinateTransformContext, QgsGeometry

from kestrel.inference.errors import OutputError
from kestrel.processing_provider.outputs.placement import Placement
from kestrel.processing_provider.text import without_secrets

UTM = QgsCoordinateReferenceSystem("EPSG:32633")
WORLD = QgsCoordinateReferenceSystem("EPSG:4326")
MERCATOR = QgsCoordinateReferenceSystem("EPSG:3857")


def placed(wkt: str, source: QgsCoordinateReferenceSystem, target: QgsCoordinateReferenceSystem) -> QgsGeometry:
    geometry = QgsGeometry.fromWkt(wkt)
    Placement(source, target, QgsCoordinateTransformContext()).mover()(geometry)
    return geometry


def test_a_geometry_is_moved_to_the_other_system() -> None:
    point = placed("Point(500011 5599951)", UTM, WORLD).asPoint()
    # Source: PROJ.
    assert (round(point.x(), 6), round(point.y(), 6)) == (15.000155, 50.551492)


@pytest.mark.parametrize("target", [UTM, QgsCoordinateReferenceSystem()])
def test_without_another_system_it_stays_as_it_is(target: QgsCoordinateReferenceSystem) -> None:
    wkt = "Polygon ((1.1 2.2, 3.3 4.4, 5.5 2.2, 1.1 2.2))"
    assert placed(wkt, UTM, target).asWkt(1) == wkt
    assert Placement(UTM, target).crs == UTM


def test_what_has_no_place_there_is_told_with_both_names() -> None:
    with pytest.raises(OutputError, match=r"EPSG:4326.*EPSG:3857"):
        placed("Point(0 95)", WORLD, MERCATOR)


def test_pixels_without_a_place_cannot_be_moved() -> None:
    with pytest.raises(OutputError, match="from no coordinate reference system to EPSG:4326"):
        placed("Point(0 0)", QgsCoordinateReferenceSystem(), WORLD)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("/data/a b.tif", "/data/a b.tif"),
        ("https://u:pw@host/x.tif?sig=secret", "https://host/x.tif"),
        ("dbname='gis' host=h user='me' password='s e\\'c' sslmode=disable table=\"t\"",
         "dbname='gis' host=h   sslmode=disable table=\"t\""),
        ("PG:dbname=gis password=secret mode=2", "PG:dbname=gis  mode=2"),
        ("url='https://h/FeatureServer/0' authcfg=abc1234", "url='https://h/FeatureServer/0'"),
    ],
)  # fmt: skip
def test_a_source_is_told_without_what_signs_in(source: str, expected: str) -> None:
    assert without_secrets(source) == expected
