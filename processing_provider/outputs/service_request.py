"""OUTPUT_SERVICE: the operation's outputObjects, read from JSON.

{"url": ".../FeatureServer/0"}                                an existing layer
{"itemId": "..."}                                             an existing feature layer item of the portal
{"serviceProperties": {"name": "Trees"},
 "itemProperties": {"folderId": "...", "title": "..."}}       a new hosted feature layer
{"uri": "/data/trees.gpkg"}                                   a file
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...inference.errors import JobError

_EXAMPLE = 'Write for example {"url": "https://server/arcgis/rest/services/Trees/FeatureServer/0"}.'
_MEMBERS = ("url", "itemId", "uri", "serviceProperties", "itemProperties")
_SERVICE_URL = re.compile(r"https?://[^?#\s]+/FeatureServer(/\d+)?", re.IGNORECASE)
_ITEM_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_SERVICE_NAME = re.compile(r"\w{1,98}")
_ITEM_TEXTS = ("title", "snippet", "description", "tags", "typeKeywords", "licenseInfo", "accessInformation")


@dataclass(frozen=True)
class ServiceRequest:
    """A feature service that gets the objects: one of url, item_id and name says which.

    Attributes:
        url: Of an existing service or layer.
        item_id: Of an existing item.
        name: Of the service that is to be made.
        folder_id: Folder of the user's content for the new item; empty: the root.
        item: Texts of the new item: title, tags, ...
        field_map: What `read_field_map` gave.
        authcfg: Id of the authentication configuration of QGIS that a layer of the project has; empty: the run's.
    """

    url: str = ""
    item_id: str = ""
    name: str = ""
    folder_id: str = ""
    item: Mapping[str, str] = field(default_factory=dict)
    field_map: Mapping[str, str | None] = field(default_factory=dict)
    authcfg: str = ""


def read_service_request(text: str, field_map: Mapping[str, str | None]) -> ServiceRequest | str | None:
    """Read OUTPUT_SERVICE.

    Args:
        text: JSON, or a bare URL.
        field_map: What `read_field_map` gave.

    Returns:
        The service; the path where a file is named; None where the text is empty.

    Raises:
        JobError: it is neither, or names something that Kestrel cannot write to.
    """
    if not text:
        return None
    data = {"url": text} if re.match(r"https?://", text, re.IGNORECASE) else _object(text)
    unknown = sorted(set(data) - set(_MEMBERS))
    if unknown:
        raise JobError(
            f"OUTPUT_SERVICE has members that Kestrel does not know: {', '.join(unknown)}.",
            hint=f"Known are {', '.join(_MEMBERS)}.",
        )
    service, item = _members(data, "serviceProperties"), _members(data, "itemProperties")
    item_id = _text(data, "itemId") or _text(item, "itemId")
    url = _text(data, "url") or _text(service, "serviceUrl")
    if item_id:
        return ServiceRequest(item_id=_fitting(_ITEM_ID, item_id, "itemId"), field_map=field_map)
    if url:
        return ServiceRequest(url=_fitting(_SERVICE_URL, url.rstrip("/"), "url"), field_map=field_map)
    if _text(data, "uri"):
        return _text(data, "uri")
    name = _text(service, "name")
    if not name:
        raise JobError("OUTPUT_SERVICE names no service: none of url, itemId, serviceProperties.name.", hint=_EXAMPLE)
    texts = {key: _listed(item[key]) for key in _ITEM_TEXTS if item.get(key)}
    folder = _text(item, "folderId")
    return ServiceRequest(
        name=_fitting(_SERVICE_NAME, name, "serviceProperties.name"),
        folder_id=_fitting(_ITEM_ID, folder, "itemProperties.folderId") if folder else "",
        item=texts,
        field_map=field_map,
    )


def _object(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise JobError(f"OUTPUT_SERVICE is neither an address nor valid JSON: {error}.", hint=_EXAMPLE) from error
    if not isinstance(data, dict):
        raise JobError("OUTPUT_SERVICE is not a JSON object.", hint=_EXAMPLE)
    return data


def _members(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key) or {}
    if not isinstance(value, dict):
        raise JobError(f"The member {key} of OUTPUT_SERVICE is not a JSON object.", hint=_EXAMPLE)
    return value


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key) or ""
    if not isinstance(value, str):
        raise JobError(f"The member {key} of OUTPUT_SERVICE is not a text.", hint=_EXAMPLE)
    return value.strip()


def _listed(value: Any) -> str:
    return ",".join(str(part) for part in value) if isinstance(value, list) else str(value)


def _fitting(pattern: re.Pattern[str], text: str, member: str) -> str:
    if pattern.fullmatch(text):
        return text
    # An address may hold a token behind the question mark: it is not repeated.
    raise JobError(
        f"The member {member} of OUTPUT_SERVICE is not what it should be: '{text.split('?')[0][:100]}'.",
        hint="A url ends with /FeatureServer or /FeatureServer/0 and holds no '?'; the sign-in belongs into "
        "AUTHENTICATION. The name of a service has letters, digits and underscores."
        if member in ("url", "serviceProperties.name")
        else "Copy it from the item's page.",
    )
