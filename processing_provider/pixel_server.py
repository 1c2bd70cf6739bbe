"""PixelServer: reads or draws what the worker asks for, in the algorithm's own thread.

Data providers and layers belong to QGIS's main thread. The clones that are taken there (`PixelSources.take`) belong to
the run, and are used by one thread at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from qgis.core import (
    Qgis,
    QgsProcessingFeedback,
    QgsRasterBlock,
    QgsRasterBlockFeedback,
    QgsRasterDataProvider,
    QgsRectangle,
)

from ..inference.errors import RasterReadError
from ..inference.events import PixelsWanted
from ..inference.pictures import Picture
from .network_watch import NetworkWatch
from .text import to_plain, tr

READ_LIMIT = 120.0
"""Seconds that QGIS may take for one picture; its requests have limits of their own, and are repeated."""
_LOOK = 0.1
_TOLD_EVERY = 30.0
_INSET = 1e-3
"""Share of a pixel by which a rectangle of tiles is drawn in: its edges lie on those of tiles, and what touches the
neighbours is fetched, too."""

DTYPES: Mapping[Qgis.DataType, str] = {
    Qgis.DataType.Byte: "uint8",
    Qgis.DataType.UInt16: "uint16",
    Qgis.DataType.Int16: "int16",
    Qgis.DataType.UInt32: "uint32",
    Qgis.DataType.Int32: "int32",
    Qgis.DataType.Float32: "float32",
    Qgis.DataType.Float64: "float64",
}
if hasattr(Qgis.DataType, "Int8"):
    DTYPES = {**DTYPES, Qgis.DataType.Int8: "int8"}


class PixelMaker(Protocol):
    """What gives the pixels of one source; owned by the run."""

    def pixels(self, extent: QgsRectangle, width: int, height: int, stop: Stop) -> tuple[Any, Any]:
        """Give (C, H, W) pixels, and (H, W) whether there is one.

        Raises:
            RasterReadError: there are none.
        """
        ...

    def renew(self) -> None:
        """Begin anew after a failure: a provider may remember it."""
        ...


class Stop:
    """Ends what QGIS is at, from another thread, when the run is cancelled or a limit is reached."""

    def __init__(self, feedback: QgsProcessingFeedback, seconds: float) -> None:
        """Watch for one picture."""
        self._feedback, self._end = feedback, time.monotonic() + seconds
        self._done = threading.Event()
        self.is_late = False

    @contextmanager
    def calling(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Call `cancel`, from a thread of its own, as soon as the work in this context is to end."""

        def watch() -> None:
            while not self._done.wait(_LOOK):
                self.is_late = time.monotonic() > self._end
                if self.is_late or self._feedback.isCanceled():
                    cancel()
                    return

        self._done.clear()
        thread = threading.Thread(target=watch, name="kestrel-pixels-stop", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()


@dataclass
class ProviderPixels:
    """Pixels of a data provider: what the server sends, without the layer's style.

    Attributes:
        provider: A clone that belongs to the run.
        is_tiled: Whether it is read tile by tile, at a resolution of its own.
    """

    provider: QgsRasterDataProvider
    is_tiled: bool

    def renew(self) -> None:
        """Take a new clone."""
        self.provider = self.provider.clone()

    def pixels(self, extent: QgsRectangle, width: int, height: int, stop: Stop) -> tuple[Any, Any]:
        """Read, see PixelMaker."""
        if self.is_tiled:
            extent = extent.buffered(-_INSET * extent.width() / width)
        if is_colored(self.provider):
            block = self._block(1, extent, width, height, stop)
            return from_argb(block, is_premultiplied=block.dataType() == Qgis.DataType.ARGB32_Premultiplied)
        return self._values(extent, width, height, stop)

    def _values(self, extent: QgsRectangle, width: int, height: int, stop: Stop) -> tuple[Any, Any]:
        bands, cover = [], np.zeros((height, width), np.bool_)
        for number in value_bands(self.provider):
            block = self._block(number, extent, width, height, stop)
            values = np.frombuffer(bytes(block.data()), DTYPES[block.dataType()]).reshape(height, width)
            cover |= self._is_data(number, values, block)
            bands.append(values)
        return np.stack([band.astype(np.result_type(*bands)) for band in bands]), cover

    def _is_data(self, number: int, values: Any, block: QgsRasterBlock) -> Any:
        present = ~np.isnan(values) if values.dtype.kind == "f" else np.ones(values.shape, np.bool_)
        nodata = []
        if block.hasNoDataValue():
            nodata.append(block.noDataValue())
        if self.provider.sourceHasNoDataValue(number) and self.provider.useSourceNoDataValue(number):
            nodata.append(self.provider.sourceNoDataValue(number))
        for value in nodata:
            present &= values != value
        for wanted in self.provider.userNoDataValues(number):
            present &= ~((values >= wanted.min()) & (values <= wanted.max()))
        return present

    def _block(self, number: int, extent: QgsRectangle, width: int, height: int, stop: Stop) -> QgsRasterBlock:
        feedback = QgsRasterBlockFeedback()
        with stop.calling(feedback.cancel):
            block = self.provider.block(number, extent, width, height, feedback)
        errors = feedback.errors()
        if block is None or not block.isValid() or block.isEmpty() or errors:
            raise RasterReadError(f"QGIS reads no pixels: {'; '.join(errors[:3]) or 'its data provider failed'}")
        return block


def is_colored(provider: QgsRasterDataProvider) -> bool:
    """Tell whether a provider gives pictures, colours with transparency, in one band."""
    return provider.dataType(1) in (Qgis.DataType.ARGB32, Qgis.DataType.ARGB32_Premultiplied)


def value_bands(provider: QgsRasterDataProvider) -> list[int]:
    """Give the 1-based numbers of the bands that hold values, not transparency."""
    numbers = range(1, provider.bandCount() + 1)
    alpha = Qgis.RasterColorInterpretation.AlphaBand
    return [number for number in numbers if provider.colorInterpretation(number) != alpha]


def from_argb(block: Any, *, is_premultiplied: bool) -> tuple[Any, Any]:
    """Turn a block, or a QImage's bytes, of 32-bit colours into (3, H, W) red, green, blue and (H, W) cover.

    Where something is half transparent, the colour is as a map shows it on white; where all is, there is no pixel.
    """
    width, height = block.width(), block.height()
    raw = block.data() if isinstance(block, QgsRasterBlock) else block.constBits().asstring(block.sizeInBytes())
    colors = np.frombuffer(bytes(raw), "<u4").reshape(height, -1)[:, :width]
    alpha = (colors >> 24).astype(np.uint16)
    bands = np.stack([(colors >> shift) & 0xFF for shift in (16, 8, 0)]).astype(np.uint16)
    if (alpha % 255).any():
        if not is_premultiplied:
            bands = (bands * alpha + 127) // 255
        bands = np.minimum(bands + (255 - alpha), 255)
    return bands.astype(np.uint8), alpha > 0


@dataclass
class PixelSource:
    """One raster of a job that QGIS reads or draws."""

    name: str
    maker: PixelMaker
    hosts: tuple[str, ...]
    """Servers behind it, see NetworkWatch."""


class PixelServer:
    """Answers the worker's requests for pixels.

    Args:
        sources: `RasterItem.source` -> what gives its pixels.
        feedback: Asked whether the run is cancelled, and told when a server does not answer.
    """

    def __init__(self, sources: Mapping[str, PixelSource], feedback: QgsProcessingFeedback) -> None:
        """Begin to watch the network."""
        self._sources, self._feedback = sources, feedback
        self._watch = NetworkWatch(host for source in sources.values() for host in source.hosts)
        self._next_word = 0.0

    def __enter__(self) -> PixelServer:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._watch.close()

    def __call__(self, wanted: PixelsWanted) -> Picture:
        """Read or draw a picture.

        Raises:
            RasterReadError: there are no pixels.
        """
        source = self._sources.get(wanted.source)
        if source is None:
            raise RasterReadError("QGIS does not know the raster that pixels are asked of.")
        if wanted.again:
            self._watch.forget_bad_replies()
            source.maker.renew()
        stop = Stop(self._feedback, READ_LIMIT)
        try:
            pixels, cover = source.maker.pixels(QgsRectangle(*wanted.extent), wanted.width, wanted.height, stop)
        except RasterReadError as error:
            heard = self._watch.take()
            self._tell(source.name, heard.reason or error.message)
            raise RasterReadError(heard.reason or error.message) from error
        heard = self._watch.take()
        failures, reason = heard.failures, heard.reason
        if stop.is_late:
            failures, reason = max(failures, 1), reason or "the server did not answer in time"
        if failures and not cover.all():
            self._tell(source.name, reason)
        shape = (int(pixels.shape[0]), wanted.height, wanted.width)
        parts = pixels.tobytes(), cover.astype(np.uint8).tobytes()
        return Picture(pixels.dtype.name, shape, *parts, heard.answered, failures, reason)

    def _tell(self, name: str, reason: str) -> None:
        now = time.monotonic()
        if now < self._next_word or self._feedback.isCanceled():
            return
        self._next_word = now + _TOLD_EVERY
        text = tr("Parts of '{name}' do not come: {reason}. They are asked for again.")
        self._feedback.pushWarning(text.format(name=to_plain(name), reason=to_plain(reason)))
