"""A network of PyTorch that is a program, TorchScript or an exported one: loaded by torch, and run on batches.

Finished boxes are brought to one form. Any other output goes back as it is, tensor by tensor under its name: the worker
knows the heads of networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from .frames import MAX_ARRAYS, RAW, Frame
from .stages import UnusableProgram, stage

_IN_MASK = 0.5  # of a pixel's probability


def load_network(request: Mapping[str, Any]) -> NetworkProgram:
    """Load a network, and look at what it gives for an empty image.

    Args:
        request: `kind`; `file`, a path; `device`, the number of the GPU or -1; `n_threads`; `n_bands` and `size` of
            the images; `is_raw`, whether its output is known to be no finished boxes.

    Raises:
        UnusableProgram: its output has a form that is not known.
        Stage: it failed; where, and with what as the cause.
    """
    import torch

    torch.set_num_threads(max(1, int(request["n_threads"])))
    device = torch.device("cpu" if int(request["device"]) < 0 else f"cuda:{int(request['device'])}")
    with stage("load"):
        loader = _exported if request.get("kind") == "torch_export" else _scripted
        network = loader(str(request["file"]), device)
    program = NetworkProgram(network, device, is_raw=bool(request.get("is_raw")))
    size = int(request["size"])
    with stage("forward"):
        program.probe(torch.zeros((1, int(request["n_bands"]), size, size), device=device))
    return program


def _scripted(path: str, device: Any) -> Any:
    import torch

    return torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]


def _exported(path: str, device: Any) -> Any:
    import torch
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(torch.export.load(path), device).module()


@dataclass(frozen=True, eq=False)
class _Found:
    """What was found in one image.

    Shape:
        boxes (M, 4), scores (M,), labels (M,); masks (M, S, S) bool, or None where the network gives none.
    """

    boxes: NDArray[Any]
    scores: NDArray[Any]
    labels: NDArray[Any]
    masks: NDArray[np.bool_] | None = None


class NetworkProgram:
    """A network that is ready for batches."""

    def __init__(self, network: Any, device: Any, *, is_raw: bool = False) -> None:
        """Take the parts."""
        self._network, self._device, self._is_raw = network, device, is_raw
        self._takes_list = _takes_list(network)
        self._dtype = _number_type(network)
        self._takes_batch = False
        self._has_masks = False
        self._shapes: dict[str, list[Any]] = {}

    def probe(self, batch: Any) -> None:
        """Find out what the output looks like: only the form of torchvision tells image from image."""
        output = self._forward(batch)
        self._takes_batch = not self._is_raw and _as_dicts(output) is not None
        if not self._takes_batch:
            single = None if self._is_raw else _single(output, int(batch.shape[-1]))
            self._is_raw = single is None
            if single is None:
                self._shapes = {name: [array.dtype.name, *array.shape] for name, array in _raw(output).items()}
                return
        self._has_masks = self._run(batch)[0].masks is not None

    def describe(self) -> dict[str, Any]:
        """Give whether a batch may hold more than one image, whether objects have masks, and what is no boxes."""
        return {"takes_batch": self._takes_batch, "has_masks": self._has_masks, "raw": self._shapes}

    def find(self, request: Frame) -> dict[str, NDArray[Any]]:
        """Run a batch.

        Shape:
            request.arrays: images (N, C, S, S) float32, normalised; gives counts (N,) int64, and for all images
            together boxes (M, 4), scores (M,), labels (M,), and where there are masks their bits (M, S, S / 8). A
            network whose output is no boxes gives it as it is, under RAW and each tensor's name.
        """
        import torch

        with stage("forward"):
            images = torch.from_numpy(np.asarray(request.arrays["images"], np.float32)).to(self._device)
            if self._is_raw:
                return _raw(self._forward(images))
            found = self._run(images)
        answer = {
            "counts": np.array([len(item.scores) for item in found], np.int64),
            "boxes": np.concatenate([item.boxes for item in found]),
            "scores": np.concatenate([item.scores for item in found]),
            "labels": np.concatenate([item.labels for item in found]),
        }
        masks = [item.masks for item in found if item.masks is not None]
        if len(masks) == len(found):
            answer["masks"] = np.packbits(np.concatenate(masks), axis=-1)
        return answer

    def _forward(self, batch: Any) -> Any:
        import torch

        batch = batch.to(self._dtype)
        with torch.inference_mode():
            return self._network(list(batch) if self._takes_list else batch)

    def _run(self, batch: Any) -> list[_Found]:
        side = int(batch.shape[-1])
        if not self._takes_batch:
            outputs = (self._forward(batch[number : number + 1]) for number in range(len(batch)))
            return [_single(output, side) or _refuse(output) for output in outputs]
        items = _as_dicts(self._forward(batch)) or []
        if len(items) != len(batch):
            raise UnusableProgram(f"it gave {len(items)} results for {len(batch)} images")
        keys = ("boxes", "scores", "labels", "masks")
        found = [_tensors([item[key] for key in keys if key in item], side) for item in items]
        return [item if item is not None else _refuse(items) for item in found]


def _takes_list(network: Any) -> bool:
    """Tell whether the network takes a list of images, as torchvision's detectors do, or a batch."""
    schema = getattr(network.forward, "schema", None)
    arguments = schema.arguments[1:] if schema is not None else []
    return bool(arguments) and "List[Tensor]" in str(arguments[0].type)


def _number_type(network: Any) -> Any:
    """Give the type of the network's own numbers, 16 bits for one that was saved so."""
    import torch

    kinds = (parameter.dtype for parameter in network.parameters() if parameter.dtype.is_floating_point)
    return next(kinds, torch.float32)


def _raw(output: Any) -> dict[str, NDArray[Any]]:
    """Give a network's tensors as arrays of float32 or of whole numbers, by their names or their places.

    Raises:
        UnusableProgram: it gives something else than tensors.
    """
    named = output.items() if isinstance(output, dict) else [
        (f"output{number}", tensor) for number, tensor in enumerate(_flat(output))
    ]  # fmt: skip
    arrays = {f"{RAW}{name}": tensor for name, tensor in named if hasattr(tensor, "shape")}
    if not arrays or len(arrays) > MAX_ARRAYS:
        _refuse(output)
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().numpy()
        for name, tensor in arrays.items()
    }


def _flat(output: Any) -> list[Any]:
    """Give the tensors of nested tuples and lists, in their order."""
    if isinstance(output, (list, tuple)):
        return [tensor for item in output for tensor in _flat(item)]
    return [output]


def _as_dicts(output: Any) -> list[Any] | None:
    """Give torchvision's form, a list of dicts, alone or after the losses; None for another form."""
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], dict):
        output = output[1]
    is_list = isinstance(output, (list, tuple)) and len(output) > 0
    keys = {"boxes", "scores", "labels"}
    return list(output) if is_list and all(isinstance(item, dict) and keys <= set(item) for item in output) else None


def _single(output: Any, side: int) -> _Found | None:
    """Read the result for one image: three tensors, with masks four, or one with six columns; None for other forms."""
    if isinstance(output, (list, tuple)) and len(output) == 1:
        output = output[0]
    if hasattr(output, "shape"):
        table = _squeezed(output, 2)
        if table is not None and table.shape[1] == 6:
            return _Found(table[:, :4], table[:, 4], table[:, 5])
    is_some = isinstance(output, (list, tuple)) and all(hasattr(item, "shape") for item in output)
    return _tensors(list(output), side) if is_some else None


def _refuse(output: Any) -> NoReturn:
    raise UnusableProgram(
        f"it gives {_described(output)}; known are torchvision's list of dicts, three tensors (boxes, scores, "
        "labels) or four (masks), one tensor of six columns, and bare tensors"
    )


def _tensors(tensors: list[Any], side: int) -> _Found | None:
    """Read boxes, scores, labels and perhaps masks, told apart by shape and type; None where they are not that."""
    # Boxes with a batch axis are the only table of three axes; without one, scores with such an axis look like boxes.
    order = sorted(range(len(tensors)), key=lambda number: -tensors[number].dim())
    of_boxes = next((n for n in order if (b := _squeezed(tensors[n], 2)) is not None and b.shape[1] == 4), None)
    if of_boxes is None:
        return None
    boxes: Any = _squeezed(tensors[of_boxes], 2)
    rest = [tensor for number, tensor in enumerate(tensors) if number != of_boxes]
    columns = [(column, t.is_floating_point()) for t in rest if (column := _squeezed(t, 1)) is not None]
    masks = [mask for t in rest if (mask := _masks(t, len(boxes), side)) is not None]
    if len(columns) != 2 or any(len(column) != len(boxes) for column, _ in columns):
        return None
    if len(columns) + len(masks) < len(rest) - 1:  # one more may be there, of masks in a form that is not known
        return None
    # By type where that tells them apart: some exporters give labels before scores.
    (first, first_is_float), (second, second_is_float) = columns
    is_swapped = second_is_float and not first_is_float
    scores, labels = (second, first) if is_swapped else (first, second)
    return _Found(boxes, scores, labels, masks[0] if masks else None)


def _masks(tensor: Any, n: int, side: int) -> NDArray[np.bool_] | None:
    """Give masks of the whole image, (n, 1, side, side) of 0 to 1; None where the tensor is none."""
    if tuple(tensor.shape) != (n, 1, side, side):
        return None
    masks: NDArray[np.bool_] = (tensor.detach()[:, 0] >= _IN_MASK).cpu().numpy()
    return masks


def _squeezed(tensor: Any, n_dimensions: int) -> NDArray[Any] | None:
    """Give a tensor as an array of so many dimensions, without a batch axis of one; None where it is not that."""
    has_axis = tensor.dim() == n_dimensions + 1 and tensor.shape[0] == 1
    if not has_axis and tensor.dim() != n_dimensions:
        return None
    array: NDArray[Any] = tensor.detach().float().cpu().numpy()
    return array[0] if has_axis else array


def _described(output: Any, depth: int = 0) -> str:
    if hasattr(output, "shape"):
        return f"a tensor {list(output.shape)}"
    if isinstance(output, dict):
        return f"a dict of {', '.join(map(str, list(output)[:8]))}"
    if isinstance(output, (list, tuple)) and depth < 2:
        inner = ", ".join(_described(item, depth + 1) for item in output[:8])
        return f"a {type(output).__name__} of {len(output)} ({inner})"
    return type(output).__name__
