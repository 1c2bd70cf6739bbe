"""Copy the demo image and write its true crowns as GeoJSON in the image's coordinate reference system."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import rasterio
from dataset import read_plot
from rasterio.transform import Affine

NAME = "OSBS_029"


def ring(box: list[float], transform: Affine) -> list[list[float]]:
    """Map a box to a closed ring, counter-clockwise in map coordinates.

    Args:
        box: xmin, ymin, xmax, ymax in pixels; 0, 0 is the outer corner of the first pixel.
        transform: Pixel to map.

    Returns:
        Five points, map units, rounded to millimetres.
    """
    xmin, ymin, xmax, ymax = box
    corners = [(xmin, ymax), (xmax, ymax), (xmax, ymin), (xmin, ymin), (xmin, ymax)]
    return [[round(value, 3) for value in transform * corner] for corner in corners]


def truth_collection(image: Path) -> dict[str, object]:
    """Turn the boxes beside an image into a GeoJSON feature collection.

    Args:
        image: A georeferenced image with its VOC file.

    Returns:
        The collection; it names its coordinate reference system as GDAL writes and reads it.
    """
    with rasterio.open(image) as source:
        transform, code = source.transform, source.crs.to_epsg()
    features = [
        {
            "type": "Feature",
            "properties": {"id": number, "class": "Tree"},
            "geometry": {"type": "Polygon", "coordinates": [ring(box, transform)]},
        }
        for number, box in enumerate(read_plot(image).boxes.tolist(), 1)
    ]
    reference = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{code}"}}
    return {"type": "FeatureCollection", "name": f"{NAME}_truth", "crs": reference, "features": features}


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the trees_neon folder")
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    image = options.data / "demo" / f"{NAME}.tif"
    shutil.copyfile(image, options.out / image.name)
    text = json.dumps(truth_collection(image), indent=None, separators=(",", ":"))
    (options.out / f"{NAME}_truth.geojson").write_text(
        text.replace('{"type":"Feature",', '\n{"type":"Feature",') + "\n"
    )


if __name__ == "__main__":
    main()
