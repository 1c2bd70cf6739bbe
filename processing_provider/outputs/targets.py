"""Everything that a run is to write, read from the parameters and checked before the run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsDataSourceUri,
    QgsProcessingOutputLayerDefinition,
    QgsProviderRegistry,
    QgsVectorLayer,
)

from ...inference.errors import JobError, OutputError
from ...inference.models.definition import ModelDefinition
from ...inference.net.portal import portal_url
from .. import parameters as keys
from ..credentials import secrets_for
from ..feature_sink import FieldNames, columns
from .append import FEATURE_SERVICE, AppendPlan, plan_append
from .layer_fit import check_crs
from .publish import ServiceTarget
from .service_request import ServiceRequest, read_service_request
from .target_fields import read_field_map, unknown_columns

if TYPE_CHECKING:
    from ..parameter_reader import ParameterReader


_TABLE = re.compile(r"(ogr|postgis|postgres):(.*)", re.DOTALL)
"""A sink that is a table, see QgsProcessingUtils.createFeatureSink."""


@dataclass(frozen=True)
class Targets:
    """Where the objects of a run go.

    Attributes:
        layer: Value of the sink parameter; None: no new layer is made.
        append: The layer that takes them besides.
        service: The feature service that gets them, after everything else.
        summary_file: Where the summary is written; None: nowhere.
        warnings: What to tell before the run.
        shown: Data provider and source of the existing layer that gets objects; empty: there is none.
    """

    layer: Any
    append: AppendPlan | None = None
    service: ServiceRequest | None = None
    summary_file: Path | None = None
    warnings: tuple[str, ...] = ()
    shown: tuple[str, ...] = field(default=(), repr=False)


def read_targets(
    reader: ParameterReader,
    names: FieldNames,
    definition: ModelDefinition,
    arguments: Mapping[str, Any],
) -> Targets:
    """Read and check the parameters of the outputs, except the new layer's format (destination.py).

    In the main thread: layers of the project are looked at.

    Args:
        reader: The parameters.
        names: The names that the user chose for the columns.
        definition: The model.
        arguments: Its arguments with their defaults.

    Raises:
        JobError: nothing says where the objects go, or a text is not what it should be.
        OutputError: a target cannot take the objects.
    """
    field_map = read_field_map(reader.text(keys.FIELD_MAP))
    request = read_service_request(reader.text(keys.OUTPUT_SERVICE), field_map)
    layer, service = _new_layer(reader, request), request if isinstance(request, ServiceRequest) else None
    existing, append = _existing_layer(reader), None
    if existing is not None and existing.providerType() == FEATURE_SERVICE:
        service = _service_of(existing, service, field_map)
    elif existing is not None:
        append = plan_append(existing, names, definition, field_map, _geometry(definition, arguments))
    _check_any(reader, layer, append, service)
    warnings = []
    if field_map and append is None and service is None:
        warnings.append("FIELD_MAP is for APPEND_TO and OUTPUT_SERVICE; a new layer has Kestrel's fields.")
    unknown = unknown_columns(columns(names), field_map)
    if unknown:
        warnings.append(f"The field map names {', '.join(unknown)}: no field of every model's objects is called so.")
    shown = () if existing is None else (existing.providerType(), existing.source())
    return Targets(layer, append, service, _summary_file(reader), tuple(warnings), shown)


def service_only(reader: ParameterReader) -> Targets:
    """Read what can be read while the model is still on its portal: new layer, feature service and summary.

    Raises:
        JobError: the objects are to be appended to a layer, whose fields are compared with the model's; or nothing says
            where they go.
        OutputError: the summary cannot be written.
    """
    if reader.is_given(keys.APPEND_TO):
        raise JobError(
            "APPEND_TO needs a model that lies on this computer: its fields are compared with the layer's first.",
            hint="Download the item's model and give its path, or write a new layer.",
        )
    request = read_service_request(reader.text(keys.OUTPUT_SERVICE), read_field_map(reader.text(keys.FIELD_MAP)))
    layer, service = _new_layer(reader, request), request if isinstance(request, ServiceRequest) else None
    _check_any(reader, layer, service)
    return Targets(layer, service=service, summary_file=_summary_file(reader))


def _check_any(reader: ParameterReader, *targets: Any) -> None:
    """Refuse a run that would write its objects nowhere."""
    if all(target is None for target in targets) and not reader.flag(keys.PLAN_ONLY):
        raise JobError(
            "Nothing says where the objects are to be written.",
            hint="Give OUTPUT (a new layer), APPEND_TO (an existing one) or OUTPUT_SERVICE (a feature service).",
        )


def check_place(targets: Targets, crs: QgsCoordinateReferenceSystem, output: Path | None) -> None:
    """Check that the outputs do not replace each other, and that the objects have a place in an existing layer.

    Args:
        targets: Where the objects go.
        crs: Coordinate reference system of the objects.
        output: The file of the new layer, if there is one.

    Raises:
        OutputError: only one of them has a coordinate reference system, or one file would replace another one.
    """
    if output is not None and targets.summary_file is not None and targets.summary_file.resolve() == output.resolve():
        raise OutputError(
            f"The summary would replace the new layer: both are to become the file '{output}'.",
            hint="Choose another file for SUMMARY_FILE.",
        )
    if targets.append is None:
        return
    check_crs(targets.append.name, targets.append.crs, crs)
    held = QgsProviderRegistry.instance().decodeUri(targets.append.provider, targets.append.source).get("path")
    if output is not None and held and Path(held).resolve() == output.resolve():
        raise OutputError(
            f"The new layer would replace the file '{output}' of the layer '{targets.append.name}', to which the "
            "objects are to be appended.",
            hint="Choose another file for OUTPUT, or leave it empty.",
        )
    made, taken = _table_in(targets.layer), _table_of(targets.append)
    if made and taken and made[: len(taken)] == taken:
        raise OutputError(
            f"The new layer would replace the table of the layer '{targets.append.name}', to which the objects are to "
            "be appended.",
            hint="Choose another table for OUTPUT, or leave it empty.",
        )


def _table_in(value: Any) -> tuple[str, ...] | None:
    """Give what tells the table that a sink parameter names from others; None: it names none in a file or database."""
    text = value.sink.staticValue() if isinstance(value, QgsProcessingOutputLayerDefinition) else value
    found = _TABLE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    uri = QgsDataSourceUri(found[2])
    return _in_file(uri.database(), uri.table()) if found[1] == "ogr" else _in_database(uri)


def _table_of(plan: AppendPlan) -> tuple[str, ...] | None:
    if plan.provider == "postgres":
        return _in_database(QgsDataSourceUri(plan.source))
    parts = QgsProviderRegistry.instance().decodeUri(plan.provider, plan.source)
    return _in_file(str(parts["path"]), str(parts.get("layerName") or "")) if parts.get("path") else None


def _in_file(path: str, table: str) -> tuple[str, ...]:
    """Give file and table; the file alone where the table is the only one, or the first."""
    return (str(Path(path).resolve()), *([table.casefold()] if table else []))


def _in_database(uri: QgsDataSourceUri) -> tuple[str, ...]:
    return uri.service(), uri.host(), uri.port() or "5432", uri.database(), uri.schema() or "public", uri.table()


def service_target(reader: ParameterReader, targets: Targets) -> ServiceTarget | None:
    """Give the feature service with what signs in to it; in the main thread, as a sign-in may ask for something.

    Raises:
        CredentialError, ServiceError: see credentials.py; the portal's address is none.
    """
    if targets.service is None:
        return None
    portal = portal_url(reader.text(keys.PORTAL))
    url = targets.service.url or portal
    places = [(targets.service.authcfg or reader.sign_in_at(url), url)]
    return ServiceTarget(targets.service, portal, secrets_for([*places, *reader.portal_sign_in()]))


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


def _existing_layer(reader: ParameterReader) -> QgsVectorLayer | None:
    if not reader.is_given(keys.APPEND_TO):
        return None
    layer = reader.algorithm.parameterAsVectorLayer(reader.parameters, keys.APPEND_TO, reader.context)
    if layer is None or not layer.isValid():
        raise OutputError(
            "The layer to append to cannot be opened.",
            hint="Choose a layer of the project, or write its source, as /data/trees.gpkg|layername=trees or "
            "postgres://dbname='gis' table=\"trees\" (geom).",
        )
    return layer


def _service_of(
    layer: QgsVectorLayer, other: ServiceRequest | None, field_map: Mapping[str, str | None]
) -> ServiceRequest:
    """Publish to a layer that is a feature service, instead of adding through QGIS.

    QGIS's data provider cannot tell whether a request whose answer got lost was done, and may read old answers.
    """
    if other is not None:
        raise JobError(
            f"APPEND_TO names the feature service '{layer.name()}', and OUTPUT_SERVICE names another.",
            hint="Leave one of them out.",
        )
    parts = QgsProviderRegistry.instance().decodeUri(FEATURE_SERVICE, layer.source())
    url = str(parts.get("url") or "").rstrip("/")
    return ServiceRequest(url=url, field_map=field_map, authcfg=str(parts.get("authcfg") or ""))


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
    if path.exists() and not _is_json(path):
        raise OutputError(
            f"The summary would replace the file '{path}', which is no JSON.",
            hint="Choose another file for SUMMARY_FILE.",
        )
    return path


def _is_json(path: Path) -> bool:
    """Tell whether a file may be an earlier summary: it is empty, or an object of JSON begins in it."""
    try:
        with path.open("rb") as stream:
            start = stream.read(64).lstrip()
    except OSError:
        return False
    return not start or start.startswith(b"{")
