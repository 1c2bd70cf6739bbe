"""Pixels that QGIS reads and draws: real servers, real providers, real layers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from osgeo import gdal
from qgis.core import (
    QgsMapLayer,
    QgsProcessingFeedback,
    QgsProject,
    QgsRasterLayer,
    QgsSingleBandGrayRenderer,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QCoreApplication, QThread

from kestrel.inference.errors import RasterReadError
from kestrel.inference.events import PixelsWanted
from kestrel.inference.pictures import Picture
from kestrel.processing_provider import pixel_server as pixel_server_module
from kestrel.processing_provider.drawn_source import drawn_raster, take_drawn
from kestrel.processing_provider.picture_source import picture_facts, reference_of, take_source
from kestrel.processing_provider.pixel_server import PixelServer, PixelSource
from kestrel.tests.fixtures.servers.qgis_server import QgisServer, qgis_server, without_nodata
from kestrel.tests.fixtures.servers.scene import IMAGE
from kestrel.tests.fixtures.servers.xyz_server import XyzServer, resolution, serving
from kestrel.tests.qgis.examples import Listener, polygon_layer

ZOOM = 19


def noise(height: int, width: int) -> Any:
    return np.random.default_rng(7).integers(1, 255, (height, width, 3)).astype(np.uint8)


@pytest.fixture
def tiles() -> Iterator[XyzServer]:
    with serving(XyzServer(noise(512, 512), ZOOM, 140_000, 210_000)) as server:
        # The cache of QGIS is of the whole process: an address of its own for each test.
        server.query = f"?test={time.monotonic_ns()}"
        yield server


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QgisServer]:
    folder = tmp_path_factory.mktemp("server")
    with qgis_server(without_nodata(IMAGE, folder / "image.tif"), folder) as server:
        yield server


@pytest.fixture(scope="module")
def image(services: QgisServer) -> Any:
    return gdal.Open(str(services.image)).ReadAsArray()


def layer(source: str, provider: str) -> QgsRasterLayer:
    made = QgsRasterLayer(source, "layer", provider)
    assert made.isValid(), made.error().message()
    return made


def in_thread(work: Callable[[], Any]) -> Any:
    """Do it as a task of QGIS's does: in a thread, while the main thread goes on."""

    class Thread(QThread):
        def run(self) -> None:
            try:
                self.result = work()
            except Exception as error:
                self.result = error

    thread = Thread()
    thread.start()
    while not thread.isFinished():
        QCoreApplication.processEvents()
        time.sleep(0.005)
    if isinstance(thread.result, Exception):
        raise thread.result
    return thread.result


def asked(source: PixelSource, bounds: tuple[float, ...], width: int, height: int, *, again: int = 0,
          feedback: QgsProcessingFeedback | None = None) -> Picture:  # fmt: skip
    """Ask once, in a thread."""
    server = PixelServer({"layer": source}, feedback or Listener())
    with server:
        return in_thread(lambda: server(PixelsWanted(1, "layer", list(bounds), width, height, again)))


def pixels_of(picture: Picture) -> Any:
    return np.frombuffer(picture.pixels, picture.dtype).reshape(picture.shape)


def cover_of(picture: Picture) -> Any:
    return np.frombuffer(picture.cover, np.uint8).reshape(picture.shape[1:]) != 0


def source_of(made: QgsRasterLayer) -> PixelSource:
    return take_source(made, picture_facts(made))


def part(tiles: XyzServer, x: int, y: int, width: int, height: int) -> tuple[float, ...]:
    side, (left, _, _, top) = resolution(ZOOM), tiles.bounds
    return left + x * side, top - (y + height) * side, left + (x + width) * side, top - y * side


# -- Tiles -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [(0, 0, 512, 512), (256, 0, 256, 256), (13, 40, 300, 222), (511, 511, 1, 1)])
def test_pixels_of_tiles_come_as_they_are_and_no_other_tile_is_asked_for(
    tiles: XyzServer, window: tuple[int, int, int, int]
) -> None:
    x, y, width, height = window
    picture = asked(source_of(layer(tiles.uri, "wms")), part(tiles, *window), width, height)
    expected = tiles.pixels[y : y + height, x : x + width]
    assert np.array_equal(pixels_of(picture).transpose(1, 2, 0), expected)
    assert cover_of(picture).all() and picture.failures == 0 and picture.answered > 0
    columns = range(x // 256, (x + width - 1) // 256 + 1)
    rows = range(y // 256, (y + height - 1) // 256 + 1)
    assert {(column, row) for _, column, row in tiles.asked} == {
        (140_000 + c, 210_000 + r) for c in columns for r in rows
    }
    assert set(tiles.asked.values()) == {1}


@pytest.mark.parametrize(("fault", "word"), [("503", "HTTP status 503"), ("html", "page"), ("short", "too early")])
def test_tiles_that_fail_are_holes_with_a_reason_and_come_with_another_try(
    tiles: XyzServer, fault: str, word: str
) -> None:
    tiles.fault = lambda tile, n: fault if tile[1] % 2 else ""
    feedback, bounds = Listener(), list(tiles.bounds)
    with PixelServer({"layer": source_of(layer(tiles.uri, "wms"))}, feedback) as server:
        picture = in_thread(lambda: server(PixelsWanted(1, "layer", bounds, 512, 512)))
        cover = cover_of(picture)
        assert cover[:, :256].all() and not cover[:, 256:].any()
        assert picture.failures > 0 and word in picture.reason
        assert [level for level, text in feedback.said if word in text] == ["warning"]
        tiles.fault = lambda tile, n: ""
        picture = in_thread(lambda: server(PixelsWanted(2, "layer", bounds, 512, 512, 1)))
    assert np.array_equal(pixels_of(picture).transpose(1, 2, 0), tiles.pixels)
    assert picture.failures == 0


def test_a_tile_that_is_not_there_is_an_answer_and_no_failure(tiles: XyzServer) -> None:
    tiles.fault = lambda tile, n: "404" if tile[1] % 2 else ""
    picture = asked(source_of(layer(tiles.uri, "wms")), tiles.bounds, 512, 512)
    assert picture.failures == 0 and picture.answered > 0
    assert cover_of(picture).mean() == 0.5


def test_a_server_that_is_gone_is_a_failure(tiles: XyzServer) -> None:
    uri = tiles.uri.replace(str(tiles.server.port), "1")
    picture = asked(source_of(layer(uri, "wms")), tiles.bounds, 512, 512)
    assert picture.failures > 0 and not cover_of(picture).any()
    assert "127.0.0.1" not in picture.reason


@pytest.mark.parametrize("is_threaded", [True, False])
def test_a_cancel_ends_the_wait_for_a_server_that_stalls(tiles: XyzServer, is_threaded: bool) -> None:
    tiles.fault = lambda tile, n: "stall"
    feedback, begun = Listener(), []

    class Soon(Listener):
        def isCanceled(self) -> bool:
            begun.append(time.monotonic())
            return time.monotonic() - begun[0] > 0.5

    source, feedback = source_of(layer(tiles.uri, "wms")), Soon()
    with PixelServer({"layer": source}, feedback) as server:
        wanted = PixelsWanted(1, "layer", list(tiles.bounds), 512, 512)
        picture = in_thread(lambda: server(wanted)) if is_threaded else server(wanted)
    assert time.monotonic() - begun[0] < 2
    assert not cover_of(picture).any()


def test_a_server_that_stalls_is_given_up_after_the_limit(tiles: XyzServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_server_module, "READ_LIMIT", 0.5)
    tiles.fault = lambda tile, n: "stall"
    picture = asked(source_of(layer(tiles.uri, "wms")), tiles.bounds, 512, 512)
    assert picture.failures > 0 and "in time" in picture.reason


def test_what_qgis_does_not_know_is_refused() -> None:
    with PixelServer({}, Listener()) as server, pytest.raises(RasterReadError, match="does not know"):
        server(PixelsWanted(1, "layer", [0, 0, 1, 1], 2, 2))


# -- Services of the OGC -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [(0, 0, 400, 400), (37, 101, 203, 150)])
def test_a_wms_and_a_wcs_give_the_pixels_of_the_file(
    services: QgisServer, image: Any, window: tuple[int, int, int, int]
) -> None:
    x, y, width, height = window
    side, left, top = 0.1, 404211.9, 3285142.9
    bounds = (left + x * side, top - (y + height) * side, left + (x + width) * side, top - y * side)
    for provider, uri in (("wms", services.wms()), ("wcs", services.wcs())):
        picture = asked(source_of(layer(uri, provider)), bounds, width, height)
        assert np.array_equal(pixels_of(picture), image[:, y : y + height, x : x + width]), provider
        assert cover_of(picture).all()


def test_a_wmts_is_read_on_its_own_tiles(services: QgisServer) -> None:
    import urllib.request

    made = layer(services.wmts("EPSG:32617"), "wms")
    facts = picture_facts(made)
    side, (left, top) = facts.resolutions[0], facts.corners[0]
    address = (f"{services.url}?SERVICE=WMTS&REQUEST=GetTile&VERSION=1.0.0&LAYER=demo&STYLE=default&FORMAT=image/png"
               "&TILEMATRIXSET=EPSG:32617&TILEMATRIX=3&TILEROW=0&TILECOL=0")  # fmt: skip
    gdal.FileFromMemBuffer("/vsimem/tile.png", urllib.request.urlopen(address, timeout=10).read())
    tile = gdal.Open("/vsimem/tile.png").ReadAsArray()
    picture = asked(source_of(made), (left, top - 256 * side, left + 256 * side, top), 256, 256)
    seen = tile[3] == 255
    assert np.array_equal(pixels_of(picture)[:, seen], tile[:3, seen]) and seen.mean() > 0.9
    assert np.array_equal(cover_of(picture), tile[3] > 0)


def test_an_error_of_a_wms_is_a_failure_although_its_status_is_200(services: QgisServer) -> None:
    made = layer(services.wms(), "wms")
    broken = QgsRasterLayer(services.wms().replace("format=image/png", "format=image/nonsense"), "layer", "wms")
    source = source_of(broken if broken.isValid() else made)
    picture = asked(source, (0.0, 0.0, 10.0, 10.0), 10, 10)
    assert not cover_of(picture).any()


# -- Values ------------------------------------------------------------------------------------------------------------


def write(path: Path, values: Any, nodata: float | None = None) -> str:
    dataset = gdal.GetDriverByName("GTiff").Create(
        str(path), values.shape[2], values.shape[1], values.shape[0], gdal.GDT_Float32
    )
    for number, band in enumerate(values, 1):
        dataset.GetRasterBand(number).WriteArray(band)
        if nodata is not None:
            dataset.GetRasterBand(number).SetNoDataValue(nodata)
    dataset.SetGeoTransform((0, 1, 0, 100, 0, -1))
    dataset.SetProjection(layer_crs())
    dataset.FlushCache()
    return str(path)


def layer_crs() -> str:
    from osgeo import osr

    reference = osr.SpatialReference()
    reference.ImportFromEPSG(32633)
    return str(reference.ExportToWkt())


def test_values_keep_their_type_and_their_missing_ones(tmp_path: Path) -> None:
    """QGIS's virtual raster computes 32-bit numbers from other layers: a provider that GDAL does not know."""
    values = np.arange(600, dtype=np.float32).reshape(2, 15, 20)
    values[:, 3, 4] = -1
    base = layer(write(tmp_path / "values.tif", values, nodata=-1), "gdal")
    uri = (f"?crs=EPSG:32633&extent=0,85,20,100&width=20&height=15&formula=%22a@1%22%20*%202"
           f"&a:uri={base.source()}&a:provider=gdal")  # fmt: skip
    made = QgsRasterLayer(uri, "twice", "virtualraster")
    if not made.isValid():
        pytest.skip("this QGIS has no virtual raster provider")
    picture = asked(source_of(made), (0.0, 85.0, 20.0, 100.0), 20, 15)
    assert picture.dtype == "float64"
    cover = cover_of(picture)
    assert not cover[3, 4] and cover.sum() == 299
    assert np.array_equal(pixels_of(picture)[0][cover], values[0][cover] * 2)


# -- Drawn layers ------------------------------------------------------------------------------------------------------


def drawn(*layers: QgsMapLayer, width: int, height: int, bounds: tuple[float, ...]) -> Picture:
    transforms = QgsProject.instance().transformContext()
    first = layers[0] if isinstance(layers[0], QgsRasterLayer) else None
    source = take_drawn(drawn_raster(first, layers, transforms), layers, transforms)
    return asked(source, bounds, width, height)


def test_a_layer_is_drawn_pixel_by_pixel_with_its_style(tmp_path: Path) -> None:
    path = without_nodata(IMAGE, tmp_path / "image.tif")
    made, pixels = layer(str(path), "gdal"), gdal.Open(str(path)).ReadAsArray()
    extent = made.extent()
    bounds = (extent.xMinimum(), extent.yMinimum(), extent.xMaximum(), extent.yMaximum())
    picture = drawn(made, width=400, height=400, bounds=bounds)
    assert np.array_equal(pixels_of(picture), pixels) and cover_of(picture).all()
    made.setRenderer(QgsSingleBandGrayRenderer(made.dataProvider(), 2))
    picture = drawn(made, width=400, height=400, bounds=bounds)
    assert np.array_equal(pixels_of(picture), np.repeat(pixels[1:2], 3, axis=0))


def test_several_layers_are_drawn_over_one_another_and_what_none_covers_is_no_pixel(tmp_path: Path) -> None:
    below = polygon_layer("POLYGON((0 0, 10 0, 10 10, 0 10, 0 0))")
    above = polygon_layer("POLYGON((4 4, 6 4, 6 6, 4 6, 4 4))")
    for made, color in ((below, "200,10,30"), (above, "10,200,30")):
        made.renderer().setSymbol(symbol(made, color))
    picture = drawn(above, below, width=200, height=200, bounds=(-5.0, -5.0, 15.0, 15.0))
    pixels, cover = pixels_of(picture), cover_of(picture)
    assert pixels[:, 100, 100].tolist() == [10, 200, 30]
    assert pixels[:, 60, 60].tolist() == [200, 10, 30]
    assert not cover[:40].any() and cover[60:140, 60:140].all()


def symbol(made: QgsVectorLayer, color: str) -> Any:
    from qgis.core import QgsFillSymbol

    return QgsFillSymbol.createSimple({"color": color, "outline_style": "no"})


def test_a_block_of_a_drawing_is_a_part_of_the_whole_drawing() -> None:
    made = polygon_layer("POLYGON((0 0, 10 0, 10 10, 3 8, 0 0))")
    whole = drawn(made, width=200, height=200, bounds=(-5.0, -5.0, 15.0, 15.0))
    quarter = drawn(made, width=100, height=100, bounds=(5.0, 5.0, 15.0, 15.0))
    differences = np.abs(pixels_of(quarter).astype(int) - pixels_of(whole)[:, :100, 100:])
    assert differences.max() <= 4 and (differences > 0).mean() < 0.01  # smooth edges, to a rounding of the last bits


# -- Names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    ["type=xyz&url=https://tile.example/{z}/{x}/{y}.png?apikey%3Dcanary&zmax=19",
     "type=xyz&url=https://tile.example/{z}/{x}/{y}.png&username=canary&password=canary",
     "url=https://tile.example/wms?token%3Dcanary&layers=a&styles=&format=image/png&crs=EPSG:3857&authcfg=canary1"],
)  # fmt: skip
def test_the_job_s_name_for_a_layer_holds_no_secret_and_tells_it_from_others(source: str) -> None:
    name = reference_of("wms", source)
    assert "canary" not in name and name.startswith("wms:tile.example#")
    assert name == reference_of("wms", source.replace("canary", "another"))
    assert name != reference_of("wms", source.replace("tile.example/", "tile.example/other/"))


def test_layers_that_differ_behind_the_question_mark_of_their_address_have_two_names() -> None:
    source = "url=https://maps.example/wms?map%3D{}&layers=a&styles=&format=image/png&crs=EPSG:3857"
    assert reference_of("wms", source.format("a.qgs")) != reference_of("wms", source.format("b.qgs"))
