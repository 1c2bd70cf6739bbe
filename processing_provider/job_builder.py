"""QGIS parameters -> DetectionJob: the only place where QGIS's values become the core's.

`build_plan` runs twice, in checkParameterValues to refuse what cannot work and in prepareAlgorithm for the run itself,
so that both say the same. It is quick: the slow parts (hash of the weights, union of the mask) are `complete_job`.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsCoordinateTransformContext,
    QgsCsException,
    QgsMapLayer,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingFeatureSource,
    QgsRectangle,
    QgsVariantUtils,
)

from ..inference.errors import JobError, ModelPackageError
from ..inference.job import DetectionJob
from ..inference.models.arguments import parse_arguments, resolve_arguments
from ..inference.models.definition import ModelDefinition
from ..inference.models.package import ModelPackage, open_package
from . import parameters as keys
from .code_consent import allowed_code
from .destination import check_destination, output_file
from .drawn_source import drawn_raster, take_drawn
from .feature_sink import FieldNames
from .fit_check import fit_warnings
from .interpreter import find_interpreter
from .mask import dissolve
from .picture_plan import settle_picture
from .picture_source import take_source
from .pixel_server import PixelSource
from .raster_source import SourceRaster, check_bands, source_raster

JSON_KEYS = (keys.MODEL, keys.ARGUMENTS, keys.OBJECTS_OF_INTEREST, keys.ALLOW_PACKAGE_CODE)
"""Text parameters that programs may also give as a JSON value."""


@dataclass(frozen=True)
class DetectionPlan:
    """A checked job, and what QGIS needs besides it. Nothing in it is bound to a thread."""

    job: DetectionJob
    interpreter: str
    package: ModelPackage
    raster: SourceRaster
    fields: FieldNames
    output: Path | None
    """The file that is written; None: the output is no file."""
    mask: QgsProcessingFeatureSource | None
    transforms: QgsCoordinateTransformContext
    warnings: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    """What the run will do, and nobody need do."""


@dataclass(frozen=True)
class ParameterReader:
    """The parameters of one run, and what QGIS needs to read them."""

    algorithm: QgsProcessingAlgorithm
    parameters: dict[str, Any]
    context: QgsProcessingContext

    def is_given(self, key: str) -> bool:
        """Tell whether a parameter has a value."""
        value = self.parameters.get(key)
        return not (QgsVariantUtils.isNull(value) or value == "")

    def text(self, key: str) -> str:
        """Give a text; a JSON value, which parameterAsString would turn into '', becomes JSON text."""
        value = self.parameters.get(key)
        if is_json(value):
            return as_json_text(value)
        if isinstance(value, os.PathLike):
            return os.fsdecode(value)
        return self.algorithm.parameterAsString(self.parameters, key, self.context).strip()

    def number(self, key: str) -> float | None:
        """Give a number, or None where there is none."""
        if not self.is_given(key):
            return None
        return self.algorithm.parameterAsDouble(self.parameters, key, self.context)


def is_json(value: Any) -> bool:
    """Tell whether a parameter was given as a JSON object or list instead of a text."""
    return isinstance(value, (dict, list))


def as_json_text(value: Any) -> str:
    """Give a JSON value as text."""
    return json.dumps(value, ensure_ascii=False)


def build_plan(
    algorithm: QgsProcessingAlgorithm, parameters: dict[str, Any], context: QgsProcessingContext
) -> DetectionPlan:
    """Read and check all parameters.

    Raises:
        InferenceError: something that cannot work, with the reason and the way out.
    """
    reader = ParameterReader(algorithm, parameters, context)
    raster = _described_raster(reader)
    reference = model_reference(reader.text(keys.MODEL))
    package = open_package(reference)
    check_bands(raster, package.definition)
    arguments = parse_arguments(reader.text(keys.ARGUMENTS))
    resolved = resolve_arguments(package.definition, arguments).values
    extent, warnings = search_extent(reader, raster)
    mask, cell_size, remarks = _mask_source(reader), reader.number(keys.CELL_SIZE), tuple[str, ...]()
    if raster.picture is not None:
        area = _searched_area(raster, extent, mask, context.transformContext())
        raster, remark = settle_picture(raster, raster.picture, package.definition, cell_size, area)
        cell_size, remarks = raster.cell_size, (remark,)
    fields = FieldNames(reader.text(keys.CONFIDENCE_SCORE_FIELD), reader.text(keys.CLASS_VALUE_FIELD))
    output = output_file(parameters.get(keys.OUTPUT))
    if output is not None:
        output = check_destination(output, fields, context.project())
    job = DetectionJob(
        job_id=new_job_id(),
        rasters=(raster.item,),
        model=reference,
        arguments=arguments,
        objects_of_interest=objects_of_interest(reader.text(keys.OBJECTS_OF_INTEREST), package.definition),
        extent=extent,
        cell_size=cell_size,
        allowed_code=allowed_code(package, reader.text(keys.ALLOW_PACKAGE_CODE)),
        **_run_options(reader),
    )
    return DetectionPlan(
        job=job,
        interpreter=find_interpreter(),
        package=package,
        raster=raster,
        fields=fields,
        output=output,
        mask=mask,
        transforms=context.transformContext(),
        warnings=(*warnings, *fit_warnings(package.definition, raster, resolved.get("stretch", "model"))),
        remarks=remarks,
    )


def _searched_area(
    raster: SourceRaster,
    extent: tuple[float, float, float, float] | None,
    mask: QgsProcessingFeatureSource | None,
    transforms: QgsCoordinateTransformContext,
) -> QgsRectangle | None:
    """Give a rectangle around what is searched, in the raster's coordinate reference system; None: all of it.

    Raises:
        JobError: nothing is.
    """
    area = None if extent is None else QgsRectangle(*extent)
    if mask is not None:
        try:
            around = QgsCoordinateTransform(mask.sourceCrs(), raster.crs, transforms).transformBoundingBox(
                mask.sourceExtent()
            )
        except QgsCsException as error:
            raise JobError(f"The mask cannot be brought to the raster's place: {error}.") from error
        area = around if area is None else area.intersect(around)
    if area is not None and not (area.intersects(raster.extent) and area.width() > 0 and area.height() > 0):
        raise JobError(
            f"The mask lies outside the raster '{raster.name}', or outside the extent.",
            hint="Check the coordinate reference systems of the layers.",
        )
    return area


def complete_job(plan: DetectionPlan) -> DetectionJob:
    """Give the job with the parts that take time: the model's hash and the mask.

    Raises:
        InferenceError: the weights cannot be read, or the mask is empty.
    """
    mask = None if plan.mask is None else _mask_wkb(plan.mask, plan)
    return replace(plan.job, model_sha256=plan.package.sha256(plan.job.allowed_code), mask_wkb=mask)


def _mask_wkb(source: QgsProcessingFeatureSource, plan: DetectionPlan) -> str:
    mask = dissolve(source, plan.raster.crs, plan.transforms)
    if not mask.intersects(plan.raster.extent):
        raise JobError(
            f"The mask lies outside the raster '{plan.raster.name}'.",
            hint="Check the coordinate reference systems of both layers.",
        )
    return bytes(mask.asWkb()).hex()


def new_job_id() -> str:
    """Give a name for a run that sorts by time and that no other run has."""
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def take_sources(
    algorithm: QgsProcessingAlgorithm,
    parameters: dict[str, Any],
    context: QgsProcessingContext,
    plan: DetectionPlan,
) -> dict[str, PixelSource]:
    """Take from the layers what reads their pixels during the run; in the thread that the layers belong to.

    Returns:
        `RasterItem.source` -> what reads it, for those that only QGIS can read.
    """
    reader, raster, facts = ParameterReader(algorithm, parameters, context), plan.raster, plan.raster.picture
    if facts is None:
        return {}
    if not facts.is_drawn:
        return {facts.reference: take_source(_raster_layer(reader), facts)}
    layers = _layers_to_draw(reader) or [_raster_layer(reader)]
    return {facts.reference: take_drawn(facts, raster.name, layers, raster.crs, plan.transforms)}


def _described_raster(reader: ParameterReader) -> SourceRaster:
    """Describe what is searched: a raster, or what QGIS draws of one layer or several."""
    layers = _layers_to_draw(reader)
    if not layers and not reader.algorithm.parameterAsBoolean(reader.parameters, keys.AS_DISPLAYED, reader.context):
        return source_raster(_raster_layer(reader))
    layer = _raster_layer(reader) if reader.is_given(keys.INPUT) or not layers else None
    return drawn_raster(layer, layers, reader.context.transformContext())


def _layers_to_draw(reader: ParameterReader) -> list[QgsMapLayer]:
    """Give the layers to draw, the topmost first.

    Raises:
        JobError: one cannot be found.
    """
    if not reader.is_given(keys.RENDER_LAYERS):
        return []
    layers = reader.algorithm.parameterAsLayerList(reader.parameters, keys.RENDER_LAYERS, reader.context)
    if any(layer is None or not layer.isValid() for layer in layers):
        raise JobError("One of the layers to draw cannot be opened.", hint="Look at RENDER_LAYERS.")
    return list(layers)


def _raster_layer(reader: ParameterReader) -> Any:
    layer = reader.algorithm.parameterAsRasterLayer(reader.parameters, keys.INPUT, reader.context)
    if layer is None:
        raise JobError(reader.algorithm.invalidRasterError(reader.parameters, keys.INPUT))
    return layer


def model_reference(text: str) -> str:
    """Give a model's path as any process finds it, or the text of its definition.

    Raises:
        ModelPackageError: the path begins with a home that does not exist.
    """
    if not text or text.startswith("{"):
        return text
    try:
        # The worker has a working directory of its own, so a relative path must not reach it.
        return str(Path(text).expanduser().absolute())
    except RuntimeError as error:
        raise ModelPackageError(
            f"The model '{text}' lies in the home of a user that this computer does not know.",
            hint="Write the whole path.",
        ) from error


def objects_of_interest(text: str, definition: ModelDefinition) -> tuple[str, ...]:
    """Read class names, `Palm;House` or a JSON list.

    Raises:
        JobError: a class that the model does not have, or not a list.
    """
    if text.startswith("["):
        try:
            names = [str(name) for name in json.loads(text)]
        except ValueError as error:
            raise JobError(
                f"The objects of interest are not a valid JSON list: {error}.", hint="Write for example Palm;House."
            ) from error
    else:
        names = [name.strip() for name in text.split(";") if name.strip()]
    unknown = [name for name in names if definition.class_named(name) is None]
    if unknown:
        known = "; ".join(item.name for item in definition.classes)
        raise JobError(
            f"The model has no class named {', '.join(repr(name) for name in unknown)}.",
            hint=f"Its classes are: {known}.",
        )
    return tuple(dict.fromkeys(names))


def search_extent(
    reader: ParameterReader, raster: SourceRaster
) -> tuple[tuple[float, float, float, float] | None, tuple[str, ...]]:
    """Give the extent in the raster's coordinate reference system, cut to the raster, and what to tell about it.

    Raises:
        JobError: it is empty or does not meet the raster.
    """
    if not reader.is_given(keys.EXTENT):
        return None, ()
    wanted = reader.algorithm.parameterAsExtent(reader.parameters, keys.EXTENT, reader.context, raster.crs)
    if not (wanted.width() > 0 and wanted.height() > 0):
        raise JobError("The extent is empty.", hint="Draw a larger one, or leave it empty to search the whole raster.")
    common = wanted.intersect(raster.extent)
    if not (common.width() > 0 and common.height() > 0):
        raise JobError(
            f"The extent lies outside the raster '{raster.name}'.",
            hint=f"The raster covers {_described(raster.extent, raster.crs)}.",
        )
    warnings = () if raster.extent.contains(wanted) else ("The extent reaches beyond the raster and was cut to it.",)
    return (common.xMinimum(), common.yMinimum(), common.xMaximum(), common.yMaximum()), warnings


def _described(extent: QgsRectangle, crs: QgsCoordinateReferenceSystem) -> str:
    return f"{extent.toString(2)} in {crs.userFriendlyIdentifier()}"


def _mask_source(reader: ParameterReader) -> QgsProcessingFeatureSource | None:
    if not reader.is_given(keys.MASK):
        return None
    source = reader.algorithm.parameterAsSource(reader.parameters, keys.MASK, reader.context)
    if source is None:
        raise JobError(reader.algorithm.invalidSourceError(reader.parameters, keys.MASK))
    if source.featureCount() == 0:
        raise JobError("The mask holds no polygon.", hint="Choose another layer, or leave the mask empty.")
    return source


def _run_options(reader: ParameterReader) -> dict[str, Any]:
    algorithm, parameters, context = reader.algorithm, reader.parameters, reader.context
    gpu_id = reader.number(keys.GPU_ID)
    return {
        "run_nms": algorithm.parameterAsBoolean(parameters, keys.RUN_NMS, context),
        "max_overlap_ratio": algorithm.parameterAsDouble(parameters, keys.MAX_OVERLAP_RATIO, context),
        "processor": algorithm.parameterAsEnumString(parameters, keys.PROCESSOR_TYPE, context).lower(),
        "gpu_id": None if gpu_id is None else int(gpu_id),
        "parallel_processing_factor": reader.text(keys.PARALLEL_PROCESSING_FACTOR),
    }
