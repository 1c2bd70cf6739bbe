"""A model folder of Hugging Face: config.json, weights, and how pixels are prepared, all read as data.

What a config names of its own programs (auto_map) is refused; Kestrel runs the library's own networks only.

    config.json                     the kind of network (model_type), names of the classes (id2label)
    preprocessor_config.json        or processor_config.json: size, scale, mean and deviation of the pixels
    model.safetensors               or pytorch_model.bin, or several of either with an index
    tokenizer.json, vocab.txt, ...  of networks that look for what a text says
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ModelPackageError, ModelUnsupportedError
from ..definition import OPEN_VOCABULARY, SCHEMA, SCHEMA_KEY
from ..emd_text import read_json
from ..strict_json import MAX_JSON_BYTES
from .class_names import as_classes, as_names, names_beside

CONFIG = "config.json"
PREPARATION = ("preprocessor_config.json", "processor_config.json")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
INDEX = ".index.json"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt",
              "special_tokens_map.json", "added_tokens.json")  # fmt: skip
_MAX_SHARDS = 200
_LOW = {"owlvit": 0.1, "owlv2": 0.1, "grounding-dino": 0.25, "mm-grounding-dino": 0.25}
"""Lowest scores where those that the library itself takes for a kind are below Kestrel's."""
_PLACEHOLDER = "object"
_MOST_LABELS = 1000  # where config.json gives their number alone

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
CLIP = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}


@dataclass(frozen=True)
class _Family:
    """How pixels are prepared where the folder does not say it.

    Attributes:
        side: Side of the images in pixels.
        is_fixed: The network takes no other size.
        statistics: Mean and deviation; none where pixels are scaled only.
    """

    side: int
    is_fixed: bool
    statistics: Mapping[str, Any]


_PLAIN, _SHORT_EDGE = _Family(640, True, {}), _Family(800, False, IMAGENET)
FAMILIES: Mapping[str, _Family] = {
    "detr": _SHORT_EDGE, "conditional_detr": _SHORT_EDGE, "deformable_detr": _SHORT_EDGE, "dab-detr": _SHORT_EDGE,
    "table-transformer": _SHORT_EDGE, "yolos": _SHORT_EDGE,
    "rt_detr": _PLAIN, "rt_detr_v2": _PLAIN, "d_fine": _PLAIN, "deimv2": _PLAIN,
    "rf_detr": _Family(560, True, IMAGENET), "lw_detr": _Family(640, True, IMAGENET),
    "owlvit": _Family(768, True, CLIP), "owlv2": _Family(960, True, CLIP),
    "grounding-dino": _SHORT_EDGE, "mm-grounding-dino": _SHORT_EDGE,
}  # fmt: skip
"""The kinds of networks that Kestrel runs through Transformers, as config.json names them.

Source: the defaults of each one's image processor in transformers.
"""


def translate(path: Path) -> tuple[dict[str, Any], tuple[str, ...]] | None:
    """Give the definition of a model folder, of its config.json, or of its weights, see `carriers.translate`."""
    if path.is_file() and path.name not in (CONFIG, *WEIGHTS):
        return None
    folder = path if path.is_dir() else path.parent
    if not (folder / CONFIG).is_file():
        return None
    config = _json(folder / CONFIG)
    if "model_type" not in config:
        return None
    architecture = check_config(config, folder.name)
    weights, shards = _weights(folder, path.name if path.name in WEIGHTS else "")
    prepared, preparation = _preparation(folder)
    members, notes = _input(prepared, FAMILIES[architecture], preparation)
    is_open = architecture in OPEN_VOCABULARY
    names, told = ([_PLACEHOLDER], "") if is_open else _names(folder, config)
    beside = [CONFIG, *([preparation] if preparation else []), *(_tokenizer(folder) if is_open else []), *shards]
    content = {
        SCHEMA_KEY: SCHEMA,
        "name": _name(folder),
        "detector": {"kind": "transformers", "architecture": architecture, "weights": weights, "files": beside},
        "classes": as_classes(names, 1),
        **members,
        **({"arguments": {"threshold": _LOW[architecture]}} if architecture in _LOW else {}),
    }
    return content, tuple(note for note in (*notes, told) if note)


def check_config(config: Mapping[str, Any], name: str) -> str:
    """Give the kind of network that a config describes.

    Args:
        config: What config.json holds.
        name: How messages call the model.

    Raises:
        ModelUnsupportedError: it needs a program of its own, or is no detector that Kestrel runs.
    """
    custom = [key for key in ("auto_map", "custom_pipelines", "trust_remote_code") if config.get(key)]
    if custom:
        raise ModelUnsupportedError(
            f"The model '{name}' needs programs of its own (its config.json has the member '{custom[0]}'), and Kestrel "
            "never runs these.",
            hint="Use a model of one of the library's own kinds, or export this one to ONNX.",
        )
    architecture = config.get("model_type")
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        raise ModelUnsupportedError(
            f"The model '{name}' is of the kind '{str(architecture)[:80]}', which Kestrel does not run.",
            hint=f"Kinds: {', '.join(FAMILIES)}. Or export it to ONNX.",
        )
    stated = config.get("architectures")
    classes = [item for item in stated if isinstance(item, str)] if isinstance(stated, list) else []
    if classes and not any(item.endswith("ForObjectDetection") for item in classes):
        raise ModelUnsupportedError(
            f"The model '{name}' is a {classes[0][:80]}, not one for the detection of objects.",
            hint="Choose a model whose config.json names a class ...ForObjectDetection.",
        )
    return architecture


def shards_of(index: Mapping[str, Any], name: str) -> list[str]:
    """Give the files that an index of weights names.

    Raises:
        ModelPackageError: it is no index, or names a file elsewhere.
    """
    places = index.get("weight_map")
    names = sorted({str(place) for place in places.values()}) if isinstance(places, Mapping) else []
    if not 0 < len(names) <= _MAX_SHARDS:
        raise ModelPackageError(f"The list of weights '{name}' names no files.", hint="Download the folder again.")
    for item in names:
        if "/" in item or "\\" in item or item in (".", "..") or not item.endswith((".safetensors", ".bin")):
            raise ModelPackageError(
                f"The list of weights '{name}' names the file '{item[:80]}', which is no file of weights in its folder."
            )
    return names


def _json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelPackageError(f"The file '{path.name}' is larger than 4 MB; that is no description of a model.")
    return read_json(path.read_bytes(), f"'{path.name}'")


def _weights(folder: Path, chosen: str) -> tuple[str, list[str]]:
    """Give the file of the weights, and the files that it names where it is an index."""
    name = chosen or next((name for name in WEIGHTS if (folder / name).is_file()), "")
    if not name:
        raise ModelPackageError(
            f"The model folder '{folder}' holds no weights.",
            hint=f"Download the file {WEIGHTS[0]} into it.",
        )
    if not name.endswith(INDEX):
        return name, []
    return name, shards_of(_json(folder / name), name)


def _preparation(folder: Path) -> tuple[Mapping[str, Any], str]:
    """Give how pixels are prepared, and the file that says so."""
    for name in PREPARATION:
        if (folder / name).is_file():
            content = _json(folder / name)
            inner = content.get("image_processor")
            return (inner if isinstance(inner, Mapping) else content), name
    return {}, ""


def _input(prepared: Mapping[str, Any], family: _Family, file: str) -> tuple[dict[str, Any], list[str]]:
    """Give a definition's `input` and `tile`, and what was assumed."""
    notes = [] if file else [
        "The folder does not say how pixels are prepared (preprocessor_config.json): the usual way of such models was "
        "taken."
    ]  # fmt: skip
    spec: dict[str, Any] = {}
    if prepared.get("do_rescale", True) is not False:
        spec["scale"] = _number(prepared.get("rescale_factor"), 1 / 255)
    normalises = prepared.get("do_normalize", bool(family.statistics))
    if normalises is not False and (family.statistics or "image_mean" in prepared):
        spec["mean"] = _three(prepared.get("image_mean"), family.statistics.get("mean", IMAGENET["mean"]))
        spec["std"] = _three(prepared.get("image_std"), family.statistics.get("std", IMAGENET["std"]))
    side, is_fixed, told = _side(prepared, family)
    return {"input": spec, "tile": {"size": side, "variable": not is_fixed}}, [*notes, *told]


def _number(value: Any, default: float) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else default


def _three(value: Any, default: Any) -> list[float]:
    is_sound = isinstance(value, list) and len(value) == 3 and all(isinstance(v, (int, float)) for v in value)
    return [float(v) for v in (value if is_sound else default)]


def _side(prepared: Mapping[str, Any], family: _Family) -> tuple[int, bool, list[str]]:
    """Give the side of the images, and whether the network takes no other."""
    if prepared.get("do_resize") is False:
        return family.side, False, []
    size = prepared.get("size")
    if isinstance(size, list) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if isinstance(size, Mapping):
        height, width = _as_side(size.get("height")), _as_side(size.get("width"))
        if height and width:
            side = max(height, width)
            told = f"The model was made for images of {width} x {height} pixels; it gets squares of {side}."
            return side, True, [] if height == width else [told]
        size = size.get("shortest_edge") or size.get("max_height") or size.get("longest_edge")
    return _as_side(size) or family.side, family.is_fixed, []


def _as_side(value: Any) -> int:
    """Give a side in pixels, 0 where the value is none."""
    return value if type(value) is int and 32 <= value <= 4096 else 0


def _names(folder: Path, config: Mapping[str, Any]) -> tuple[Sequence[str], str]:
    names: Sequence[str] = as_names(config.get("id2label"))
    if not names:
        n = config.get("num_labels")
        names = [f"LABEL_{number}" for number in range(n if type(n) is int and 0 < n <= _MOST_LABELS else 2)]
    if not all(name == f"LABEL_{number}" for number, name in enumerate(names)):
        return names, ""
    found, where = names_beside(folder / CONFIG)
    if len(found) == len(names):
        return found, f"The names of the classes are those in '{where}'."
    how = "Name them in a file 'classes.txt' in its folder, one a line."
    return names, f"The model does not name its {len(names)} classes. {how}"


def _tokenizer(folder: Path) -> list[str]:
    names = [name for name in _TOKENIZER if (folder / name).is_file()]
    if not any(name in names for name in ("tokenizer.json", "vocab.json", "vocab.txt")):
        raise ModelPackageError(
            f"The model folder '{folder.name}' holds no tokenizer, with which texts are read.",
            hint="Download tokenizer.json (or vocab.txt, or vocab.json and merges.txt) into it, too.",
        )
    return names


def _name(folder: Path) -> str:
    """Give the folder's name; of one in Hugging Face's cache the model's."""
    owner = folder.parent.parent.name
    if folder.parent.name == "snapshots" and owner.startswith("models--"):
        return owner[len("models--") :].replace("--", "/")
    return folder.resolve().name or "model"
