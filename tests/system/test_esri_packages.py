"""Esri's model packages through qgis_process, on the demo image: one of each family, and the special ones."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from osgeo import gdal, ogr

from kestrel.tests.fixtures.raster_functions import FINDER, write_finder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "resources" / "demo" / "OSBS_029.tif"
PART = 16.0
"""Metres of the image's upper left corner that are searched: the generated networks know nothing, and find much."""


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package of each family, written in the inference environment."""
    folder = tmp_path_factory.mktemp("packages")
    python = ROOT / "build" / "env" / "inference" / "bin" / "python"
    script = ROOT / "tests" / "fixtures" / "esri_models.py"
    subprocess.run([str(python), str(script), str(folder)], check=True, timeout=300, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def four_bands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo image with a fourth band, a copy of its green one."""
    path = tmp_path_factory.mktemp("raster") / "four.tif"
    gdal.UseExceptions()
    gdal.Translate(str(path), str(IMAGE), bandList=[1, 2, 3, 2], noData="none")
    return path


def part_of(path: Path) -> str:
    t = gdal.Open(str(path)).GetGeoTransform()
    return f"{t[0]},{t[0] + PART},{t[3] - PART},{t[3]} [EPSG:32617]"


@pytest.fixture
def detect(
    run_qgis_process: Callable[..., Any], tmp_path: Path
) -> Callable[..., tuple[dict[str, Any], ogr.DataSource]]:
    """Give `detect(model, raster=IMAGE, **inputs)`: results and output of a run that must succeed."""

    def run(model: Path, raster: Path = IMAGE, **inputs: Any) -> tuple[dict[str, Any], Any]:
        output = tmp_path / "objects.gpkg"
        request = {"INPUT": str(raster), "MODEL": str(model), "EXTENT": part_of(raster), "OUTPUT": str(output),
                   "ARGUMENTS": {"threshold": 0.1}, **inputs}  # fmt: skip
        answer = run_qgis_process(["run", "kestrel:detectobjects", "-"], stdin=json.dumps({"inputs": request}))
        assert answer.code == 0, answer.stderr
        return answer.json["results"], gdal.OpenEx(str(output))

    return run


BOXES = ("FasterRCNN", "SingleShotDetector", "RetinaNet", "YOLOv3", "RTDetrV2", "DeepForest", "TensorFlow")


@pytest.mark.parametrize("family", BOXES)
def test_a_package_of_each_family_gives_boxes_with_its_classes(family: str, packages: Path, detect: Any) -> None:
    results, output = detect(packages / f"{family}.dlpk")
    layer = output.GetLayer(0)
    assert results["OBJECT_COUNT"] == layer.GetFeatureCount() > 0
    assert layer.GetGeomType() == ogr.wkbPolygon
    counts = json.loads(results["CLASS_COUNTS"])
    assert {feature["Class"] for feature in layer} == {name for name, count in counts.items() if count}


def test_a_mask_rcnn_gives_outlines_with_holes_and_boxes_on_request(packages: Path, detect: Any) -> None:
    results, output = detect(packages / "MaskRCNN.dlpk", ARGUMENTS={"threshold": 0.3})
    layer = output.GetLayer(0)
    assert layer.GetGeomType() == ogr.wkbMultiPolygon
    # Copies: what GDAL hands out goes with the feature.
    parts = [part.Clone() for feature in layer for part in feature.GetGeometryRef()]
    assert results["OBJECT_COUNT"] == layer.GetFeatureCount() > 0
    assert any(part.GetGeometryCount() > 1 for part in parts)
    assert all(part.IsValid() for part in parts)
    _, output = detect(packages / "MaskRCNN.dlpk", ARGUMENTS={"threshold": 0.3, "return_bboxes": True})
    layer = output.GetLayer(0)
    assert layer.GetGeomType() == ogr.wkbPolygon
    assert {5} == {feature.GetGeometryRef().GetGeometryRef(0).GetPointCount() for feature in layer}


def test_a_model_of_four_bands_reads_four_bands(
    packages: Path, four_bands: Path, detect: Any, run_qgis_process: Any, tmp_path: Path
) -> None:
    results, _ = detect(packages / "FourBands.dlpk", four_bands)
    assert results["OBJECT_COUNT"] > 0
    arguments = [f"--INPUT={IMAGE}", f"--MODEL={packages / 'FourBands.dlpk'}", f"--OUTPUT={tmp_path / 'no.gpkg'}"]
    answer = run_qgis_process(["run", "kestrel:detectobjects", *arguments])
    assert answer.code == 1
    assert "reads band 4" in answer.stdout + answer.stderr


def test_a_raster_function_runs_only_after_consent_and_gives_points(
    tmp_path: Path, detect: Any, run_qgis_process: Any
) -> None:
    # Without the values at which the fixture fails on purpose: a photo holds them all.
    source = re.sub(r" +if value == 201:.*?raise MemoryError\n", "", FINDER, flags=re.DOTALL)
    model = write_finder(tmp_path / "finder", source)
    request = {"inputs": {"INPUT": str(IMAGE), "MODEL": str(model), "OUTPUT": str(tmp_path / "no.gpkg")}}
    refused = run_qgis_process(["run", "kestrel:detectobjects", "-"], stdin=json.dumps(request))
    assert (1, False) == (refused.code, (tmp_path / "no.gpkg").exists())
    described = run_qgis_process(
        ["run", "kestrel:describemodel", "-"], stdin=json.dumps({"inputs": {"MODEL": str(model)}})
    )
    allowed = described.json["results"]["CODE_SHA256"]
    assert f"ALLOW_PACKAGE_CODE={allowed}" in refused.stderr
    arguments = {"as_points": True, "box_threshold": 0.1}
    results, output = detect(model, ALLOW_PACKAGE_CODE=allowed, ARGUMENTS=arguments)
    layer = output.GetLayer(0)
    assert layer.GetGeomType() == ogr.wkbPoint
    assert results["OBJECT_COUNT"] == layer.GetFeatureCount() > 0
    names = [layer.GetLayerDefn().GetFieldDefn(i).GetName() for i in range(layer.GetLayerDefn().GetFieldCount())]
    assert {"Note", "Pixels", "Mean"} <= set(names)
    feature = layer.GetNextFeature()
    assert ("Tree", 97.5) == (feature["Class"], feature["Confidence"])
    (model.parent / "prf_utils.py").write_text("raise RuntimeError\n", encoding="utf-8")
    request["inputs"]["ALLOW_PACKAGE_CODE"] = allowed
    changed = run_qgis_process(["run", "kestrel:detectobjects", "-"], stdin=json.dumps(request))
    assert 1 == changed.code


@pytest.mark.parametrize("family", ["MaskRCNN", "TensorFlow", "FourBands"])
def test_each_package_is_described_without_an_inference_environment(
    family: str, packages: Path, run_qgis_process: Any, tmp_path: Path
) -> None:
    request = {"MODEL": str(packages / f"{family}.dlpk"), "OUTPUT_HTML": str(tmp_path / "model.html"),
               "OUTPUT_JSON": str(tmp_path / "model.json")}  # fmt: skip
    answer = run_qgis_process(
        ["run", "kestrel:describemodel", "-"], stdin=json.dumps({"inputs": request}), env={"KESTREL_PYTHON": "/none"}
    )
    assert answer.code == 0, answer.stderr
    description = json.loads((tmp_path / "model.json").read_text("utf-8"))
    assert description["classes"]
    assert "<html" in (tmp_path / "model.html").read_text("utf-8").lower()
    expected = {"TensorFlow": "ObjectDetectionAPI", "FourBands": "RetinaNet"}.get(family, family)
    assert expected == answer.json["results"]["FAMILY"]
