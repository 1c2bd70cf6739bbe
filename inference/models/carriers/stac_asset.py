"""Which file of a STAC item is the model, what kind it is, and where it lies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ...errors import ModelError, ModelPackageError, ModelUnsupportedError
from .stac_input import ItemReader, words

_ROLES = ("mlm:model", "mlm:weights", "mlm:checkpoint", "model", "weights", "checkpoint")
"""Of assets that are models, the surest first; the last three are of older items."""
_ARCHITECTURES = (
    "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn", "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2",
    "retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn", "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)  # fmt: skip
"""torchvision's builders, as an item may name them."""
_KINDS = ("onnx", "torchvision", "torch_export", "torchscript")
"""What is run, the best first."""
_SHA256 = re.compile(r"1220([0-9a-f]{64})")
"""A multihash: code and length of SHA-256 before its digits."""


def chosen_artifact(
    item: Mapping[str, Any], properties: ItemReader, path: Path, notes: list[str]
) -> tuple[dict[str, Any], str]:
    """Give the definition's `detector` for the best of the item's models, and the SHA-256 that is stated for it.

    Raises:
        ModelPackageError: the item has none, or it does not lie beside the item.
        ModelUnsupportedError: none that Kestrel runs.
    """
    assets = _model_assets(item)
    if not assets:
        raise ModelPackageError(
            "The STAC item names no model: none of its assets has the role 'mlm:model'.",
            hint='Give the asset of the weights "roles": ["mlm:model"].',
        )
    answers = [_answer(name, asset, properties, path.parent) for name, asset in assets]
    found = [answer for answer in answers if isinstance(answer, _Artifact)]
    if not found:
        raise next(answer for answer in answers if isinstance(answer, ModelError))
    best = min(found, key=lambda artifact: _KINDS.index(artifact.detector["kind"]))
    notes += best.notes
    return dict(best.detector), best.sha256


@dataclass(frozen=True)
class _Artifact:
    detector: Mapping[str, Any]
    sha256: str
    notes: list[str]


def _answer(name: str, asset: Mapping[str, Any], properties: ItemReader, folder: Path) -> _Artifact | ModelError:
    """Give what an asset is, or why it cannot be used: another one may be better."""
    notes: list[str] = []
    try:
        detector = _detector(name, asset, properties)
        weights = _beside(name, asset, folder, notes)
    except ModelError as error:
        return error
    return _Artifact({**detector, "weights": weights}, _checksum(asset, notes), notes)


def _model_assets(item: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    assets = item.get("assets")
    named = [(str(name), asset) for name, asset in assets.items()] if isinstance(assets, Mapping) else []
    known = [(name, asset) for name, asset in named if isinstance(asset, Mapping)]
    for role in _ROLES:
        found = [(name, asset) for name, asset in known if role in words(asset.get("roles"))]
        if found:
            return found
    return [(name, asset) for name, asset in known if "mlm:artifact_type" in asset]


# -- What kind it is ---------------------------------------------------------------------------------------------------


def _detector(name: str, asset: Mapping[str, Any], properties: ItemReader) -> dict[str, Any]:
    artifact = str(asset.get("mlm:artifact_type") or properties.data.get("mlm:artifact_type") or "")
    kind = artifact.lower()
    framework = str(asset.get("mlm:framework") or properties.data.get("mlm:framework") or "")
    suffix = Path(_last_name(str(asset.get("href") or ""))).suffix.lower()
    is_compiled = asset.get("mlm:compile_method") == "aot" or any(word in kind for word in ("aot", "torch.compile"))
    if is_compiled and "onnx" not in kind:
        raise _refusal(name, artifact, "is compiled for one kind of computer")
    if "onnx" in kind or suffix == ".onnx":
        return {"kind": "onnx"}
    if "torch.export" in kind or (suffix == ".pt2" and not kind):
        return {"kind": "torch_export"}
    if "torch.jit" in kind or "torchscript" in kind:
        return {"kind": "torchscript"}
    if "safetensors" in kind or kind == "torch.save" or suffix in (".safetensors", ".pth", ".pt", ".ckpt"):
        return _weights_of(name, artifact, properties)
    told = " ".join(part for part in (framework, artifact, suffix) if part) or "nothing that says its kind"
    raise _refusal(name, told, "is of a kind that Kestrel does not run")


def _weights_of(name: str, artifact: str, properties: ItemReader) -> dict[str, Any]:
    """Give the network that bare weights belong to: one of torchvision's."""
    stated = properties.text("mlm:architecture", "")
    plain = _letters(stated)
    for architecture in _ARCHITECTURES:
        if plain == _letters(architecture):
            return {"kind": "torchvision", "architecture": architecture}
    reason = f"holds bare weights, and their architecture '{stated[:80]}' is none of torchvision's builders"
    raise _refusal(
        name, artifact, reason, f"Write one of them into mlm:architecture: {', '.join(_ARCHITECTURES)}. Or: "
    )


def _letters(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


def _refusal(name: str, found: str, reason: str, first: str = "") -> ModelUnsupportedError:
    kind = f" ({found[:120]})" if found else ""
    return ModelUnsupportedError(
        f"The asset '{name}' of the STAC item{kind} {reason}.",
        hint=f"{first}Export the model as ONNX, and name it in an asset with mlm:artifact_type 'onnx'.",
    )


# -- Where it lies -----------------------------------------------------------------------------------------------------


def _beside(name: str, asset: Mapping[str, Any], folder: Path, notes: list[str]) -> str:
    """Give the name of an asset's file in the folder of the item.

    Raises:
        ModelPackageError: it lies elsewhere.
    """
    href = asset.get("href")
    if not isinstance(href, str) or not href.strip():
        raise ModelPackageError(
            f"The asset '{name}' of the STAC item has no 'href'.", hint="Write the file's name there."
        )
    scheme = urlsplit(href).scheme.lower()
    is_remote = len(scheme) > 1 and scheme != "file"  # one letter is a drive of Windows
    for place in () if is_remote else (href, unquote(href)):
        inner = _inside(place, folder)
        if inner:
            return inner
    last = _last_name(href)
    if last and (folder / last).is_file():
        notes.append(f"The item's model is '{href[:200]}'; the file '{last}' beside the item was taken for it.")
        return last
    if is_remote:
        raise ModelPackageError(
            f"The STAC item's model lies at '{href[:200]}', and Kestrel downloads nothing.",
            hint=f"Download it into the folder of the item, under the name '{last or 'model.onnx'}'.",
        )
    raise ModelPackageError(
        f"The STAC item's model '{href[:200]}' does not lie beside the item.",
        hint=f"Put the file '{last}' into the folder of the item.",
    )


def _inside(href: str, folder: Path) -> str:
    """Give the name below the folder of a relative path, or of an absolute one that leads there; else nothing."""
    plain = urlsplit(href).path if href.lower().startswith("file:") else href.replace("\\", "/")
    path = Path(plain)
    try:
        inner = path.relative_to(folder.absolute()) if path.is_absolute() else path
        is_there = ".." not in inner.parts and (folder / inner).is_file()
    except (OSError, ValueError):
        return ""
    return inner.as_posix() if is_there else ""


def _last_name(href: str) -> str:
    parts = urlsplit(href)
    path = parts.path if len(parts.scheme) > 1 else href.replace("\\", "/")
    last = unquote(path).replace("\\", "/").rstrip("/").rpartition("/")[2]
    return "" if last in (".", "..") or "\0" in last else last


def _checksum(asset: Mapping[str, Any], notes: list[str]) -> str:
    stated = asset.get("file:checksum")
    if not isinstance(stated, str) or not stated.strip():
        return ""
    found = _SHA256.fullmatch(stated.strip().lower())
    if found is None:
        notes.append("The item's file:checksum is no SHA-256; the model's content was not compared with it.")
    return found.group(1) if found else ""
