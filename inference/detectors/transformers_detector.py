"""Detection networks of Hugging Face Transformers, on the optional library: closed classes, or what a text says.

The library builds the network; the weights are read by Kestrel's own readers, never unpickled. Nothing is fetched, and
no program of a model folder runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..detections import Detections, make_detections
from ..errors import (
    BackendMissingError,
    ModelError,
    ModelIncompatibleError,
    first_line,
)
from ..merge import suppress_once
from ..models.carriers.huggingface import CONFIG, INDEX, check_config, shards_of
from ..models.definition import OPEN_VOCABULARY, ModelClass
from ..models.emd_text import read_json
from ..models.package import ModelPackage
from ..models.strict_json import MAX_JSON_BYTES
from ..object_file import CLASS_TEXT
from .protocol import DetectorSettings, Traits
from .torch_common import Normaliser, make_ready, translated
from .transformers_copy import make_safe
from .transformers_outputs import READERS
from .transformers_text import Prompt, parse_prompt, read_prompt
from .weights import read_state

INSTALL_HINT = "Install it in Settings > Options > Kestrel, 'Install Transformers'."

_STRIDE = 32
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
_LOCAL = {"local_files_only": True, "trust_remote_code": False}
_BUILD_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, IndexError)
"""What numbers of a config that make no sense cause in the library, besides what its own checks say."""


def load(
    package: ModelPackage, arguments: Mapping[str, Any], settings: DetectorSettings, folder: Path
) -> TransformersDetector:
    """Load a model folder, see `load_detector`."""
    definition = package.definition
    architecture = check_config(_config_of(package), definition.name)
    if architecture != definition.options.get("architecture"):
        raise ModelIncompatibleError(
            f"The definition names the architecture '{definition.options.get('architecture')}', and the model's "
            f"config.json '{architecture}'.",
            hint="Write the model_type of config.json into the definition.",
        )
    library = transformers()
    place = _copied(package, folder / "model")
    make_safe(place)
    network, config = _build(library, place, _read_weights(package, folder), architecture)
    prompt = None
    if architecture in OPEN_VOCABULARY:
        prompt = read_prompt(library, place, parse_prompt(str(arguments["text_prompt"])), architecture, config)
        prompt = prompt.on(settings.device)
    tile = definition.tile
    traits = Traits(
        stride=tile.stride or _STRIDE,
        receptive_field_radius=None,
        is_dense=False,
        network_size=None if tile.is_variable else tile.size,
    )
    return TransformersDetector(
        make_ready(network, settings), Normaliser(definition.input, settings.device), definition.classes, traits,
        architecture, arguments, prompt,
    )  # fmt: skip


def transformers() -> ModuleType:
    """Import the library, which may neither fetch anything nor tell anybody.

    Raises:
        BackendMissingError: it is not there, or does not work.
    """
    os.environ.update(_OFFLINE)
    if find_spec("transformers") is None:
        raise BackendMissingError(
            "This model needs Hugging Face Transformers, which the inference environment does not have.",
            hint=INSTALL_HINT,
        )
    try:
        library = import_module("transformers")
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    except (ImportError, RuntimeError, AttributeError, TypeError) as error:
        raise BackendMissingError(
            f"The inference environment's Transformers cannot be imported: {first_line(error)}.", hint=INSTALL_HINT
        ) from error
    return library


# -- Files -------------------------------------------------------------------------------------------------------------


def _config_of(package: ModelPackage) -> Mapping[str, Any]:
    return read_json(package.read_bytes(_checked(package, CONFIG), MAX_JSON_BYTES), f"'{CONFIG}'")


def _checked(package: ModelPackage, name: str) -> str:
    """Give the full name of a file in the folder of the weights; a link is one only in Hugging Face's own cache."""
    full = package.beside_weights(name)
    folder: Path | None = getattr(package.members, "folder", None)
    if folder is not None and _is_in_cache(folder / full):
        return full
    return package.regular_file(full)


def _is_in_cache(place: Path) -> bool:
    """Tell whether a file is a link from a snapshot in Hugging Face's cache to the same model's content there."""
    if place.parent.parent.name != "snapshots" or not place.is_symlink():
        return False
    blobs = place.parent.parent.parent / "blobs"
    return not blobs.is_symlink() and place.resolve().parent == blobs.resolve()


def _copied(package: ModelPackage, target: Path) -> Path:
    """Copy the texts of a model folder into a private one, without the weights."""
    target.mkdir()
    for name in package.definition.options["files"]:
        plain = name.replace("\\", "/").rpartition("/")[2]
        if plain.endswith((".json", ".txt")) and plain != "adapter_config.json":
            package.extract(_checked(package, name), target / plain)
    return target


def _read_weights(package: ModelPackage, folder: Path) -> dict[str, torch.Tensor]:
    """Read the weights, of one file or of all that an index names."""
    name = package.definition.weights.replace("\\", "/").rpartition("/")[2]
    names = [name]
    if name.endswith(INDEX):
        index = read_json(package.read_bytes(_checked(package, name), 4 * MAX_JSON_BYTES), f"'{name}'")
        names = shards_of(index, name)
        unnamed = [item for item in names if item not in package.definition.options["files"]]
        if unnamed:  # what is not named is not part of the model's hash
            raise ModelIncompatibleError(
                f"The weights lie in '{unnamed[0]}' too, which the definition does not name.",
                hint="Write all parts of the weights into detector.files.",
            )
    state: dict[str, torch.Tensor] = {}
    for number, item in enumerate(names):
        part = package.extract(_checked(package, item), folder / f"weights{number}")
        state.update(read_state(part, item))
    return state


# -- The network -------------------------------------------------------------------------------------------------------


def _build(
    library: ModuleType, place: Path, state: dict[str, torch.Tensor], architecture: str
) -> tuple[torch.nn.Module, Any]:
    """Build the network that config.json describes, and fill it.

    Raises:
        ModelIncompatibleError: the weights do not fit.
        BackendMissingError: it needs one library more.
        ModelError: the library cannot build it.
    """
    is_open = architecture in OPEN_VOCABULARY
    maker = library.AutoModelForZeroShotObjectDetection if is_open else library.AutoModelForObjectDetection
    try:
        config = library.AutoConfig.from_pretrained(str(place), **_LOCAL)
        if getattr(config, "use_pretrained_backbone", False):
            config.use_pretrained_backbone = False  # its weights are among ours, and would be fetched
        # The class itself: the makers want a folder with weights, and ours are read already.
        network, told = maker._model_mapping[type(config)].from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True, **_LOCAL
        )
    except ImportError as error:
        named = re.search(r"requires the (\S+) library", str(error))
        what = f"the library {named[1]}" if named else f"a library more ({first_line(error)})"
        raise BackendMissingError(
            f"The model needs {what}, which the inference environment does not have.",
            hint="Use a model that does without, or export this one to ONNX.",
        ) from error
    except (*_BUILD_ERRORS, import_module("huggingface_hub.errors").StrictDataclassError) as error:
        raise ModelError(
            f"Transformers cannot build the {architecture} of config.json: {first_line(error)}.",
            hint="Download the folder again; a newer model may want a newer version of Transformers.",
        ) from error
    missing = sorted(name for name in told["missing_keys"] if not name.endswith("num_batches_tracked"))
    wrong = sorted(str(item[0]) for item in told["mismatched_keys"])
    if missing or wrong:
        raise ModelIncompatibleError(
            f"The weights do not fit the {architecture} of config.json: '{(missing or wrong)[0]}' is "
            f"{'missing' if missing else 'of another shape'} ({len(missing)} missing, {len(wrong)} of another shape).",
            hint="Check that config.json and the weights belong together.",
        )
    return network, config


class TransformersDetector:
    """A network that gives boxes of queries."""

    def __init__(
        self, network: torch.nn.Module, normalise: Normaliser, classes: Sequence[ModelClass], traits: Traits,
        architecture: str, arguments: Mapping[str, Any], prompt: Prompt | None,
    ) -> None:  # fmt: skip
        """Take the parts."""
        self._network, self._normalise, self._traits = network, normalise, traits
        self._read, self._prompt = READERS[architecture], prompt
        self._threshold, self._overlap = float(arguments["threshold"]), float(arguments["nms_overlap"])
        self._labels = {item.name.casefold(): number for number, item in reversed(list(enumerate(classes)))}
        self._n_classes = len(classes)

    @property
    def traits(self) -> Traits:
        """Describe the network."""
        return self._traits

    def predict(self, batch: NDArray[Any]) -> list[Detections]:
        """Find objects, see `Detector.predict`."""
        with translated(len(batch)), torch.inference_mode():
            texts = self._prompt.inputs(len(batch)) if self._prompt is not None else {}
            outputs = self._network(pixel_values=self._normalise(batch), **texts)
            pairs = zip(outputs.logits.float(), outputs.pred_boxes.float())
            return [self._detections(*pair, side=batch.shape[-1]) for pair in pairs]

    def _detections(self, logits: torch.Tensor, boxes: torch.Tensor, *, side: int) -> Detections:
        extra = (self._prompt.phrase_of_token,) if self._prompt is not None and self._prompt.is_joint else ()
        scores, labels, places = (part.cpu().numpy() for part in self._read(logits, boxes, *extra))
        keep = ~(scores <= self._threshold)  # what is no number stays, for the run to count and drop
        scores, labels, places = scores[keep], labels[keep], places[keep] * side
        if self._prompt is None:
            known = labels < self._n_classes
            return make_detections(places[known], scores[known], labels[known])
        return self._named(self._prompt, scores, labels, places)

    def _named(self, prompt: Prompt, scores: NDArray[Any], labels: NDArray[Any], places: NDArray[Any]) -> Detections:
        """Give objects the phrase that found them, and leave out what repeats a stronger one: nothing else does."""
        phrases = [prompt.phrases[label] for label in labels]
        numbers = np.array([self._labels.get(phrase.casefold(), 0) for phrase in phrases], np.int32)
        found = make_detections(places, scores, numbers, attributes=[{CLASS_TEXT: phrase} for phrase in phrases])
        return suppress_once(found, self._overlap) if len(found) else found
