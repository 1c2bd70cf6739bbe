"""Pictures: what QGIS hands over, played by a function that knows the whole image."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from kestrel.inference.errors import (
    JobError,
    ModelIncompatibleError,
    RasterFetchError,
    RasterOpenError,
    RasterReadError,
)
from kestrel.inference.events import Canceled
from kestrel.inference.pictures import Picture
from kestrel.inference.rasters import picture as picture_module
from kestrel.inference.rasters.source import GridRequest, TargetGrid
from kestrel.inference.tiling import Window
from kestrel.tests.fixtures.picture_host import LEFT, SIDE, TOP, UTM, Host, without
from kestrel.tests.fixtures.rasters import noise


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of no length, and little patience."""
    monkeypatch.setattr(picture_module, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr(picture_module, "PATIENCE", 0.3)


IMAGE = noise(3, 90, 100)


@given(st.integers(0, 99), st.integers(0, 89), st.integers(1, 100), st.integers(1, 90))
def test_any_window_is_the_same_part_of_the_picture(x: int, y: int, width: int, height: int) -> None:
    window = Window(x, y, min(width, 100 - x), min(height, 90 - y))
    pixels, present = Host(IMAGE).open().read(window)
    assert np.array_equal(pixels, IMAGE[:, y : window.bottom, x : window.right])
    assert present.shape == pixels.shape and present.all()


def test_each_block_is_asked_for_once_and_a_few_at_a_time_whoever_wants_it() -> None:
    host = Host(IMAGE, fault=lambda picture, extent, n: time.sleep(0.01) or picture)
    source = host.open()
    windows = [Window(x, y, 40, 40) for y in (0, 25, 50) for x in (0, 30, 60)] * 2
    with ThreadPoolExecutor(8) as threads:
        parts = list(threads.map(source.read, windows))
    assert all(np.array_equal(p, IMAGE[:, w.y : w.bottom, w.x : w.right]) for (p, _), w in zip(parts, windows))
    assert set(host.asked.values()) == {1} and len(host.asked) == 12
    assert host.most_at_once <= picture_module.AT_ONCE


def test_bands_come_in_the_model_s_order_and_by_their_names() -> None:
    pixels, _ = Host(IMAGE).open(bands=("blue", 0)).read(Window(3, 4, 20, 10))
    assert np.array_equal(pixels, IMAGE[[2, 0], 4:14, 3:23])
    for band in (3, "nir"):
        with pytest.raises(ModelIncompatibleError, match="Red, Green, Blue"):
            Host(IMAGE).open(bands=(band,))


def test_pixels_that_fail_are_asked_for_again_until_they_are_there() -> None:
    host = Host(IMAGE, fault=lambda p, extent, n: without(p, slice(n * 5, None)) if n < 4 else p)
    pixels, present = host.open().read(Window(0, 0, 100, 90))
    assert np.array_equal(pixels, IMAGE) and present.all()
    assert max(host.agains) == 4
    assert host.messages() == []


def test_one_good_pixel_is_kept_while_others_are_asked_for_again() -> None:
    """Each try brings another part: none of them is ever whole."""
    host = Host(IMAGE, fault=lambda p, extent, n: without(p, slice(16) if n % 2 else slice(16, None)))
    pixels, present = host.open().read(Window(0, 0, 100, 90))
    assert np.array_equal(pixels, IMAGE) and present.all()


def test_what_never_comes_is_an_error_with_place_and_reason_and_no_hole() -> None:
    host = Host(IMAGE, fault=lambda p, extent, n: without(p, slice(3)) if extent[0] == LEFT + 32 * SIDE else p)
    source = host.open()
    with pytest.raises(RasterFetchError, match=r"'tiles'.*columns 32 to 64, rows 0 to 32: HTTP 503") as caught:
        source.read(Window(20, 5, 20, 10))
    assert caught.value.context["window"] == [32, 0, 32, 32]
    assert source.read(Window(0, 0, 32, 90))[1].all()  # the others are not spoilt


def test_an_answer_without_any_pixels_counts_as_a_failure() -> None:
    def fault(picture: Picture, extent: tuple[float, ...], n: int) -> Picture:
        if n < 2:
            raise RasterReadError("its data provider failed")
        return picture

    pixels, _ = Host(IMAGE, fault=fault).open().read(Window(0, 0, 50, 50))
    assert np.array_equal(pixels, IMAGE[:, :50, :50])


def test_a_server_that_serves_others_is_not_waited_for_as_long_as_one_that_is_gone() -> None:
    bad = (LEFT, TOP - 32 * SIDE, LEFT + 32 * SIDE, TOP)
    host = Host(IMAGE)
    source = host.open(block=32)

    def fault(picture: Picture, extent: tuple[float, ...], n: int) -> Picture:
        if extent != bad:
            return picture
        source.read(Window(32 * (n % 4), 32 * (1 + n // 4), 8, 8))  # others are well meanwhile
        return without(picture, slice(1))

    host.fault = fault
    with pytest.raises(RasterFetchError):
        source.read(Window(0, 0, 8, 8))
    assert host.asked[bad] <= picture_module.TRIES + 1


def test_a_transparent_place_is_no_data_and_told_as_a_share_of_what_is_searched() -> None:
    cover = np.ones((90, 100), np.bool_)
    cover[:, 75:] = False
    host = Host(IMAGE, cover)
    source = host.open()
    pixels, present = source.read(Window(0, 0, 100, 90))
    source.close()
    assert np.array_equal(present, np.broadcast_to(cover, present.shape))
    assert np.array_equal(pixels, IMAGE * cover)
    assert set(host.asked.values()) == {1}
    assert host.messages() == ["25 % of the searched area had no picture in 'tiles': nothing is found there."]


def test_where_nothing_was_heard_of_the_server_a_hole_has_to_show_twice() -> None:
    host = Host(IMAGE, fault=lambda p, extent, n: without(p, slice(4), failures=0) if n == 0 else p)
    assert host.open().read(Window(0, 0, 32, 32))[1].all()
    host = Host(IMAGE, fault=lambda p, extent, n: without(p, slice(4), failures=0))
    assert not host.open().read(Window(0, 0, 32, 32))[1][:, :4].any()
    assert list(host.asked.values()) == [2]
    host.asked.clear()
    host.open(is_remote=False).read(Window(0, 0, 32, 32))
    assert list(host.asked.values()) == [1]


def test_beyond_the_layer_nothing_is_asked_for_and_nothing_is_missed() -> None:
    host = Host(IMAGE)
    source = host.open(width=200, height=200)
    pixels, present = source.read(Window(64, 64, 136, 136))
    assert present[:, :26, :36].all() and not present[:, 26:].any() and not present[:, :, 36:].any()
    assert all(extent[0] < LEFT + 100 * SIDE and extent[3] > TOP - 90 * SIDE for extent in host.asked)
    assert np.array_equal(pixels[:, :26, :36], IMAGE[:, 64:, 64:])


@pytest.mark.parametrize("nodata", [-9999.0, float("nan")])
def test_values_that_stand_for_no_data_are_none_in_their_band(nodata: float) -> None:
    image = IMAGE.astype(np.float32)
    image[1, 10:20, 5:9] = nodata
    source = Host(image).open(nodata=nodata)
    pixels, present = source.read(Window(0, 0, 30, 30))
    expected = np.ones((3, 30, 30), np.bool_)
    expected[1, 10:20, 5:9] = False
    assert np.array_equal(present, expected)
    assert pixels.dtype == np.float32 and np.isclose(source.nodata, nodata, equal_nan=True)


def test_another_grid_is_asked_for_where_qgis_can_give_any() -> None:
    pixels, _ = Host(IMAGE).open(grid=GridRequest(cell_size=1.0), any_grid=True).read(Window(0, 0, 50, 45))
    assert np.array_equal(pixels, IMAGE[:, 1::2, 1::2])
    with pytest.raises(RasterOpenError, match="own pixels"):
        Host(IMAGE).open(grid=GridRequest(cell_size=1.0))
    elsewhere = TargetGrid(10, 10, Affine(1, 0.5, 0, 0.5, -1, 0), UTM)
    with pytest.raises(RasterOpenError, match="own pixels"):
        Host(IMAGE).open(grid=GridRequest(target=elsewhere), any_grid=True)


def test_a_sample_is_a_coarse_picture_of_the_whole() -> None:
    host = Host(noise(3, 1200, 900))
    values = host.open(block=512).sample()
    assert [len(band) for band in values] == [384 * 512] * 3
    assert sum(host.asked.values()) == 1


def test_a_cancel_ends_the_wait_for_a_server_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_module, "_FIRST_PAUSE", 60.0)
    monkeypatch.setattr(picture_module, "_LONGEST_PAUSE", 60.0)
    host = Host(IMAGE, fault=lambda p, extent, n: without(p, slice(None)))
    threading.Timer(0.2, host.cancelled.set).start()
    start = time.monotonic()
    with pytest.raises(Canceled):
        host.open().read(Window(0, 0, 90, 90))
    assert time.monotonic() - start < 2


def test_an_answer_of_another_shape_or_type_is_refused() -> None:
    other = Host(IMAGE.astype(np.uint16))
    with pytest.raises(RasterReadError, match="other pixels"):
        other.open(dtype="uint8").read(Window(0, 0, 8, 8))


@pytest.mark.parametrize(
    "options",
    [{"transform": None}, {"transform": [1, 2]}, {"extent": ["x", 0, 1, 1]}, {"transform": [1, 0, 0, 0, 1, 0]},
     {"width": 0}, {"searched": [float("nan")] * 4}],
)  # fmt: skip
def test_options_that_cannot_be_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(JobError, match="tiles"):
        Host(IMAGE).open(**options)
