"""QGIS's parameters become a job in the raster's own terms."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from osgeo import gdal
from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsGeometry,
    QgsProcessingOutputLayerDefinition,
    QgsProperty,
    QgsRectangle,
    QgsReferencedRectangle,
)

from kestrel.inference.errors import JobError, RasterOpenError
from kestrel.inference.job import job_from_json
from kestrel.processing_provider.gdal_source import GdalSource, gdal_source
from kestrel.processing_provider.job_builder import (
    DetectionPlan,
    build_plan,
    complete_job,
    new_job_id,
)
from kestrel.tests.qgis.examples import algorithm, context, polygon_layer, write_model, write_raster


@pytest.fixture
def good(tmp_path: Path) -> dict[str, Any]:
    """Parameters that nothing is wrong with."""
    return {
        "INPUT": write_raster(tmp_path / "raster.tif"),
        "MODEL": write_model(tmp_path),
        "OUTPUT": "TEMPORARY_OUTPUT",
    }


def plan(parameters: dict[str, Any]) -> DetectionPlan:
    return build_plan(algorithm(), parameters, context())


def test_the_defaults_leave_everything_to_the_model(good: dict[str, Any]) -> None:
    job = plan(good).job
    assert (job.rasters[0].source, job.model) == (good["INPUT"], good["MODEL"])
    assert (job.arguments, job.objects_of_interest, job.extent, job.cell_size, job.mask_wkb) == (
        {},
        (),
        None,
        None,
        None,
    )
    assert (job.run_nms, job.max_overlap_ratio, job.processor, job.gpu_id) == (False, 0.0, "auto", None)
    assert job.parallel_processing_factor == "100%"


def test_every_value_arrives_in_the_job(good: dict[str, Any]) -> None:
    job = plan(
        {
            **good, "ARGUMENTS": "threshold 0.4;note 'a;b'",
            "OBJECTS_OF_INTEREST": "House;Palm;House", "CELL_SIZE": 0.5,
            "RUN_NMS": True, "MAX_OVERLAP_RATIO": 0.25, "PROCESSOR_TYPE": "CPU", "GPU_ID": 0,
            "PARALLEL_PROCESSING_FACTOR": "3",
        }
    ).job  # fmt: skip
    assert job.arguments == {"threshold": "0.4", "note": "a;b"}
    assert job.objects_of_interest == ("House", "Palm")
    assert (job.cell_size, job.run_nms, job.max_overlap_ratio) == (0.5, True, 0.25)
    assert (job.processor, job.gpu_id, job.parallel_processing_factor) == ("cpu", 0, "3")


@pytest.mark.parametrize(
    "arguments",
    [
        '{"threshold": 0.4, "padding": 32}',
        {"threshold": 0.4, "padding": 32},
        QgsProperty.fromExpression("to_json(map('threshold', 0.4, 'padding', 32))"),
    ],
    ids=["text", "mapping", "expression"],
)
def test_arguments_mean_the_same_as_text_mapping_and_expression(good: dict[str, Any], arguments: Any) -> None:
    assert plan({**good, "ARGUMENTS": arguments}).job.arguments == {"threshold": 0.4, "padding": 32}


def test_a_model_given_as_json_object_becomes_its_text(good: dict[str, Any], tmp_path: Path) -> None:
    definition = json.loads(Path(good["MODEL"]).read_text())
    definition["ModelFile"] = str(tmp_path / "weights.onnx")
    assert json.loads(plan({**good, "MODEL": definition}).job.model) == definition


def test_a_relative_model_path_is_made_absolute(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan({**good, "MODEL": "model.emd"}).job.model == str(tmp_path / "model.emd")


def test_a_model_given_as_a_path_object_works_as_its_text(good: dict[str, Any]) -> None:
    assert plan({**good, "MODEL": Path(good["MODEL"])}).job.model == good["MODEL"]


def test_a_relative_interpreter_is_made_absolute_and_its_links_are_kept(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setenv("KESTREL_PYTHON", "bin/python")
    assert plan(good).interpreter == str(tmp_path / "bin" / "python")


def test_a_relative_output_is_the_file_in_the_working_directory(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan({**good, "OUTPUT": "out.shp"}).output == tmp_path / "out.shp"
    assert plan({**good, "OUTPUT": QgsProcessingOutputLayerDefinition("out")}).output == tmp_path / "out.gpkg"
    assert plan(good).output is None
    assert list(tmp_path.glob("out*")) == []


def test_an_extent_in_the_rasters_crs_arrives_unchanged(good: dict[str, Any]) -> None:
    job = plan({**good, "EXTENT": "500010,500020,5599930,5599950 [EPSG:32633]"}).job
    assert job.extent == (500010, 5599930, 500020, 5599950)


def test_an_extent_in_degrees_is_converted(good: dict[str, Any]) -> None:
    extent = QgsReferencedRectangle(
        QgsRectangle(15.0002, 50.5513, 15.0005, 50.5516), QgsCoordinateReferenceSystem("EPSG:4326")
    )
    xmin, ymin, xmax, ymax = plan({**good, "EXTENT": extent}).job.extent
    assert (round(xmin), round(ymin), round(xmax), round(ymax)) == (500014, 5599930, 500035, 5599963)


def test_an_extent_that_reaches_beyond_the_raster_is_cut_and_told(good: dict[str, Any]) -> None:
    made = plan({**good, "EXTENT": "499000,500020,5599930,5699950 [EPSG:32633]"})
    assert made.job.extent == (500000, 5599930, 500020, 5600000)
    assert made.warnings == ("The extent reaches beyond the raster and was cut to it.",)


def mask_of(parameters: dict[str, Any]) -> QgsGeometry:
    geometry = QgsGeometry()
    geometry.fromWkb(bytes.fromhex(complete_job(plan(parameters)).mask_wkb))
    return geometry


def test_mask_polygons_become_one_multipolygon(good: dict[str, Any]) -> None:
    layer = polygon_layer(
        "Polygon((500010 5599950,500020 5599950,500020 5599960,500010 5599960,500010 5599950))",
        "Polygon((500015 5599950,500030 5599950,500030 5599960,500015 5599960,500015 5599950))",
        "Polygon((500050 5599950,500060 5599950,500060 5599960,500050 5599960,500050 5599950))",
    )
    mask = mask_of({**good, "MASK": layer.id()})
    assert (mask.wkbType().name, mask.constGet().numGeometries(), mask.area()) == ("MultiPolygon", 2, 300)


def test_a_mask_in_degrees_is_converted(good: dict[str, Any]) -> None:
    layer = polygon_layer("Polygon((15.0002 50.5513,15.0005 50.5513,15.0005 50.5516,15.0002 50.5516))", crs="EPSG:4326")
    box = mask_of({**good, "MASK": layer.id()}).boundingBox()
    assert [round(value) for value in (box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum())] == [
        500014, 5599930, 500035, 5599963
    ]  # fmt: skip


def test_a_mask_with_heights_curves_and_a_bow_tie_is_made_plain(good: dict[str, Any]) -> None:
    layer = polygon_layer(
        "PolygonZ((500010 5599950 3,500020 5599950 3,500020 5599960 3,500010 5599960 3,500010 5599950 3))",
        "CurvePolygon(CompoundCurve(CircularString(500050 5599950,500055 5599955,500060 5599950),"
        "(500060 5599950,500050 5599950)))",
        "Polygon((500070 5599950,500080 5599960,500080 5599950,500070 5599960,500070 5599950))",
    )
    mask = mask_of({**good, "MASK": layer.id()})
    assert mask.wkbType().name == "MultiPolygon"
    assert mask.isGeosValid()
    assert mask.area() == pytest.approx(100 + 39.27 + 50, abs=0.5)


def test_a_mask_beside_the_raster_is_refused(good: dict[str, Any]) -> None:
    layer = polygon_layer("Polygon((0 0,1 0,1 1,0 1,0 0))")
    with pytest.raises(JobError, match="mask lies outside the raster 'raster'"):
        complete_job(plan({**good, "MASK": layer.id()}))


def test_a_mask_without_area_is_refused(good: dict[str, Any]) -> None:
    layer = polygon_layer("Polygon((500010 5599950,500020 5599950,500010 5599950))")
    with pytest.raises(JobError, match="mask holds no polygon"):
        complete_job(plan({**good, "MASK": layer.id()}))


def test_the_complete_job_holds_the_models_hash_and_survives_json(good: dict[str, Any]) -> None:
    job = complete_job(plan(good))
    assert len(job.model_sha256) == 64
    assert job_from_json(job.to_json()) == job


def test_job_ids_sort_by_time_and_differ() -> None:
    first, second = new_job_id(), new_job_id()
    assert first != second
    assert first[:15] <= second[:15]


CONNECTIONS = [
    ("/nowhere/b.tif", "/nowhere/b.tif"),
    ("/vsizip//nowhere/b.zip/c.tif", "/vsizip//nowhere/b.zip/c.tif"),
    ("/vsizip/nowhere/b.zip", "/vsizip/nowhere/b.zip"),
    ("/vsitar//nowhere/b.tar.gz/c/d.tif", "/vsitar//nowhere/b.tar.gz/c/d.tif"),
    ("/vsicurl/https://example.org/z.tif", "/vsicurl/https://example.org/z.tif"),
    ("/vsizip//vsicurl/https://example.org/y.zip/c.tif", "/vsizip//vsicurl/https://example.org/y.zip/c.tif"),
    ("GPKG:/nowhere/b.gpkg:layer", "GPKG:/nowhere/b.gpkg:layer"),
    ('NETCDF:"/nowhere/b.nc":temp', 'NETCDF:"/nowhere/b.nc":temp'),
    ('HDF5:"/nowhere/b.h5"://x/y', 'HDF5:"/nowhere/b.h5"://x/y'),
    ("GTIFF_DIR:2:/nowhere/b.tif", "GTIFF_DIR:2:/nowhere/b.tif"),
]


@pytest.mark.parametrize(("source", "expected"), CONNECTIONS, ids=[source for source, _ in CONNECTIONS])
def test_a_layer_source_becomes_what_gdal_calls_it(source: str, expected: str) -> None:
    assert gdal_source(source) == GdalSource(expected)


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("/nowhere/b.tif|option:a b=2", "open option"),
        ("/vsis3/b/c.tif|credential:GDAL_VRT_ENABLE_PYTHON=YES", "GDAL option GDAL_VRT_ENABLE_PYTHON"),
        ("/nowhere/b.tif authcfg=abc1234", "does not lie on a web server"),
        ("/vsicurl/https://a.b/c.tif authcfg=wrong", "authentication configuration is not understood"),
        ("PG:dbname=x password=y table=z", "credentials"),
    ],
)
def test_a_source_that_cannot_be_handed_on_is_refused(source: str, word: str) -> None:
    with pytest.raises(RasterOpenError, match=word):
        gdal_source(source)


def test_options_of_a_layer_are_told_apart() -> None:
    options = "|option:overview_level=0|credential:AWS_NO_SIGN_REQUEST=NO|credential:AWS_SECRET_ACCESS_KEY=canary"
    found = gdal_source(f"/vsis3/b/c.tif{options}")
    assert found.connection == "/vsis3/b/c.tif"
    assert found.item_options == {
        "open_options": {"OVERVIEW_LEVEL": "0"},
        "config_options": {"AWS_NO_SIGN_REQUEST": "NO"},
    }
    assert found.secret == {"AWS_SECRET_ACCESS_KEY": "canary"}
    assert "canary" not in repr(found)


@pytest.mark.parametrize("quote", ["", "'"])
def test_what_signs_in_to_a_web_server_is_no_part_of_the_name(quote: str) -> None:
    found = gdal_source(f"/vsicurl/https://example.org/a.tif authcfg={quote}abc1234{quote}")
    assert (found.connection, found.authcfg) == ("/vsicurl/https://example.org/a.tif", "abc1234")
    assert found.address == "https://example.org/a.tif"


def test_an_open_option_of_the_layer_counts(good: dict[str, Any], tmp_path: Path) -> None:
    path = str(tmp_path / "o.tif")
    gdal.Translate(path, good["INPUT"])
    gdal.Open(path, gdal.GA_Update).BuildOverviews("NEAREST", [2])
    built = plan({**good, "INPUT": f"{path}|option:OVERVIEW_LEVEL=0"})
    assert built.job.rasters[0].options == {"open_options": {"OVERVIEW_LEVEL": "0"}}
    assert built.raster.cell_size == 2 * plan({**good, "INPUT": path}).raster.cell_size


def test_a_relative_raster_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_raster(tmp_path / "raster.tif")
    assert gdal_source("raster.tif").connection == str(tmp_path / "raster.tif")


def test_a_raster_in_a_zip_file_is_named_so_that_gdal_opens_it(good: dict[str, Any], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(good["INPUT"], "inner/c.tif")
    job = plan({**good, "INPUT": f"/vsizip/{tmp_path}/b.zip/inner/c.tif"}).job
    assert gdal.Open(job.rasters[0].source).RasterXSize == 100


def test_a_raster_in_a_geopackage_is_named_so_that_gdal_opens_it(good: dict[str, Any], tmp_path: Path) -> None:
    path = str(tmp_path / "b.gpkg")
    gdal.Translate(path, good["INPUT"], creationOptions=["RASTER_TABLE=one"])
    gdal.Translate(path, good["INPUT"], creationOptions=["RASTER_TABLE=two", "APPEND_SUBDATASET=YES"])
    job = plan({**good, "INPUT": f"GPKG:{path}:two"}).job
    assert job.rasters[0].source == f"GPKG:{path}:two"
    assert gdal.Open(job.rasters[0].source).RasterXSize == 100


def test_relative_names_inside_archives_and_databases_are_made_absolute(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gdal.Translate(str(tmp_path / "b.gpkg"), good["INPUT"], creationOptions=["RASTER_TABLE=one"])
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(good["INPUT"], "c.tif")
    monkeypatch.chdir(tmp_path)
    names = [gdal_source(name).connection for name in ("GPKG:b.gpkg:one", "/vsizip/b.zip/c.tif")]
    monkeypatch.chdir("/")
    assert [gdal.Open(name).RasterXSize for name in names] == [100, 100]


def test_bands_of_transparency_do_not_count(good: dict[str, Any], tmp_path: Path) -> None:
    path = str(tmp_path / "alpha.tif")
    colors = ["-colorinterp", "red,green,blue,alpha"]
    gdal.Translate(path, good["INPUT"], options=["-b", "1", "-b", "2", "-b", "3", "-b", "3", *colors])
    assert plan({**good, "INPUT": path}).raster.band_names == ("Red", "Green", "Blue")


def test_a_picture_with_a_colour_table_serves_a_model_of_three_bands(good: dict[str, Any], tmp_path: Path) -> None:
    path = write_raster(tmp_path / "palette.tif", n_bands=1)
    dataset = gdal.Open(path, gdal.GA_Update)
    table = gdal.ColorTable()
    table.SetColorEntry(0, (1, 2, 3))
    dataset.GetRasterBand(1).SetColorTable(table)
    del dataset
    assert plan({**good, "INPUT": path}).raster.has_palette


def test_names_with_spaces_and_letters_of_other_scripts_work(good: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "Bäume – 木 & more"
    folder.mkdir()
    path = shutil.copy(good["INPUT"], folder / "ein bild.tif")
    job = plan({**good, "INPUT": str(path), "MODEL": write_model(folder)}).job
    assert (job.rasters[0].source, job.model) == (str(path), str(folder / "model.emd"))
