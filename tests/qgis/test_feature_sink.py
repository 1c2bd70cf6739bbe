"""Objects become features, all of them or an error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsFeatureSink,
    QgsGeometry,
    QgsMemoryProviderUtils,
    QgsProject,
    QgsVectorFileWriter,
    QgsVectorLayer,
)

from kestrel.inference.errors import JobError, OutputError
from kestrel.inference.object_file import write_objects
from kestrel.processing_provider.feature_sink import (
    ExtraField,
    FieldNames,
    RunFacts,
    check_written,
    extra_fields,
    features,
    fill_sink,
    output_fields,
    output_geometry,
    percent,
)
from kestrel.tests.qgis.examples import definition, three_objects

RUN = RunFacts(definition(), "job-1", FieldNames())
FIELDS = ["Class", "Confidence", "ClassValue", "ModelName", "Tile", "CutByEdge", "JobId"]


def test_the_fields_are_what_maps_and_scripts_rely_on() -> None:
    fields = output_fields(FieldNames())
    assert [(field.name(), field.typeName() or field.type()) for field in fields] == list(
        zip(FIELDS, [10, 6, 2, 10, 4, 1, 10])
    )


def test_the_user_chooses_the_names_of_two_fields() -> None:
    names = [field.name() for field in output_fields(FieldNames("Score", "Kind"))]
    assert names == ["Kind", "Score", *FIELDS[2:]]


def test_every_object_becomes_a_feature_with_all_its_attributes() -> None:
    assert [feature.attributes() for feature in features(three_objects(), RUN)] == [
        ["Palm", 97.12, 4, "Palms", 0, False, "job-1"],
        ["Palm", 50.0, 4, "Palms", 0, False, "job-1"],
        ["House", 25.0, 7, "Palms", 12345678901, True, "job-1"],
    ]


def test_geometries_are_the_polygons_that_came() -> None:
    first = next(features(three_objects(), RUN))
    assert first.geometry().boundingBox().toString(0) == "500010,5599950 : 500012,5599952"


@pytest.mark.parametrize(("score", "expected"), [(0.0, 0.0), (1.0, 100.0), (0.97120001, 97.12), (1 / 3, 33.3333)])
def test_a_score_becomes_a_percentage_of_four_digits(score: float, expected: float) -> None:
    assert percent(score) == expected


@pytest.mark.parametrize("names", [("", "Class"), ("Confidence", ""), ("Class", "class"), ("Tile", "Class")])
def test_field_names_that_are_empty_or_clash_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(JobError):
        FieldNames(*names)


def object_file(folder: Path, number: int = 1) -> Path:
    path = folder / f"objects-{number}.npz"
    write_objects(path, three_objects())
    return path


def test_all_files_are_written_and_counted_by_class(tmp_path: Path) -> None:
    layer = QgsMemoryProviderUtils.createMemoryLayer("out", output_fields(FieldNames()), Qgis.WkbType.Polygon)
    counts = fill_sink(layer.dataProvider(), "out", [object_file(tmp_path, n) for n in (1, 2)], RUN)
    assert (dict(counts), layer.featureCount()) == ({"Palm": 4, "House": 2}, 6)


def test_no_objects_give_an_empty_layer(tmp_path: Path) -> None:
    layer = QgsMemoryProviderUtils.createMemoryLayer("out", output_fields(FieldNames()), Qgis.WkbType.Polygon)
    assert sum(fill_sink(layer.dataProvider(), "out", [], RUN).values()) == 0


class FullSink(QgsFeatureSink):
    """Takes nothing, as a full disk."""

    def addFeatures(self, features: object, flags: object = None) -> bool:
        return False

    def lastError(self) -> str:
        return "disk is full"


def test_a_sink_that_takes_nothing_is_an_error_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"could not be written to 'x\.gpkg': disk is full"):
        fill_sink(FullSink(), "x.gpkg", [object_file(tmp_path)], RUN)


@pytest.mark.parametrize("extension", ["gpkg", "shp", "geojson", "fgb"])
def test_attributes_survive_the_usual_formats(tmp_path: Path, extension: str) -> None:
    path = str(tmp_path / f"out.{extension}")
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName = QgsVectorFileWriter.driverForExtension(extension)
    writer = QgsVectorFileWriter.create(
        path, output_fields(FieldNames()), Qgis.WkbType.Polygon, QgsCoordinateReferenceSystem("EPSG:32633"),
        QgsProject.instance().transformContext(), options,
    )  # fmt: skip
    fill_sink(writer, path, [object_file(tmp_path)], RUN)
    del writer
    layer = QgsVectorLayer(path, "out", "ogr")
    rows = sorted(
        (
            feature["Class"],
            feature["Confidence"],
            feature["ClassValue"],
            feature["Tile"],
            bool(int(feature["CutByEdge"])),
        )
        for feature in layer.getFeatures()
    )
    assert rows == [("House", 25.0, 7, 12345678901, True), ("Palm", 50.0, 4, 0, False), ("Palm", 97.12, 4, 0, False)]
    check_written(path, 3)


def test_a_file_with_fewer_objects_than_were_written_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "out.geojson"
    path.write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(OutputError, match="of 3 objects 0 can be read back"):
        check_written(str(path), 3)


def test_a_file_that_cannot_be_read_back_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "out.gpkg"
    path.write_bytes(b"")
    with pytest.raises(OutputError, match="can be read back"):
        check_written(str(path), 0)


def test_a_destination_that_is_no_file_is_not_checked() -> None:
    check_written("polygons_12345", 3)


def file_of(folder: Path, *wkt: str) -> Path:
    """Write objects of these shapes."""
    shapes = [bytes(QgsGeometry.fromWkt(text).asWkb()) for text in wkt]
    objects = three_objects()
    path = folder / "shapes.npz"
    n = len(shapes)
    write_objects(
        path, replace(objects, wkb=shapes, scores=objects.scores[:n], labels=objects.labels[:n],
                      tiles=objects.tiles[:n], is_cut=objects.is_cut[:n]),
    )  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("kind", "wkt", "expected"),
    [
        ("box", "Polygon ((0 0, 1 0, 1 1, 0 0))", Qgis.WkbType.Polygon),
        (None, "Polygon ((0 0, 1 0, 1 1, 0 0))", Qgis.WkbType.Polygon),
        ("polygon", "Polygon ((0 0, 1 0, 1 1, 0 0))", Qgis.WkbType.MultiPolygon),
        ("point", "Point (1 2)", Qgis.WkbType.Point),
        ("point", "MultiPoint ((1 2), (3 4))", Qgis.WkbType.MultiPoint),
        ("line", "LineString (1 2, 3 4)", Qgis.WkbType.LineString),
        ("line", "MultiLineString ((1 2, 3 4), (5 6, 7 8))", Qgis.WkbType.MultiLineString),
    ],
)
def test_the_worker_decides_the_geometry_and_parts_make_it_a_multi_type(
    tmp_path: Path, kind: Any, wkt: str, expected: Qgis.WkbType
) -> None:
    assert output_geometry(kind, [file_of(tmp_path, wkt)]) == expected


@pytest.mark.parametrize("extension", ["gpkg", "shp", "geojson", "fgb"])
@pytest.mark.parametrize(
    ("kind", "wkt"),
    [
        ("polygon", ("Polygon ((0 0, 4 0, 4 4, 0 4, 0 0),(1 1, 1 2, 2 2, 2 1, 1 1))",
                     "MultiPolygon (((5 5, 6 5, 6 6, 5 5)),((7 7, 8 7, 8 8, 7 7)))")),
        ("point", ("Point (1 2)", "MultiPoint ((1 2), (3 4))")),
        ("line", ("LineString (1 2, 3 4)", "LineString (1 2, 3 4, 5 5)")),
    ],
)  # fmt: skip
def test_outlines_points_and_lines_survive_the_usual_formats(
    tmp_path: Path, extension: str, kind: str, wkt: tuple[str, ...]
) -> None:
    source = file_of(tmp_path, *wkt)
    run = replace(RUN, geometry=output_geometry(kind, [source]))
    path = str(tmp_path / f"out.{extension}")
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName = QgsVectorFileWriter.driverForExtension(extension)
    writer = QgsVectorFileWriter.create(
        path, output_fields(run.fields), run.geometry, QgsCoordinateReferenceSystem("EPSG:32633"),
        QgsProject.instance().transformContext(), options,
    )  # fmt: skip
    fill_sink(writer, path, [source], run)
    del writer
    check_written(path, 2)
    expected = [QgsGeometry.fromWkt(text) for text in wkt]
    found = [feature.geometry() for feature in QgsVectorLayer(path, "out", "ogr").getFeatures()]
    for shape in (*expected, *found):
        shape.convertToMultiType()
    matches = [sum(shape.isGeosEqual(other) for other in found) for shape in expected]
    assert matches == [1, 1]


ANNOUNCED = [
    {"name": "Height", "type": "number", "alias": "Height of the tree"},
    {"name": "Class", "type": "text"},
    {"name": "count of leaves!", "type": "integer"},
    {"name": "fid", "type": "integer"},
]


def test_fields_of_the_models_own_follow_kestrels_under_names_that_are_free() -> None:
    extra = extra_fields(ANNOUNCED, FieldNames())
    fields = output_fields(FieldNames(), extra)
    assert [field.name() for field in fields] == [*FIELDS, "Height", "Class_2", "count_of_leaves", "fid_2"]
    assert [int(field.type()) for field in fields][-4:] == [6, 10, 4, 4]
    assert fields.field("Height").alias() == "Height of the tree"


@pytest.mark.parametrize("announced", [None, "x", [1, {"type": "text"}, {"name": 3}], {"name": "x"}])
def test_what_is_no_list_of_fields_gives_none(announced: Any) -> None:
    assert extra_fields(announced, FieldNames()) == ()


def test_attributes_fill_their_fields_and_what_does_not_fit_is_left_empty() -> None:
    attributes = [{"Height": "12.5", "Class": {"a": 1}, "n": 3}, {"Height": "tall", "n": float("nan")}, {}]
    extra = (
        ExtraField("Height", "Height", "number"),
        ExtraField("Class", "Class_2", "text"),
        ExtraField("n", "n", "integer"),
    )
    objects = replace(three_objects(), attributes=attributes)
    found = [feature.attributes()[len(FIELDS) :] for feature in features(objects, replace(RUN, extra=extra))]
    assert found == [[12.5, '{"a": 1}', 3], [None, None, None], [None, None, None]]
