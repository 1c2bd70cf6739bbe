"""What a request names - the raster, the model, the output - in the forms itemId, url and uri."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .draft import Draft, feature_class, is_address
from .values import as_object, as_text, given, refused, unpacked

INPUT_MEMBERS = (
    "itemId", "url", "uri", "itemIds", "urls", "uris", "renderingRule", "mosaicRule", "bandIds", "time", "tiled_url",
)  # fmt: skip
_RULES = ("renderingRule", "mosaicRule", "bandIds", "time")
OUTPUT_MEMBERS = ("itemId", "url", "uri", "serviceProperties", "itemProperties")
MODEL_MEMBERS = ("itemId", "url", "uri")
DESCRIBED = ("serviceProperties", "itemProperties")
_FEATURES = re.compile(r"/FeatureServer(?:/\d*)?/?(?:\?|$)", re.IGNORECASE)
NOT_READ = {
    "function": "The url of an image service with that function as a rendering template is read.",
    "images": "Give the images as uris, or make an image service of them.",
    "folderId": "Name the items in that folder as itemIds.",
}
_DEFINITION = ("Framework", "ModelType", "ModelFile", "kestrel_definition")
"""Members by which a definition is known that is given instead of its address."""
EXAMPLES = {
    "inputRaster": '{"uri": "/data/ortho.tif"} or {"url": "https://server/arcgis/rest/services/Ortho/ImageServer"}',
    "model": '{"uri": "/models/trees.dlpk"} or {"itemId": "..."}',
    "outputObjects": '{"uri": "/data/trees.gpkg"}',
}


def translate_input(draft: Draft, member: str, value: Any) -> None:
    """Translate inputRaster.

    Raises:
        JobError: it names no raster, or one that Kestrel cannot read.
    """
    content = _reference(member, value)
    for name, hint in NOT_READ.items():
        if name in content:
            raise refused(f"{member}.{name}", "is a form of input that Kestrel does not read", hint)
    draft.tell_unknown(member, content, (*INPUT_MEMBERS, *DESCRIBED))
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
    if not set(source) - set(_RULES):
        raise refused(member, "names no raster", f"Write for example {EXAMPLES[member]}.")
    draft.values["INPUT_SOURCE"] = json.dumps(source, ensure_ascii=False)


def addresses(values: Mapping[str, Any], portal: str) -> dict[str, tuple[str, ...]]:
    """Give the addresses at which each member is looked up, without their queries.

    Args:
        values: The parameters that a request was translated into.
        portal: The portal of items and new layers.
    """
    found = {}
    for member, key in (("inputRaster", "INPUT_SOURCE"), ("model", "MODEL"), ("outputObjects", "OUTPUT_SERVICE")):
        text = values.get(key, "")
        content = json.loads(text) if text.startswith("{") else {}
        urls = [content.get("url"), *(content.get("urls", ()) if key == "INPUT_SOURCE" else ())]
        if {"itemId", "itemIds", *DESCRIBED} & set(content):
            urls.append(portal)
        found[member] = tuple(url.partition("?")[0] for url in urls if isinstance(url, str) and is_address(url))
    return found


def _reference(member: str, value: Any) -> dict[str, Any]:
    """Give the object that a member is, or what a bare address or path stands for."""
    content = unpacked(member, value)
    if isinstance(content, str):
        content = {"url" if is_address(content.strip()) else "uri": content.strip()}
    return given(as_object(member, content, EXAMPLES[member]))


def _from_properties(member: str, content: dict[str, Any]) -> dict[str, Any]:
    """Give the item and the service that an input is described by, as plain itemId and url."""
    item = as_object(f"{member}.itemProperties", content.get("itemProperties", {}), '{"itemId": "..."}')
    service = as_object(f"{member}.serviceProperties", content.get("serviceProperties", {}), '{"serviceUrl": "..."}')
    stated = given({"itemId": item.get("itemId"), "url": service.get("serviceUrl")})
    return {**stated, **{name: entry for name, entry in content.items() if name not in DESCRIBED}}


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


def translate_model(draft: Draft, member: str, value: Any) -> None:
    """Translate model.

    Raises:
        JobError: it cannot be understood.
    """
    content = _reference(member, value)
    named = [name for name in MODEL_MEMBERS if name in content]
    if not named or set(_DEFINITION) & set(content):
        draft.values["MODEL"] = json.dumps(unpacked(member, value), ensure_ascii=False)
        return
    draft.tell_unknown(member, content, MODEL_MEMBERS)
    for name in named[1:]:
        draft.tell(f"{member}.{name}", f"{named[0]} counts")
    entry = _resolved(draft, member, {named[0]: content[named[0]]})
    draft.values["MODEL"] = entry["uri"] if named[0] == "uri" else json.dumps(entry, ensure_ascii=False)


def translate_output(draft: Draft, member: str, value: Any) -> None:
    """Translate outputObjects.

    Raises:
        JobError: it names no output.
    """
    content = _reference(member, value)
    draft.tell_unknown(member, content, OUTPUT_MEMBERS)
    named = [name for name in ("itemId", "url", *DESCRIBED) if name in content]
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
        raise refused(member, "names no output", f"Write for example {EXAMPLES[member]}.")
