"""Several rasters in one run: as one mosaic, or one by one."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from rasterio.vrt import WarpedVRT

from kestrel.inference import run as preparation
from kestrel.inference.errors import JobError, ModelIncompatibleError, RasterChangedError, RasterOpenError
from kestrel.inference.events import Canceled, Item, Message, Progress
from kestrel.inference.results import SOURCE
from kestrel.tests.fixtures.onnx_graphs import cell_network, random_network
from kestrel.tests.fixtures.rasters import NORTH_UP, UTM, cells, items, noise, write_raster
from kestrel.tests.fixtures.runs import Result, run, write_definition

SMALL = {"tile_size": 32, "padding": 8}
LIT = [(0, 1, 2), (1, 3, 7), (2, 9, 9), (0, 9, 0), (1, 0, 9), (2, 5, 5)]
"""Band, row, column of the bright cells; row 5 and column 5 lie on the joins of the four parts."""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that finds bright cells of 8 x 8 pixels in three bands."""
    folder = tmp_path_factory.mktemp("network")
    cell_network(folder / "cells.onnx", 3)
    return write_definition(folder, "cells.onnx", 3, input={"bands": [0, 1, 2], "scale": 1 / 255})


def part_of(folder: Path, name: str, image: np.ndarray, x: int, y: int, width: int, height: int) -> Path:
    """Write a part of an image at its place."""
    transform = NORTH_UP @ Affine.translation(x, y)
    return write_raster(folder / f"{name}.tif", image[:, y : y + height, x : x + width], transform)


def four(folder: Path, image: np.ndarray) -> list[Path]:
    """Write an image of 80 x 80 pixels as four parts that share a strip; the cell (5, 5) is cut by all inner edges."""
    places = {"a": (0, 0, 44, 44), "b": (40, 0, 40, 44), "c": (0, 40, 44, 40), "d": (44, 44, 36, 36)}
    return [part_of(folder, name, image, *place) for name, place in places.items()]


def facts(result: Result) -> list[dict[str, Any]]:
    """Give what was told of each raster."""
    return [event.facts for event in result.events if isinstance(event, Item)]


def search(folder: Path, model: Path, *rasters: Path, **members: Any) -> Result:
    """Run with several rasters."""
    given = {"arguments": SMALL, "rasters": items(*rasters), **members}
    return run(folder / "job", rasters[0], model, **given)


def sources(result: Result) -> list[str]:
    """Give the names of the rasters that objects were found in, without their folder."""
    return [Path(own[SOURCE]).name for part in result.objects for own in part.attributes or []]


def test_a_mosaic_gives_the_objects_of_the_whole_and_those_on_joins_once(network: Path, tmp_path: Path) -> None:
    image = cells(3, 10, 10, LIT)
    whole = search(tmp_path / "whole", network, write_raster(tmp_path / "whole.tif", image))
    parts = search(tmp_path / "parts", network, *four(tmp_path, image))
    assert 6 == len(parts)
    assert whole.content() == parts.content()
    assert [] == sources(parts)


def test_a_mosaic_of_noise_gives_the_objects_of_the_whole(tmp_path: Path) -> None:
    random_network(tmp_path / "random.onnx")
    model = write_definition(tmp_path, "random.onnx", 2, input={"bands": [0, 1, 2], "scale": 1 / 255})
    image = noise(3, 80, 80)
    options = {"arguments": {"threshold": 0.3}}
    whole = search(tmp_path / "whole", model, write_raster(tmp_path / "whole.tif", image), **options)
    assert 20 < len(whole)
    assert whole.content() == search(tmp_path / "parts", model, *four(tmp_path, image), **options).content()


def test_a_mosaic_says_how_it_was_made(network: Path, tmp_path: Path) -> None:
    result = search(tmp_path, network, *four(tmp_path, cells(3, 10, 10, LIT)))
    (told,) = [message.text for message in result.messages("info") if message.id == "mosaic"]
    assert told == "4 rasters are searched as one mosaic of 80 x 80 pixels. A later one lies on top."


@pytest.mark.slow
def test_a_real_scene_in_parts_of_other_grids_and_systems_gives_its_trees(repository: Path, tmp_path: Path) -> None:
    scene = repository / "resources" / "demo" / "OSBS_029.tif"
    model = repository / "resources" / "models" / "tree_crowns.dlpk"
    whole = search(tmp_path / "whole", model, scene, arguments={})
    with rasterio.open(scene) as dataset:
        image, place, crs = dataset.read(), dataset.transform, dataset.crs
    parts = []
    for name, (x, y, width, height) in {"a": (0, 0, 230, 220), "b": (180, 0, 220, 240), "c": (0, 190, 240, 210),
                                        "d": (190, 180, 210, 220)}.items():  # fmt: skip
        parts.append(write_raster(
            tmp_path / f"{name}.tif", image[::-1, y : y + height, x : x + width], place @ Affine.translation(x, y),
            crs, colors=["blue", "green", "red"],
        ))  # fmt: skip
        if name == "a":
            write_raster(tmp_path / "a.tif", image[:, :220, :230], place, crs)
    exact = search(tmp_path / "exact", model, *parts, arguments={})
    assert whole.content() == exact.content()

    with rasterio.open(parts[3]) as dataset, WarpedVRT(dataset, crs="EPSG:4326") as warped:
        rasterio.shutil.copy(warped, tmp_path / "e.tif", driver="GTiff")
    mixed = search(tmp_path / "mixed", model, *parts[:3], tmp_path / "e.tif", arguments={})
    assert_same_trees(whole, mixed, 0.05)


def assert_same_trees(one: Result, other: Result, metres: float) -> None:
    """Compare centres: nearly every tree has its like."""
    centres = [shapely.points([g.centroid.coords[0] for g in result.geometries]) for result in (one, other)]
    nearest = np.array([shapely.distance(point, centres[1]).min() for point in centres[0]])
    assert abs(len(one) - len(other)) <= 0.1 * len(one)
    assert np.median(nearest) <= metres
    assert (nearest < 1.0).mean() > 0.85


def test_one_by_one_each_raster_gives_what_its_own_run_gives(network: Path, tmp_path: Path) -> None:
    parts = four(tmp_path, cells(3, 10, 10, LIT))
    result = search(tmp_path / "all", network, *parts, processing_mode="items")
    alone = [search(tmp_path / path.stem, network, path) for path in parts]
    assert [row for each in alone for row in each.content()] == result.content()
    assert [path.name for path, each in zip(parts, alone) for _ in range(len(each))] == sources(result)
    assert [len(each) for each in alone] == [entry["objects"] for entry in facts(result)]
    assert {"name": "Source", "type": "text"} == result.summary["fields"][0]
    total = {"objects": len(result), "tiles": sum(each.summary["tiles"] for each in alone)}
    assert total == {key: result.summary[key] for key in total}


def test_the_model_is_loaded_once_for_all(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, calls = preparation.load_detector, []
    monkeypatch.setattr(preparation, "load_detector", lambda *given: calls.append(1) or load(*given))
    search(tmp_path, network, *four(tmp_path, cells(3, 10, 10, LIT)), processing_mode="items")
    assert [1] == calls


def test_a_raster_that_cannot_be_used_is_named_and_stops_no_other(network: Path, tmp_path: Path) -> None:
    a, b, c, d = four(tmp_path, cells(3, 10, 10, LIT))
    b.write_bytes(b"nothing")
    write_raster(c, cells(1, 10, 10, []))
    shutil.copy(a, d)
    result = search(tmp_path, network, a, b, c, d, processing_mode="items")
    warnings = [message.text for message in result.messages("warning")]
    assert ["b.tif", "c.tif"] == [name for text in warnings[:2] for name in ("b.tif", "c.tif") if name in text]
    assert warnings[-1].startswith("2 of 4 rasters could not be searched and are missing from the result: ")
    assert {"a.tif", "d.tif"} == set(sources(result))
    assert ["raster-open", "model-incompatible"] == [e["error"] for e in facts(result) if "error" in e]


def test_where_no_raster_can_be_used_the_run_fails(network: Path, tmp_path: Path) -> None:
    one = write_raster(tmp_path / "one.tif", cells(1, 10, 10, []))
    with pytest.raises(ModelIncompatibleError, match="None of the 2 rasters"):
        search(tmp_path, network, one, one, processing_mode="items")
    with pytest.raises(RasterOpenError, match=r"gone\.tif"):
        search(tmp_path / "2", network, tmp_path / "gone.tif", processing_mode="items")


def test_objects_of_other_coordinate_systems_come_in_that_of_the_job(network: Path, tmp_path: Path) -> None:
    image = cells(3, 10, 10, LIT)
    one = write_raster(tmp_path / "one.tif", image)
    # Square pixels in degrees, a place in a neighbouring zone: the cells' corners are known there.
    other = write_raster(tmp_path / "other.tif", image, Affine(1e-5, 0, 15.002, 0, -1e-5, 48.7), "EPSG:4326")
    wkt = rasterio.crs.CRS.from_string(UTM).to_wkt()
    result = search(tmp_path, network, one, other, processing_mode="items", crs_wkt=wkt)
    xs, ys = rasterio.warp.transform("EPSG:4326", UTM, [15.002 + 16e-5], [48.7 - 8e-5])
    corners = shapely.get_coordinates(result.geometries[6:])
    assert 1e-6 > np.hypot(*(corners - [xs[0], ys[0]]).T).min()
    assert search(tmp_path / "2", network, one).content() == result.content()[:6]


def test_extent_and_mask_hold_for_each_raster(network: Path, tmp_path: Path) -> None:
    image = cells(3, 10, 10, LIT)
    one = write_raster(tmp_path / "one.tif", image)
    far = write_raster(tmp_path / "far.tif", image, NORTH_UP @ Affine.translation(10**5, 0))
    degrees = write_raster(tmp_path / "degrees.tif", image, Affine(1e-5, 0, 15.0, 0, -1e-5, 48.75), "EPSG:4326")
    (x,), (y,) = rasterio.warp.transform("EPSG:4326", UTM, [15.0], [48.75])
    # Rows 0 to 6, columns 2 to 8 of the first one; about columns 0 to 6 of the one in degrees.
    parts = [shapely.box(500008, 5399976, 500032, 5400000), shapely.box(x - 1, y - 90, x + 7 * 8 * 0.735, y + 1)]
    expected = {"one.tif": 3, "degrees.tif": 3}
    members = {"processing_mode": "items", "crs_wkt": rasterio.crs.CRS.from_string(UTM).to_wkt()}
    mask = {"mask_wkb": shapely.to_wkb(shapely.multipolygons(parts), hex=True)}
    result = search(tmp_path / "mask", network, one, far, degrees, **mask, **members)
    assert expected == {name: sources(result).count(name) for name in set(sources(result))}
    assert ["far.tif lies outside the extent or mask and was passed over."] == [
        Path(message.text).name for message in result.messages("info") if message.id == "item-outside"
    ]
    for name, part in zip(("one.tif", "degrees.tif"), parts):
        result = search(tmp_path / name[:3], network, one, degrees, extent=part.bounds, **members)
        assert {name: 3} == {name: sources(result).count(name) for name in set(sources(result))}
    extent = parts[0].bounds
    with pytest.raises(JobError, match="lies outside"):
        search(tmp_path / "none", network, far, processing_mode="items", extent=extent)


def test_a_cell_size_means_the_same_ground_in_each_raster(network: Path, tmp_path: Path) -> None:
    fine = cells(3, 10, 10, LIT).repeat(2, 1).repeat(2, 2)
    one = write_raster(tmp_path / "one.tif", fine, NORTH_UP @ Affine.scale(0.5))
    other = write_raster(tmp_path / "other.tif", fine, NORTH_UP @ Affine.scale(0.5), "EPSG:32632")
    wkt = rasterio.crs.CRS.from_string(UTM).to_wkt()
    result = search(tmp_path, network, one, other, processing_mode="items", crs_wkt=wkt, cell_size=0.5)
    assert {"one.tif": 6, "other.tif": 6} == {name: sources(result).count(name) for name in set(sources(result))}


def test_a_run_that_was_stopped_goes_on_with_the_raster_where_it_stopped(network: Path, tmp_path: Path) -> None:
    parts = four(tmp_path, cells(3, 10, 10, LIT))
    whole = search(tmp_path / "whole", network, *parts, processing_mode="items")
    events: list[Any] = []

    def is_third() -> bool:
        return sum(isinstance(event, Message) and event.id == "item" for event in events) == 3

    with pytest.raises(Canceled):
        search(tmp_path, network, *parts, processing_mode="items", is_cancelled=is_third, events=events)
    done = {entry.name for entry in (tmp_path / "job").iterdir() if entry.name.startswith("item-")}
    assert {"item-00001", "item-00002"} <= {name[:10] for name in done}

    shutil.copystat(parts[0], parts[3])  # another time of change: nothing that was done depends on it
    again = search(tmp_path, network, *parts, processing_mode="items")
    assert whole.content() == again.content()
    firsts = first_progress(again)
    assert [event.done for event in firsts[:2]] == [event.total for event in firsts[:2]]
    assert 0 == firsts[3].done


def first_progress(result: Result) -> list[Progress]:
    """Give the first word on each raster."""
    found: dict[int, Progress] = {}
    for event in result.events:
        if isinstance(event, Progress):
            found.setdefault(event.item, event)
    return [found[number] for number in sorted(found)]


def test_progress_counts_rasters_and_objects_of_all(network: Path, tmp_path: Path) -> None:
    result = search(tmp_path, network, *four(tmp_path, cells(3, 10, 10, LIT)), processing_mode="items")
    told = [event for event in result.events if isinstance(event, Progress)]
    shares = [event.item - 1 + event.done / event.total for event in told]
    assert shares == sorted(shares) and 4 == shares[-1] == told[-1].items
    assert [event.objects for event in told] == sorted(event.objects for event in told)


def test_what_holds_for_all_is_told_once(network: Path, tmp_path: Path) -> None:
    result = search(tmp_path, network, *four(tmp_path, cells(3, 10, 10, LIT)), processing_mode="items")
    told = [message.text for message in result.messages("info")]
    assert 1 == sum(text.startswith("Model: ") for text in told)
    assert 4 == sum(text.startswith("Raster ") for text in told)


def test_a_plan_of_several_rasters_adds_up(network: Path, tmp_path: Path) -> None:
    parts = four(tmp_path, cells(3, 10, 10, LIT))
    result = search(tmp_path, network, *parts, processing_mode="items", plan_only=True)
    whole = search(tmp_path / "run", network, *parts, processing_mode="items")
    assert (4, whole.summary["tiles"]) == (result.summary["plan"]["rasters"], result.summary["plan"]["tiles"])
    assert 0 == len(result)
    assert [entry["tiles"] for entry in facts(whole)] == [entry["tiles"] for entry in facts(result)]


def test_a_mosaic_of_which_a_part_changes_meanwhile_is_not_believed(network: Path, tmp_path: Path) -> None:
    parts = four(tmp_path, cells(3, 10, 10, LIT))

    def touch() -> bool:
        parts[2].touch()
        return False

    with pytest.raises(RasterChangedError, match="mosaic of 4 rasters"):
        search(tmp_path, network, *parts, is_cancelled=touch)


@pytest.mark.parametrize("is_nodata", [False, True])
def test_statistics_that_somebody_has_made_meanwhile_are_no_change(
    network: Path, tmp_path: Path, is_nodata: bool
) -> None:
    parts, numbers = four(tmp_path, cells(3, 10, 10, LIT)), count(200)

    def look() -> bool:
        value = next(numbers)
        said = f'<Metadata><MDI key="STATISTICS_MEAN">{value}</MDI></Metadata><Histograms><HistItem/></Histograms>'
        said += f"<NoDataValue>{value}</NoDataValue>" if is_nodata else ""
        text = f'<PAMDataset>\n  <PAMRasterBand band="1">{said}</PAMRasterBand>\n</PAMDataset>'
        Path(f"{parts[2]}.aux.xml").write_text(text)
        return False

    with pytest.raises(RasterChangedError) if is_nodata else nullcontext():
        search(tmp_path, network, *parts, is_cancelled=look)
