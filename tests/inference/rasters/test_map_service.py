from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kestrel.inference.errors import ModelIncompatibleError, RasterOpenError, RasterReadError
from kestrel.inference.job import RasterItem
from kestrel.inference.net.http import HttpClient
from kestrel.inference.net.limits import HttpLimits
from kestrel.inference.rasters.map_service import MapServicePixels
from kestrel.inference.rasters.source import GridRequest
from kestrel.inference.tiling import Window
from kestrel.tests.fixtures.rasters import noise
from kestrel.tests.fixtures.servers.image_server import image_server
from kestrel.tests.fixtures.servers.pixels import Image

RGB: tuple[int | str, ...] = (0, 1, 2)
QUICK = HttpLimits(connect=2, read=0.5, total=5, patience=1, first_pause=0.02, longest_pause=0.1)
SMALL = Image(noise(3, 90, 130), (500_000.0, 5_400_000.0), (0.5, 0.5))
PADDING = (6, 10)
"""Rows and columns by which the double's cache begins before the image."""


def opened(url: str, bands: tuple[int | str, ...] = RGB, cell_size: float | None = None, **options: Any) -> Any:
    item = RasterItem("image_service", url, "Map", options)
    return MapServicePixels(item, bands, GridRequest(cell_size), HttpClient(limits=QUICK))


def whole(source: MapServicePixels) -> tuple[Any, Any]:
    try:
        return source.read(Window(0, 0, source.info.width, source.info.height))
    finally:
        source.close()


def test_a_drawn_map_at_its_own_cell_size_is_the_picture() -> None:
    with image_server(SMALL, max_size=(60, 60)) as arcgis:
        pixels, present = whole(opened(arcgis.map, cell_size=0.5))
    assert np.array_equal(SMALL.pixels, pixels)
    assert present.all()


def test_a_drawn_map_needs_a_cell_size() -> None:
    with image_server(SMALL) as arcgis, pytest.raises(RasterOpenError, match="no pixels of its own"):
        opened(arcgis.map)


def test_where_a_drawn_map_lies_is_told_without_a_cell_size() -> None:
    with image_server(SMALL) as arcgis:
        item, client = RasterItem("image_service", arcgis.map, "Map"), HttpClient(limits=QUICK)
        info = MapServicePixels(item, RGB, GridRequest(is_look=True), client).info
    right, bottom = info.transform * (info.width, info.height)
    assert (info.transform.c, bottom, right, info.transform.f) == pytest.approx(SMALL.extent)


def test_what_is_transparent_is_missing() -> None:
    with image_server(SMALL) as arcgis:
        source = opened(arcgis.map, cell_size=0.4)
        pixels, present = whole(source)
        arcgis.image_now = replace(SMALL, pixels=SMALL.pixels[:, :, :50])
        arcgis.settings = replace(arcgis.settings, changes={"fullExtent": {**_extent(SMALL)}})
        _, half = whole(opened(arcgis.map, cell_size=0.5))
    assert (163, 113) == (pixels.shape[2], pixels.shape[1])
    assert present[:, :112, :162].all()
    assert half[:, :, :50].all()
    assert not half[:, :, 50:].any()


def _extent(image: Image) -> dict[str, Any]:
    return dict(zip(("xmin", "ymin", "xmax", "ymax"), image.extent))


@pytest.mark.parametrize("level", [None, 2])
def test_tiles_of_the_finest_level_are_the_picture_where_the_image_is(level: int | None) -> None:
    with image_server(SMALL) as arcgis:
        source = opened(arcgis.tiled, level=level)
        t = source.info.transform
        assert (0.5, SMALL.corner[0] - 5, SMALL.corner[1] + 3) == (t.a, t.c, t.f)
        pixels, present = whole(source)
    rows, columns = PADDING
    assert np.array_equal(SMALL.pixels, pixels[:, rows : rows + 90, columns : columns + 130])
    assert present[:, rows:, columns:].all()
    assert not present[:, :rows].any()
    assert not present[:, :, :columns].any()


def test_the_level_nearest_to_the_cell_size_is_read() -> None:
    with image_server(SMALL) as arcgis:
        assert [2.0, 1.0, 0.5, 0.5] == [
            opened(arcgis.tiled, cell_size=size).info.cell_size[0] for size in (5.0, 0.9, 0.55, 0.1)
        ]
        with pytest.raises(RasterOpenError, match="no level 7; it has 0, 1, 2"):
            opened(arcgis.tiled, level=7)


def test_a_tile_that_is_not_there_is_missing_and_no_fault() -> None:
    with image_server(SMALL) as arcgis:
        far = {**_extent(SMALL), "xmax": SMALL.extent[2] + 200}
        arcgis.settings = replace(arcgis.settings, changes={"fullExtent": far})
        _, present = whole(opened(arcgis.tiled))
    assert not present[:, :, 192:].any()


@pytest.mark.parametrize("fault", ["503", "html", "reset", "short", "json-error"])
def test_faults_change_nothing_in_the_picture(fault: str) -> None:
    with image_server(SMALL) as arcgis:
        source = opened(arcgis.tiled)
        arcgis.server.plan.extend([fault, None, fault])
        pixels, _ = whole(source)
    assert np.array_equal(SMALL.pixels, pixels[:, 6:96, 10:140])


def test_a_tile_that_stays_damaged_is_a_part_that_cannot_be_read() -> None:
    with image_server(SMALL) as arcgis:
        source = opened(arcgis.tiled)
        arcgis.server.plan.extend(["html"] * 60)
        with pytest.raises(RasterReadError, match="rows 0 to 5"):
            source.read(Window(0, 0, 5, 5))


def test_tiles_without_transparency_are_there_as_a_whole() -> None:
    with image_server(SMALL, tile_format="JPEG") as arcgis:
        pixels, present = whole(opened(arcgis.tiled))
    assert present.all()
    assert np.abs(pixels[:, 6:96, 10:140].astype(int) - SMALL.pixels).mean() < 30


def test_tiles_of_values_are_refused_by_name() -> None:
    with image_server(SMALL, tile_format="LERC2D") as arcgis, pytest.raises(RasterOpenError, match="LERC2D"):
        opened(arcgis.tiled)


def test_colours_are_the_only_bands() -> None:
    with image_server(SMALL) as arcgis:
        source = opened(arcgis.map, ("blue", "red"), cell_size=0.5)
        assert (3, 1) == source.bands
        assert np.array_equal(SMALL.pixels[[2, 0]], whole(source)[0])
        with pytest.raises(ModelIncompatibleError, match="red, green and blue"):
            opened(arcgis.map, ("nir",), cell_size=0.5)


@pytest.mark.parametrize("kind", ["map", "tiled"])
def test_the_identity_changes_with_the_picture_alone(kind: str) -> None:
    with image_server(SMALL) as arcgis:
        url = getattr(arcgis, kind)
        first, again = (opened(url, cell_size=0.5).identity() for _ in range(2))
        assert first == again
        arcgis.image_now = replace(SMALL, pixels=noise(3, 90, 130, seed=9))
        assert first != opened(url, cell_size=0.5).identity()
        assert [len(values) > 0 for values in opened(url, cell_size=0.5).sample()] == [True] * 3
