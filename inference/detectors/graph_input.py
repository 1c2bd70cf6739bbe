"""The image input of a graph that a library runs: what it takes, and how raster values become that."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelIncompatibleError, ModelUnsupportedError
from ..models.definition import InputSpec, ModelDefinition
from ..preprocess import make_normalisation


class GraphInput:
    """What a graph takes.

    Args:
        dtype: Type of its pixels: uint8, uint16 or a float.
        shape: The input's four axes, None where they are free: (N, C, H, W), or (N, H, W, C) where the last one has as
            many channels as there are bands.
        definition: The definition, with the bands and their normalisation.

    Attributes:
        fixed_batch: How many images it takes, None for any number.
        size: Height and width of its images in pixels, None for any.

    Raises:
        ModelUnsupportedError: it takes images of which one side is fixed and the other is not.
        ModelIncompatibleError: its channels are not the definition's bands, or its type does not suit their scaling.
    """

    def __init__(self, dtype: Any, shape: Sequence[int | None], definition: ModelDefinition) -> None:
        """Check what the graph takes against what the definition says."""
        n_bands = len(definition.input.bands)
        self._has_channels_last = shape[1] != n_bands and shape[3] == n_bands
        batch, channels, height, width = [shape[i] for i in (0, 3, 1, 2)] if self._has_channels_last else shape
        if channels is not None and channels != n_bands:
            raise ModelIncompatibleError(
                f"The model takes {channels} channels, and its definition names {n_bands} bands."
            )
        if (height is None) != (width is None):
            raise ModelUnsupportedError(
                f"The model takes images of {width or 'any'} x {height or 'any'} pixels; Kestrel needs both sides "
                "fixed, or both free."
            )
        self._normalisation, self._is_reversed = make_normalisation(definition.input), False
        self._dtype = np.dtype(dtype)
        if self._takes_integers and not self._normalisation.is_identity:
            raise ModelIncompatibleError(
                f"The model takes {8 * self._dtype.itemsize}-bit pixels as they are, but its definition scales them."
            )
        self.fixed_batch = batch
        self.size = None if height is None or width is None else (height, width)

    @property
    def _takes_integers(self) -> bool:
        return self._dtype.kind in "ui"

    @property
    def is_adaptable(self) -> bool:
        """Tell whether pixels can be scaled in another way than the definition says."""
        return not self._takes_integers

    def adapt(self, spec: InputSpec, *, is_reversed: bool) -> None:
        """Take pixels scaled as `spec` says, with the bands in reversed order where asked."""
        self._normalisation, self._is_reversed = make_normalisation(spec), is_reversed

    def scaling_hash(self) -> str:
        """Give what tells one way of scaling pixels from another, as a name of a file may hold it."""
        numbers = np.concatenate([self._normalisation.gain.ravel(), self._normalisation.bias.ravel()])
        return hashlib.sha256(numbers.tobytes() + bytes([self._is_reversed])).hexdigest()[:12]

    def parts(self, batch: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """Cut a batch into ones that `feed` takes."""
        size = self.fixed_batch or max(len(batch), 1)
        return (batch[start : start + size] for start in range(0, len(batch), size))

    def feed(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Give what the graph is fed with for a batch (N, C, H, W) of raster values, in its own type and order.

        A graph that takes no fewer images than a fixed number gets the last one again; what it gives for these stands
        at the end of its outputs.

        Raises:
            ModelIncompatibleError: it takes whole numbers, and the raster has others.
        """
        if self._takes_integers and batch.dtype.kind == "f" and _fits(batch, self._dtype):
            batch = np.rint(batch).astype(self._dtype)
        if self._takes_integers and batch.dtype != self._dtype:
            raise ModelIncompatibleError(
                f"The model takes {8 * self._dtype.itemsize}-bit pixels, and the raster's are {batch.dtype}.",
                hint="Set the model argument stretch to percentiles, or convert the raster to that type.",
            )
        fed = batch if self._takes_integers else self._normalisation.apply(batch).astype(self._dtype, copy=False)
        fed = fed[:, ::-1] if self._is_reversed else fed
        n_missing = (self.fixed_batch or 0) - len(batch)
        fed = np.concatenate([fed, np.repeat(fed[-1:], n_missing, axis=0)]) if n_missing > 0 else fed
        return np.ascontiguousarray(fed.transpose(0, 2, 3, 1) if self._has_channels_last else fed)


def _fits(batch: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Tell whether values can be rounded to a type of whole numbers without being cut off."""
    ends = np.iinfo(dtype)
    return bool(batch.min(initial=0) >= ends.min and batch.max(initial=0) <= ends.max)
