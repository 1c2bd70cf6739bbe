"""Web layers and drawn layers in the job: which grid they are read on, and what cannot be searched."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qgis.core import QgsCoordinateReferenceSystem, QgsProject, QgsRasterLayer, QgsRectangle

from kestrel.inference.errors import JobError
from kestrel.processing_provider.job_builder import DetectionPlan, build_plan
from kestrel.processing_provider.picture_source import PictureFacts, settled
from kestrel.processing_provider.tile_matrix import Matrix, _corner, _matrices, web_zoom
from kestrel.tests.fixtures.servers.xyz_server import WORLD, resolution
from kestrel.tests.qgis.examples import algorithm, context, polygon_layer, refusal, write_model, write_raster

TILES = "type=xyz&url=http://tile.example/%7Bz%7D/%7Bx%7D/%7By%7D.png?apikey%3Dcanary&zmin=0&zmax=20"
BERLIN = "1489000,1489200,6894000,6894150 [EPSG:3857]"
SHRINK = math.cos(math.radians(52.5))


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    monkeypatch.setenv("KESTREL_CACHE", str(tmp_path / "cache"))
    tiles = QgsRasterLayer(TILES, "tiles", "wms")
    QgsProject.instance().addMapLayer(tiles)
    yield {"INPUT": tiles, "MODEL": write_model(tmp_path), "OUTPUT": str(tmp_path / "out.gpkg"), "EXTENT": BERLIN}


def plan(parameters: dict[str, Any]) -> DetectionPlan:
    return build_plan(algorithm(), parameters, context())


def options(parameters: dict[str, Any]) -> dict[str, Any]:
    (item,) = plan(parameters).job.rasters
    assert item.kind == "picture"
    return item.options


def model(folder: Path, size: float, name: str = "sized.emd") -> str:
    side = {"x": size, "y": size, "spatialReference": {"wkid": 32633}}
    return write_model(folder, name, MinCellSize=side, MaxCellSize=side)


def test_tiles_are_read_at_the_finest_zoom_where_nobody_says_more(good: dict[str, Any]) -> None:
    found = plan(good)
    assert found.job.cell_size == found.raster.cell_size == pytest.approx(resolution(20))
    assert found.remarks == ("QGIS reads 'tiles' at zoom 20, 0.0909 m on the ground.",)


@pytest.mark.parametrize(("asked", "zoom"), [(0.3, 19), (0.29858214173896974, 19), (0.4, 19), (0.43, 18), (5.0, 15)])
def test_a_cell_size_becomes_that_of_the_nearest_zoom_and_it_is_told(
    good: dict[str, Any], asked: float, zoom: int
) -> None:
    found = plan({**good, "CELL_SIZE": asked})
    assert found.job.cell_size == pytest.approx(resolution(zoom))
    assert f"zoom {zoom}," in found.remarks[0]
    assert ("nearest that it has" in found.remarks[0]) == (abs(resolution(zoom) / asked - 1) > 0.01)


@pytest.mark.parametrize(("size", "zoom"), [(0.09, 20), (0.19, 19), (0.3, 18), (100.0, 10)])
def test_the_zoom_suits_the_model_on_the_ground_not_on_the_map(
    good: dict[str, Any], tmp_path: Path, size: float, zoom: int
) -> None:
    """At Berlin's latitude a metre of the web's map is 0.61 m on the ground."""
    assert options({**good, "MODEL": model(tmp_path, size)})["transform"][0] == pytest.approx(resolution(zoom))
    assert abs(math.log2(resolution(zoom) * SHRINK / size)) < 0.51


def test_the_grid_is_that_of_the_tiles_and_reaches_a_little_beyond_the_search(good: dict[str, Any]) -> None:
    found = options(good)
    side, _, left, _, down, top = found["transform"]
    column, row = (left + WORLD) / side, (WORLD - top) / side
    assert (side, down) == (pytest.approx(resolution(20)), -side)
    assert column == pytest.approx(round(column), abs=1e-4) and round(column) % 256 == 0 and round(row) % 256 == 0
    right, bottom = left + found["width"] * side, top - found["height"] * side
    beyond = [(1489000 - left) / side, (right - 1489200) / side, (6894000 - bottom) / side, (top - 6894150) / side]
    assert all(256 <= distance < 513 for distance in beyond)
    assert found["searched"] == [1489000, 6894000, 1489200, 6894150]
    assert (found["bands"], found["dtype"], found["any_grid"]) == (["Red", "Green", "Blue"], "uint8", False)


def test_the_grid_of_a_part_is_a_part_of_the_grid(good: dict[str, Any]) -> None:
    whole, part = options(good), options({**good, "EXTENT": "1489100,1489150,6894050,6894100 [EPSG:3857]"})
    side = whole["transform"][0]
    shift = (part["transform"][2] - whole["transform"][2]) / side
    assert shift == pytest.approx(round(shift), abs=1e-4) and round(shift) % 256 == 0 and shift > 0


def test_a_layer_of_the_whole_world_wants_an_extent_and_says_how_many_tiles_it_would_be(good: dict[str, Any]) -> None:
    del good["EXTENT"]
    reason = refusal(good)
    assert f"{4**20:,} tiles" in reason and "EXTENT or MASK" in reason
    assert refusal({**good, "CELL_SIZE": 2000.0}) == ""


def test_a_mask_says_what_is_searched_as_well(good: dict[str, Any]) -> None:
    del good["EXTENT"]
    mask = polygon_layer("POLYGON((13.40 52.50, 13.41 52.50, 13.41 52.51, 13.40 52.50))", crs="EPSG:4326")
    found = options({**good, "MASK": mask})
    assert 7_465 + 512 <= found["width"] < 7_465 + 3 * 512
    elsewhere = polygon_layer("POLYGON((20 10, 21 10, 21 11, 20 10))", crs="EPSG:4326")
    assert "outside" in refusal({**good, "MASK": elsewhere, "EXTENT": BERLIN})


def test_nothing_secret_of_the_layer_s_address_gets_into_the_job(good: dict[str, Any]) -> None:
    for given in (good["INPUT"], f"wms://{TILES}"):
        found = plan({**good, "INPUT": given})
        assert "canary" not in found.job.to_json()
        assert "canary" not in repr((found.raster.name, found.remarks, found.warnings))


def test_the_same_layer_makes_the_same_job_and_another_one_another(good: dict[str, Any]) -> None:
    first, again = (plan(good).job.rasters for _ in range(2))
    other = QgsRasterLayer(TILES.replace("tile.example", "other.example"), "tiles", "wms")
    assert first == again != plan({**good, "INPUT": other}).job.rasters


def test_a_model_that_names_bands_which_a_picture_lacks_is_refused(good: dict[str, Any], tmp_path: Path) -> None:
    four = write_model(tmp_path, "four.emd", ExtractBands=[0, 1, 2, 3])
    assert "3 bands" in refusal({**good, "MODEL": four})


# -- Drawn layers ------------------------------------------------------------------------------------------------------


def test_a_raster_as_displayed_is_drawn_with_its_own_pixels(good: dict[str, Any], tmp_path: Path) -> None:
    raster = QgsRasterLayer(write_raster(tmp_path / "r.tif", kind=6), "heights", "gdal")
    QgsProject.instance().addMapLayer(raster)
    del good["EXTENT"]
    found = plan({**good, "INPUT": raster, "AS_DISPLAYED": True})
    options = found.job.rasters[0].options
    assert (options["width"], options["height"], options["dtype"]) == (100, 80, "uint8")
    assert options["transform"] == [1, 0, 500000, 0, -1, 5600000]
    assert options["any_grid"] and found.remarks[0].startswith("QGIS draws 'heights' with a cell size of 1")
    assert "canary" not in json.dumps(options)


def test_layers_without_pixels_need_a_cell_size_or_a_model_that_wants_one(good: dict[str, Any], tmp_path: Path) -> None:
    del good["EXTENT"]
    drawn = polygon_layer("POLYGON((500000 5600000, 500100 5600000, 500100 5600050, 500000 5600000))")
    given = {**good, "INPUT": None, "RENDER_LAYERS": [drawn]}
    assert "CELL_SIZE" in refusal(given)
    found = plan({**given, "CELL_SIZE": 0.5}).job.rasters[0].options
    assert (found["width"], found["height"]) == (200, 100)
    found = plan({**given, "MODEL": model(tmp_path, 0.25)}).job.rasters[0].options
    assert found["transform"][0] == pytest.approx(0.25, rel=0.01)


def test_pixels_of_any_size_lie_on_multiples_of_it(good: dict[str, Any]) -> None:
    del good["EXTENT"]
    drawn = polygon_layer("POLYGON((500000.3 5600000, 500100 5600000, 500100 5600050.7, 500000.3 5600000))")
    found = plan({**good, "INPUT": None, "RENDER_LAYERS": [drawn], "CELL_SIZE": 0.5}).job.rasters[0].options
    assert (found["transform"][2], found["transform"][5]) == (500000.0, 5600051.0)


# -- Grids and matrices ------------------------------------------------------------------------------------------------


def test_a_sliver_at_the_edge_of_a_layer_makes_no_pixel_of_its_own() -> None:
    facts = PictureFacts("x", (), (0.1,), ((0.0, 10.0),), False, (0.0, 0.0, 10.0, 10.001))
    grid = settled(facts, "x", 0.1, QgsRectangle(0, 0, 10, 10.001)).grid
    assert grid is not None and (grid.width, grid.height, grid.left, grid.top) == (100, 100, 0.0, 10.0)
    with pytest.raises(JobError, match="too coarse"):
        settled(facts, "x", 1000.0, QgsRectangle(0, 0, 10, 10))


@pytest.mark.parametrize("zoom", [0, 7, 22])
def test_zoom_levels_of_the_web_are_known_by_their_pixels(zoom: int) -> None:
    mercator = QgsCoordinateReferenceSystem("EPSG:3857")
    assert web_zoom(resolution(zoom), mercator) == zoom
    assert web_zoom(resolution(zoom) * 1.01, mercator) is None
    assert web_zoom(resolution(zoom), QgsCoordinateReferenceSystem("EPSG:25833")) is None


CAPABILITIES = """<?xml version="1.0"?>
<Capabilities xmlns="http://www.opengis.net/wmts/1.0" xmlns:ows="http://www.opengis.net/ows/1.1"><Contents>
<Layer><TileMatrixSetLink><TileMatrixSet>DE</TileMatrixSet></TileMatrixSetLink></Layer>
<TileMatrixSet><ows:Identifier>DE</ows:Identifier>
<TileMatrix><ows:Identifier>0</ows:Identifier><ScaleDenominator>1e5</ScaleDenominator>
<TopLeftCorner>-46133.17 6301219.54</TopLeftCorner></TileMatrix>
<TileMatrix><ows:Identifier>1</ows:Identifier><ScaleDenominator>5e4</ScaleDenominator>
<TopLeftCorner>-46133.17 6301219.54</TopLeftCorner></TileMatrix></TileMatrixSet>
<TileMatrixSet><ows:Identifier>Other</ows:Identifier></TileMatrixSet></Contents></Capabilities>"""


def test_the_corners_of_tiles_are_read_from_the_capabilities() -> None:
    corner = -46133.17, 6301219.54
    assert list(_matrices(CAPABILITIES, "DE")) == [Matrix(1e5, *corner), Matrix(5e4, *corner)]
    assert list(_matrices(CAPABILITIES, "FR")) == list(_matrices("<html>", "DE")) == list(_matrices("", "DE")) == []


@pytest.mark.parametrize(
    ("crs", "extent", "corner"),
    [("EPSG:25832", (280000, 5200000, 900000, 6100000), (-46133.17, 6301219.54)),
     ("EPSG:4326", (5.0, 47.0, 15.0, 55.0), (-180.0, 90.0)),
     ("EPSG:31468", (4280000, 5200000, 4900000, 6100000), (3000000.0, 6301219.54))],
)  # fmt: skip
def test_the_axes_of_a_corner_are_told_apart_in_either_order(
    crs: str, extent: tuple[float, ...], corner: tuple[float, float]
) -> None:
    system, area = QgsCoordinateReferenceSystem(crs), QgsRectangle(*extent)
    assert _corner(Matrix(1.0, *corner), system, area) == corner
    assert _corner(Matrix(1.0, *reversed(corner)), system, area) == corner
