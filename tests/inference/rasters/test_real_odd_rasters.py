"""The traps of real data: the same objects as without the trap, or a refusal by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from kestrel.inference.errors import ModelIncompatibleError, RasterOpenError
from kestrel.tests.fixtures.onnx_graphs import CELL, cell_network
from kestrel.tests.fixtures.rasters import write_raster
from kestrel.tests.fixtures.runs import Result, run, write_definition

pytestmark = [pytest.mark.shared_data, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models that find cells of 8 x 8 pixels brighter than a value, in one band each."""
    folder = tmp_path_factory.mktemp("models")
    cell_network(folder / "cells.onnx", 1)
    return {
        name: write_definition(
            folder,
            "cells.onnx",
            1,
            f"{name}.json",
            tile={"size": 256},
            input={"scale": 1 / 255, "data_range": [0, 255], "bands": [band]},
        )
        for name, band in (("red", 0), ("infrared", 3))
    }


def bright_cells(band: np.ndarray, threshold: float) -> set[tuple[int, int]]:
    """Give row and column of the cells whose mean is above the threshold, counted by hand."""
    height, width = (side // CELL * CELL for side in band.shape)
    means = band[:height, :width].reshape(height // CELL, CELL, width // CELL, CELL).mean(axis=(1, 3)) / 255
    return {(int(row), int(column)) for row, column in zip(*np.nonzero(means > threshold))}


def found_cells(result: Result, raster: Path, band_shape: tuple[int, int]) -> set[tuple[int, int]]:
    """Give the same from what a run found, without cells that hang over the raster's edge."""
    with rasterio.open(raster) as dataset:
        inverse = ~dataset.transform
    cells = set()
    for x0, _, _, y1 in result.bounds:
        column, row = inverse * (x0, y1)
        assert abs(column / CELL - round(column / CELL)) < 0.01
        cells.add((round(row / CELL), round(column / CELL)))
    return {(r, c) for r, c in cells if (r + 1) * CELL <= band_shape[0] and (c + 1) * CELL <= band_shape[1]}


def check(folder: Path, raster: Path, model: Path, band: int, threshold: float, **members: Any) -> Result:
    """Compare a run with what is counted by hand."""
    result = run(folder, raster, model, arguments={"threshold": threshold}, **members)
    with rasterio.open(raster) as dataset:
        pixels = dataset.read(band)
    wanted = bright_cells(pixels, threshold)
    assert len(wanted) > 10
    assert found_cells(result, raster, pixels.shape) == wanted
    return result


def test_saturated_white_that_is_marked_as_nodata_is_seen(
    tmp_path: Path, shared_data: Path, models: dict[str, Path]
) -> None:
    raster = shared_data / "trees_neon" / "plots" / "OSBS_037.tif"
    with rasterio.open(raster) as dataset:
        assert dataset.nodata == 255
        assert (dataset.read(1) == 255).any()
    check(tmp_path / "job", raster, models["red"], 1, 0.75)


def test_near_infrared_that_is_marked_as_transparency_is_read_where_it_is_named(
    tmp_path: Path, shared_data: Path, models: dict[str, Path]
) -> None:
    raster = shared_data / "trees_naip" / "chico_2018_0.tif"
    with pytest.raises(ModelIncompatibleError, match="Band 4 is marked as transparency"):
        run(tmp_path / "refused", raster, models["infrared"])
    check(tmp_path / "job", raster, models["infrared"], 4, 0.6, bands=("alpha",))


def test_empty_corners_of_a_mosaic_are_no_objects(tmp_path: Path, shared_data: Path, models: dict[str, Path]) -> None:
    raster = shared_data / "rasters" / "oam_drone_32632.tif"
    check(tmp_path / "job", raster, models["red"], 1, 0.7003)


def test_a_map_in_world_mercator_lies_where_its_file_says(
    tmp_path: Path, shared_data: Path, models: dict[str, Path]
) -> None:
    (raster,) = (shared_data / "masks_oamtcd").glob("5b3622402b6a08001185f8d8_10_00004.tif")
    with rasterio.open(raster) as dataset:
        part = write_raster(
            tmp_path / "part.tif", dataset.read(window=((512, 1024), (512, 1024))),
            dataset.transform * rasterio.Affine.translation(512, 512), str(dataset.crs),
        )  # fmt: skip
    result = check(tmp_path / "job", part, models["red"], 1, 0.8)
    # 0.1 map units are 0.067 m at 48 degrees north.
    assert "pixels of 0.06" in " ".join(message.text for message in result.messages("info"))


def test_an_image_without_a_place_is_refused_as_long_as_it_is_to_lie_on_a_map(
    tmp_path: Path, shared_data: Path, models: dict[str, Path]
) -> None:
    source = shared_data / "trees_neon" / "demo" / "SOAP_061.png"
    with rasterio.open(source) as dataset:
        path = write_raster(tmp_path / "r.tif", dataset.read(), crs=None)
    with pytest.raises(RasterOpenError, match="no coordinate reference system"):
        run(tmp_path / "job", path, models["red"])
