from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel.inference.errors import (
    CredentialError,
    InferenceError,
    ModelIncompatibleError,
    NetworkError,
    RasterOpenError,
    RasterReadError,
)
from kestrel.inference.events import Canceled
from kestrel.inference.job import RasterItem
from kestrel.inference.net.http import Credential, HttpClient
from kestrel.inference.net.limits import HttpLimits
from kestrel.inference.rasters import image_export, image_service
from kestrel.inference.rasters.access import RasterAccess
from kestrel.inference.rasters.block_cache import BlockCache
from kestrel.inference.rasters.gdal_pixels import GdalPixels
from kestrel.inference.rasters.image_service import ImageServicePixels
from kestrel.inference.rasters.opening import open_pixels
from kestrel.inference.rasters.source import GridRequest, TargetGrid
from kestrel.inference.secrets import Secrets
from kestrel.inference.tiling import Window
from kestrel.tests.fixtures.rasters import noise
from kestrel.tests.fixtures.servers.image_server import ArcGis, image_server
from kestrel.tests.fixtures.servers.pixels import Image, open_image

RGB: tuple[int | str, ...] = (0, 1, 2)
QUICK = HttpLimits(connect=2, read=0.5, total=5, patience=1, first_pause=0.02, longest_pause=0.1)
SMALL = Image(noise(3, 90, 130), (500_000.0, 5_400_000.0), (0.5, 0.5))


@pytest.fixture(scope="module")
def demo(repository: Path) -> Path:
    return repository / "resources" / "demo" / "OSBS_029.tif"


def opened(
    arcgis: ArcGis,
    bands: tuple[int | str, ...] = RGB,
    grid: GridRequest | None = None,
    client: Any = None,
    **options: Any,
) -> ImageServicePixels:
    item = RasterItem("image_service", arcgis.image, "Trees", options)
    return ImageServicePixels(item, bands, grid or GridRequest(), client or HttpClient(limits=QUICK))


def whole(source: Any) -> tuple[Any, Any]:
    try:
        return source.read(Window(0, 0, source.info.width, source.info.height))
    finally:
        source.close()


def test_the_demo_image_through_a_service_is_the_file(demo: Path) -> None:
    local = GdalPixels(RasterItem("gdal", str(demo)), RGB, GridRequest())
    with image_server(open_image(demo)) as arcgis:
        source = opened(arcgis)
        assert local.info.transform.almost_equals(source.info.transform, 1e-9)
        assert (local.info.width, local.info.height, local.info.dtype, local.info.n_bands) == (
            source.info.width, source.info.height, source.info.dtype, source.info.n_bands)  # fmt: skip
        assert [values.tolist() for values in local.sample()] == [values.tolist() for values in source.sample()]
        pixels, present = whole(source)
    expected, valid = whole(local)
    assert np.array_equal(expected, pixels)
    assert np.array_equal(valid, present)


@pytest.mark.parametrize(("dtype", "factor"), [("uint16", 257), ("int16", -100), ("float32", 0.123), ("float64", 1e-7)])
def test_values_keep_their_type(dtype: str, factor: float) -> None:
    image = SMALL.astype(dtype, factor)
    with image_server(image) as arcgis:
        pixels, present = whole(opened(arcgis))
    assert (dtype, image.pixels.tolist()) == (str(pixels.dtype), pixels.tolist())
    assert present.all()


def test_a_service_that_limits_pictures_gives_the_same_pixels() -> None:
    with image_server(SMALL, max_size=(100, 40)) as arcgis:
        pixels, _ = whole(opened(arcgis))
        sizes = {request.query["size"] for request in arcgis.exports()}
    assert np.array_equal(SMALL.pixels, pixels)
    assert max(int(size.split(",")[0]) for size in sizes) <= 40


@settings(max_examples=25)
@given(st.data())
def test_any_window_is_that_part_of_the_whole(data: st.DataObject) -> None:
    x, y = data.draw(st.integers(0, 129)), data.draw(st.integers(0, 89))
    window = Window(x, y, data.draw(st.integers(1, 130 - x)), data.draw(st.integers(1, 90 - y)))

    def fetch(part: Window) -> tuple[Any, Any]:
        pixels = SMALL.pixels[:, part.y : part.bottom, part.x : part.right]
        return pixels, pixels > 7

    cache = BlockCache(130, 90, data.draw(st.integers(9, 64)), fetch, remembered=20_000)
    pixels, present = cache.read(window)
    cache.close()
    expected = SMALL.pixels[:, window.y : window.bottom, window.x : window.right]
    assert np.array_equal(expected, pixels)
    assert np.array_equal(expected > 7, present)


def test_overlapping_windows_of_several_threads_ask_for_each_block_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_export, "_BLOCK", 32)
    windows = [Window(x, y, 40, 40) for y in range(0, 50, 10) for x in range(0, 90, 10)]
    with image_server(SMALL) as arcgis:
        source = opened(arcgis)
        arcgis.server.asked.clear()
        with ThreadPoolExecutor(6) as threads:
            parts = list(threads.map(source.read, windows))
        asked = [request.query["bbox"] for request in arcgis.exports()]
        source.close()
    assert len(asked) == len(set(asked))
    for window, (pixels, _) in zip(windows, parts):
        assert np.array_equal(SMALL.pixels[:, window.y : window.bottom, window.x : window.right], pixels)


def test_no_more_than_four_requests_are_under_way_at_once() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def fetch(part: Window) -> tuple[Any, Any]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.01)
        with lock:
            running -= 1
        return np.zeros((1, part.height, part.width)), np.ones((1, part.height, part.width), bool)

    cache = BlockCache(100, 100, 10, fetch)
    cache.read(Window(0, 0, 100, 100))
    cache.close()
    assert 4 == most


def test_blocks_that_were_read_do_not_pile_up() -> None:
    def fetch(part: Window) -> tuple[Any, Any]:
        return np.zeros((1, part.height, part.width)), np.ones((1, part.height, part.width), bool)

    cache = BlockCache(10, 10_000, 10, fetch, remembered=5000)
    for y in range(0, 10_000, 10):
        cache.read(Window(0, y, 10, 10))
    kept = len(cache._blocks)
    cache.close()
    assert kept <= 6


def test_bands_come_in_the_order_that_is_asked_for_and_only_these_are_fetched() -> None:
    with image_server(SMALL) as arcgis:
        source = opened(arcgis, (2, 0, 2))
        assert (3, 1, 3) == source.bands
        pixels, _ = whole(source)
        assert "2,0" == arcgis.exports()[-1].query["bandIds"]
    assert np.array_equal(SMALL.pixels[[2, 0, 2]], pixels)


def test_bands_are_found_by_their_names() -> None:
    image = replace(SMALL, pixels=noise(4, 20, 20))
    with image_server(image, band_names=("Blue", "Green", "Red", "NIR")) as arcgis:
        pixels, _ = whole(opened(arcgis, ("red", "nir")))
    assert np.array_equal(image.pixels[[2, 3]], pixels)


def test_unnamed_bands_are_red_green_and_blue_by_custom() -> None:
    with image_server(SMALL) as arcgis:
        assert (1, 2) == opened(arcgis, ("red", "green")).bands


def test_band_ids_of_the_item_come_before_the_bands_of_the_model() -> None:
    image = replace(SMALL, pixels=noise(5, 20, 20))
    with image_server(image) as arcgis:
        source = opened(arcgis, RGB, bandIds=[4, 3, 1])
        assert (5, 4, 2) == source.bands
        pixels, _ = whole(source)
    assert np.array_equal(image.pixels[[4, 3, 1]], pixels)


@pytest.mark.parametrize("bands", [(0, 1, 2, 3), ("red", "nir")])
def test_a_missing_band_is_told(bands: tuple[int | str, ...]) -> None:
    with image_server(SMALL) as arcgis, pytest.raises(ModelIncompatibleError, match="needs"):
        opened(arcgis, bands)


def test_nodata_is_missing_in_its_own_band_and_values_stay() -> None:
    pixels = noise(3, 20, 30).astype("float32")
    pixels[1, 4, 5] = -9999
    with image_server(replace(SMALL, pixels=pixels, nodata=-9999.0)) as arcgis:
        source = opened(arcgis)
        assert -9999 == source.nodata
        result, present = whole(source)
    assert np.array_equal(pixels, result)
    assert [(1, 4, 5)] == [tuple(place) for place in np.argwhere(~present).tolist()]


def test_nodata_that_json_has_rounded_is_still_missing() -> None:
    lowest = float(np.finfo("float32").min)
    pixels = noise(1, 8, 8).astype("float32")
    pixels[0, 0, 0] = lowest
    changes = {"noDataValue": -3.4028235e38, "noDataValues": None}
    with image_server(replace(SMALL, pixels=pixels, nodata=lowest), changes=changes) as arcgis:
        _, present = whole(opened(arcgis, (0,)))
    assert 1 == np.count_nonzero(~present)


def test_black_beyond_the_pictures_of_a_mosaic_is_missing_and_black_in_them_is_not() -> None:
    pixels, footprint = np.maximum(SMALL.pixels, 1), np.zeros((90, 130), bool)
    footprint[:, :100] = True
    pixels[:, ~footprint] = 0
    pixels[:, 10:40, 10:40] = 0
    with image_server(replace(SMALL, pixels=pixels, footprint=footprint)) as arcgis:
        result, present = whole(opened(arcgis))
    assert np.array_equal(pixels, result)
    assert np.array_equal(np.broadcast_to(footprint, pixels.shape), present)


def test_only_what_looks_empty_is_asked_for_twice() -> None:
    with image_server(replace(SMALL, pixels=np.maximum(SMALL.pixels, 1))) as arcgis:
        source = opened(arcgis)
        arcgis.server.asked.clear()
        whole(source)
        assert {"tiff"} == {request.query["format"] for request in arcgis.exports()}


def test_a_part_of_a_service_is_read_in_whole_pixels() -> None:
    x, y = SMALL.corner
    with image_server(SMALL) as arcgis:
        source = opened(arcgis, extent=[x + 5.1, y - 12.0, x + 20.0, y - 2.6])
        assert (x + 5.0, y - 2.5) == (source.info.transform.c, source.info.transform.f)
        pixels, _ = whole(source)
        with pytest.raises(RasterOpenError, match="no pixels in the extent"):
            opened(arcgis, extent=[x + 500, y, x + 600, y + 100])
    assert np.array_equal(SMALL.pixels[:, 5:24, 10:40], pixels)


def test_a_colour_table_stands_for_three_bands() -> None:
    colors = {0: (1, 2, 3), 1: (200, 0, 0), 2: (0, 150, 0)}
    pixels = np.arange(64, dtype="uint8").reshape(1, 8, 8) % 3
    with image_server(replace(SMALL, pixels=pixels, palette=colors)) as arcgis:
        source = opened(arcgis)
        assert ((1,), True, None) == (source.bands, source.has_palette, source.nodata)
        result, _ = whole(source)
    assert [list(colors[index]) for index in pixels[0].ravel()] == result.reshape(3, -1).T.tolist()


def test_a_rendering_rule_makes_its_own_bands_and_types() -> None:
    with image_server(SMALL) as arcgis:
        mean, _ = whole(opened(arcgis, (0,), renderingRule={"rasterFunction": "Mean"}))
        inverted, _ = whole(opened(arcgis, (2, 0), renderingRule={"rasterFunction": "Invert"}))
    assert np.array_equal(SMALL.pixels.astype("float32").mean(axis=0), mean[0])
    assert np.array_equal(255 - SMALL.pixels[[2, 0]], inverted)


def test_a_mosaic_rule_picks_an_item_of_the_mosaic() -> None:
    other = replace(SMALL, pixels=noise(3, 90, 130, seed=5))
    with image_server(SMALL, items={7: other}) as arcgis:
        rule = {"mosaicMethod": "esriMosaicLockRaster", "lockRasterIds": [7]}
        pixels, _ = whole(opened(arcgis, mosaicRule=rule))
    assert np.array_equal(other.pixels, pixels)


def test_a_coarser_cell_size_and_a_snap_corner_are_asked_of_the_server() -> None:
    with image_server(SMALL) as arcgis:
        source = opened(arcgis, grid=GridRequest(cell_size=1.0, snap=(500_000.25, 5_400_000.25), resampling="nearest"))
        t = source.info.transform
        assert (1.0, -1.0, 499_999.25, 5_400_000.25) == (t.a, t.e, t.c, t.f)
        pixels, _ = whole(source)
        assert "RSP_NearestNeighbor" == arcgis.exports()[-1].query["interpolation"]
    # Centres of the new pixels lie at 499999.75 + n, 5399999.75 - n: in the own columns 2n - 1, and rows 2n.
    assert np.array_equal(SMALL.pixels[:, 0:90:2, 1:130:2], pixels[:, :45, 1:66])


def test_one_grid_for_several_rasters_is_read_as_it_is() -> None:
    with image_server(SMALL) as arcgis:
        own = opened(arcgis).info
        target = TargetGrid(50, 40, own.transform * own.transform.translation(20, 10), own.crs_wkt)
        pixels, _ = whole(opened(arcgis, grid=GridRequest(target=target)))
    assert np.array_equal(SMALL.pixels[:, 10:50, 20:70], pixels)


def test_a_target_in_another_system_is_asked_for_by_its_number() -> None:
    from rasterio.crs import CRS
    from rasterio.transform import from_origin

    with image_server(SMALL) as arcgis:
        target = TargetGrid(50, 40, from_origin(15, 48, 1e-5, 1e-5), CRS.from_epsg(4326).to_wkt())
        source = opened(arcgis, grid=GridRequest(target=target))
        with pytest.raises(RasterReadError, match="SR is not served"):
            whole(source)
        assert ("4326", "4326") == tuple(arcgis.exports()[-1].query[key] for key in ("bboxSR", "imageSR"))


@pytest.mark.parametrize("fault", ["503", "reset", "short", "html", "json-error", "stall"])
def test_faults_change_nothing_in_the_pixels(fault: str) -> None:
    with image_server(SMALL, max_size=(50, 50)) as arcgis:
        source = opened(arcgis)
        arcgis.server.plan.extend([fault, None, fault])
        pixels, _ = whole(source)
    assert np.array_equal(SMALL.pixels, pixels)


@pytest.mark.parametrize("fault", ["json-error", "500", "html"])
def test_a_block_that_the_server_cannot_make_is_a_tile_that_cannot_be_read(fault: str) -> None:
    with image_server(SMALL) as arcgis:
        source = opened(arcgis)
        arcgis.server.plan.extend([fault] * 10)
        with pytest.raises(RasterReadError, match="columns 0 to 9") as caught:
            source.read(Window(0, 0, 9, 9))
        assert [0, 0, 9, 9] == caught.value.context["window"]
        arcgis.server.plan.clear()
        assert np.array_equal(SMALL.pixels, whole(source)[0])  # the failure is not remembered


def test_cancelling_ends_a_read_that_stalls() -> None:
    stop = threading.Event()
    with image_server(SMALL) as arcgis:
        source = opened(arcgis, client=HttpClient(limits=HttpLimits(), is_cancelled=stop.is_set))
        arcgis.server.plan.append("stall")
        threading.Timer(0.3, stop.set).start()
        with pytest.raises(Canceled):
            source.read(Window(0, 0, 9, 9))


TOKEN = "canary-token"


@pytest.mark.parametrize("header", ["X-Esri-Authorization", "Authorization"])
def test_a_token_travels_in_a_header_and_never_in_an_address(header: str) -> None:
    with image_server(SMALL, token=TOKEN) as arcgis:
        client = HttpClient([Credential(arcgis.server.url, {header: f"Bearer {TOKEN}"})], limits=QUICK)
        pixels, _ = whole(opened(arcgis, client=client))
        assert not [request for request in arcgis.server.asked if TOKEN in repr((request.path, request.query))]
    assert np.array_equal(SMALL.pixels, pixels)


@pytest.mark.parametrize(("token", "reason"), [("", "wants a token"), ("old", "expired")])
def test_a_service_that_wants_another_token_says_so_and_names_no_token(token: str, reason: str) -> None:
    with image_server(SMALL, token=TOKEN, expired=("old",)) as arcgis:
        client = HttpClient([Credential(arcgis.server.url, {"Authorization": f"Bearer {token}"})], limits=QUICK)
        with pytest.raises(CredentialError, match=reason) as caught:
            opened(arcgis, client=client)
    assert "old" not in str(caught.value).split()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"capabilities": "Image,TilesOnly,Tilemap"}, "tiles of its cache alone"),
        ({"pixelSizeX": None}, "how large its pixels are"),
        ({"pixelSizeX": 0}, "how large its pixels are"),
        ({"spatialReference": {"ics": 1}, "fullExtent": None}, "coordinate reference system"),
        ({"extent": {"xmin": "NaN", "ymin": 1, "xmax": 2, "ymax": 3}, "fullExtent": None}, "where on the map"),
        ({"pixelType": "C64"}, "complex"),
    ],
)
def test_a_service_that_cannot_be_read_says_why(changes: dict[str, Any], reason: str) -> None:
    with image_server(SMALL, changes=changes) as arcgis, pytest.raises(InferenceError, match=reason):
        opened(arcgis)


@pytest.mark.parametrize("url", ["https://host/arcgis/rest/services/X/FeatureServer/0", "host/ImageServer", "x.tif"])
def test_another_address_is_refused(url: str) -> None:
    with pytest.raises(RasterOpenError, match="not the address"):
        ImageServicePixels(RasterItem("image_service", url), RGB, GridRequest(), HttpClient())


def test_the_identity_changes_with_the_pixels_and_with_nothing_else() -> None:
    with image_server(SMALL) as arcgis:
        first, again = opened(arcgis).identity(), opened(arcgis).identity()
        arcgis.image_now = replace(SMALL, pixels=noise(3, 90, 130, seed=9))
        assert first == again
        assert first != opened(arcgis).identity()


def test_a_service_that_shows_no_coarse_picture_is_known_by_what_it_says() -> None:
    with image_server(SMALL) as arcgis:
        source = opened(arcgis)
        arcgis.server.plan.extend(["json-error"] * 4)
        identity = source.identity()
        assert identity is not None
        assert identity[-1] is None


def test_a_server_that_is_gone_is_no_tile_that_cannot_be_read() -> None:
    with image_server(SMALL) as arcgis:
        source = opened(arcgis)
        arcgis.server.chance = lambda _request: "503"
        with pytest.raises(NetworkError):
            source.read(Window(0, 0, 9, 9))


def test_a_large_service_is_sampled_from_a_coarse_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_service, "_SAMPLE_WHOLE", 100)
    monkeypatch.setattr(image_service, "_SAMPLE_SIDE", 65)
    with image_server(SMALL) as arcgis:
        source = opened(arcgis)
        sample = source.sample()
        assert [65 * 45] * 3 == [len(values) for values in sample]
        assert set(np.unique(sample[0])) <= set(np.unique(SMALL.pixels[0]))


@pytest.mark.shared_data
def test_a_real_plot_through_a_service_is_the_file(shared_data: Path) -> None:
    path = shared_data / "trees_neon" / "demo" / "OSBS_029.tif"
    with image_server(open_image(path), max_size=(150, 150)) as arcgis:
        pixels, _ = whole(opened(arcgis))
    assert np.array_equal(whole(GdalPixels(RasterItem("gdal", str(path)), RGB, GridRequest()))[0], pixels)


@pytest.mark.parametrize("kind", ["image", "map", "tiled"])
def test_a_job_opens_services_with_the_secrets_of_its_run(kind: str) -> None:
    with image_server(SMALL, token=TOKEN) as arcgis:
        secrets = Secrets(({"origin": arcgis.server.url, "headers": {"Authorization": f"Bearer {TOKEN}"}},))
        item = RasterItem("image_service", getattr(arcgis, kind))
        source = open_pixels(item, RGB, GridRequest(0.5), RasterAccess(secrets=secrets))
        assert (0.5, "uint8") == (source.info.cell_size[0], source.info.dtype)
        source.close()
