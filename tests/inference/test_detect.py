"""The detection as a whole, with a network whose result can be written down by hand: bright cells of 8 x 8 pixels."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely
from affine import Affine

from kestrel.inference import run as preparation
from kestrel.inference.detections import Detections, make_detections
from kestrel.inference.detectors.onnx_detector import OnnxDetector
from kestrel.inference.detectors.protocol import Traits
from kestrel.inference.errors import (
    DeviceMemoryError,
    JobError,
    ModelError,
    ModelHashError,
    ModelIncompatibleError,
    RasterReadError,
)
from kestrel.inference.events import Canceled
from kestrel.inference.job import DetectionJob
from kestrel.inference.journal import Journal, TileResult, TileState
from kestrel.inference.models.package import open_package
from kestrel.inference.results import bands_of
from kestrel.tests.fixtures.onnx_graphs import CELL, cell_network, random_network
from kestrel.tests.fixtures.rasters import NORTH_UP, cells, items, noise, write_raster
from kestrel.tests.fixtures.runs import Result, never, run, write_definition

LIT = [(0, 1, 2), (1, 3, 7), (2, 9, 9), (0, 9, 0), (1, 0, 9), (2, 5, 5)]
"""Band, row, column of the bright cells: the band is the class."""
SMALL = {"tile_size": 32, "padding": 8}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with networks for 1, 3 and 4 bands."""
    folder = tmp_path_factory.mktemp("networks")
    for n in (1, 3, 4):
        cell_network(folder / f"cells{n}.onnx", n)
    return folder


@pytest.fixture
def model(networks: Path, tmp_path: Path) -> Path:
    """The definition for three bands of 8 bits."""
    return define(networks, tmp_path)


def define(networks: Path, folder: Path, n_bands: int = 3, weights: str = "", **members: Any) -> Path:
    """Write a definition of the network for that number of bands."""
    path = str(networks / (weights or f"cells{n_bands}.onnx"))
    given = {"bands": list(range(n_bands)), "scale": 1 / 255, **members.pop("input", {})}
    text = json.loads(write_definition(folder, path, n_bands, input=given, **members).read_text(encoding="utf-8"))
    model = folder / "model.txt"
    model.write_text(json.dumps(text), encoding="utf-8")
    return model


def detect(folder: Path, raster: Path, model: Path, **members: Any) -> Result:
    """Run with the definition's text as the model: the weights lie elsewhere."""
    return run(folder / "job", raster, model.read_text(encoding="utf-8"), **{"arguments": SMALL, **members})


def expected_polygons(lit: list[tuple[int, int, int]], transform: Affine) -> dict[tuple[float, ...], int]:
    """Give the corners of the cells on the map, by hand, and the class of each."""
    result = {}
    for band, row, column in lit:
        x, y = column * CELL, row * CELL
        corners = [(x, y), (x + CELL, y), (x + CELL, y + CELL), (x, y + CELL)]
        t = transform
        places = [(t.a * px + t.b * py + t.c, t.d * px + t.e * py + t.f) for px, py in corners]
        result[rounded(sorted(places))] = band
    return result


def rounded(points: Any) -> tuple[float, ...]:
    return tuple(round(float(value), 6) + 0.0 for point in points for value in point)


def found_polygons(result: Result) -> dict[tuple[float, ...], int]:
    """Give corners and class of what was found."""
    corners = [sorted(map(tuple, shapely.get_coordinates(g)[:-1].tolist())) for g in result.geometries]
    return dict(zip((rounded(points) for points in corners), result.labels))


TRANSFORMS = {
    "north up": (NORTH_UP, "EPSG:32633"),
    "south up": (Affine(0.5, 0, 500000, 0, 0.5, 5400000), "EPSG:32633"),
    "mirrored": (Affine(-0.5, 0, 500000, 0, -0.5, 5400000), "EPSG:32633"),
    "rotated": (Affine.translation(500000, 5400000) @ Affine.rotation(27) @ Affine.scale(0.5, -0.5), "EPSG:32633"),
    "rotated and mirrored": (
        Affine.translation(5e5, 54e5) @ Affine.rotation(205) @ Affine.scale(0.5, 0.5),
        "EPSG:32633",
    ),
    "degrees": (Affine(0.0009765625, 0, 179.9375, 0, -0.0009765625, 85), "EPSG:4326"),
    "feet": (Affine(1.640625, 0, 2000000, 0, -1.640625, 700000), "EPSG:2263"),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_objects_lie_where_they_are_on_the_map(networks: Path, model: Path, tmp_path: Path, name: str) -> None:
    transform, crs = TRANSFORMS[name]
    raster = write_raster(tmp_path / "r.tif", cells(3, 10, 10, LIT), transform, crs)
    result = detect(tmp_path, raster, model)
    assert 1 < result.summary["tiles"]
    assert expected_polygons(LIT, transform) == found_polygons(result)
    assert all(geometry.is_valid and geometry.exterior.is_ccw for geometry in result.geometries)
    assert [200 / 255] * len(LIT) == pytest.approx(result.scores.tolist())


def test_pixels_that_are_not_square_are_resampled_and_the_objects_stay_in_place(model: Path, tmp_path: Path) -> None:
    # Twice as wide as high: the cells of the network are cells of 4 columns and 8 rows.
    square = cells(3, 10, 10, LIT)
    raster = write_raster(tmp_path / "r.tif", square[:, :, ::2], Affine(1.0, 0, 500000, 0, -0.5, 5400000))
    result = detect(tmp_path, raster, model)
    assert expected_polygons(LIT, NORTH_UP) == found_polygons(result)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_cell_size_makes_large_cells_fit_the_network(model: Path, tmp_path: Path, factor: int) -> None:
    fine = cells(3, 10, 10, LIT).repeat(factor, 1).repeat(factor, 2)
    raster = write_raster(tmp_path / "r.tif", fine, NORTH_UP @ Affine.scale(1 / factor))
    result = detect(tmp_path, raster, model, cell_size=0.5)
    assert expected_polygons(LIT, NORTH_UP) == found_polygons(result)


def test_the_summary_adds_up(model: Path, tmp_path: Path) -> None:
    result = detect(tmp_path, write_raster(tmp_path / "r.tif", cells(3, 10, 10, LIT)), model)
    summary = result.summary
    assert (6, {"class 0": 2, "class 1": 2, "class 2": 2}) == (summary["objects"], summary["class_counts"])
    assert summary["tiles"] == sum(summary["tiles_by_state"].values()) == summary["tiles_by_state"]["done"]
    assert (32, 8, 8, "cpu", True) == tuple(
        summary[key] for key in ("tile_size", "padding", "stride", "device", "is_exact")
    )
    json.dumps(summary)


def test_an_extent_on_cell_edges_gives_the_cells_in_it_and_searches_no_more_tiles(model: Path, tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", cells(3, 10, 10, LIT))
    # rows 0 to 6, columns 2 to 8
    result = detect(tmp_path, raster, model, extent=(500008.0, 5399976.0, 500032.0, 5400000.0))
    inside = [(0, 1, 2), (1, 3, 7), (2, 5, 5)]
    assert expected_polygons(inside, NORTH_UP) == found_polygons(result)
    assert 4 * 4 > result.summary["tiles"]


def test_objects_at_the_edge_of_the_raster_are_marked_as_cut(model: Path, tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", cells(3, 10, 10, LIT))
    result = detect(tmp_path, raster, model)
    is_cut = dict(zip(found_polygons(result), (bool(v) for part in result.objects for v in part.is_cut)))
    border = expected_polygons([cell for cell in LIT if 0 in cell[1:] or 9 in cell[1:]], NORTH_UP)
    assert set(border) == {key for key, value in is_cut.items() if value}


def test_an_extent_cuts_no_object_since_the_network_sees_beyond_it(model: Path, tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", cells(3, 10, 10, LIT))
    # The left edge of the extent is the left edge of the cell in column 2.
    result = detect(tmp_path, raster, model, extent=(500008.0, 5399976.0, 500032.0, 5400000.0))
    assert (3, False) == (len(result), any(bool(v) for part in result.objects for v in part.is_cut))


def fingerprint_of(raster: Path | str, model: Path, folder: Path) -> str:
    job = DetectionJob("a", items(raster), model.read_text(encoding="utf-8"), processor="cpu", arguments=SMALL)
    folder.mkdir(exist_ok=True)
    prepared = preparation.prepare(
        job, preparation.OpenModel(job, Path(tempfile.mkdtemp(dir=folder))), lambda event: None
    )
    try:
        return preparation.fingerprint(prepared)
    finally:
        prepared.source.close()


def test_a_run_can_tell_a_changed_raster_also_behind_mosaics_of_mosaics(model: Path, tmp_path: Path) -> None:
    source = write_raster(tmp_path / "r.tif", cells(3, 10, 10, LIT))
    inner, outer = tmp_path / "inner.vrt", tmp_path / "outer.vrt"
    for target, part in ((inner, source), (outer, inner)):
        rasterio.shutil.copy(part, target, driver="VRT")
    before = [fingerprint_of(raster, model, tmp_path / "f") for raster in (source, inner, outer)]
    assert before == [fingerprint_of(raster, model, tmp_path / "f") for raster in (source, inner, outer)]
    write_raster(source, cells(3, 10, 10, LIT[:2]))
    after = [fingerprint_of(raster, model, tmp_path / "f") for raster in (source, inner, outer)]
    assert [True, True, True] == [a != b for a, b in zip(before, after)]


def test_a_raster_in_an_archive_is_never_taken_for_the_same(model: Path, tmp_path: Path) -> None:
    source = write_raster(tmp_path / "r.tif", cells(3, 10, 10, LIT))
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
        archive.write(source, "r.tif")
    name = f"/vsizip/{tmp_path}/r.zip/r.tif"
    assert fingerprint_of(name, model, tmp_path / "f") != fingerprint_of(name, model, tmp_path / "f")


def test_a_mask_gives_the_cells_whose_centre_lies_in_it_and_spares_the_other_tiles(model: Path, tmp_path: Path) -> None:
    beside = [(1, 1, 1), (1, 8, 8)]  # in the tiles of those in the mask
    raster = write_raster(tmp_path / "r.tif", cells(3, 10, 10, LIT + beside))
    centre = [NORTH_UP @ ((column + 0.5) * CELL, (row + 0.5) * CELL) for _, row, column in LIT]
    mask = shapely.MultiPolygon([shapely.Point(centre[0]).buffer(1), shapely.Point(centre[2]).buffer(1)])
    result = detect(tmp_path, raster, model, mask_wkb=mask.wkb_hex)
    assert expected_polygons([LIT[0], LIT[2]], NORTH_UP) == found_polygons(result)
    states = result.summary["tiles_by_state"]
    assert (2, result.summary["tiles"] - 2) == (states["done"], states["outside"])


def test_tiles_without_data_are_never_run_and_are_counted(model: Path, tmp_path: Path) -> None:
    pixels = cells(3, 16, 16, [(0, 1, 1), (1, 14, 14)])
    pixels[:, :64, 64:] = 0
    raster = write_raster(tmp_path / "r.tif", pixels, nodata=0)
    result = detect(tmp_path, raster, model, arguments={"tile_size": 32, "padding": 0})
    assert (4, 12) == tuple(result.summary["tiles_by_state"][state] for state in ("nodata", "done"))
    assert 2 == len(result)


def test_a_raster_without_any_data_gives_nothing_and_no_error(model: Path, tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", np.zeros((3, 64, 64), np.uint8), nodata=0)
    result = detect(tmp_path, raster, model)
    assert (0, result.summary["tiles"]) == (len(result), result.summary["tiles_by_state"]["nodata"])


def test_a_colour_table_is_seen_as_its_colours(model: Path, tmp_path: Path) -> None:
    index = np.zeros((1, 80, 80), np.uint8)
    for band, row, column in LIT:
        index[0, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = band + 1
    palette = {0: (9, 9, 9, 255), 1: (220, 0, 0, 255), 2: (0, 220, 0, 255), 3: (0, 0, 220, 255)}
    result = detect(tmp_path, write_raster(tmp_path / "r.tif", index, palette=palette), model)
    assert expected_polygons(LIT, NORTH_UP) == found_polygons(result)


def test_what_lies_under_a_transparent_alpha_is_not_found(model: Path, tmp_path: Path) -> None:
    pixels = np.concatenate([cells(3, 10, 10, LIT), np.full((1, 80, 80), 255, np.uint8)])
    pixels[3, 40:] = 0
    raster = write_raster(tmp_path / "r.tif", pixels, colors=["red", "green", "blue", "alpha"])
    result = detect(tmp_path, raster, model)
    assert expected_polygons([cell for cell in LIT if cell[1] < 5], NORTH_UP) == found_polygons(result)


def test_sixteen_bits_are_scaled_by_the_definition_and_never_wrapped(networks: Path, tmp_path: Path) -> None:
    pixels = cells(3, 10, 10, LIT).astype(np.uint16) * 257
    model = define(networks, tmp_path, input={"scale": 1 / 65535})
    result = detect(tmp_path, write_raster(tmp_path / "r.tif", pixels), model)
    assert expected_polygons(LIT, NORTH_UP) == found_polygons(result)
    assert [200 / 255] * len(LIT) == pytest.approx(result.scores.tolist())


def test_floats_with_holes_of_nan_are_searched_around_the_holes(networks: Path, tmp_path: Path) -> None:
    pixels = cells(3, 10, 10, LIT).astype(np.float32) / 255
    pixels[:, 72:, :8] = np.nan  # the cell (0, 9, 0)
    pixels[:, 20:24, 20:24] = np.nan
    model = define(networks, tmp_path, input={"scale": 1})
    result = detect(tmp_path, write_raster(tmp_path / "r.tif", pixels), model)
    assert expected_polygons([cell for cell in LIT if cell != (0, 9, 0)], NORTH_UP) == found_polygons(result)


def test_a_fourth_band_is_a_band_like_the_others(networks: Path, tmp_path: Path) -> None:
    lit = [*LIT, (3, 6, 1)]
    raster = write_raster(tmp_path / "r.tif", cells(4, 10, 10, lit), photometric="MINISBLACK")
    result = detect(tmp_path, raster, define(networks, tmp_path, 4))
    assert expected_polygons(lit, NORTH_UP) == found_polygons(result)


@pytest.mark.parametrize("bands", [[2, 1, 0], ["blue", "green", "red"]])
def test_a_network_that_wants_blue_first_gets_blue_first(networks: Path, tmp_path: Path, bands: list[Any]) -> None:
    raster = write_raster(tmp_path / "r.tif", cells(3, 10, 10, LIT), colors=["red", "green", "blue"])
    result = detect(tmp_path, raster, define(networks, tmp_path, input={"bands": bands}))
    assert expected_polygons([(2 - band, row, column) for band, row, column in LIT], NORTH_UP) == found_polygons(result)


def test_a_raster_with_too_few_bands_is_refused_before_the_network_is_loaded(model: Path, tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", cells(1, 10, 10, []))
    with pytest.raises(ModelIncompatibleError, match="3 bands"):
        detect(tmp_path, raster, model)


# -- Arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("threshold", "n"), [(0.0, 100), (0.1, 6), (0.78, 6), (0.79, 0), (1.0, 0)])
def test_objects_score_above_the_threshold(model: Path, tmp_path: Path, threshold: float, n: int) -> None:
    raster = write_raster(tmp_path / "r.tif", cells(3, 10, 10, LIT))
    result = detect(tmp_path, raster, model, arguments={**SMALL, "threshold": threshold})
    assert n == len(result)
    assert (result.scores > threshold).all()


def test_only_the_classes_of_interest_are_given(model: Path, tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", cells(3, 10, 10, LIT))
    result = detect(tmp_path, raster, model, objects_of_interest=("class 2", "class 0"))
    assert expected_polygons([cell for cell in LIT if cell[0] != 1], NORTH_UP) == found_polygons(result)
    assert {"class 0": 2, "class 1": 0, "class 2": 2} == result.summary["class_counts"]


def test_unknown_arguments_are_told_and_bad_ones_refused(model: Path, tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", cells(3, 10, 10, LIT))
    result = detect(tmp_path, raster, model, arguments={**SMALL, "tresh": 1})
    assert ["argument"] == [message.id for message in result.messages("warning")]
    with pytest.raises(JobError, match="threshold"):
        detect(tmp_path / "second", raster, model, arguments={"threshold": 3})


def test_a_job_made_with_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", cells(3, 10, 10, LIT))
    sha256 = open_package(model.read_text(encoding="utf-8")).sha256()
    assert 6 == len(detect(tmp_path, raster, model, model_sha256=sha256))
    with pytest.raises(ModelHashError):
        detect(tmp_path / "second", raster, model, model_sha256="0" * 64)


def test_a_job_folder_is_not_gone_on_with_when_the_arguments_have_changed(model: Path, tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", cells(3, 10, 10, LIT))
    detect(tmp_path, raster, model)
    with pytest.raises(JobError):
        detect(tmp_path, raster, model, arguments={**SMALL, "threshold": 0.3})


@pytest.mark.parametrize("turns", [{}, {"test_time_augmentation": True}])
def test_looking_from_all_sides_finds_the_same_cells(model: Path, tmp_path: Path, turns: dict[str, Any]) -> None:
    raster = write_raster(tmp_path / "r.tif", cells(3, 10, 10, LIT))
    result = detect(tmp_path, raster, model, arguments={**SMALL, "exclude_pad_detections": False, **turns})
    assert expected_polygons(LIT, NORTH_UP) == found_polygons(result)
    assert [200 / 255] * len(LIT) == pytest.approx(result.scores.tolist(), abs=1e-5)
    assert bool(turns) != result.summary["is_exact"]


@pytest.mark.parametrize(("exclude", "padding"), [(True, 0), (False, 0), (True, 16), (False, 16)])
def test_objects_that_their_tile_cuts_are_left_out_where_that_is_asked(
    model: Path, tmp_path: Path, exclude: bool, padding: int
) -> None:
    # Tiles of 6 x 6 cells; augmentation, because the cells of a dense head are never cut.
    lit = [(0, row, column) for row in range(18) for column in range(18) if (row + column) % 2]
    raster = write_raster(tmp_path / "r.tif", cells(3, 18, 18, lit))
    arguments = {"tile_size": 48, "padding": padding, "test_time_augmentation": True, "exclude_pad_detections": exclude}
    result = detect(tmp_path, raster, model, arguments=arguments)
    at_seams = {5, 6, 11, 12} if exclude and padding == 0 else set()
    whole = [cell for cell in lit if cell[1] not in at_seams and cell[2] not in at_seams]
    assert expected_polygons(whole, NORTH_UP) == found_polygons(result)
    assert len(whole) == len(result)


@pytest.mark.slow
def test_a_second_suppression_leaves_no_two_objects_of_a_class_that_overlap_more(
    tmp_path: Path, networks: Path
) -> None:
    random_network(tmp_path / "random.onnx")
    model = write_definition(tmp_path, "random.onnx", 2, arguments={"threshold": 0.6, "nms_overlap": 0.6})
    raster = write_raster(tmp_path / "r.tif", noise(3, 128, 128))
    plain = run(tmp_path / "a", raster, model, arguments={"tile_size": 64, "padding": 24})
    for ratio in (0.0, 0.2):
        once = run(tmp_path / f"b{ratio}", raster, model, arguments={"tile_size": 64, "padding": 24},
                   run_nms=True, max_overlap_ratio=ratio)  # fmt: skip
        assert 0 < len(once) < len(plain)
        assert most_overlap(once) <= ratio + 1e-9 < most_overlap(plain)
    assert 0.2 < most_overlap(plain) <= 0.6


def most_overlap(result: Result) -> float:
    """Give the largest intersection over union of two objects of one class."""
    geometries = result.geometries
    pairs = [(a, b) for i, a in enumerate(geometries) for j, b in enumerate(geometries[:i])
             if result.labels[i] == result.labels[j]]  # fmt: skip
    a, b = np.array(pairs, object).T
    return float((shapely.area(shapely.intersection(a, b)) / shapely.area(shapely.union(a, b))).max())


# -- Faults ------------------------------------------------------------------------------------------------------------


def damage_block(path: Path, column: int, row: int) -> None:
    """Overwrite a block of a compressed GeoTIFF."""
    with rasterio.open(path) as dataset:
        places = [
            int(dataset.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=band)) for band in dataset.indexes
        ]
    with path.open("r+b") as stream:
        for place in places:
            stream.seek(place)
            stream.write(b"\xff" * 16)


def write_blocks(path: Path) -> Path:
    return write_raster(path, cells(3, 16, 16, [(0, 1, 1), (1, 6, 6), (2, 14, 14)]), tiled=True, blockxsize=32,
                        blockysize=32, compress="deflate")  # fmt: skip


def test_a_damaged_block_costs_its_tiles_and_is_told_with_its_place(model: Path, tmp_path: Path) -> None:
    raster = write_blocks(tmp_path / "r.tif")
    damage_block(raster, 1, 1)
    result = detect(tmp_path, raster, model, arguments={"tile_size": 32, "padding": 0})
    states = result.summary["tiles_by_state"]
    assert (1, 15) == (states["quarantined"], states["done"])
    assert expected_polygons([(0, 1, 1), (2, 14, 14)], NORTH_UP) == found_polygons(result)
    (warning,) = result.messages("warning")
    assert "quarantined" == warning.id
    assert "1 of 16 tiles" in warning.text
    assert "columns 32 to 64, rows 32 to 64" in warning.text


def test_a_raster_that_was_mended_is_read_again_where_it_was_damaged(model: Path, tmp_path: Path) -> None:
    raster = write_blocks(tmp_path / "r.tif")
    stat, whole = raster.stat(), raster.read_bytes()
    damage_block(raster, 1, 1)
    os.utime(raster, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    arguments = {"tile_size": 32, "padding": 0}
    assert 2 == len(detect(tmp_path, raster, model, arguments=arguments))
    raster.write_bytes(whole)
    os.utime(raster, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    mended = detect(tmp_path, raster, model, arguments=arguments)
    assert (3, 0) == (len(mended), mended.summary["tiles_by_state"]["quarantined"])


def test_a_raster_of_which_nothing_can_be_read_is_an_error(model: Path, tmp_path: Path) -> None:
    raster = write_blocks(tmp_path / "r.tif")
    for column in range(4):
        for row in range(4):
            damage_block(raster, column, row)
    with pytest.raises(RasterReadError, match=r"r\.tif.*columns 0 to 24.*and \d+ more.*copy it again"):
        detect(tmp_path, raster, model, arguments={"tile_size": 32, "padding": 8})


@pytest.mark.parametrize("arguments", [{}, {"test_time_augmentation": True, "exclude_pad_detections": False}])
def test_numbers_that_are_none_are_dropped_and_told(tmp_path: Path, arguments: dict[str, Any]) -> None:
    # The network divides by zero where the first band is bright.
    cell_network(tmp_path / "nan.onnx", 3, divide_by=0.9)
    model = define(tmp_path, tmp_path, weights="nan.onnx")
    pixels = cells(3, 16, 16, [(1, 1, 1), (2, 10, 10)])
    pixels[0, 80:88, 24:32] = 255
    raster = write_raster(tmp_path / "r.tif", pixels)
    result = detect(tmp_path, raster, model, arguments={"tile_size": 64, "padding": 8, **arguments})
    assert expected_polygons([(1, 1, 1), (2, 10, 10)], NORTH_UP) == found_polygons(result)
    assert ["invalid-output"] == [message.id for message in result.messages("warning")]


def test_a_network_that_gives_no_numbers_at_all_is_an_error(tmp_path: Path) -> None:
    cell_network(tmp_path / "nan.onnx", 3, divide_by=0.0)
    model = define(tmp_path, tmp_path, weights="nan.onnx")
    raster = write_raster(tmp_path / "r.tif", cells(3, 10, 10, LIT))
    with pytest.raises(ModelError, match="not finite"):
        detect(tmp_path, raster, model)


def test_one_bad_box_beside_good_ones_is_no_error_even_when_there_is_one_tile_only(tmp_path: Path) -> None:
    cell_network(tmp_path / "nan.onnx", 3, divide_by=0.9)
    model = define(tmp_path, tmp_path, weights="nan.onnx")
    pixels = cells(3, 10, 10, [(1, 1, 1)])
    pixels[0, 40:48, 40:48] = 255
    result = detect(tmp_path, write_raster(tmp_path / "r.tif", pixels), model, arguments={"tile_size": 128})
    assert (1, 1) == (result.summary["tiles"], len(result))


def test_a_memory_that_is_too_small_halves_the_batch_and_changes_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raster = write_raster(tmp_path / "r.tif", cells(3, 10, 10, LIT))
    expected = detect(tmp_path / "roomy", raster, model, arguments={**SMALL, "batch_size": 8}).content()
    sizes: list[int] = []

    class Narrow:
        """A device that holds two tiles."""

        def __init__(self, detector: OnnxDetector) -> None:
            self._detector = detector
            self.traits = detector.traits

        def predict(self, batch: np.ndarray) -> Any:
            sizes.append(len(batch))
            if len(batch) > 2:
                raise DeviceMemoryError("too large", batch_size=len(batch))
            return self._detector.predict(batch)

    load = preparation.load_detector
    monkeypatch.setattr(preparation, "load_detector", lambda *arguments: Narrow(load(*arguments)))
    result = detect(tmp_path / "narrow", raster, model, arguments={**SMALL, "batch_size": 8})
    assert expected == result.content()
    assert (8, True) == (max(sizes), sizes.count(2) > 3)


def test_an_object_on_a_seam_of_which_two_tiles_disagree_is_given_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pushing:
        """Not dense; puts objects half a pixel too far from the tile's middle: on a seam, into the neighbour's."""

        traits = Traits(stride=1, receptive_field_radius=None, is_dense=False)

        def __init__(self, detector: OnnxDetector) -> None:
            self._detector = detector

        def predict(self, batch: np.ndarray) -> list[Detections]:
            middle = batch.shape[-1] / 2
            return [self._pushed(found, middle) for found in self._detector.predict(batch)]

        def _pushed(self, found: Detections, middle: float) -> Detections:
            push = np.sign(found.anchors - middle) / 2
            return make_detections(found.boxes + np.tile(push, 2), found.scores, found.labels)

    # Seams at 36, 60, 84, ... pixels: the middles of the cells 4, 7, 10, ...
    lit = [(0, row, column) for row in (1, 4, 7, 10) for column in (1, 4, 7, 10)]
    raster = write_raster(tmp_path / "r.tif", cells(3, 16, 16, lit))
    load = preparation.load_detector
    monkeypatch.setattr(preparation, "load_detector", lambda *arguments: Pushing(load(*arguments)))
    result = detect(tmp_path, raster, model, arguments={"tile_size": 48, "padding": 12})
    assert 25 == result.summary["tiles"]
    assert len(lit) == len(result)
    expected = {(column, row) for _, row, column in lit}
    centres = ((result.bounds[:, :2] + result.bounds[:, 2:]) / 2 - [500000, 5400000]) * [2, -2]
    assert expected == {(int(x // CELL), int(y // CELL)) for x, y in centres}


def test_tiles_on_which_the_network_gives_all_it_can_are_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Limited:
        """Gives one object a tile at most."""

        traits = Traits(stride=8, receptive_field_radius=None, is_dense=False, max_detections=1)

        def __init__(self, detector: OnnxDetector) -> None:
            self._detector = detector

        def predict(self, batch: np.ndarray) -> list[Detections]:
            return [found.take(np.arange(min(1, len(found)))) for found in self._detector.predict(batch)]

    raster = write_raster(tmp_path / "r.tif", cells(3, 12, 12, [(0, 1, 1), (1, 9, 9)]))
    load = preparation.load_detector
    monkeypatch.setattr(preparation, "load_detector", lambda *arguments: Limited(load(*arguments)))
    (message,) = detect(tmp_path, raster, model, arguments={"tile_size": 48, "padding": 0}).messages("warning")
    assert message.text.startswith("On 2 tiles the network gave 1 objects, as many as it can")


def test_rows_far_below_that_reach_up_are_waited_for(model: Path, tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", cells(3, 16, 16, []))
    job = DetectionJob("a", items(raster), model.read_text(encoding="utf-8"), processor="cpu",
                       arguments={"tile_size": 32, "padding": 0})  # fmt: skip
    prepared = preparation.prepare(job, preparation.OpenModel(job, tmp_path), lambda event: None)
    tops = {0: 3.0, 5: 40.0, 15: 20.0}  # tile number, and how far up it reaches
    with Journal.open(tmp_path, "fingerprint", len(prepared.plan.grid)) as journal:
        for number, top in tops.items():
            box = np.array([[0.0, top, 5.0, 120.0]])
            journal.commit([TileResult(number, TileState.done, make_detections(box, np.ones(1), np.zeros(1)))])
        bands = list(bands_of(prepared, journal))
    prepared.source.close()
    assert [1, 1, 0, 1] == [len(band.found) for band in bands]
    assert [20.0, 20.0, 20.0, np.inf] == [band.frontier for band in bands]


def test_a_stop_while_objects_are_handed_out_is_a_stop(model: Path, tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", cells(3, 10, 10, LIT))
    detect(tmp_path, raster, model)
    with pytest.raises(Canceled):
        detect(tmp_path, raster, model, is_cancelled=lambda: True)
    assert 6 == len(detect(tmp_path, raster, model, is_cancelled=never))


def test_nothing_of_the_model_is_left_in_the_job_folder(model: Path, tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", cells(3, 10, 10, LIT))
    for _ in range(2):
        detect(tmp_path, raster, model)
    left = {path.name for path in (tmp_path / "job").iterdir() if not path.name.startswith(("journal", "objects-"))}
    assert set() == left
