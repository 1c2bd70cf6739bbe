"""Measure an exported model on annotated images, whole image at once, and draw what was right and wrong."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from dataset import VALIDATION_PLOTS, Plot, read_plot, read_plots
from evaluate import Detections, Detector, detect, match, measure, suppress
from export import onnx_detector
from PIL import Image, ImageDraw

RIGHT, FALSE, MISSED = (40, 220, 60), (255, 40, 40), (60, 110, 255)


def draw(plot: Plot, found: Detections, iou: float, path: Path) -> None:
    """Draw detections over the image at twice its size: right green, false red, missed true boxes blue.

    Args:
        plot: Image and truth.
        found: Detections at the threshold, best first.
        iou: Lowest intersection over union of a match.
        path: Output image.
    """
    picture = Image.fromarray(np.ascontiguousarray(plot.image.transpose(1, 2, 0)))
    picture = picture.resize((picture.width * 2, picture.height * 2))
    pen = ImageDraw.Draw(picture)
    matches = match(found.boxes, plot.boxes, iou)
    missed = np.delete(plot.boxes, matches[matches >= 0], 0)
    layers = ((missed, MISSED), (found.boxes[matches < 0], FALSE), (found.boxes[matches >= 0], RIGHT))
    for boxes, colour in layers:
        for box in boxes:
            pen.rectangle([float(value) * 2 for value in box], outline=colour, width=2)
    picture.save(path)


def table_row(name: str, found: list[Detections], plots: list[Plot], threshold: float) -> str:
    """Format the figures of a group of images.

    Args:
        name: First cell.
        found: Detections after suppression, low scores included.
        plots: The truth.
        threshold: Score for precision, recall and F1.

    Returns:
        A Markdown table row.
    """
    loose, strict = measure(found, plots, threshold, 0.4), measure(found, plots, threshold, 0.5)
    figures = (loose.precision, loose.recall, loose.f1, loose.average_precision, strict.average_precision)
    truths = sum(len(plot.boxes) for plot in plots)
    return " | ".join([f"| {name}", str(truths), *(f"{figure:.2f}" for figure in figures)]) + " |"


def report(detector: Detector, plots: list[Plot], threshold: float, overlap: float, drawings: Path | None) -> list[str]:
    """Measure every image and every site.

    Args:
        detector: The network.
        plots: Images with truth.
        threshold: Score for precision, recall and F1.
        overlap: Highest overlap between detections.
        drawings: Folder for one picture an image.

    Returns:
        Lines of a Markdown table.
    """
    found = [suppress(detect(detector, plot.image), 0.0, overlap) for plot in plots]
    header = "| image | crowns | precision | recall | F1 | AP40 | AP50 |"
    lines = [header, "| --- " * 7 + "|"]
    for detections, plot in zip(found, plots, strict=True):
        lines.append(table_row(plot.name, [detections], [plot], threshold))
        if drawings:
            draw(plot, suppress(detections, threshold, overlap), 0.4, drawings / f"{plot.name}.png")
    for site in sorted({plot.site for plot in plots}):
        chosen = [index for index, plot in enumerate(plots) if plot.site == site]
        if len(chosen) > 1:
            lines.append(table_row(site, [found[i] for i in chosen], [plots[i] for i in chosen], threshold))
    lines.append(table_row("all", found, plots, threshold))
    return lines


def main() -> None:
    """Report from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder with tree_crowns.onnx and tree_crowns.emd")
    parser.add_argument("--data", type=Path, required=True, help="the trees_neon folder")
    parser.add_argument("--images", choices=("demo", "validation"), default="demo", help="which images")
    parser.add_argument("--drawings", type=Path, help="folder for pictures")
    options = parser.parse_args()
    definition = json.loads((options.model / "tree_crowns.emd").read_text())
    settings = definition["Kestrel"]["arguments"]
    if options.images == "demo":
        images = [path for path in sorted((options.data / "demo").iterdir()) if path.suffix in (".tif", ".png")]
        plots = [read_plot(path) for path in images]
    else:
        plots = [plot for plot in read_plots(options.data) if plot.name in VALIDATION_PLOTS]
    if options.drawings:
        options.drawings.mkdir(parents=True, exist_ok=True)
    detector = onnx_detector(options.model / "tree_crowns.onnx")
    print("\n".join(report(detector, plots, settings["threshold"], settings["nms_overlap"], options.drawings)))


if __name__ == "__main__":
    main()
