"""The context of a run in the raster's terms: cell size, snap raster, bands, extent, coordinate reference systems."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from osgeo import gdal
from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsDistanceArea,
    QgsGeometry,
    QgsPointXY,
    QgsProject,
    QgsRasterLayer,
)

from kestrel.inference.errors import JobError, ModelIncompatibleError, RasterOpenError
from kestrel.inference.job import DetectionJob
from kestrel.processing_provider.job_builder import build_plan, complete_job
from kestrel.processing_provider.outputs.placement import Placement
from kestrel.tests.qgis.examples import algorithm, context, polygon_layer, refusal, write_model, write_raster
from kestrel.tests.qgis.test_append import make_layer

MERCATOR_60 = (1_000_000, 1, 0, 8_399_738, 0, -1)
"""A raster of web Mercator at 60 degrees north."""


@pytest.fixture
def good(tmp_path: Path) -> dict[str, Any]:
    """Parameters that nothing is wrong with."""
    return {"INPUT": write_raster(tmp_path / "raster.tif"), "MODEL": write_model(tmp_path), "OUTPUT": "memory:"}


def job_of(parameters: dict[str, Any]) -> DetectionJob:
    return build_plan(algorithm(), parameters, context()).job


def ground_metres(crs: str, x: float, y: float, side: float) -> float:
    """Measure a square's mean side on the ellipsoid, by QGIS's own ruler."""
    ruler = QgsDistanceArea()
    ruler.setSourceCrs(QgsCoordinateReferenceSystem(crs), QgsProject.instance().transformContext())
    ruler.setEllipsoid("WGS84")
    corners = [QgsPointXY(x, y), QgsPointXY(x + side, y), QgsPointXY(x, y + side)]
    return math.sqrt(ruler.measureLine(corners[0], corners[1]) * ruler.measureLine(corners[0], corners[2]))


# -- Cell size ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epsg", "transform"),
    [
        (3857, MERCATOR_60),
        (3395, (1_280_000, 0.1, 0, 6_100_000, 0, -0.1)),
        (4326, (10, 1e-5, 0, 0, 0, -1e-5)),
        (4326, (10, 1e-5, 0, 60, 0, -1e-5)),
        (4326, (10, 1e-5, 0, 85, 0, -1e-5)),
    ],
    ids=["web Mercator", "world Mercator", "degrees at 0", "degrees at 60", "degrees at 85"],
)
@pytest.mark.parametrize(("unit", "metres"), [("Metres", 1.0), ("Feet", 0.3048)])
def test_a_length_on_the_ground_is_that_long_by_qgis_s_own_ruler(
    tmp_path: Path, good: dict[str, Any], epsg: int, transform: Any, unit: str, metres: float
) -> None:
    raster = write_raster(tmp_path / "r.tif", epsg=epsg, transform=transform)
    side = job_of({**good, "INPUT": raster, "CELL_SIZE": 2, "CELL_SIZE_UNIT": unit}).cell_size
    x, y = transform[0] + 50 * transform[1], transform[3] + 40 * transform[5]
    assert ground_metres(f"EPSG:{epsg}", x, y, side) == pytest.approx(2 * metres, rel=1e-3)


def test_half_a_metre_of_utm_stays_half_a_metre(good: dict[str, Any]) -> None:
    assert job_of({**good, "CELL_SIZE": 0.5, "CELL_SIZE_UNIT": "Metres"}).cell_size == 0.5


def test_metres_become_the_feet_of_a_raster_in_feet(tmp_path: Path, good: dict[str, Any]) -> None:
    raster = write_raster(tmp_path / "r.tif", epsg=2263, transform=(980000, 1, 0, 200000, 0, -1))
    size = job_of({**good, "INPUT": raster, "CELL_SIZE": 0.3, "CELL_SIZE_UNIT": "Metres"}).cell_size
    assert size == pytest.approx(0.3 / 0.3048006096, rel=1e-6)


def test_ground_is_measured_at_the_centre_of_the_extent(tmp_path: Path, good: dict[str, Any]) -> None:
    raster = write_raster(tmp_path / "r.tif", epsg=4326, transform=(10, 0.5, 0, 60, 0, -0.5))
    sizes = [
        job_of({**good, "INPUT": raster, "CELL_SIZE": 1000, "CELL_SIZE_UNIT": "Metres", "EXTENT": extent}).cell_size
        for extent in ("10,20,50,58 [EPSG:4326]", "10,20,22,30 [EPSG:4326]")
    ]
    assert sizes[0] / sizes[1] == pytest.approx(
        math.sqrt(math.cos(math.radians(26)) / math.cos(math.radians(54))), rel=0.01
    )


def test_the_unit_of_the_raster_is_the_default(tmp_path: Path, good: dict[str, Any]) -> None:
    raster = write_raster(tmp_path / "r.tif", epsg=3857, transform=MERCATOR_60)
    assert job_of({**good, "INPUT": raster, "CELL_SIZE": 2}).cell_size == 2


def test_the_metres_of_a_building_site_s_own_system_are_metres(good: dict[str, Any]) -> None:
    raster = gdal.Open(good["INPUT"], gdal.GA_Update)
    raster.SetProjection('LOCAL_CS["Building site",UNIT["metre",1]]')
    del raster
    assert job_of({**good, "CELL_SIZE": 0.25, "CELL_SIZE_UNIT": "Metres"}).cell_size == 0.25


def test_metres_are_refused_where_the_raster_lies_nowhere(tmp_path: Path, good: dict[str, Any]) -> None:
    raster = write_raster(tmp_path / "r.tif", epsg=4326, transform=(10, 1, 0, 200, 0, -1))
    with pytest.raises(JobError, match="does not tell how large its units are on the ground"):
        job_of({**good, "INPUT": raster, "CELL_SIZE": 1, "CELL_SIZE_UNIT": "Metres"})


def test_a_layer_tells_the_cell_size(tmp_path: Path, good: dict[str, Any]) -> None:
    coarse = write_raster(tmp_path / "coarse.tif", transform=(0, 2.5, 0, 0, 0, -2.5))
    assert job_of({**good, "CELL_SIZE_LAYER": coarse}).cell_size == 2.5


def test_a_layer_in_another_crs_tells_it_through_the_ground(tmp_path: Path, good: dict[str, Any]) -> None:
    raster = write_raster(tmp_path / "r.tif", epsg=3857, transform=MERCATOR_60)
    degrees = write_raster(tmp_path / "d.tif", epsg=4326, transform=(8.98, 1e-5, 0, 60.01, 0, -1e-5))
    size = job_of({**good, "INPUT": raster, "CELL_SIZE_LAYER": degrees}).cell_size
    wanted = ground_metres("EPSG:4326", 8.9836, 60, 1e-5)
    assert ground_metres("EPSG:3857", 1_000_050, 8_399_698, size) == pytest.approx(wanted, rel=2e-3)


def test_a_cell_size_given_twice_is_refused(good: dict[str, Any]) -> None:
    with pytest.raises(JobError, match="given twice"):
        job_of({**good, "CELL_SIZE": 1, "CELL_SIZE_LAYER": good["INPUT"]})


# -- Snap raster -------------------------------------------------------------------------------------------------------


def test_pixels_are_aligned_with_the_snap_raster_s_corners(tmp_path: Path, good: dict[str, Any]) -> None:
    snap = write_raster(tmp_path / "snap.tif", transform=(499_900.25, 1, 0, 5_600_100.75, 0, -1))
    x, y = job_of({**good, "SNAP_RASTER": snap}).snap
    assert (x % 1, y % 1) == (0.25, 0.75)
    assert (x, y) == (499_999.25, 5_599_919.75)


def test_a_snap_raster_in_another_crs_is_refused_by_name(tmp_path: Path, good: dict[str, Any]) -> None:
    snap = write_raster(tmp_path / "other.tif", epsg=32632)
    with pytest.raises(JobError, match=r"snap raster 'other'.*EPSG:32632.*EPSG:32633"):
        job_of({**good, "SNAP_RASTER": snap})


def test_a_rotated_snap_raster_is_refused(tmp_path: Path, good: dict[str, Any]) -> None:
    snap = write_raster(tmp_path / "turned.tif", transform=(500000, 0.8, 0.6, 5600000, 0.6, -0.8))
    with pytest.raises(JobError, match="'turned' is rotated"):
        job_of({**good, "SNAP_RASTER": snap})


# -- Bands -------------------------------------------------------------------------------------------------------------


def four_bands(path: Path, **options: Any) -> str:
    name = write_raster(path, n_bands=4, names=("Red", "Green", "Blue", "NIR"), **options)
    dataset = gdal.Open(name, gdal.GA_Update)
    dataset.GetRasterBand(4).SetColorInterpretation(gdal.GCI_Undefined)  # GDAL takes a fourth band for transparency
    del dataset
    return name


@pytest.mark.parametrize(
    ("text", "bands"),
    [
        ("4,3,2", (3, 2, 1)),
        ("4; 3; 2", (3, 2, 1)),
        ("nir;red;green", ("nir", "red", "green")),
        ("[4, 'Red', 2]", (3, "Red", 1)),
        ("1,1,1", (0, 0, 0)),
        ("", ()),
    ],
)
def test_bands_are_numbers_from_one_or_names(
    tmp_path: Path, good: dict[str, Any], text: str, bands: tuple[Any, ...]
) -> None:
    assert job_of({**good, "INPUT": four_bands(tmp_path / "r.tif"), "BANDS": text}).bands == bands


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1,2", "names 2 bands, and the model 'Palms' takes 3.*1 \\(Red\\), 2 \\(Green\\), 3 \\(Blue\\), 4 \\(NIR\\)"),
        ("1,2,5", "no band 5.*4 \\(NIR\\)"),
        ("1,2,0", "no band 0"),
        ("red,green,swir1", "no band named 'swir1'.*4 \\(NIR\\)"),
    ],
)
def test_bands_that_do_not_fit_are_refused_with_the_raster_s_list(
    tmp_path: Path, good: dict[str, Any], text: str, says: str
) -> None:
    with pytest.raises(JobError, match=says):
        job_of({**good, "INPUT": four_bands(tmp_path / "r.tif"), "BANDS": text})


def test_the_numbers_are_those_of_the_layer_where_transparency_stands_between(
    tmp_path: Path, good: dict[str, Any]
) -> None:
    path = four_bands(tmp_path / "r.tif")
    dataset = gdal.Open(path, gdal.GA_Update)
    dataset.GetRasterBand(2).SetColorInterpretation(gdal.GCI_AlphaBand)
    del dataset
    # The job counts without bands of transparency: the layer's band 4 is the third of them.
    assert job_of({**good, "INPUT": path, "BANDS": "4,3,1"}).bands == (2, 1, 0)


def test_near_infrared_that_is_marked_as_transparency_is_read_when_it_is_named(
    tmp_path: Path, good: dict[str, Any]
) -> None:
    path = write_raster(tmp_path / "r.tif", n_bands=4)  # GDAL marks the fourth
    model = write_model(tmp_path, "four.emd", ExtractBands=[0, 1, 2, 3])
    with pytest.raises(ModelIncompatibleError, match=r"Band 4 is marked as transparency.*name all bands"):
        job_of({**good, "INPUT": path, "MODEL": model})
    assert job_of({**good, "INPUT": path, "MODEL": model, "BANDS": "1,2,3,4"}).bands == (0, 1, 2, "Alpha")
    assert job_of({**good, "INPUT": path, "BANDS": "4,1,2"}).bands == ("Alpha", 0, 1)


def test_chosen_bands_serve_a_model_whose_own_the_raster_lacks(tmp_path: Path, good: dict[str, Any]) -> None:
    model = write_model(tmp_path, "infrared.emd", ExtractBands=[4, 5, 6])
    with pytest.raises(ModelIncompatibleError):
        job_of({**good, "MODEL": model})
    assert job_of({**good, "MODEL": model, "BANDS": "3,2,1"}).bands == (2, 1, 0)


def test_inks_for_print_are_refused_before_the_run(tmp_path: Path, good: dict[str, Any]) -> None:
    path = write_raster(tmp_path / "r.tif", n_bands=4)
    dataset = gdal.Open(path, gdal.GA_Update)
    for number, color in enumerate((gdal.GCI_CyanBand, gdal.GCI_MagentaBand, gdal.GCI_YellowBand, gdal.GCI_BlackBand)):
        dataset.GetRasterBand(number + 1).SetColorInterpretation(color)
    del dataset
    with pytest.raises(ModelIncompatibleError, match="inks for print"):
        job_of({**good, "INPUT": path})


@pytest.mark.parametrize(("word", "name"), [("Automatic", "auto"), ("Cubic", "cubic"), ("Nearest", "nearest")])
def test_the_resampling_is_told_in_the_job_s_words(good: dict[str, Any], word: Any, name: str) -> None:
    assert job_of({**good, "RESAMPLING": word}).resampling == name


# -- Coordinate reference systems --------------------------------------------------------------------------------------


def layer_with_crs(path: str, crs: str) -> QgsRasterLayer:
    layer = QgsRasterLayer(path, "photo")
    layer.setCrs(QgsCoordinateReferenceSystem(crs))
    QgsProject.instance().addMapLayer(layer)
    return layer


def test_a_crs_that_a_layer_was_given_is_handed_on(tmp_path: Path, good: dict[str, Any]) -> None:
    layer = layer_with_crs(write_raster(tmp_path / "r.tif", epsg=None), "EPSG:32633")
    (item,) = job_of({**good, "INPUT": layer.id()}).rasters
    assert QgsCoordinateReferenceSystem.fromWkt(item.crs_wkt).authid() == "EPSG:32633"


def test_a_crs_that_a_layer_was_given_instead_of_its_own_is_handed_on(good: dict[str, Any]) -> None:
    layer = layer_with_crs(good["INPUT"], "EPSG:25833")
    (item,) = job_of({**good, "INPUT": layer.id()}).rasters
    assert QgsCoordinateReferenceSystem.fromWkt(item.crs_wkt).authid() == "EPSG:25833"


def test_the_file_s_own_crs_is_not_handed_on(good: dict[str, Any]) -> None:
    assert job_of(good).rasters[0].crs_wkt == ""


def test_a_raster_without_any_crs_is_refused_with_two_ways_out(tmp_path: Path, good: dict[str, Any]) -> None:
    with pytest.raises(RasterOpenError, match=r"Set CRS of Layer.*Assign Projection"):
        job_of({**good, "INPUT": write_raster(tmp_path / "r.tif", epsg=None)})


def test_the_output_has_the_crs_that_was_asked_for(good: dict[str, Any]) -> None:
    assert build_plan(algorithm(), {**good, "OUTPUT_CRS": "EPSG:3857"}, context()).output_crs.authid() == "EPSG:3857"
    assert build_plan(algorithm(), good, context()).output_crs.authid() == "EPSG:32633"
    with pytest.raises(JobError, match="'EPSG:123456' is no coordinate reference system"):
        job_of({**good, "OUTPUT_CRS": "EPSG:123456"})


@pytest.mark.parametrize("epsg", [None, 4326], ids=["a photo", "beyond the poles"])
def test_an_output_crs_that_objects_cannot_be_converted_to_is_refused_before_the_run(
    tmp_path: Path, good: dict[str, Any], epsg: int | None
) -> None:
    transform = None if epsg is None else (10, 1, 0, 200, 0, -1)
    raster = write_raster(tmp_path / "r.tif", epsg=epsg, transform=transform)
    with pytest.raises(JobError, match=r"cannot be converted to EPSG:3857"):
        job_of({**good, "INPUT": raster, "OUTPUT_CRS": "EPSG:3857"})


def test_an_object_on_the_date_line_does_not_span_the_world() -> None:
    systems = [QgsCoordinateReferenceSystem(name) for name in ("EPSG:3832", "EPSG:4326")]
    middle = 30 * 111_319.49079  # the date line, in a Mercator around 150 degrees east
    shape = QgsGeometry.fromWkt(
        f"Polygon(({middle - 5} 0,{middle + 5} 0,{middle + 5} 10,{middle - 5} 10,{middle - 5} 0))"
    )
    Placement(*systems).mover()(shape)
    box = shape.boundingBox()
    assert (box.xMinimum() < 180 < box.xMaximum(), box.width() < 0.001, shape.isGeosValid()) == (True, True, True)


# -- Extent and mask ---------------------------------------------------------------------------------------------------

OVER_THE_DATE_LINE = "3329000,3349000,-60000,-40000 [EPSG:3832]"


@pytest.mark.parametrize("west", [179.8, -180.2])
def test_an_extent_across_the_date_line_meets_a_raster_in_degrees(
    tmp_path: Path, good: dict[str, Any], west: float
) -> None:
    raster = write_raster(tmp_path / "r.tif", epsg=4326, transform=(west, 0.004, 0, -0.3, 0, -0.004))
    xmin, _, xmax, _ = job_of({**good, "INPUT": raster, "EXTENT": OVER_THE_DATE_LINE}).extent
    assert (xmin - west, xmax - west) == (pytest.approx(0.105, abs=0.005), pytest.approx(0.285, abs=0.005))


def test_an_extent_that_meets_a_raster_on_both_sides_of_the_world_is_refused(
    tmp_path: Path, good: dict[str, Any]
) -> None:
    raster = write_raster(tmp_path / "r.tif", epsg=4326, transform=(-180, 3.6, 0, 90, 0, -2.25))
    with pytest.raises(JobError, match="crosses the date line"):
        job_of({**good, "INPUT": raster, "EXTENT": OVER_THE_DATE_LINE})


def test_an_extent_that_cannot_be_converted_is_refused_and_not_taken_as_it_is(
    tmp_path: Path, good: dict[str, Any]
) -> None:
    # In metres the same numbers would be a part of the raster.
    raster = write_raster(tmp_path / "r.tif", epsg=3031, transform=(100, 4, 0, 500, 0, -4))
    with pytest.raises(JobError, match="cannot be converted to EPSG:3031"):
        job_of({**good, "INPUT": raster, "EXTENT": "110,300,200,400 [EPSG:4326]"})


def test_mask_polygons_that_cannot_be_converted_are_told(tmp_path: Path, good: dict[str, Any]) -> None:
    raster = write_raster(tmp_path / "r.tif", epsg=32633)
    layer = polygon_layer(
        "Polygon((15.0002 50.5513,15.0005 50.5513,15.0005 50.5516,15.0002 50.5516,15.0002 50.5513))",
        "Polygon((15 95,16 95,16 96,15 96,15 95))",
        crs="EPSG:4326",
    )
    plan = build_plan(algorithm(), {**good, "INPUT": raster, "MASK": layer.id()}, context())
    with pytest.raises(JobError, match=r"1 polygons of the mask cannot be converted to EPSG:32633.*id 2"):
        complete_job(plan)


def test_a_raster_as_mask_is_refused_with_the_way_to_polygons(tmp_path: Path, good: dict[str, Any]) -> None:
    mask = write_raster(tmp_path / "mask.tif", n_bands=1)
    with pytest.raises(JobError, match=r"mask is a raster.*Polygonize"):
        job_of({**good, "MASK": mask})
    is_valid, reason = algorithm().checkParameterValues({**good, "MASK": mask}, context())
    assert (is_valid, "Polygonize" in reason) == (False, True), reason


def test_a_coordinate_reference_system_that_somebody_guessed_gives_a_photo_no_place(
    good: dict[str, Any], tmp_path: Path
) -> None:
    photo = str(tmp_path / "photo.png")
    gdal.Translate(photo, write_raster(tmp_path / "r.tif", epsg=None, transform=None), format="PNG")
    layer = QgsRasterLayer(photo, "photo")
    layer.setCrs(QgsCoordinateReferenceSystem("EPSG:32633"))
    QgsProject.instance().addMapLayer(layer)
    given = {**good, "INPUT": layer.id()}
    assert refusal(given) == ""
    in_metres = refusal({**given, "CELL_SIZE": 0.5, "CELL_SIZE_UNIT": "Metres"})
    assert "'photo': it is a picture without georeference" in in_metres
    assert "(no coordinate reference system) cannot be converted" in refusal({**given, "OUTPUT_CRS": "EPSG:4326"})
    on_map = refusal({**given, "APPEND_TO": make_layer(tmp_path / "trees.gpkg")})
    assert "in pixels of an image without georeference" in on_map
