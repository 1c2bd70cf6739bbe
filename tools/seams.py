"""Draws docs/images/seams.png: how outlines that the edges of tiles cut become whole objects.

The image and the trees drawn on it are real (tools/seams/README.md). In place of a network each tile is given the drawn
outlines as far as its view goes, as a perfect network would; the fragments are joined by Kestrel's own code.

Run it with the inference environment: build/env/inference/bin/python tools/seams.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build" / "plugins"))

import matplotlib as mpl  # noqa: E402
import numpy as np  # noqa: E402
import shapely  # noqa: E402
from PIL import Image  # noqa: E402

mpl.use("agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.patches import PathPatch, Rectangle  # noqa: E402
from matplotlib.path import Path as Outline  # noqa: E402

from kestrel.inference.detections import make_detections, of_dimension  # noqa: E402
from kestrel.inference.joining import join_fragments, touches_inner  # noqa: E402
from kestrel.inference.merge import Band, Found, join  # noqa: E402
from kestrel.inference.tiling import TileGrid, Window  # noqa: E402

PICTURE = ROOT / "docs" / "images" / "seams.png"
SCENE = ROOT / "tools" / "seams"
TILE_SIZE, PADDING = 204, 32
TOLERANCE = 8.0
COLORS = ("#e6550d", "#3182bd", "#31a354", "#fdd835", "#c51b8a", "#00bcd4")
SHOWN = (0, 5)
"""Tiles whose views are drawn; all of them at once are hard to tell apart."""


def main() -> int:
    """Draw the picture."""
    image = Image.open(SCENE / "scene.jpg")
    width, height = image.size
    trees = [shapely.make_valid(shapely.Polygon(ring)) for ring in json.loads((SCENE / "scene.json").read_text())]
    inside = [of_dimension(shapely.intersection(tree, shapely.box(0, 0, width, height)), 2) for tree in trees]
    grid = TileGrid(width, height, Window(0, 0, width, height), TILE_SIZE, PADDING, 1)
    fragments = seen(grid, inside)
    (band,) = join_fragments([Band(fragments, np.inf)], grid, TOLERANCE, drops_cut=True)
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.3), dpi=96)
    for axis, title in zip(axes, (
        f"{len(grid)} tiles; dashed: what two of them see",
        f"{len(fragments)} outlines, as the tiles see them",
        f"{len(band.found)} objects, joined",
    )):  # fmt: skip
        axis.imshow(image)
        axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
        axis.set_title(title, fontsize=12)
    draw_tiles(axes[0], grid)
    for shape, number in zip(fragments.detections.shapes, fragments.tiles):
        draw(axes[1], shape, color_of(number), 0.22)
    draw_seams(axes[1], grid)
    for shape in band.found.detections.shapes:
        draw(axes[2], shape, "#ffee58", 0.16)
    figure.tight_layout(w_pad=0.6)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE)
    print(PICTURE.relative_to(ROOT))
    return 0


def seen(grid: TileGrid, trees: list[Any]) -> Found:
    """Give the outlines that the tiles keep."""
    parts = []
    for tile in grid:
        outer = tile.outer
        cut = [tree.intersection(shapely.box(outer.x, outer.y, outer.right, outer.bottom)) for tree in trees]
        pieces = np.array([piece for piece in shapely.get_parts(cut) if piece.area > 0])
        shapes = pieces[touches_inner(tile, grid, pieces)]
        n = len(shapes)
        detections = make_detections(shapely.bounds(shapes), np.ones(n), np.zeros(n), shapes=shapes)
        parts.append(Found(detections, np.full(n, tile.number), np.zeros(n, np.int8), np.ones(n, np.bool_)))
    return join(parts)


def color_of(number: int) -> str:
    """Give the colour of a tile, another one than its neighbours'."""
    return COLORS[number % len(COLORS)]


def draw(axis: Any, shape: Any, color: str, opacity: float) -> None:
    """Draw an outline."""
    for part in shapely.get_parts(shape):
        rings = [np.asarray(ring.coords) for ring in (part.exterior, *part.interiors)]
        path = Outline.make_compound_path(*(Outline(ring, closed=True) for ring in rings))
        axis.add_patch(PathPatch(path, facecolor=(color, opacity), edgecolor=color, linewidth=1.6))


def draw_tiles(axis: Any, grid: TileGrid) -> None:
    """Draw the inner windows, and the views of two tiles."""
    for tile in grid:
        inner, outer = tile.inner, tile.outer
        color = color_of(tile.number)
        axis.add_patch(Rectangle((inner.x, inner.y), inner.width, inner.height, facecolor=(color, 0.16), ec="white"))
        if tile.number in SHOWN:
            axis.add_patch(Rectangle(
                (outer.x + 1, outer.y + 1), outer.width - 2, outer.height - 2, fill=False, edgecolor=color,
                linewidth=2.2, linestyle="--",
            ))  # fmt: skip


def draw_seams(axis: Any, grid: TileGrid) -> None:
    """Draw where the inner windows meet."""
    for tile in grid:
        inner = tile.inner
        axis.add_patch(
            Rectangle((inner.x, inner.y), inner.width, inner.height, fill=False, edgecolor="white", linewidth=0.8)
        )


if __name__ == "__main__":
    sys.exit(main())
