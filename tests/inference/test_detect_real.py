"""A real network on real imagery, measured against boxes that people drew."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine

from kestrel.inference.merge import overlap_ratio
from kestrel.tests.fixtures.rasters import write_raster
from kestrel.tests.fixtures.runs import Result, run

pytestmark = pytest.mark.shared_data

MATCH = 0.4
"""Intersection over union from which a found tree is the drawn one."""


@pytest.fixture
def model(shared_data: Path) -> str:
    """The tree-crown network, described for Kestrel."""
    weights = shared_data / "models" / "tree_crowns_neon_20cm_candidate.onnx"
    return json.dumps({
        "kestrel_definition": 1, "name": "Tree crowns",
        "detector": {"kind": "onnx", "weights": str(weights), "head": "yolov5"},
        "input": {"scale": 1 / 255, "data_range": [0, 255]},
        "tile": {"size": 320},
        "cell_size": {"min": 0.2, "max": 0.2},
        "classes": [{"value": 1, "name": "Tree"}],
        "arguments": {"threshold": 0.3, "nms_overlap": 0.3},
    })  # fmt: skip


def drawn_boxes(path: Path) -> np.ndarray:
    """Give the drawn boxes (N, 4) in pixels of the image."""
    with path.open(encoding="utf-8") as stream:
        return np.array(
            [[float(row[key]) for key in ("xmin", "ymin", "xmax", "ymax")] for row in csv.DictReader(stream)]
        )


def drawn_boxes_of_xml(path: Path) -> np.ndarray:
    """Give the drawn boxes of a Pascal VOC file."""
    boxes = ElementTree.parse(path).iterfind("object/bndbox")
    return np.array([[float(box.findtext(key) or "nan") for key in ("xmin", "ymin", "xmax", "ymax")] for box in boxes])


def found_boxes(result: Result, transform: Affine) -> np.ndarray:
    """Give the found boxes (N, 4) in pixels of the image, the strongest first."""
    corners = np.array([shapely.get_coordinates(g)[:4] for g in result.geometries])
    inverse = ~transform
    x = inverse.a * corners[..., 0] + inverse.b * corners[..., 1] + inverse.c
    y = inverse.d * corners[..., 0] + inverse.e * corners[..., 1] + inverse.f
    boxes = np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], axis=1)
    return boxes[np.argsort(-result.scores, kind="stable")]


def count_matches(found: np.ndarray, drawn: np.ndarray) -> int:
    """Give the number of drawn boxes that are found, each by one found box."""
    free = np.ones(len(drawn), bool)
    for box in found:
        overlap = overlap_ratio(np.broadcast_to(box, drawn.shape), drawn) * free
        if overlap.max() >= MATCH:
            free[overlap.argmax()] = False
    return int((~free).sum())


def test_the_trees_of_the_demo_image_are_found(shared_data: Path, model: str, tmp_path: Path) -> None:
    demo = shared_data / "trees_neon" / "demo"
    result = run(tmp_path / "job", demo / "OSBS_029.tif", model, cell_size=0.2)
    with rasterio.open(demo / "OSBS_029.tif") as dataset:
        found = found_boxes(result, dataset.transform)
    n_right = count_matches(found, drawn_boxes(demo / "OSBS_029.csv"))
    # Measured by others: 41 of 61 right among 55 to 65 boxes, by the tiles.
    print(len(found), n_right)
    assert 39 <= n_right <= 43
    assert 50 <= len(found) <= 68


@pytest.mark.slow
def test_the_trees_of_a_large_image_are_found_each_once(shared_data: Path, model: str, tmp_path: Path) -> None:
    (image,) = (shared_data / "trees_neon" / "demo").glob("*YELL*.[tp][in][fg]")
    with rasterio.open(image) as dataset:
        pixels = dataset.read([1, 2, 3])
    transform = Affine(0.1, 0, 500000, 0, -0.1, 5000000)
    raster = write_raster(tmp_path / "r.tif", pixels, transform, "EPSG:32612")
    drawn = drawn_boxes_of_xml(next((shared_data / "trees_neon" / "demo").glob("*YELL*.xml")))
    results = [run(tmp_path / str(padding), raster, model, cell_size=0.2, arguments={"padding": padding})
               for padding in (64, 96)]  # fmt: skip
    for result in results:
        found = found_boxes(result, transform)
        n_right = count_matches(found, drawn)
        # Measured by others: 171 of 279 right among 347 boxes.
        print(len(found), n_right, result.summary)
        assert 160 <= n_right <= 185
        assert 315 <= len(found) <= 375
