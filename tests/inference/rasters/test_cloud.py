"""Rasters in object stores, which GDAL reads by itself; servers in processes of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rasterio._env import get_gdal_config

from kestrel.inference.errors import CredentialError, NetworkError, RasterOpenError
from kestrel.inference.events import Canceled
from kestrel.inference.job import RasterItem
from kestrel.inference.net.limits import HttpLimits
from kestrel.inference.rasters.access import RasterAccess
from kestrel.inference.rasters.gdal_options import environment, secret_for
from kestrel.inference.rasters.gdal_pixels import GdalPixels
from kestrel.inference.rasters.source import GridRequest
from kestrel.inference.secrets import Secrets
from kestrel.tests.fixtures.rasters import noise, write_raster
from kestrel.tests.fixtures.servers.range_server import serving_apart
from kestrel.tests.inference.rasters.test_remote import PIXELS, WINDOWS, part

LIMITS = HttpLimits(connect=2, read=1, total=5, patience=30, first_pause=0.05, longest_pause=0.5)
PATH = "/vsis3/bucket/r.tif"


def access(url: str, key: str = "the-key", limits: HttpLimits = LIMITS) -> RasterAccess:
    options = {
        "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": "canary", "AWS_S3_ENDPOINT": url.removeprefix("http://"),
        "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE", "AWS_REGION": "us-east-1",
    }  # fmt: skip
    return RasterAccess(limits=limits, secrets=Secrets(gdal={"/vsis3/bucket/": options}))


@contextmanager
def opened(how: RasterAccess, path: str = PATH) -> Iterator[GdalPixels]:
    pixels = GdalPixels(RasterItem("gdal", path), (0,), GridRequest(), how)
    try:
        yield pixels
    finally:
        pixels.close()


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("cloud") / "r.tif"
    return write_raster(path, PIXELS, driver="COG", compress="deflate", blocksize=128).read_bytes()


def test_an_object_is_read_with_the_keys_of_its_path(content: bytes) -> None:
    with serving_apart({"/bucket/r.tif": content}, signed_by="the-key") as server:
        with opened(access(server.url)) as pixels:
            assert all((pixels.read(window)[0] == part(window)).all() for window in WINDOWS)
            assert pixels.identity() == pixels.identity() is not None
        with (
            pytest.raises(CredentialError, match=r"does not let us read '/vsis3/bucket/r\.tif'") as caught,
            opened(access(server.url, "another-key")),
        ):
            pass
        assert "canary" not in repr(caught.value) + str(caught.value.__cause__)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["503", "short", "reset"])
def test_a_store_in_trouble_changes_no_pixel(content: bytes, fault: str) -> None:
    with serving_apart({"/bucket/r.tif": content}, share=0.3, kinds=(fault,), after=2, seed=4) as server:
        with opened(access(server.url)) as pixels:
            assert all((pixels.read(window)[0] == part(window)).all() for window in WINDOWS)
        assert fault in server.told()[1]


def test_what_an_object_is_replaced_with_has_another_identity(content: bytes, tmp_path: Path) -> None:
    other = write_raster(tmp_path / "r.tif", noise(1, 700, 700), driver="COG", compress="deflate", blocksize=128)
    found = []
    for version in (content, other.read_bytes()):
        with serving_apart({"/bucket/r.tif": version}) as server, opened(access(server.url)) as pixels:
            found.append(pixels.identity())
    assert found[0] != found[1]


def test_a_store_that_is_not_there_is_a_matter_of_the_network(content: bytes) -> None:
    with (
        pytest.raises(NetworkError, match="does not answer"),
        opened(access("http://127.0.0.1:9", limits=replace(LIMITS, patience=0.5))),
    ):
        pass


def test_an_object_that_is_not_there_is_told_soon(content: bytes) -> None:
    with (
        serving_apart({"/bucket/r.tif": content}) as server,
        pytest.raises(RasterOpenError, match="nosuch"),
        opened(access(server.url), "/vsis3/bucket/nosuch.tif"),
    ):
        pass


def test_a_cancelled_run_does_not_wait_for_a_store() -> None:
    cancel = threading.Event()
    how = access("http://127.0.0.1:9", limits=replace(LIMITS, first_pause=60, longest_pause=60, patience=600))
    threading.Timer(0.5, cancel.set).start()
    with pytest.raises(Canceled), opened(replace(how, is_cancelled=cancel.is_set)):
        pass


def test_credentials_are_seen_by_the_thread_that_reads_and_by_no_other() -> None:
    seen: dict[str, Any] = {}
    inside, done = threading.Event(), threading.Event()

    def reader() -> None:
        with environment({}, {"AWS_SECRET_ACCESS_KEY": "canary"}):
            seen["reader"] = get_gdal_config("AWS_SECRET_ACCESS_KEY")
            inside.set()
            done.wait(5)

    thread = threading.Thread(target=reader)
    thread.start()
    inside.wait(5)
    with environment({}, {}):
        seen["other"] = get_gdal_config("AWS_SECRET_ACCESS_KEY")
    done.set()
    thread.join()
    assert seen == {"reader": "canary", "other": None}


def test_credentials_are_those_of_the_path_and_can_set_nothing_else() -> None:
    secrets = {
        "/vsis3/a/": {"AWS_ACCESS_KEY_ID": "wide", "GDAL_VRT_ENABLE_PYTHON": "YES"},
        "/vsis3/a/b": {"AWS_ACCESS_KEY_ID": "narrow"},
        "/vsis3/c": {"AWS_ACCESS_KEY_ID": "other"},
    }
    found = {path: secret_for(RasterItem("gdal", path), secrets) for path in ("/vsis3/a/x", "/vsis3/a/b.tif", "/v")}
    assert found == {
        "/vsis3/a/x": {"AWS_ACCESS_KEY_ID": "wide"},
        "/vsis3/a/b.tif": {"AWS_ACCESS_KEY_ID": "narrow"},
        "/v": {},
    }


@pytest.mark.slow
def test_a_real_implementation_of_the_protocol_is_read(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    boto3 = pytest.importorskip("boto3")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        keys = {"aws_access_key_id": "the-key", "aws_secret_access_key": "canary", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=url, **keys)
        client.create_bucket(Bucket="bucket")
        client.put_object(Bucket="bucket", Key="r.tif", Body=content)
        # GDAL holds Python's lock while it opens a file, and this server runs in this process.
        monkeypatch.setenv("GDAL_DISABLE_READDIR_ON_OPEN", "EMPTY_DIR")
        with opened(access(url)) as pixels:
            assert all((pixels.read(window)[0] == part(window)).all() for window in WINDOWS)
    finally:
        server.stop()
