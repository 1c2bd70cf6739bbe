"""Objects become features, all of them or an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsFeatureSink,
    QgsMemoryProviderUtils,
    QgsProject,
    QgsVectorFileWriter,
    QgsVectorLayer,
)

from kestrel.inference.errors import JobError, OutputError
from kestrel.inference.object_file import write_objects
from kestrel.processing_provider.feature_sink import (
    FieldNames,
    RunFacts,
    check_written,
    features,
    fill_sink,
    output_fields,
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
