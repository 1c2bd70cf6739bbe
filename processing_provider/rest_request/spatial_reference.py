"""Spatial references as Esri writes them -> texts that QGIS reads."""

from __future__ import annotations

from typing import Any

from .draft import Draft
from .values import as_number, as_text, given, refused, unpacked

MEMBERS = ("wkid", "latestWkid", "wkt", "wkt2")
EXAMPLE = '{"wkid": 32617}'
_LAST_EPSG = 32767
"""Source: EPSG's codes of coordinate reference systems end there; Esri numbers its own above."""
_OTHER_NAMES = {102100: "EPSG:3857", 102113: "EPSG:3785"}
"""Web Mercator, as it was called before EPSG had it."""


def crs_text(draft: Draft, member: str, value: Any) -> str:
    """Give `EPSG:32617`, `ESRI:102003` or `WKT:...`, and remember that QGIS has to know it.

    Args:
        draft: What is told about further members goes there.
        member: The path to the member.
        value: A spatial reference as a JSON object, or a bare number.

    Raises:
        JobError: it names no system.
    """
    content = unpacked(member, value)
    if not isinstance(content, dict):
        content = {"wkid": content}
    content = given(content)
    draft.tell_unknown(member, content, MEMBERS)
    for name in ("latestWkid", "wkid"):
        if name in content:
            text = _authority(f"{member}.{name}", content[name])
            break
    else:
        wkt = next((name for name in ("wkt2", "wkt") if name in content), None)
        if wkt is None:
            raise refused(member, "names no coordinate reference system", f"Write for example {EXAMPLE}.")
        text = f"WKT:{as_text(f'{member}.{wkt}', ' '.join(str(content[wkt]).split()))}"
    draft.crs[member] = text
    return text


def _authority(member: str, value: Any) -> str:
    number = as_number(member, value)
    if number != int(number) or number <= 0:
        raise refused(member, "is no number of a coordinate reference system", f"Write for example {EXAMPLE}.")
    code = int(number)
    return _OTHER_NAMES.get(code) or f"{'EPSG' if code <= _LAST_EPSG else 'ESRI'}:{code}"
