"""What cannot work is refused before anything starts, with the reason and the way out."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from osgeo import gdal
from qgis.core import Qgis, QgsApplication, QgsProject, QgsSettings, QgsVectorLayer

from kestrel.processing_provider import detect_objects
from kestrel.tests.qgis.examples import polygon_layer, refusal, write_model, write_program, write_raster

Setup = Callable[[Path], dict[str, Any]]


@pytest.fixture
def good(tmp_path: Path) -> dict[str, Any]:
    """Parameters that nothing is wrong with."""
    return {
        "INPUT": write_raster(tmp_path / "raster.tif"),
        "MODEL": write_model(tmp_path),
        "OUTPUT": str(tmp_path / "out.gpkg"),
    }


def test_good_parameters_pass(good: dict[str, Any]) -> None:
    assert refusal(good) == ""


GOOD_VALUES: list[dict[str, Any]] = [
    {"ARGUMENTS": '{"threshold": 0.4}'},
    {"ARGUMENTS": "threshold 0.4;padding 64"},
    {"ARGUMENTS": {"threshold": 0.4}},
    {"ARGUMENTS": '{"unheard_of": 1}'},
    {"OBJECTS_OF_INTEREST": "Palm; House"},
    {"OBJECTS_OF_INTEREST": '["Palm"]'},
    {"OBJECTS_OF_INTEREST": ["House"]},
    {"EXTENT": "500010,500020,5599930,5599950 [EPSG:32633]"},
    {"EXTENT": None},
    {"CELL_SIZE": 0.5},
    {"PROCESSOR_TYPE": "CPU"},
    {"GPU_ID": 1},
    {"PARALLEL_PROCESSING_FACTOR": "2"},
    {"PARALLEL_PROCESSING_FACTOR": ""},
    {"RUN_NMS": True, "MAX_OVERLAP_RATIO": 0.3},
    {"OUTPUT": "TEMPORARY_OUTPUT"},
    {"OUTPUT": "/tmp/out.shp"},
    {"OUTPUT": "/tmp/out.geojson"},
    {"OUTPUT": "/tmp/out.csv"},
    {"OUTPUT": "postgres:dbname='x' table=\"trees\" (geom)"},
]


@pytest.mark.parametrize("change", GOOD_VALUES, ids=str)
def test_good_values_pass(good: dict[str, Any], change: dict[str, Any]) -> None:
    assert refusal({**good, **change}) == ""


BAD_VALUES: list[tuple[dict[str, Any], list[str]]] = [
    ({"MODEL": "/nowhere/model.dlpk"}, ["'/nowhere/model.dlpk' does not exist"]),
    ({"MODEL": "{}"}, ["no model definition"]),
    ({"MODEL": "~nosuch/x.dlpk"}, ["'~nosuch/x.dlpk'", "home of a user", "Write the whole path"]),
    ({"ARGUMENTS": '{"threshold": 1.5}'}, ["'threshold' is 1.5", "a number from 0 to 1"]),
    ({"ARGUMENTS": "threshold high"}, ["'threshold' is 'high'"]),
    ({"ARGUMENTS": "threshold"}, ["'threshold' has no value"]),
    ({"ARGUMENTS": '{"threshold": '}, ["not valid JSON"]),
    ({"ARGUMENTS": "padding 200"}, ["'padding' is 200", "must be below 128"]),
    ({"OBJECTS_OF_INTEREST": "Palm;Car"}, ["no class named 'Car'", "Palm; House"]),
    ({"OBJECTS_OF_INTEREST": '["Palm"'}, ["not a valid JSON list"]),
    ({"EXTENT": "0,10,0,10 [EPSG:32633]"}, ["outside the raster 'raster'", "The raster covers"]),
    ({"EXTENT": "500010,500010,5599930,5599950 [EPSG:32633]"}, ["extent is empty"]),
    ({"CELL_SIZE": 0}, ["Cell size 0 is not a positive number"]),
    ({"MAX_OVERLAP_RATIO": 1.5}, ["MAX_OVERLAP_RATIO"]),
    ({"CONFIDENCE_SCORE_FIELD": " "}, ["confidence score field is empty"]),
    ({"CLASS_VALUE_FIELD": "confidence"}, ["Two fields", "'confidence'"]),
    ({"CLASS_VALUE_FIELD": "JobId"}, ["Two fields", "'jobid'"]),
    ({"CLASS_VALUE_FIELD": "fid"}, ["cannot be named 'fid'"]),
    ({"PROCESSOR_TYPE": "TPU"}, ["PROCESSOR_TYPE"]),
    ({"PARALLEL_PROCESSING_FACTOR": "many"}, ["'many' is neither a count nor a percentage"]),
    ({"OUTPUT": "/nowhere/at/all/out.gpkg"}, ["'/nowhere/at/all' cannot be written", "Choose another folder"]),
    ({"OUTPUT": "no/such/folder/out.gpkg"}, ["/no/such/folder' cannot be written"]),
    ({"OUTPUT": "/tmp"}, ["'/tmp' is a folder", "Add the name of a file"]),
    ({"OUTPUT": "/tmp/out.dxf"}, ["'*.dxf' cannot hold polygons", "GeoPackage"]),
    ({"OUTPUT": "/tmp/out.gpx"}, ["'*.gpx' cannot hold polygons"]),
    ({"OUTPUT": "/tmp/10:30.gpkg"}, ["holds a colon", "Choose a file name"]),
    ({"INPUT": "/nowhere/raster.tif"}, ["INPUT", "/nowhere/raster.tif"]),
]


@pytest.mark.parametrize(("change", "expected"), BAD_VALUES, ids=[str(change) for change, _ in BAD_VALUES])
def test_bad_values_are_refused_by_name(good: dict[str, Any], change: dict[str, Any], expected: list[str]) -> None:
    reason = refusal({**good, **change})
    assert [text for text in expected if text not in reason] == [], reason


def _no_crs(folder: Path) -> dict[str, Any]:
    return {"INPUT": write_raster(folder / "x.tif", epsg=None)}


def _no_georeference(folder: Path) -> dict[str, Any]:
    return {"INPUT": write_raster(folder / "x.tif", transform=None)}


def _only_control_points(folder: Path) -> dict[str, Any]:
    path = write_raster(folder / "x.tif", transform=None)
    points = [gdal.GCP(500000 + x, 5600000 - y, 0, x, y) for x, y in ((0, 0), (100, 0), (0, 80), (100, 80))]
    dataset = gdal.Open(path, gdal.GA_Update)
    dataset.SetGCPs(points, dataset.GetProjection())
    del dataset
    return {"INPUT": path}


def _one_band(folder: Path) -> dict[str, Any]:
    return {"INPUT": write_raster(folder / "x.tif", n_bands=1)}


def _named_band(folder: Path) -> dict[str, Any]:
    return {"MODEL": write_model(folder, "named.emd", ExtractBands=["nir"])}


def _empty_mask(folder: Path) -> dict[str, Any]:
    return {"MASK": polygon_layer().id()}


def _file_that_is_no_package(folder: Path) -> dict[str, Any]:
    (folder / "notes.dlpk").write_text("not a package")
    return {"MODEL": str(folder / "notes.dlpk")}


def _package_without_definition(folder: Path) -> dict[str, Any]:
    with zipfile.ZipFile(folder / "x.dlpk", "w") as archive:
        archive.writestr("readme.txt", "hello")
    return {"MODEL": str(folder / "x.dlpk")}


def _folder_without_model(folder: Path) -> dict[str, Any]:
    (folder / "empty").mkdir()
    return {"MODEL": str(folder / "empty")}


def _python_program(folder: Path) -> dict[str, Any]:
    return {"MODEL": write_program(folder / "program.dlpk")}


def _layer_in_edit_mode(folder: Path) -> dict[str, Any]:
    path = folder / "edited.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [
        {"type": "Feature", "properties": {}, "geometry": {"type": "Point", "coordinates": [1, 2]}}
    ]}))  # fmt: skip
    layer = QgsVectorLayer(str(path), "edited", "ogr")
    QgsProject.instance().addMapLayer(layer)
    assert layer.startEditing()
    return {"OUTPUT": str(path)}


BAD_THINGS: list[tuple[Setup, list[str]]] = [
    (_no_crs, ["no coordinate reference system", "Assign Projection"]),
    (_no_georeference, ["no georeference", "Georeferencer"]),
    (_only_control_points, ["only ground control points"]),
    (_one_band, ["reads band 2", "has 1 band"]),
    (_named_band, ["reads the band 'nir'", "Choose a raster"]),
    (_empty_mask, ["mask holds no polygon"]),
    (_file_that_is_no_package, ["not a model package"]),
    (_package_without_definition, ["no model definition", "readme.txt"]),
    (_folder_without_model, ["no model definition"]),
    (_python_program, ["is a program ('Finder.py'", "ALLOW_PACKAGE_CODE="]),
    (_layer_in_edit_mode, ["'edited', which is being edited"]),
]


@pytest.mark.parametrize(("make", "expected"), BAD_THINGS, ids=[make.__name__ for make, _ in BAD_THINGS])
def test_things_that_do_not_fit_are_refused(
    good: dict[str, Any], tmp_path: Path, make: Setup, expected: list[str]
) -> None:
    reason = refusal({**good, **make(tmp_path)})
    assert [text for text in expected if text not in reason] == [], reason


def test_a_choice_that_is_not_there_is_refused_with_those_that_are(good: dict[str, Any]) -> None:
    for key, other in (("PROCESSING_MODE", "PROCESS_ITEMS_SEPARATELY"), ("CELL_SIZE_UNIT", "Feet")):
        reason = refusal({**good, key: 1})
        assert key in reason
        assert other in reason


def test_a_missing_interpreter_is_refused_with_the_way_to_the_options(
    good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KESTREL_PYTHON", "/nowhere/python")
    assert refusal(good) == (
        "The inference interpreter '/nowhere/python' does not exist or cannot be run. "
        "Open Settings > Options > Kestrel to choose one or to set up the environment. [worker-start]"
    )


def test_without_any_environment_the_reason_says_that_none_is_set_up(
    good: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = QgsSettings().value("kestrel/interpreter", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("KESTREL_PYTHON", raising=False)
    QgsSettings().remove("kestrel/interpreter")
    try:
        reason = refusal(good)
    finally:
        QgsSettings().setValue("kestrel/interpreter", before)
    assert reason.startswith("The inference environment, the Python with torch, is not set up. Open Settings > Options")


def test_what_nobody_foresaw_is_told_and_does_not_leave_the_algorithm(
    good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no <luck>")

    log: list[tuple[str, str]] = []
    QgsApplication.messageLog().messageReceived[str, str, Qgis.MessageLevel].connect(
        lambda text, tag, level: log.append((tag, text))
    )
    monkeypatch.setattr(detect_objects, "make_draft", fail)
    reason = refusal(good)
    assert reason.startswith("Unexpected error (RuntimeError): no ‹luck>. This is a fault of Kestrel: please report it")
    assert reason.endswith("[error]")
    assert [tag for tag, text in log if "in fail" in text and "Traceback" in text] == ["Kestrel"]


def test_a_reason_holds_no_markup(good: dict[str, Any]) -> None:
    reason = refusal({**good, "MODEL": "/x/<img src=a>.dlpk"})
    assert "<" not in reason
    assert "‹img src=a>" in reason


def test_a_layer_that_gdal_does_not_read_is_read_by_qgis(good: dict[str, Any]) -> None:
    tiles = "wms://type=xyz&url=http://127.0.0.1:9/%7Bz%7D/%7Bx%7D/%7By%7D.png&zmax={}&zmin=0"
    assert refusal({**good, "INPUT": tiles.format(3)}) == ""
    assert "EXTENT or MASK" in refusal({**good, "INPUT": tiles.format(19)})
