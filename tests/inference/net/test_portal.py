from __future__ import annotations

import hashlib
import random
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kestrel.inference.errors import CredentialError, InferenceError, JobError, ServiceError
from kestrel.inference.net.http import Credential, HttpClient
from kestrel.inference.net.item_files import model_of, raster_of
from kestrel.inference.net.limits import HttpLimits
from kestrel.inference.net.portal import DEFAULT_PORTAL, Reference, portal_url, read_item, references, takes_tokens_of
from kestrel.tests.fixtures.servers.base import Answer, Request, esri_error, ranged, serving
from kestrel.tests.fixtures.servers.portal import ITEM, OTHER_ITEM, Item, Portal, portal

TOKEN = "canary-token"
CONTENT = random.Random(3).randbytes(200_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
PACKAGE = Item("Deep Learning Package", title="Trees", name="Tree crowns.dlpk", data=CONTENT)
QUICK = HttpLimits(connect=2, read=0.5, total=5, patience=1, first_pause=0.02, longest_pause=0.1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KESTREL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def client(*credentials: Credential, **options: Any) -> HttpClient:
    return HttpClient(credentials, limits=QUICK, **options)


def signed(double: Portal) -> HttpClient:
    return client(Credential(double.server.url, {"X-Esri-Authorization": f"Bearer {TOKEN}"}))


def reference(double: Portal, item: str = ITEM) -> Reference:
    return Reference("item", item, double.server.url)


def downloads(double: Portal) -> list[Request]:
    return [request for request in double.server.asked if request.path.endswith("/data")]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"itemId": ITEM}, [Reference("item", ITEM, DEFAULT_PORTAL)]),
        ({"itemId": ITEM, "url": "https://a/ImageServer", "uri": "/x"}, [Reference("item", ITEM, DEFAULT_PORTAL)]),
        ({"url": "https://a/ImageServer", "uri": "/x.tif"}, [Reference("url", "https://a/ImageServer")]),
        ({"uri": "/x.tif", "itemId": ""}, [Reference("uri", "/x.tif")]),
        ({"itemIds": [ITEM, OTHER_ITEM]},
         [Reference("item", ITEM, DEFAULT_PORTAL), Reference("item", OTHER_ITEM, DEFAULT_PORTAL)]),
        ({"urls": ["https://a/x", "https://b/y"]}, [Reference("url", "https://a/x"), Reference("url", "https://b/y")]),
        ({"uris": ["a.tif", "b.tif"]}, [Reference("uri", "a.tif"), Reference("uri", "b.tif")]),
        ({"url": f"https://gis.org/portal/sharing/rest/content/items/{ITEM}?f=json"},
         [Reference("item", ITEM, "https://gis.org/portal")]),
        ({"url": f"https://gis.org/portal/sharing/rest/content/items/{ITEM}/data"},
         [Reference("item", ITEM, "https://gis.org/portal")]),
        ({"url": f"https://www.arcgis.com/home/item.html?id={ITEM}#data"},
         [Reference("item", ITEM, "https://www.arcgis.com")]),
    ],
)  # fmt: skip
def test_members_of_a_request_are_read_in_their_order(value: dict[str, Any], expected: list[Reference]) -> None:
    assert tuple(expected) == references(value)


@pytest.mark.parametrize("value", [{}, {"url": 5}, {"itemIds": [ITEM, 3]}, {"itemId": "../../x"}, {"name": "x"}])
def test_a_request_without_usable_members_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(JobError):
        references(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "https://www.arcgis.com"),
        ("myorg.maps.arcgis.com", "https://myorg.maps.arcgis.com"),
        ("https://gis.org/portal/home/index.html", "https://gis.org/portal"),
        ("https://gis.org/portal/sharing/rest/", "https://gis.org/portal"),
        ("https://gis.org:7443/arcgis/", "https://gis.org:7443/arcgis"),
    ],
)
def test_a_portal_is_known_by_any_of_its_pages(text: str, expected: str) -> None:
    assert expected == portal_url(text)


def test_a_package_is_downloaded_once_and_kept_under_its_hash(own_cache: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    with portal({ITEM: PACKAGE}) as double:
        first = model_of(client(), reference(double), lambda *now: seen.append(now))
        again = model_of(client(), reference(double))
        assert 1 == len(downloads(double))
    assert (own_cache / "models" / DIGEST / "Tree_crowns.dlpk", DIGEST) == (first.path, first.sha256)
    assert first == again
    assert CONTENT == first.path.read_bytes()
    assert (len(CONTENT), len(CONTENT)) == seen[-1]


def test_a_file_that_changed_in_the_cache_is_not_used() -> None:
    with portal({ITEM: PACKAGE}) as double:
        path = model_of(client(), reference(double)).path
        path.write_bytes(b"X" + CONTENT[1:])
        assert CONTENT == model_of(client(), reference(double)).path.read_bytes()
        assert 2 == len(downloads(double))


def test_an_item_that_changed_is_downloaded_anew() -> None:
    with portal({ITEM: PACKAGE}) as double:
        model_of(client(), reference(double))
        double.items[ITEM] = Item(
            "Deep Learning Package", name="m.dlpk", data=CONTENT[::-1], modified=1_800_000_000_000
        )
        assert CONTENT[::-1] == model_of(client(), reference(double)).path.read_bytes()


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (esri_error(498, "Invalid token."), CredentialError),
        (Answer(b"\n<!DOCTYPE html><html>Sign in to the hotel</html>", content_type="text/html"), ServiceError),
    ],
)
def test_an_error_that_comes_instead_of_the_file_is_told_and_not_kept(wrong: Answer, kind: type[Exception]) -> None:
    with portal({ITEM: PACKAGE}) as double:
        handle = double.server.handle
        double.server.handle = lambda asked: wrong if asked.path.endswith("/data") else handle(asked)
        with pytest.raises(kind):
            model_of(client(), reference(double))
        double.server.handle = handle
        assert DIGEST == model_of(client(), reference(double)).sha256


def test_a_file_that_would_fill_the_disk_is_not_downloaded_to_its_end(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=500 * 2**20 + len(CONTENT) - 1))
    with portal({ITEM: replace(PACKAGE, changes={"size": -1})}) as double, pytest.raises(ServiceError, match="longer"):
        model_of(client(), reference(double))
    assert [path for path in (own_cache / "incoming").iterdir() if path.stat().st_size > 1000] == []


@pytest.mark.parametrize("fault", ["503", "reset", "short", "stall"])
def test_a_download_comes_through_faults(fault: str) -> None:
    with portal({ITEM: PACKAGE}) as double:
        double.server.plan.extend([None, fault])
        assert DIGEST == model_of(client(), reference(double)).sha256


def test_the_token_stays_with_the_portal_when_its_files_are_elsewhere() -> None:
    def storage(request: Request) -> Answer:
        return ranged(CONTENT, request)

    with portal({ITEM: Item("Deep Learning Package", name="m.dlpk", data=CONTENT, private=True)}, TOKEN) as double:
        with serving(storage) as bucket:
            double.data_host = bucket.url
            assert DIGEST == model_of(signed(double), reference(double)).sha256
            assert [] == bucket.asked_with(TOKEN)
        assert not [request for request in double.server.asked if TOKEN in repr((request.path, request.query))]


def test_a_private_item_wants_a_sign_in() -> None:
    with portal({ITEM: Item("Deep Learning Package", data=CONTENT, private=True)}, TOKEN) as double:
        with pytest.raises(CredentialError, match="does not let us see the item"):
            model_of(client(), reference(double))
        assert DIGEST == model_of(signed(double), reference(double)).sha256


def test_an_unknown_item_names_id_and_portal() -> None:
    with portal({}) as double, pytest.raises(ServiceError, match=f"{double.server.url} does not know the item {ITEM}"):
        model_of(client(), reference(double))


@pytest.mark.parametrize(
    "item",
    [
        Item("Feature Service", url="https://host/FeatureServer"),
        Item("Web Map"),
        Item("Microsoft Word", name="x.docx", data=b"1"),
        Item("Image Service", url="https://host/ImageServer"),
    ],
)
def test_an_item_that_is_no_model_is_refused_by_name(item: Item) -> None:
    with portal({ITEM: item}) as double, pytest.raises(JobError, match=f"type '{item.type}'.*no model"):
        model_of(client(), reference(double))


@pytest.mark.parametrize("name", ["x.emd", "x.zip", "x.onnx", "x.dlpk"])
def test_a_file_item_with_a_models_ending_is_a_model(name: str) -> None:
    with portal({ITEM: Item("Code Sample", name=name, data=CONTENT)}) as double:
        assert name == model_of(client(), reference(double)).path.name


@pytest.mark.parametrize("kind", ["Image", "File", "GeoTIFF"])
def test_a_raster_file_goes_to_the_cache_of_rasters(own_cache: Path, kind: str) -> None:
    with portal({ITEM: Item(kind, name="scene.tif", data=CONTENT)}) as double:
        raster = raster_of(client(), reference(double))
    assert ("gdal", str(own_cache / "rasters" / DIGEST / "scene.tif")) == (raster.kind, raster.source)


@pytest.mark.parametrize("content", [b"<VRTDataset/>", b"\n <GDAL_WMS/>", b'{"type": "FeatureCollection"}'])
def test_an_item_that_only_refers_to_other_data_is_no_raster(content: bytes) -> None:
    item = Item("Image", name="scene.tif", data=content)
    with portal({ITEM: item}) as double, pytest.raises(JobError, match="no raster"):
        raster_of(client(), reference(double))


@pytest.mark.parametrize("kind", ["ImageServer", "MapServer"])
def test_a_service_item_is_its_address(kind: str) -> None:
    url = f"http://127.0.0.1:9/arcgis/rest/services/X/{kind}"
    with portal({ITEM: Item(f"{kind.removesuffix('Server')} Service", url=url)}) as double:
        raster = raster_of(client(), reference(double))
    assert ("image_service", url) == (raster.kind, raster.source)


@pytest.mark.parametrize("item", [Item("Feature Service", url="http://h/FeatureServer"), Item("Image", name="x.psd")])
def test_an_item_that_is_no_raster_is_refused_by_name(item: Item) -> None:
    with portal({ITEM: item}) as double, pytest.raises(JobError, match="no raster"):
        raster_of(client(), reference(double))


def test_a_public_portal_cannot_send_us_into_the_own_network() -> None:
    def resolve(host: str) -> list[str]:
        return ["93.184.215.14"] if host == "localhost" else [host]

    with portal({ITEM: Item("Image Service", url="http://10.0.0.1/arcgis/rest/services/X/ImageServer")}) as double:
        public = Reference("item", ITEM, f"http://localhost:{double.server.port}")
        with pytest.raises(ServiceError, match="own network"):
            raster_of(client(resolve=resolve), public)


def test_a_server_gets_the_portals_token_only_if_the_portal_lists_it() -> None:
    def hello(_request: Request) -> Answer:
        return Answer(b"hello")

    with serving(hello) as own, serving(hello) as stranger, portal({}, TOKEN) as double:
        double.servers = [f"{own.url}/server"]
        for number, server in enumerate((own, stranger)):
            double.items[f"{number:032x}"] = Item("Image Service", url=f"{server.url}/rest/services/X/ImageServer")
        http = signed(double)
        for number in range(2):
            http.get(raster_of(http, reference(double, f"{number:032x}")).source)
        assert (1, 0) == (len(own.asked_with(TOKEN)), len(stranger.asked_with(TOKEN)))


def test_a_password_is_not_shared_with_the_servers_of_a_portal() -> None:
    with serving(lambda _: Answer(b"hello")) as own, portal({}, TOKEN) as double:
        http = client(Credential(double.server.url, {"Authorization": "Basic c2VjcmV0"}))
        http.share_token(double.server.url, own.url)
        http.get(own.url)
        assert "authorization" not in own.asked[0].headers


def test_servers_of_arcgis_online_belong_to_it_and_their_likes_do_not() -> None:
    http = client()
    assert takes_tokens_of(http, "https://org.maps.arcgis.com", "https://iservices.arcgis.com/x/ImageServer")
    with portal({}, TOKEN) as double:
        assert not takes_tokens_of(http, double.server.url, "https://evil-arcgis.com/x/ImageServer")
        assert not takes_tokens_of(http, double.server.url, "https://iservices.arcgis.com/x/ImageServer")


def test_titles_are_one_harmless_line() -> None:
    title = "<img src=file:///x>\nline\u202e two\x1b[0m" + "x" * 500
    with portal({ITEM: Item("Web\nMap", title=title)}) as double:
        item = read_item(client(), double.server.url, ITEM)
    assert item.shown.isprintable()
    assert item.type == "Web Map"
    assert len(item.shown) < 260


@pytest.mark.parametrize("name", ["../../evil.dlpk", "C:\\evil.dlpk", "CON.dlpk/..", "a\0b.dlpk", "ä ö.dlpk"])
def test_a_file_name_from_outside_stays_in_its_folder(own_cache: Path, name: str) -> None:
    with portal({ITEM: Item("Deep Learning Package", name=name, data=CONTENT)}) as double:
        try:
            path = model_of(client(), reference(double)).path
        except InferenceError:
            return
    assert own_cache / "models" / DIGEST == path.parent
    assert path.name.isascii()
