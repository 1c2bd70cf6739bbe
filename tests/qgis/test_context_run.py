"""The context in runs with the real worker and the model that comes along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from osgeo import gdal
from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsGeometry,
    QgsProcessingException,
    QgsProject,
    QgsRasterLayer,
    QgsVectorLayer,
)

from kestrel.tests.qgis.examples import ROOT, Listener, algorithm, context

pytestmark = pytest.mark.slow

DEMO = ROOT / "resources" / "demo" / "OSBS_029.tif"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cache for all runs here, so that the network is measured once."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def surroundings(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That cache."""
    monkeypatch.setenv("KESTREL_CACHE", cache)


def run(output: Path | str, **parameters: Any) -> dict[str, Any]:
    values = {
        "INPUT": str(DEMO), "MODEL": str(ROOT / "resources" / "models" / "tree_crowns.dlpk"), "OUTPUT": str(output),
        "PROCESSOR_TYPE": "CPU", **parameters,
    }  # fmt: skip
    results, is_good = algorithm().run(values, context(), Listener(), catchExceptions=False)
    assert is_good
    return results


def shapes(path: Path) -> list[QgsGeometry]:
    """Give the objects of a file in the order of their places."""
    layer = QgsVectorLayer(str(path))
    found = [QgsGeometry(feature.geometry()) for feature in layer.getFeatures()]
    return sorted(found, key=lambda shape: (shape.boundingBox().xMinimum(), shape.boundingBox().yMinimum()))


def bounds(path: Path) -> list[tuple[float, ...]]:
    boxes = [shape.boundingBox() for shape in shapes(path)]
    return [(box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum()) for box in boxes]


def assert_same(first: Path, second: Path) -> None:
    """Compare the objects of two files, to a millimetre."""
    found, wanted = bounds(first), bounds(second)
    assert len(found) == len(wanted)
    far = [(a, b) for a, b in zip(found, wanted) if max(abs(x - y) for x, y in zip(a, b)) > 1e-3]
    assert far == []


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, cache: str) -> Path:
    """The objects of the demo image as it is."""
    path = tmp_path_factory.mktemp("plain") / "objects.gpkg"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KESTREL_CACHE", cache)
        assert run(path)["OBJECT_COUNT"] > 20
    return path


def test_another_output_crs_moves_the_same_objects(tmp_path: Path, plain: Path) -> None:
    run(tmp_path / "o.gpkg", OUTPUT_CRS="EPSG:3857")
    layer = QgsVectorLayer(str(tmp_path / "o.gpkg"))
    assert layer.crs().authid() == "EPSG:3857"
    back = QgsCoordinateTransform(layer.crs(), QgsVectorLayer(str(plain)).crs(), QgsProject.instance())
    moved = [QgsGeometry(feature.geometry()) for feature in layer.getFeatures()]
    for shape in moved:
        shape.transform(back)
    places = sorted((round(s.centroid().asPoint().x(), 2), round(s.centroid().asPoint().y(), 2)) for s in moved)
    assert places == sorted(
        (round(s.centroid().asPoint().x(), 2), round(s.centroid().asPoint().y(), 2)) for s in shapes(plain)
    )


def test_a_crs_that_was_only_given_to_the_layer_gives_the_same_objects(tmp_path: Path, plain: Path) -> None:
    bare = str(tmp_path / "bare.tif")
    gdal.Translate(bare, str(DEMO))
    dataset = gdal.Open(bare, gdal.GA_Update)
    dataset.SetProjection("")
    del dataset
    layer = QgsRasterLayer(bare, "photo")
    assert not gdal.Open(bare).GetProjection()
    layer.setCrs(QgsCoordinateReferenceSystem("EPSG:32617"))
    QgsProject.instance().addMapLayer(layer)
    run(tmp_path / "o.gpkg", INPUT=layer.id())
    assert_same(tmp_path / "o.gpkg", plain)


def test_the_raster_s_own_grid_as_snap_raster_and_cell_size_changes_nothing(tmp_path: Path, plain: Path) -> None:
    run(tmp_path / "o.gpkg", SNAP_RASTER=str(DEMO), CELL_SIZE_LAYER=str(DEMO), RESAMPLING="Nearest", BANDS="1,2,3")
    assert_same(tmp_path / "o.gpkg", plain)


def test_a_cell_size_in_feet_on_the_ground_finds_about_the_same_trees(tmp_path: Path, plain: Path) -> None:
    feet = run(tmp_path / "o.gpkg", CELL_SIZE=0.1 / 0.3048, CELL_SIZE_UNIT="Feet", RESAMPLING="Cubic")
    assert feet["OBJECT_COUNT"] == len(shapes(plain))


def test_only_planned_there_is_a_plan_with_a_time_and_no_file(tmp_path: Path) -> None:
    results = run(tmp_path / "o.gpkg", PLAN_ONLY=True)
    plan = json.loads(results["PLAN"])
    assert (plan["width"], plan["height"], plan["tiles"]) == (400, 400, 1)
    assert plan["seconds"] > 0
    assert plan["memory"] > 50_000_000
    assert not (tmp_path / "o.gpkg").exists()


def test_a_plan_over_the_limit_is_refused_with_the_way_on(tmp_path: Path) -> None:
    with pytest.raises(QgsProcessingException, match=r"look at 9 tiles.*the limit is 8.*raise Maximum number of tiles"):
        run(tmp_path / "o.gpkg", ARGUMENTS="tile_size 192;padding 16", MAX_TILES=8)
    assert not (tmp_path / "o.gpkg").exists()
