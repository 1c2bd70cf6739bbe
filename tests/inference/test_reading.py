"""Rasters of other values and other resolutions than a model's: real pixels, the demo network, the whole way."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rasterio.warp import transform as warp

from kestrel.inference.detectors.graph_input import GraphInput
from kestrel.inference.errors import ModelIncompatibleError
from kestrel.inference.events import Canceled, Progress
from kestrel.inference.job import DetectionJob
from kestrel.inference.models.definition import CellSizeRange, InputSpec, ModelDefinition, definition_from_json
from kestrel.inference.models.stretch import Stretch
from kestrel.inference.rasters.model_raster import ModelRaster
from kestrel.inference.rasters.stretching import BandStretch, measured
from kestrel.inference.reading import open_raster
from kestrel.inference.tiling import Window
from kestrel.tests.fixtures.packages import definition
from kestrel.tests.fixtures.rasters import items, model_raster, noise, write_raster
from kestrel.tests.fixtures.runs import CancelAfter, Result, run, write_definition

pytestmark = pytest.mark.slow

Opened = tuple[ModelRaster, list[Any]]


@pytest.fixture(scope="module")
def trees(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo network's weights."""
    folder = tmp_path_factory.mktemp("trees")
    with zipfile.ZipFile(repository / "resources" / "models" / "tree_crowns.dlpk") as archive:
        archive.extract("tree_crowns.onnx", folder)
    return folder


@pytest.fixture(scope="module")
def photo(repository: Path) -> tuple[Any, Affine]:
    """The demo image's pixels, and where they lie."""
    with rasterio.open(repository / "resources" / "demo" / "OSBS_029.tif") as dataset:
        return dataset.read(), dataset.transform


def tree_model(folder: Path, name: str = "trees.json", cell_size: Any = None, **input_members: Any) -> Path:
    """Describe the demo network."""
    return write_definition(
        folder, "tree_crowns.onnx", 1, name,
        input={"data_range": [0, 255], **input_members},
        tile={"size": 1024, "stride": 16, "receptive_field_radius": 126},
        cell_size=cell_size or {"min": 0.08, "max": 0.13},
        arguments={"threshold": 0.27, "nms_overlap": 0.3},
    )  # fmt: skip


def opened(raster: Path, model: ModelDefinition, stretch: str = "model", cell_size: float | None = None) -> Opened:
    job = DetectionJob("j", items(raster), "m", cell_size=cell_size)
    source, told = open_raster(job, model, {"stretch": stretch})
    source.close()
    return source, told


def model_of(**members: Any) -> ModelDefinition:
    return definition_from_json(definition(**members))


EIGHT_BITS = {"input": {"scale": 1 / 255}}


# -- The same image in other types gives the same objects --------------------------------------------------------------

SCALED = {"uint16": (257.0, 0.0), "int16": (100.0, -12000.0), "float32": (1 / 255, 0.0)}


def scaled(pixels: Any, dtype: str) -> Any:
    factor, offset = SCALED[dtype]
    return (pixels.astype(np.float64) * factor + offset).astype(dtype)


def test_an_image_of_another_type_gives_the_objects_of_8_bits_through_the_stated_range(
    tmp_path: Path, trees: Path, photo: tuple[Any, Affine]
) -> None:
    pixels, transform = photo
    plain = tree_model(trees)
    wanted = run(tmp_path / "8", write_raster(tmp_path / "8.tif", pixels, transform, "EPSG:32617"), plain)
    assert len(wanted) > 50
    for dtype, (factor, offset) in SCALED.items():
        raster = write_raster(tmp_path / f"{dtype}.tif", scaled(pixels, dtype), transform, "EPSG:32617")
        ends = {"from": "range", "minimum": offset, "maximum": 255 * factor + offset}
        found = run(tmp_path / dtype, raster, tree_model(trees, f"{dtype}.json", stretch=ends))
        assert wanted.content() == found.content(), dtype
        (message,) = [event for event in found.messages("info") if event.id == "stretch"]
        assert f"band 1 from {offset:.6g} to" in message.text


def test_percentiles_of_another_type_give_the_objects_of_those_of_8_bits(
    tmp_path: Path, trees: Path, photo: tuple[Any, Affine]
) -> None:
    pixels, transform = photo
    model, arguments = tree_model(trees), {"stretch": "percentiles"}

    def found(name: str, values: Any, arguments: dict[str, Any]) -> Result:
        raster = write_raster(tmp_path / f"{name}.tif", values, transform, "EPSG:32617")
        return run(tmp_path / name, raster, model, arguments=arguments)

    wanted = found("8", pixels, arguments)
    sixteen = found("16", scaled(pixels, "uint16"), {})
    assert len(wanted) > 30
    assert wanted.content() == sixteen.content()  # nothing stated: stretched by itself, with a warning
    (warning,) = [event for event in sixteen.messages("warning") if event.id == "stretch"]
    assert "made for values of 8 bits" in warning.text and "2nd to 98th percentile" in warning.text
    with pytest.raises(ModelIncompatibleError, match="argument stretch to percentiles"):
        found("raw", scaled(pixels, "uint16"), {"stretch": "none"})


def test_a_run_that_was_stopped_goes_on_with_the_same_stretch(
    tmp_path: Path, trees: Path, photo: tuple[Any, Affine]
) -> None:
    pixels, transform = photo
    raster = write_raster(tmp_path / "r.tif", scaled(pixels, "uint16"), transform, "EPSG:32617")
    model, options = tree_model(trees), {"arguments": {"tile_size": 160, "padding": 32}}
    whole = run(tmp_path / "whole", raster, model, **options)
    with pytest.raises(Canceled):
        run(tmp_path / "two", raster, model, is_cancelled=CancelAfter(tmp_path / "two", 2), **options)
    before = CancelAfter(tmp_path / "two", 0).n_done()
    events: list[Any] = []
    rest = run(tmp_path / "two", raster, model, events=events, **options)
    first = next(event for event in events if isinstance(event, Progress))
    assert 2 <= before == first.done < whole.summary["tiles"]
    assert whole.content() == rest.content()


def test_a_part_of_the_raster_is_stretched_as_the_whole(tmp_path: Path, trees: Path, photo: tuple[Any, Affine]) -> None:
    pixels, transform = photo
    values = scaled(pixels, "uint16")
    values[:, :, 200:] //= 4  # the other half is dark
    raster = write_raster(tmp_path / "r.tif", values, transform, "EPSG:32617")
    x0, y0 = transform * (0, 400)
    x1, y1 = transform * (150, 0)
    runs = [run(tmp_path / name, raster, tree_model(trees), extent=extent)
            for name, extent in (("all", None), ("part", (x0, y0, x1, y1)))]  # fmt: skip
    texts = [[event.text for event in result.messages("warning") if event.id == "stretch"] for result in runs]
    assert texts[0] == texts[1] != []


# -- Where the ends lie ------------------------------------------------------------------------------------------------


def test_nodata_and_what_is_no_number_count_in_no_statistic_and_become_black(tmp_path: Path) -> None:
    clean = noise(3, 60, 60).astype(np.float32) * 10 + 500
    holed = clean.copy()
    holed[:, :20] = -9999
    holed[0, 30:40] = np.nan
    holed[1, 45] = np.inf
    raster = write_raster(tmp_path / "r.tif", holed, nodata=-9999)
    source, told = open_raster(DetectionJob("j", items(raster), "m"), model_of(**EIGHT_BITS), {})
    assert source.stretch is not None
    keep = [np.delete(clean[0], np.r_[0:20, 30:40], 0), np.delete(clean[1], np.r_[0:20, 45], 0), clean[2, 20:]]
    ends = [np.percentile(values, [2, 98]) for values in keep]
    np.testing.assert_allclose(list(zip(source.stretch.lows, source.stretch.highs)), ends)
    pixels, valid = source.read(Window(0, 0, 60, 60))
    source.close()
    assert pixels.dtype == np.uint8
    assert not pixels[:, :20].any() and not pixels[0, 30:40].any() and not pixels[1, 45].any()
    assert (not valid[:20].any(), valid[20:].all()) == (True, True)
    assert ["warning"] == [message.level for message in told]


def test_a_band_of_one_value_becomes_one_value(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", np.full((3, 9, 9), 3000, np.uint16))
    source, _ = open_raster(DetectionJob("j", items(raster), "m"), model_of(**EIGHT_BITS), {})
    pixels, _ = source.read(Window(0, 0, 9, 9))
    source.close()
    assert [0] == np.unique(pixels).tolist()


@given(hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e6, 1e6)), st.floats(0.1, 5))
def test_statistics_lie_around_the_mean(values: Any, deviations: float) -> None:
    stretch = measured(Stretch("statistics", deviations=deviations), [values])
    reach = deviations * values.std()
    if values.mean() - reach < values.mean() + reach:
        np.testing.assert_allclose([values.mean() - reach, values.mean() + reach], [*stretch.lows, *stretch.highs])
    assert stretch.lows[0] < stretch.highs[0]


@given(hnp.arrays(np.int16, (2, 3, 3)), st.integers(-30000, 0), st.integers(1, 30000))
def test_values_lie_on_a_line_that_is_cut_off(pixels: Any, low: int, high: int) -> None:
    result = BandStretch((low, low), (high, high), (0.0, 255.0), is_to_bytes=True).apply(pixels)
    exact = (np.clip(pixels.astype(float), low, high) - low) / (high - low) * 255
    assert result.dtype == np.uint8
    assert np.abs(result - exact).max() <= 0.5 + 1e-9
    unit = BandStretch((low, low), (high, high), (0.0, 1.0), is_to_bytes=False).apply(pixels)
    np.testing.assert_allclose(exact / 255, unit, atol=1e-6)


@pytest.mark.parametrize("is_tiled", [True, False])
def test_a_large_raster_is_sampled_in_windows_and_its_overviews_where_it_has_them(
    tmp_path: Path, *, is_tiled: bool
) -> None:
    side = 2304
    ramp = (np.arange(side, dtype=np.uint16) * 4)[None, None].repeat(side, 1)
    options = {"tiled": True, "blockxsize": 256, "blockysize": 256} if is_tiled else {}
    raster = write_raster(tmp_path / "r.tif", ramp, **options)

    def ends() -> list[float]:
        source = model_raster(raster, InputSpec(bands=(0,))).pixels
        (values,) = source.sample()
        again = source.sample()[0]
        source.close()
        assert np.array_equal(values, again)
        assert 20_000 < len(values) <= 2048 * 2048
        return [float(value) for value in np.percentile(values, [2, 98])]

    wanted = [0.02 * side * 4, 0.98 * side * 4]
    np.testing.assert_allclose(ends(), wanted, atol=0.03 * side * 4)
    with rasterio.open(raster, "r+") as dataset:
        dataset.build_overviews([2, 4], rasterio.enums.Resampling.nearest)
    np.testing.assert_allclose(ends(), wanted, atol=0.01 * side * 4)


# -- Whether anything is stretched -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "top", "members", "argument", "expected"),
    [
        ("uint8", 255, EIGHT_BITS, "model", None),
        ("uint16", 3000, EIGHT_BITS, "model", "uint8"),
        ("uint16", 3000, EIGHT_BITS, "none", None),
        ("uint16", 3000, {}, "model", None),  # nobody says what the model wants
        ("uint16", 3000, {}, "statistics", "uint8"),
        ("uint8", 255, EIGHT_BITS, "percentiles", "uint8"),
        ("uint8", 255, {"input": {"stretch": {"from": "percentiles"}}}, "model", None),
        ("uint8", 255, {"input": {"stretch": {"from": "percentiles", "to": [0, 1]}}}, "model", "float32"),
        ("uint16", 3000, {"input": {"stretch": {"from": "range", "minimum": 0, "maximum": 4000}}}, "model", "uint8"),
        ("uint16", 3000, {"input": {"data_range": [0, 10000]}}, "model", None),
        ("float32", 1, EIGHT_BITS, "model", "uint8"),
    ],
)
def test_what_is_stretched_follows_definition_argument_and_values(
    tmp_path: Path, dtype: str, top: float, members: dict[str, Any], argument: str, expected: str | None
) -> None:
    pixels = (noise(3, 40, 40) / 255 * top).astype(dtype)
    source, told = opened(write_raster(tmp_path / "r.tif", pixels), model_of(**members), argument)
    assert (None if source.stretch is None else source.info.dtype) == expected
    assert len(told) == (expected is not None)


def test_values_of_8_bits_in_a_wider_type_become_8_bits_and_stay_what_they_are(tmp_path: Path) -> None:
    pixels = noise(3, 40, 40)
    raster = write_raster(tmp_path / "r.tif", pixels.astype(np.int16))
    source, told = open_raster(DetectionJob("j", items(raster), "m"), model_of(**EIGHT_BITS), {})
    found, _ = source.read(Window(0, 0, 40, 40))
    source.close()
    assert ("uint8", [], pixels.tolist()) == (str(found.dtype), told, found.tolist())


def test_colours_of_a_table_are_never_stretched(tmp_path: Path) -> None:
    raster = write_raster(
        tmp_path / "r.tif", np.array([[[0, 1]]], np.uint8), colors=["palette"], palette={0: (1, 2, 3, 255)}
    )
    assert opened(raster, model_of(**EIGHT_BITS), "percentiles")[0].stretch is None


def test_a_model_of_esris_gets_the_values_as_they_are(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", np.full((3, 9, 9), 3000, np.uint16))
    model = replace(model_of(**EIGHT_BITS), kind="arcgis", own_arguments=())
    assert (None, []) == (opened(raster, model)[0].stretch, opened(raster, model)[1])


def test_a_graph_of_8_bit_pixels_takes_a_stretched_raster_and_names_the_argument_for_another(tmp_path: Path) -> None:
    model = model_of(input={"bands": [0, 1, 2]})
    raster = write_raster(tmp_path / "r.tif", noise(3, 16, 16).astype(np.uint16) * 40)
    source, _ = open_raster(DetectionJob("j", items(raster), "m"), model, {"stretch": "percentiles"})
    fed = GraphInput(np.uint8, (None, 3, None, None), model)
    pixels, _ = source.read(Window(0, 0, 16, 16))
    source.close()
    assert np.array_equal(fed.feed(pixels[None]), pixels[None])
    with pytest.raises(ModelIncompatibleError, match="argument stretch to percentiles"):
        fed.feed(pixels[None].astype(np.uint16))


# -- Resolution --------------------------------------------------------------------------------------------------------


def placed(x: float, y: float, cell: float, crs: str) -> tuple[Affine, str]:
    return Affine(cell, 0, x, 0, -cell, y), crs


PLACES = {
    "metres": placed(404000, 3284000, 0.1, "EPSG:32617"),
    "web mercator": placed(1_100_000, 8_399_700, 0.2, "EPSG:3857"),  # 60 degrees north: 0.1 m
    "degrees": placed(10.0, 60.0, 1.27e-6, "EPSG:4326"),
    "feet": placed(1_000_000, 200_000, 0.328, "EPSG:2263"),
}
ZONES = {"metres": "EPSG:32617", "web mercator": "EPSG:32632", "degrees": "EPSG:32632", "feet": "EPSG:32618"}
"""A metric projection of each place, true to scale within half a thousandth."""


def ground_length(source: ModelRaster, zone: str) -> float:
    """Give the side of a pixel on the ground, the mean of both directions: measured on a map in metres."""
    corners = [source.info.transform * corner for corner in ((0, 0), (1000, 0), (0, 1000))]
    x, y = warp(rasterio.CRS.from_wkt(source.info.crs_wkt), zone, *zip(*corners))
    sides = [float(np.hypot(x[i] - x[0], y[i] - y[0])) for i in (1, 2)]
    return float(np.sqrt(sides[0] * sides[1])) / 1000


@pytest.mark.parametrize("place", PLACES)
def test_a_raster_is_read_at_the_models_resolution_on_the_ground(tmp_path: Path, place: str) -> None:
    transform, crs = PLACES[place]
    raster = write_raster(tmp_path / "r.tif", noise(3, 90, 90), transform, crs)
    source, told = opened(raster, model_of(cell_size={"read_at": 0.3}))
    side = source.info.cell_size[0]
    assert ground_length(source, ZONES[place]) == pytest.approx(0.3, rel=0.01)  # a sphere stands for the ellipsoid
    (message,) = told
    assert ("info", "resolution") == (message.level, message.id)
    assert f"with a cell size of {side:g}" in message.text and "the model wants 0.3 m" in message.text


def test_the_parameter_overrules_the_models_resolution(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", noise(3, 90, 90), *PLACES["metres"])
    source, told = opened(raster, model_of(cell_size={"read_at": 0.3}), cell_size=0.2)
    assert ([], 0.2) == (told, pytest.approx(source.info.cell_size[0]))


@pytest.mark.parametrize(("read_at", "width"), [(0.104, 90), (0.096, 90), (0.11, 82), (0.09, 100)])
def test_a_raster_of_nearly_that_resolution_is_read_as_it_is(tmp_path: Path, read_at: float, width: int) -> None:
    raster = write_raster(tmp_path / "r.tif", noise(3, 90, 90), *PLACES["metres"])
    source, told = opened(raster, model_of(cell_size={"read_at": read_at}))
    assert ((width == 90), abs(source.info.width - width) <= 1) == (not told, True)


@pytest.mark.parametrize(("read_at", "level"), [(0.03, "info"), (0.02, "warning")])
def test_a_raster_that_is_enlarged_much_is_warned_of(tmp_path: Path, read_at: float, level: str) -> None:
    raster = write_raster(tmp_path / "r.tif", noise(3, 9, 9), *PLACES["metres"])
    (message,) = opened(raster, model_of(cell_size={"read_at": read_at}))[1]
    assert (level, level == "warning") == (message.level, "will find little" in message.text)


def test_a_fine_image_gives_the_objects_of_the_cell_size_that_is_set_by_hand(
    tmp_path: Path, trees: Path, photo: tuple[Any, Affine]
) -> None:
    pixels, transform = photo
    fine = write_raster(tmp_path / "r.tif", pixels.repeat(3, 1).repeat(3, 2), transform * Affine.scale(1 / 3),
                        "EPSG:32617")  # fmt: skip
    at = {"min": 0.08, "max": 0.13, "read_at": 0.1}
    found = run(tmp_path / "at", fine, tree_model(trees, cell_size=at))
    assert [] == [event.text for event in found.messages("warning")]
    side = float(
        next(e for e in found.messages("info") if e.id == "resolution").text.split("cell size of ")[1].split()[0][:-1]
    )
    by_hand = run(tmp_path / "hand", fine, tree_model(trees, cell_size={"min": 0.08, "max": 0.13}), cell_size=side)
    assert len(found) > 50
    assert found.content() == by_hand.content()


def test_the_range_of_a_model_with_a_resolution_is_that_resolution() -> None:
    assert CellSizeRange(0.3, 0.3, None, 0.3) == model_of(cell_size={"read_at": 0.3}).cell_size
