"""What a model package is, as plain JSON values: for kestrel:describemodel, the dialog's panel and other programs.

Everything in a description comes from the package and may hold anything: who shows it escapes it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InferenceError
from .arguments import ArgumentSpec, argument_specs
from .definition import InputSpec, ModelDefinition
from .definition_json import definition_to_json
from .emd_text import read_emd
from .fit_rules import expected_band_names, expected_values, stretch_text
from .package import FolderMembers, ModelPackage, ZipMembers, locate_definition
from .program import program_files, program_sha256

SCHEMA = 1
MAX_LICENSE = 20_000
_MOST_FILES = 1000
_MOST_INFO_BYTES = 2**18
_LICENSE_FILE = re.compile(r"(^|/)(licen[cs]e|copying)(\.(txt|md))?$", re.IGNORECASE)
_CARD_FILE = re.compile(r"(^|/)(model[_ -]?card|card|readme|model[_ -]?metrics)[^/]*\.(md|txt|html?)$", re.IGNORECASE)
_IMAGE_FILE = re.compile(r"\.(png|jpe?g|gif)$", re.IGNORECASE)
_ITEM_INFO = re.compile(r"(^|/)esriinfo/(iteminfo|metadata/metadata)\.xml$", re.IGNORECASE)
_ITEM_LICENSE = ("licenseinfo", "uselimit")
"""Elements of an item's description that hold its licence, in lower case."""
_TAG = re.compile(r"<[^<>]*>")
_PROGRAM = (".py", ".pyc", ".pyd", ".so", ".dll")

KINDS = {
    "onnx": "ONNX Runtime",
    "torchvision": "torchvision",
    "arcgis": "arcgis.learn, built by Kestrel",
    "tensorflow": "TensorFlow (optional library)",
    "python": "a program of its own",
    "torchscript": "TorchScript, a program",
    "torch_export": "PyTorch, an exported program",
    "transformers": "Hugging Face Transformers (optional library)",
}
"""What runs a model of each kind."""


def describe_package(package: ModelPackage) -> dict[str, Any]:
    """Describe a package.

    Returns:
        JSON values; what the package does not tell is empty or null.

    Raises:
        ModelPackageError: its files cannot be read.
    """
    definition = package.definition
    described = describe_definition(definition)
    files, code = package_files(package), describe_code(package)
    info = package.info_files()
    license_text = definition.license or _license_of(package, info)
    return {
        **described,
        "license": license_text[:MAX_LICENSE],
        "code": code,
        "cards": [name for name in info if _CARD_FILE.search(name)],
        "thumbnails": [name for name in info if _IMAGE_FILE.search(name)],
        "sha256": package.sha256(code["sha256"]),
        "files": files,
        "definition": _definition(package),
    }


def _definition(package: ModelPackage) -> dict[str, Any] | None:
    """Give Kestrel's own definition of the model; None where it has no words for it."""
    is_emd = package.definition.kind == "python" and "emd" not in package.definition.options
    try:
        emd = read_emd(package.definition_bytes, "of the package").content if is_emd else None
        return definition_to_json(package.definition, emd)
    except InferenceError:
        return None


def describe_definition(definition: ModelDefinition) -> dict[str, Any]:
    """Describe what a definition says; its files are not looked at."""
    facts = dict(definition.facts)
    return {
        "kestrel_description": SCHEMA,
        "name": definition.name,
        "version": definition.version,
        "description": definition.description,
        "license": definition.license,
        "family": family_of(definition),
        "backbone": str(facts.pop("backbone", "") or ""),
        "framework": str(facts.pop("framework", "") or ""),
        "model_type": str(facts.pop("model_type", "") or ""),
        "arcgis_learn_version": str(facts.pop("arcgis_learn_version", "") or ""),
        "kind": definition.kind,
        "run_by": KINDS.get(definition.kind, definition.kind),
        "geometry": definition.geometry,
        "weights": definition.weights,
        "classes": [
            {"value": item.value, "name": item.name, "color": list(item.color)} for item in definition.classes
        ],
        "bands": [_band(band, name) for band, name in zip(definition.input.bands, expected_band_names(definition))],
        "normalisation": normalisation_text(definition.input),
        "input": {
            "scale": list(definition.input.scale),
            "mean": list(definition.input.mean),
            "std": list(definition.input.std),
            "values": _pair(expected_values(definition.input)),
        },
        "tile": {
            "size": definition.tile.size,
            "is_variable": definition.tile.is_variable,
            "padding": _padding(definition),
        },
        "cell_size": None if definition.cell_size is None else {
            "min": definition.cell_size.minimum,
            "max": definition.cell_size.maximum,
            "wkid": definition.cell_size.wkid,
            **({"read_at": definition.cell_size.read_at} if definition.cell_size.read_at else {}),
        },
        "arguments": [_argument(spec) for spec in _specs(definition)],
        "metrics": dict(facts.pop("metrics", {}) or {}),
        "notes": list(definition.notes),
        "facts": {name: value for name, value in facts.items() if name not in ("family", "band_names")},
    }  # fmt: skip


def family_of(definition: ModelDefinition) -> str:
    """Give what kind of network a model is, in one word or two."""
    stated = str(definition.facts.get("family", "") or "")
    options: Mapping[str, Any] = definition.options
    return stated or str(options.get("family") or options.get("architecture") or options.get("head") or "")


def _band(band: Any, name: str) -> dict[str, Any]:
    return {"number": band + 1 if isinstance(band, int) else None, "name": name}


def _pair(values: tuple[float, float] | None) -> list[float] | None:
    return None if values is None else list(values)


def _padding(definition: ModelDefinition) -> Any:
    return definition.arguments.get("padding", definition.tile.padding)


def _specs(definition: ModelDefinition) -> tuple[ArgumentSpec, ...]:
    try:
        return argument_specs(definition)
    except InferenceError:
        return ()  # the package's own defaults are damaged: its run says so


def _argument(spec: ArgumentSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "label": spec.label,
        "kind": spec.kind,
        "default": spec.default,
        "minimum": spec.minimum,
        "maximum": spec.maximum,
        "choices": list(spec.choices),
        "expected": spec.expected(),
        "help": spec.help,
    }


def normalisation_text(spec: InputSpec) -> str:
    """Say in words how pixels become the network's input."""
    stretch = spec.stretch
    is_plain = all(scale == 1 for scale in spec.scale) and not any(spec.mean) and all(std == 1 for std in spec.std)
    if is_plain and stretch is None:
        return "as they are"
    is_255 = all(abs(scale * 255 - 1) < 1e-6 for scale in spec.scale)
    first = "divided by 255" if is_255 else f"times {_numbers(spec.scale)}"
    parts = [] if all(scale == 1 for scale in spec.scale) else [first]
    if stretch is not None:
        parts.insert(0, f"stretched to {stretch.to[0]:g} to {stretch.to[1]:g} ({stretch_text(stretch)})")
    if any(spec.mean):
        parts.append(f"less the mean {_numbers(spec.mean)}")
    if any(std != 1 for std in spec.std):
        parts.append(f"divided by the deviation {_numbers(spec.std)}")
    return ", ".join(parts)


def _numbers(values: tuple[float, ...]) -> str:
    shown = [f"{value:.4g}" for value in values]
    return shown[0] if len(set(shown)) == 1 else ", ".join(shown)


# -- Files -------------------------------------------------------------------------------------------------------------


def package_files(package: ModelPackage) -> list[dict[str, Any]]:
    """Give the files of a package with their sizes; beside a loose definition those that it names."""
    if isinstance(package.members, ZipMembers):
        return [
            {"name": name, "size": info.file_size} for name, info in sorted(package.members.entries.items())
        ][:_MOST_FILES]  # fmt: skip
    files = package.definition.options.get("files", ())
    names = [] if package.definition.program else [package.definition.weights]
    found = {name: _size(package, package.find(name)) for name in names if name}
    found.update({name: _size(package, package.beside_weights(name)) for name in files})
    if package.definition.program:
        found.update({file.name: file.size for file in program_files(package)})
    found.update({name: _size(package, name) for name in package.info_files()})
    return [{"name": name, "size": size} for name, size in sorted(found.items())][:_MOST_FILES]


def _size(package: ModelPackage, name: str) -> int | None:
    folder = package.members.folder if isinstance(package.members, FolderMembers) else Path()
    try:
        return (folder / name).stat().st_size
    except OSError:
        return None


def describe_code(package: ModelPackage, sha256: str = "") -> dict[str, Any]:
    """Tell what programs a package holds, and whether a run would need them.

    Args:
        package: The opened package.
        sha256: The hash of its program, where it is known already.

    Raises:
        ModelPackageError: its files cannot be read.
    """
    program = package.definition.program
    files = program_files(package) if program else []
    belonging = {file.name for file in files}
    names = package.members.names() if isinstance(package.members, ZipMembers) else []
    return {
        "program": program,
        "is_run": bool(program),
        "sha256": (sha256 or program_sha256(package)) if program else "",
        "files": [{"name": file.name, "size": file.size} for file in files],
        "never_run": [name for name in names if name.lower().endswith(_PROGRAM) and name not in belonging],
    }


def _license_of(package: ModelPackage, info: list[str]) -> str:
    """Give the licence text that lies in a package: a file of its own, or the item's description."""
    for name in info:
        if _LICENSE_FILE.search(name):
            return package.read_text(name, MAX_LICENSE * 4).strip()
    for name in info:
        if _ITEM_INFO.search(name):
            text = package.read_text(name, _MOST_INFO_BYTES)
            found = next(filter(None, (_element(text, tag) for tag in _ITEM_LICENSE)), "")
            if found:
                return _plain(found)
    return ""


def _element(text: str, tag: str) -> str:
    """Give what stands in the first element of that name; a pattern would try each beginning with each end."""
    lower = text.lower()
    start = lower.find(f"<{tag}>")
    end = lower.find(f"</{tag}>", start)
    return text[start + len(tag) + 2 : end] if 0 <= start < end else ""


def _plain(text: str) -> str:
    """Give the words of a text in HTML that stands escaped in XML."""
    return " ".join(_TAG.sub(" ", html.unescape(html.unescape(text).replace("<![CDATA[", ""))).split())


# -- What is refused ---------------------------------------------------------------------------------------------------


def told_of_refused(reference: str) -> str:
    """Say what can be said of a model that Kestrel understands and does not run; empty where that is nothing.

    Call it only after `open_package` refused the model for what it is, not for how its package is made.
    """
    try:
        content = read_emd(locate_definition(reference).data, "").content
    except InferenceError:
        return ""
    labels = (
        ("name", "ModelName"), ("framework", "Framework"), ("configuration", "ModelConfiguration"),
        ("type", "ModelType"), ("ArcGIS API version", "ArcGISLearnVersion"),
    )  # fmt: skip
    told = [f"{label} {str(content[key])[:80]}" for label, key in labels if isinstance(content.get(key), str)]
    classes = content.get("Classes")
    told += [f"{len(classes)} classes"] if isinstance(classes, list) else []
    return ", ".join(told)
