"""What a photo says of the camera: where it was, how it was held, and about which ground it saw."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import rasterio
from rasterio.errors import RasterioError

_FILM_DIAGONAL = 43.2666
"""Millimetres: of the 36 x 24 mm of 35 mm film, which equivalent focal lengths refer to."""
_MOST_TILT = 10.0
"""Degrees off the vertical up to which a frame counts as looking straight down."""
_EARTH = 6378137.0
_MILLIMETRES = {2: 25.4, 3: 10.0}
"""EXIF's units of FocalPlaneResolutionUnit: inch, centimetre."""


@dataclass(frozen=True)
class CameraFrame:
    """What is known of a frame.

    Units/space: position is longitude and latitude in degrees (WGS 84); height in metres above the place of take-off;
    yaw in degrees clockwise from north, where the top of the picture points; pitch in degrees, -90 looks straight down.
    """

    position: tuple[float, float]
    height: float | None
    yaw: float | None
    pitch: float | None
    footprint: tuple[tuple[float, float], ...] | None
    """Corners of the ground in the picture, longitude and latitude, the first one again at the end; None: not known."""

    @property
    def text(self) -> str:
        """Tell people."""
        longitude, latitude = self.position
        place = f"The photo was taken at about {latitude:.6f}, {longitude:.6f} (latitude, longitude)"
        if self.footprint is None:
            return f"{place}; what ground it shows cannot be told from what the camera wrote."
        return (
            f"{place}. Its footprint in the run's summary is approximate: it takes the ground for level, the height "
            "above the place of take-off for that above the ground, and the camera for looking straight down."
        )

    def as_json(self) -> dict[str, Any]:
        """Give it as JSON values, the footprint as a GeoJSON polygon."""
        polygon = None
        if self.footprint is not None:
            polygon = {"type": "Polygon", "coordinates": [[list(corner) for corner in self.footprint]]}
        return {**asdict(self), "position": list(self.position), "footprint": polygon, "is_approximate": True}


def camera_frame(source: str) -> CameraFrame | None:
    """Read what a photo says of itself.

    Args:
        source: GDAL's name of the file.

    Returns:
        None where it does not say where it was taken.
    """
    try:
        with rasterio.open(source) as dataset:
            tags = {**dataset.tags(), **dataset.tags(ns="EXIF")}
            xmp = "".join(dataset.tags(ns="xml:XMP").values())
            return frame_of(tags, xmp, dataset.width, dataset.height)
    except RasterioError:
        return None


def orientation_of(tags: Mapping[str, str]) -> int:
    """Give EXIF's orientation, 1 to 8; 1, as stored, where there is none or nonsense."""
    text = str(tags.get("EXIF_Orientation", "1")).strip()
    return int(text) if text in tuple("12345678") else 1


def frame_of(tags: Mapping[str, str], xmp: str, width: int, height: int) -> CameraFrame | None:
    """Tell from tags of EXIF and XMP text of a drone where a frame was taken, and what ground it shows.

    Args:
        tags: EXIF's tags as GDAL writes them, EXIF_...
        xmp: The XMP packet, empty where there is none.
        width: Columns of the stored picture.
        height: Its rows.
    """
    longitude, latitude = _angle(tags, "Longitude", "W", 180), _angle(tags, "Latitude", "S", 90)
    if longitude is None or latitude is None or (longitude, latitude) == (0, 0):
        return None
    above = _of_xmp(xmp, "RelativeAltitude", "AboveGroundAltitude")
    yaw, pitch = _of_xmp(xmp, "GimbalYawDegree", "Yaw"), _of_xmp(xmp, "GimbalPitchDegree")
    size = ground_size(tags, above, width, height)
    is_nadir = pitch is not None and abs(pitch + 90) <= _MOST_TILT
    if orientation_of(tags) > 4 and size is not None:
        size = size[1], size[0]
    footprint = _corners((longitude, latitude), size, yaw) if size and yaw is not None and is_nadir else None
    return CameraFrame((longitude, latitude), above, yaw, pitch, footprint)


def ground_size(tags: Mapping[str, str], height: float | None, width: int, rows: int) -> tuple[float, float] | None:
    """Give the sides of the level ground that a camera sees that looks straight down, in metres.

    Args:
        tags: EXIF's tags.
        height: Metres above the ground.
        width: Columns of the picture.
        rows: Rows.

    Source:
        Similar triangles of a pinhole camera: ground / height = sensor / focal length. FocalLengthIn35mmFilm scales the
        sensor to 35 mm film, by the diagonal (CIPA DC-008, Exif 2.3, and its guideline DCG-001); where it is missing,
        FocalLength and FocalPlaneXResolution give the same in millimetres.
    """
    if height is None or height <= 0:
        return None
    diagonal = math.hypot(width, rows)
    equivalent, focal = _number(tags, "FocalLengthIn35mmFilm"), _number(tags, "FocalLength")
    density, unit = _number(tags, "FocalPlaneXResolution"), _number(tags, "FocalPlaneResolutionUnit")
    if equivalent:
        pixel = height * _FILM_DIAGONAL / equivalent / diagonal
    elif focal and density:
        pixel = height * _MILLIMETRES.get(int(unit or 2), 25.4) / density / focal
    else:
        return None
    return pixel * width, pixel * rows


def _corners(position: tuple[float, float], size: tuple[float, float], yaw: float) -> tuple[tuple[float, float], ...]:
    """Give the corners, counter-clockwise from the lower left one of the picture."""
    turn = math.radians(yaw)
    longitude, latitude = position
    corners = []
    for right, up in ((-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)):
        x, y = right * size[0] / 2, up * size[1] / 2
        east, north = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
        corners.append((
            longitude + math.degrees(east / (_EARTH * math.cos(math.radians(latitude)))),
            latitude + math.degrees(north / _EARTH),
        ))  # fmt: skip
    return tuple(corners)


def _angle(tags: Mapping[str, str], name: str, negative: str, most: float) -> float | None:
    """Give degrees from "(48) (51) (29.5)" and the letter of the hemisphere."""
    parts = [float(part) for part in re.findall(r"\d+(?:\.\d+)?", str(tags.get(f"EXIF_GPS{name}", "")))]
    letter = str(tags.get(f"EXIF_GPS{name}Ref", "")).strip()[:1].upper()
    if not parts or not letter:
        return None
    degrees = sum(part / 60**place for place, part in enumerate(parts[:3]))
    return None if degrees > most else -degrees if letter == negative else degrees


def _number(tags: Mapping[str, str], name: str) -> float | None:
    found = re.search(r"-?\d+(?:\.\d+)?", str(tags.get(f"EXIF_{name}", "")))
    return float(found.group()) if found else None


def _of_xmp(xmp: str, *names: str) -> float | None:
    """Give the first of some numbers that drones write: as attribute or element, whatever the maker's prefix."""
    for name in names:
        found = re.search(rf"[:\s]{name}(?:=[\"']|>)\s*([+-]?\d+(?:\.\d+)?)", xmp)
        if found:
            return float(found.group(1))
    return None
