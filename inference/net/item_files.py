"""Files of portal items, kept in the user's cache under the hash of their content.

    <cache>/kestrel/models/<sha256>/<name>      models
    <cache>/kestrel/rasters/<sha256>/<name>     rasters
    <cache>/kestrel/items/<key>.json            which content an item had when it was last downloaded
    <cache>/kestrel/incoming/<key>.part         a download that is not whole yet

A file is hashed each time it is taken from the cache: what has changed there is thrown away and downloaded anew.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import DiskFullError, OutputError
from ..jobs import cache_folder
from .http import HttpClient
from .part_file import hash_of
from .portal import MODEL_ENDINGS, RASTER_ENDINGS, PortalItem, Reference, read_item, service_of, unusable

_RESERVE = 500 * 2**20
"""Bytes that stay free on the disk."""

_DESCRIPTION = re.compile(rb"<VRTDataset|\A(?:\xef\xbb\xbf)?\s*[<{]")
"""Beginnings of files that make GDAL open others, of this computer or of any server, whatever the files' names are."""

_DEVICE = re.compile(r"con|prn|aux|nul|com\d|lpt\d", re.IGNORECASE)
"""Names that Windows keeps for devices."""

Progress = Callable[[int, "int | None"], None]


@dataclass(frozen=True)
class ItemFile:
    """A file of an item, in the cache.

    Attributes:
        sha256: Hash of its content, in hex.
    """

    path: Path
    sha256: str
    item: PortalItem


@dataclass(frozen=True)
class ItemRaster:
    """A raster that an item stands for.

    Attributes:
        kind: As `job.RasterItem.kind`: "image_service", or "gdal" for a file.
        source: Address of the service, or path of the file.
    """

    kind: str
    source: str
    item: PortalItem
    sha256: str = ""


def raster_of(client: HttpClient, reference: Reference, progress: Progress | None = None) -> ItemRaster:
    """Find the raster behind an item, and download it where it is a file.

    Raises:
        JobError: the item is no raster.
        NetworkError, ServiceError, CredentialError: the portal cannot be asked, or says no.
        OutputError, DiskFullError: the cache cannot be written.
    """
    item = read_item(client, reference.portal, reference.value)
    if item.is_service:
        return ItemRaster("image_service", service_of(client, item), item)
    if item.url or item.ending not in RASTER_ENDINGS:
        raise unusable(item, "raster")
    file = _fetched(client, item, "rasters", progress)
    with file.path.open("rb") as content:
        if _DESCRIPTION.search(content.read(2048)):
            raise unusable(item, "raster")
    # GDAL looks into an archive by this name; one with a single raster in it opens as that raster.
    source = f"/vsizip/{file.path}" if item.ending == ".zip" else str(file.path)
    return ItemRaster("gdal", source, item, file.sha256)


def model_of(client: HttpClient, reference: Reference, progress: Progress | None = None) -> ItemFile:
    """Download the model that an item holds, or take it from the cache.

    Raises: as `raster_of`; JobError: the item is no model.
    """
    item = read_item(client, reference.portal, reference.value)
    if item.url or item.ending not in MODEL_ENDINGS:
        raise unusable(item, "model")
    return _fetched(client, item, "models", progress)


def _fetched(client: HttpClient, item: PortalItem, kind: str, progress: Progress | None) -> ItemFile:
    key = hashlib.sha256(f"{item.portal.lower()}|{item.id}".encode()).hexdigest()
    cache = cache_folder()
    known = _known(cache, key, kind, item)
    if known is not None:
        return known
    with _told(cache):
        for folder in ("incoming", "items", kind):
            (cache / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        room = shutil.disk_usage(cache).free - _RESERVE
        if room < item.size or room <= 0:
            raise DiskFullError(
                f"The disk of {cache} has no room for the item {item.shown} of {item.size / 1e6:.0f} MB.",
                hint="Make room, then start again.",
            )
    incoming = cache / "incoming" / key
    digest = client.download(item.data_url, incoming, progress=progress, max_bytes=room)
    with _told(cache):
        target = cache / kind / digest / _file_name(item)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        incoming.replace(target)
        entry = {"portal": item.portal, "id": item.id, "modified": item.modified, "size": item.size}
        entry.update(sha256=digest, name=target.name)
        part = cache / "items" / f"{key}.json.part"
        part.write_text(json.dumps(entry), encoding="utf-8")
        part.replace(cache / "items" / f"{key}.json")
    return ItemFile(target, digest, item)


def _known(cache: Path, key: str, kind: str, item: PortalItem) -> ItemFile | None:
    """Give an item's file that is in the cache already, if item and file have not changed since."""
    try:
        entry = json.loads((cache / "items" / f"{key}.json").read_text(encoding="utf-8"))
        digest, same = str(entry["sha256"]), (entry["modified"], entry["size"]) == (item.modified, item.size)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    path = cache / kind / digest / _file_name(item)
    if not same or not item.modified or not re.fullmatch(r"[0-9a-f]{64}", digest):
        return None
    try:
        with path.open("rb") as file:
            found = hash_of(file)
    except OSError:
        return None
    if found == digest:
        return ItemFile(path, digest, item)
    path.unlink(missing_ok=True)
    return None


def _file_name(item: PortalItem) -> str:
    """Give a name for the file that every system takes; the item's own is from outside."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", PurePosixPath(item.name).stem).strip("_")[:80]
    return f"{item.id if not stem or _DEVICE.fullmatch(stem) else stem}{item.ending}"


@contextmanager
def _told(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"The disk of {cache} is full.", hint="Make room, then start again.") from error
        raise OutputError(f"The cache {cache} cannot be used: {error.strerror or error}.") from error
