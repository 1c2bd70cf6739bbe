"""TensorFlow's Object Detection API: frozen graphs and SavedModels, boxes and masks, on the optional library.

Both run the same way: the graph is cut down and checked (tensorflow_graph.py), imported into a session, and called with
a batch. Nothing but numbers goes in and comes out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from ..detections import Detections, make_detections
from ..errors import (
    BackendMissingError,
    DeviceMemoryError,
    DeviceUnavailableError,
    ModelError,
    ModelPackageError,
    ModelUnsupportedError,
    first_line,
)
from ..merge import suppress_once
from ..models.definition import ModelClass, ModelDefinition
from ..models.package import ModelPackage
from ..outlines import outline
from .graph_input import GraphInput
from .protocol import DetectorSettings, Traits
from .tensorflow_graph import OUTPUTS, SAVED_MODEL, CheckedGraph, read_graph

INSTALL_HINT = "Install it in Settings > Options > Kestrel, 'Install TensorFlow'."

_MASK_THRESHOLD = 0.5  # Source: the Object Detection API's reframing of masks
_PARTS = ("variables.index", "variables.data-")
_TYPES = {1: np.dtype(np.float32), 4: np.dtype(np.uint8)}
"""Types of pixels that are fed, by TensorFlow's numbers."""


def load(
    package: ModelPackage, arguments: Mapping[str, Any], settings: DetectorSettings, folder: Path
) -> TensorflowDetector:
    """Load a TensorFlow package, see `load_detector`."""
    tensorflow = _tensorflow()
    member = _graph_member(package)
    path = package.extract(member, folder / SAVED_MODEL)
    graph = read_graph(path.read_bytes(), member)
    runner = GraphRunner(tensorflow, graph, package.definition, settings)
    if graph.restore is not None:
        runner.restore(graph.restore, _unpack_variables(package, member, folder))
    return TensorflowDetector(runner, package.definition, arguments)


def _tensorflow() -> ModuleType:
    """Import the library, quietly: what it has to say about processors is of no use to anybody here."""
    if find_spec("tensorflow") is None:
        raise BackendMissingError(
            "This model needs TensorFlow, which the inference environment does not have.", hint=INSTALL_HINT
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        return import_module("tensorflow")
    except (ImportError, TypeError, AttributeError) as error:  # what a protobuf or numpy of another age brings about
        raise BackendMissingError(
            f"The inference environment's TensorFlow cannot be imported: {first_line(error)}.", hint=INSTALL_HINT
        ) from error


def _graph_member(package: ModelPackage) -> str:
    """Give the member with the graph; a package may name a SavedModel's folder instead."""
    name = package.definition.weights
    try:
        return package.find(name)
    except ModelPackageError:
        folder = name.replace("\\", "/").rstrip("/")
        if folder.endswith(".pb"):
            raise
        return package.find(SAVED_MODEL if folder in ("", ".") else f"{folder}/{SAVED_MODEL}")


def _unpack_variables(package: ModelPackage, member: str, folder: Path) -> Path:
    """Copy a SavedModel's variables into a private folder, and give their prefix, as TensorFlow calls it."""
    root = member.replace("\\", "/").rpartition("/")[0]
    prefix = f"{root}/variables/" if root else "variables/"
    names = [name for name in package.members.names() if _is_variables(name, prefix)]
    if not names:
        raise ModelPackageError(
            "The SavedModel's folder 'variables' is missing: the weights are in it.",
            hint="Put the whole SavedModel into the package: saved_model.pb and the folder variables beside it.",
        )
    target = folder / "variables"
    target.mkdir()
    for name in names:
        package.extract(name, target / name[len(prefix) :])
    return target / "variables"


def _is_variables(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and name[len(prefix) :].startswith(_PARTS) and "/" not in name[len(prefix) :]


class GraphRunner:
    """A graph in a session: knows sizes and types, and nothing of detections.

    Attributes:
        input: The images that it takes.
    """

    def __init__(
        self, tensorflow: ModuleType, checked: CheckedGraph, definition: ModelDefinition, settings: DetectorSettings
    ) -> None:
        """Import the graph.

        Raises:
            ModelUnsupportedError: it takes something other than square images.
            ModelIncompatibleError: its channels are not the definition's bands.
            ModelError: TensorFlow cannot load it.
            DeviceUnavailableError: the device does not exist for TensorFlow.
        """
        self._tensorflow, self._checked = tensorflow, checked
        batch, height, width, channels = checked.image.shape
        if checked.image.dtype not in _TYPES:
            found = tensorflow.dtypes.as_dtype(checked.image.dtype).name
            raise ModelUnsupportedError(f"The model takes pixels of type {found}; Kestrel feeds uint8 and float32.")
        if height != width:
            raise ModelUnsupportedError(f"The model takes {width} x {height} pixels; Kestrel feeds it squares only.")
        self.input = GraphInput(_TYPES[checked.image.dtype], (batch, channels, height, width), definition)
        self._session = self._open(settings)

    def _open(self, settings: DetectorSettings) -> Any:
        v1 = self._tensorflow.compat.v1
        config = v1.ConfigProto(
            intra_op_parallelism_threads=settings.n_threads, inter_op_parallelism_threads=1, allow_soft_placement=True
        )
        if settings.device == "cpu":
            config.device_count["GPU"] = 0
        else:
            config.gpu_options.allow_growth = True
            config.gpu_options.visible_device_list = self._gpu(settings.device)
        graph = self._tensorflow.Graph()
        try:
            with graph.as_default():
                self._tensorflow.import_graph_def(self._checked.graph, name="")
            return v1.Session(graph=graph, config=config)
        except (ValueError, TypeError, KeyError, self._tensorflow.errors.OpError) as error:
            raise ModelError(f"TensorFlow cannot load the model: {first_line(error)}.") from error

    def _gpu(self, device: str) -> str:
        n_gpus = len(self._tensorflow.config.list_physical_devices("GPU"))
        number = device.rpartition(":")[2]
        if not number.isdigit() or int(number) >= n_gpus:
            raise DeviceUnavailableError(
                f"The inference environment's TensorFlow cannot use the device '{device}'.",
                hint="Choose processor CPU or Auto.",
            )
        return number

    def restore(self, how: tuple[str, str], prefix: Path) -> None:
        """Read the variables from files, with the graph's own tensor for the path and its operation.

        Raises:
            ModelPackageError: they are damaged, or belong to another graph.
        """
        file_tensor, operation = how
        named = file_tensor if ":" in file_tensor else f"{file_tensor}:0"
        try:
            target: Any = self._session.graph.as_graph_element(operation)
            self._session.run(target, {named: str(prefix)})
        except (ValueError, KeyError, TypeError, self._tensorflow.errors.OpError) as error:
            raise ModelPackageError(
                f"The SavedModel's variables cannot be read: {first_line(error)}.",
                hint="The package is damaged, or its graph and its variables are from different models.",
            ) from error

    def run(self, batch: NDArray[Any]) -> list[dict[str, NDArray[Any]]]:
        """Run a batch (N, C, S, S) of raster values, and give each image's outputs by name.

        Raises:
            DeviceMemoryError: the batch is too large.
            ModelError: the network failed.
        """
        return [found for part in self.input.parts(batch) for found in self._run(part)]

    def _run(self, batch: NDArray[Any]) -> list[dict[str, NDArray[Any]]]:
        fed = np.ascontiguousarray(self.input.feed(batch).transpose(0, 2, 3, 1))
        with self._translated(len(batch)):
            outputs = self._session.run(dict(self._checked.outputs), {self._checked.image.tensor: fed})
        _check_ranks(outputs, len(fed))
        return [{key: value[i] for key, value in outputs.items()} for i in range(len(batch))]

    @contextmanager
    def _translated(self, n: int) -> Iterator[None]:
        try:
            yield
        except (self._tensorflow.errors.ResourceExhaustedError, MemoryError) as error:
            raise DeviceMemoryError.of_batch(n) from error
        except (ValueError, TypeError, self._tensorflow.errors.OpError) as error:
            raise ModelError(f"The network failed: {first_line(error)}.") from error


def _check_ranks(outputs: Mapping[str, NDArray[Any]], n: int) -> None:
    """Refuse outputs that are not one row of numbers, boxes or masks for each image."""
    ranks = {"num_detections": 1, "detection_boxes": 3, "detection_masks": 4}
    for key, value in outputs.items():
        if np.ndim(value) != ranks.get(key, 2) or len(value) != n or (key == "detection_boxes" and value.shape[2] != 4):
            raise ModelUnsupportedError(
                f"The graph's output '{key}' has the shape {list(np.shape(value))} for {n} images, which is none that "
                "the Object Detection API gives.",
                hint="Export the model with the Object Detection API.",
            )


class TensorflowDetector:
    """A graph of the Object Detection API, which suppresses duplicates itself."""

    def __init__(self, runner: GraphRunner, definition: ModelDefinition, arguments: Mapping[str, Any]) -> None:
        """Take the graph and what is asked of it."""
        self._runner = runner
        self._threshold, self._max_overlap = float(arguments["threshold"]), float(arguments["nms_overlap"])
        self._labels = label_table(definition.classes)
        self._has_masks = "detection_masks" in runner._checked.outputs and not arguments.get("return_bboxes", False)
        self._traits = Traits(
            stride=definition.tile.stride or 1,  # these graphs resize tiles to their own liking
            receptive_field_radius=None,
            is_dense=False,
            network_size=runner.input.size[1] if runner.input.size else None,
            max_batch=runner.input.fixed_batch,
            geometry="polygon" if self._has_masks else "box",
        )

    @property
    def traits(self) -> Traits:
        """Describe the network."""
        return self._traits

    def predict(self, batch: NDArray[Any]) -> list[Detections]:
        """Find objects, see `Detector.predict`."""
        return [self._read(found, batch.shape[-1]) for found in self._runner.run(batch)]

    def _read(self, found: Mapping[str, NDArray[Any]], side: int) -> Detections:
        n = int(found["num_detections"]) if "num_detections" in found else len(found["detection_scores"])
        boxes, scores, ids = (np.asarray(found[key])[: max(n, 0)] for key in OUTPUTS)
        whole = np.where(np.isfinite(ids), ids, -1).astype(np.int64)
        labels = np.array([self._labels.get(int(number), -1) for number in whole], np.int64)
        keep = np.flatnonzero(~(scores <= self._threshold) & (labels >= 0))  # NaN stays, to be counted
        corners = boxes[keep].astype(np.float64)[:, [1, 0, 3, 2]] * side
        corners = np.concatenate(
            [np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1
        )
        shapes = None
        if self._has_masks:
            masks = found["detection_masks"][keep]
            outlines = [mask_outline(mask, box, side) for mask, box in zip(masks, boxes[keep].astype(np.float64))]
            is_seen = np.array([shape is not None for shape in outlines], np.bool_)
            keep, shapes = keep[is_seen], [shape for shape in outlines if shape is not None]
            corners = shapely.bounds(shapes).reshape(-1, 4)
        detections = make_detections(corners, scores[keep], labels[keep], shapes=shapes)
        return suppress_once(detections, self._max_overlap)


def label_table(classes: Sequence[ModelClass]) -> dict[int, int]:
    """Give the index of the class for each of the graph's numbers; other numbers are no objects of the model's.

    A graph counts classes from 1, or as its label map does, with gaps (1, 3, 18). The classes' values are those
    numbers, unless they cannot be: two alike, one below 1, or all beyond the number of classes. Then a number is a
    class's place, and, where the values are distinct, a value as well.
    """
    values = [item.value for item in classes]
    places = {place: place - 1 for place in range(1, len(values) + 1)}
    is_distinct = len(set(values)) == len(values)
    by_value = {value: index for index, value in enumerate(values)}
    if is_distinct and min(values) >= 1:
        return by_value if min(values) <= len(values) else {**by_value, **places}
    return places


def mask_outline(mask: NDArray[Any], box: NDArray[np.float64], side: int) -> Any:
    """Give the outline of what a soft mask covers, with its holes; it may be in several parts, or None.

    Shape:
        mask (h, w), of the whole image where it has the image's size, else of the box alone; box (4,), ymin xmin ymax
        xmax as parts of the image's side.
    """
    whole = mask if mask.shape == (side, side) else _reframed(mask, box, side)
    return outline(whole > _MASK_THRESHOLD)


def _reframed(mask: NDArray[Any], box: NDArray[np.float64], side: int) -> NDArray[np.float32]:
    """Give a box's mask as one of the whole image: bilinear, corners on corners, nothing outside.

    Source: the Object Detection API's reframe_box_masks_to_image_masks, as TensorFlow documents crop_and_resize.
    """
    (row, is_row), (column, is_column) = (
        _positions(box[axis], box[axis + 2], mask.shape[axis], side) for axis in range(2)
    )
    result = np.zeros((side, side), np.float32)
    if not is_row.any() or not is_column.any():
        return result
    low_y, low_x = np.floor(row).astype(np.intp), np.floor(column).astype(np.intp)
    high_y, high_x = np.ceil(row).astype(np.intp), np.ceil(column).astype(np.intp)
    share_y, share_x = (row - low_y)[:, None], column - low_x
    values = mask.astype(np.float64)
    upper = values[np.ix_(low_y, low_x)] * (1 - share_x) + values[np.ix_(low_y, high_x)] * share_x
    lower = values[np.ix_(high_y, low_x)] * (1 - share_x) + values[np.ix_(high_y, high_x)] * share_x
    result[np.ix_(is_row, is_column)] = upper * (1 - share_y) + lower * share_y
    return result


def _positions(low: float, high: float, n: int, side: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Give where pixels of the image fall in a box's mask of `n` pixels, and which pixels do at all."""
    pixels = np.arange(side) / max(side - 1, 1)
    if not high > low:
        return np.empty(0), np.zeros(side, np.bool_)
    position = (pixels - low) / (high - low) * (n - 1)
    is_inside = (position >= 0) & (position <= n - 1)
    return position[is_inside], is_inside
