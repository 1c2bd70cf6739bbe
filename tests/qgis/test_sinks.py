"""What Processing can write to, Kestrel writes to: formats of files, and a table in a file that has others already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from osgeo import gdal, ogr
from qgis.core import QgsVectorLayer

from kestrel.tests.qgis.examples import refusal
from kestrel.tests.qgis.test_append import good, make_layer, rows, run  # noqa: F401  # good is a fixture


@pytest.mark.parametrize("name", ["found.geojson", "found.fgb", "found.shp", "found.gpkg"])
def test_a_format_of_files_holds_every_object_with_its_values(
    good: dict[str, Any], tmp_path: Path, name: str  # noqa: F811
) -> None:  # fmt: skip
    results = run({**good, "APPEND_TO": None, "OUTPUT": str(tmp_path / name)})
    found = sorted(rows(results["OUTPUT"], "Class", "Confidence", "ClassValue", "Tile", "JobId"))
    job = results["JOB_ID"]
    assert found == [("House", 25.0, 7, 1, job), ("Palm", 50.0, 4, 0, job), ("Palm", 90.0, 4, 0, job)]
    assert QgsVectorLayer(results["OUTPUT"], "", "ogr").crs().authid() == "EPSG:32633"


@pytest.mark.parametrize("name", ["found.parquet", "found.geoparquet"])
def test_geoparquet_is_written_where_gdal_has_it_and_refused_before_the_run_where_not(
    good: dict[str, Any], tmp_path: Path, name: str  # noqa: F811
) -> None:  # fmt: skip
    parameters = {**good, "APPEND_TO": None, "OUTPUT": str(tmp_path / name)}
    if gdal.GetDriverByName("Parquet") is None:
        reason = refusal(parameters)
        assert "needs GDAL's driver 'Parquet'" in reason
        assert "GeoPackage (.gpkg)" in reason
        assert not (tmp_path / f"{name}.gpkg").exists()
    else:
        assert len(rows(run(parameters)["OUTPUT"], "JobId")) == 3


def test_a_table_is_added_to_a_geopackage_that_has_others(good: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "many.gpkg"
    make_layer(path, table="roads")
    results = run({**good, "APPEND_TO": None, "OUTPUT": f"ogr:dbname='{path}' table=\"found\" (geom)"})
    names = sorted(layer.GetName() for layer in ogr.Open(str(path)))
    assert names == ["found", "roads"]
    assert len(rows(f"{path}|layername=found", "JobId")) == 3
    assert json.loads(results["OUT_OBJECTS"])["uri"].startswith(str(path))


def test_a_run_that_fails_leaves_the_other_tables_of_the_file(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    path = tmp_path / "many.gpkg"
    make_layer(path, table="roads")
    monkeypatch.setattr("kestrel.processing_provider.outputs.writing.fill_sink", lambda *_: 1 / 0)
    with pytest.raises(Exception, match="ZeroDivisionError"):
        run({**good, "APPEND_TO": None, "OUTPUT": f"ogr:dbname='{path}' table=\"found\" (geom)"})
    assert "roads" in [layer.GetName() for layer in ogr.Open(str(path))]


def test_a_file_in_the_form_of_the_operation_is_a_new_layer(good: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    path = str(tmp_path / "found.gpkg")
    results = run({**good, "APPEND_TO": None, "OUTPUT_SERVICE": {"uri": path}})
    assert (results["OUTPUT"], json.loads(results["OUT_OBJECTS"])) == (path, {"uri": path})
    both = {**good, "OUTPUT_SERVICE": {"uri": path}, "OUTPUT": str(tmp_path / "other.gpkg")}
    assert "Leave one of them out" in refusal(both)


def test_the_summary_is_written_and_says_the_same_as_the_output(good: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "summary.json"
    results = run({**good, "SUMMARY_FILE": str(path), "ARGUMENTS": {"threshold": 0.3}})
    data = json.loads(path.read_text("utf-8"))
    assert data == json.loads(results["SUMMARY"])
    assert (data["kestrel_summary"], data["job_id"], data["objects"]) == (1, results["JOB_ID"], 3)
    assert data["classes"] == {"Palm": 2, "House": 1}
    assert (data["model"]["name"], len(data["model"]["sha256"])) == ("Palms", 64)
    assert data["arguments"] == {"threshold": 0.3}
    assert data["search"]["crs"] == "EPSG:32633"
    assert data["search"]["extent"] == [500000.0, 5599920.0, 500100.0, 5600000.0]
    assert data["accounting"]["planned"] == 2
    assert data["versions"] == {"torch": "9.9"}
    assert [item["kind"] for item in data["outputs"]] == ["append"]
    assert "its folder does not exist" in refusal({**good, "SUMMARY_FILE": str(tmp_path / "no" / "x.json")})


def test_the_summary_replaces_nothing_but_a_summary(good: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    assert "raster.tif', which is no JSON" in refusal({**good, "SUMMARY_FILE": good["INPUT"]})
    path = str(tmp_path / "new.gpkg")
    assert "would replace the new layer" in refusal({**good, "OUTPUT": path, "SUMMARY_FILE": path})
    for _ in range(2):
        run({**good, "SUMMARY_FILE": str(tmp_path / "summary.json")})
