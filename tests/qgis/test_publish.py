"""Whole runs into a feature service: signed by QGIS's authentication store, broken off, gone on with, made anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsGeometry,
    QgsPointXY,
    QgsProcessingException,
    QgsProject,
    QgsVectorLayer,
)

from kestrel.inference.jobs import jobs_folder
from kestrel.inference.net import publishing
from kestrel.inference.net.feature_service import ServiceLayer
from kestrel.inference.net.limits import HttpLimits
from kestrel.inference.object_file import MapObjects, write_objects
from kestrel.processing_provider.feature_sink import FieldNames, RunFacts
from kestrel.processing_provider.outputs import publish
from kestrel.processing_provider.outputs.esri_features import esri_features
from kestrel.processing_provider.outputs.placement import Placement
from kestrel.tests.fixtures.servers.base import Server, serving
from kestrel.tests.fixtures.servers.feature_server import TREES, FeatureServer, without_global_ids
from kestrel.tests.qgis.examples import Listener, definition, refusal
from kestrel.tests.qgis.test_append import good, run  # noqa: F401  # good is a fixture
from kestrel.tests.qgis.test_undo_run import undo

CANARY = "canary-77ab01"
QUICK = HttpLimits(connect=2, read=0.5, total=2, patience=1, first_pause=0.01, longest_pause=0.05)


@pytest.fixture
def double() -> FeatureServer:
    made = FeatureServer(token=CANARY)
    made.add_service("Trees", TREES)
    return made


@pytest.fixture
def server(double: FeatureServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(publishing, "_CHUNK_OBJECTS", 1)
    monkeypatch.setattr(publish, "LIMITS", QUICK)
    with serving(double) as running:
        yield running


@pytest.fixture(scope="module")
def authcfg(sign_with: Callable[..., str]) -> str:
    """An authentication configuration with the token."""
    return sign_with("EsriToken", token=CANARY)


@pytest.fixture
def parameters(good: dict[str, Any], server: Server, authcfg: str) -> dict[str, Any]:  # noqa: F811
    """A run that publishes to an existing layer and writes nothing else."""
    url = f"{server.url}/rest/services/Trees/FeatureServer/0"
    changes = {"OUTPUT_SERVICE": {"url": url}, "AUTHENTICATION": authcfg, "PORTAL": f"{server.url}/portal"}
    return {**{key: value for key, value in good.items() if key != "APPEND_TO"}, **changes}


def published(double: FeatureServer, name: str = "Trees") -> list[tuple[Any, ...]]:
    rows = [row["attributes"] for row in double.rows(name)]
    return [(row["Class"], row["Confidence"], row["ClassValue"], row["CutByEdge"]) for row in rows]


THREE = [("Palm", 90.0, 4, 0), ("Palm", 50.0, 4, 0), ("House", 25.0, 7, 1)]


def test_objects_are_published_where_they_are_with_clockwise_rings(
    parameters: dict[str, Any], double: FeatureServer, server: Server
) -> None:
    results = run(parameters)
    assert published(double) == THREE
    row = double.rows()[0]
    assert row["attributes"]["JobId"] == results["JOB_ID"]
    assert row["geometry"]["spatialReference"] == {"wkid": 3857}
    ring = row["geometry"]["rings"][0]
    assert turn(ring) > 0
    transform = QgsCoordinateTransform(
        QgsCoordinateReferenceSystem("EPSG:32633"), QgsCoordinateReferenceSystem("EPSG:3857"), QgsProject.instance()
    )
    expected = transform.transform(QgsPointXY(500010, 5599950))
    assert min(QgsPointXY(*point).distance(expected) for point in ring) < 0.001
    assert json.loads(results["OUT_OBJECTS"])["url"] == f"{server.url}/rest/services/Trees/FeatureServer/0"
    assert list(jobs_folder().iterdir()) == []


def test_a_run_that_breaks_off_while_it_publishes_goes_on_and_nothing_is_there_twice(
    parameters: dict[str, Any], double: FeatureServer, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "PATIENCE", 0.2)
    double.fails_after = 1
    with pytest.raises(QgsProcessingException, match=r"objects are in .*objects\.gpkg") as caught:
        run(parameters)
    assert "Nothing is sent twice" in str(caught.value)
    (folder,) = jobs_folder().iterdir()
    copy = QgsVectorLayer(str(folder / "objects.gpkg"), "", "ogr")
    assert (copy.featureCount(), len(published(double))) == (3, 1)
    del copy
    double.fails_after = None
    server.plan.extend([None] * 5 + ["reset", None, "short"])
    results = run(parameters)
    assert results["JOB_ID"] == folder.name
    assert published(double) == THREE
    assert list(jobs_folder().iterdir()) == []


def test_the_local_layer_is_written_first(
    parameters: dict[str, Any], double: FeatureServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "PATIENCE", 0.1)
    double.fails_after = 0
    path = str(tmp_path / "found.gpkg")
    with pytest.raises(QgsProcessingException):
        run({**parameters, "OUTPUT": path})
    assert QgsVectorLayer(path, "", "ogr").featureCount() == 3


def test_the_token_is_in_no_url_no_file_no_message(
    parameters: dict[str, Any], double: FeatureServer, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "PATIENCE", 0.1)
    feedback = Listener()
    double.fails_after = 1
    with pytest.raises(QgsProcessingException) as caught:
        run(parameters, feedback)
    assert CANARY not in str(caught.value) + repr(feedback.said)
    files = [path for path in jobs_folder().rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
    assert [request for request in server.asked if CANARY in f"{request.path}{request.query}{request.body!r}"] == []


def test_a_sign_in_that_is_refused_is_told_before_the_run(parameters: dict[str, Any], double: FeatureServer) -> None:
    double.token = "another"
    with pytest.raises(QgsProcessingException, match=r"\[credentials\]"):
        run(parameters)
    assert list(jobs_folder().glob("*")) == []


def test_fields_that_the_service_lacks_are_told_before_the_run(
    parameters: dict[str, Any], double: FeatureServer
) -> None:  # fmt: skip
    layer = double.services["Trees"].layers[0]
    layer["fields"] = [item for item in layer["fields"] if item["name"] != "Tile"]
    with pytest.raises(QgsProcessingException, match="no field named 'Tile'"):
        run(parameters)
    run({**parameters, "FIELD_MAP": {"Tile": None}})
    assert published(double) == THREE


def test_a_new_hosted_layer_is_made_once_and_filled(
    parameters: dict[str, Any], double: FeatureServer, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "PATIENCE", 0.1)
    wanted = {
        "serviceProperties": {"name": "Found_2024", "serviceUrl": ""},
        "itemProperties": {"folderId": "f00d", "title": "Trees of 2024", "tags": ["trees", "Kestrel"]},
    }
    parameters["OUTPUT_SERVICE"] = wanted
    double.fails_after = 1
    with pytest.raises(QgsProcessingException):
        run(parameters)
    double.fails_after = None
    results = run(parameters)
    assert list(double.services) == ["Trees", "Found_2024"]
    assert published(double, "Found_2024") == THREE
    service = double.services["Found_2024"]
    item = double.items[service.item_id]
    assert (item["title"], item["tags"], item["ownerFolder"]) == ("Trees of 2024", "trees,Kestrel", "f00d")
    layer = service.layers[0]
    assert (layer["geometryType"], layer["extent"]["spatialReference"]) == ("esriGeometryPolygon", {"wkid": 32633})
    assert [info["value"] for info in layer["drawingInfo"]["renderer"]["uniqueValueInfos"]] == ["Palm", "House"]
    url = f"{server.url}/rest/services/Found_2024/FeatureServer"
    assert json.loads(results["OUT_OBJECTS"]) == {"url": url, "itemId": service.item_id}


def test_a_name_that_is_taken_is_told_and_the_objects_are_kept(parameters: dict[str, Any]) -> None:
    parameters["OUTPUT_SERVICE"] = {"serviceProperties": {"name": "Trees"}}
    with pytest.raises(QgsProcessingException, match="There is a service named 'Trees' already"):
        run(parameters)
    assert len(list(jobs_folder().iterdir())) == 1


@pytest.mark.parametrize("has_layer", [True, False])
def test_an_item_of_the_portal_is_added_to(
    parameters: dict[str, Any], double: FeatureServer, has_layer: bool
) -> None:  # fmt: skip
    # As the Python client does it: it makes an empty service first, and names its item.
    service = double.add_service("Empty", *([without_global_ids(TREES)] if has_layer else []))
    wanted = {"serviceProperties": {"name": "Empty", "serviceUrl": "x"}, "itemProperties": {"itemId": service.item_id}}
    results = run({**parameters, "OUTPUT_SERVICE": json.dumps(wanted)})
    assert published(double, "Empty") == THREE
    assert json.loads(results["OUT_OBJECTS"])["itemId"] == service.item_id


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{", "neither an address nor valid JSON"),
        ({"url": "https://x/arcgis/rest/services/A/MapServer"}, "The member url"),
        ({"url": "https://x/arcgis/rest/services/A/FeatureServer?token=secret"}, "AUTHENTICATION"),
        ({"serviceProperties": {}}, "names no service"),
        ({"serviceProperties": {"name": "a b/c"}}, "serviceProperties.name"),
        ({"itemid": "x"}, "members that Kestrel does not know: itemid"),
        ({"itemId": "../x"}, "The member itemId"),
    ],
)
def test_a_request_that_names_no_service_is_refused(parameters: dict[str, Any], value: Any, expected: str) -> None:
    reason = refusal({**parameters, "OUTPUT_SERVICE": value})
    assert expected in reason
    assert "secret" not in reason


def test_a_feature_service_that_is_a_layer_of_qgis_takes_objects_and_gives_them_back(
    good: dict[str, Any],  # noqa: F811
    authcfg: str,
) -> None:
    double = FeatureServer(token=CANARY)
    double.add_service("Trees", TREES)
    with serving(double) as server:
        source = f"crs='EPSG:3857' authcfg={authcfg} url='{server.url}/rest/services/Trees/FeatureServer/0'"
        layer = QgsVectorLayer(source, "trees", "arcgisfeatureserver")
        QgsProject.instance().addMapLayer(layer)
        assert layer.isValid()
        assert refusal({**good, "APPEND_TO": layer.id()}) == ""
        first, second = (run({**good, "APPEND_TO": layer.id()})["JOB_ID"] for _ in range(2))
        assert published(double) == [*THREE, *THREE]
        assert layer.featureCount() == 6
        assert undo(layer.id(), first)["DELETED_COUNT"] == 3
        assert {row["attributes"]["JobId"] for row in double.rows()} == {second}
        QgsProject.instance().clear()


def test_holes_run_the_other_way_and_parts_stay_together(tmp_path: Path) -> None:
    wkt = "MultiPolygon(((0 0,9 0,9 9,0 9,0 0),(1 1,1 2,2 2,2 1,1 1)),((20 0,30 0,30 9,20 0)))"
    none = np.zeros(1, np.int64)
    objects = MapObjects([bytes(QgsGeometry.fromWkt(wkt).asWkb())], none.astype(np.float32), none.astype(np.int32),
                         none, none.astype(np.bool_))  # fmt: skip
    write_objects(tmp_path / "objects.npz", objects)
    crs = QgsCoordinateReferenceSystem("EPSG:3857")
    facts = RunFacts(definition(), "run", FieldNames(), (), Qgis.WkbType.MultiPolygon, Placement(crs))
    layer = ServiceLayer("u", "n", "", "esriGeometryPolygon", {"wkid": 3857}, (), "OBJECTID", "", 100)
    (feature,) = esri_features([tmp_path / "objects.npz"], facts, {"Class": "Class"}, layer)
    rings = feature["geometry"]["rings"]
    assert [turn(ring) > 0 for ring in rings] == [True, False, True]
    assert feature["attributes"] == {"Class": "Palm"}


def turn(ring: list[list[float]]) -> float:
    """Give twice a ring's area, positive where it runs clockwise."""
    return sum((b[0] - a[0]) * (b[1] + a[1]) for a, b in zip(ring, ring[1:]))
