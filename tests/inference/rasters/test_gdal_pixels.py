from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine

from kestrel.inference.errors import ModelIncompatibleError, RasterOpenError, RasterReadError
from kestrel.inference.models.definition import InputSpec
from kestrel.inference.tiling import Window
from kestrel.tests.fixtures.rasters import NORTH_UP, UTM, model_raster, noise, write_raster

RGB = InputSpec()
GREY = InputSpec(bands=(0,))
COLOURS = {0: (10, 20, 30, 255), 1: (200, 0, 0, 255), 2: (0, 150, 0, 255), 7: (1, 2, 3, 255)}


def read(path: Path, spec: InputSpec = RGB, window: Window | None = None, cell_size: float | None = None) -> Any:
    """Give pixels and valid mask of a window, or of everything."""
    source = model_raster(path, spec, cell_size)
    try:
        return source.read(window or Window(0, 0, source.info.width, source.info.height))
    finally:
        source.close()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_pixels_come_in_the_type_of_the_raster(tmp_path: Path, dtype: str) -> None:
    pixels = noise(3, 20, 30).astype(dtype) * np.ones(1, dtype) + (np.ones(1, dtype) * 300 if dtype != "uint8" else 0)
    pixels = pixels.astype(dtype)
    result, valid = read(write_raster(tmp_path / "r.tif", pixels))
    assert dtype == str(result.dtype)
    assert pixels.tolist() == result.tolist()
    assert valid.all()


@pytest.mark.parametrize("window", [Window(-4, -6, 12, 20), Window(25, 15, 10, 10), Window(-5, -5, 100, 100)])
def test_beyond_the_edge_there_are_zeros_and_nothing_is_valid(tmp_path: Path, window: Window) -> None:
    pixels = noise(3, 20, 30)
    result, valid = read(write_raster(tmp_path / "r.tif", pixels), window=window)
    padded = np.pad(pixels + np.uint8(0), ((0, 0), (100, 100), (100, 100)))
    inside = np.pad(np.ones((20, 30), bool), 100)
    rows, columns = slice(window.y + 100, window.bottom + 100), slice(window.x + 100, window.right + 100)
    assert padded[:, rows, columns].tolist() == result.tolist()
    assert inside[rows, columns].tolist() == valid.tolist()


def test_a_window_beside_the_raster_holds_nothing(tmp_path: Path) -> None:
    _, valid = read(write_raster(tmp_path / "r.tif", noise(3, 20, 30)), window=Window(100, 0, 5, 5))
    assert not valid.any()


def test_nodata_is_invalid_where_all_bands_have_it(tmp_path: Path) -> None:
    pixels = noise(3, 8, 8)
    pixels[pixels == 0] = 1
    pixels[:, 0, 0] = 0
    pixels[0, 1, 1] = 0
    result, valid = read(write_raster(tmp_path / "r.tif", pixels, nodata=0))
    assert [(0, 0)] == list(zip(*np.nonzero(~valid)))
    assert pixels.tolist() == result.tolist()


def test_nodata_in_one_band_alone_is_filled_there_and_leaves_the_pixel_valid(tmp_path: Path) -> None:
    pixels = noise(3, 8, 8).astype(np.float32)
    pixels[1, 2, 3] = -9999
    result, valid = read(write_raster(tmp_path / "r.tif", pixels, nodata=-9999))
    assert ([float(pixels[0, 2, 3]), 0.0, float(pixels[2, 2, 3])], True) == (result[:, 2, 3].tolist(), valid.all())


def test_the_block_cache_follows_the_width_of_the_raster_and_not_its_area(tmp_path: Path) -> None:
    sizes = []
    for width, height in ((20_000, 1), (20_000, 50), (40_000, 1)):
        source = model_raster(write_raster(tmp_path / "r.tif", np.zeros((3, height, width), np.uint8)), RGB)
        sizes.append(source.pixels._reading.settings["GDAL_CACHEMAX"])
        source.close()
    assert (sizes[0], 2 * sizes[0]) == (sizes[1], sizes[2])


def test_an_odd_nodata_value_is_not_fed_to_the_network(tmp_path: Path) -> None:
    pixels = np.full((1, 4, 4), 0.5, np.float32)
    pixels[0, 1] = -9999
    result, valid = read(write_raster(tmp_path / "r.tif", pixels, nodata=-9999), GREY)
    assert [0.5, 0.0, 0.5, 0.5] == result[0, :, 0].tolist()
    assert [True, False, True, True] == valid[:, 0].tolist()


def test_saturated_white_stays_white_where_the_model_knows_it(tmp_path: Path) -> None:
    pixels = noise(3, 4, 4)
    pixels[:, 2, 2] = 255
    path = write_raster(tmp_path / "r.tif", pixels, nodata=255)
    known, valid = read(path, InputSpec(data_range=(0, 255)))
    assert [255, 255, 255] == known[:, 2, 2].tolist()
    assert not valid[2, 2]
    unknown, _ = read(path, InputSpec(data_range=(0, 200)))
    assert [0, 0, 0] == unknown[:, 2, 2].tolist()


def test_what_is_no_number_becomes_zero_and_is_valid_only_beside_a_number(tmp_path: Path) -> None:
    pixels = np.ones((2, 3, 3), np.float32)
    pixels[:, 0, 0] = np.nan
    pixels[0, 1, 1] = np.inf
    result, valid = read(write_raster(tmp_path / "r.tif", pixels), InputSpec(bands=(0, 1)))
    assert [(0, 0)] == list(zip(*np.nonzero(~valid)))
    assert ([0, 0], [0, 1]) == (result[:, 0, 0].tolist(), result[:, 1, 1].tolist())


def test_an_alpha_band_is_a_mask_and_no_input(tmp_path: Path) -> None:
    pixels = noise(4, 6, 6)
    pixels[3] = 255
    pixels[3, 2:4] = 0
    path = write_raster(tmp_path / "r.tif", pixels, colors=["red", "green", "blue", "alpha"])
    result, valid = read(path)
    assert (pixels[3] > 0).tolist() == valid.tolist()
    assert (pixels[:3] * (pixels[3] > 0)).tolist() == result.tolist()
    with pytest.raises(ModelIncompatibleError, match="at least 4 bands, and the raster has 3"):
        read(path, InputSpec(bands=(0, 1, 2, 3)))


def test_an_alpha_band_in_front_is_passed_over(tmp_path: Path) -> None:
    pixels = noise(4, 6, 6)
    pixels[0] = 255
    path = write_raster(tmp_path / "r.tif", pixels, colors=["alpha", "red", "green", "blue"])
    assert pixels[1:].tolist() == read(path)[0].tolist()


def test_a_mask_inside_the_file_counts(tmp_path: Path) -> None:
    mask = np.full((6, 6), 255, np.uint8)
    mask[4:] = 0
    path = write_raster(tmp_path / "r.tif", noise(3, 6, 6), mask=mask)
    assert (mask > 0).tolist() == read(path)[1].tolist()
    doubled = read(path, cell_size=0.25)[1]
    assert (doubled[:7].all(), doubled[9:].any()) == (True, False)


def test_bands_come_in_the_order_of_the_definition(tmp_path: Path) -> None:
    pixels = noise(4, 5, 5)
    path = write_raster(tmp_path / "r.tif", pixels, photometric="MINISBLACK")
    assert pixels[[2, 1, 0]].tolist() == read(path, InputSpec(bands=(2, 1, 0)))[0].tolist()
    assert pixels[[3, 0]].tolist() == read(path, InputSpec(bands=(3, 0)))[0].tolist()
    assert pixels[[1, 1]].tolist() == read(path, InputSpec(bands=(1, 1)))[0].tolist()


def test_bands_are_found_by_their_names_and_by_their_colours(tmp_path: Path) -> None:
    pixels = noise(4, 5, 5)
    named = write_raster(tmp_path / "n.tif", pixels, names=["B02", "B03", "B04", "NIR"], photometric="MINISBLACK")
    assert pixels[[3, 2]].tolist() == read(named, InputSpec(bands=("nir", "b04")))[0].tolist()
    coloured = write_raster(tmp_path / "c.tif", pixels[:3], colors=["blue", "green", "red"])
    assert pixels[[2, 1, 0]].tolist() == read(coloured, InputSpec(bands=("Red", "Green", "Blue")))[0].tolist()
    with pytest.raises(ModelIncompatibleError, match=r"'swir'.*b02, b03, b04, nir"):
        read(named, InputSpec(bands=("swir",)))


def test_too_few_bands_are_told_in_numbers(tmp_path: Path) -> None:
    with pytest.raises(ModelIncompatibleError, match="at least 3 bands, and the raster has 1"):
        read(write_raster(tmp_path / "r.tif", noise(1, 5, 5)))


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "r.tif", np.ones((1, 4, 4), np.complex64))
    with pytest.raises(ModelIncompatibleError, match="complex"):
        read(path, GREY)


@pytest.fixture
def paletted(tmp_path: Path) -> Path:
    index = np.random.default_rng(0).choice(list(COLOURS), (1, 8, 8)).astype(np.uint8)
    return write_raster(tmp_path / "p.tif", index, palette=COLOURS)


def test_a_colour_table_is_expanded(paletted: Path) -> None:
    index = rasterio.open(paletted).read(1)
    expected = np.array([[COLOURS[v][:3] for v in row] for row in index], np.uint8).transpose(2, 0, 1)
    assert expected.tolist() == read(paletted)[0].tolist()
    assert expected[::-1].tolist() == read(paletted, InputSpec(bands=("blue", "green", "red")))[0].tolist()


@pytest.mark.parametrize("cell_size", [0.25, 0.7, 1.0])
def test_a_colour_table_s_entries_are_never_mixed(paletted: Path, cell_size: float) -> None:
    pixels, _ = read(paletted, cell_size=cell_size)
    seen = {tuple(color) for color in pixels.reshape(3, -1).T.tolist()}
    assert len(seen) > 1
    assert seen <= {color[:3] for color in COLOURS.values()}


@pytest.mark.parametrize("bands", [("nir", "red", "green"), (1, 2, 3)])
def test_bands_that_a_colour_table_does_not_have_are_refused(paletted: Path, bands: tuple[int | str, ...]) -> None:
    with pytest.raises(ModelIncompatibleError, match="colour table"):
        read(paletted, InputSpec(bands=bands))


def test_a_model_of_one_band_gets_the_indices_of_a_colour_table(paletted: Path) -> None:
    assert rasterio.open(paletted).read().tolist() == read(paletted, GREY)[0].tolist()


@pytest.mark.parametrize("factor", [0.5, 2, 4])
def test_another_cell_size_gives_square_pixels_of_that_size_over_the_same_ground(tmp_path: Path, factor: float) -> None:
    path = write_raster(tmp_path / "r.tif", noise(3, 40, 60))
    source = model_raster(path, RGB, 0.5 * factor)
    info = source.info
    source.close()
    assert (60 / factor, 40 / factor) == (info.width, info.height)
    assert NORTH_UP @ Affine.scale(factor) == info.transform
    assert (0.5 * factor, 0.5 * factor) == info.cell_size


def test_coarser_pixels_are_the_means_of_the_finer_ones(tmp_path: Path) -> None:
    pixels = noise(3, 40, 60)
    result, valid = read(write_raster(tmp_path / "r.tif", pixels), cell_size=2.0)
    means = pixels.reshape(3, 10, 4, 15, 4).mean(axis=(2, 4))
    assert valid.all()
    assert np.abs(means - result).max() <= 1


@pytest.mark.parametrize("transform", [
    NORTH_UP, Affine(0.5, 0, 500000, 0, 0.5, 5400000), Affine(-0.5, 0, 500000, 0, -0.5, 5400000),
    Affine.translation(500000, 5400000) @ Affine.rotation(33) @ Affine.scale(0.5, -0.5),
])  # fmt: skip
def test_resampling_keeps_every_place_whatever_the_orientation(tmp_path: Path, transform: Affine) -> None:
    pixels = noise(1, 40, 60)
    result, valid = read(write_raster(tmp_path / "r.tif", pixels, transform), GREY, cell_size=1.0)
    means = pixels.reshape(1, 20, 2, 30, 2).mean(axis=(2, 4))
    assert valid.all()
    assert np.abs(means - result).max() <= 1


@pytest.mark.parametrize("cell_size", [0.31, 0.5, 0.9])
def test_a_pixel_is_the_same_whatever_window_it_is_read_with(tmp_path: Path, cell_size: float) -> None:
    source = model_raster(str(write_raster(tmp_path / "r.tif", noise(3, 300, 310))), RGB, cell_size)
    whole, _ = source.read(Window(0, 0, source.info.width, source.info.height))
    for window in (Window(0, 0, 64, 64), Window(37, 41, 90, 53), Window(60, 0, 50, 100)):
        part, _ = source.read(window)
        assert np.array_equal(whole[:, window.y : window.bottom, window.x : window.right], part)
    source.close()


def test_pixels_that_are_not_square_are_made_so(tmp_path: Path) -> None:
    pixels = noise(3, 20, 60)
    path = write_raster(tmp_path / "r.tif", pixels, Affine(0.5, 0, 500000, 0, -1.5, 5400000))
    source = model_raster(path, RGB)
    info = source.info
    result, _ = source.read(Window(0, 0, 60, 60))
    source.close()
    assert (60, 60, NORTH_UP) == (info.width, info.height, info.transform)
    assert np.abs(pixels.astype(int) - result[:, 1::3]).max() <= 1


def test_the_own_cell_size_changes_nothing(tmp_path: Path) -> None:
    pixels = noise(3, 20, 30)
    path = write_raster(tmp_path / "r.tif", pixels)
    assert pixels.tolist() == read(path, cell_size=0.5)[0].tolist()


@pytest.mark.parametrize("kind", ["alpha", "nodata", "plain"])
def test_nothing_is_valid_beyond_a_resampled_raster_s_edge(tmp_path: Path, kind: str) -> None:
    pixels = np.full((4 if kind == "alpha" else 3, 20, 30), 255, np.uint8)
    colors = ["red", "green", "blue", "alpha"] if kind == "alpha" else None
    path = write_raster(tmp_path / "r.tif", pixels, colors=colors, nodata=0 if kind == "nodata" else None)
    result, valid = read(path, cell_size=0.7)
    assert (3, 15, 22) == result.shape
    assert valid[:14, :21].all()
    assert (result[:, valid] > 250).all()


def test_many_threads_read_the_same_pixels(tmp_path: Path) -> None:
    pixels = noise(3, 256, 256)
    source = model_raster(str(write_raster(tmp_path / "r.tif", pixels, tiled=True, compress="deflate")), RGB)
    windows = [Window(x, y, 40, 40) for x in range(0, 216, 24) for y in range(0, 216, 24)]
    start = threading.Barrier(4)

    def read_all(_: int) -> bool:
        start.wait()
        return all(np.array_equal(pixels[:, w.y : w.bottom, w.x : w.right], source.read(w)[0]) for w in windows)

    with ThreadPoolExecutor(4) as pool:
        assert [True] * 4 == list(pool.map(read_all, range(4)))
    source.close()


def damage(path: Path, offset: int = 0) -> None:
    """Overwrite the data of one block."""
    with rasterio.open(path) as dataset:
        place = int(dataset.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    with path.open("r+b") as stream:
        stream.seek(place + offset)
        stream.write(b"\xff" * 64)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    path = write_raster(
        tmp_path / "d.tif", noise(1, 96, 96), tiled=True, blockxsize=32, blockysize=32, compress="deflate"
    )
    damage(path)
    return path


@pytest.mark.parametrize("cell_size", [None, 1.0])
def test_a_damaged_block_is_a_read_error_that_names_the_place(damaged: Path, cell_size: float | None) -> None:
    side = 32 if cell_size is None else 16
    with pytest.raises(RasterReadError, match=rf"columns {side} to {2 * side}, rows {side} to {2 * side}") as caught:
        read(damaged, GREY, Window(side, side, side, side), cell_size)
    assert [side] * 4 == caught.value.context["window"]


def test_the_blocks_beside_a_damaged_one_are_read(damaged: Path) -> None:
    pixels, valid = read(damaged, GREY, Window(0, 0, 96, 32))
    assert valid.all()
    assert pixels.any()


def test_a_file_that_was_cut_off_is_a_read_error(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "r.tif", noise(1, 512, 512), compress="deflate", tiled=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises((RasterReadError, RasterOpenError)):
        read(path, GREY)


def write_gcps(path: Path) -> Path:
    points = [rasterio.control.GroundControlPoint(r, c, x, y) for r, c, x, y in
              ((0, 0, 500000, 5400000), (0, 10, 500010, 5400000), (10, 0, 500000, 5399990))]  # fmt: skip
    with rasterio.open(path, "w", driver="GTiff", width=10, height=10, count=1, dtype="uint8") as dataset:
        dataset.write(noise(1, 10, 10))
        dataset.gcps = (points, rasterio.crs.CRS.from_string(UTM))
    return path


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_raster_with_control_points_only_is_to_be_georeferenced_first(tmp_path: Path) -> None:
    with pytest.raises(RasterOpenError, match=r"control points.*Georeference it first"):
        read(write_gcps(tmp_path / "r.tif"), GREY)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("transform", "crs", "message"),
    [
        (NORTH_UP, None, "no coordinate reference system"),
        (Affine.identity(), UTM, "no georeference"),
    ],
)
def test_a_raster_that_lies_nowhere_is_refused(
    tmp_path: Path, transform: Affine, crs: str | None, message: str
) -> None:
    path = write_raster(tmp_path / "r.tif", noise(1, 5, 5), transform, crs)
    with pytest.raises(RasterOpenError, match=message):
        read(path, GREY)


def test_pixels_without_area_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.vrt"
    path.write_text(
        f'<VRTDataset rasterXSize="5" rasterYSize="5"><SRS>{UTM}</SRS><GeoTransform>5, 0, 0, 5, 0, -1</GeoTransform>'
        '<VRTRasterBand dataType="Byte" band="1"/></VRTDataset>', encoding="utf-8",
    )  # fmt: skip
    with pytest.raises(RasterOpenError, match="pixels without area"):
        read(path, GREY)


@pytest.mark.parametrize("content", [b"", b"no raster", b"II*\x00\xff\xff\xff\xff"])
def test_what_is_no_raster_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.tif"
    path.write_bytes(content)
    with pytest.raises(RasterOpenError, match=r"r\.tif"):
        read(path, GREY)


@pytest.mark.parametrize("name", ["", "/nowhere/r.tif", "<VRTDataset/>", "  <VRTDataset rasterXSize='1'/>"])
def test_a_name_that_opens_nothing_is_refused(name: str) -> None:
    with pytest.raises(RasterOpenError):
        model_raster(name, GREY)


def test_a_folder_is_no_raster(tmp_path: Path) -> None:
    with pytest.raises(RasterOpenError):
        model_raster(str(tmp_path), GREY)


@pytest.mark.parametrize("name", ["Übersicht Wald.tif", "a b#c%20d?.tif", "日本 'x' & y.tif", "-o x.tif"])
def test_odd_file_names_work(tmp_path: Path, name: str) -> None:
    pixels = noise(3, 6, 6)
    assert pixels.tolist() == read(write_raster(tmp_path / name, pixels))[0].tolist()


def test_the_largest_raster_of_gdal_opens_and_reads_at_its_far_corner(tmp_path: Path) -> None:
    path = tmp_path / "huge.vrt"
    side = 2**31 - 1
    path.write_text(
        f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}"><SRS>{UTM}</SRS>'
        "<GeoTransform>500000, 0.01, 0, 5400000, 0, -0.01</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1"/></VRTDataset>',
        encoding="utf-8",
    )
    pixels, valid = read(path, GREY, Window(side - 10, side - 10, 64, 64))
    assert (100, 0) == (int(valid.sum()), int(pixels.sum()))
    with pytest.raises(RasterOpenError, match="too many"):
        read(path, GREY, Window(0, 0, 1, 1), cell_size=0.005)


@pytest.mark.parametrize(
    ("service", "expected"), [("", 0.25), ("sentinel", 2500.0), ("landsat", (0.25 + 0.2) / 0.0000275)]
)
def test_reflectances_become_the_numbers_of_the_service_that_a_model_was_trained_on(
    tmp_path: Path, service: str, expected: float
) -> None:
    path = write_raster(tmp_path / "reflectance.tif", np.full((1, 8, 8), 0.25, np.float32))
    pixels, _ = model_raster(path, InputSpec(bands=(0,), service=service)).read(Window(0, 0, 8, 8))
    assert np.allclose(expected, pixels)


def test_whole_numbers_of_a_service_stay_as_they_are(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "numbers.tif", np.full((1, 8, 8), 2500, np.uint16))
    pixels, _ = model_raster(path, InputSpec(bands=(0,), service="sentinel")).read(Window(0, 0, 8, 8))
    assert (pixels == 2500).all()
