"""Everything that a run is to write, read from the parameters and checked before the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qgis.core import QgsCoordinateReferenceSystem, QgsProcessingOutputLayerDefinition

from ...inference.errors import JobError, OutputError
from ...inference.models.definition import ModelDefinition
from .. import parameters as keys
from ..feature_sink import FieldNames, columns
from .append import AppendPlan, plan_append
from .service_request import ServiceRequest, read_service_request
from .target_fields import read_field_map, unknown_columns

if TYPE_CHECKING:
    from ..parameter_reader import ParameterReader


@dataclass(frozen=True)
class Targets:
    """Where the objects of a run go.

    Attributes:
        layer: Value of the sink parameter; None: no new layer is made.
        append: The layer that takes them besides.
        service: The feature service that gets them, after everything else.
        summary_file: Where the summary is written; None: nowhere.
        warnings: What to tell before the run.
    """

    layer: Any
    append: AppendPlan | None = None
    service: ServiceRequest | None = None
    summary_file: Path | None = None
    warnings: tuple[str, ...] = ()


def read_targets(
    reader: ParameterReader,
    names: FieldNames,
    definition: ModelDefinition,
    arguments: Mapping[str, Any],
    crs: QgsCoordinateReferenceSystem,
) -> Targets:
    """Read and check the parameters of the outputs, except the new layer's format (destination.py).

    Args:
        reader: The parameters.
        names: The names that the user chose for the columns.
        definition: The model.
        arguments: Its arguments with their defaults.
        crs: Coordinate reference system of the objects.

    Raises:
        JobError: nothing says where the objects go, or a text is not what it should be.
        OutputError: a target cannot take the objects.
    """
    field_map = read_field_map(reader.text(keys.FIELD_MAP))
    request = read_service_request(reader.text(keys.OUTPUT_SERVICE), field_map)
    layer = _new_layer(reader, request)
    service = request if isinstance(request, ServiceRequest) else None
    append = _append_plan(reader, names, definition, field_map, _geometry(definition, arguments), crs)
    if layer is None and append is None and service is None:
        raise JobError(
            "Nothing says where the objects are to be written.",
            hint="Give OUTPUT (a new layer), APPEND_TO (an existing one) or OUTPUT_SERVICE (a feature service).",
        )
    warnings = []
    if field_map and append is None and service is None:
        warnings.append("FIELD_MAP is for APPEND_TO and OUTPUT_SERVICE; a new layer has Kestrel's fields.")
    unknown = unknown_columns(columns(names), field_map)
    if unknown:
        warnings.append(f"The field map names {', '.join(unknown)}: no field of every model's objects is called so.")
    if append is not None and append.provider == "arcgisfeatureserver":
        warnings.append(
            f"The layer '{append.name}' is a feature service. OUTPUT_SERVICE writes to it more safely: it goes on where "
            "the connection broke off, and nothing is sent twice."
        )
    return Targets(layer, append, service, _summary_file(reader), tuple(warnings))


def _new_layer(reader: ParameterReader, request: ServiceRequest | str | None) -> Any:
    value = reader.parameters.get(keys.OUTPUT) if reader.is_given(keys.OUTPUT) else None
    if isinstance(value, QgsProcessingOutputLayerDefinition) and value.sink.staticValue() in (None, ""):
        value = None
    if not isinstance(request, str):
        return value
    if value is not None:
        raise JobError(
            f"OUTPUT_SERVICE names the file '{request}', and OUTPUT names another output.",
            hint="Leave one of them out.",
        )
    return request


def _append_plan(
    reader: ParameterReader,
    names: FieldNames,
    definition: ModelDefinition,
    field_map: Mapping[str, str | None],
    geometry: str,
    crs: QgsCoordinateReferenceSystem,
) -> AppendPlan | None:
    if not reader.is_given(keys.APPEND_TO):
        return None
    layer = reader.algorithm.parameterAsVectorLayer(reader.parameters, keys.APPEND_TO, reader.context)
    if layer is None or not layer.isValid():
        raise OutputError(
            "The layer to append to cannot be opened.",
            hint="Choose a layer of the project, or write its source, as /data/trees.gpkg|layername=trees or "
            "postgres://dbname='gis' table=\"trees\" (geom).",
        )
    return plan_append(layer, names, definition, field_map, geometry, crs)


def _geometry(definition: ModelDefinition, arguments: Mapping[str, Any]) -> str:
    """Give what the objects are going to be, as far as it is known before the model is loaded."""
    return "point" if arguments.get("shape") == "point" else definition.geometry


def _summary_file(reader: ParameterReader) -> Path | None:
    if not reader.is_given(keys.SUMMARY_FILE):
        return None
    path = Path(reader.algorithm.parameterAsFileOutput(reader.parameters, keys.SUMMARY_FILE, reader.context)).absolute()
    if path.is_dir() or not path.parent.is_dir():
        raise OutputError(
            f"The summary cannot be written to '{path}': "
            f"{'it is a folder' if path.is_dir() else 'its folder does not exist'}.",
            hint="Choose another file.",
        )
    return path
