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
    QgsProcessingParameterAuthConfig,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterCrs,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterExtent,
    QgsProcessingParameterFeatureSink,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingParameterVectorLayer,
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
AT_PORTAL_ALONE = "AT_PORTAL_ALONE"
"""No parameter that a dialog shows: AUTHENTICATION signs in at PORTAL and at the portal's own servers, nowhere else."""
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
PLAN_ONLY = "PLAN_ONLY"
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
PLAN = "PLAN"
SUMMARY = "SUMMARY"
OUT_OBJECTS = "OUT_OBJECTS"

PROCESSING_MODES = ("PROCESS_AS_MOSAICKED_IMAGE", "PROCESS_ITEMS_SEPARATELY")
PROCESSORS = ("Auto", "CPU", "GPU")
CELL_SIZE_UNITS = ("Raster", "Metres", "Feet")
RESAMPLINGS = ("Automatic", "Nearest", "Bilinear", "Cubic", "Average")

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
    return (*_what_to_detect(), *_where_to_look(), *_what_to_keep(), *_how_to_run(), *_sign_in(), *_where_to_write())


def _what_to_detect() -> tuple[Parameter, ...]:
    return (
        *_rasters(),
        Parameter(
            MODEL, tr("Model definition"), QgsProcessingParameterString,
            tr("The trained model: a .dlpk package, an .emd or .json definition that lies beside its weights, a model "
               "folder of Hugging Face, or a file that says enough by itself. The text of a definition in JSON works "
               'too, and so does an item of an ArcGIS portal, as the address of its page or as {"itemId": ...}: it is '
               "downloaded once."),
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


def _rasters() -> tuple[Parameter, ...]:
    return (
        Parameter(
            INPUT, tr("Input raster"), QgsProcessingParameterRasterLayer,
            tr("The image to search: a georeferenced raster file (GeoTIFF, JPEG 2000, VRT mosaic, ...), local or "
               "remote, or any raster layer of QGIS: XYZ tiles, WMS, WMTS, WCS, databases. A picture without "
               "georeference (a photo) works, too: its objects lie where QGIS shows it, in pixels. May stay empty "
               "where further rasters or an input source are given."),
            is_optional=True,
        ),
        Parameter(
            MORE_INPUTS, tr("Further input rasters"), QgsProcessingParameterMultipleLayers,
            tr("More images for the same run; the processing mode says what becomes of them."),
            is_optional=True, options={"layerType": Qgis.ProcessingSourceType.Raster},
        ),
        Parameter(
            INPUT_SOURCE, tr("Input source"), QgsProcessingParameterString,
            tr("Images in other words, instead of the input raster: a folder (all images in it, by name; folders "
               "inside are left out), a pattern (C:/flight/*.jpg), a path, an address, a name of GDAL (/vsis3/...), a "
               'JSON list of these, or JSON as ArcGIS writes it: {"uri": ...}, {"url": ...}, {"uris": [...]}.'),
            is_optional=True, is_advanced=True,
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
               "coordinate reference system and with which pixels; otherwise it is the first layer's, and the cell "
               "size or the model say how large the pixels are."),
            is_optional=True, is_advanced=True, options={"layerType": Qgis.ProcessingSourceType.MapLayer},
        ),
        Parameter(
            PROCESSING_MODE, tr("Processing mode"), QgsProcessingParameterEnum,
            tr("What several images are. PROCESS_AS_MOSAICKED_IMAGE: one image; a later one in the list lies on top, "
               "the first one gives coordinate reference system and grid of pixels, and an object on the join of two "
               "images is found once. PROCESS_ITEMS_SEPARATELY: each is searched by itself, an image that cannot be "
               "read does not stop the others, and the field Source tells which image an object comes from. Photos "
               "without georeference can only be searched separately; their objects overlay one photo at a time."),
            default=PROCESSING_MODES[0], is_advanced=True,
            options={"options": list(PROCESSING_MODES), "usesStaticStrings": True},
        ),
    )  # fmt: skip


def _where_to_look() -> tuple[Parameter, ...]:
    return (
        Parameter(
            EXTENT, tr("Extent"), QgsProcessingParameterExtent,
            tr("The part of the raster to search. Empty: all of it. An extent in another coordinate reference system "
               "is converted to the raster's; what reaches beyond the raster is cut off, and the log says so."),
            is_optional=True,
        ),
        Parameter(
            MASK, tr("Mask"), QgsProcessingParameterFeatureSource,
            tr("Polygons to search in, in any coordinate reference system. An object counts when its centre lies "
               "inside; tiles that touch no polygon are not read. A raster as mask is turned into polygons first, "
               "with Raster > Conversion > Polygonize."),
            is_optional=True, options={"types": [Qgis.ProcessingSourceType.VectorPolygon]},
        ),
        Parameter(
            CELL_SIZE, tr("Cell size"), QgsProcessingParameterNumber,
            tr("Size of the pixels that the model sees, in the unit chosen below: by default in units of the raster's "
               "coordinate reference system (degrees for a geographic one). Set it where the image is much finer or "
               "coarser than what the model was trained on. Empty: the raster's own."),
            is_optional=True, is_advanced=True, options={"type": _DOUBLE, "minValue": 0}, widget={"decimals": 8},
        ),
        Parameter(
            CELL_SIZE_UNIT, tr("Unit of the cell size"), QgsProcessingParameterEnum,
            tr("Raster: units of the raster's coordinate reference system. Metres, Feet: true lengths on the ground, "
               "measured at the centre of the searched area. That matters for geographic rasters, and for Mercator "
               "ones such as web maps, where a map metre at 60 degrees of latitude is half a metre on the ground."),
            default=CELL_SIZE_UNITS[0], is_advanced=True,
            options={"options": list(CELL_SIZE_UNITS), "usesStaticStrings": True},
        ),
        Parameter(
            CELL_SIZE_LAYER, tr("Cell size as in layer"), QgsProcessingParameterRasterLayer,
            tr("A raster whose pixels are as large as those that the model shall see, instead of a number above. In "
               "another coordinate reference system its pixels are measured on the ground. Its place and content do "
               "not matter."),
            is_optional=True, is_advanced=True,
        ),
        Parameter(
            SNAP_RASTER, tr("Snap raster"), QgsProcessingParameterRasterLayer,
            tr("A raster whose pixel corners the pixels that the model sees are aligned with, so that results of "
               "several runs lie on one grid. It must have the coordinate reference system of the input raster. "
               "Pixels are resampled where the grids differ."),
            is_optional=True, is_advanced=True,
        ),
        Parameter(
            RESAMPLING, tr("Resampling"), QgsProcessingParameterEnum,
            tr("How pixels of another size or place are made. Automatic: averages where the new pixels are much "
               "larger, else bilinear. Rasters with a colour table always take the nearest pixel. Without effect "
               "where the raster's own pixels are used."),
            default=RESAMPLINGS[0], is_advanced=True,
            options={"options": list(RESAMPLINGS), "usesStaticStrings": True},
        ),
        Parameter(
            BANDS, tr("Bands"), QgsProcessingParameterString,
            tr("The raster's bands that the model gets, in the model's order: numbers from 1 as in the layer's "
               "properties, 4,3,2, or names, nir;red;green. As many as the model takes. A band that is marked as "
               "transparency is read like any other when it is named here, and is no mask then. Empty: as the model "
               "says."),
            is_optional=True, is_advanced=True,
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
            tr("How much of this computer's processor the run may use: a share of its cores (75%), or a count (4). "
               "In ArcGIS it is the number of processes, each with a model of its own in memory; here it is the "
               "number of threads of one process that holds one model, so a higher factor takes hardly more memory. "
               "The threads read ahead and calculate. 100% is fastest; leave some cores free to go on working, or "
               "where several people share the computer. 0 means one thread. On a graphics processor it counts for "
               "reading alone. Results do not depend on it."),
            default="100%", is_optional=True, is_advanced=True,
        ),
        Parameter(
            MAX_TILES, tr("Maximum number of tiles"), QgsProcessingParameterNumber,
            tr("A run that would have to look at more tiles is refused before it starts, and its message says how many "
               "there are and how long they would take. It guards against a whole country searched by mistake: "
               "choose an extent, a mask or a larger cell size, or raise the number to go on. Of rasters that are "
               "searched one by one each counts for itself."),
            default=100_000, is_advanced=True, options={"type": _INTEGER, "minValue": 1},
        ),
        Parameter(
            PLAN_ONLY, tr("Only plan, detect nothing"), QgsProcessingParameterBoolean,
            tr("Open model and raster, run one tile as a trial, and tell how many tiles a run has, how long it takes "
               "and how much memory it needs. No objects are looked for and no output is written; the answer is the "
               "output Plan."),
            default=False, is_advanced=True,
        ),
        Parameter(
            ALLOW_PACKAGE_CODE, tr("Allow the program of the package"), QgsProcessingParameterString,
            tr("Some models are programs. For scripts and qgis_process: the hash (SHA-256) of the exact content that "
               "may run, as the message of the refused run tells it; in QGIS's window it allows nothing: press "
               "'Look and allow\u2026' below the model there. Empty: what was allowed in QGIS's window."),
            is_optional=True, is_advanced=True,
        ),
    )  # fmt: skip


def _sign_in() -> tuple[Parameter, ...]:
    return (
        Parameter(
            AUTHENTICATION, tr("Authentication"), QgsProcessingParameterAuthConfig,
            tr("The authentication configuration of QGIS that signs in to portals and services. What is secret in it "
               "stays in QGIS's store."),
            is_optional=True, is_advanced=True,
        ),
        Parameter(
            PORTAL, tr("Portal"), QgsProcessingParameterString,
            tr("Address of the ArcGIS portal that holds items and takes new layers. Empty: ArcGIS Online."),
            is_optional=True, is_advanced=True,
        ),
    )  # fmt: skip


def _where_to_write() -> tuple[Parameter, ...]:
    return (
        Parameter(
            OUTPUT_CRS, tr("Output coordinate reference system"), QgsProcessingParameterCrs,
            tr("The coordinate reference system that the objects are written in. Empty: the raster's. The search "
               "itself is done in the raster's, corners are converted one by one when they are written."),
            is_optional=True, is_advanced=True,
        ),
        Parameter(
            APPEND_TO, tr("Append to layer"), QgsProcessingParameterVectorLayer,
            tr("An existing layer that takes the objects: GeoPackage, PostGIS, or any other that can be edited. Its "
               "fields, geometry type and place are checked before the run. Each object carries the run's name in "
               "JobId, and 'Undo a detection run' takes a run out again."),
            is_optional=True, is_advanced=True, options={"types": [Qgis.ProcessingSourceType.VectorAnyGeometry]},
        ),
        Parameter(
            FIELD_MAP, tr("Field map"), QgsProcessingParameterString,
            tr('Where the values go in an existing layer whose fields have other names, as JSON: {"Class": "species", '
               '"Tile": null} writes the class into the field species and leaves the tile out.'),
            is_optional=True, is_advanced=True,
        ),
        Parameter(
            OUTPUT_SERVICE, tr("Feature service"), QgsProcessingParameterString,
            tr('A feature service of ArcGIS that gets the objects after they are saved here, as JSON: {"url": '
               '".../FeatureServer/0"} or {"itemId": "..."} adds to an existing layer, {"serviceProperties": {"name": '
               '"Trees"}} makes a new one. A run that broke off while it published goes on where it stopped.'),
            is_optional=True, is_advanced=True,
        ),
        Parameter(
            SUMMARY_FILE, tr("Summary"), QgsProcessingParameterFileDestination,
            tr("What was done with what, what became of every tile and where the objects are, as JSON."),
            is_optional=True, is_advanced=True, options={"fileFilter": "JSON (*.json)", "createByDefault": False},
        ),
        Parameter(
            OUTPUT, tr("Detected objects"), QgsProcessingParameterFeatureSink,
            tr("One feature for each object: a box, an outline, or - where the model's own program gives them - a "
               "point or a line. May be left out where the objects go into an existing layer or a feature service."),
            is_optional=True, options={"type": Qgis.ProcessingSourceType.VectorAnyGeometry},
        ),
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
        Output(
            PLAN,
            tr("Plan"),
            text,
            tr(
                "What the run had to do, as JSON: pixels, tiles, seconds that a trial tile led to expect, memory in "
                "bytes."
            ),
        ),
        Output(
            SUMMARY,
            tr("Summary"),
            text,
            tr("The run as JSON: counts, what became of every tile, model, rasters, versions, outputs."),
        ),
        Output(
            OUT_OBJECTS,
            tr("Result"),
            text,
            tr('Where the objects are, as JSON: {"uri": ...}, or {"url": ..., "itemId": ...} of a feature service.'),
        ),
    )
