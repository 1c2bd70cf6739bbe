"""A graphical model whose inputs are wired to the parameters of rasters takes every kind of source."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from qgis.core import (
    Qgis,
    QgsProcessingModelAlgorithm,
    QgsProcessingModelChildAlgorithm,
    QgsProcessingModelChildParameterSource,
    QgsProcessingModelOutput,
    QgsProcessingModelParameter,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterExtent,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsVectorLayer,
)

from kestrel.tests.fixtures.servers.image_server import image_server
from kestrel.tests.fixtures.servers.pixels import open_image
from kestrel.tests.fixtures.servers.qgis_server import without_nodata
from kestrel.tests.fixtures.servers.scene import IMAGE, demo_tiles, inner_extent
from kestrel.tests.fixtures.servers.xyz_server import serving
from kestrel.tests.qgis.examples import ROOT, Listener, context
from kestrel.tests.qgis.test_routes import MODEL, N_OBJECTS, SIDE, Found, layer, objects_in, quarters, run

pytestmark = pytest.mark.slow

INPUTS = {
    "image": "INPUT", "source": "INPUT_SOURCE", "more": "MORE_INPUTS", "drawn": "RENDER_LAYERS",
    "shown": "AS_DISPLAYED", "area": "EXTENT", "side": "CELL_SIZE",
}  # fmt: skip
"""Input of the model -> parameter of the step."""
_RASTERS, _LAYERS = Qgis.ProcessingSourceType.Raster, Qgis.ProcessingSourceType.MapLayer


def graphical_model() -> QgsProcessingModelAlgorithm:
    model = QgsProcessingModelAlgorithm("Trees of anything", "Kestrel")
    definitions: list[QgsProcessingParameterDefinition] = [
        QgsProcessingParameterRasterLayer("image", "Image", optional=True),
        QgsProcessingParameterString("source", "Address or folder", optional=True),
        QgsProcessingParameterMultipleLayers("more", "More images", _RASTERS, optional=True),
        QgsProcessingParameterMultipleLayers("drawn", "Layers to draw", _LAYERS, optional=True),
        QgsProcessingParameterBoolean("shown", "As the map shows it", False),
        QgsProcessingParameterExtent("area", "Area", optional=True),
        QgsProcessingParameterNumber("side", "Cell size", Qgis.ProcessingNumberParameterType.Double, optional=True),
    ]
    for definition in definitions:
        model.addModelParameter(definition, QgsProcessingModelParameter(definition.name()))
    step = QgsProcessingModelChildAlgorithm("kestrel:detectobjects")
    step.setChildId("detect")
    source = QgsProcessingModelChildParameterSource
    for name, key in INPUTS.items():
        step.addParameterSources(key, [source.fromModelParameter(name)])
    step.addParameterSources("MODEL", [source.fromStaticValue(str(MODEL))])
    output = QgsProcessingModelOutput("trees")
    output.setChildId("detect")
    output.setChildOutputName("OUTPUT")
    step.setModelOutputs({"trees": output})
    model.addChildAlgorithm(step)
    model.updateDestinationParameters()
    return model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KESTREL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return without_nodata(IMAGE, tmp_path / "scene.tif")


def run_model(model: QgsProcessingModelAlgorithm, output: Path, inputs: dict[str, Any]) -> list[Found]:
    (destination,) = [definition.name() for definition in model.destinationParameterDefinitions()]
    results, is_good = model.run({**inputs, destination: str(output)}, context(), Listener(), catchExceptions=False)
    assert is_good
    return objects_in(QgsVectorLayer(results[destination]))


def test_each_kind_of_input_of_a_model_gives_the_objects_of_the_file(scene: Path, tmp_path: Path) -> None:
    model = graphical_model()
    first, *others = quarters(scene, tmp_path / "quarters")
    with image_server(open_image(scene)) as arcgis, serving(demo_tiles(tmp_path / "tiles.tif")) as tiles:
        extent = inner_extent(tiles)
        given: dict[str, dict[str, Any]] = {
            "a layer": {"image": layer(str(scene))},
            "an address": {"source": arcgis.image},
            "a folder": {"source": str(tmp_path / "quarters")},
            "a list": {"image": first, "more": others},
            "as displayed": {"image": layer(str(scene)), "shown": True},
            "drawn": {"drawn": [layer(str(scene))], "side": SIDE},
            "tiles": {"image": layer(tiles.uri, "wms"), "area": extent},
        }
        found = {name: run_model(model, tmp_path / f"{name}.gpkg", inputs) for name, inputs in given.items()}
        truth = run(INPUT=str(tmp_path / "tiles.tif"), EXTENT=extent)
    print("\n" + "\n".join(f"{name:14}{len(objects)} objects" for name, objects in found.items()))
    assert found.pop("tiles") == truth and len(truth) > 30
    assert len(found["a layer"]) == N_OBJECTS
    assert all(objects == found["a layer"] for objects in found.values())


def test_a_model_searches_an_image_service_through_qgis_process(scene: Path, tmp_path: Path) -> None:
    model, file, output = graphical_model(), tmp_path / "trees.model3", tmp_path / "trees.gpkg"
    assert model.toFile(str(file))
    (destination,) = [definition.name() for definition in model.destinationParameterDefinitions()]
    with image_server(open_image(scene)) as arcgis:
        inputs = {"source": arcgis.image, destination: str(output)}
        done = subprocess.run(
            [str(ROOT / "tools" / "qgis_process.sh"), "run", str(file), "-"],
            input=json.dumps({"inputs": inputs}), capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert objects_in(QgsVectorLayer(str(output))) == run(INPUT=str(scene))
