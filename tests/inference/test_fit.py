from __future__ import annotations

import pytest
from affine import Affine
from rasterio.crs import CRS

from kestrel.inference.fit import fit_warnings
from kestrel.inference.models.definition import CellSizeRange, ModelClass, ModelDefinition
from kestrel.inference.rasters.source import RasterInfo


def warnings(epsg: int, x: float, y: float, cell: float, trained: CellSizeRange | None) -> list[str]:
    info = RasterInfo(100, 100, 3, "uint8", Affine(cell, 0, x, 0, -cell, y), CRS.from_epsg(epsg).to_wkt())
    model = ModelDefinition("m", "onnx", "w", (ModelClass(1, "a", (0, 0, 0)),), cell_size=trained)
    return fit_warnings(model, info)


TENTH = CellSizeRange(0.08, 0.13, 32617)


@pytest.mark.parametrize(
    ("epsg", "x", "y", "cell"),
    [
        (32617, 404000, 3284000, 0.1),
        (3857, 1_100_000, 8_399_700, 0.2),  # 60 degrees north: a metre of the map is half a metre on the ground
        (4326, 10.0, 60.0, 1.27e-6),  # 0.14 m from south to north, 0.07 m from west to east
        (2263, 1_000_000, 200_000, 0.33),  # feet
    ],
)
def test_a_raster_of_the_models_cell_size_gives_no_warning(epsg: int, x: float, y: float, cell: float) -> None:
    assert [] == warnings(epsg, x, y, cell, TENTH)


@pytest.mark.parametrize(
    ("epsg", "x", "y", "cell", "remedy"),
    [
        (32617, 404000, 3284000, 0.6, "0.1"),
        (3857, 1_100_000, 8_399_700, 1.2, "0.2"),
        (2263, 1_000_000, 200_000, 3.0, "0.33"),
    ],
)
def test_a_coarser_one_is_told_with_the_cell_size_that_fits(
    epsg: int, x: float, y: float, cell: float, remedy: str
) -> None:
    (text,) = warnings(epsg, x, y, cell, TENTH)
    assert "the model was trained on 0.08 to 0.13 m" in text
    assert text.endswith(f"Set CELL_SIZE to {remedy}.")


@pytest.mark.parametrize("trained", [None, CellSizeRange(1, 2, 999999)])
def test_what_cannot_be_compared_gives_no_warning(trained: CellSizeRange | None) -> None:
    assert [] == warnings(32617, 404000, 3284000, 0.6, trained)


# At the latitude of the rasters below a degree is 98 to 111 km: these are 0.09 to 0.13 m.
DEGREES = CellSizeRange(0.85e-6, 1.3e-6, 4326)


@pytest.mark.parametrize(("cell", "n_warnings"), [(0.1, 0), (0.6, 1), (0.02, 1)])
def test_a_range_in_degrees_is_taken_at_the_rasters_latitude(cell: float, n_warnings: int) -> None:
    assert n_warnings == len(warnings(32617, 404000, 3284000, cell, DEGREES))


def test_esris_own_numbers_of_reference_systems_are_known() -> None:
    (text,) = warnings(32617, 404000, 3284000, 0.6, CellSizeRange(1, 1, 102100))
    assert "trained on 0.87 m" in text  # a metre of Web Mercator at 29.7 degrees
