"""What a server's picture claims to be is looked at before it is unpacked."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from rasterio.io import MemoryFile

from kestrel.inference.net.replies import Reply, TryAgain
from kestrel.inference.rasters.image_reply import decode, picture_taker

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def hollow(width: int, height: int, n_bands: int) -> Reply:
    """Give a TIFF without any pixels in it: a few kilobytes, whatever its size."""
    with MemoryFile() as file:
        with file.open(driver="GTiff", width=width, height=height, count=n_bands, dtype="uint8", tiled=True,
                       blockxsize=4096, blockysize=4096, SPARSE_OK=True, compress="deflate"):  # fmt: skip
            """Write nothing."""
        return Reply(200, {"content-type": "image/tiff"}, file.read(), "https://example.org/exportImage")


@pytest.mark.parametrize("size", [(256, 256), None])
def test_a_small_answer_that_claims_to_be_huge_is_refused_before_it_fills_the_memory(
    size: tuple[int, int] | None,
) -> None:
    reply = hollow(20_000, 20_000, 3)
    assert len(reply.content) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(TryAgain, match=r"20000 x 20000 pixels") as refused:
            decode(reply, size=size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused.value.few and peak < 2**24


def test_a_picture_of_the_size_that_was_asked_for_is_taken() -> None:
    found: list = []
    picture_taker(64, 32, found, 1)(hollow(64, 32, 1))
    assert found[0].pixels.shape == (1, 32, 64) and not np.any(found[0].pixels)
