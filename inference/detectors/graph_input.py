"""The image input of a graph that a library runs: what it takes, and how raster values become that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelIncompatibleError, ModelUnsupportedError
from ..models.definition import ModelDefinition
from ..preprocess import make_normalisation


class GraphInput:
    """What a graph takes.

    Args:
        dtype: Type of its pixels: uint8 or a float.
        batch, channels, height, width: Sizes of its input, None where they are free.
        definition: The definition, with the bands and their normalisation.

    Attributes:
        fixed_batch: How many images it takes, None for any number.
        network_size: Side of its images in pixels, None for any.

    Raises:
        ModelUnsupportedError: it takes something other than squares.
        ModelIncompatibleError: its channels are not the definition's bands, or its type does not suit their scaling.
    """

    def __init__(
        self,
        dtype: Any,
        batch: int | None,
        channels: int | None,
        height: int | None,
        width: int | None,
        definition: ModelDefinition,
    ) -> None:
        """Check what the graph takes against what the definition says."""
        n_bands = len(definition.input.bands)
        if channels is not None and channels != n_bands:
            raise ModelIncompatibleError(
                f"The model takes {channels} channels, and its definition names {n_bands} bands."
            )
        if height != width:
            raise ModelUnsupportedError(f"The model takes {width} x {height} pixels; Kestrel cuts square tiles.")
        self._normalisation = make_normalisation(definition.input)
        self._dtype = np.dtype(dtype)
        if self._dtype == np.uint8 and not self._normalisation.is_identity:
            raise ModelIncompatibleError("The model takes 8-bit pixels as they are, but its definition scales them.")
        self.fixed_batch, self.network_size = batch, height

    def parts(self, batch: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """Cut a batch into ones that `feed` takes."""
        size = self.fixed_batch or max(len(batch), 1)
        return (batch[start : start + size] for start in range(0, len(batch), size))

    def feed(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Give what the graph is fed with for a batch (N, C, S, S) of raster values, in its own type.

        A graph that takes no fewer images than a fixed number gets the last one again; what it gives for these stands
        at the end of its outputs.

        Raises:
            ModelIncompatibleError: it takes 8-bit pixels, and the raster has others.
        """
        if self._dtype == np.uint8 and batch.dtype != np.uint8:
            raise ModelIncompatibleError(
                f"The model takes 8-bit pixels, and the raster's are {batch.dtype}.",
                hint="Set the model argument stretch to percentiles, or convert the raster to 8 bits.",
            )
        fed = batch if self._dtype == np.uint8 else self._normalisation.apply(batch).astype(self._dtype, copy=False)
        n_missing = (self.fixed_batch or 0) - len(batch)
        return np.concatenate([fed, np.repeat(fed[-1:], n_missing, axis=0)]) if n_missing > 0 else fed
