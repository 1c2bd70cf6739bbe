"""Models of every open kind through qgis_process, each as its file or folder alone, on real rasters."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from osgeo import gdal, ogr

pytestmark = pytest.mark.slow
# Masks of random networks are noise, of which every pixel is an object of its own: a quarter of the image will do.
QUARTER = "404211.9,404231.9,3285122.9,3285142.9 [EPSG:32617]"
gdal.UseExceptions()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, repository: Path, inference_python: str) -> Path:
    folder = tmp_path_factory.mktemp("models")
    resources = repository / "resources"
    subprocess.run(
        [inference_python, str(repository / "tests" / "fixtures" / "make_open_models.py"), str(folder),
         str(repository / "build" / "plugins"), str(resources / "demo" / "OSBS_029.tif"),
         str(resources / "models" / "tree_crowns.dlpk")],
        check=True, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return folder


@pytest.fixture
def detect(run_qgis_process: Callable[..., Any], tmp_path: Path, repository: Path) -> Callable[..., Any]:
    """Give `detect(model, arguments, raster, extent)`, which gives the log, the results and the layer's features."""

    def run(
        model: Path, arguments: str, raster: Path | None = None, extent: str = ""
    ) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
        output = tmp_path / "objects.gpkg"
        image = raster or repository / "resources" / "demo" / "OSBS_029.tif"
        answer = run_qgis_process(
            ["--json", "run", "kestrel:detectobjects", "--", f"INPUT={image}", f"MODEL={model}",
             f"ARGUMENTS={arguments}", f"OUTPUT={output}", *([f"EXTENT={extent}"] if extent else [])]
        )  # fmt: skip
        assert answer.code == 0, answer.stdout + answer.stderr
        layer = ogr.Open(str(output))
        features = [json.loads(feature.ExportToJson()) for feature in layer.GetLayer(0)]
        return answer.stdout, answer.json["results"], features

    return run


def sides(ring: list[list[float]]) -> list[float]:
    return [((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) ** 0.5 for a, b in zip(ring, ring[1:])]


def test_yolo_seg_gives_polygons(models: Path, detect: Callable[..., Any]) -> None:
    _, results, features = detect(models / "seg.onnx", "threshold 0.8", extent=QUARTER)
    assert results["OBJECT_COUNT"] == len(features) > 10
    assert {"MultiPolygon"} == {feature["geometry"]["type"] for feature in features}
    assert max(len(part[0]) for feature in features for part in feature["geometry"]["coordinates"]) > 8


def test_yolo_obb_gives_turned_rectangles_with_their_direction(models: Path, detect: Callable[..., Any]) -> None:
    _, _, features = detect(models / "obb.onnx", "threshold 0.6")
    assert len(features) > 10
    assert {"Polygon"} == {feature["geometry"]["type"] for feature in features}
    inside = [feature for feature in features if not feature["properties"]["CutByEdge"]]
    turned = [feature for feature in inside if feature["properties"]["Angle"] not in (0.0, 90.0)]
    assert len(turned) > 5
    for feature in turned:
        assert 0 <= feature["properties"]["Angle"] < 180
        (ring,) = feature["geometry"]["coordinates"]
        a, b, c, d = sides(ring)
        assert (a, b) == pytest.approx((c, d), rel=1e-3)


def test_rtdetr_gives_boxes(models: Path, detect: Callable[..., Any]) -> None:
    _, results, features = detect(models / "rtdetr.onnx", "threshold 0.05")
    assert results["OBJECT_COUNT"] == len(features) > 0
    assert {"Polygon"} == {feature["geometry"]["type"] for feature in features}


def test_an_export_of_mask_rcnn_gives_polygons_with_the_classes_of_the_list(
    models: Path, detect: Callable[..., Any]
) -> None:
    log, results, features = detect(models / "maskrcnn.onnx", "threshold 0.3;scale 0-1", extent=QUARTER)
    assert results["OBJECT_COUNT"] == len(features) > 0
    assert {"MultiPolygon"} == {feature["geometry"]["type"] for feature in features}
    assert {feature["properties"]["Class"] for feature in features} <= {"Tree", "Car", "House"}
    assert "maskrcnn.txt" in log


def test_a_stac_item_finds_what_the_package_finds(
    models: Path, detect: Callable[..., Any], tmp_path: Path, repository: Path
) -> None:
    # The image calls white its nodata. The package's DataRange says that white is a colour; a STAC item cannot.
    image = tmp_path / "without_nodata.tif"
    gdal.Translate(str(image), str(repository / "resources" / "demo" / "OSBS_029.tif"), noData="none")
    _, results, _ = detect(models / "stac" / "item.json", "", image)
    assert 66 == results["OBJECT_COUNT"]


def test_a_text_prompt_names_the_classes(models: Path, detect: Callable[..., Any]) -> None:
    _, results, features = detect(models / "owlv2", "text_prompt 'tree, old building';threshold 0.05")
    assert results["OBJECT_COUNT"] == len(features) > 0
    assert {feature["properties"]["Class"] for feature in features} <= {"tree", "old building"}


def test_a_folder_of_hugging_face_runs(models: Path, detect: Callable[..., Any]) -> None:
    _, results, features = detect(models / "rt_detr_v2", "threshold 0.05")
    assert results["OBJECT_COUNT"] == len(features) > 0


@pytest.fixture
def photo(tmp_path: Path, shared_data: Path) -> Path:
    """The people photo with a place on the map, its pixels unchanged."""
    target = tmp_path / "people.tif"
    gdal.Translate(
        str(target), str(shared_data / "models" / "sample_people.jpg"), outputSRS="EPSG:32632",
        outputBounds=[500000, 5000000, 500072, 4999952.2],
    )  # fmt: skip
    return target


@pytest.mark.shared_data
def test_a_model_of_deepness_sees_the_image_at_its_own_resolution(
    shared_data: Path, detect: Callable[..., Any]
) -> None:
    model = shared_data / "models" / "tree_crowns_neon_20cm_candidate.onnx"
    log, results, features = detect(model, "threshold 0.3")
    assert "0.2" in log
    assert 50 <= results["OBJECT_COUNT"] == len(features) <= 70  # 55 to 65 are known, with other tilings
    assert {"tree"} == {feature["properties"]["Class"] for feature in features}


@pytest.mark.shared_data
def test_yolox_nano_finds_the_fifteen_persons_of_the_photo(
    photo: Path, shared_data: Path, detect: Callable[..., Any]
) -> None:
    # YOLOX's own preparation makes the photo 415 pixels wide, not 416; so does a tile of 721.
    log, results, features = detect(shared_data / "models" / "yolox_nano.onnx", "threshold 0.3;tile_size 721", photo)
    assert 15 == results["OBJECT_COUNT"]
    assert {"person"} == {feature["properties"]["Class"] for feature in features}
    assert "'yolox'" in log
    assert "0-255 bgr" in log
