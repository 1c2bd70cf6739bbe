"""ONNX models on ONNX Runtime: any graph whose outputs one of the heads (detectors/heads) can read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state

from ..calibrate import Response, calibrated_traits
from ..detections import Detections
from ..errors import (
    DeviceMemoryError,
    DeviceUnavailableError,
    ModelError,
    ModelIncompatibleError,
    ModelPackageError,
    ModelUnsupportedError,
    first_line,
    is_out_of_memory,
)
from ..models.definition import ModelDefinition
from ..models.onnx_file import TensorInfo
from ..models.onnx_heads import Reading
from ..models.package import ModelPackage, ZipMembers, is_safe_name
from .graph_input import GraphInput
from .heads import Head, HeadSettings, Outputs, make_head
from .heads.dense import DenseHead, find_grid
from .heads.settle import by_role
from .onnx_reading import Runner, find_reading
from .protocol import DetectorSettings, Traits

_NUMPY_TYPES = {
    "tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16, "tensor(float)": np.float32, "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}  # fmt: skip
_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}
_STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_DEFAULT_PADDING_STRIDE = 32
_SIZE_INPUT = "orig_target_sizes"
"""Input of RT-DETR's exports beside the images: each one's width and height, in whose pixels its boxes come."""
_MASK_INPUT = "pixel_mask"
"""Input of DETR's exports beside the images: 1 where an image is, 0 where it was filled up."""
_RUNTIME_ERRORS: tuple[type[Exception], ...] = tuple(
    item for item in vars(onnxruntime_pybind11_state).values() if isinstance(item, type) and issubclass(item, Exception)
)
"""onnxruntime's exceptions: they share no base."""
_RUN_ERRORS: tuple[type[Exception], ...] = (*_RUNTIME_ERRORS, MemoryError)


def load(package: ModelPackage, arguments: Mapping[str, Any], settings: DetectorSettings, folder: Path) -> OnnxDetector:
    """Load an ONNX package, see `load_detector`."""
    definition = package.definition
    path = _unpack(package, folder)
    runner = OnnxRunner(_session(path, settings), definition)
    return detector_of(runner, package, arguments, settings, settings.n_threads)


def detector_of(
    runner: Runner, package: ModelPackage, arguments: Mapping[str, Any], settings: DetectorSettings, n_callers: int
) -> OnnxDetector:
    """Give the detector for what a runner gives, once it is known how that is to be read.

    Raises:
        ModelUnsupportedError: its outputs are none that Kestrel knows.
    """
    definition = package.definition
    limits = HeadSettings(len(definition.classes), float(arguments["threshold"]), float(arguments["nms_overlap"]))
    found = find_reading(runner, definition, limits, settings.sample)
    head = make_head(found.reading, found.settings)
    detector = OnnxDetector(runner, found.reading, head, definition, n_callers)
    detector.tell(found.notes)
    return detector.calibrated(package.sha256(), definition)


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
    locations = _external_locations(graph)
    is_archive = isinstance(package.members, ZipMembers)  # of which every member is hashed
    uncovered = sorted(locations - package.hashed_locations()) if locations and not is_archive else []
    if uncovered:
        raise ModelPackageError(
            f"The model keeps weights in '{uncovered[0]}', and says so in a way that its hash does not cover.",
            hint="Save the model again with the onnx library, or pack its files as a zip archive.",
        )
    for location in sorted(locations):
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
        outputs: What it declares to give.
    """

    def __init__(self, session: onnxruntime.InferenceSession, definition: ModelDefinition) -> None:
        """Look at the graph's input.

        Raises:
            ModelUnsupportedError: the graph takes something other than a batch of images.
            ModelIncompatibleError: the graph's channels are not the definition's bands.
        """
        inputs = [item for item in session.get_inputs() if not _is_known_input(item)]
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _NUMPY_TYPES:
            found = ", ".join(f"{item.name} {item.type} {item.shape}" for item in session.get_inputs())
            raise ModelUnsupportedError(
                f"The model takes {found}; Kestrel feeds one image batch (N, C, H, W) or (N, H, W, C) of 8-bit or "
                "floating pixels."
            )
        self._session = session
        self._name = inputs[0].name
        self._others = [item for item in session.get_inputs() if item is not inputs[0]]
        shape = [size if isinstance(size, int) and size > 0 else None for size in inputs[0].shape]
        self.input = GraphInput(_NUMPY_TYPES[inputs[0].type], shape, definition)
        self.outputs = tuple(_described(item) for item in session.get_outputs())

    def run(self, batch: NDArray[Any]) -> Outputs:
        """Run a batch (N, C, H, W) of raster values and give the graph's outputs by name, see `GraphInput.feed`."""
        fed = self.input.feed(batch)
        feeds: dict[str, NDArray[Any]] = {self._name: fed}
        height, width = batch.shape[2:]
        for item in self._others:
            sizes = np.tile(np.array([[width, height]], np.int64), (len(fed), 1))
            feeds[item.name] = sizes if item.name == _SIZE_INPUT else _full_mask(item.shape, len(fed), height, width)
        with _translated(len(batch)):
            outputs = self._session.run(None, feeds)
        return {item.name: array for item, array in zip(self.outputs, outputs)}


def _is_known_input(item: Any) -> bool:
    ranks = {_SIZE_INPUT: 2, _MASK_INPUT: 3}
    return bool(item.type == "tensor(int64)" and ranks.get(item.name) == len(item.shape))


def _full_mask(shape: Sequence[Any], n: int, height: int, width: int) -> NDArray[np.int64]:
    sides = [size if isinstance(size, int) else free for size, free in zip(shape[1:], (height, width))]
    return np.ones((n, *sides), np.int64)


def _described(item: Any) -> TensorInfo:
    kind = item.type
    dtype = _DTYPES.get(kind, kind[len("tensor(") : -1] if kind.startswith("tensor(") else kind)
    shape = tuple(size if isinstance(size, int) else None for size in item.shape or ()) if item.shape else None
    return TensorInfo(item.name, dtype, shape)


@contextmanager
def _translated(n: int) -> Iterator[None]:
    try:
        yield
    except _RUN_ERRORS as error:
        if is_out_of_memory(error):
            raise DeviceMemoryError.of_batch(n) from error
        raise ModelError(f"The network failed: {first_line(error)}.") from error


class OnnxDetector:
    """A graph, and the head that reads its outputs."""

    def __init__(
        self, runner: Runner, reading: Reading, head: Head, definition: ModelDefinition, n_threads: int
    ) -> None:
        """Take the parts; the traits are declared ones until `calibrated`.

        Raises:
            ModelUnsupportedError: the graph takes several images, and does not tell whose objects it gives.
        """
        self._runner, self._reading, self._head = runner, reading, head
        self._n_bands = len(definition.input.bands)
        ranks = {item.name: len(item.shape) for item in runner.outputs if item.shape is not None}
        roles = {role: ranks.get(name, 0) for role, name in reading.roles.items()}
        self._takes_one = any(roles.get(role) == rank - 1 for role, rank in head.roles.items())
        if self._takes_one and (runner.input.fixed_batch or 1) > 1:
            raise _mixed_batch(runner.input.fixed_batch)
        is_dense = isinstance(head, DenseHead)
        height, width = runner.input.size or (None, None)
        self._traits = Traits(
            stride=definition.tile.stride or _DEFAULT_PADDING_STRIDE,
            receptive_field_radius=definition.tile.receptive_field_radius if is_dense else None,
            is_dense=is_dense,
            network_size=width,
            network_height=None if height == width else height,
            max_batch=1 if self._takes_one else runner.input.fixed_batch,
            max_detections=_limit(runner, reading),
            n_callers=n_threads,
            geometry="polygon" if reading.geometry == "polygon" else "box",
            is_oriented=reading.geometry == "oriented",
            fields=({"name": "Angle", "type": "number"},) if reading.geometry == "oriented" else (),
        )

    @property
    def traits(self) -> Traits:
        """Describe the network."""
        return self._traits

    def tell(self, notes: tuple[str, ...]) -> None:
        """Keep what was assumed, for the user."""
        self._traits = replace(self._traits, notes=notes)

    def calibrated(self, sha256: str, definition: ModelDefinition) -> OnnxDetector:
        """Measure a dense head's stride and receptive field where the package does not state them."""
        tile = definition.tile
        is_stated = tile.stride is not None and tile.receptive_field_radius is not None
        size = self._runner.input.size
        if not self._traits.is_dense or is_stated or (size is not None and size[0] != size[1]):
            return self
        # The same file read in another way is another network.
        is_usual = self._reading.head in ("yolov8", "yolov5") and not definition.input.is_assumed
        key = sha256 if is_usual else f"{sha256}-{self._reading.head}-{self._runner.input.scaling_hash()}"
        measured = calibrated_traits(self._traits, self._respond, self._n_bands, key, size[0] if size else None)
        stated = tile.receptive_field_radius
        self._traits = replace(
            measured,
            stride=tile.stride or measured.stride,
            receptive_field_radius=measured.receptive_field_radius if stated is None else stated,
        )
        return self

    def _respond(self, image: NDArray[Any]) -> Response:
        """Give what the network answers to one image: of each candidate all numbers, the box relative to its cell."""
        layout = cast("DenseHead", self._head).layout
        outputs = by_role(self._runner.run(image[None]), self._reading, {"table": 3})
        numbers = layout.numbers_first(outputs["table"])[0]
        size = (image.shape[-2], image.shape[-1])
        grid = find_grid(numbers.shape[1], *size)
        boxes = layout.centred(numbers, grid, size)
        boxes[:, :2] -= grid.anchors
        return Response(np.concatenate([boxes, numbers[4:].T.astype(np.float64)], axis=1), grid.anchors, grid.stride)

    def predict(self, batch: NDArray[Any]) -> list[Detections]:
        """Find objects, see `Detector.predict`."""
        parts = [batch[i : i + 1] for i in range(len(batch))] if self._takes_one else self._runner.input.parts(batch)
        return [found for part in parts for found in self._predict(part)]

    def _predict(self, batch: NDArray[Any]) -> list[Detections]:
        outputs = by_role(self._runner.run(batch), self._reading, self._head.roles)
        self._check(outputs)
        n_fed = self._runner.input.fixed_batch or len(batch)
        is_of_one = any(len(outputs[role]) != n_fed for role, rank in self._head.roles.items() if rank > _RANK_OF_ALL)
        if is_of_one:  # torchvision's export, and graphs that look at one image only
            if (self._runner.input.fixed_batch or 1) > 1:
                raise _mixed_batch(self._runner.input.fixed_batch)
            if len(batch) > 1:  # a graph that did not declare its outputs' form
                self._takes_one = True
                return self.predict(batch)
        return self._head.read(outputs, len(batch), batch.shape[2:])

    def _check(self, outputs: Outputs) -> None:
        for role, rank in self._head.roles.items():
            if outputs[role].ndim != rank and (role, outputs[role].ndim) not in _ALSO:
                name = self._reading.roles[role]
                raise ModelIncompatibleError(
                    f"The model's output '{name}' has shape {outputs[role].shape}, which is not that of {role} in the "
                    f"head '{self._reading.head}'.",
                    hint="Name another head with the argument head.",
                )
        table, least = outputs.get("table"), _LEAST_NUMBERS.get(self._reading.head, 0)
        if table is not None and table.shape[-1] < least:
            raise ModelIncompatibleError(
                f"The model's output '{self._reading.roles['table']}' has {table.shape[-1]} numbers in a row, and the "
                f"head '{self._reading.head}' reads {least}.",
                hint="Name another head with the argument head.",
            )


_LEAST_NUMBERS = {"rows": 6, "rows-obb": 7, "rows-seg": 7, "batch-rows": 7, "detr": 5}
_RANK_OF_ALL = 2
"""Axes of outputs whose first axis need not be the batch's: one table for all images, counts."""
_ALSO = (("scores", 3), ("masks", 5), ("counts", 2))
"""Forms that heads read besides: scores a class, masks with a channel's axis."""


def _limit(runner: Runner, reading: Reading) -> int | None:
    """Give the most objects that a graph with suppression inside can tell of."""
    name = reading.roles.get("table" if reading.head.startswith("rows") else "boxes", "")
    shape = next((item.shape for item in runner.outputs if item.name == name), None)
    is_limited = reading.head in ("rows", "rows-seg", "rows-obb", "detr", "boxes") and shape is not None
    return shape[1] if is_limited and shape is not None and len(shape) == 3 else None


def _mixed_batch(n: int | None) -> ModelUnsupportedError:
    return ModelUnsupportedError(
        f"The model takes {n} images at a time, and does not tell whose boxes it gives.",
        hint="Export it for one image, or with a batch axis in its outputs.",
    )
