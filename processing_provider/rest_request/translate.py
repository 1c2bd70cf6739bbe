"""A request of DetectObjectsUsingDeepLearning -> parameters of `kestrel:detectobjects`, which then does the work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...inference.errors import JobError
from ...inference.models.arguments import parse_arguments
from .context import CONTEXT, Handler, translate_context
from .draft import Draft
from .sources import (
    DESCRIBED,
    EXAMPLES,
    INPUT_MEMBERS,
    MODEL_MEMBERS,
    NOT_READ,
    OUTPUT_MEMBERS,
    translate_input,
    translate_model,
    translate_output,
)
from .spatial_reference import crs_text
from .text import Request
from .values import as_boolean, as_number, as_object, as_text, given, refused, unpacked

REQUIRED = ("inputRaster", "model")


@dataclass(frozen=True)
class Translation:
    """What a request means.

    Attributes:
        values: Parameters of `kestrel:detectobjects`.
        warnings: Sentences about members without effect.
        crs: Texts of coordinate reference systems that QGIS has to know, by the members that name them.
        services: ArcGIS services that the parameters of these keys stand for: member and URL.
        cell_factor: How many times as large as the raster's the cells are to be, or None.
        members: Names of the members that say something.
        has_messages: The answer shall hold the messages of the run.
    """

    values: Mapping[str, Any]
    warnings: tuple[str, ...]
    crs: Mapping[str, str]
    services: Mapping[str, tuple[str, str]]
    cell_factor: float | None
    members: tuple[str, ...]
    has_messages: bool


def translate(request: Request) -> Translation:
    """Translate a request.

    Raises:
        JobError: a member cannot be understood, or asks for what Kestrel cannot do; names it, with the way out.
    """
    draft, members = Draft(request.folder), given(request.members)
    draft.tell_unknown("", members, MEMBERS)
    for name in REQUIRED:
        if name not in members:
            near = next((found for found in members if found.lower() == name.lower()), "")
            hint = f"Names are written as in the operation: {name}, not {near}." if near else ""
            raise refused(name, "is missing", hint or f"Write for example {EXAMPLES[name]}.")
    # In this order, so that env:outSR counts only where the context has none.
    for name, handler in MEMBERS.items():
        if name in members:
            handler(draft, name, members[name])
    if draft.values.get("MAX_OVERLAP_RATIO") and not draft.values.get("RUN_NMS"):
        draft.tell("maxOverlapRatio", "runNMS is not true")
    return Translation(
        values=draft.values,
        warnings=tuple(draft.warnings),
        crs=draft.crs,
        services=draft.services,
        cell_factor=draft.cell_factor,
        members=tuple(name for name in members if name in MEMBERS),
        has_messages=as_boolean("returnMessages", members.get("returnMessages", True)),
    )


def _model_arguments(draft: Draft, member: str, value: Any) -> None:
    content = unpacked(member, value)
    if isinstance(content, str):
        try:
            content = parse_arguments(content)
        except JobError as error:
            raise refused(member, f"cannot be read: {error.message.rstrip('.')}", error.hint) from error
    arguments = given(as_object(member, content, '{"threshold": 0.5, "padding": 56} or threshold 0.5;padding 56'))
    for name, entry in arguments.items():
        if isinstance(entry, (dict, list)):
            raise refused(f"{member}.{name}", "is no text and no number", f'Write for example {{"{name}": 0.5}}.')
    if arguments:
        draft.values["ARGUMENTS"] = json.dumps(arguments, ensure_ascii=False)


# -- What is found -----------------------------------------------------------------------------------------------------


def _run_nms(draft: Draft, member: str, value: Any) -> None:
    draft.values["RUN_NMS"] = as_boolean(member, value)


def _overlap(draft: Draft, member: str, value: Any) -> None:
    ratio = as_number(member, value)
    if not 0 <= ratio <= 1:
        raise refused(member, "is outside 0 to 1")
    draft.values["MAX_OVERLAP_RATIO"] = ratio


def _field(key: str) -> Handler:
    def name_field(draft: Draft, member: str, value: Any) -> None:
        draft.values[key] = as_text(member, value)

    return name_field


def _all_items(draft: Draft, member: str, value: Any) -> None:
    is_separate = as_boolean(member, value)
    draft.values["PROCESSING_MODE"] = "PROCESS_ITEMS_SEPARATELY" if is_separate else "PROCESS_AS_MOSAICKED_IMAGE"


def _classified_raster(draft: Draft, member: str, value: Any) -> None:
    raise refused(
        member,
        "asks for a classified raster, which only models of the kind PanopticSegmenter make, and Kestrel runs none",
        "Leave it out.",
    )


# -- What belongs to the call ------------------------------------------------------------------------------------------


def _format(draft: Draft, member: str, value: Any) -> None:
    if as_text(member, value).lower() not in ("json", "pjson"):
        draft.tell(member, "the answer is JSON")


def _env_out_crs(draft: Draft, member: str, value: Any) -> None:
    if "OUTPUT_CRS" in draft.values:
        draft.tell(member, "the context's outSR counts")
    else:
        draft.values["OUTPUT_CRS"] = crs_text(draft, member, value)


def _nothing(draft: Draft, member: str, value: Any) -> None:
    """Pass over what is read elsewhere."""


MEMBERS: dict[str, Handler] = {
    "inputRaster": translate_input,
    "outputObjects": translate_output,
    "model": translate_model,
    "modelArguments": _model_arguments,
    "runNMS": _run_nms,
    "confidenceScoreField": _field("CONFIDENCE_SCORE_FIELD"),
    "classValueField": _field("CLASS_VALUE_FIELD"),
    "maxOverlapRatio": _overlap,
    "processAllRasterItems": _all_items,
    "context": translate_context,
    "env:outSR": _env_out_crs,
    "outputRaster": _classified_raster,
    "outputClassifiedRaster": _classified_raster,
    "f": _format,
    "returnMessages": _nothing,
    "token": _nothing,
}
"""What becomes of each member that the operation knows; a token has been refused before."""


def known_members() -> tuple[str, ...]:
    """Give the path of each member that is known, for the table in the documentation."""
    return (
        *MEMBERS,
        *(f"inputRaster.{name}" for name in (*INPUT_MEMBERS, *DESCRIBED, *NOT_READ)),
        *(f"outputObjects.{name}" for name in OUTPUT_MEMBERS),
        *(f"model.{name}" for name in MODEL_MEMBERS),
        *(f"context.{name}" for name in CONTEXT),
    )
