"""ONNX models on ONNX Runtime: YOLO heads before suppression, and graphs that give boxes, scores and labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state

from ..calibrate import Response, calibrated_traits
from ..detections import Detections, make_detections
from ..errors import (
    DeviceMemoryError,
    DeviceUnavailableError,
    ModelError,
    ModelPackageError,
    ModelUnsupportedError,
    first_line,
    is_out_of_memory,
)
from ..models.definition import ModelDefinition
from ..models.package import ModelPackage, is_safe_name
from .dense_heads import DenseGrid, DenseHead, find_grid
from .graph_input import GraphInput
from .protocol import DetectorSettings, Traits

_NUMPY_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}
_STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_DEFAULT_PADDING_STRIDE = 32
_SIZE_INPUT = "orig_target_sizes"
"""Input of RT-DETR's exports beside the images: each one's width and height, in whose pixels its boxes come."""
_RUNTIME_ERRORS: tuple[type[Exception], ...] = tuple(
    item for item in vars(onnxruntime_pybind11_state).values() if isinstance(item, type) and issubclass(item, Exception)
)
"""onnxruntime's exceptions: they share no base."""
_RUN_ERRORS: tuple[type[Exception], ...] = (*_RUNTIME_ERRORS, MemoryError)


def load(
    package: ModelPackage, arguments: Mapping[str, Any], settings: DetectorSettings, folder: Path
) -> DenseOnnxDetector | BoxesOnnxDetector:
    """Load an ONNX package, see `load_detector`."""
    definition = package.definition
    path = _unpack(package, folder)
    runner = OnnxRunner(_session(path, settings), definition)
    head = str(definition.options.get("head", "")) or _recognise(runner, len(definition.classes))
    if head in ("yolov8", "yolov5"):
        dense = DenseHead(len(definition.classes), has_objectness=head == "yolov5")
        detector = DenseOnnxDetector(runner, dense, definition, float(arguments["threshold"]), settings.n_threads)
        return detector.calibrated(package.sha256())
    return BoxesOnnxDetector(runner, definition, float(arguments["threshold"]), settings.n_threads)


def _unpack(package: ModelPackage, folder: Path) -> Path:
    """Copy the graph, and the external data it names, into a private folder."""
    name = package.weights_member()
    path = package.extract(name, folder / "model.onnx")
    try:
        graph = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise ModelPackageError(f"The file '{name}' is not an ONNX model.") from error
    foreign = sorted({entry.domain for entry in graph.opset_import} - set(_STANDARD_DOMAINS))
    if foreign:
        raise ModelUnsupportedError(
            f"The model uses operators of its own ({', '.join(foreign)}), which need a program beside it.",
            hint="Export it with standard ONNX operators.",
        )
    for location in sorted(_external_locations(graph)):
        # Our copy of the graph stands in the same folder: no weights may take its name, in any case of letters.
        if not is_safe_name(location) or "/" in location or location.lower() == path.name:
            raise ModelPackageError(f"The model keeps weights in '{location}', which lies outside the package.")
        package.extract(package.regular_file(package.beside_weights(location)), folder / location)
    return path


def _external_locations(graph: onnx.ModelProto) -> set[str]:
    return {
        entry.value
        for tensor in _tensors(graph)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Give all tensors below a message, wherever they stand: attributes, subgraphs, functions, sparse ones, ..."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for item in value if isinstance(value, Sequence) else (value,):
            if isinstance(item, onnx.TensorProto):
                yield item
            else:
                yield from _tensors(item)


def _session(path: Path, settings: DetectorSettings) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # One session, many calling threads with one thread each: measured faster than threads inside the session.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=_providers(settings.device))
    except _RUNTIME_ERRORS as error:
        raise ModelError(f"ONNX Runtime cannot load the model: {first_line(error)}.") from error


def _providers(device: str) -> list[Any]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise DeviceUnavailableError(
            "This inference environment's ONNX Runtime has no GPU support.",
            hint="Choose processor CPU or Auto, or install onnxruntime-gpu into the environment.",
        )
    return [("CUDAExecutionProvider", {"device_id": int(device.rpartition(":")[2])}), "CPUExecutionProvider"]


class OnnxRunner:
    """A session with its input's form: knows sizes and types, and nothing of detections.

    Attributes:
        input: The images that it takes.
    """

    def __init__(self, session: onnxruntime.InferenceSession, definition: ModelDefinition) -> None:
        """Look at the graph's input.

        Raises:
            ModelUnsupportedError: the graph takes something other than a batch of images.
            ModelIncompatibleError: the graph's channels are not the definition's bands.
        """
        inputs = [item for item in session.get_inputs() if not _is_size_input(item)]
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _NUMPY_TYPES:
            found = ", ".join(f"{item.name} {item.type} {item.shape}" for item in session.get_inputs())
            raise ModelUnsupportedError(f"The model takes {found}; Kestrel feeds one image batch (N, C, H, W).")
        self._session = session
        self._name = inputs[0].name
        self._takes_sizes = len(session.get_inputs()) > 1
        batch, channels, height, width = (size if isinstance(size, int) else None for size in inputs[0].shape)
        self.input = GraphInput(_NUMPY_TYPES[inputs[0].type], batch, channels, height, width, definition)
        self.output_names = [item.name for item in session.get_outputs()]
        self.output_ranks = {item.name: len(item.shape or ()) for item in session.get_outputs()}
        """Number of axes of each output; 0 where the graph does not say."""

    def run(self, batch: NDArray[Any]) -> list[NDArray[Any]]:
        """Run a batch (N, C, S, S) of raster values and give the graph's outputs, see `GraphInput.feed`."""
        fed = self.input.feed(batch)
        feeds = {self._name: np.ascontiguousarray(fed)}
        if self._takes_sizes:
            feeds[_SIZE_INPUT] = np.full((len(fed), 2), fed.shape[-1], np.int64)
        with _translated(len(batch)):
            outputs: list[NDArray[Any]] = self._session.run(None, feeds)
        return outputs


def _is_size_input(item: Any) -> bool:
    return bool(item.name == _SIZE_INPUT and item.type == "tensor(int64)" and len(item.shape) == 2)


@contextmanager
def _translated(n: int) -> Iterator[None]:
    try:
        yield
    except _RUN_ERRORS as error:
        if is_out_of_memory(error):
            raise DeviceMemoryError.of_batch(n) from error
        raise ModelError(f"The network failed: {first_line(error)}.") from error


def _recognise(runner: OnnxRunner, n_classes: int) -> str:
    """Tell the head from the outputs' names and shapes."""
    if {"boxes", "scores"} <= set(runner.output_names):
        return "boxes"
    shapes = [item.shape for item in runner._session.get_outputs()]
    if len(shapes) == 1 and len(shapes[0]) == 3:
        for head, rows in (("yolov8", 4 + n_classes), ("yolov5", 5 + n_classes)):
            if rows in shapes[0][1:]:
                return head
    found = ", ".join(f"{name} {shape}" for name, shape in zip(runner.output_names, shapes))
    raise ModelUnsupportedError(
        f"The model's outputs ({found}) are none that Kestrel knows.", hint="Name the 'head' in the definition."
    )


class DenseOnnxDetector:
    """A YOLO head without suppression in the graph."""

    def __init__(
        self, runner: OnnxRunner, head: DenseHead, definition: ModelDefinition, threshold: float, n_threads: int
    ) -> None:
        """Take the parts; the traits are declared ones until `calibrated`."""
        self._runner, self._head, self._threshold = runner, head, threshold
        self._tile = definition.tile
        self._n_bands = len(definition.input.bands)
        self._grids: dict[tuple[int, int, int], DenseGrid] = {}
        self._traits = Traits(
            stride=definition.tile.stride or _DEFAULT_PADDING_STRIDE,
            receptive_field_radius=definition.tile.receptive_field_radius,
            is_dense=True,
            network_size=runner.input.network_size,
            max_batch=runner.input.fixed_batch,
            n_callers=n_threads,
        )

    @property
    def traits(self) -> Traits:
        """Describe the network."""
        return self._traits

    def calibrated(self, sha256: str) -> DenseOnnxDetector:
        """Measure stride and receptive field where the package does not state them."""
        if self._tile.stride is None or self._tile.receptive_field_radius is None:
            size = self._runner.input.network_size
            measured = calibrated_traits(self._traits, self._respond, self._n_bands, sha256, size)
            stated = self._tile.receptive_field_radius
            self._traits = replace(
                measured,
                stride=self._tile.stride or measured.stride,
                receptive_field_radius=measured.receptive_field_radius if stated is None else stated,
            )
        return self

    def _respond(self, image: NDArray[Any]) -> Response:
        rows = self._head.rows_first(self._runner.run(image[None])[0])[0]
        grid = self._grid(rows.shape[1], image.shape[-2], image.shape[-1])
        values = rows.T.astype(np.float64)
        values[:, :2] -= grid.anchors
        return Response(values, grid.anchors, grid.stride)

    def _grid(self, n: int, height: int, width: int) -> DenseGrid:
        key = (n, height, width)
        if key not in self._grids:
            self._grids[key] = find_grid(n, height, width)
        return self._grids[key]

    def predict(self, batch: NDArray[Any]) -> list[Detections]:
        """Find candidates, see `Detector.predict`."""
        return [found for part in self._runner.input.parts(batch) for found in self._predict(part)]

    def _predict(self, batch: NDArray[Any]) -> list[Detections]:
        outputs = self._head.rows_first(self._runner.run(batch)[0])[: len(batch)]
        grid = self._grid(outputs.shape[2], batch.shape[2], batch.shape[3])
        return [self._head.decode(rows, grid, self._threshold) for rows in outputs]


_RANK_OF_ONE = 2
"""Axes of `boxes` where a graph gives one image's, without a batch axis."""


def _mixed_batch(n: int | None) -> ModelUnsupportedError:
    return ModelUnsupportedError(
        f"The model takes {n} images at a time, and does not tell whose boxes it gives.",
        hint="Export it for one image, or with a batch axis in its outputs.",
    )


class BoxesOnnxDetector:
    """A graph with suppression inside: boxes (x0 y0 x1 y1 in network pixels), scores, and labels."""

    def __init__(self, runner: OnnxRunner, definition: ModelDefinition, threshold: float, n_threads: int) -> None:
        """Find which output is which.

        Raises:
            ModelUnsupportedError: there are no outputs named boxes and scores, or no telling whose they are.
        """
        missing = {"boxes", "scores"} - set(runner.output_names)
        if missing:
            raise ModelUnsupportedError(
                f"The model has no output named {' or '.join(sorted(missing))}.",
                hint=f"Its outputs are {', '.join(runner.output_names)}.",
            )
        self._takes_one = runner.output_ranks["boxes"] == _RANK_OF_ONE
        if self._takes_one and (runner.input.fixed_batch or 1) > 1:
            raise _mixed_batch(runner.input.fixed_batch)
        self._runner, self._threshold = runner, threshold
        self._label_offset = int(definition.options.get("label_offset", 0))
        self._n_classes = len(definition.classes)
        self._traits = Traits(
            stride=definition.tile.stride or _DEFAULT_PADDING_STRIDE,
            receptive_field_radius=None,
            is_dense=False,
            network_size=runner.input.network_size,
            max_batch=1 if self._takes_one else runner.input.fixed_batch,
            n_callers=n_threads,
        )

    @property
    def traits(self) -> Traits:
        """Describe the network."""
        return self._traits

    def predict(self, batch: NDArray[Any]) -> list[Detections]:
        """Find objects, see `Detector.predict`."""
        parts = [batch[i : i + 1] for i in range(len(batch))] if self._takes_one else self._runner.input.parts(batch)
        return [found for part in parts for found in self._predict(part)]

    def _predict(self, batch: NDArray[Any]) -> list[Detections]:
        outputs = dict(zip(self._runner.output_names, self._runner.run(batch)))
        boxes, scores, labels = outputs["boxes"], outputs["scores"], outputs.get("labels")
        has_batch_axis = boxes.ndim != _RANK_OF_ONE
        n_fed = self._runner.input.fixed_batch or len(batch)
        if not has_batch_axis or len(boxes) != n_fed:  # torchvision's export, and graphs that look at one image
            if (self._runner.input.fixed_batch or 1) > 1:
                raise _mixed_batch(self._runner.input.fixed_batch)
            if len(batch) > 1:  # a graph that did not declare its outputs' form
                self._takes_one = True
                return self.predict(batch)
        if not has_batch_axis:
            boxes, scores = boxes[None], scores[None]
            labels = labels[None] if labels is not None else None
        return [self._read(boxes[i], scores[i], labels[i] if labels is not None else None) for i in range(len(batch))]

    def _read(self, boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any] | None) -> Detections:
        if scores.ndim == 2:
            labels = scores.argmax(axis=1) if labels is None else labels
            scores = scores.max(axis=1)
        classes = np.zeros(len(scores), np.int64) if labels is None else labels.astype(np.int64) - self._label_offset
        keep = ~(scores <= self._threshold) & (classes >= 0) & (classes < self._n_classes)  # NaN stays, to be counted
        return make_detections(boxes[keep], scores[keep], classes[keep])
