"""Small models, rasters, layers and stand-ins for the worker, made where a test needs them."""

from __future__ import annotations

import json
import stat
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from osgeo import gdal, osr
from qgis.core import (
    QgsApplication,
    QgsFeature,
    QgsGeometry,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProject,
    QgsVectorLayer,
)

from kestrel.inference.models.definition import ModelClass, ModelDefinition
from kestrel.inference.object_file import MapObjects

ALGORITHM = "kestrel:detectobjects"
ROOT = Path(__file__).resolve().parents[2]

CLASSES = [
    {"Value": 4, "Name": "Palm", "Color": [10, 200, 30]},
    {"Value": 7, "Name": "House", "Color": [200, 20, 20]},
]


def write_model(folder: Path, name: str = "model.emd", **changes: Any) -> str:
    """Write a definition beside weights that nobody loads; give its path."""
    definition = {
        "Framework": "ONNX",
        "ModelType": "ObjectDetection",
        "ModelName": "Palms",
        "ModelVersion": "2",
        "ModelFile": "weights.onnx",
        "ImageHeight": 256,
        "ImageWidth": 256,
        "ExtractBands": [0, 1, 2],
        "Classes": CLASSES,
        **changes,
    }
    (folder / "weights.onnx").write_bytes(b"weights")
    path = folder / name
    path.write_text(json.dumps(definition), "utf-8")
    return str(path)


PROGRAM = """
class Finder:
    def getParameterInfo(self):
        return [
            {"name": "raster", "dataType": "raster", "value": None, "required": True},
            {"name": "score_threshold", "dataType": "numeric", "value": 0.4, "required": False,
             "displayName": "Confidence Score Threshold", "description": "Lowest score."},
            {"name": "mode", "dataType": "string", "value": "fast", "required": False, "domain": ("fast", "exact"),
             "displayName": "Mode", "description": "How to look."},
        ]
"""


def write_program(path: Path, source: str = PROGRAM, **changes: Any) -> str:
    """Write a .dlpk whose model is a raster function; give its path."""
    definition = {
        "Framework": "PyTorch",
        "ModelType": "ObjectDetection",
        "ModelName": "Finder of trees",
        "ModelFile": "weights.pth",
        "InferenceFunction": "Finder.py",
        "ImageHeight": 256,
        "ImageWidth": 256,
        "ExtractBands": [0, 1, 2],
        "Classes": CLASSES,
        **changes,
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Finder.emd", json.dumps(definition))
        archive.writestr("weights.pth", b"weights" * 1000)
        archive.writestr("Finder.py", source)
        archive.writestr("helpers/geometry.py", "HALF = 0.5\n")
    return str(path)


def mask_rcnn_emd(**changes: Any) -> dict[str, Any]:
    """Give the definition of a MaskRCNN as arcgis.learn writes it."""
    cell = {"spatialReference": {"wkid": 26917, "latestWkid": 26917}}
    return {
        "Framework": "arcgis.learn.models._inferencing",
        "ModelConfiguration": "_maskrcnn_inferencing",
        "ModelName": "MaskRCNN",
        "ModelType": "InstanceDetection",
        "ModelFile": "roofs.pth",
        "InferenceFunction": "ArcGISInstanceDetector.py",
        "ExtractBands": [0, 1, 2],
        "ImageHeight": 400,
        "ImageWidth": 400,
        "ImageSpaceUsed": "MAP_SPACE",
        "ImageryType": "RGB",
        "SupportsVariableTileSize": True,
        "Classes": [
            {"Value": 1, "Name": "Roof", "Color": [214, 69, 65]},
            {"Value": 2, "Name": "Solar panel", "Color": [45, 85, 170]},
            {"Value": 3, "Name": "Pool", "Color": [60, 180, 190]},
        ],
        "MinCellSize": {"x": 0.1, "y": 0.1, **cell},
        "MaxCellSize": {"x": 0.15, "y": 0.15, **cell},
        "ArcGISLearnVersion": "2.4.0",
        "ModelParameters": {"backbone": "resnet50", "backend": "pytorch"},
        "MaskRCNNkwargs": {},
        "average_precision_score": {"Roof": 0.83, "Solar panel": 0.71, "Pool": 0.9},
        "License": "CC BY 4.0",
        **changes,
    }


def write_mask_rcnn(path: Path, **changes: Any) -> str:
    """Write a .dlpk of a MaskRCNN with weights that nobody loads; give its path."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("roofs.emd", json.dumps(mask_rcnn_emd(**changes)))
        archive.writestr("roofs.pth", b"\x80\x02weights" * 1000)
        archive.writestr("ArcGISInstanceDetector.py", "import arcgis\n")
        archive.writestr("README.md", "# Roofs\n")
    return str(path)


def write_raster(
    path: Path,
    n_bands: int = 3,
    epsg: int | None = 32633,
    transform: tuple[float, ...] | None = (500000, 1, 0, 5600000, 0, -1),
    kind: int = gdal.GDT_Byte,
    values: tuple[float, float] | None = None,
    names: tuple[str, ...] = (),
) -> str:
    """Write a GeoTIFF of 100 x 80 pixels; give its path.

    Args:
        path: The file.
        n_bands: How many bands.
        epsg: Its coordinate reference system.
        transform: Its geotransform.
        kind: GDAL's type of the values.
        values: Lowest and highest value; None: all are 0.
        names: Descriptions of the bands.
    """
    dataset = gdal.GetDriverByName("GTiff").Create(str(path), 100, 80, n_bands, kind)
    for number in range(n_bands):
        band = dataset.GetRasterBand(number + 1)
        if values is not None:
            ramp = np.linspace(values[0], values[1], 100)
            band.WriteArray(np.tile(ramp, (80, 1)))
        if number < len(names):
            band.SetDescription(names[number])
    if transform is not None:
        dataset.SetGeoTransform(transform)
    if epsg is not None:
        reference = osr.SpatialReference()
        reference.ImportFromEPSG(epsg)
        dataset.SetProjection(reference.ExportToWkt())
    dataset.FlushCache()
    return str(path)


def polygon_layer(*wkt: str, crs: str = "EPSG:32633") -> QgsVectorLayer:
    """Give a layer of polygons, in the project."""
    layer = QgsVectorLayer(f"Polygon?crs={crs}", "polygons", "memory")
    features = [QgsFeature() for _ in wkt]
    for feature, text in zip(features, wkt):
        feature.setGeometry(QgsGeometry.fromWkt(text))
    layer.dataProvider().addFeatures(features)
    QgsProject.instance().addMapLayer(layer)
    return layer


def algorithm() -> QgsProcessingAlgorithm:
    """Give the algorithm as a dialog gets it."""
    return QgsApplication.processingRegistry().createAlgorithmById(ALGORITHM)


def context() -> QgsProcessingContext:
    """Give a context with the project."""
    value = QgsProcessingContext()
    value.setProject(QgsProject.instance())
    return value


def refusal(parameters: dict[str, Any]) -> str:
    """Give the reason that checkParameterValues gives; empty when it agrees."""
    is_valid, reason = algorithm().checkParameterValues(parameters, context())
    return "" if is_valid else reason


class Listener(QgsProcessingFeedback):
    """Remembers what it is told."""

    def __init__(self) -> None:
        super().__init__(False)
        self.said: list[tuple[str, str]] = []

    def pushInfo(self, info: str) -> None:
        self.said.append(("info", info))

    def pushWarning(self, warning: str) -> None:
        self.said.append(("warning", warning))

    def pushDebugInfo(self, info: str) -> None:
        self.said.append(("debug", info))

    def reportError(self, error: str, fatalError: bool = False) -> None:
        self.said.append(("error", error))

    def setProgressText(self, text: str) -> None:
        self.said.append(("progress", text))


def definition() -> ModelDefinition:
    """Give a definition with two classes."""
    return ModelDefinition(
        name="Palms",
        version="2",
        kind="onnx",
        weights="weights.onnx",
        classes=(ModelClass(4, "Palm", (10, 200, 30)), ModelClass(7, "House", (200, 20, 20))),
    )


def square(x: float, y: float, side: float = 2) -> bytes:
    """Give the WKB of a square."""
    geometry = QgsGeometry.fromWkt(f"Polygon(({x} {y},{x + side} {y},{x + side} {y + side},{x} {y + side},{x} {y}))")
    return bytes(geometry.asWkb())


def three_objects() -> MapObjects:
    """Give two palms and a house; the house is cut by the edge."""
    return MapObjects(
        [square(500010, 5599950), square(500020, 5599950), square(500030, 5599950)],
        np.array([0.9712, 0.5, 0.25], np.float32),
        np.array([0, 0, 1], np.int32),
        np.array([0, 0, 12345678901], np.int64),
        np.array([False, False, True]),
    )


_WORKER = """
import json, sys, time
sys.path.insert(0, {plugins!r})
from pathlib import Path
from kestrel.inference.object_file import write_objects
folder = Path(sys.argv[-1])
job = json.loads((folder / "job.json").read_text("utf-8"))
def say(type, **members):
    print(json.dumps({{"type": type, **members}}), flush=True)
def hand_out(objects, number=1):
    path = folder / f"objects-{{number:08d}}.npz"
    write_objects(path, objects)
    say("objects", path=str(path), count=len(objects))
say("started", pid=1, versions={{"torch": "9.9"}})
{body}
"""


def write_interpreter(folder: Path, body: str) -> str:
    """Write a program that QGIS takes for the inference interpreter.

    Args:
        folder: Where to put it.
        body: Python that plays the worker: it has `job`, `folder`, `say(type, **members)` and `hand_out(objects)`.
    """
    script = folder / "worker.py"
    script.write_text(_WORKER.format(plugins=str(ROOT / "build" / "plugins"), body=body), "utf-8")
    program = folder / "interpreter"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)
