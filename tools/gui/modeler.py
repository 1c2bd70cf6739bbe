"""Picture: a model in the model designer, image -> objects -> points. Makes the model's file, too."""

# Runs inside QGIS; tests/system/gui_prelude.py gives it `iface`, `arguments`, `wait_until`, `save_picture`, `answer`.
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from processing.modeler.ModelerDialog import ModelerDialog
from qgis.core import (
    Qgis,
    QgsProcessingModelAlgorithm,
    QgsProcessingModelChildAlgorithm,
    QgsProcessingModelChildParameterSource,
    QgsProcessingModelOutput,
    QgsProcessingModelParameter,
    QgsProcessingParameterFile,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
)
from qgis.gui import QgsFilterLineEdit
from qgis.PyQt.QtCore import QPointF, QSizeF, Qt
from qgis.PyQt.QtWidgets import QDockWidget

if TYPE_CHECKING:
    from kestrel.tests.system.gui_prelude import save_picture, wait_until

    arguments: dict[str, str] = {}

Source = QgsProcessingModelChildParameterSource


def add_input(model: Any, definition: Any, x: float, y: float) -> None:
    """Add an input at a place of the canvas."""
    component = QgsProcessingModelParameter(definition.name())
    component.setPosition(QPointF(x, y))
    model.addModelParameter(definition, component)


def add_step(model: Any, name: str, algorithm: str, sources: dict[str, Any], x: float, y: float) -> Any:
    """Add a step."""
    step = QgsProcessingModelChildAlgorithm(algorithm)
    step.setChildId(name)
    step.setDescription(step.algorithm().displayName())
    step.setPosition(QPointF(x, y))
    step.setSize(QSizeF(300, 40))
    for key, source in sources.items():
        step.addParameterSources(key, [source])
    return step


def add_output(step: Any, label: str, x: float, y: float) -> None:
    """Make a step's layer a result of the model."""
    output = QgsProcessingModelOutput(label)
    output.setDescription(label)
    output.setChildId(step.childId())
    output.setChildOutputName("OUTPUT")
    output.setPosition(QPointF(x, y))
    step.setModelOutputs({label: output})


model = QgsProcessingModelAlgorithm("Trees as points", "Kestrel")
add_input(model, QgsProcessingParameterRasterLayer("image", "Image"), 180, 100)
add_input(model, QgsProcessingParameterFile("detector", "Detection model", extension="dlpk"), 480, 100)
number = Qgis.ProcessingNumberParameterType.Double
threshold = QgsProcessingParameterNumber("threshold", "Lowest score", number, 0.3, False, 0, 1)
add_input(model, threshold, 780, 100)
detect = add_step(
    model,
    "detect",
    "kestrel:detectobjects",
    {
        "INPUT": Source.fromModelParameter("image"),
        "MODEL": Source.fromModelParameter("detector"),
        "ARGUMENTS": Source.fromExpression("to_json(map('threshold', @threshold))"),
    },
    480, 260,
)  # fmt: skip
add_output(detect, "Trees", 780, 370)
model.addChildAlgorithm(detect)
centroids = add_step(
    model, "centroids", "native:centroids", {"INPUT": Source.fromChildOutput("detect", "OUTPUT")}, 480, 420
)
add_output(centroids, "Points", 780, 530)
model.addChildAlgorithm(centroids)
if not model.toFile(arguments["model_file"]):
    raise OSError(arguments["model_file"])

dialog = ModelerDialog.create(model)
dialog.setGeometry(0, 0, 1600, 1000)
dialog.show()
wait_until(dialog.isVisible)
docks = {dock.windowTitle(): dock for dock in dialog.findChildren(QDockWidget)}
docks["Undo History"].hide()
docks["Algorithms"].raise_()
docks["Algorithms"].findChild(QgsFilterLineEdit).setText("deep learning")
dialog.resizeDocks([docks["Algorithms"], docks["Model Properties"]], [620, 180], Qt.Orientation.Vertical)
dialog.resizeDocks([docks["Algorithms"]], [330], Qt.Orientation.Horizontal)
view = dialog.view()
view.setSceneRect(0, 0, 960, 640)
view.resetTransform()
view.scale(1.3, 1.3)
save_picture(dialog, arguments["picture"])
