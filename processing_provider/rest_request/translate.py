"""A request of DetectObjectsUsingDeepLearning -> parameters of `kestrel:detectobjects`, which then does the work."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...inference.errors import JobError
from ...inference.models.arguments import parse_arguments
from .context import CONTEXT, Handler, translate_context
from .draft import Draft, feature_class, is_address
from .spatial_reference import crs_text
from .text import Request
from .values import as_boolean, as_number, as_object, as_text, given, refused, unpacked

REQUIRED = ("inputRaster", "model")
INPUT_MEMBERS = ("itemId", "url", "uri", "itemIds", "urls", "uris", "renderingRule", "mosaicRule", "tiled_url")
OUTPUT_MEMBERS = ("itemId", "url", "uri", "serviceProperties", "itemProperties")
MODEL_MEMBERS = ("itemId", "url", "uri")
_DESCRIBED = ("serviceProperties", "itemProperties")
_FEATURES = re.compile(r"/FeatureServer(?:/\d*)?/?(?:\?|$)", re.IGNORECASE)
_NOT_READ = {
    "function": "The url of an image service with that function as a rendering template is read.",
    "images": "Give the images as uris, or make an image service of them.",
    "folderId": "Name the items in that folder as itemIds.",
}


@dataclass(frozen=True)
class Translation:
    """What a request means.

    Attributes:
        values: Parameters of `kestrel:detectobjects`.
        warnings: Sentences about members without effect.
        crs: Texts of coordinate reference systems that QGIS has to know, by the members that name them.
        cell_factor: How many times as large as the raster's the cells are to be, or None.
        members: Names of the members that say something.
        has_messages: The answer shall hold the messages of the run.
    """

    values: Mapping[str, Any]
    warnings: tuple[str, ...]
    crs: Mapping[str, str]
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
            raise refused(name, "is missing", hint or f"Write for example {_EXAMPLES[name]}.")
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
        cell_factor=draft.cell_factor,
        members=tuple(name for name in members if name in MEMBERS),
        has_messages=as_boolean("returnMessages", members.get("returnMessages", True)),
    )


# -- What goes in ------------------------------------------------------------------------------------------------------


def _input_raster(draft: Draft, member: str, value: Any) -> None:
    content = _reference(member, value)
    for name, hint in _NOT_READ.items():
        if name in content:
            raise refused(f"{member}.{name}", "is a form of input that Kestrel does not read", hint)
    draft.tell_unknown(member, content, (*INPUT_MEMBERS, *_DESCRIBED))
    content = _resolved(draft, member, _from_properties(member, content))
    for url in (content.get("url", ""), *content.get("urls", ())):
        if _FEATURES.search(url):
            raise refused(
                member,
                "is a feature service, whose attached images Kestrel does not read",
                "Save the attachments in a folder, and give the folder as uri.",
            )
    source = {name: unpacked(f"{member}.{name}", content[name]) for name in INPUT_MEMBERS if name in content}
    if "tiled_url" in source:
        tiled = source.pop("tiled_url")
        if not source:
            source["url"] = tiled
        else:
            draft.tell(f"{member}.tiled_url", "the pixels themselves are read, not their tiles")
    if not set(source) - {"renderingRule", "mosaicRule"}:
        raise refused(member, "names no raster", f"Write for example {_EXAMPLES[member]}.")
    draft.values["INPUT_SOURCE"] = json.dumps(source, ensure_ascii=False)


def _reference(member: str, value: Any) -> dict[str, Any]:
    """Give the object that a member is, or what a bare address or path stands for."""
    content = unpacked(member, value)
    if isinstance(content, str):
        content = {"url" if is_address(content.strip()) else "uri": content.strip()}
    return given(as_object(member, content, _EXAMPLES[member]))


def _from_properties(member: str, content: dict[str, Any]) -> dict[str, Any]:
    """Give the item and the service that an input is described by, as plain itemId and url."""
    item = as_object(f"{member}.itemProperties", content.get("itemProperties", {}), '{"itemId": "..."}')
    service = as_object(f"{member}.serviceProperties", content.get("serviceProperties", {}), '{"serviceUrl": "..."}')
    stated = given({"itemId": item.get("itemId"), "url": service.get("serviceUrl")})
    return {**stated, **{name: entry for name, entry in content.items() if name not in _DESCRIBED}}


def _resolved(draft: Draft, member: str, content: dict[str, Any]) -> dict[str, Any]:
    """Give the reference with its texts checked, and with paths that the run finds from wherever it starts."""
    result = dict(content)
    for name in ("itemId", "url", "tiled_url"):
        if name in content:
            result[name] = as_text(f"{member}.{name}", content[name])
    if "uri" in content:
        result["uri"] = draft.place(f"{member}.uri", content["uri"])
    for name in ("itemIds", "urls", "uris"):
        if name in content:
            result[name] = _list(draft, f"{member}.{name}", content[name])
    return result


def _list(draft: Draft, member: str, value: Any) -> list[str]:
    entries = unpacked(member, value)
    if not isinstance(entries, list):
        raise refused(member, "is not a list", 'Write for example ["a", "b"].')
    is_uri = member.endswith("uris")
    return [draft.place(member, entry) if is_uri else as_text(member, entry) for entry in entries]


def _model(draft: Draft, member: str, value: Any) -> None:
    content = _reference(member, value)
    named = [name for name in MODEL_MEMBERS if name in content]
    is_definition = any(name in content for name in ("Framework", "ModelType", "ModelFile", "kestrel_definition"))
    if is_definition or not named:
        draft.values["MODEL"] = json.dumps(content, ensure_ascii=False)
        return
    draft.tell_unknown(member, content, MODEL_MEMBERS)
    for name in named[1:]:
        draft.tell(f"{member}.{name}", f"{named[0]} counts")
    entry = _resolved(draft, member, {named[0]: content[named[0]]})
    draft.values["MODEL"] = entry["uri"] if named[0] == "uri" else json.dumps(entry, ensure_ascii=False)


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


# -- What comes out ----------------------------------------------------------------------------------------------------


def _output_objects(draft: Draft, member: str, value: Any) -> None:
    content = _reference(member, value)
    draft.tell_unknown(member, content, OUTPUT_MEMBERS)
    named = [name for name in ("itemId", "url", *_DESCRIBED) if name in content]
    if named:
        if "uri" in content:
            draft.tell(f"{member}.uri", f"{named[0]} counts")
        service = {name: unpacked(f"{member}.{name}", content[name]) for name in named}
        draft.values["OUTPUT_SERVICE"] = json.dumps(service, ensure_ascii=False)
    elif "uri" in content:
        path = draft.place(f"{member}.uri", content["uri"])
        file, table = feature_class(path)
        draft.values["OUTPUT"] = f"ogr:dbname='{file}' table=\"{table}\" (geom)" if table else path
    else:
        raise refused(member, "names no output", f"Write for example {_EXAMPLES[member]}.")


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
    "inputRaster": _input_raster,
    "outputObjects": _output_objects,
    "model": _model,
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

_EXAMPLES = {
    "inputRaster": '{"uri": "/data/ortho.tif"} or {"url": "https://server/arcgis/rest/services/Ortho/ImageServer"}',
    "model": '{"uri": "/models/trees.dlpk"} or {"itemId": "..."}',
    "outputObjects": '{"uri": "/data/trees.gpkg"}',
}


def known_members() -> tuple[str, ...]:
    """Give the path of each member that is known, for the table in the documentation."""
    return (
        *MEMBERS,
        *(f"inputRaster.{name}" for name in (*INPUT_MEMBERS, *_DESCRIBED, *_NOT_READ)),
        *(f"outputObjects.{name}" for name in OUTPUT_MEMBERS),
        *(f"model.{name}" for name in MODEL_MEMBERS),
        *(f"context.{name}" for name in CONTEXT),
    )
