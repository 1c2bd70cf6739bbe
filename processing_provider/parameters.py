"""The parameters and outputs of `kestrel:detectobjects`, as one table.

The keys are the public API: scripts, models and servers hold them. They are added to, never renamed or taken away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qgis.core import (
    Qgis,
    QgsProcessingOutputDefinition,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterExtent,
    QgsProcessingParameterFeatureSink,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
)

from .text import tr

INPUT = "INPUT"
INPUT_SOURCE = "INPUT_SOURCE"
MORE_INPUTS = "MORE_INPUTS"
AS_DISPLAYED = "AS_DISPLAYED"
RENDER_LAYERS = "RENDER_LAYERS"
PROCESSING_MODE = "PROCESSING_MODE"
PORTAL = "PORTAL"
AUTHENTICATION = "AUTHENTICATION"
MODEL = "MODEL"
ARGUMENTS = "ARGUMENTS"
OBJECTS_OF_INTEREST = "OBJECTS_OF_INTEREST"
EXTENT = "EXTENT"
MASK = "MASK"
CELL_SIZE = "CELL_SIZE"
CELL_SIZE_UNIT = "CELL_SIZE_UNIT"
CELL_SIZE_LAYER = "CELL_SIZE_LAYER"
SNAP_RASTER = "SNAP_RASTER"
BANDS = "BANDS"
RESAMPLING = "RESAMPLING"
RUN_NMS = "RUN_NMS"
MAX_OVERLAP_RATIO = "MAX_OVERLAP_RATIO"
CONFIDENCE_SCORE_FIELD = "CONFIDENCE_SCORE_FIELD"
CLASS_VALUE_FIELD = "CLASS_VALUE_FIELD"
PROCESSOR_TYPE = "PROCESSOR_TYPE"
GPU_ID = "GPU_ID"
PARALLEL_PROCESSING_FACTOR = "PARALLEL_PROCESSING_FACTOR"
MAX_TILES = "MAX_TILES"
ALLOW_PACKAGE_CODE = "ALLOW_PACKAGE_CODE"
OUTPUT_CRS = "OUTPUT_CRS"
OUTPUT = "OUTPUT"
APPEND_TO = "APPEND_TO"
FIELD_MAP = "FIELD_MAP"
OUTPUT_SERVICE = "OUTPUT_SERVICE"
SUMMARY_FILE = "SUMMARY_FILE"

OBJECT_COUNT = "OBJECT_COUNT"
CLASS_COUNTS = "CLASS_COUNTS"
TILE_COUNT = "TILE_COUNT"
ELAPSED_SECONDS = "ELAPSED_SECONDS"
JOB_ID = "JOB_ID"
SUMMARY = "SUMMARY"
OUT_OBJECTS = "OUT_OBJECTS"

PROCESSORS = ("Auto", "CPU", "GPU")

MODEL_WIDGET = "kestrel:model"
ARGUMENTS_WIDGET = "kestrel:arguments"

_INTEGER = Qgis.ProcessingNumberParameterType.Integer
_DOUBLE = Qgis.ProcessingNumberParameterType.Double


@dataclass(frozen=True)
class Parameter:
    """One parameter: what QGIS needs to declare it and what a person needs to fill it in."""

    key: str
    label: str
    make: Callable[..., QgsProcessingParameterDefinition]
    """The QGIS class."""
    help: str
    default: Any = None
    is_optional: bool = False
    is_advanced: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the QGIS class."""
    widget: Mapping[str, Any] = field(default_factory=dict)
    """Metadata for the widget that edits it."""

    def definition(self) -> QgsProcessingParameterDefinition:
        """Make the QGIS parameter."""
        definition = self.make(
            self.key, self.label, defaultValue=self.default, optional=self.is_optional, **self.options
        )
        definition.setHelp(self.help)
        if self.widget:
            definition.setMetadata({"widget_wrapper": dict(self.widget)})
        if self.is_advanced:
            definition.setFlags(definition.flags() | Qgis.ProcessingParameterFlag.Advanced)
        return definition


@dataclass(frozen=True)
class Output:
    """One output besides the layer: a number or text that a script or the next step of a model can use."""

    key: str
    label: str
    make: Callable[[str, str], QgsProcessingOutputDefinition]
    help: str


def parameter_table() -> tuple[Parameter, ...]:
    """Give the parameters in the order of the dialog, in the user's language."""
    return (*_what_to_detect(), *_where_to_look(), *_what_to_keep(), *_how_to_run(), _output_layer())


def _what_to_detect() -> tuple[Parameter, ...]:
    return (
        Parameter(
            INPUT, tr("Input raster"), QgsProcessingParameterRasterLayer,
            tr("The image to search: a georeferenced raster file (GeoTIFF, JPEG 2000, VRT mosaic, ...), local or "
               "remote, or any raster layer of QGIS: XYZ tiles, WMS, WMTS, WCS, ArcGIS services, databases."),
            is_optional=True,
        ),
        Parameter(
            AS_DISPLAYED, tr("Search the layer as the map shows it"), QgsProcessingParameterBoolean,
            tr("Let QGIS draw the input raster with its style (colours, contrast, opacity), and search the picture. "
               "Otherwise the raster's own values are searched, or what its server sends. Labels are not drawn."),
            default=False, is_advanced=True,
        ),
        Parameter(
            RENDER_LAYERS, tr("Layers to draw"), QgsProcessingParameterMultipleLayers,
            tr("Layers of any kind (styled rasters, meshes, vector tiles, point clouds), the topmost first: QGIS draws "
               "them over one another, and the picture is searched. The input raster, if there is one, says in which "
               "coordinate reference system and with which pixels; otherwise it is the first layer's, and CELL_SIZE or "
               "the model say how large the pixels are."),
            is_optional=True, is_advanced=True, options={"layerType": Qgis.ProcessingSourceType.MapLayer},
        ),
        Parameter(
            MODEL, tr("Model definition"), QgsProcessingParameterString,
            tr("The trained model: a .dlpk package, an .emd or .json definition that lies beside its weights, a model "
               "folder of Hugging Face, or a file that says enough by itself. The text of a definition in JSON works "
               "too."),
            widget={"widget_type": MODEL_WIDGET},
        ),
        Parameter(
            ARGUMENTS, tr("Model arguments"), QgsProcessingParameterString,
            tr('Settings of the model, for example threshold and padding. Empty: the model\'s own. In scripts as JSON, '
               '{"threshold": 0.4}, or as threshold 0.4;padding 64.'),
            is_optional=True, widget={"widget_type": ARGUMENTS_WIDGET},
        ),
        Parameter(
            OBJECTS_OF_INTEREST, tr("Objects of interest"), QgsProcessingParameterString,
            tr("Class names to keep, separated by semicolons: Palm;House. Empty: all classes of the model."),
            is_optional=True,
        ),
    )  # fmt: skip


def _where_to_look() -> tuple[Parameter, ...]:
    return (
        Parameter(
            EXTENT, tr("Extent"), QgsProcessingParameterExtent,
            tr("The part of the raster to search. Empty: all of it. An extent in another coordinate reference system "
               "is converted."),
            is_optional=True,
        ),
        Parameter(
            MASK, tr("Mask"), QgsProcessingParameterFeatureSource,
            tr("Polygons to search in. An object counts when its centre lies inside; tiles that touch no polygon are "
               "not read."),
            is_optional=True, options={"types": [Qgis.ProcessingSourceType.VectorPolygon]},
        ),
        Parameter(
            CELL_SIZE, tr("Cell size"), QgsProcessingParameterNumber,
            tr("Size of the pixels that the model sees, in units of the raster's coordinate reference system (degrees "
               "for a geographic one). Set it where the image is much finer or coarser than what the model was "
               "trained on. Empty: the raster's own."),
            is_optional=True, is_advanced=True, options={"type": _DOUBLE, "minValue": 0}, widget={"decimals": 8},
        ),
    )  # fmt: skip


def _what_to_keep() -> tuple[Parameter, ...]:
    return (
        Parameter(
            RUN_NMS, tr("Remove overlapping objects (non-maximum suppression)"), QgsProcessingParameterBoolean,
            tr("Of objects of one class that overlap more than the ratio below, keep the one with the highest "
               "confidence. Seams between tiles need no such step: they never leave duplicates."),
            default=False,
        ),
        Parameter(
            MAX_OVERLAP_RATIO, tr("Maximum overlap ratio"), QgsProcessingParameterNumber,
            tr("Highest intersection over union, 0 to 1, that two objects of one class may have when overlapping "
               "objects are removed. 0: any overlap is too much."),
            default=0.0, options={"type": _DOUBLE, "minValue": 0, "maxValue": 1}, widget={"decimals": 3},
        ),
        Parameter(
            CONFIDENCE_SCORE_FIELD, tr("Confidence score field"), QgsProcessingParameterString,
            tr("Name of the output field for the confidence, 0 to 100."),
            default="Confidence", is_advanced=True,
        ),
        Parameter(
            CLASS_VALUE_FIELD, tr("Class field"), QgsProcessingParameterString,
            tr("Name of the output field for the class name."),
            default="Class", is_advanced=True,
        ),
    )  # fmt: skip


def _how_to_run() -> tuple[Parameter, ...]:
    return (
        Parameter(
            PROCESSOR_TYPE, tr("Processor type"), QgsProcessingParameterEnum,
            tr("Auto: the graphics processor where there is a usable one, else the CPU. GPU: fail where there is "
               "none."),
            default=PROCESSORS[0], is_advanced=True, options={"options": list(PROCESSORS), "usesStaticStrings": True},
        ),
        Parameter(
            GPU_ID, tr("GPU ID"), QgsProcessingParameterNumber,
            tr("Number of the graphics processor, from 0, on computers with several. Empty: the first usable one."),
            is_optional=True, is_advanced=True, options={"type": _INTEGER, "minValue": 0},
        ),
        Parameter(
            PARALLEL_PROCESSING_FACTOR, tr("Parallel processing factor"), QgsProcessingParameterString,
            tr("Processor cores to use: a count (4) or a share (75%)."),
            default="100%", is_optional=True, is_advanced=True,
        ),
        Parameter(
            ALLOW_PACKAGE_CODE, tr("Allow the program of the package"), QgsProcessingParameterString,
            tr("Some models are programs. For scripts and qgis_process: the hash (SHA-256) of the exact content that "
               "may run, as the message of the refused run tells it; in QGIS's window it allows nothing: press "
               "'Look and allow\u2026' below the model there. Empty: what was allowed in QGIS's window."),
            is_optional=True, is_advanced=True,
        ),
    )  # fmt: skip


def _output_layer() -> Parameter:
    return Parameter(
        OUTPUT, tr("Detected objects"), QgsProcessingParameterFeatureSink,
        tr("One feature for each object: a box, an outline, or - where the model's own program gives them - a point or "
           "a line."),
        options={"type": Qgis.ProcessingSourceType.VectorAnyGeometry},
    )  # fmt: skip


def output_table() -> tuple[Output, ...]:
    """Give the outputs besides the layer."""
    number, text = QgsProcessingOutputNumber, QgsProcessingOutputString
    return (
        Output(OBJECT_COUNT, tr("Number of objects"), number, tr("How many objects were found.")),
        Output(CLASS_COUNTS, tr("Objects by class"), text, tr("The same by class name, as JSON.")),
        Output(TILE_COUNT, tr("Number of tiles"), number, tr("How many tiles the search was cut into.")),
        Output(ELAPSED_SECONDS, tr("Elapsed seconds"), number, tr("How long the run took.")),
        Output(JOB_ID, tr("Job ID"), text, tr("Name of the run; it stands in the field JobId of each object.")),
    )
