"""Several rasters as one: pixels as they are where the grids agree, in place where they do not, the last one on top."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from kestrel.inference.errors import InferenceError, ModelIncompatibleError, RasterOpenError, RasterReadError
from kestrel.inference.events import Canceled
from kestrel.inference.rasters.access import ALONE, RasterAccess
from kestrel.inference.rasters.band_order import same_bands
from kestrel.inference.rasters.mosaic import MosaicPixels
from kestrel.inference.rasters.opening import open_mosaic
from kestrel.inference.rasters.source import GridRequest
from kestrel.inference.tiling import Window
from kestrel.tests.fixtures.rasters import NORTH_UP, items, noise, write_raster

RGB = (0, 1, 2)
WHOLE = noise(3, 90, 120, seed=4)


def part(folder: Path, name: str, x: int, y: int, width: int, height: int, **options: Any) -> Path:
    """Write a part of the image at its place."""
    pixels = options.pop("pixels", WHOLE)[:, y : y + height, x : x + width]
    return write_raster(folder / f"{name}.tif", pixels, NORTH_UP @ Affine.translation(x, y), **options)


def mosaic(*rasters: Path, bands: tuple[int | str, ...] = RGB, grid: GridRequest | None = None) -> MosaicPixels:
    source = open_mosaic(items(*rasters), bands, grid or GridRequest(), ALONE)
    assert isinstance(source, MosaicPixels)
    return source


def everything(source: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    return source.read(Window(0, 0, source.info.width, source.info.height))


def four_parts(folder: Path, **options: Any) -> list[Path]:
    places = {"a": (0, 0, 70, 50), "b": (50, 0, 70, 60), "c": (0, 40, 80, 50), "d": (60, 45, 60, 45)}
    return [part(folder, name, *place, **options) for name, place in places.items()]


def test_parts_on_one_grid_give_the_pixels_of_the_whole(tmp_path: Path) -> None:
    source = mosaic(*four_parts(tmp_path))
    pixels, present = everything(source)
    assert (120, 90, NORTH_UP, "uint8") == (source.info.width, source.info.height, source.info.transform,
                                            source.info.dtype)  # fmt: skip
    assert np.array_equal(WHOLE, pixels) and present.all() and source.n_resampled == 0


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_window_is_a_part_of_the_whole(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    x, y = data.draw(st.integers(0, 119)), data.draw(st.integers(0, 89))
    width, height = data.draw(st.integers(1, 120 - x)), data.draw(st.integers(1, 90 - y))
    source = mosaic(*four_parts(tmp_path_factory.mktemp("parts")))
    pixels, present = source.read(Window(x, y, width, height))
    source.close()
    assert np.array_equal(WHOLE[:, y : y + height, x : x + width], pixels) and present.all()


def test_the_first_raster_may_lie_anywhere(tmp_path: Path) -> None:
    source = mosaic(*reversed(four_parts(tmp_path)))
    assert NORTH_UP == source.info.transform
    assert np.array_equal(WHOLE, everything(source)[0])


def test_a_later_raster_lies_on_top_where_it_has_pixels(tmp_path: Path) -> None:
    below = write_raster(tmp_path / "a.tif", np.full((1, 4, 4), 7, np.uint8))
    above = np.full((1, 4, 4), 9, np.uint8)
    above[0, :, :2] = 0
    above = write_raster(tmp_path / "b.tif", above, nodata=0)
    assert [[7, 7, 9, 9]] * 4 == everything(mosaic(below, above, bands=(0,)))[0][0].tolist()
    assert [[7] * 4] * 4 == everything(mosaic(above, below, bands=(0,)))[0][0].tolist()


def test_all_bands_of_a_pixel_come_from_one_raster(tmp_path: Path) -> None:
    below = write_raster(tmp_path / "a.tif", np.full((2, 2, 2), 7, np.uint8), nodata=0)
    above = np.full((2, 2, 2), 9, np.uint8)
    above[1] = 0  # no data in one band only
    above = write_raster(tmp_path / "b.tif", above, nodata=0)
    pixels, present = everything(mosaic(below, above, bands=(0, 1)))
    assert [9, 0] == pixels[:, 0, 0].tolist()
    assert [True, False] == present[:, 0, 0].tolist()


def test_what_counts_as_no_data_keeps_its_value_and_so_does_the_room_between(tmp_path: Path) -> None:
    white = np.full((1, 3, 3), 255, np.uint8)
    left = write_raster(tmp_path / "a.tif", white, nodata=255)
    right = write_raster(tmp_path / "b.tif", white, NORTH_UP @ Affine.translation(5, 0), nodata=255)
    source = mosaic(left, right, bands=(0,))
    pixels, present = everything(source)
    assert (255.0, {255}, False) == (source.nodata, set(pixels.ravel().tolist()), bool(present.any()))


def test_holes_are_not_valid(tmp_path: Path) -> None:
    source = mosaic(part(tmp_path, "a", 0, 0, 30, 30), part(tmp_path, "b", 60, 40, 30, 30))
    pixels, present = everything(source)
    assert (90, 70) == (source.info.width, source.info.height)
    assert 2 * 30 * 30 * 3 == int(present.sum())
    assert not pixels[:, 40:, :30].any()


def ramp(height: int, width: int) -> NDArray[Any]:
    """Give an image whose values say where a pixel lies: columns in one band, rows in the other."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([columns, rows])


def off(source: MosaicPixels) -> float:
    """Give how far the values of a mosaic of `ramp` lie from where they should, in pixels."""
    pixels, present = everything(source)
    rows, columns = np.mgrid[: source.info.height, : source.info.width]
    shift = ~NORTH_UP @ source.info.transform
    expected = np.stack([columns + shift.c, rows + shift.f])
    # At its edge a resampled raster repeats its last pixel.
    return float(np.quantile(np.abs(pixels - expected)[present], 0.9))


OTHERS = {
    "half a pixel beside": NORTH_UP @ Affine.translation(30.5, 20.5),
    "twice as fine": NORTH_UP @ Affine.translation(30, 20) @ Affine.scale(0.5),
    "coarser": NORTH_UP @ Affine.translation(30, 20) @ Affine.scale(1.3),
    "south up": NORTH_UP @ Affine.translation(30, 60) @ Affine.scale(1, -1),
    "turned": NORTH_UP @ Affine.translation(60, 20) @ Affine.rotation(30),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_raster_on_another_grid_lies_in_place(tmp_path: Path, name: str) -> None:
    transform = OTHERS[name]
    rows, columns = np.mgrid[:40, :40].astype(np.float64) + 0.5
    step = ~NORTH_UP @ transform
    places = [step.a * columns + step.b * rows + step.c, step.d * columns + step.e * rows + step.f]
    other = write_raster(tmp_path / "b.tif", np.stack(places).astype(np.float32) - 0.5, transform)
    source = mosaic(write_raster(tmp_path / "a.tif", ramp(30, 30)), other, bands=(0, 1))
    assert 1 == source.n_resampled
    assert off(source) <= 0.1


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32632", "EPSG:3035"])
def test_a_raster_in_another_coordinate_system_lies_in_place(tmp_path: Path, crs: str) -> None:
    first = write_raster(tmp_path / "a.tif", ramp(80, 80)[:, :, :45])
    right = write_raster(tmp_path / "b.tif", ramp(80, 80)[:, :, 40:], NORTH_UP @ Affine.translation(40, 0), nodata=-9)
    options = {"crs": crs, "resampling": Resampling.bilinear}
    with rasterio.open(right) as dataset, WarpedVRT(dataset, **options) as warped:
        rasterio.shutil.copy(warped, tmp_path / "other.tif", driver="GTiff")
    source = mosaic(first, tmp_path / "other.tif", bands=(0, 1))
    assert off(source) <= 0.1
    n_covered = everything(source)[1].any(axis=0).sum()
    assert n_covered >= 80 * 80 - 80  # a row along the outer edge may be lost


def test_a_cell_size_holds_for_all(tmp_path: Path) -> None:
    source = mosaic(*four_parts(tmp_path), grid=GridRequest(cell_size=1.0))
    assert (60, 45, (1.0, 1.0)) == (source.info.width, source.info.height, source.info.cell_size)
    alone = open_mosaic(items(part(tmp_path, "whole", 0, 0, 120, 90)), RGB, GridRequest(cell_size=1.0), ALONE)
    difference = np.abs(everything(source)[0].astype(int) - everything(alone)[0])
    assert 0 == np.median(difference) and (difference > 0).mean() < 0.1  # only along the joins


def test_bands_follow_their_colours(tmp_path: Path) -> None:
    first = part(tmp_path, "a", 0, 0, 70, 90, colors=["red", "green", "blue"])
    second = part(tmp_path, "b", 60, 0, 60, 90, pixels=WHOLE[::-1], colors=["blue", "green", "red"])
    assert np.array_equal(WHOLE, everything(mosaic(first, second))[0])


def test_bands_follow_their_names(tmp_path: Path) -> None:
    first = part(tmp_path, "a", 0, 0, 70, 90, names=["B4", "B3", "B8"])
    second = part(tmp_path, "b", 60, 0, 60, 90, pixels=WHOLE[[2, 0, 1]], names=["B8", "B4", "B3"])
    assert np.array_equal(WHOLE[[0, 2]], everything(mosaic(first, second, bands=(0, 2)))[0])
    assert np.array_equal(WHOLE[[2]], everything(mosaic(first, second, bands=("B8",)))[0])


@pytest.mark.parametrize(
    ("first", "other"),
    [(["gray", "undefined"], ["undefined", "gray"]), (["a", "a"], ["b", "a"]), (["a", "b"], ["c", "d"])],
)
def test_bands_that_names_do_not_tell_apart_stay_as_they_stand(first: list[str], other: list[str]) -> None:
    assert (0, 1) == same_bands((0, 1), first, other)


def test_a_raster_that_lacks_bands_is_refused_by_name(tmp_path: Path) -> None:
    one = write_raster(tmp_path / "one.tif", WHOLE[:1])
    with pytest.raises(ModelIncompatibleError, match=r"one.tif.*at least 3 bands"):
        mosaic(part(tmp_path, "a", 0, 0, 70, 90), one)


def test_bytes_and_other_values_are_refused_by_name(tmp_path: Path) -> None:
    wide = write_raster(tmp_path / "wide.tif", WHOLE.astype(np.uint16) * 100)
    with pytest.raises(RasterOpenError, match=r"wide.tif.*uint16"):
        mosaic(part(tmp_path, "a", 0, 0, 70, 90), wide)


def test_other_types_become_a_common_one(tmp_path: Path) -> None:
    first = part(tmp_path, "a", 0, 0, 70, 90, pixels=WHOLE.astype(np.uint16) * 100)
    second = part(tmp_path, "b", 60, 0, 60, 90, pixels=WHOLE.astype(np.float32) * 100)
    source = mosaic(first, second)
    assert "float32" == source.info.dtype == str(everything(source)[0].dtype)
    assert np.array_equal(WHOLE.astype(np.float32) * 100, everything(source)[0])


def test_rasters_far_from_each_other_are_refused_with_the_way_out(tmp_path: Path) -> None:
    far = write_raster(tmp_path / "far.tif", WHOLE, NORTH_UP @ Affine.translation(10**6, 10**6))
    with pytest.raises(RasterOpenError, match=r"far from each other.*separately"):
        mosaic(part(tmp_path, "a", 0, 0, 70, 90), far)


def test_a_raster_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"nothing")
    with pytest.raises(InferenceError, match=r"broken\.tif"):
        mosaic(part(tmp_path, "a", 0, 0, 70, 90), broken)


def test_a_raster_that_vanishes_spoils_only_the_windows_on_it(tmp_path: Path) -> None:
    a, b = part(tmp_path, "a", 0, 0, 60, 90), part(tmp_path, "b", 60, 0, 60, 90)
    source = mosaic(a, b)
    b.unlink()
    assert source.read(Window(0, 0, 60, 90))[1].all()
    with pytest.raises(RasterReadError, match=r"b\.tif") as told:
        source.read(Window(50, 0, 20, 20))
    assert [60, 0, 60, 90] == told.value.context["window"]


def test_a_change_of_one_raster_changes_the_identity(tmp_path: Path) -> None:
    a, b = part(tmp_path, "a", 0, 0, 60, 90), part(tmp_path, "b", 60, 0, 60, 90)
    before = mosaic(a, b).identity()
    assert before == mosaic(a, b).identity() != mosaic(b, a).identity()
    os.utime(b, ns=(1, 1))
    assert before != mosaic(a, b).identity()


def test_a_sample_holds_values_of_all_rasters(tmp_path: Path) -> None:
    low = write_raster(tmp_path / "a.tif", np.full((1, 20, 20), 10, np.uint16))
    high = write_raster(tmp_path / "b.tif", np.full((1, 20, 20), 900, np.uint16), NORTH_UP @ Affine.translation(20, 0))
    assert {10, 900} == set(mosaic(low, high, bands=(0,)).sample()[0].tolist())


def test_opening_thousands_can_be_cancelled(tmp_path: Path) -> None:
    asked = iter([False, False, False, True])
    with pytest.raises(Canceled):
        open_mosaic(items(*[part(tmp_path, "a", 0, 0, 60, 90)] * 99), RGB, GridRequest(),
                    RasterAccess(is_cancelled=lambda: next(asked)))  # fmt: skip


@pytest.mark.slow
def test_two_thousand_rasters_stay_flat_in_handles_and_memory(tmp_path: Path) -> None:
    one = write_raster(tmp_path / "one.tif", noise(1, 16, 16))
    places = [(x, y) for y in range(40) for x in range(50)]
    paths = []
    for number, (x, y) in enumerate(places):
        path = tmp_path / f"{number}.tif"
        path.write_bytes(one.read_bytes())
        with rasterio.open(path, "r+") as dataset:
            dataset.transform = NORTH_UP @ Affine.translation(x * 16, y * 16)
        paths.append(path)
    source = mosaic(*paths, bands=(0,))
    assert (800, 640) == (source.info.width, source.info.height)
    handles, memory = [], []
    for y in range(0, 640, 64):
        for x in range(0, 800, 100):
            assert source.read(Window(x, y, 100, 64))[1].all()
            handles.append(len(list(Path("/proc/self/fd").iterdir())))
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert max(handles) < min(handles) + 80
    assert memory[-1] - memory[2] < 20 * 1024  # KiB
    source.close()
