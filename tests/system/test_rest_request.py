"""The operation's own request on the command line: the documentation's example, word for word."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from kestrel.tests.fixtures.servers.base import Answer, Request, json_answer, serving
from kestrel.tests.fixtures.servers.image_server import image_server
from kestrel.tests.fixtures.servers.pixels import open_image
from kestrel.tests.fixtures.servers.portal import ITEM, Item, portal
from kestrel.tests.system.test_main_job import IMAGE, MODEL, ROOT, objects

ALGORITHM = "kestrel:detectobjectsrequest"


def example() -> str:
    text = (ROOT / "docs" / "rest_request.md").read_text("utf-8")
    return re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0]


def centres(path: Path) -> list[tuple[float, float]]:
    """Give the centre of each box."""
    from osgeo import ogr

    places = [ogr.CreateGeometryFromWkt(wkt).Centroid() for wkt, _, _ in objects(path)]
    return [(place.GetX(), place.GetY()) for place in places]


def run_example(folder: Path, run_qgis_process: Callable[..., Any]) -> dict[str, Any]:
    """Run the documentation's example as it tells: in a file beside the folder resources."""
    (folder / "resources").symlink_to(ROOT / "resources", target_is_directory=True)
    (folder / "request.json").write_text(example(), "utf-8")
    answer = run_qgis_process(["--json", "run", ALGORITHM, f"--REQUEST={folder / 'request.json'}"])
    assert answer.code == 0, answer.stderr
    return answer.json["results"]


def as_form(members: dict[str, Any]) -> str:
    """Write a request as a client posts it."""
    return urlencode({name: value if isinstance(value, str) else json.dumps(value) for name, value in members.items()})


@pytest.mark.slow
def test_the_example_and_a_clients_form_find_the_same_objects_as_the_algorithm(
    tmp_path: Path, run_qgis_process: Callable[..., Any]
) -> None:
    plain, form = tmp_path / "plain.gpkg", tmp_path / "form.gpkg"
    answer = run_qgis_process(
        ["run", "kestrel:detectobjects", f"--INPUT={IMAGE}", f"--MODEL={MODEL}", f"--OUTPUT={plain}"]
    )
    assert answer.code == 0, answer.stderr
    expected = objects(plain)

    results = run_example(tmp_path, run_qgis_process)
    assert results["OBJECT_COUNT"] == len(expected) == 66
    assert objects(tmp_path / "trees.gpkg") == expected
    assert json.loads(results["OUT_OBJECTS"])["value"] == {"uri": str(tmp_path / "trees.gpkg")}
    assert json.loads(results["JOB"])["jobStatus"] == "esriJobSucceeded"

    members = {
        "inputRaster": {"uri": str(IMAGE)}, "outputObjects": {"uri": str(form)}, "model": {"uri": str(MODEL)},
        "runNMS": "false", "context": {"processorType": "CPU", "scratchWorkspace": "x"}, "f": "json",
    }  # fmt: skip
    answer = run_qgis_process(["run", ALGORITHM, "-"], stdin=json.dumps({"inputs": {"REQUEST": as_form(members)}}))
    assert answer.code == 0, answer.stderr
    assert objects(form) == expected
    said = [message["description"] for message in json.loads(answer.json["results"]["JOB"])["messages"]]
    assert said[0] == "The request's member 'context.scratchWorkspace' has no effect: Kestrel does not know it."


REFERENCE = {"wkid": 32617, "latestWkid": 32617}
WEST, SOUTH, EAST, NORTH = 404211.9, 3285122.9, 404231.9, 3285142.9
"""The north-western quarter of the demo image."""


def parks(request: Request) -> Answer:
    """A feature service with one polygon, as QGIS asks for it."""
    fields = [{"name": "OBJECTID", "type": "esriFieldTypeOID", "alias": "OBJECTID"}]
    extent = {"xmin": WEST, "ymin": SOUTH, "xmax": EAST, "ymax": NORTH, "spatialReference": REFERENCE}
    ring = [[WEST, NORTH], [EAST, NORTH], [EAST, SOUTH], [WEST, SOUTH], [WEST, NORTH]]
    shared = {"geometryType": "esriGeometryPolygon", "fields": fields}
    if request.path.endswith("/FeatureServer/0"):
        return json_answer({"id": 0, "name": "Parks", "type": "Feature Layer", "extent": extent, **shared})
    if request.query.get("returnIdsOnly") == "true":
        return json_answer({"objectIdFieldName": "OBJECTID", "objectIds": [1]})
    feature = {"attributes": {"OBJECTID": 1}, "geometry": {"rings": [ring]}}
    return json_answer({"spatialReference": REFERENCE, "features": [feature], **shared})


@pytest.mark.slow
def test_the_polygons_of_a_feature_service_are_a_mask(tmp_path: Path, run_qgis_process: Callable[..., Any]) -> None:
    output = tmp_path / "out.gpkg"
    with serving(parks) as server:
        mask = {"url": f"{server.url}/arcgis/rest/services/Parks/FeatureServer/0"}
        members = {
            "inputRaster": {"uri": str(IMAGE)}, "outputObjects": {"uri": str(output)}, "model": {"uri": str(MODEL)},
            "context": {"mask": mask},
        }  # fmt: skip
        answer = run_qgis_process(["run", ALGORITHM, "-"], stdin=json.dumps({"inputs": {"REQUEST": as_form(members)}}))
    assert answer.code == 0, answer.stderr
    found = centres(output)
    assert len(found) > 10
    assert all(WEST <= x <= EAST and SOUTH <= y <= NORTH for x, y in found)


@pytest.mark.slow
def test_an_image_service_and_a_portals_model_give_the_objects_of_the_files(
    tmp_path: Path, run_qgis_process: Callable[..., Any]
) -> None:
    item = Item("Deep Learning Package", name="trees.dlpk", data=MODEL.read_bytes())
    plain, output = tmp_path / "plain.gpkg", tmp_path / "out.gpkg"
    files = {"inputRaster": {"uri": str(IMAGE)}, "outputObjects": str(plain), "model": str(MODEL)}
    with image_server(open_image(IMAGE)) as arcgis, portal({ITEM: item}) as online:
        members = {
            "inputRaster": {"url": arcgis.image},
            "outputObjects": {"uri": str(output)},
            "model": {"itemId": ITEM},
            "context": {"cellSize": {"url": arcgis.image}},
        }
        for request in (files, members):
            inputs = {"REQUEST": as_form(request), "PORTAL": f"{online.server.url}/portal"}
            answer = run_qgis_process(
                ["run", ALGORITHM, "-"],
                stdin=json.dumps({"inputs": inputs}),
                env={"KESTREL_CACHE": str(tmp_path / "c")},
            )
            assert answer.code == 0, answer.stderr
    assert objects(output) == objects(plain)
    assert len(objects(output)) == 66


def test_a_refused_request_ends_with_an_error_code_and_the_members_name(run_qgis_process: Callable[..., Any]) -> None:
    request = {
        "inputRaster": {"uri": "/rasterStores/ortho/x"},
        "model": {"uri": str(MODEL)},
        "outputObjects": "/x.gpkg",
    }
    answer = run_qgis_process(["run", ALGORITHM, "-"], stdin=json.dumps({"inputs": {"REQUEST": request}}))
    assert answer.code != 0
    assert "'inputRaster.uri' lies in a data store of an ArcGIS server" in answer.stderr


def test_a_token_is_refused_without_being_said_in_the_error(run_qgis_process: Callable[..., Any]) -> None:
    request = {"inputRaster": str(IMAGE), "model": str(MODEL), "token": "c4n4ry-s3cr3t"}
    answer = run_qgis_process(["--json", "run", ALGORITHM, "-"], stdin=json.dumps({"inputs": {"REQUEST": request}}))
    assert answer.code != 0
    assert "AUTHENTICATION" in answer.stderr
    assert "c4n4ry" not in answer.stderr
