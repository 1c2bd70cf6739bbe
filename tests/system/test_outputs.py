"""Outputs from a real model on the command line: appended twice, undone once, published through dropped answers."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kestrel.tests.fixtures.servers.base import serving
from kestrel.tests.fixtures.servers.feature_server import TREES, FeatureServer
from kestrel.tests.system.test_main_job import ALGORITHM, IMAGE, MODEL, objects, read_layer

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path: Path, profile: Path, run_qgis_process: Callable[..., Any]) -> Callable[..., Any]:
    """Run an algorithm on the command line; give its results."""

    def run(algorithm: str, **inputs: Any) -> dict[str, Any]:
        answer = run_qgis_process(
            ["run", algorithm, "-"],
            stdin=json.dumps({"inputs": inputs}),
            profile=profile,
            env={"KESTREL_CACHE": str(tmp_path / "cache"), "XDG_RUNTIME_DIR": str(tmp_path)},
        )
        assert answer.code == 0, answer.stderr
        found: dict[str, Any] = answer.json["results"]
        return found

    return run


def test_a_run_is_appended_to_its_own_layer_counted_for_and_undone(tmp_path: Path, run: Callable[..., Any]) -> None:
    inputs = {"INPUT": str(IMAGE), "MODEL": str(MODEL), "PROCESSOR_TYPE": "CPU"}
    path, summary = tmp_path / "trees.gpkg", tmp_path / "summary.json"
    first = run(ALGORITHM, **inputs, OUTPUT=str(path), SUMMARY_FILE=str(summary))
    told = json.loads(summary.read_text("utf-8"))
    accounts = told["accounting"]
    assert accounts["planned"] == sum(accounts[name] for name in ("done", "nodata", "outside", "quarantined")) > 0
    assert (told["device"], told["objects"]) == ("cpu", first["OBJECT_COUNT"])
    assert {"torch", "rasterio"} <= set(told["versions"])
    once = objects(path)
    table = read_layer(path)
    layer = f"{path}|layername=trees"
    second = run(ALGORITHM, **inputs, APPEND_TO=layer)
    assert objects(path) == once + once
    assert run("kestrel:undorun", LAYER=layer, JOB_ID=second["JOB_ID"])["DELETED_COUNT"] == len(once)
    assert read_layer(path) == table
    (tmp_path / "copy").mkdir()
    shutil.copy(path, tmp_path / "copy")
    assert objects(tmp_path / "copy" / "trees.gpkg") == once


def test_a_run_is_published_through_dropped_answers_as_it_is_written(tmp_path: Path, run: Callable[..., Any]) -> None:
    double, chance, path = FeatureServer(), random.Random(5), tmp_path / "trees.gpkg"
    double.add_service("Trees", TREES)
    with serving(double) as server:
        server.plan.extend([None] * 3)
        server.plan.extend(chance.choice([None, None, "reset", "short"]) for _ in range(8))
        url = f"{server.url}/rest/services/Trees/FeatureServer/0"
        inputs = {
            "INPUT": str(IMAGE),
            "MODEL": str(MODEL),
            "OUTPUT": str(path),
            "OUTPUT_SERVICE": json.dumps({"url": url}),
        }
        results = run(ALGORITHM, **inputs)
    published = [row["attributes"] for row in double.rows()]
    assert [(row["Class"], row["Confidence"]) for row in published] == [row[1:] for row in objects(path)]
    assert {row["JobId"] for row in published} == {results["JOB_ID"]}
    assert list((tmp_path / "cache" / "jobs").iterdir()) == []
