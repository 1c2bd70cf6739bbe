"""QGIS parameters -> DetectionJob: the only place where QGIS's values become the core's.

The parameters are read twice, in checkParameterValues to refuse what cannot work and in prepareAlgorithm for the run
itself, so that both say the same. `make_draft` is quick and needs no raster. `with_rasters` looks at the rasters: also
quick where these are few and at hand, and otherwise done in the run's own thread. The slow parts (hash of the weights,
union of the mask) are `complete_job`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransformContext,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingFeatureSource,
    QgsProcessingUtils,
    QgsRasterLayer,
    QgsRectangle,
)

from ..inference.errors import JobError, ModelPackageError
from ..inference.job import DetectionJob, RasterItem
from ..inference.models.arguments import parse_arguments, resolve_arguments
from ..inference.models.definition import ModelDefinition
from ..inference.models.package import ModelPackage, open_package
from ..inference.net.addresses import origin_of
from ..inference.net.http import HttpClient, make_client
from ..inference.net.item_files import Progress
from ..inference.net.limits import FIRST_CONTACT
from ..inference.net.portal import Reference, let_in, portal_url
from ..inference.secrets import Secrets
from . import parameters as keys
from .bands import chosen_bands, with_bands
from .cell_size import chosen_crs, snap_point, wanted_cell_size
from .code_consent import allowed_code
from .destination import check_destination, output_file
from .feature_sink import FieldNames
from .feedback import is_main_thread
from .fit_check import fit_warnings
from .inputs import InputList, InputRasters, Told, always, check_all_bands, input_list, opened
from .interpreter import find_interpreter
from .mask import dissolve
from .model_source import named_model
from .outputs.targets import Targets, check_place, read_targets, service_only
from .parameter_reader import ParameterReader
from .picture_plan import searched_area, settle_pictures
from .raster_source import SourceRaster
from .run_secrets import signed_in
from .search_extent import search_extent

_WKT = QgsCoordinateReferenceSystem.WktVariant.WKT2_2019


_NO_SECRETS = Secrets()


@dataclass(frozen=True)
class DetectionPlan:
    """A checked job, and what QGIS needs besides it. Nothing in it is bound to a thread."""

    job: DetectionJob
    interpreter: str
    package: ModelPackage
    raster: SourceRaster
    """What stands for all rasters: the first one, with the extent of all."""
    fields: FieldNames
    output: Path | None
    """The file that is written; None: the output is no file."""
    targets: Targets
    mask: QgsProcessingFeatureSource | None
    output_crs: QgsCoordinateReferenceSystem
    transforms: QgsCoordinateTransformContext
    warnings: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    """What the run will do, and nobody need do."""
    secrets: Secrets = field(default_factory=Secrets, repr=False)
    """What signs in to the servers of its rasters."""


@dataclass(frozen=True)
class PlanDraft:
    """What can be said of a run before its rasters are looked at."""

    inputs: InputList
    package: ModelPackage
    job: DetectionJob
    """The job, with rasters that are only named."""
    interpreter: str
    arguments: Mapping[str, Any]
    """Arguments of the model, with its defaults."""
    fields: FieldNames
    targets: Targets
    output: Path | None
    """As in the plan."""
    mask: QgsProcessingFeatureSource | None
    transforms: QgsCoordinateTransformContext


def make_draft(reader: ParameterReader) -> PlanDraft:
    """Read and check all that does not depend on what the rasters are.

    Raises:
        InferenceError: something that cannot work, with the reason and the way out.
    """
    inputs = input_list(reader)
    reference = model_reference(reader.text(keys.MODEL))
    package = open_package(reference)
    arguments = parse_arguments(reader.text(keys.ARGUMENTS))
    resolved = resolve_arguments(package.definition, arguments).values
    fields = FieldNames(reader.text(keys.CONFIDENCE_SCORE_FIELD), reader.text(keys.CLASS_VALUE_FIELD))
    job = DetectionJob(
        job_id=new_job_id(),
        rasters=inputs.items,
        processing_mode="items" if inputs.is_separate else "mosaic",
        model=reference,
        arguments=arguments,
        objects_of_interest=objects_of_interest(reader.text(keys.OBJECTS_OF_INTEREST), package.definition),
        allowed_code=allowed_code(package, reader.text(keys.ALLOW_PACKAGE_CODE)),
        **_run_options(reader),
    )
    targets = read_targets(reader, fields, package.definition, resolved)
    return PlanDraft(
        inputs=inputs,
        package=package,
        job=job,
        interpreter=find_interpreter(),
        arguments=resolved,
        fields=fields,
        targets=targets,
        output=_checked_output(targets, fields, reader),
        mask=_mask_source(reader),
        transforms=reader.context.transformContext(),
    )


def build_plan(
    algorithm: QgsProcessingAlgorithm, parameters: dict[str, Any], context: QgsProcessingContext
) -> DetectionPlan:
    """Read and check all parameters, and look at all rasters, however long that takes.

    Raises:
        InferenceError: something that cannot work, with the reason and the way out.
    """
    reader = ParameterReader(algorithm, parameters, context)
    draft = make_draft(reader)
    return with_rasters(draft, reader, secrets=signed_in(draft.inputs, None, reader))


def remote_model(reader: ParameterReader) -> Reference | None:
    """Give the portal's item that MODEL names; None where the model is at hand.

    Raises:
        InferenceError: MODEL names something else than an item.
    """
    found = named_model(reader.text(keys.MODEL), reader.text(keys.PORTAL))
    return found if found is not None and found.kind == "item" else None


def check_without_model(reader: ParameterReader) -> None:
    """Check what can be checked before the model is downloaded.

    Raises:
        InferenceError: something that cannot work, with the reason and the way out.
    """
    input_list(reader)
    parse_arguments(reader.text(keys.ARGUMENTS))
    fields = FieldNames(reader.text(keys.CONFIDENCE_SCORE_FIELD), reader.text(keys.CLASS_VALUE_FIELD))
    _checked_output(service_only(reader), fields, reader)
    DetectionJob(new_job_id(), (RasterItem("gdal", ""),), "", **_run_options(reader))
    find_interpreter()


def _checked_output(targets: Targets, fields: FieldNames, reader: ParameterReader) -> Path | None:
    """Give the file of the new layer, tried out; None where there is none."""
    output = output_file(targets.layer)
    if output is None:
        return None
    # The project's layers belong to the main thread, which has looked at them when the parameters were checked.
    return check_destination(output, fields, reader.context.project() if is_main_thread() else None)


def with_rasters(
    draft: PlanDraft,
    reader: ParameterReader,
    told: Told = always,
    secrets: Secrets = _NO_SECRETS,
    progress: Progress | None = None,
) -> DetectionPlan:
    """Look at the rasters, and check what depends on them.

    Args:
        draft: The rest.
        reader: The parameters.
        told: See `inputs.opened`.
        secrets: See `signed_in`.
        progress: Told the bytes of a download that are there, and of all where that is known.

    Raises:
        InferenceError: something that cannot work, with the reason and the way out.
    """
    inputs, secrets = _looked_at(draft, reader, told, secrets, progress)
    raster = inputs.whole
    bands = chosen_bands(reader.text(keys.BANDS), raster, draft.package.definition)
    definition = with_bands(draft.package.definition, bands)
    check_all_bands(inputs, definition)
    extent, warnings = search_extent(reader, raster)
    area = raster.extent if extent is None else QgsRectangle(*extent)
    cell_size, remarks = wanted_cell_size(reader, raster, area), tuple[str, ...]()
    if inputs.any_by_qgis:
        searched = searched_area(raster, extent, draft.mask, draft.transforms)
        inputs, remarks = settle_pictures(inputs, definition, cell_size, searched, draft.transforms)
        raster = inputs.whole
        cell_size = raster.cell_size if raster.by_qgis is not None and not inputs.is_separate else cell_size
    output_crs = chosen_crs(reader, raster) or raster.crs
    targets = draft.targets
    check_place(targets, raster.known_crs if raster.is_picture else output_crs, draft.output)
    job = replace(
        draft.job,
        rasters=inputs.items,
        crs_wkt=raster.crs.toWkt(_WKT) if inputs.is_separate and not raster.is_picture else "",
        extent=extent,
        cell_size=cell_size,
        snap=snap_point(reader, raster),
        bands=bands,
    )
    return DetectionPlan(
        job=job,
        interpreter=draft.interpreter,
        package=draft.package,
        raster=raster,
        fields=draft.fields,
        output=draft.output,
        targets=targets,
        mask=draft.mask,
        output_crs=output_crs,
        transforms=draft.transforms,
        secrets=secrets,
        warnings=(
            *warnings,
            *targets.warnings,
            *fit_warnings(definition, raster, draft.arguments.get("stretch", "model")),
        ),
        remarks=(
            *remarks,
            *(f"The raster '{name}' is given more than once, and is searched once." for name in draft.inputs.repeated),
        ),
    )


def _looked_at(
    draft: PlanDraft, reader: ParameterReader, told: Told, secrets: Secrets, progress: Progress | None
) -> tuple[InputRasters, Secrets]:
    """Look at the rasters; give them, and what the worker has to show to their servers."""
    if not draft.inputs.servers:
        return opened(draft.inputs, draft.transforms, None, told, progress), secrets
    client = make_client(secrets, limits=FIRST_CONTACT, is_cancelled=lambda: not told(0, 0))
    try:
        portal = portal_url(reader.text(keys.PORTAL))
        owners = {server.address: portal for server in draft.inputs.servers if server.reference.kind == "url"}
        for address in owners:
            let_in(client, portal, address)
        inputs = opened(draft.inputs, draft.transforms, client, told, progress)
        return inputs, _shared(secrets, client, {**owners, **inputs.owners})
    finally:
        client.close()


def _shared(secrets: Secrets, client: HttpClient, owners: Mapping[str, str]) -> Secrets:
    """Add the sign-in of portals for the servers that belong to them, where `service_of` found that they do."""
    known = {entry["origin"]: entry["headers"] for entry in secrets.credentials}
    for url, portal in owners.items():
        origin, headers = origin_of(url), known.get(origin_of(portal), {})
        if origin not in known and client.signs(url):
            known[origin] = {name: value for name, value in headers.items() if value.lower().startswith("bearer ")}
    return replace(
        secrets, credentials=tuple({"origin": origin, "headers": headers} for origin, headers in known.items())
    )


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
    return f"{datetime.now():%Y%m%d-%H%M%S}-{token_hex(3)}"


def model_reference(text: str) -> str:
    """Give a model's path as any process finds it, or the text of its definition.

    Raises:
        ModelPackageError: the path begins with a home that does not exist, or it is not at hand.
    """
    named = named_model(text)
    if named is not None and named.kind == "item":
        raise ModelPackageError(
            f"The model is the portal's item {named.value}, which is downloaded when a detection begins.",
            hint="To look at it before, download it and give its path.",
        )
    text = text if named is None else named.value
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


def check_mask(reader: ParameterReader) -> None:
    """Refuse a raster as mask: QGIS would only say that it cannot be found.

    Raises:
        JobError: it is one.
    """
    value = reader.parameters.get(keys.MASK)
    kind = QgsProcessingUtils.LayerHint.UnknownType
    layer = (
        QgsProcessingUtils.mapLayerFromString(value, reader.context, True, kind) if isinstance(value, str) else value
    )
    if isinstance(layer, QgsRasterLayer):
        raise JobError(
            "The mask is a raster, and Kestrel searches inside polygons.",
            hint="Turn it into polygons first with Raster > Conversion > Polygonize, and keep those of the value that "
            "stands for the searched area.",
        )


def _mask_source(reader: ParameterReader) -> QgsProcessingFeatureSource | None:
    if not reader.is_given(keys.MASK):
        return None
    check_mask(reader)
    source = reader.algorithm.parameterAsSource(reader.parameters, keys.MASK, reader.context)
    if source is None:
        raise JobError(reader.algorithm.invalidSourceError(reader.parameters, keys.MASK))
    if source.featureCount() == 0:
        raise JobError("The mask holds no polygon.", hint="Choose another layer, or leave the mask empty.")
    return source


def _run_options(reader: ParameterReader) -> dict[str, Any]:
    algorithm, parameters, context = reader.algorithm, reader.parameters, reader.context
    gpu_id = reader.number(keys.GPU_ID)
    resampling = reader.choice(keys.RESAMPLING).lower()
    return {
        "run_nms": reader.flag(keys.RUN_NMS),
        "max_overlap_ratio": algorithm.parameterAsDouble(parameters, keys.MAX_OVERLAP_RATIO, context),
        "resampling": "auto" if resampling == keys.RESAMPLINGS[0].lower() else resampling,
        "processor": reader.choice(keys.PROCESSOR_TYPE).lower(),
        "gpu_id": None if gpu_id is None else int(gpu_id),
        "max_tiles": algorithm.parameterAsInt(parameters, keys.MAX_TILES, context),
        "plan_only": reader.flag(keys.PLAN_ONLY),
        "parallel_processing_factor": reader.text(keys.PARALLEL_PROCESSING_FACTOR),
    }
