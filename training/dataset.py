"""Image plots with tree-crown boxes: reading, and the split into training and validation plots.

A plot is a small image with a Pascal VOC file of the same stem beside it. Box coordinates are pixel edges: the
origin is the outer corner of the top left pixel, and a box over a whole 400 px image is ``0, 0, 400, 400``.
"""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio

VALIDATION_PLOTS = frozenset(
    {
        "HARV_037",
        "HARV_045",
        "OSBS_036",
        "OSBS_037",
        "SJER_008",
        "SJER_049",
        "SJER_054",
        "SJER_058",
        "TEAK_049",
        "TEAK_057",
    }
)
"""Held out while the recipe and the thresholds are chosen; every site and both leaf states are present."""


@dataclass(frozen=True)
class Plot:
    """One annotated image.

    Attributes:
        name: File stem; the part before the first underscore is the site.
        image: uint8, (3, H, W), red, green, blue.
        boxes: float32, (n, 4), xmin, ymin, xmax, ymax in pixels, clipped to the image.
        ignore: bool, (H, W), true where visible trees carry no box.
    """

    name: str
    image: np.ndarray
    boxes: np.ndarray
    ignore: np.ndarray

    @property
    def site(self) -> str:
        """Site code, the part of the name before the first underscore."""
        return self.name.split("_")[0]


def read_boxes(path: Path) -> np.ndarray:
    """Read every box of a Pascal VOC file, whatever its class name (the names hold stray characters).

    Args:
        path: The XML file.

    Returns:
        float32, (n, 4), xmin, ymin, xmax, ymax in pixels as written.
    """
    keys = ("xmin", "ymin", "xmax", "ymax")
    nodes = ElementTree.parse(path).iter("bndbox")  # noqa: S314 - the training data, chosen by whoever trains
    rows = [[float(node.findtext(key, "nan")) for key in keys] for node in nodes]
    return np.asarray(rows, dtype=np.float32).reshape(-1, 4)


def read_image(path: Path) -> np.ndarray:
    """Read the first three bands; nodata is not masked, because saturated white is tagged nodata here.

    Args:
        path: Any raster that GDAL reads.

    Returns:
        uint8, (3, H, W).
    """
    with rasterio.open(path) as source:
        return source.read([1, 2, 3])


def read_plot(image_path: Path, ignore_rectangles: list[tuple[int, int, int, int]] | None = None) -> Plot:
    """Read an image and the VOC file beside it.

    Args:
        image_path: The image; the boxes are in the file of the same stem ending in ``.xml``.
        ignore_rectangles: xmin, ymin, xmax, ymax in pixels of places to leave out of the loss.

    Returns:
        The plot, boxes clipped to the image, boxes without area dropped.
    """
    image = read_image(image_path)
    height, width = image.shape[1:]
    boxes = read_boxes(image_path.with_suffix(".xml")).clip(0, [width, height, width, height])
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).min(1) >= 1]
    ignore = np.zeros((height, width), dtype=bool)
    for xmin, ymin, xmax, ymax in ignore_rectangles or []:
        ignore[ymin:ymax, xmin:xmax] = True
    return Plot(image_path.stem, image, boxes, ignore)


def read_ignore(path: Path) -> dict[str, list[tuple[int, int, int, int]]]:
    """Read the table of ignored rectangles.

    Args:
        path: CSV with the columns plot, xmin, ymin, xmax, ymax; pixels.

    Returns:
        Rectangles by plot name; empty if there is no such file.
    """
    table: dict[str, list[tuple[int, int, int, int]]] = {}
    if path.exists():
        with path.open(newline="") as stream:
            for row in csv.DictReader(stream):
                rectangle = (int(row["xmin"]), int(row["ymin"]), int(row["xmax"]), int(row["ymax"]))
                table.setdefault(row["plot"], []).append(rectangle)
    return table


def read_plots(folder: Path) -> list[Plot]:
    """Read all plots of the data folder, ordered by name.

    Args:
        folder: Holds ``plots/*.tif`` with VOC files and optionally ``plots_ignore.csv``.

    Returns:
        The plots.

    Raises:
        FileNotFoundError: There is no plot in the folder.
    """
    ignore = read_ignore(folder / "plots_ignore.csv")
    paths = sorted((folder / "plots").glob("*.tif"))
    if not paths:
        raise FileNotFoundError(f"no plots/*.tif in {folder}")
    return [read_plot(path, ignore.get(path.stem)) for path in paths]


def split_plots(plots: list[Plot]) -> tuple[list[Plot], list[Plot]]:
    """Split into training and validation plots by the fixed list of names.

    Args:
        plots: All plots.

    Returns:
        Training plots, validation plots.
    """
    training = [plot for plot in plots if plot.name not in VALIDATION_PLOTS]
    return training, [plot for plot in plots if plot.name in VALIDATION_PLOTS]
