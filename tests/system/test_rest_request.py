"""The operation's own request on the command line: the documentation's example, word for word."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from kestrel.tests.system.test_main_job import IMAGE, MODEL, ROOT, objects

ALGORITHM = "kestrel:detectobjectsrequest"


def example() -> str:
    text = (ROOT / "docs" / "rest_request.md").read_text("utf-8")
    return re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0]


@pytest.fixture
def expected(tmp_path: Path, run_qgis_process: Callable[..., Any]) -> list[tuple[str, str, float]]:
    """What kestrel:detectobjects finds in the demo image, with nothing set."""
    output = tmp_path / "expected.gpkg"
    answer = run_qgis_process(
        ["run", "kestrel:detectobjects", f"--INPUT={IMAGE}", f"--MODEL={MODEL}", f"--OUTPUT={output}"]
    )
    assert answer.code == 0, answer.stderr
    return objects(output)


def test_the_documentations_example_finds_the_same_objects_as_the_algorithm(
    expected: list[tuple[str, str, float]], tmp_path: Path, run_qgis_process: Callable[..., Any]
) -> None:
    (tmp_path / "resources").symlink_to(ROOT / "resources", target_is_directory=True)
    (tmp_path / "request.json").write_text(example(), "utf-8")
    answer = run_qgis_process(["--json", "run", ALGORITHM, f"--REQUEST={tmp_path / 'request.json'}"])
    assert answer.code == 0, answer.stderr
    results = answer.json["results"]
    assert results["OBJECT_COUNT"] == len(expected) == 66
    assert objects(tmp_path / "trees.gpkg") == expected
    assert json.loads(results["OUT_OBJECTS"])["value"] == {"uri": str(tmp_path / "trees.gpkg")}
    assert json.loads(results["JOB"])["jobStatus"] == "esriJobSucceeded"


def test_a_form_as_a_client_posts_it_finds_the_same_objects(
    expected: list[tuple[str, str, float]], tmp_path: Path, run_qgis_process: Callable[..., Any]
) -> None:
    output = tmp_path / "form.gpkg"
    members = {
        "inputRaster": json.dumps({"uri": str(IMAGE)}),
        "outputObjects": json.dumps({"uri": str(output)}),
        "model": json.dumps({"uri": str(MODEL)}),
        "runNMS": "false",
        "context": json.dumps({"processorType": "CPU", "scratchWorkspace": "x"}),
        "f": "json",
    }
    answer = run_qgis_process(["run", ALGORITHM, "-"], stdin=json.dumps({"inputs": {"REQUEST": urlencode(members)}}))
    assert answer.code == 0, answer.stderr
    assert objects(output) == expected
    said = [message["description"] for message in json.loads(answer.json["results"]["JOB"])["messages"]]
    assert said[0] == "The request's member 'context.scratchWorkspace' has no effect: Kestrel does not know it."


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
