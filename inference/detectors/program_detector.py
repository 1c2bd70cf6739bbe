"""A program of PyTorch that gives its network's bare output: read here, with the heads of ONNX graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..detections import Detections
from ..errors import ProtocolError
from ..host.frames import RAW
from ..models.definition import ModelDefinition
from ..models.onnx_file import TensorInfo
from ..models.package import ModelPackage
from .graph_input import GraphInput
from .heads import Outputs
from .onnx_detector import OnnxDetector, detector_of
from .protocol import DetectorSettings, Traits

_KINDS = "fiub"
_MOST_NAME = 200
_TYPES = ("float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


class Host(Protocol):
    """The process that the program runs in."""

    def find(self, arrays: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """Give what the program gives for one batch."""
        ...

    def close(self) -> None:
        """End the process."""
        ...


def bare_output(
    host: Host, told: Any, package: ModelPackage, arguments: Mapping[str, Any], settings: DetectorSettings
) -> BareOutputDetector:
    """Give the detector of a program whose output is no finished boxes.

    Args:
        host: The process.
        told: What it says of its outputs for one image: type and shape by name.
        package: The package.
        arguments: Resolved model arguments.
        settings: Threads, and a sample of the raster.

    Raises:
        ProtocolError: what the process said cannot be.
        ModelUnsupportedError: the outputs are none that Kestrel knows.
    """
    definition = package.definition
    runner = HostRunner(host, _described(told), definition)
    return BareOutputDetector(host, detector_of(runner, package, arguments, settings, n_callers=1))


class HostRunner:
    """The program as heads want it: knows sizes and types, and nothing of detections.

    Attributes:
        input: The images that it takes, one at a time: whether it takes more cannot be seen from outside.
        outputs: What it gave for the first one.
    """

    def __init__(self, host: Host, outputs: tuple[TensorInfo, ...], definition: ModelDefinition) -> None:
        """Take the parts."""
        self._host, self.outputs = host, outputs
        side = None if definition.tile.is_variable else definition.tile.size
        self.input = GraphInput(np.float32, (1, len(definition.input.bands), side, side), definition)

    def run(self, batch: NDArray[Any]) -> Outputs:
        """Run an image (1, C, H, W) of raster values.

        Raises:
            TileError: the program failed.
        """
        answer = self._host.find({"images": self.input.feed(batch)})
        outputs = {name[len(RAW) :]: array for name, array in answer.items() if name.startswith(RAW)}
        is_whole = set(outputs) == {item.name for item in self.outputs} and len(outputs) == len(answer)
        if not is_whole or not all(array.dtype.kind in _KINDS for array in outputs.values()):
            raise ProtocolError("The process of the model's program sent an answer without the network's output.")
        return outputs


class BareOutputDetector:
    """A detector whose network runs in a process of its own."""

    def __init__(self, host: Host, inner: OnnxDetector) -> None:
        """Take the parts."""
        self._host, self._inner = host, inner

    @property
    def traits(self) -> Traits:
        """Describe the network."""
        return self._inner.traits

    def predict(self, batch: NDArray[Any]) -> list[Detections]:
        """Find objects, see `Detector.predict`.

        Raises:
            TileError: the network failed.
        """
        try:
            return self._inner.predict(batch)
        except (ValueError, IndexError) as error:  # shapes that the program gave for the first image, and now does not
            raise ProtocolError("The process of the model's program sent an output of another form.") from error

    def close(self) -> None:
        """End the network's process."""
        self._host.close()


def _described(told: Any) -> tuple[TensorInfo, ...]:
    """Read what the host tells of a network's outputs: `{name: [type, side, ...]}`."""
    found = []
    for name, form in told.items() if isinstance(told, Mapping) else ():
        is_form = isinstance(form, list) and 0 < len(form) <= 5 and form[0] in _TYPES
        if not name.startswith(RAW) or not is_form or not all(type(n) is int and n >= 0 for n in form[1:]):
            break
        found.append(TensorInfo(name[len(RAW) :][:_MOST_NAME], form[0], tuple(form[1:])))
    if not found or len(found) != len(told):
        raise ProtocolError("The process of the model's program described an output that cannot be.")
    return tuple(found)
