"""Items of an ArcGIS portal: what an id stands for, and the files behind it.

    <portal>/sharing/rest/content/items/<id>?f=json    what it is: a service with an address, or a file
    <portal>/sharing/rest/content/items/<id>/data      the file
    <portal>/sharing/rest/portals/self/servers         the servers that take the portal's tokens

Everything that a portal tells is a text from outside: titles are shown, never believed.

Source: ArcGIS REST API, "Item", "Item Data", "Federated Servers".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from ..errors import CredentialError, JobError, NetworkError, ServiceError
from .addresses import check_given, host_of, origin_of
from .http import HttpClient

DEFAULT_PORTAL = "https://www.arcgis.com"

MODEL_ENDINGS = (".dlpk", ".zip", ".emd", ".onnx", ".json", ".pt", ".pth", ".pt2", ".safetensors")
RASTER_ENDINGS = (".tif", ".tiff", ".jp2", ".img", ".png", ".jpg", ".jpeg", ".ntf", ".gpkg", ".mbtiles", ".zip")

_ID = re.compile(r"[0-9a-fA-F]{32}|[0-9A-Za-z_-]{8,64}")
_ITEM_URL = re.compile(r"(https?://.+?)/(?:sharing/rest|sharing)/content/items/([^/?#]+)(?:[/?#].*)?", re.IGNORECASE)
_HOME_URL = re.compile(r"(https?://.+?)/home/item\.html\?(?:.*&)?id=([^&#]+).*", re.IGNORECASE)
_MODEL_TYPES = ("deep learning package",)
_SERVICE_TYPES = ("image service", "map service")
_ONLINE = ".arcgis.com"


@dataclass(frozen=True)
class Reference:
    """What one member of a request's inputRaster or model names.

    Attributes:
        kind: "item", "url" or "uri".
        value: The item's id, the address, or the path.
        portal: Where the item is; empty where there is no item.
    """

    kind: str
    value: str
    portal: str = ""


@dataclass(frozen=True)
class PortalItem:
    """An item as its portal describes it; all texts are from outside.

    Attributes:
        type: ArcGIS's item type, "Image Service" for example.
        name: File name; empty for services.
        url: Address of the service; empty for files.
        size: Bytes of the file; 0 where the portal does not say it.
        modified: Milliseconds since 1970.
    """

    portal: str
    id: str
    type: str
    title: str
    name: str
    url: str
    size: int
    modified: int

    @property
    def shown(self) -> str:
        """Give what messages call it."""
        title = _line(self.title)
        return f"{title} ({self.id})" if title else self.id

    @property
    def data_url(self) -> str:
        """Give the address of its file."""
        return f"{self.portal}/sharing/rest/content/items/{self.id}/data"

    @property
    def ending(self) -> str:
        """Give the ending of its file's name, in lower case, with its dot; a package's where the name has none."""
        ending = PurePosixPath(self.name).suffix.lower()
        return ending or (".dlpk" if self.type.lower() in _MODEL_TYPES else "")

    @property
    def is_service(self) -> bool:
        """Tell whether it is an image or map service."""
        return self.type.lower() in _SERVICE_TYPES


def portal_url(text: str) -> str:
    """Give a portal's address without what follows it: '/home/...', '/sharing/rest'.

    Raises:
        ServiceError, CredentialError: it is no address, or holds a secret.
    """
    url = (text.strip() or DEFAULT_PORTAL).split("?")[0].split("#")[0]
    if "://" not in url:
        url = f"https://{url}"
    check_given(url)
    return re.sub(r"/(home|sharing|portaladmin)(/.*)?$", "", url.rstrip("/"), flags=re.IGNORECASE)


def references(value: Mapping[str, Any], portal: str = "") -> tuple[Reference, ...]:
    """Read the members itemId, url, uri, or their lists, of an operation's inputRaster or model.

    Args:
        value: The JSON object.
        portal: Where items are that name none; empty: ArcGIS Online.

    Returns:
        One or several; itemId wins over url, and url over uri.

    Raises:
        JobError: there is none of them, or not in the right form.
    """
    for kind, keys in (("item", ("itemId", "itemIds")), ("url", ("url", "urls")), ("uri", ("uri", "uris"))):
        texts = [text for key in keys for text in _texts(key, value.get(key))]
        if texts:
            return tuple(_reference(kind, text, portal) for text in texts)
    raise JobError(
        "The JSON names no data.",
        hint='Give {"itemId": "..."}, {"url": "https://..."} or {"uri": "path"}.',
    )


def _reference(kind: str, text: str, portal: str) -> Reference:
    if kind == "uri":
        return Reference(kind, text)
    found = _ITEM_URL.fullmatch(text) or _HOME_URL.fullmatch(text)
    if found is not None:
        return Reference("item", item_id(found[2]), portal_url(found[1]))
    if kind == "item":
        return Reference(kind, item_id(text), portal_url(portal))
    return Reference(kind, text)


def _texts(key: str, value: Any) -> list[str]:
    listed = value if isinstance(value, list) else [value]
    texts = [text.strip() for text in listed if isinstance(text, str)]
    if len(texts) != len(listed) and value is not None:
        raise JobError(f"The member '{key}' must be a text, or a list of texts.")
    return [text for text in texts if text]


def item_id(text: str) -> str:
    """Check an item's id, which becomes a part of an address.

    Raises:
        JobError: it is none.
    """
    if not _ID.fullmatch(text):
        raise JobError(f"'{_line(text)[:80]}' is not the id of a portal's item.", hint="It has 32 letters and digits.")
    return text


def read_item(client: HttpClient, portal: str, identifier: str) -> PortalItem:
    """Ask a portal what an item is.

    Raises:
        NetworkError, ServiceError, CredentialError: it cannot be asked, or does not say.
    """
    base = portal_url(portal)
    try:
        data = client.get_json(f"{base}/sharing/rest/content/items/{item_id(identifier)}")
    except CredentialError as error:
        raise CredentialError(
            f"The portal {base} does not let us see the item {identifier}.",
            hint="It is not shared with everybody: choose an authentication configuration, and the right portal.",
        ) from error
    except ServiceError as error:
        raise ServiceError(
            f"The portal {base} does not know the item {identifier}: {error.message}",
            hint="Check the id and the portal.",
        ) from error
    return PortalItem(
        base,
        identifier,
        _line(data.get("type")),
        _line(data.get("title")),
        _line(data.get("name")),
        str(data.get("url") or "").strip(),
        _count(data.get("size")),
        _count(data.get("modified")),
    )


def service_of(client: HttpClient, item: PortalItem) -> str:
    """Give the address of an item's service, and let the portal's sign-in go there where the portal says so.

    Raises:
        ServiceError: it has none, or it leads from a public portal into the own network.
    """
    if not item.url:
        raise ServiceError(f"The item {item.shown} is of the type '{item.type}' and has no address.")
    check_given(item.url)
    client.check_reference(item.portal, item.url)
    let_in(client, item.portal, item.url)
    return item.url


def is_at_home(portal: str, url: str) -> bool:
    """Tell whether an address belongs to a portal without asking anybody: the same server, or both ArcGIS Online."""
    if origin_of(portal) == origin_of(url):
        return True
    return all(urlsplit(address).scheme == "https" and _is_online(host_of(address)) for address in (portal, url))


def let_in(client: HttpClient, portal: str, url: str) -> None:
    """Let a portal's sign-in go to a server that has none, where the portal says that the server is one of its own."""
    if client.signs(portal) and not client.signs(url) and takes_tokens_of(client, portal, url):
        client.share_token(portal, url)


def takes_tokens_of(client: HttpClient, portal: str, url: str) -> bool:
    """Tell whether a server belongs to a portal: the portal lists it, or both are ArcGIS Online.

    What the server says of itself does not count: anybody could say it.
    """
    if is_at_home(portal, url):
        return True
    try:
        data = client.get_json(f"{portal_url(portal)}/sharing/rest/portals/self/servers")
    except (ServiceError, CredentialError, NetworkError):
        return False  # a portal that does not list its servers gives them nothing
    listed = data.get("servers")
    entries = listed if isinstance(listed, list) else []
    addresses = [str(entry.get("url") or "") for entry in entries if isinstance(entry, dict)]
    return any(address.startswith("http") and origin_of(address) == origin_of(url) for address in addresses)


def unusable(item: PortalItem, wanted: str) -> JobError:
    """Give the error for an item of a type that Kestrel does not use as a model or raster."""
    hint = {
        "raster": "Image services, map services and raster files can be searched; add other layers to QGIS first.",
        "model": "Deep learning packages, and files that end with .emd, .zip or .onnx, can be used.",
    }[wanted]
    file = f", file '{item.name}'" if item.name else ""
    return JobError(f"The item {item.shown} is of the type '{item.type}'{file}, which is no {wanted}.", hint=hint)


def _is_online(host: str) -> bool:
    return f".{host}".endswith(_ONLINE)


def _line(value: Any) -> str:
    """Give a text from outside as one line of bearable length, without control and direction characters."""
    text = "".join(character if character.isprintable() else " " for character in str(value or ""))
    return " ".join(text.split())[:200]


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
