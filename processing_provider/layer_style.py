"""How the layer of detected objects looks and what it tells about its origin, when QGIS loads it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timezone

from qgis.core import (
    Qgis,
    QgsCategorizedSymbolRenderer,
    QgsCoordinateReferenceSystem,
    QgsFillSymbol,
    QgsLineSymbol,
    QgsMarkerSymbol,
    QgsPalLayerSettings,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingLayerPostProcessorInterface,
    QgsRendererCategory,
    QgsSimpleFillSymbolLayer,
    QgsSimpleLineSymbolLayer,
    QgsSymbol,
    QgsTextBufferSettings,
    QgsTextFormat,
    QgsUnitTypes,
    QgsVectorLayer,
    QgsVectorLayerSimpleLabeling,
)
from qgis.PyQt.QtCore import QTimer
from qgis.PyQt.QtGui import QColor

from ..inference.job import DetectionJob
from ..inference.models.definition import Color, ModelClass, ModelDefinition
from .feature_sink import ExtraField, FieldNames, output_fields
from .raster_source import SourceRaster
from .text import to_label, to_ui, tr, without_secrets
from .version import plugin_version

_FILL_OPACITY = 30
"""Of 255: enough to tell an object from its surroundings, little enough to see what it is."""
_PALE = "255,255,255,190"
_METRES_PER_SCREEN_PIXEL = 0.00028
"""OGC's standardized rendering pixel size."""
_COARSEST_LABELS = 4
"""Labels appear while a screen pixel shows at most this many raster pixels: objects are large enough by then."""

_MOST_FOREIGN = 40
_FOREIGN_COLORS: tuple[Color, ...] = (
    (228, 26, 28), (55, 126, 184), (255, 127, 0), (152, 78, 163), (0, 158, 115), (230, 171, 2), (102, 102, 102),
)  # fmt: skip

_alive: list[LayerStyle] = []
"""QGIS does not own post-processors, and calls them long after the algorithm is gone; each leaves when it was used."""


@dataclass(frozen=True)
class RunRecord:
    """What is worth knowing about a run after it is over."""

    job: DetectionJob
    definition: ModelDefinition
    raster: SourceRaster
    fields: FieldNames
    class_counts: Counter[str]
    extra: tuple[ExtraField, ...] = ()


def style_on_load(context: QgsProcessingContext, destination: str, record: RunRecord, default_name: str) -> None:
    """Have the output layer styled once it is loaded; a layer that is not loaded is left alone.

    Args:
        context: Knows what is loaded.
        destination: What parameterAsSink gave.
        record: The run.
        default_name: The name that the layer has unless someone chose one.
    """
    if not context.willLoadLayerOnCompletion(destination):
        return
    details = context.layerToLoadOnCompletionDetails(destination)
    style = LayerStyle(record, has_default_name=details.name in ("", default_name))
    _alive.append(style)
    details.setPostProcessor(style)


def _let_go(style: LayerStyle) -> None:
    if style in _alive:
        _alive.remove(style)


class LayerStyle(QgsProcessingLayerPostProcessorInterface):
    """Gives a loaded layer its name, colours, labels and history."""

    def __init__(self, record: RunRecord, has_default_name: bool = True) -> None:
        """Prepare for one layer; a name that someone chose for it is kept."""
        super().__init__()
        self._record = record
        self._has_default_name = has_default_name

    def postProcessLayer(
        self, layer: QgsVectorLayer, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> None:
        """Style the layer; QGIS calls this in the main thread, once."""
        # Not at once: QGIS is still inside a method of this object.
        QTimer.singleShot(0, lambda: _let_go(self))
        if not isinstance(layer, QgsVectorLayer):
            return
        record = self._record
        class_field, confidence = names_in(layer, record.fields, record.extra)
        if self._has_default_name:
            layer.setName(layer_name(record))
        has_others = len(_foreign_names(record)) > _MOST_FOREIGN
        layer.setRenderer(renderer(shown_classes(record), class_field, layer.geometryType(), has_others))
        layer.setLabeling(labeling(record.raster, class_field, confidence, layer.geometryType()))
        layer.setLabelsEnabled(True)
        describe(layer, record)
        layer.triggerRepaint()


def names_in(layer: QgsVectorLayer, wanted: FieldNames, extra: tuple[ExtraField, ...] = ()) -> tuple[str, str]:
    """Give the names of the fields of class and confidence in the layer: some formats shorten them."""
    fields, columns = layer.fields(), output_fields(wanted, extra)

    def name_of(name: str) -> str:
        index = fields.lookupField(name)
        if index < 0:
            # Formats put fields of their own in front: fid, gml_id, ...
            index = fields.count() - columns.count() + columns.indexOf(name)
        return fields.at(index).name() if 0 <= index < fields.count() else name

    return name_of(wanted.class_name), name_of(wanted.confidence)


def layer_name(record: RunRecord) -> str:
    """Name a layer after its model and raster."""
    return to_label(f"{record.definition.name} ({record.raster.name})", 80)


def shown_classes(record: RunRecord) -> list[ModelClass]:
    """Give the classes for the legend: those that were found, or all where nothing was found.

    A model's own program may give classes that its definition does not list; they get colours in turn.
    """
    found = [item for item in record.definition.classes if record.class_counts[item.name]]
    found += [
        ModelClass(0, name, _FOREIGN_COLORS[place % len(_FOREIGN_COLORS)])
        for place, name in enumerate(_foreign_names(record)[:_MOST_FOREIGN])
    ]
    return found or list(record.definition.classes)


def _foreign_names(record: RunRecord) -> list[str]:
    known = {item.name for item in record.definition.classes}
    return sorted(name for name, count in record.class_counts.items() if count and name not in known)


def renderer(
    classes: list[ModelClass],
    class_field: str,
    geometry: Qgis.GeometryType = Qgis.GeometryType.Polygon,
    has_others: bool = False,
) -> QgsCategorizedSymbolRenderer:
    """Draw each class with the model's colour: areas with a strong outline around a translucent fill.

    Args:
        classes: What the legend lists.
        class_field: The field with their names.
        geometry: What is drawn.
        has_others: Objects have further classes; they share one entry.
    """
    make = {Qgis.GeometryType.Point: _marker, Qgis.GeometryType.Line: _line}.get(geometry, _fill)
    categories = [QgsRendererCategory(item.name, make(item.color), to_label(item.name, 80)) for item in classes]
    if has_others:
        categories.append(QgsRendererCategory(None, make(_FOREIGN_COLORS[-1]), tr("other")))
    return QgsCategorizedSymbolRenderer(class_field, categories)


def _fill(color: Color) -> QgsSymbol:
    """Give the symbol of an area; a pale edge around the outline keeps it visible on ground of the same colour."""
    symbol = QgsFillSymbol.createSimple(
        {
            "color": f"{_shade(color)},{_FILL_OPACITY}",
            "outline_color": _PALE,
            "outline_width": "1.1",
            "joinstyle": "miter",
        }
    )
    outline = {"style": "no", "outline_color": f"{_shade(color)},255", "outline_width": "0.6", "joinstyle": "miter"}
    symbol.appendSymbolLayer(QgsSimpleFillSymbolLayer.create(outline))
    return symbol


def _line(color: Color) -> QgsSymbol:
    """Give the symbol of a line, with the same pale edge."""
    symbol = QgsLineSymbol.createSimple({"line_color": _PALE, "line_width": "1.1", "joinstyle": "round"})
    core = {"line_color": f"{_shade(color)},255", "line_width": "0.6", "joinstyle": "round"}
    symbol.appendSymbolLayer(QgsSimpleLineSymbolLayer.create(core))
    return symbol


def _marker(color: Color) -> QgsSymbol:
    """Give the symbol of a point, with the same pale edge."""
    return QgsMarkerSymbol.createSimple(
        {
            "name": "circle",
            "color": f"{_shade(color)},255",
            "size": "2.4",
            "outline_color": _PALE,
            "outline_width": "0.4",
        }
    )


def _shade(color: Color) -> str:
    return ",".join(str(value) for value in color)


def labeling(
    raster: SourceRaster,
    class_field: str,
    confidence: str,
    geometry: Qgis.GeometryType = Qgis.GeometryType.Polygon,
) -> QgsVectorLayerSimpleLabeling:
    """Label objects as `Class 97%`, from the scale on at which they are large enough to carry a text."""
    settings = QgsPalLayerSettings()
    settings.fieldName = f"{quoted(class_field)} || ' ' || round({quoted(confidence)}) || '%'"
    settings.isExpression = True
    if geometry == Qgis.GeometryType.Polygon:
        settings.placement = Qgis.LabelPlacement.Horizontal
    settings.setFormat(_text_format())
    settings.scaleVisibility = True
    settings.minimumScale = coarsest_label_scale(raster.cell_size, raster.crs)
    settings.maximumScale = 0
    return QgsVectorLayerSimpleLabeling(settings)


def quoted(field: str) -> str:
    """Give a field name as an expression quotes it."""
    return '"' + field.replace('"', '""') + '"'


def coarsest_label_scale(cell_size: float, crs: QgsCoordinateReferenceSystem) -> float:
    """Give the denominator of the coarsest scale that shows labels.

    Units/space: cell_size in units of the coordinate reference system.
    """
    metres = cell_size * QgsUnitTypes.fromUnitToUnitFactor(crs.mapUnits(), Qgis.DistanceUnit.Meters)
    return max(100.0, float(round(_COARSEST_LABELS * metres / _METRES_PER_SCREEN_PIXEL, -2)))


def _text_format() -> QgsTextFormat:
    text_format = QgsTextFormat()
    text_format.setSize(8)
    text_format.setColor(QColor(30, 30, 30))
    buffer = QgsTextBufferSettings()
    buffer.setEnabled(True)
    buffer.setSize(0.7)
    buffer.setColor(QColor(255, 255, 255, 220))
    text_format.setBuffer(buffer)
    return text_format


def origin(record: RunRecord) -> dict[str, str]:
    """Tell where the objects come from, as names and texts."""
    job, definition = record.job, record.definition
    extent = record.raster.extent.toString(3) if job.extent is None else ", ".join(f"{v:.3f}" for v in job.extent)
    return {
        "model": definition.name,
        "model_version": definition.version,
        "model_sha256": job.model_sha256,
        "model_license": definition.license,
        "arguments": json.dumps(job.arguments, ensure_ascii=False, default=str),
        "objects_of_interest": "; ".join(job.objects_of_interest),
        "raster": "; ".join(without_secrets(item.source) for item in job.rasters),
        "crs": record.raster.crs.authid(),
        "extent": extent,
        "cell_size": f"{job.cell_size or record.raster.cell_size:g}",
        "job_id": job.job_id,
        "kestrel_version": plugin_version(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def describe(layer: QgsVectorLayer, record: RunRecord) -> None:
    """Write the origin into the layer's metadata, for people, and into its custom properties, for programs."""
    facts = origin(record)
    metadata = layer.metadata()
    metadata.setTitle(to_ui(layer.name()))
    metadata.setAbstract(
        tr("Objects that the model {model} found in the raster {raster}.").format(
            model=to_ui(record.definition.name), raster=to_ui(record.raster.name)
        )
    )
    metadata.setHistory([f"{name}: {to_ui(value, 1000)}" for name, value in facts.items() if value])
    layer.setMetadata(metadata)
    for name, value in facts.items():
        layer.setCustomProperty(f"kestrel/{name}", value)
