"""kestrel:detectobjectsrequest runs kestrel:detectobjects (a script plays the worker), and answers as a server does."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from qgis.core import (
    QgsApplication,
    QgsProcessing,
    QgsProcessingAlgorithm,
    QgsProcessingAlgRunnerTask,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputLayerDefinition,
    QgsProject,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QCoreApplication

from kestrel.processing_provider.detect_objects_request import output_table, parameter_table
from kestrel.processing_provider.request_run import service_layers
from kestrel.processing_provider.rest_request.text import Request
from kestrel.processing_provider.rest_request.translate import translate
from kestrel.tests.fixtures.servers.base import Server, serving
from kestrel.tests.fixtures.servers.feature_server import TREES, FeatureServer
from kestrel.tests.fixtures.servers.image_server import ArcGis, image_server
from kestrel.tests.fixtures.servers.pixels import Image, open_image
from kestrel.tests.fixtures.servers.portal import ITEM, Item
from kestrel.tests.fixtures.servers.portal import portal as portal_of_items
from kestrel.tests.qgis import examples
from kestrel.tests.qgis.examples import Listener, context, write_interpreter, write_model, write_raster
from kestrel.tests.qgis.test_run import FAIL, FIND_THREE, WAIT

CANARY = "c4n4ry-s3cr3t"
TOKEN = "canary-1f0e5b"


def algorithm() -> QgsProcessingAlgorithm:
    return QgsApplication.processingRegistry().createAlgorithmById("kestrel:detectobjectsrequest")


@pytest.fixture
def members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A request that nothing is wrong with, and a cache of its own."""
    monkeypatch.setenv("KESTREL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, FIND_THREE))
    return {
        "inputRaster": {"uri": write_raster(tmp_path / "raster.tif")},
        "outputObjects": {"uri": str(tmp_path / "out.gpkg")},
        "model": {"uri": write_model(tmp_path)},
    }


def run(request: Any, feedback: QgsProcessingFeedback | None = None, **parameters: Any) -> dict[str, Any]:
    given = {"REQUEST": request, **parameters}
    results, is_good = algorithm().run(given, context(), feedback or Listener(), catchExceptions=False)
    assert is_good
    return results


def refusal(request: Any, **parameters: Any) -> str:
    is_valid, reason = algorithm().checkParameterValues({"REQUEST": request, **parameters}, context())
    return "" if is_valid else reason


def failure(request: Any, **parameters: Any) -> str:
    """Give all that a run says that nobody checked before."""
    feedback = Listener()
    assert not algorithm().run({"REQUEST": request, **parameters}, context(), feedback)[1]
    return "\n".join(text for _, text in feedback.said)


def job_of(members: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a request and give the job that its worker got."""
    body = f"(folder / 'job.json').rename({str(folder / 'seen.json')!r})\n" + FIND_THREE
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(folder, body))
    run(json.dumps(members))
    return json.loads((folder / "seen.json").read_text())


def test_a_request_is_run_and_answered_as_the_server_would(members: dict[str, Any], tmp_path: Path) -> None:
    results = run(json.dumps({**members, "context": {"logging": True}}))
    assert QgsVectorLayer(results["OUTPUT"], "out", "ogr").featureCount() == results["OBJECT_COUNT"] == 3
    assert json.loads(results["OUT_OBJECTS"]) == {
        "paramName": "outObjects", "dataType": "GPString", "value": {"uri": str(tmp_path / "out.gpkg")},
    }  # fmt: skip
    job = json.loads(results["JOB"])
    assert (job["jobId"], job["jobStatus"]) == (results["JOB_ID"], "esriJobSucceeded")
    assert job["results"] == {"outObjects": {"paramUrl": "results/outObjects"}}
    assert list(job["inputs"]) == ["inputRaster", "outputObjects", "model", "context"]
    said = [(message["type"], message["description"]) for message in job["messages"]]
    assert said[0] == (
        "esriJobMessageTypeWarning",
        "The request's member 'context.logging' has no effect: the run's log is always written.",
    )
    assert said[-1] == ("esriJobMessageTypeInformative", "Found 3 objects. Palm: 2, House: 1.")


def test_the_worker_gets_the_job_that_the_members_describe(
    members: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wgs84 = {"xmin": 14.99, "ymin": 50.5, "xmax": 15.0004, "ymax": 50.6, "spatialReference": {"wkid": 4326}}
    context_member = {"extent": wgs84, "cellSize": 2, "processorType": "CPU", "parallelProcessingFactor": "50%"}
    job = job_of(
        {
            **members,
            "modelArguments": {"threshold": "0.4"},
            "runNMS": "true",
            "maxOverlapRatio": "0.25",
            "context": json.dumps(context_member),
        },
        tmp_path,
        monkeypatch,
    )
    assert (job["arguments"], job["run_nms"], job["max_overlap_ratio"]) == ({"threshold": "0.4"}, True, 0.25)
    assert (job["cell_size"], job["processor"], job["parallel_processing_factor"]) == (2, "cpu", "50%")
    # The extent in degrees ends 28 m east of the raster's western edge.
    assert job["extent"][0] == 500000
    assert job["extent"][2] == pytest.approx(500028.3, abs=1)


def test_an_extent_may_be_in_a_system_given_as_wkt(
    members: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qgis.core import Qgis, QgsCoordinateReferenceSystem

    wkt = QgsCoordinateReferenceSystem("EPSG:4326").toWkt(Qgis.CrsWktVariant.Wkt1Esri)
    extent = {"xmin": 14.99, "ymin": 50.5, "xmax": 15.0004, "ymax": 50.6, "spatialReference": {"wkt": wkt}}
    job = job_of({**members, "context": {"extent": extent}}, tmp_path, monkeypatch)
    assert job["extent"][2] == pytest.approx(500028.3, abs=1)


def test_a_factor_of_the_cell_size_is_one_of_the_rasters_own(
    members: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert job_of({**members, "context": {"cellSize": {"factor": 2.5}}}, tmp_path, monkeypatch)["cell_size"] == 2.5


@pytest.mark.parametrize("path", ["city.gpkg/main.trees", "city.gdb/trees"])
def test_a_feature_class_is_a_table_of_its_file(members: dict[str, Any], tmp_path: Path, path: str) -> None:
    results = run({**members, "outputObjects": {"uri": str(tmp_path / path)}})
    layer = QgsVectorLayer(results["OUTPUT"], "out", "ogr")
    assert (layer.featureCount(), results["OUTPUT"].rpartition("|")[2]) == (3, "layername=trees")


def test_several_rasters_are_searched_one_by_one_where_the_request_says_so(
    members: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = [members["inputRaster"]["uri"], write_raster(tmp_path / "other.tif")]
    job = job_of({**members, "inputRaster": {"uris": uris}, "processAllRasterItems": "true"}, tmp_path, monkeypatch)
    assert ([item["source"] for item in job["rasters"]], job["processing_mode"]) == (uris, "items")


@pytest.fixture
def portal() -> Iterator[tuple[FeatureServer, Server]]:
    """A portal that makes hosted layers, and has one."""
    double = FeatureServer(token=TOKEN)
    double.add_service("Trees", TREES)
    with serving(double) as server:
        yield double, server


@pytest.fixture(scope="module")
def sign_in(sign_with: Callable[..., str]) -> str:
    """An authentication configuration with the portal's token."""
    return sign_with("EsriToken", token=TOKEN)


@pytest.fixture
def arcgis(tmp_path: Path) -> Iterator[ArcGis]:
    """An image service with cells of 0.25 m whose grid begins 0.1 m beside the raster's."""
    path = tmp_path / "fine.tif"
    write_raster(path, transform=(500000.1, 0.25, 0, 5600000.1, 0, -0.25))
    with image_server(open_image(path)) as double:
        yield double


def test_cells_and_grid_are_those_of_an_image_service(
    members: dict[str, Any], arcgis: ArcGis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = {"cellSize": {"url": arcgis.image}, "snapRaster": {"url": arcgis.image}}
    job = job_of({**members, "context": layers}, tmp_path, monkeypatch)
    assert job["cell_size"] == 0.25
    assert [(value - 0.1) / 0.25 % 1 for value in job["snap"]] == pytest.approx([0, 0], abs=1e-5)
    assert all("/exportImage" not in request.path for request in arcgis.server.asked)


def test_a_service_that_is_not_there_is_told_with_the_member(members: dict[str, Any], arcgis: ArcGis) -> None:
    url = arcgis.image.replace("Trees", "Nothing")
    reason = refusal({**members, "context": {"snapRaster": {"url": url}}})
    assert reason.startswith("The request's member 'context.snapRaster': ")
    assert url in reason


@pytest.mark.parametrize(
    ("portal", "signs"), [("", False), ("https://other.example", False), ("https://OWN.example:443/portal", True)]
)
def test_layers_of_services_sign_in_only_where_the_portal_is(portal: str, signs: bool) -> None:
    mask = "https://own.example/arcgis/rest/services/Parks/FeatureServer/0"
    members = {"inputRaster": "x.tif", "model": "/m.dlpk", "context": {"mask": {"url": mask}}}
    values = {"AUTHENTICATION": "abc1234", "PORTAL": portal}
    expected = f"arcgisfeatureserver://url='{mask}'" + (" authcfg='abc1234'" if signs else "")
    assert service_layers(values, translate(Request(members))) == {"MASK": expected}


def scene(folder: Path) -> Image:
    return open_image(Path(write_raster(folder / "served.tif", values=(0, 200))))


@pytest.mark.parametrize("member", ["inputRaster", "item", "model", "outputObjects"])
def test_a_foreign_server_that_a_request_names_never_sees_the_sign_in(
    members: dict[str, Any], tmp_path: Path, sign_in: str, member: str
) -> None:
    item = {ITEM: Item("Image Service", url="https://nowhere.example/ImageServer")}
    with image_server(scene(tmp_path)) as foreign, portal_of_items(item) as evil, portal_of_items({}) as own:
        page = {"url": f"{evil.server.url}/home/item.html?id={ITEM}"}
        changes = {
            "inputRaster": {"inputRaster": {"url": foreign.image}},
            "item": {"inputRaster": page},
            "model": {"model": page},
            "outputObjects": {"outputObjects": {"url": f"{foreign.server.url}/rest/services/Trees/FeatureServer"}},
        }[member]
        given = {"REQUEST": {**members, **changes}, "AUTHENTICATION": sign_in, "PORTAL": own.server.url}
        feedback = Listener()
        algorithm().run(given, context(), feedback)
        asked = [*foreign.server.asked, *evil.server.asked]
        assert asked and not foreign.server.asked_with(TOKEN) + evil.server.asked_with(TOKEN)
    assert f"AUTHENTICATION signs in at {own.server.url} and at its own servers" in str(feedback.said)


def test_a_server_that_the_portal_says_to_be_its_own_sees_the_sign_in(
    members: dict[str, Any], tmp_path: Path, sign_in: str
) -> None:
    with image_server(scene(tmp_path), token=TOKEN) as arcgis, portal_of_items({}, token=TOKEN) as own:
        request = {**members, "inputRaster": {"url": arcgis.image}}
        assert "[credentials]" in failure(request, AUTHENTICATION=sign_in)
        assert not arcgis.server.asked_with(TOKEN)
        own.servers = [arcgis.server.url]
        results = run(request, AUTHENTICATION=sign_in, PORTAL=own.server.url)
    assert results["OBJECT_COUNT"] == 3


def test_output_crs_and_field_names_reach_the_layer(members: dict[str, Any]) -> None:
    results = run({**members, "context": {"outSR": {"wkid": 102100}}, "confidenceScoreField": "Score"})
    layer = QgsVectorLayer(results["OUTPUT"], "out", "ogr")
    assert layer.crs().authid() == "EPSG:3857"
    assert "Score" in layer.fields().names()


def test_every_parameter_that_a_request_can_set_is_one_of_the_algorithms() -> None:
    """QGIS passes over a parameter that it does not know: what the request says would be swallowed."""
    import re

    folder = Path(examples.ROOT) / "processing_provider" / "rest_request"
    source = "".join(path.read_text("utf-8") for path in folder.glob("*.py"))
    keys = set(re.findall(r'values\["([A-Z_]+)"\]', source)) | set(re.findall(r'_field\("([A-Z_]+)"\)', source))
    assert len(keys) > 15
    owner = examples.algorithm()
    assert keys - {definition.name() for definition in owner.parameterDefinitions()} == set()


def test_a_sink_that_was_chosen_counts_more_than_the_requests_file(members: dict[str, Any], tmp_path: Path) -> None:
    results = run(members, OUTPUT=str(tmp_path / "other.gpkg"))
    assert results["OUTPUT"] == str(tmp_path / "other.gpkg")
    assert not (tmp_path / "out.gpkg").exists()
    del members["outputObjects"]
    results = run(members, OUTPUT=QgsProcessing.TEMPORARY_OUTPUT)
    assert results["OBJECT_COUNT"] == 3


def test_the_layer_is_loaded_into_the_project(members: dict[str, Any], tmp_path: Path) -> None:
    sink = QgsProcessingOutputLayerDefinition(str(tmp_path / "o.gpkg"), QgsProject.instance())
    for parameters in ({"REQUEST": members}, {"REQUEST": members, "OUTPUT": sink}):
        run_context = context()
        results, _ = algorithm().run(parameters, run_context, Listener(), catchExceptions=False)
        assert list(run_context.layersToLoadOnCompletion()) == [results["OUTPUT"]]


def test_objects_go_into_a_new_hosted_layer_as_the_request_describes_it(
    members: dict[str, Any], portal: tuple[FeatureServer, Server], sign_in: str
) -> None:
    double, server = portal
    members["outputObjects"] = {
        "serviceProperties": {"name": "Palms_2026", "serviceUrl": ""},
        "itemProperties": {"title": "Palms", "tags": ["palms", "kestrel"]},
    }
    feedback = Listener()
    results = run(members, feedback, AUTHENTICATION=sign_in, PORTAL=f"{server.url}/portal")
    assert len(double.rows("Palms_2026")) == 3
    value = json.loads(results["OUT_OBJECTS"])["value"]
    assert value["itemId"] and value["url"].startswith(f"{server.url}/") and "FeatureServer" in value["url"]
    assert "OUTPUT" not in results
    assert TOKEN not in f"{results} {feedback.said}"


def test_objects_are_added_to_an_existing_service_and_to_a_sink_besides(
    members: dict[str, Any], portal: tuple[FeatureServer, Server], sign_in: str, tmp_path: Path
) -> None:
    double, server = portal
    members["outputObjects"] = {"url": f"{server.url}/rest/services/Trees/FeatureServer"}
    output = str(tmp_path / "local.gpkg")
    results = run(members, AUTHENTICATION=sign_in, PORTAL=f"{server.url}/portal", OUTPUT=output)
    assert len(double.rows("Trees")) == QgsVectorLayer(output, "x", "ogr").featureCount() == 3
    assert json.loads(results["OUT_OBJECTS"])["value"]["url"].startswith(f"{server.url}/rest/services/Trees")


def test_a_service_without_a_sign_in_is_refused_with_the_member(
    members: dict[str, Any], portal: tuple[FeatureServer, Server]
) -> None:
    server = portal[1]
    members["outputObjects"] = {"serviceProperties": {"name": "Palms"}}
    said = failure(members, PORTAL=f"{server.url}/portal")
    assert "Choose an authentication configuration" in said
    assert "The request's member 'outputObjects'" in said


def test_messages_are_left_out_where_the_client_wants_none(members: dict[str, Any]) -> None:
    assert json.loads(run({**members, "returnMessages": "false"})["JOB"])["messages"] == []


@pytest.mark.parametrize(
    ("changes", "named", "said"),
    [
        ({"model": {"uri": "/no/such.dlpk"}}, "model", "no/such.dlpk"),
        ({"inputRaster": {"uri": "/no/such.tif"}}, "inputRaster", "such.tif"),
        ({"outputObjects": {"uri": "/no/such/folder/out.gpkg"}}, "outputObjects", "/no/such/folder"),
        ({"outputObjects": None}, "outputObjects", "is missing"),
        ({"modelArguments": {"threshold": "4"}}, "modelArguments", "'threshold' is '4'"),
        ({"context": {"extent": {"xmin": 0, "ymin": 0, "xmax": 1, "ymax": 1}}}, "context.extent", "outside"),
        ({"context": {"mask": {"url": "/no/parks.gpkg"}}}, "context.mask", "parks.gpkg"),
        ({"context": {"outSR": {"wkid": 1}}}, "context.outSR", "does not know"),
        ({"context": {"extent": {"xmin": 0, "ymin": 0, "xmax": 1, "ymax": 1, "spatialReference": 199999}}},
         "context.extent.spatialReference", "does not know"),
        ({"context": {"snapRaster": {"url": "/no/grid.tif"}}}, "context.snapRaster", "grid.tif"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_before_the_run_by_the_members_name(
    members: dict[str, Any], changes: dict[str, Any], named: str, said: str
) -> None:
    reason = refusal({**members, **changes})
    assert f"The request's member '{named}'" in reason
    assert said in reason
    assert reason in failure({**members, **changes})


def test_a_token_is_refused_and_said_nowhere(members: dict[str, Any]) -> None:
    said = failure({**members, "token": CANARY}) + refusal({**members, "token": CANARY})
    assert "'token' holds a token" in said
    assert CANARY not in said


def test_a_failure_of_the_run_is_told_whole(
    members: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, FAIL))
    with pytest.raises(QgsProcessingException, match=r"^Too little memory\. Smaller tiles\. .*\[device-memory\]$"):
        run(members)


def test_a_run_in_a_thread_can_be_cancelled(
    members: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, WAIT))
    feedback, run_context, ended = QgsProcessingFeedback(), context(), []
    task = QgsProcessingAlgRunnerTask(algorithm(), {"REQUEST": json.dumps(members)}, run_context, feedback)
    task.executed.connect(lambda is_good, results: ended.append((is_good, results)))
    QgsApplication.taskManager().addTask(task)
    threading.Timer(1.0, feedback.cancel).start()
    for _ in range(600):
        QCoreApplication.processEvents()
        if ended:
            break
        threading.Event().wait(0.05)
    assert ended and "OUTPUT" not in ended[0][1]
    assert not (tmp_path / "out.gpkg").exists()


def test_every_row_has_a_label_and_a_help_that_is_a_sentence() -> None:
    rows = [*parameter_table(), *output_table()]
    assert [row.key for row in rows if not row.label or not row.help.endswith(".")] == []
    assert all(f"<h3>{row.label}</h3>" in algorithm().shortHelpString() for row in rows)
