"""A layer of an ArcGIS feature service: what it says of itself, and its rows counted, listed, added and deleted.

Source: Esri's REST documentation, "Feature Service" and "Feature Layer" (query, addFeatures, applyEdits,
deleteFeatures). Features are plain JSON in Esri's form: {"geometry": ..., "attributes": {...}}.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import OutputError, ServiceError
from .http import HttpClient

_LAYER_URL = re.compile(r"(?P<service>.*/FeatureServer)(/(?P<number>\d+))?", re.IGNORECASE)
_PAGE = 2000
_IDS_A_REQUEST = 500


@dataclass(frozen=True)
class ServiceField:
    """A field of a layer.

    Attributes:
        name: Its name.
        type: As Esri calls it: esriFieldTypeString, ...
        length: The most characters of a text; 0: no limit is known.
        is_required: Whether a row without a value in it is refused.
    """

    name: str
    type: str
    length: int = 0
    is_required: bool = False


@dataclass(frozen=True)
class ServiceLayer:
    """A layer that takes objects.

    Attributes:
        url: .../FeatureServer/0
        name: Its name.
        item_id: Of its portal item; empty: not known.
        geometry_type: As Esri calls it: esriGeometryPolygon, ...
        spatial_reference: In Esri's form.
        fields: Those that a client may write.
        object_id: Name of the field of the row number.
        global_id: Name of the field of the global id; empty: rows cannot be added under ids of the client's.
        max_records: Rows that one answer holds.
        capabilities: Words such as Create, Query, Delete; empty: the service does not say.
    """

    url: str
    name: str
    item_id: str
    geometry_type: str
    spatial_reference: Mapping[str, Any]
    fields: tuple[ServiceField, ...]
    object_id: str
    global_id: str
    max_records: int
    capabilities: frozenset[str] = field(default_factory=frozenset)

    @property
    def service_url(self) -> str:
        """Give the address of the service."""
        return self.url.rpartition("/")[0]


def service_of(url: str) -> tuple[str, int | None]:
    """Cut an address into the service's and the layer's number, None where there is none.

    Raises:
        ServiceError: it is no feature service's.
    """
    match = _LAYER_URL.fullmatch(url.rstrip("/"))
    if match is None:
        raise ServiceError(
            f"'{url.split('?')[0]}' is not the address of a feature service.", hint="It ends with /FeatureServer."
        )
    return match["service"], None if match["number"] is None else int(match["number"])


def layer_numbers(client: HttpClient, service_url: str) -> dict[int, str]:
    """Give the names of a service's layers by number."""
    layers = client.get_json(service_url).get("layers")
    entries = [entry for entry in layers if isinstance(entry, dict)] if isinstance(layers, list) else []
    return {int(entry["id"]): str(entry.get("name", "")) for entry in entries if isinstance(entry.get("id"), int)}


def open_service(client: HttpClient, url: str, item_id: str = "") -> ServiceLayer | None:
    """Describe the layer that an address means.

    Returns:
        The layer; None where the service has none yet.

    Raises:
        ServiceError: it has several, or the answer makes no sense.
    """
    service_url, number = service_of(url)
    if number is None:
        numbers = layer_numbers(client, service_url)
        if not numbers:
            return None
        if len(numbers) > 1:
            listed = ", ".join(f"{key} ({name})" for key, name in numbers.items())
            raise ServiceError(
                f"The service '{service_url}' has several layers: {listed}.",
                hint=f"Name one by its address, such as {service_url}/{min(numbers)}.",
            )
        (number,) = numbers
    return open_layer(client, f"{service_url}/{number}", item_id)


def open_layer(client: HttpClient, url: str, item_id: str = "") -> ServiceLayer:
    """Describe a layer.

    Raises:
        ServiceError: the answer is no description of a feature layer.
    """
    info = client.get_json(url)
    entries = info.get("fields")
    if not isinstance(entries, list) or not isinstance(info.get("geometryType"), str):
        raise ServiceError(
            f"'{url}' is not a layer of features: its description names no fields or no type of geometry.",
            hint="A table cannot take objects. Choose a feature layer.",
        )
    object_id = str(info.get("objectIdField") or _name_of_type(entries, "esriFieldTypeOID") or "OBJECTID")
    global_id = str(info.get("globalIdField") or _name_of_type(entries, "esriFieldTypeGlobalID"))
    return ServiceLayer(
        url=url,
        name=str(info.get("name", "")),
        item_id=item_id or str(info.get("serviceItemId") or ""),
        geometry_type=info["geometryType"],
        spatial_reference=_spatial_reference(info),
        fields=tuple(_field(entry) for entry in entries if _is_writable(entry)),
        object_id=object_id,
        global_id=global_id if info.get("supportsApplyEditsWithGlobalIds") is True else "",
        max_records=max(1, min(int(info.get("maxRecordCount") or _PAGE), _PAGE)),
        capabilities=frozenset(word.strip() for word in str(info.get("capabilities") or "").split(",") if word.strip()),
    )


def check_editable(layer: ServiceLayer) -> None:
    """Check that rows may be added, counted and listed.

    Raises:
        OutputError: the service does not let the user do so.
    """
    missing = [word for word in ("Create", "Query") if layer.capabilities and word not in layer.capabilities]
    if missing:
        raise OutputError(
            f"The feature service '{layer.url}' does not allow: {', '.join(missing)}.",
            hint="Have its owner enable editing, or sign in as somebody who may edit it.",
        )


def count_rows(client: HttpClient, layer: ServiceLayer, where: str) -> int:
    """Count the rows that a condition holds for."""
    count = client.get_json(f"{layer.url}/query", {"where": where, "returnCountOnly": "true"}, post=True).get("count")
    if not isinstance(count, int):
        raise ServiceError(f"'{layer.url}' does not say how many rows it has.")
    return count


def list_rows(client: HttpClient, layer: ServiceLayer, where: str) -> Iterator[tuple[int, str]]:
    """Give object id and global id of the rows that a condition holds for, page by page; '' where there is none."""
    names, offset = [layer.object_id, *([layer.global_id] if layer.global_id else [])], 0
    while True:
        page = client.get_json(
            f"{layer.url}/query",
            {
                "where": where, "outFields": ",".join(names), "returnGeometry": "false",
                "orderByFields": layer.object_id, "resultOffset": offset, "resultRecordCount": layer.max_records,
            },
            post=True,
        )  # fmt: skip
        rows = page.get("features")
        if not isinstance(rows, list):
            raise ServiceError(f"'{layer.url}' does not list its rows.")
        for row in rows:
            values = {name.casefold(): value for name, value in row["attributes"].items()}
            yield int(values[layer.object_id.casefold()]), normal_id(values.get(layer.global_id.casefold()))
        offset += len(rows)
        if not rows or not page.get("exceededTransferLimit", len(rows) == layer.max_records):
            return


def add_rows(client: HttpClient, layer: ServiceLayer, features: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Ask once to add rows, all or none of them; give the service's word on each.

    Raises:
        NetworkError, ServiceError: nobody knows whether the rows are in now.
        CredentialError: they are not.
    """
    common = {"rollbackOnFailure": "true"}
    if layer.global_id:
        form = {"adds": json.dumps(list(features)), "useGlobalIds": "true", **common}
        reply = client.get_json(f"{layer.url}/applyEdits", form, post=True, tries=False)
    else:
        form = {"features": json.dumps(list(features)), **common}
        reply = client.get_json(f"{layer.url}/addFeatures", form, post=True, tries=False)
    results = reply.get("addResults")
    if not isinstance(results, list) or len(results) != len(features):
        raise ServiceError(f"'{layer.url}' does not say what became of {len(features)} rows.")
    return [result if isinstance(result, dict) else {} for result in results]


def delete_rows(client: HttpClient, layer: ServiceLayer, object_ids: Sequence[int]) -> None:
    """Delete rows by their object ids; asking twice does no harm.

    Raises:
        ServiceError: the service keeps them.
    """
    for start in range(0, len(object_ids), _IDS_A_REQUEST):
        some = ",".join(str(number) for number in object_ids[start : start + _IDS_A_REQUEST])
        client.get_json(
            f"{layer.url}/deleteFeatures", {"objectIds": some, "rollbackOnFailure": "false"}, post=True
        )  # of what is gone already it says that it failed


def normal_id(value: Any) -> str:
    """Give a global id in one form: services write it with braces or without, in capitals or not."""
    return str(value or "").strip("{}").lower()


def reason_of(results: Sequence[Mapping[str, Any]]) -> str:
    """Give why the first row was not taken; empty where all were."""
    for result in results:
        if result.get("success") is not True:
            error = result.get("error")
            told = error.get("description") if isinstance(error, dict) else ""
            return str(told or "the service gives no reason")[:300]
    return ""


def _name_of_type(entries: Sequence[Any], esri_type: str) -> str:
    return next((str(entry.get("name")) for entry in entries if entry.get("type") == esri_type), "")


def _is_writable(entry: Any) -> bool:
    is_key = entry.get("type") in ("esriFieldTypeOID", "esriFieldTypeGlobalID")
    return not is_key and entry.get("editable") is not False


def _field(entry: Mapping[str, Any]) -> ServiceField:
    is_strict = entry.get("nullable") is False and entry.get("defaultValue") is None
    length = entry.get("length")
    is_text = entry.get("type") == "esriFieldTypeString"
    return ServiceField(
        str(entry.get("name")), str(entry.get("type")), length if is_text and isinstance(length, int) else 0, is_strict
    )


def _spatial_reference(info: Mapping[str, Any]) -> Mapping[str, Any]:
    for holder in (info.get("extent"), info.get("sourceSpatialReference"), info.get("spatialReference")):
        found = holder.get("spatialReference", holder) if isinstance(holder, dict) else None
        if isinstance(found, dict) and (found.get("wkid") or found.get("wkt")):
            return found
    return {}
