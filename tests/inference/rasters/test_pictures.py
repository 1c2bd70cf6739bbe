"""Pictures without georeference: in pixels, upright for the model, in place on the picture as QGIS shows it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from kestrel.inference.events import Item
from kestrel.inference.rasters.access import ALONE
from kestrel.inference.rasters.camera import camera_frame, frame_of, ground_size, orientation_of
from kestrel.inference.rasters.opening import open_pixels
from kestrel.inference.rasters.source import GridRequest
from kestrel.inference.rasters.upright import ORIENTATIONS, stored_place
from kestrel.inference.results import SOURCE
from kestrel.inference.tiling import Window
from kestrel.tests.fixtures.onnx_graphs import cell_network
from kestrel.tests.fixtures.photos import drone_xmp, write_photo
from kestrel.tests.fixtures.rasters import cells, items, noise, write_raster
from kestrel.tests.fixtures.runs import Result, run, write_definition

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

LIT = [(0, 1, 2), (1, 3, 7), (2, 8, 9), (0, 8, 0), (1, 0, 9)]
SMALL = {"tile_size": 32, "padding": 8}


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Give (C, H, W) as a camera stores it, that a viewer turns back with that number; by hand, from EXIF's table."""
    return {
        1: lambda a: a, 2: lambda a: a[:, :, ::-1], 3: lambda a: a[:, ::-1, ::-1], 4: lambda a: a[:, ::-1],
        5: lambda a: a.swapaxes(1, 2), 6: lambda a: np.rot90(a, 1, (1, 2)),
        7: lambda a: a.swapaxes(1, 2)[:, ::-1, ::-1], 8: lambda a: np.rot90(a, -1, (1, 2)),
    }[orientation](upright)  # fmt: skip


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that finds bright cells of 8 x 8 pixels in three bands."""
    folder = tmp_path_factory.mktemp("network")
    cell_network(folder / "cells.onnx", 3)
    return write_definition(folder, "cells.onnx", 3, input={"bands": [0, 1, 2], "scale": 1 / 255})


def facts(result: Result) -> list[dict[str, Any]]:
    """Give what was told of each raster."""
    return [event.facts for event in result.events if isinstance(event, Item)]


def search(folder: Path, model: Path, raster: Path, **members: Any) -> Result:
    return run(folder / "job", raster, model, **{"arguments": SMALL, **members})


def boxes_of(result: Result) -> set[tuple[int, ...]]:
    return {(*np.rint(box).astype(int).tolist(), label) for box, label in zip(result.bounds, result.labels)}


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_objects_of_a_picture_lie_in_its_pixels_with_y_up(network: Path, tmp_path: Path, suffix: str) -> None:
    image = cells(3, 9, 10, LIT)
    path = tmp_path / f"picture.{suffix}"
    if suffix == "jpg":
        write_photo(path, image)
    else:
        write_raster(path, image, Affine.identity(), None, driver={"png": "PNG", "tif": "GTiff"}[suffix])
    result = search(tmp_path, network, path)
    assert {(8 * c, -8 * (r + 1), 8 * (c + 1), -8 * r, band) for band, r, c in LIT} == boxes_of(result)
    assert ["pixel-space"] == [message.id for message in result.messages("info") if "no georeference" in message.text]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_model_sees_it_upright_and_objects_lie_where_the_stored_picture_shows_them(
    network: Path, tmp_path: Path, orientation: int
) -> None:
    upright = cells(3, 9, 10, LIT)
    path = write_photo(tmp_path / "p.jpg", stored(upright, orientation), orientation=orientation)
    with rasterio.open(path) as dataset:
        shown = dataset.read()  # QGIS shows this, row 0 at y = 0
    result = search(tmp_path, network, path)
    assert len(LIT) == len(result)
    for (xmin, ymin, xmax, ymax), label in zip(np.rint(result.bounds).astype(int), result.labels):
        inside = shown[:, -ymax:-ymin, xmin:xmax]
        assert (3, 8, 8) == inside.shape
        # A pixel beside, an eighth of it would be dark.
        assert label == int(inside.mean(axis=(1, 2)).argmax()) and inside[label].mean() > 185


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_any_window_of_a_turned_picture_is_the_part_of_the_upright_one(tmp_path: Path, orientation: int) -> None:
    upright = noise(3, 40, 56)
    path = write_photo(tmp_path / "p.jpg", stored(upright, orientation), orientation=orientation)
    source = open_pixels(items(path)[0], (0, 1, 2), GridRequest(), ALONE)
    whole, present = source.read(Window(0, 0, 56, 40))
    assert (56, 40, (3, 40, 56)) == (source.info.width, source.info.height, present.shape)
    assert np.abs(whole.astype(int) - upright).mean() < 12  # a JPEG is not the image
    assert np.array_equal(whole[:, 3:20, 10:50], source.read(Window(10, 3, 40, 17))[0])


@given(st.sampled_from(ORIENTATIONS), st.integers(1, 50), st.integers(1, 50))
def test_the_corners_of_the_upright_picture_are_those_of_the_stored_one(n: int, width: int, height: int) -> None:
    place = stored_place(n, width, height)
    size = (height, width) if n > 4 else (width, height)
    corners = {place * corner for corner in ((0, 0), (size[0], 0), (0, size[1]), size)}
    assert {(0, 0), (width, 0), (0, height), (width, height)} == corners
    assert (-1 if n in (2, 4, 5, 7) else 1) == round(place.determinant)


@pytest.mark.parametrize("value", ["", "0", "9", "sideways", "-1", "66"])
def test_an_orientation_that_means_nothing_is_none(value: str) -> None:
    assert 1 == orientation_of({"EXIF_Orientation": value})
    assert 1 == orientation_of({})


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_cell_size_in_pixels_zooms(network: Path, tmp_path: Path, orientation: int) -> None:
    large = cells(3, 9, 10, LIT).repeat(2, 1).repeat(2, 2)
    path = write_photo(tmp_path / "p.jpg", stored(large, orientation), orientation=orientation)
    result = search(tmp_path, network, path, cell_size=2.0)
    plain = search(tmp_path / "half", network, write_photo(
        tmp_path / "h.jpg", stored(cells(3, 9, 10, LIT), orientation), orientation=orientation))  # fmt: skip
    assert {(*(2 * value for value in box[:4]), box[4]) for box in boxes_of(plain)} == boxes_of(result)


def test_extent_and_mask_hold_in_the_pixels_of_the_picture(network: Path, tmp_path: Path) -> None:
    path = write_photo(tmp_path / "p.jpg", stored(cells(3, 9, 10, LIT), 6), orientation=6)
    everything = search(tmp_path / "all", network, path)
    area = shapely.box(0, -80, 40, -24)
    expected = {box for box in boxes_of(everything) if area.contains(shapely.Point((box[0] + box[2]) / 2,
                                                                                   (box[1] + box[3]) / 2))}  # fmt: skip
    assert 0 < len(expected) < len(LIT)
    assert expected == boxes_of(search(tmp_path / "extent", network, path, extent=area.bounds))
    mask = shapely.to_wkb(area, hex=True)
    assert expected == boxes_of(search(tmp_path / "mask", network, path, mask_wkb=mask))


def test_a_folder_of_frames_gives_pixels_of_each_and_its_name(network: Path, tmp_path: Path) -> None:
    first = write_photo(tmp_path / "DJI_0001.JPG", cells(3, 9, 10, LIT), gps=(48.5, 9.0))
    second = write_photo(tmp_path / "DJI_0002.JPG", stored(cells(3, 9, 10, LIT[:2]), 8), orientation=8)
    result = search(tmp_path, network, first, rasters=items(first, second), processing_mode="items")
    named = [own[SOURCE] for part in result.objects for own in part.attributes or []]
    assert [str(first)] * 5 + [str(second)] * 2 == named
    assert "camera" not in result.summary
    assert [[9.0, 48.5], None] == [entry.get("camera", {}).get("position") for entry in facts(result)]


def test_pictures_are_no_mosaic_and_the_way_out_is_told(network: Path, tmp_path: Path) -> None:
    first = write_photo(tmp_path / "a.jpg", cells(3, 9, 10, LIT))
    with pytest.raises(Exception, match=r"a\.jpg.*no place beside each other.*separately"):
        search(tmp_path, network, first, rasters=items(first, first))


def test_a_frame_that_looks_down_has_an_approximate_footprint(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "p.jpg", noise(3, 60, 80), focal_35mm=24, gps=(-33.85, 151.2),
                       xmp=drone_xmp(50, 90.0))  # fmt: skip
    frame = camera_frame(str(path))
    assert frame is not None and frame.footprint is not None
    polygon = shapely.Polygon(frame.footprint)
    assert (151.2, -33.85) == pytest.approx(frame.position)
    assert (151.2, -33.85) == pytest.approx(polygon.centroid.coords[0])
    # 36 mm x 24 mm at 24 mm would see 75 x 50 m from 50 m; 4:3 of the same diagonal sees 72.1 x 54.1 m.
    diagonal = 50 * math.hypot(36, 24) / 24
    metres = np.array(polygon.exterior.coords) * 111320 * [math.cos(math.radians(33.85)), 1]
    sides = np.hypot(*np.diff(metres, axis=0).T)
    assert sides[:2].tolist() == pytest.approx([diagonal * 0.8, diagonal * 0.6], rel=0.002)
    assert polygon.exterior.is_ccw
    # The top of the picture points east: its lower left corner lies in the north-west.
    west_north = np.array(frame.footprint[0]) - frame.position
    assert west_north[0] < 0 < west_north[1]
    assert "approximate" in frame.text
    assert {"type": "Polygon"} == {key: frame.as_json()["footprint"][key] for key in ("type",)}


@pytest.mark.parametrize(
    ("focal", "xmp"),
    [(24, ""), (None, drone_xmp(50, 0)), (24, drone_xmp(50, 0, pitch=-45)), (24, drone_xmp(-3, 0)),
     (24, drone_xmp(50, 0).replace("GimbalYawDegree", "Other"))],
)  # fmt: skip
def test_without_all_of_height_focal_length_direction_and_a_look_down_there_is_no_footprint(
    tmp_path: Path, focal: int | None, xmp: str
) -> None:
    path = write_photo(tmp_path / "p.jpg", noise(3, 60, 80), focal_35mm=focal, gps=(48.5, 9.0), xmp=xmp)
    frame = camera_frame(str(path))
    assert frame is not None and frame.footprint is None
    assert "cannot be told" in frame.text


def test_a_photo_that_does_not_say_where_it_was_taken_says_nothing(tmp_path: Path) -> None:
    assert camera_frame(str(write_photo(tmp_path / "p.jpg", noise(3, 60, 80), focal_35mm=24))) is None
    assert camera_frame(str(tmp_path / "gone.jpg")) is None


def test_the_sensors_density_serves_where_the_equivalent_focal_length_is_missing() -> None:
    tags = {"EXIF_FocalLength": "(8.8)", "EXIF_FocalPlaneXResolution": "(4144.6)", "EXIF_FocalPlaneResolutionUnit": "3"}
    # 10 mm / 4144.6 is a pixel of 2.413 micrometres: 13.2 mm for 5472 of them.
    assert ground_size(tags, 100.0, 5472, 3648) == pytest.approx((150.0, 100.0), rel=0.001)


@given(st.dictionaries(st.sampled_from(["EXIF_GPSLatitude", "EXIF_GPSLatitudeRef", "EXIF_GPSLongitude",
                                        "EXIF_GPSLongitudeRef", "EXIF_FocalLengthIn35mmFilm", "EXIF_FocalLength"]),
                       st.text()), st.text())  # fmt: skip
def test_nonsense_in_tags_is_passed_over(tags: dict[str, str], xmp: str) -> None:
    frame_of(tags, xmp, 4000, 3000)
