"""What the networks that torch runs share: errors in Kestrel's words, devices, normalisation, resizing, weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torchvision import models
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from ..errors import (
    DeviceMemoryError,
    DeviceUnavailableError,
    ModelError,
    ModelIncompatibleError,
    ModelUnsupportedError,
    first_line,
    is_out_of_memory,
)
from ..models.definition import InputSpec
from ..preprocess import make_normalisation
from .protocol import DetectorSettings

_BODIES = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn",
    "densenet121", "densenet161", "densenet169", "densenet201", "mobilenet_v2",
)  # fmt: skip
_COUNTER = "num_batches_tracked"  # of batches seen in training: no weight, and absent from frozen batch norms

Movable = TypeVar("Movable", torch.nn.Module, torch.Tensor)


@contextmanager
def translated(n: int) -> Iterator[None]:
    """Turn torch's errors while a batch of `n` tiles is run into Kestrel's.

    Raises:
        DeviceMemoryError: the batch is too large.
        ModelError: the network failed.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise DeviceMemoryError.of_batch(n) from error
        raise ModelError(f"The network failed: {first_line(error)}.") from error


def to_device(thing: Movable, device: str) -> Movable:
    """Give a network or a tensor on a device.

    Raises:
        DeviceUnavailableError: the device does not exist or cannot be used.
    """
    try:
        return thing.to(device)
    except (RuntimeError, AssertionError) as error:
        raise DeviceUnavailableError(
            f"The device '{device}' cannot be used: {first_line(error)}.",
            hint="Choose processor CPU, or another GPU.",
        ) from error


def make_ready(network: torch.nn.Module, settings: DetectorSettings) -> torch.nn.Module:
    """Give a filled network ready to be run: for inference, on its device, with the threads that were asked for.

    Raises:
        DeviceUnavailableError: the device does not exist or cannot be used.
    """
    if settings.device == "cpu":
        torch.set_num_threads(settings.n_threads)
    return to_device(network.eval().requires_grad_(False), settings.device)


class Normaliser:
    """A definition's normalisation, done on the network's device.

    Raises:
        DeviceUnavailableError: the device does not exist or cannot be used.
    """

    def __init__(self, spec: InputSpec, device: str) -> None:
        """Put the factors on the device."""
        factors = make_normalisation(spec)
        self._gain = to_device(torch.from_numpy(factors.gain), device)
        self._bias = to_device(torch.from_numpy(factors.bias), device)

    def __call__(self, batch: NDArray[Any]) -> torch.Tensor:
        """Give the network's input. The batch stays as it is: it may be run again.

        Shape:
            batch (N, C, S, S), raster values of any numeric type; gives float32 of the same shape on the device.
        """
        pixels = torch.from_numpy(batch).to(self._gain.device).float()
        return pixels.mul(self._gain).add_(self._bias)


class TileTransform(GeneralizedRCNNTransform):  # type: ignore[misc]
    """What torchvision's detectors do to images first and to boxes last: here the size follows that of the tile.

    torchvision's own brings images of all sizes to one. Images come normalised, and masks go out small, as the network
    gives them: a tile may hold a thousand objects, and pasting each mask into a whole tile would need gigabytes.

    Args:
        zoom: Pixels of the network in one pixel of the tile.
        most: Longest side that the network sees; None: any.
    """

    def __init__(self, zoom: float = 1.0, most: float | None = None) -> None:
        """Switch torchvision's normalisation off."""
        super().__init__(min_size=0, max_size=0, image_mean=[0.0], image_std=[1.0])
        self._zoom, self._most = zoom, most

    def normalize(self, image: torch.Tensor) -> torch.Tensor:
        """Leave the image as it is."""
        return image

    def resize(self, image: torch.Tensor, target: None = None) -> tuple[torch.Tensor, None]:
        """Give the image as the network sees it."""
        side = max(image.shape[-2:])
        longest = min(self._zoom * side, self._most or float("inf"))
        if longest == side:
            return image, target
        self.min_size, self.max_size = (longest / side * min(image.shape[-2:]),), longest
        resized: torch.Tensor = super().resize(image, target)[0]
        return resized, target

    def postprocess(
        self, result: list[dict[str, torch.Tensor]], image_shapes: list[Any], original_image_sizes: list[Any]
    ) -> list[dict[str, torch.Tensor]]:
        """Take boxes back to the tile's pixels."""
        masks = [item.pop("masks", None) for item in result]
        placed: list[dict[str, torch.Tensor]] = super().postprocess(result, image_shapes, original_image_sizes)
        return [item if mask is None else {**item, "masks": mask} for item, mask in zip(placed, masks)]


def fill(network: torch.nn.Module, state: Mapping[str, torch.Tensor], what: str, hint: str = "") -> None:
    """Fill a network with weights, all of them and no others.

    Args:
        network: Built, with weights of its own that are replaced.
        state: Weights by their names in the network.
        what: The network's name for messages, for example "FasterRCNN with resnet50".
        hint: The way out where the weights do not fit.

    Raises:
        ModelIncompatibleError: a tensor is missing, left over, or of another shape; it names the first one.
    """
    own = network.state_dict()
    problem = _first_difference(own, state)
    if problem:
        raise ModelIncompatibleError(
            f"The weights do not fit {what}: {problem}.",
            hint=hint or "Check the architecture, and that bands and classes are those of the training.",
        )
    network.load_state_dict({name: state.get(name, tensor) for name, tensor in own.items()})


def check_bands(state: Mapping[str, torch.Tensor], first: str, n_bands: int, what: str) -> None:
    """Refuse weights whose first convolution, the tensor `first`, takes other bands than the definition names.

    Raises:
        ModelIncompatibleError: the numbers differ.
    """
    weight = state.get(first)
    if weight is not None and weight.dim() == 4 and weight.shape[1] != n_bands:
        raise ModelIncompatibleError(
            f"The weights of {what} take {weight.shape[1]} bands (tensor '{first}' is {_shape(weight)}), and the "
            f"definition names {n_bands}.",
            hint="Set ExtractBands in the model definition to the bands of the training.",
        )


def check_classes(state: Mapping[str, torch.Tensor], last: str, expected: int, per_class: int, what: str) -> None:
    """Refuse weights whose last layer, the tensor `last`, was made for another number of classes.

    Args:
        state: The weights.
        last: Name of the tensor.
        expected: Rows that it should have.
        per_class: How many of them belong to one class.
        what: The network's name for messages.

    Raises:
        ModelIncompatibleError: the numbers differ.
    """
    weight = state.get(last)
    if weight is not None and weight.dim() > 0 and len(weight) != expected:
        gap = abs(len(weight) - expected) / per_class
        raise ModelIncompatibleError(
            f"The weights of {what} know {gap:g} {'more' if len(weight) > expected else 'fewer'} classes than the "
            f"definition names (tensor '{last}' is {_shape(weight)}, expected {expected} rows).",
            hint="Set Classes in the model definition to those of the training, in their order.",
        )


def _first_difference(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> str:
    """Say what does not fit, or nothing."""
    missing = [name for name in own if name not in state and not name.endswith(_COUNTER)]
    left_over = [name for name in state if name not in own and not name.endswith(_COUNTER)]
    if missing or left_over:
        first = f"'{missing[0]}' {_shape(own[missing[0]])} is missing" if missing else (
            f"'{left_over[0]}' {_shape(state[left_over[0]])} has no place in it"
        )  # fmt: skip
        return f"{first} ({len(missing)} missing, {len(left_over)} left over)"
    for name, tensor in own.items():
        if name in state and state[name].shape != tensor.shape and not name.endswith(_COUNTER):
            return f"'{name}' is {_shape(state[name])}, expected {_shape(tensor)}"
    return ""


def _shape(tensor: torch.Tensor) -> str:
    return f"[{', '.join(str(side) for side in tensor.shape)}]"


def create_body(backbone: str, n_bands: int, cut: int = -2) -> torch.nn.Sequential:
    """Give the convolutional part of one of torchvision's classifiers, as fastai's create_body numbers it.

    Args:
        backbone: The classifier's name, for example "resnet34".
        n_bands: Channels of the first convolution.
        cut: Where the classifier's children end: -2 (resnet), -3 (resnet without its last layer), -1 (the others).

    Raises:
        ModelUnsupportedError: not one of the backbones that Kestrel builds.
    """
    if backbone not in _BODIES:
        raise ModelUnsupportedError(
            f"The backbone '{backbone}' is not one that Kestrel builds.", hint=f"Backbones: {', '.join(_BODIES)}."
        )
    body = torch.nn.Sequential(*list(getattr(models, backbone)(weights=None).children())[:cut])
    widen(body, n_bands)
    return body


def widen(network: torch.nn.Module, n_bands: int) -> None:
    """Give a network's first convolution as many channels as the images have bands; its weights are zero then."""
    first = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
    if first.in_channels != n_bands:
        first.in_channels = n_bands
        first.weight = torch.nn.Parameter(torch.zeros(first.out_channels, n_bands, *first.kernel_size))
