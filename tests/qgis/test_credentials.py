from __future__ import annotations

import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from qgis.core import QgsNetworkAccessManager, QgsSettings

from kestrel.inference.errors import CredentialError
from kestrel.inference.net.http import make_client
from kestrel.inference.net.limits import HttpLimits
from kestrel.inference.secrets import Secrets
from kestrel.processing_provider import gdal_source
from kestrel.processing_provider.credentials import certificates, proxies, secrets_for, signature
from kestrel.tests.fixtures.servers.base import Answer, serving
from kestrel.tests.fixtures.servers.portal import ITEM, Item, portal

TOKEN = "canary-token"
URL = "https://gis.example/arcgis/rest/services"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KESTREL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("method", "values", "expected"),
    [
        ("EsriToken", {"token": TOKEN}, {"X-Esri-Authorization": f"Bearer {TOKEN}"}),
        ("Basic", {"username": "me", "password": "secret"}, {"Authorization": "Basic bWU6c2VjcmV0"}),
        ("APIHeader", {"X_Api_Key": TOKEN}, {"X-Api-Key": TOKEN}),
    ],
)
def test_what_qgis_signs_with_is_taken_over(
    sign_with: Callable[..., str], method: str, values: dict[str, str], expected: dict[str, str]
) -> None:
    assert expected == signature(sign_with(method, **values), URL)


def test_the_secrets_name_the_server_alone_and_show_nothing(sign_with: Callable[..., str]) -> None:
    authcfg = sign_with("EsriToken", token=TOKEN)
    secrets = secrets_for([(authcfg, f"{URL}/Trees/ImageServer?f=json"), ("", "https://other.example/x")])
    assert ["https://gis.example"] == [entry["origin"] for entry in secrets.credentials]
    assert TOKEN not in repr(secrets)
    assert secrets == Secrets.from_dict(secrets.to_dict())


def test_an_unknown_configuration_is_told() -> None:
    with pytest.raises(CredentialError, match="no authentication configuration 'abcdefg'"):
        signature("abcdefg", URL)


def test_a_configuration_that_signs_otherwise_is_told(sign_with: Callable[..., str]) -> None:
    with pytest.raises(CredentialError, match="PKI-Paths"):
        signature(sign_with("PKI-Paths", certpath="/nowhere.pem", keypath="/nowhere.key"), URL)


def test_an_item_is_read_with_a_token_of_qgis_and_no_other_server_sees_it(sign_with: Callable[..., str]) -> None:
    authcfg = sign_with("EsriToken", token=TOKEN)
    item = Item("Image Service", url="https://gis.example/ImageServer", private=True)
    with portal({ITEM: item}, TOKEN) as double, serving(lambda _: Answer(b"{}")) as other:
        client = make_client(secrets_for([(authcfg, double.server.url)]), limits=HttpLimits(patience=1))
        data = client.get_json(f"{double.server.url}/sharing/rest/content/items/{ITEM}")
        client.get(other.url)
        assert "Image Service" == data["type"]
        assert [] == other.asked_with(TOKEN)


@pytest.fixture
def proxy_settings() -> Iterator[QgsSettings]:
    settings = QgsSettings()
    yield settings
    settings.remove("proxy")
    QgsNetworkAccessManager.instance().setupDefaultProxyAndCache()


def test_the_proxy_of_qgis_comes_with_password_and_exceptions(proxy_settings: QgsSettings) -> None:
    values = {"proxyEnabled": True, "proxyType": "HttpProxy", "proxyHost": "proxy.example", "proxyPort": "3128",
              "proxyUser": "u@corp", "proxyPassword": "p:w/d", "noProxyUrls": ["http://intranet.example"]}  # fmt: skip
    for key, value in values.items():
        proxy_settings.setValue(f"proxy/{key}", value)
    QgsNetworkAccessManager.instance().setupDefaultProxyAndCache()
    url = "http://u%40corp:p%3Aw%2Fd@proxy.example:3128"
    assert {"http": url, "https": url, "no_proxy": "http://intranet.example"} == proxies([URL])


def test_without_a_proxy_there_is_none() -> None:
    assert {} == proxies([URL])


def test_certificates_lie_in_a_file_of_this_user_alone(own_cache: Path) -> None:
    path = certificates()
    assert path is not None
    assert path.is_relative_to(own_cache)
    assert b"BEGIN CERTIFICATE" in path.read_bytes()
    if sys.platform != "win32":
        assert 0o600 == stat.S_IMODE(path.stat().st_mode)


def test_certificates_that_somebody_changed_are_written_anew() -> None:
    path = certificates()
    assert path is not None
    before = path.read_bytes()
    path.write_bytes(b"-----BEGIN CERTIFICATE-----\nevil")
    assert path == certificates()
    assert before == path.read_bytes()


@pytest.mark.parametrize("since", [0, 10**9])
def test_a_raster_that_wants_a_token_is_looked_at_where_gdal_can_give_one_and_else_refused_by_name(
    sign_with: Callable[..., str], monkeypatch: pytest.MonkeyPatch, since: int
) -> None:
    monkeypatch.setattr(gdal_source, "_BEARER_SINCE", since)
    signs = sign_with("APIHeader", Authorization=f"Bearer {TOKEN}")
    source = gdal_source.GdalSource("/vsicurl/https://gis.example/a.tif", authcfg=signs)
    if since:
        with pytest.raises(CredentialError, match=r"The GDAL of this QGIS \(.*\) cannot look at .* name and password"):
            gdal_source._signing(source)
    else:
        assert gdal_source._signing(source) == {"GDAL_HTTP_AUTH": "BEARER", "GDAL_HTTP_BEARER": TOKEN}
