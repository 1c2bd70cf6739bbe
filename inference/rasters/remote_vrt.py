"""A virtual raster (.vrt) that comes from a web server may refer to files of web servers, and to nothing else.

GDAL opens whatever a virtual raster names: files of this computer, other protocols, services. What a server sends must
not choose among these: so each name in it is looked at, and goes to Kestrel's own HTTP, before GDAL sees it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable

from ..errors import RasterOpenError
from ..net.addresses import shown

MARK = b"<VRTDataset"
"""GDAL takes for a virtual raster what holds this in its first bytes, whatever its name is."""

_NAME = re.compile(
    r"(?P<tag><\s*Source(?:Filename|Dataset)\b(?P<attributes>[^<>]*)>)(?P<name>[^<>]*)(?=<)", re.IGNORECASE
)
_AS_ATTRIBUTE = re.compile(r"Source(?:Filename|Dataset)\s*=", re.IGNORECASE)
_RELATIVE = re.compile(r"""relativeToVRT\s*=\s*["']1["']""", re.IGNORECASE)
_WEB = re.compile(r"(?:/vsicurl/)?(https?://.+)", re.IGNORECASE | re.DOTALL)
_VALUE = re.compile(r">([^<>]*)<|=\s*\"([^\"]*)\"|=\s*'([^']*)'|=\s*([^\s\"'<>]+)")
_PLACE = re.compile(
    r"""\s*/|\s*\\\\|\s*[A-Z]:[\\/]|.*(/vsi|<|:"?/(?!/)|:"?[A-Z]:[\\/])|(.*[\\/])?\s*\.\.[\\/]""",
    re.IGNORECASE | re.DOTALL,
)
"""Names of places, wherever in the file they stand; the web's have been taken out before."""


def refers_to_others(start: bytes) -> bool:
    """Tell by its first bytes whether a file is a description in XML or JSON that makes GDAL open something else."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    return MARK in start or text[:1] in (b"<", b"{")


def own_names(content: bytes, url: str, prefix: str, refer: Callable[[str], None]) -> bytes:
    """Give a virtual raster with its names as GDAL opens them through Kestrel.

    Args:
        content: The virtual raster.
        url: Where it came from.
        prefix: What GDAL's names of web files begin with.
        refer: Looks at an address that stands in it; raises to refuse it.

    Raises:
        RasterOpenError: it names something else than files of the web.
    """
    plain = _without_comments(content.decode("utf-8", "replace"))
    if "<!" in plain or _AS_ATTRIBUTE.search(plain):
        raise _refused(url, "")
    others = _NAME.sub(lambda found: found["tag"], plain)
    for values in _VALUE.findall(others):
        value = html.unescape("".join(values))
        if _PLACE.match(value):
            raise _refused(url, value)

    def renamed(found: re.Match[str]) -> str:
        name = html.unescape(found["name"]).strip()
        web = _WEB.fullmatch(name)
        if web is not None and not re.search(r"/vsi|[<\s]", web[1]):
            refer(web[1])
            return found["tag"] + prefix + html.escape(web[1])
        if web is not None or ":" in name or _PLACE.match(name) or not _RELATIVE.search(found["attributes"]):
            raise _refused(url, name)
        return found[0]

    return _NAME.sub(renamed, plain).encode()


def _without_comments(text: str) -> str:
    kept, *others = text.split("<!--")
    # One that does not end stays, and is refused.
    parts = (other.partition("-->") for other in others)
    return kept + "".join(after if end else f"<!{inside}" for inside, end, after in parts)


def _refused(url: str, name: str) -> RasterOpenError:
    what = f"'{name.strip()[:100]}'" if name else "something else than files"
    return RasterOpenError(
        f"The virtual raster '{shown(url)}' refers to {what}; one on a web server may refer to files on the web alone.",
        hint="Download it, look at what it refers to, and open it from your disk.",
    )
