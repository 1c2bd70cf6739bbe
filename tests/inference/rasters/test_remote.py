"""Rasters behind http: whatever the server does, the pixels are the file's, or there is an error that says why."""

from __future__ import annotations

import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio.shutil
from numpy.typing import NDArray

from kestrel.inference.errors import (
    CredentialError,
    NetworkError,
    RasterChangedError,
    RasterOpenError,
    RasterReadError,
    ServiceError,
)
from kestrel.inference.events import Canceled
from kestrel.inference.job import RasterItem
from kestrel.inference.net.limits import HttpLimits
from kestrel.inference.rasters import remote_bytes
from kestrel.inference.rasters.access import RasterAccess
from kestrel.inference.rasters.gdal_pixels import GdalPixels
from kestrel.inference.rasters.source import GridRequest
from kestrel.inference.secrets import Secrets
from kestrel.inference.tiling import Window
from kestrel.tests.fixtures.rasters import write_raster
from kestrel.tests.fixtures.servers.base import FAULTS
from kestrel.tests.fixtures.servers.faults import FaultPlan
from kestrel.tests.fixtures.servers.range_server import serving_files

LIMITS = HttpLimits(connect=2, read=0.5, total=30, patience=20, first_pause=0.02, longest_pause=0.1)
ACCESS = RasterAccess(limits=LIMITS)
SIDE = 700
PIXELS = np.random.default_rng(0).integers(1, 255, (1, SIDE, SIDE), np.uint8)
WINDOWS = [Window(0, 0, 300, 300), Window(250, 100, 300, 300), Window(400, 400, 300, 300), Window(0, 600, 700, 100)]
FORMATS: dict[str, dict[str, Any]] = {
    "cog": {"driver": "COG", "compress": "deflate", "blocksize": 128},
    "tiles": {"tiled": True, "blockxsize": 64, "blockysize": 64},
    "strips": {},
    "many tiles": {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"},
}


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same pixels in several forms."""
    folder = tmp_path_factory.mktemp("forms")
    return {name: write_raster(folder / "r.tif", PIXELS, **form).read_bytes() for name, form in FORMATS.items()}


@contextmanager
def opened(source: str, access: RasterAccess = ACCESS) -> Iterator[GdalPixels]:
    pixels = GdalPixels(RasterItem("gdal", source), (0,), GridRequest(), access)
    try:
        yield pixels
    finally:
        pixels.close()


def part(window: Window, pixels: NDArray[Any] = PIXELS) -> NDArray[Any]:
    return pixels[:, window.y : window.bottom, window.x : window.right]


def assert_same(pixels: GdalPixels, windows: list[Window] = WINDOWS) -> None:
    for window in windows:
        values, present = pixels.read(window)
        assert present.all()
        assert (values == part(window)).all()


@pytest.mark.parametrize("form", FORMATS)
def test_pixels_behind_http_are_the_files(contents: dict[str, bytes], form: str) -> None:
    with serving_files({"/r.tif": contents[form]}) as (server, _), opened(f"{server.url}/r.tif") as pixels:
        assert_same(pixels)
        assert all("bytes=" in request.headers["range"] for request in server.asked)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "stall"])
@pytest.mark.parametrize("form", ["cog", "strips"])
def test_a_bad_answer_changes_no_pixel(contents: dict[str, bytes], form: str, fault: str) -> None:
    with serving_files({"/r.tif": contents[form]}) as (server, _):
        server.plan = FaultPlan(0.3, (fault,), seed=3)
        with opened(f"{server.url}/r.tif") as pixels:
            assert_same(pixels)
        assert server.plan.given


@pytest.mark.parametrize("lie", ["whole", "page", "cut", "shifted"])
@pytest.mark.parametrize("form", ["tiles", "strips"])
def test_an_answer_that_lies_changes_no_pixel(contents: dict[str, bytes], form: str, lie: str) -> None:
    with serving_files({"/r.tif": contents[form]}) as (server, files), opened(f"{server.url}/r.tif") as pixels:
        for window in WINDOWS:
            files.lies = [lie]
            assert (pixels.read(window)[0] == part(window)).all()


def test_a_lie_at_the_very_first_answer_changes_nothing(contents: dict[str, bytes]) -> None:
    for lie in ("page", "cut", "shifted"):
        with serving_files({"/r.tif": contents["strips"]}) as (server, files):
            files.lies = [lie]
            with opened(f"{server.url}/r.tif") as pixels:
                assert_same(pixels)


def test_many_threads_see_the_same_pixels_and_ask_for_no_block_twice(contents: dict[str, bytes]) -> None:
    with serving_files({"/r.tif": contents["tiles"]}) as (server, _), opened(f"{server.url}/r.tif") as pixels:
        with ThreadPoolExecutor(6) as threads:
            list(threads.map(lambda window: assert_same(pixels, [window]), WINDOWS * 5))
        asked = [request.headers["range"] for request in server.asked if request.path == "/r.tif"]
        assert len(set(asked)) == len(asked)


def test_a_small_extent_of_a_large_raster_costs_a_small_part_of_its_bytes(tmp_path: Path) -> None:
    large = np.random.default_rng(1).integers(0, 255, (1, 4096, 4096), np.uint8)
    content = write_raster(tmp_path / "r.tif", large, driver="COG", compress="deflate", blocksize=256).read_bytes()
    with serving_files({"/r.tif": content}) as (server, files), opened(f"{server.url}/r.tif") as pixels:
        window = Window(2000, 3000, 300, 300)
        assert (pixels.read(window)[0] == part(window, large)).all()
        assert files.n_bytes < 0.04 * len(content)


def test_a_stalling_server_holds_a_read_for_no_more_than_twice_the_limit(contents: dict[str, bytes]) -> None:
    access = RasterAccess(limits=replace(LIMITS, patience=1.0))
    with serving_files({"/r.tif": contents["strips"]}) as (server, _), opened(f"{server.url}/r.tif", access) as pixels:
        server.plan = FaultPlan(1.0, ("stall",))
        start = time.monotonic()
        with pytest.raises(NetworkError):
            pixels.read(WINDOWS[2])
        assert time.monotonic() - start < 2 * access.limits.patience


def test_a_server_that_is_gone_is_a_matter_of_the_network_and_not_of_one_tile(contents: dict[str, bytes]) -> None:
    access = RasterAccess(limits=replace(LIMITS, patience=0.3))
    with serving_files({"/r.tif": contents["strips"]}) as (server, _), opened(f"{server.url}/r.tif", access) as pixels:
        server.plan = FaultPlan(1.0, ("reset",))
        with pytest.raises(NetworkError, match="what is done already is kept"):
            pixels.read(WINDOWS[2])
        n_asked = len(server.asked)
        with pytest.raises(NetworkError):
            pixels.read(WINDOWS[1])
        assert len(server.asked) == n_asked  # nobody else waits for it again


def test_a_cancelled_read_ends_while_it_waits(contents: dict[str, bytes]) -> None:
    cancel = threading.Event()
    access = RasterAccess(cancel.is_set, limits=replace(LIMITS, first_pause=60, longest_pause=60, patience=600))
    with serving_files({"/r.tif": contents["strips"]}) as (server, _), opened(f"{server.url}/r.tif", access) as pixels:
        server.plan = FaultPlan(1.0, ("503",))
        threading.Timer(0.3, cancel.set).start()
        with pytest.raises(Canceled):
            pixels.read(WINDOWS[2])


def test_a_file_that_is_replaced_while_it_is_read_ends_the_run(contents: dict[str, bytes]) -> None:
    with serving_files({"/r.tif": contents["tiles"]}) as (server, files), opened(f"{server.url}/r.tif") as pixels:
        pixels.read(Window(0, 0, 64, 64))
        files.etags["/r.tif"] = '"2"'
        with pytest.raises(RasterChangedError, match=r"r\.tif' was changed while it was read"):
            pixels.read(WINDOWS[2])


@pytest.mark.parametrize("what", ["longer", "gone"])
def test_also_without_a_version_a_file_of_another_length_is_another_file(contents: dict[str, bytes], what: str) -> None:
    with serving_files({"/r.tif": contents["tiles"]}) as (server, files):
        files.etags["/r.tif"] = None
        with opened(f"{server.url}/r.tif") as pixels:
            assert pixels.identity() is None
            if what == "gone":
                del files.content["/r.tif"]
            else:
                files.content["/r.tif"] += b"more"
            with pytest.raises(RasterChangedError):
                pixels.read(WINDOWS[2])


def test_the_identity_of_a_file_is_its_version(contents: dict[str, bytes]) -> None:
    with serving_files({"/r.tif": contents["cog"]}) as (server, files):
        found = []
        for etag in ('"1"', '"1"', '"2"'):
            files.etags["/r.tif"] = etag
            with opened(f"{server.url}/r.tif?token_like=1") as pixels:
                found.append(pixels.identity())
        assert found[0] == [[f"{server.url}/r.tif", len(contents["cog"]), '"1"', ""]]
        assert (found[0] == found[1], found[1] == found[2]) == (True, False)


def test_a_server_that_gives_out_no_parts_is_read_whole_where_that_is_little(
    contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_files({"/r.tif": contents["cog"]}) as (server, files):
        files.always = "whole"
        with opened(f"{server.url}/r.tif") as pixels:
            assert_same(pixels)
        monkeypatch.setattr(remote_bytes, "_WHOLE", 10_000)
        with (
            pytest.raises(RasterOpenError, match="does not give out parts of files"),
            opened(f"{server.url}/r.tif"),
        ):
            pass


def test_a_page_for_a_browser_is_no_raster(contents: dict[str, bytes]) -> None:
    with serving_files({"/r.tif": b"<!DOCTYPE html><html><body>Welcome</body></html>"}) as (server, files):
        files.always = "whole"
        with pytest.raises(ServiceError, match="sends a page for a browser"), opened(f"{server.url}/r.tif"):
            pass


def test_a_raster_that_is_not_there_is_told_at_once(contents: dict[str, bytes]) -> None:
    with serving_files({}) as (server, _):
        with pytest.raises(ServiceError, match="status 404"), opened(f"{server.url}/r.tif?secret=canary") as pixels:
            pixels.read(WINDOWS[0])
        assert len(server.asked) == 1


def test_credentials_go_to_their_own_server_and_nowhere_else(contents: dict[str, bytes]) -> None:
    with serving_files({"/moved.tif": contents["cog"]}) as (other, _), serving_files({}) as (server, files):
        secrets = Secrets(({"origin": server.url, "headers": {"Authorization": "Bearer canary"}},))
        files.wanted = ("authorization", "Bearer canary")
        files.content["/r.tif"] = contents["cog"]
        files.redirects = {"/old.tif": f"{other.url}/moved.tif"}
        access = replace(ACCESS, secrets=secrets)
        for name in ("r", "old"):
            with opened(f"{server.url}/{name}.tif", access) as pixels:
                assert_same(pixels)
        assert server.asked_with("canary")
        assert other.asked
        assert not other.asked_with("canary")
        with pytest.raises(CredentialError), opened(f"{server.url}/r.tif"):
            pass


def test_what_stands_beside_a_file_counts_as_it_does_on_disk(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "r.tif", PIXELS, crs=None)
    (tmp_path / "r.tif.aux.xml").write_text("<PAMDataset><SRS>EPSG:32633</SRS></PAMDataset>")
    mask = np.zeros((1, SIDE, SIDE), np.uint8)
    mask[:, 100:] = 255
    write_raster(tmp_path / "r.tif.msk", mask)
    with rasterio.open(tmp_path / "r.tif.msk", "r+") as dataset:
        dataset.update_tags(INTERNAL_MASK_FLAGS_1="2")
    with serving_files({f"/{file.name}": file.read_bytes() for file in tmp_path.iterdir()}) as (server, _):
        found = []
        for source in (str(path), f"{server.url}/r.tif"):
            with opened(source) as pixels:
                found.append((pixels.info.crs_wkt, pixels.read(Window(0, 0, 10, 200))[1].tolist()))
        assert found[0] == found[1]
        assert "32633" in found[0][0]


def test_a_corrupt_block_costs_its_own_place_only(contents: dict[str, bytes]) -> None:
    content = bytearray(contents["cog"])
    middle = len(content) // 2
    content[middle : middle + 3000] = b"\xff" * 3000
    with serving_files({"/r.tif": bytes(content)}) as (server, _), opened(f"{server.url}/r.tif") as pixels:
        failed = []
        for y in range(0, SIDE, 128):
            for x in range(0, SIDE, 128):
                try:
                    assert_same(pixels, [Window(x, y, 60, 60)])
                except RasterReadError:
                    failed.append((x, y))
        assert 1 <= len(failed) <= 2


# -- Names that hold a URL -------------------------------------------------------------------------------------------


def make_vrt(target: Path, name: str, *, relative: int = 0) -> bytes:
    text = f"""<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}"><SRS>EPSG:32633</SRS>
    <GeoTransform>500000, 0.5, 0, 5400000, 0, -0.5</GeoTransform><VRTRasterBand dataType="Byte" band="1"><SimpleSource>
    <SourceFilename relativeToVRT="{relative}">{name}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>
    </VRTRasterBand></VRTDataset>"""
    target.write_text(text)
    return text.encode()


def test_mosaics_of_remote_files_are_read_with_the_same_care(contents: dict[str, bytes], tmp_path: Path) -> None:
    with serving_files({"/d/r.tif": contents["strips"]}) as (server, files):
        local = tmp_path / "local.vrt"
        files.content["/d/absolute.vrt"] = make_vrt(local, f"/vsicurl/{server.url}/d/r.tif")
        files.content["/d/relative.vrt"] = make_vrt(tmp_path / "other.vrt", "r.tif", relative=1)
        for source in (str(local), f"{server.url}/d/absolute.vrt", f"/vsicurl/{server.url}/d/relative.vrt"):
            with opened(source) as pixels:
                identity = str(pixels.identity())
                server.plan.extend(["html", "short"])
                assert_same(pixels)
                assert not server.plan
                assert f"{server.url}/d/r.tif" in identity


def test_a_file_in_an_archive_on_a_server_is_read_with_the_same_care(
    contents: dict[str, bytes], tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
        archive.writestr("in/r.tif", contents["strips"])
    with serving_files({"/r.zip": (tmp_path / "r.zip").read_bytes()}) as (server, _):
        server.plan = FaultPlan(0.3, ("html", "short", "503"), seed=2)
        with opened(f"/vsizip//vsicurl/{server.url}/r.zip/in/r.tif") as pixels:
            assert_same(pixels)
        assert server.plan.given


@pytest.mark.parametrize(
    "name", ["/vsicurl?unsafessl=yes&url=https%3A%2F%2Fa.b%2Fc.tif", "/vsistdin/", "<VRTDataset/>"]
)
def test_a_name_that_is_more_than_a_name_is_refused(name: str) -> None:
    with pytest.raises(RasterOpenError, match="is not opened"), opened(name):
        pass


@pytest.mark.parametrize("name", ["m.vrt", "m.tif"])
@pytest.mark.parametrize(
    "reference",
    [
        "{local}", "{escaped}", "<!-- r.tif -->{local}", "<![CDATA[{local}]]>", "r.tif<!-- ", "GTIFF_DIR:1:{local}",
        "../../{local}",
        "/vsicurl?url={other}/r.tif", "/vsicurl_streaming/{other}/r.tif", "/vsis3/bucket/r.tif",
        "/vsizip/{local}/r.tif", "&lt;VRTDataset/&gt;",
    ],
)  # fmt: skip
def test_what_a_server_sends_opens_nothing_but_files_of_the_web(tmp_path: Path, name: str, reference: str) -> None:
    local = str(tmp_path / "mine.tif")
    write_raster(tmp_path / "mine.tif", np.full((1, SIDE, SIDE), 77, np.uint8))
    with serving_files({}) as (server, files), serving_files({}) as (other, _):
        named = reference.format(local=local, escaped=local.replace("/", "&#47;"), other=other.url)
        files.content[f"/{name}"] = make_vrt(tmp_path / "any.vrt", named)
        with (
            pytest.raises(RasterOpenError, match="may refer to files on the web alone"),
            opened(f"{server.url}/{name}"),
        ):
            """It is not opened."""
        assert other.asked == []


@pytest.mark.parametrize(
    "place",
    [
        '<SimpleSource SourceFilename="{local}"><SourceBand>1</SourceBand></SimpleSource>',
        '<SimpleSource><SourceFilename\n relativeToVRT="0" >{local}</SourceFilename></SimpleSource>',
        "<SimpleSource><sourcefilename>{local}</sourcefilename></SimpleSource>",
        '<Metadata domain="GEOLOCATION"><MDI key="X_DATASET">{local}</MDI></Metadata>',
    ],
)
def test_no_way_to_write_a_name_leads_out_of_the_web(tmp_path: Path, place: str) -> None:
    write_raster(tmp_path / "mine.tif", np.full((1, SIDE, SIDE), 77, np.uint8))
    content = make_vrt(tmp_path / "any.vrt", "r.tif", relative=1).decode()
    start, end = content.index("<SimpleSource>"), content.index("</VRTRasterBand>")
    content = content[:start] + place.format(local=tmp_path / "mine.tif") + content[end:]
    with (
        serving_files({"/m.vrt": content.encode()}) as (server, _),
        pytest.raises(RasterOpenError, match="on the web alone"),
        opened(f"{server.url}/m.vrt"),
    ):
        """It is not opened."""


def test_a_description_of_a_service_and_a_mosaic_in_an_archive_are_no_rasters_of_a_server(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
        archive.writestr("m.vrt", make_vrt(tmp_path / "any.vrt", str(tmp_path / "mine.tif")))
    write_raster(tmp_path / "mine.tif", np.full((1, SIDE, SIDE), 77, np.uint8))
    service = b'<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1:9/${z}</ServerUrl></Service></GDAL_WMS>'
    with serving_files({"/r.zip": (tmp_path / "r.zip").read_bytes(), "/s.tif": service}) as (server, _):
        for source in (f"{server.url}/s.tif", f"/vsizip//vsicurl/{server.url}/r.zip/m.vrt"):
            with pytest.raises(RasterOpenError, match="description"), opened(source):
                """It is not opened."""
