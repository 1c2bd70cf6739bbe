"""The main job without a window: command line, JSON on standard input, a chain of the model designer, other outputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "resources" / "demo" / "OSBS_029.tif"
MODEL = ROOT / "resources" / "models" / "tree_crowns.dlpk"
CHAIN = ROOT / "tests" / "fixtures" / "trees_centroids.model3"
ALGORITHM = "kestrel:detectobjects"


def read_layer(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Give geometry and attributes of each feature, in the order of the file."""
    from osgeo import ogr

    source = ogr.Open(str(path))
    layer = source.GetLayer(0)
    names = [layer.GetLayerDefn().GetFieldDefn(i).GetName() for i in range(layer.GetLayerDefn().GetFieldCount())]
    return [(f.GetGeometryRef().ExportToWkt(), {name: f.GetField(name) for name in names}) for f in layer]


def objects(path: Path) -> list[tuple[str, str, float]]:
    return [(wkt, row["Class"], row["Confidence"]) for wkt, row in read_layer(path)]


@pytest.fixture
def on_command_line(tmp_path: Path, run_qgis_process: Callable[..., Any]) -> Path:
    """The demo, detected through the command line."""
    output = tmp_path / "line.gpkg"
    answer = run_qgis_process(
        ["run", ALGORITHM, f"--INPUT={IMAGE}", f"--MODEL={MODEL}", "--ARGUMENTS=threshold 0.4", f"--OUTPUT={output}"]
    )
    assert answer.code == 0, answer.stderr
    return output


def test_command_line_and_json_on_standard_input_give_the_same_objects(
    on_command_line: Path, tmp_path: Path, run_qgis_process: Callable[..., Any]
) -> None:
    output = tmp_path / "json.gpkg"
    inputs = {"INPUT": str(IMAGE), "MODEL": str(MODEL), "ARGUMENTS": {"threshold": 0.4}, "OUTPUT": str(output)}
    answer = run_qgis_process(["run", ALGORITHM, "-"], stdin=json.dumps({"inputs": inputs}))
    assert answer.code == 0, answer.stderr
    found = objects(output)
    assert objects(on_command_line) == found
    assert answer.json["results"]["OBJECT_COUNT"] == len(found) > 30
    assert json.loads(answer.json["results"]["CLASS_COUNTS"]) == {"Tree": len(found)}


def test_each_object_carries_what_a_check_needs(on_command_line: Path) -> None:
    rows = [row for _, row in read_layer(on_command_line)]
    assert {row["ClassValue"] for row in rows} == {1}
    assert {row["ModelName"] for row in rows} == {"Kestrel tree crowns"}
    assert len({row["JobId"] for row in rows}) == 1
    assert all(40 < row["Confidence"] <= 100 for row in rows)
    assert {bool(row["CutByEdge"]) for row in rows} == {True, False}


def test_a_failing_run_ends_with_an_error_code_and_its_whole_reason(
    tmp_path: Path, run_qgis_process: Callable[..., Any]
) -> None:
    output = str(tmp_path / "x.gpkg")
    inputs = {"INPUT": str(IMAGE), "MODEL": str(MODEL), "ARGUMENTS": {"threshold": 4}, "OUTPUT": output}
    answer = run_qgis_process(["run", ALGORITHM, "-"], stdin=json.dumps({"inputs": inputs}))
    assert answer.code != 0
    assert "Model argument 'threshold' is 4; expected a number from 0 to 1." in answer.stderr


@pytest.mark.slow
def test_a_run_that_fails_in_the_worker_tells_its_whole_reason_too(
    tmp_path: Path, run_qgis_process: Callable[..., Any]
) -> None:
    from osgeo import gdal

    gdal.UseExceptions()
    # 8-bit pixels are what the model takes, and nobody may bring the values to that.
    floats = tmp_path / "floats.tif"
    gdal.Translate(str(floats), str(IMAGE), outputType=gdal.GDT_Float32, scaleParams=[[0, 255, 0, 2550]])
    inputs = {
        "INPUT": str(floats), "MODEL": str(MODEL), "OUTPUT": str(tmp_path / "x.gpkg"), "ARGUMENTS": {"stretch": "none"},
    }  # fmt: skip
    answer = run_qgis_process(["run", ALGORITHM, "-"], stdin=json.dumps({"inputs": inputs}))
    assert answer.code != 0
    assert "The model takes 8-bit pixels, and the raster's are float32." in answer.stderr
    assert "argument stretch" in answer.stderr
    assert "[model-incompatible]" in answer.stderr


@pytest.mark.slow
def test_a_chain_of_the_model_designer_runs(tmp_path: Path, run_qgis_process: Callable[..., Any]) -> None:
    described = run_qgis_process(["--json", "help", str(CHAIN)]).json
    keys = list(described["parameters"])
    given = {"image": str(IMAGE), "detector": str(MODEL), "threshold": 0.4}
    destinations = {key: str(tmp_path / f"{number}.gpkg") for number, key in enumerate(keys) if key not in given}
    answer = run_qgis_process(["run", str(CHAIN), "-"], stdin=json.dumps({"inputs": {**given, **destinations}}))
    assert answer.code == 0, answer.stderr
    layers = [read_layer(Path(path)) for path in destinations.values()]
    assert sorted({layer[0][0].split()[0] for layer in layers}) == ["POINT", "POLYGON"]
    assert len({len(layer) for layer in layers}) == 1
    assert len(layers[0]) > 30


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["geojson", "fgb", "shp"])
def test_other_formats_hold_the_same_objects(
    on_command_line: Path, tmp_path: Path, run_qgis_process: Callable[..., Any], suffix: str
) -> None:
    output = tmp_path / f"trees.{suffix}"
    answer = run_qgis_process(
        ["run", ALGORITHM, f"--INPUT={IMAGE}", f"--MODEL={MODEL}", "--ARGUMENTS=threshold 0.4", f"--OUTPUT={output}"]
    )
    assert answer.code == 0, answer.stderr
    assert sorted(c for _, _, c in objects(output)) == pytest.approx(sorted(c for _, _, c in objects(on_command_line)))
