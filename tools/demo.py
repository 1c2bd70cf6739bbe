"""The demo: detects trees in the aerial image that comes along, and compares them with the trees that people drew.

Runs in QGIS's Python. The detection goes through qgis_process, the same way as a script or a server would start it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

os.environ["QT_QPA_PLATFORM"] = "offscreen"

from qgis.core import (
    QgsApplication,
    QgsFeature,
    QgsFillSymbol,
    QgsMapRendererSequentialJob,
    QgsMapSettings,
    QgsRasterLayer,
    QgsSingleSymbolRenderer,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QRect, QSize, Qt
from qgis.PyQt.QtGui import QColor, QFont, QImage, QPainter

ROOT = Path(__file__).resolve().parent.parent
IMAGE = Path("resources/demo/OSBS_029.tif")
TRUTH = Path("resources/demo/OSBS_029_truth.geojson")
MODEL = Path("resources/models/tree_crowns.dlpk")
FOLDER = Path("build/demo")
TREES, PICTURE = FOLDER / "trees.gpkg", FOLDER / "trees.png"
IOU = 0.4
"""From this overlap on a detection counts as right; the usual measure for tree crowns drawn by hand."""

WIDTH, HEADER = 1000, 96
RIGHT, FALSE, MISSED = "#ffd92f", "#ff2d95", "#00d5ff"


@dataclass(frozen=True)
class Comparison:
    """Detections sorted into right and false ones, and the drawn objects that were missed."""

    right: list[QgsFeature]
    false: list[QgsFeature]
    missed: list[QgsFeature]

    @property
    def precision(self) -> float:
        """Share of the detections that are right."""
        return len(self.right) / max(len(self.right) + len(self.false), 1)

    @property
    def recall(self) -> float:
        """Share of the drawn objects that were found."""
        return len(self.right) / max(len(self.right) + len(self.missed), 1)


def main() -> int:
    """Detect, compare, draw, and say what came out; the exit code of qgis_process when it failed."""
    os.chdir(ROOT)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (ROOT / "build" / "run").mkdir(mode=0o700, exist_ok=True)
    started = time.monotonic()
    code = detect()
    if code != 0:
        return code
    elapsed = time.monotonic() - started
    os.environ["QGIS_CUSTOM_CONFIG_PATH"] = str(ROOT / "build" / "profile")
    os.environ.setdefault("XDG_RUNTIME_DIR", str(ROOT / "build" / "run"))
    os.environ["XDG_CONFIG_HOME"] = str(ROOT / "build" / "run")  # a QgsApplication of a script writes settings there
    app = QgsApplication([], True)
    app.initQgis()
    found, truth = QgsVectorLayer(str(TREES), "found"), QgsVectorLayer(str(TRUTH), "truth")
    comparison = compare(list(found.getFeatures()), list(truth.getFeatures()))
    summary = f"precision {comparison.precision:.2f}, recall {comparison.recall:.2f} at IoU {IOU}"
    draw(comparison, summary)
    counts = Counter(feature["Class"] for feature in found.getFeatures())
    print()
    for name, count in sorted(counts.items()):
        print(f"{name}: {count} found")
    print(f"Compared with {truth.featureCount()} trees drawn by hand: {summary}")
    print(f"Time: {elapsed:.1f} s, most of it to start QGIS and the worker")
    print(f"Objects: {TREES}\nPicture: {PICTURE}")
    return 0


def detect() -> int:
    """Run the algorithm as a user would on the command line."""
    command = ["tools/qgis_process.sh", "run", "kestrel:detectobjects"]
    inputs = {"INPUT": IMAGE, "MODEL": MODEL, "OUTPUT": TREES}
    return subprocess.run([*command, *(f"--{key}={path}" for key, path in inputs.items())], check=False).returncode


def compare(found: list[QgsFeature], truth: list[QgsFeature]) -> Comparison:
    """Match detections with drawn objects, each at most once, the most confident detection first."""
    missed, right, false = list(truth), [], []
    for feature in sorted(found, key=lambda feature: feature["Confidence"], reverse=True):
        best = max(missed, key=lambda drawn: overlap(feature, drawn), default=None)
        if best is not None and overlap(feature, best) >= IOU:
            missed.remove(best)
            right.append(feature)
        else:
            false.append(feature)
    return Comparison(right, false, missed)


def overlap(first: QgsFeature, second: QgsFeature) -> float:
    """Give intersection over union of two features."""
    one, other = first.geometry(), second.geometry()
    shared = float(one.intersection(other).area())
    return shared / (float(one.area()) + float(other.area()) - shared)


def draw(comparison: Comparison, summary: str) -> None:
    """Save the image with what was right, false and missed, and a line of text over it."""
    raster = QgsRasterLayer(str(IMAGE), "image")
    legend = [
        (f"{len(comparison.right)} right", RIGHT, comparison.right),
        (f"{len(comparison.false)} false", FALSE, comparison.false),
        (f"{len(comparison.missed)} missed", MISSED, comparison.missed),
    ]
    layers = [outline(features, colour, raster) for _, colour, features in legend]
    settings = QgsMapSettings()
    settings.setLayers([*layers, raster])
    settings.setDestinationCrs(raster.crs())
    settings.setExtent(raster.extent())
    settings.setOutputSize(QSize(WIDTH, round(WIDTH * raster.height() / raster.width())))
    job = QgsMapRendererSequentialJob(settings)
    job.start()
    job.waitForFinished()
    rendered = job.renderedImage()
    picture = QImage(rendered.width(), rendered.height() + HEADER, QImage.Format.Format_RGB32)
    picture.fill(QColor("white"))
    painter = QPainter(picture)
    painter.drawImage(0, HEADER, rendered)
    painter.setFont(QFont("DejaVu Sans", 15))
    painter.drawText(QRect(16, 8, WIDTH - 32, 40), Qt.AlignmentFlag.AlignVCenter, f"Tree crowns: {summary}")
    for column, (text, colour, _) in enumerate(legend):
        painter.fillRect(QRect(16 + 180 * column, 58, 22, 22), QColor(colour))
        painter.drawText(QRect(46 + 180 * column, 50, 150, 38), Qt.AlignmentFlag.AlignVCenter, text)
    painter.end()
    if not picture.save(str(PICTURE)):
        sys.exit(f"{PICTURE} cannot be written")


def outline(features: list[QgsFeature], colour: str, raster: QgsRasterLayer) -> QgsVectorLayer:
    """Give a layer that shows the features as coloured outlines."""
    layer = QgsVectorLayer(f"Polygon?crs={raster.crs().authid()}", "objects", "memory")
    copies = [QgsFeature() for _ in features]
    for copy, feature in zip(copies, features):
        copy.setGeometry(feature.geometry())
    layer.dataProvider().addFeatures(copies)
    style = {"color": "0,0,0,0", "outline_color": colour, "outline_width": "0.7"}
    layer.setRenderer(QgsSingleSymbolRenderer(QgsFillSymbol.createSimple(style)))
    return layer


if __name__ == "__main__":
    sys.exit(main())
