"""INPUT, MORE_INPUTS and INPUT_SOURCE: which rasters they name, and what is refused before a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from osgeo import gdal
from qgis.core import QgsProcessingException, QgsProject, QgsRasterLayer, QgsVectorLayer

from kestrel.inference.events import Canceled
from kestrel.processing_provider import detect_objects
from kestrel.processing_provider.input_text import is_remote, sources_in
from kestrel.processing_provider.inputs import InputList, opened
from kestrel.processing_provider.job_builder import DetectionPlan, build_plan
from kestrel.tests.qgis.examples import Listener, algorithm, context, refusal, write_model, write_raster

SEPARATELY = {"PROCESSING_MODE": "PROCESS_ITEMS_SEPARATELY"}


@pytest.fixture
def good(tmp_path: Path) -> dict[str, Any]:
    """A model and an output; the rasters come from the test."""
    return {"MODEL": write_model(tmp_path), "OUTPUT": "TEMPORARY_OUTPUT"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three images side by side, and files that are none."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(("c.tif", "a.tif", "b.TIF")):
        write_raster(folder / name, transform=(500000 + 100 * number, 1, 0, 5600000, 0, -1))
    (folder / "notes.txt").write_text("no image")
    (folder / "a.tif.aux.xml").write_text("<PAMDataset/>")
    (folder / "a.tfw").write_text("1\n0\n0\n-1\n500000\n5600000\n")
    gdal.BuildVRT(str(folder / "all.vrt"), [str(folder / "a.tif")]).FlushCache()
    (folder / "inner").mkdir()
    shutil.copy(folder / "a.tif", folder / "inner" / "d.tif")
    return folder


def plan(parameters: dict[str, Any]) -> DetectionPlan:
    return build_plan(algorithm(), parameters, context())


def names(parameters: dict[str, Any]) -> list[str]:
    return [item.name for item in plan(parameters).job.rasters]


def test_a_folder_stands_for_its_images_by_name_and_for_nothing_else(good: dict[str, Any], images: Path) -> None:
    job = plan({**good, "INPUT_SOURCE": str(images)}).job
    assert [item.source for item in job.rasters] == [str(images / name) for name in ("a.tif", "b.TIF", "c.tif")]
    assert (job.processing_mode, job.crs_wkt) == ("mosaic", "")


def source_forms(images: Path) -> list[tuple[Any, list[str]]]:
    a, b = str(images / "a.tif"), str(images / "b.TIF")
    return [
        (a, ["a.tif"]),
        (Path(a), ["a.tif"]),
        (f"file://{a}", ["a.tif"]),
        (str(images / "*.tif"), ["a.tif", "c.tif"]),
        (str(images / "[ab].*[fF]"), ["a.tif", "b.TIF"]),
        ([a, b], ["a.tif", "b.TIF"]),
        (json.dumps([b, a]), ["b.TIF", "a.tif"]),
        ({"uri": a}, ["a.tif"]),
        ({"uris": [b, a]}, ["b.TIF", "a.tif"]),
        (json.dumps({"uri": str(images)}), ["a.tif", "b.TIF", "c.tif"]),
        ([{"uri": a}, b], ["a.tif", "b.TIF"]),
    ]


def test_every_form_of_source_is_understood(good: dict[str, Any], images: Path) -> None:
    for form, expected in source_forms(images):
        assert names({**good, "INPUT_SOURCE": form}) == expected, form


def test_a_relative_source_is_found_in_the_working_directory(
    good: dict[str, Any], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images)
    sources = [plan({**good, "INPUT_SOURCE": text}).job.rasters[0].source for text in ("a.tif", "?.tif", ".")]
    assert sources == [str(images / "a.tif")] * 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://example.org/a.tif", "/vsicurl/https://example.org/a.tif"),
        ("HTTPS://example.org/a.tif?sig=x", "/vsicurl/HTTPS://example.org/a.tif?sig=x"),
        ("s3://bucket/key.tif", "/vsis3/bucket/key.tif"),
        ("gs://bucket/key.tif", "/vsigs/bucket/key.tif"),
        ("/vsizip//nowhere/a.zip/b.tif", "/vsizip//nowhere/a.zip/b.tif"),
        ('NETCDF:"/nowhere/a.nc":band', 'NETCDF:"/nowhere/a.nc":band'),
        ('{"url": "https://example.org/a.tif", "uri": "/b.tif"}', "/vsicurl/https://example.org/a.tif"),
        ('{"uri": "https://example.org/a.tif"}', "/vsicurl/https://example.org/a.tif"),
    ],
)
def test_addresses_become_names_of_gdal(text: str, expected: str) -> None:
    assert sources_in(text) == [expected]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("/vsicurl/https://a/b.tif", True), ("/vsizip//vsicurl/https://a/b.zip/c.tif", True), ("/vsis3/a/b", True),
     ("/vsizip//a/b.zip/c.tif", False), ("/a/b.tif", False), ("C:/a/b.tif", False), ("/vsicurl?url=x", True)],
)  # fmt: skip
def test_what_lies_behind_a_network_is_known_by_its_name(name: str, expected: bool) -> None:
    assert is_remote(name) is expected


BAD = [
    ("{", "not valid JSON"),
    ("{}", "names no data"),
    ('{"function": {}}', "members that Kestrel does not know: function"),
    ('{"uri": 5}', "'uri' must be a text"),
    ('{"url": "https://example.org/arcgis/rest/services/A/FeatureServer/0"}', "is a feature service"),
    ('{"url": "https://example.org/a/ImageServer", "serviceToken": "x"}', "holds a token"),
    ("https://example.org/a/ImageServer?token=x", "holds a token"),
    ('{"itemId": "../x"}', "not the id of a portal's item"),
    ('{"uri": "/a.tif", "mosaicRule": {"a": 1}}', "mosaicRule can be given for image services only"),
    ("[5]", "neither a text nor a JSON object"),
    ("/nowhere/at/all.tif", "'/nowhere/at/all.tif' cannot be opened"),
    ("/nowhere/*.tif", "No image fits the pattern"),
    ("<VRTDataset/>", "XML text is not opened"),
]


@pytest.mark.parametrize(("text", "expected"), BAD, ids=[text for text, _ in BAD])
def test_a_source_that_names_nothing_is_refused(good: dict[str, Any], text: str, expected: str) -> None:
    assert expected in refusal({**good, "INPUT_SOURCE": text})


def test_an_empty_folder_is_refused(good: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no image" in refusal({**good, "INPUT_SOURCE": str(tmp_path / "empty")})


def test_without_any_raster_the_way_out_is_told(good: dict[str, Any]) -> None:
    assert refusal(good).startswith("No raster is given. Choose an input raster, or several")
    assert refusal({**good, "INPUT": None, "MORE_INPUTS": [], "INPUT_SOURCE": ""}).startswith("No raster is given.")


def test_the_source_overrules_the_input_and_further_rasters_come_after_it(good: dict[str, Any], images: Path) -> None:
    given = {"INPUT": str(images / "c.tif"), "MORE_INPUTS": [str(images / "b.TIF")]}
    assert names({**good, **given}) == ["c", "b"]
    assert names({**good, **given, "INPUT_SOURCE": str(images / "a.tif")}) == ["a.tif", "b"]
    assert names({**good, "MORE_INPUTS": given["MORE_INPUTS"]}) == ["b"]


def test_further_rasters_may_be_layers_ids_paths_or_text(good: dict[str, Any], images: Path) -> None:
    layer = QgsRasterLayer(str(images / "a.tif"), "the layer", "gdal")
    QgsProject.instance().addMapLayer(layer)
    paths = [str(images / "b.TIF"), str(images / "c.tif")]
    assert names({**good, "MORE_INPUTS": [layer, *paths]}) == ["the layer", "b", "c"]
    assert names({**good, "MORE_INPUTS": [layer.id(), Path(paths[0])]}) == ["the layer", "b"]
    assert names({**good, "MORE_INPUTS": ";".join(paths)}) == ["b", "c"]
    assert names({**good, "MORE_INPUTS": paths[0]}) == ["b"]


def test_a_further_raster_that_is_none_is_refused_by_name(good: dict[str, Any], images: Path) -> None:
    reason = refusal({**good, "INPUT": str(images / "a.tif"), "MORE_INPUTS": ["/nowhere.tif"]})
    assert "'/nowhere.tif', one of the further rasters" in reason


def test_the_extent_of_all_counts(good: dict[str, Any], images: Path) -> None:
    made = plan({**good, "INPUT_SOURCE": str(images), "EXTENT": "500150,500160,5599950,5599960 [EPSG:32633]"})
    assert made.job.extent == (500150, 5599950, 500160, 5599960)
    assert (made.raster.extent.xMinimum(), made.raster.extent.xMaximum()) == (500000, 500300)
    assert made.raster.name == "a.tif and 2 more"


def test_extents_of_other_coordinate_systems_count_in_that_of_the_first(good: dict[str, Any], tmp_path: Path) -> None:
    first = write_raster(tmp_path / "a.tif")
    other = str(tmp_path / "b.tif")
    gdal.Warp(other, first, dstSRS="EPSG:4326")
    extent = plan({**good, "INPUT": first, "MORE_INPUTS": [other]}).raster.extent
    assert (extent.width(), extent.height()) == pytest.approx((100, 80), abs=3)


def test_separate_items_share_the_coordinate_system_of_the_first(good: dict[str, Any], images: Path) -> None:
    job = plan({**good, **SEPARATELY, "INPUT_SOURCE": str(images)}).job
    assert job.processing_mode == "items"
    assert "UTM zone 33N" in job.crs_wkt


def test_a_damaged_image_is_refused_in_a_mosaic_and_left_to_the_worker_otherwise(
    good: dict[str, Any], images: Path
) -> None:
    (images / "a.tif").write_bytes(b"nothing")
    given = {**good, "INPUT_SOURCE": str(images)}
    assert "a.tif' cannot be opened" in refusal(given)
    assert names({**given, **SEPARATELY}) == ["b.TIF", "c.tif", "a.tif"]


def test_a_raster_that_lacks_bands_stops_a_mosaic_and_no_others(good: dict[str, Any], images: Path) -> None:
    write_raster(images / "b.TIF", n_bands=1)
    given = {**good, "INPUT_SOURCE": str(images)}
    assert "'b.TIF' has 1 band" in refusal(given)
    assert refusal({**given, **SEPARATELY}) == ""
    write_raster(images / "a.tif", n_bands=1)
    write_raster(images / "c.tif", n_bands=1)
    assert "has 1 band" in refusal({**given, **SEPARATELY})


def picture(path: Path) -> str:
    gdal.GetDriverByName("PNG").CreateCopy(str(path), gdal.Open(write_raster(path.with_suffix(".tif"), 3, None, None)))
    path.with_suffix(".tif").unlink()
    return str(path)


def test_a_picture_without_georeference_is_searched_in_the_pixels_of_its_layer(
    good: dict[str, Any], tmp_path: Path
) -> None:
    made = plan({**good, "INPUT": picture(tmp_path / "p.png"), "EXTENT": "10,20,-40,-30"})
    assert made.raster.is_picture
    assert made.raster.extent.toString(0) == "0,-80 : 100,0"
    assert made.job.extent == (10, -40, 20, -30)
    assert made.warnings == ()


def test_pictures_are_refused_in_a_mosaic_and_beside_others(good: dict[str, Any], images: Path) -> None:
    path = picture(images / "p.png")
    given = {**good, "INPUT_SOURCE": str(images)}
    assert "'p.png'. Set the processing mode to PROCESS_ITEMS_SEPARATELY" in refusal(given)
    assert "others are pictures without georeference: 'p.png'" in refusal({**given, **SEPARATELY})
    several = {**good, **SEPARATELY, "INPUT_SOURCE": [path, path]}
    assert refusal(several) == ""
    assert plan(several).job.crs_wkt == ""


def test_many_rasters_are_looked_at_in_the_runs_own_thread(
    good: dict[str, Any], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    monkeypatch.setattr(detect_objects, "with_rasters", lambda *given: looks.append(1))
    many = {**good, "INPUT_SOURCE": [str(images / "a.tif")] * 30}
    assert refusal(many) == ""
    owner = algorithm()
    assert owner.prepare(many, context(), Listener())
    assert looks == []
    assert refusal({**good, "INPUT_SOURCE": ["/vsicurl/https://nowhere.invalid/a.tif"]}) == ""
    assert looks == []
    refusal({**good, "INPUT_SOURCE": str(images)})
    assert looks == [1]


def test_what_is_wrong_with_many_rasters_ends_the_run_with_the_same_words(good: dict[str, Any], images: Path) -> None:
    many = {**good, "INPUT_SOURCE": [str(images / "a.tif")] * 30 + ["/nowhere.tif"]}
    with pytest.raises(QgsProcessingException, match=r"'/nowhere\.tif' cannot be opened.*\[raster-open\]"):
        algorithm().run(many, context(), Listener(), catchExceptions=False)


def test_looking_at_rasters_can_be_stopped(images: Path) -> None:
    inputs = InputList((str(images / "a.tif"),) * 30, False)
    with pytest.raises(Canceled):
        opened(inputs, QgsProject.instance().transformContext(), told=lambda done, total: done < 3)


def test_a_run_that_is_cancelled_while_it_looks_at_rasters_ends_as_cancelled(
    good: dict[str, Any], images: Path
) -> None:
    many, feedback = {**good, "INPUT_SOURCE": [str(images / "a.tif")] * 30}, Listener()
    owner = algorithm()
    assert owner.prepare(many, context(), feedback)
    feedback.cancel()
    with pytest.raises(QgsProcessingException, match="Canceled"):  # in the main thread nobody else would notice
        owner.runPrepared(many, context(), feedback)


@pytest.mark.slow
def test_a_folder_searched_one_by_one_gives_objects_with_their_source_in_one_system(
    repository: Path, tmp_path: Path
) -> None:
    scene, folder = str(repository / "resources" / "demo" / "OSBS_029.tif"), tmp_path / "scenes"
    folder.mkdir()
    shutil.copy(scene, folder / "a.tif")
    gdal.Warp(str(folder / "b.tif"), scene, dstSRS="EPSG:4326")
    (folder / "c.tif").write_bytes(b"damaged")
    parameters = {**SEPARATELY, "INPUT_SOURCE": str(folder), "OUTPUT": str(tmp_path / "out.gpkg"),
                  "MODEL": str(repository / "resources" / "models" / "tree_crowns.dlpk")}  # fmt: skip
    listener = Listener()
    results, _ = algorithm().run(parameters, context(), listener, catchExceptions=False)
    layer = QgsVectorLayer(results["OUTPUT"], "", "ogr")
    places: dict[str, list[Any]] = {}
    for feature in layer.getFeatures():
        places.setdefault(Path(feature["Source"]).name, []).append(feature.geometry().centroid().asPoint())
    assert layer.crs().authid() == "EPSG:32617"
    assert set(places) == {"a.tif", "b.tif"}
    near = [min(one.distance(other) for other in places["a.tif"]) for one in places["b.tif"]]
    assert sum(distance < 0.5 for distance in near) > 0.7 * len(near) > 30
    assert any(level == "warning" and "c.tif was left out" in text for level, text in listener.said)
    items = json.loads(results["SUMMARY"])["items"]
    assert [(item["name"], item.get("error")) for item in items] == [
        ("a.tif", None), ("b.tif", None), ("c.tif", "raster-open"),
    ]  # fmt: skip


def test_a_raster_that_is_given_again_is_searched_once_and_that_is_told(good: dict[str, Any], images: Path) -> None:
    first, second = str(images / "a.tif"), str(images / "c.tif")
    made = plan({**good, **SEPARATELY, "INPUT": first, "MORE_INPUTS": [first, second]})
    assert [item.source for item in made.job.rasters] == [first, second]
    assert any("'a' is given more than once" in remark for remark in made.remarks)
