"""The items of an ArcGIS mosaic: the rasters that an image service is made of, to be searched one by one.

Source: ArcGIS REST API, "Query (Image Service)", "Mosaic rule objects".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ServiceError
from .http import HttpClient

_PRIMARY = "Category=1"
"""Overviews and other rasters that the mosaic itself made do not count."""
_MOST = 100_000


@dataclass(frozen=True)
class CatalogItem:
    """One raster of a mosaic.

    Units/space: extent is xmin, ymin, xmax, ymax in the service's coordinate reference system.
    """

    id: int
    name: str
    extent: tuple[float, float, float, float]

    def options(self, mosaic_rule: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Give the options of a job's raster that reads this item alone, see ImageServicePixels.

        Args:
            mosaic_rule: What the user asked of the mosaic besides.
        """
        rule = {**(mosaic_rule or {}), "mosaicMethod": "esriMosaicLockRaster", "lockRasterIds": [self.id]}
        return {"mosaicRule": rule, "extent": list(self.extent)}


def catalog_items(client: HttpClient, url: str, where: str = "") -> tuple[CatalogItem, ...]:
    """Ask an image service for its items, in the order of their numbers.

    Args:
        client: Asks the server.
        url: Address of the service, which ends in /ImageServer.
        where: A condition on the attributes, in SQL; empty: all.

    Raises:
        NetworkError, ServiceError, CredentialError: it cannot be asked, has no items, or far too many.
    """
    items: dict[int, CatalogItem] = {}
    for page in _pages(client, url, f"({where}) AND {_PRIMARY}" if where else _PRIMARY):
        new = {item.id: item for item in page if item.id not in items}
        if not new:
            break  # an old server, which knows no pages, begins anew each time
        items.update(new)
    if not items:
        raise ServiceError(
            f"The image service '{url}' names no rasters that it is made of.", hint="Search it as one mosaic."
        )
    return tuple(items[number] for number in sorted(items))


def _pages(client: HttpClient, url: str, where: str) -> Iterator[list[CatalogItem]]:
    offset = 0
    while offset < _MOST:
        parameters = {"where": where, "outFields": "*", "returnGeometry": True, "resultOffset": offset}
        data = client.get_json(f"{url}/query", parameters)
        field = str(data.get("objectIdFieldName") or "OBJECTID")
        features = data.get("features")
        rows = [row for row in features if isinstance(row, dict)] if isinstance(features, list) else []
        yield [item for item in (_item(row, field) for row in rows) if item is not None]
        offset += len(rows)
        if not rows or not data.get("exceededTransferLimit"):
            return
    raise ServiceError(
        f"The image service '{url}' has more than {_MOST} rasters.", hint="Give a smaller area or a rule."
    )


def _item(row: Mapping[str, Any], field: str) -> CatalogItem | None:
    attributes, geometry = row.get("attributes"), row.get("geometry")
    if not isinstance(attributes, dict) or not isinstance(geometry, dict):
        return None
    number, extent = attributes.get(field), _bounds(geometry.get("rings"))
    if not isinstance(number, int) or extent is None:
        return None
    name = "".join(character if character.isprintable() else " " for character in str(attributes.get("Name") or ""))
    return CatalogItem(number, name[:120].strip() or str(number), extent)


def _bounds(rings: Any) -> tuple[float, float, float, float] | None:
    try:
        points = [(float(point[0]), float(point[1])) for ring in rings for point in ring]
    except (TypeError, ValueError, IndexError):
        return None
    if not points or not all(math.isfinite(value) for point in points for value in point):
        return None
    across, up = zip(*points)
    return min(across), min(up), max(across), max(up)
