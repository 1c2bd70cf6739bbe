"""Rasters on ArcGIS servers and portals, from the parameters to the job."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qgis.core import QgsProcessingException, QgsRasterLayer, QgsVectorLayer

from kestrel.processing_provider.fit_check import fit_of, look_at
from kestrel.processing_provider.input_text import sources_in
from kestrel.processing_provider.job_builder import DetectionPlan, build_plan, make_draft, signed_in, with_rasters
from kestrel.processing_provider.parameter_reader import ParameterReader
from kestrel.processing_provider.server_source import ServerSource, reference_system, service_layer
from kestrel.tests.fixtures.servers.image_server import ArcGis, image_server
from kestrel.tests.fixtures.servers.pixels import open_image
from kestrel.tests.fixtures.servers.portal import ITEM, OTHER_ITEM, Item, Portal, portal
from kestrel.tests.qgis.examples import Listener, algorithm, context, definition, refusal, write_model, write_raster

DEMO, CROWNS = Path("resources/demo/OSBS_029.tif"), Path("resources/models/tree_crowns.dlpk")


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A model and an output, and a cache of their own."""
    monkeypatch.setenv("KESTREL_CACHE", str(tmp_path / "cache"))
    return {"MODEL": write_model(tmp_path), "OUTPUT": "TEMPORARY_OUTPUT"}


@pytest.fixture
def arcgis(tmp_path: Path) -> Iterator[ArcGis]:
    """An image service with the pixels of a raster."""
    path = write_raster(tmp_path / "served.tif", values=(0, 200))
    with image_server(open_image(Path(path))) as double:
        yield double


@pytest.fixture
def items(arcgis: ArcGis, tmp_path: Path) -> Iterator[Portal]:
    """A portal with the service as one item and a raster file as another."""
    data = Path(write_raster(tmp_path / "filed.tif")).read_bytes()
    known = {
        ITEM: Item("Image Service", "The trees", url=arcgis.image),
        OTHER_ITEM: Item("Image", "A file", name="filed.tif", data=data),
    }
    with portal(known) as double:
        yield double


def plan(parameters: dict[str, Any]) -> DetectionPlan:
    return build_plan(algorithm(), parameters, context())


def test_an_image_service_is_described_as_its_server_does(good: dict[str, Any], arcgis: ArcGis) -> None:
    for source in (arcgis.image, {"url": f"{arcgis.image}/"}, {"urls": [f"{arcgis.image}?f=html"]}):
        made = plan({**good, "INPUT_SOURCE": source, "EXTENT": "500010,500020,5599930,5599950 [EPSG:32633]"})
        (item,) = made.job.rasters
        assert (item.kind, item.source, item.name) == ("image_service", arcgis.image, "Trees")
        assert (made.raster.crs.authid(), made.raster.cell_size, made.raster.dtype) == ("EPSG:32633", 1, "uint8")
        assert made.raster.extent.toString(0) == "500000,5599920 : 500100,5600000"
        assert made.job.extent == (500010, 5599930, 500020, 5599950)


def test_rules_for_the_service_reach_the_job(good: dict[str, Any], arcgis: ArcGis) -> None:
    rules = {"renderingRule": {"rasterFunction": "None"}, "mosaicRule": {"where": "Year = 2020"}, "bandIds": [2, 1, 0]}
    (item,) = plan({**good, "INPUT_SOURCE": {"url": arcgis.image, **rules}}).job.rasters
    assert item.options == rules


def test_nothing_is_asked_before_the_run(good: dict[str, Any], arcgis: ArcGis) -> None:
    parameters = {**good, "INPUT_SOURCE": arcgis.image}
    assert refusal(parameters) == ""
    assert algorithm().prepare(parameters, context(), Listener())
    assert "cannot be written" in refusal({**parameters, "OUTPUT": "/no/such/folder/out.gpkg"})
    assert arcgis.server.asked == []


def test_an_item_stands_for_its_service_and_for_its_file(good: dict[str, Any], items: Portal, arcgis: ArcGis) -> None:
    given = {**good, "PORTAL": items.server.url}
    (item,) = plan(
        {**given, "INPUT_SOURCE": {"itemId": ITEM, "url": "https://nowhere.invalid/ImageServer"}}
    ).job.rasters
    assert (item.kind, item.source, item.name) == ("image_service", arcgis.image, "The trees")
    (item,) = plan({**given, "INPUT_SOURCE": {"itemId": OTHER_ITEM}}).job.rasters
    assert (item.kind, Path(item.source).name, item.name) == ("gdal", "filed.tif", "A file")
    page = f"{items.server.url}/home/item.html?id={OTHER_ITEM}"
    assert plan({**good, "INPUT_SOURCE": page}).job.rasters == (item,)
    both = plan({**given, "INPUT_SOURCE": {"itemIds": [ITEM, OTHER_ITEM]}}).job.rasters
    assert [entry.kind for entry in both] == ["image_service", "gdal"]


def test_what_a_server_refuses_ends_the_run_with_its_words(good: dict[str, Any], items: Portal) -> None:
    parameters = {**good, "PORTAL": items.server.url, "INPUT_SOURCE": {"itemId": "f" * 32}}
    with pytest.raises(QgsProcessingException, match=r"does not know the item f{32}.*\[service\]"):
        algorithm().run(parameters, context(), Listener(), catchExceptions=False)


def test_of_items_searched_one_by_one_one_that_is_refused_stops_no_other(
    good: dict[str, Any], items: Portal, arcgis: ArcGis
) -> None:
    source = {"itemIds": ["f" * 32, ITEM]}
    given = {**good, "PORTAL": items.server.url, "PROCESSING_MODE": "PROCESS_ITEMS_SEPARATELY"}
    rasters = plan({**given, "INPUT_SOURCE": source}).job.rasters
    assert [entry.source for entry in rasters] == [arcgis.image, "f" * 32]


def test_a_layer_of_an_image_service_is_read_with_its_values(good: dict[str, Any], arcgis: ArcGis) -> None:
    uri = f"crs='EPSG:32633' format='PNG' layer='' url='{arcgis.image}' http-header:referer=''"
    layer = QgsRasterLayer(uri, "the service", "arcgismapserver")
    found = service_layer(layer)
    assert found is not None
    assert (found.reference.value, found.item.name) == (arcgis.image, "the service")
    assert service_layer(QgsRasterLayer(uri.replace("ImageServer", "MapServer"), "a map", "arcgismapserver")) is None
    assert fit_of(definition(), look_at(layer)).is_possible
    if layer.isValid():  # QGIS 3.40 reads the double; other versions may want more of it
        (item,) = plan({**good, "INPUT": layer}).job.rasters
        assert (item.kind, item.source, item.name) == ("image_service", arcgis.image, "the service")


def test_the_sign_in_of_a_portal_goes_to_its_own_server_and_never_into_the_job(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kestrel.processing_provider.credentials as credentials

    monkeypatch.setattr(credentials, "signature", lambda authcfg, url: {"X-Esri-Authorization": "Bearer canary-9"})
    path = write_raster(tmp_path / "served.tif", values=(0, 200))
    image = open_image(Path(path))
    with image_server(image, token="canary-9") as arcgis, portal({}, token="canary-9") as double:
        double.items[ITEM] = Item("Image Service", "The trees", url=arcgis.image, private=True)
        double.servers = [arcgis.server.url]
        parameters = {**good, "PORTAL": double.server.url, "INPUT_SOURCE": {"itemId": ITEM},
                      "AUTHENTICATION": "abc1234"}  # fmt: skip
        reader = ParameterReader(algorithm(), parameters, context())
        draft = make_draft(reader)
        made = with_rasters(draft, reader, secrets=signed_in(draft.inputs, None, reader))
        assert {entry["origin"] for entry in made.secrets.credentials} == {double.server.url, arcgis.server.url}
        assert "canary-9" not in made.job.to_json() + repr(made)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ({"wkid": 102100, "latestWkid": 3857}, "EPSG:3857"),
        ({"wkid": 102008}, "ESRI:102008"),
        ({"wkid": "32633"}, ""),
        ({}, ""),
        ({"wkid": -1}, ""),
    ],
)
def test_coordinate_systems_are_known_by_their_numbers(reference: dict[str, Any], expected: str) -> None:
    assert reference_system(reference).authid() == expected


def test_lists_may_mix_servers_and_files() -> None:
    found = sources_in(
        json.dumps(["/a.tif", "https://example.org/rest/A/MapServer/", {"itemId": ITEM}]), "https://p.org"
    )
    assert found[0] == "/a.tif"
    assert all(isinstance(source, ServerSource) for source in found[1:])
    assert [source.address for source in found[1:]] == ["https://example.org/rest/A/MapServer", "https://p.org"]


@pytest.mark.slow
def test_a_run_on_a_service_and_on_an_item_finds_what_the_file_holds(
    good: dict[str, Any], repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kestrel.processing_provider.credentials as credentials

    monkeypatch.setattr(credentials, "signature", lambda authcfg, url: {"X-Esri-Authorization": "Bearer canary-9"})
    scene, model, token = repository / DEMO, repository / CROWNS, {"token": "canary-9"}
    with image_server(open_image(scene), **token) as arcgis, portal({}, **token) as double:
        double.items[ITEM] = Item("Image Service", url=arcgis.image, private=True)
        double.servers = [arcgis.server.url]
        inputs = [{"INPUT": str(scene)}, {"INPUT_SOURCE": arcgis.image},
                  {"INPUT_SOURCE": {"itemId": ITEM}, "PORTAL": double.server.url}]  # fmt: skip
        found = []
        for number, given in enumerate(inputs):
            parameters = {
                "MODEL": str(model),
                "OUTPUT": str(tmp_path / f"{number}.gpkg"),
                **given,
                "AUTHENTICATION": "abc1234",
            }
            results, _ = algorithm().run(parameters, context(), Listener(), catchExceptions=False)
            layer = QgsVectorLayer(results["OUTPUT"], "", "ogr")
            found.append(sorted((feature.geometry().asWkt(3), feature["Class"]) for feature in layer.getFeatures()))
    assert len(found[0]) > 50
    assert found[0] == found[1] == found[2]


@pytest.mark.slow
def test_the_rasters_of_a_mosaic_service_are_searched_one_by_one(
    good: dict[str, Any], repository: Path, tmp_path: Path
) -> None:
    scene = open_image(repository / DEMO)
    other = replace(scene, pixels=scene.pixels[:, :200].copy())
    with image_server(scene, items={3: scene, 8: other}) as arcgis:
        given = {**good, "INPUT_SOURCE": arcgis.image, "PROCESSING_MODE": "PROCESS_ITEMS_SEPARATELY"}
        rasters = plan(given).job.rasters
        assert [(item.name, item.options["mosaicRule"]["lockRasterIds"]) for item in rasters] == [
            ("item 3", [3]), ("item 8", [8])
        ]  # fmt: skip
        given.update(MODEL=str(repository / CROWNS), OUTPUT=str(tmp_path / "out.gpkg"))
        results, _ = algorithm().run(given, context(), Listener(), catchExceptions=False)
    layer = QgsVectorLayer(results["OUTPUT"], "", "ogr")
    counts = Counter(feature["Source"] for feature in layer.getFeatures())
    assert set(counts) == {f"{arcgis.image}/3", f"{arcgis.image}/8"}
    assert counts[f"{arcgis.image}/3"] > counts[f"{arcgis.image}/8"] > 10


def test_a_service_that_names_no_rasters_is_searched_as_one(good: dict[str, Any], arcgis: ArcGis) -> None:
    given = {**good, "INPUT_SOURCE": arcgis.image, "PROCESSING_MODE": "PROCESS_ITEMS_SEPARATELY"}
    assert [item.options for item in plan(given).job.rasters] == [{}]
