"""A run that was appended can be taken out again, and nothing else goes with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from qgis.core import QgsApplication, QgsProcessingException, QgsProject, QgsVectorLayer

from kestrel.tests.qgis.examples import Listener, context
from kestrel.tests.qgis.test_append import good, rows, run  # noqa: F401  # good is a fixture


def undo(layer: Any, job_id: str = "", **others: str) -> dict[str, Any]:
    algorithm = QgsApplication.processingRegistry().createAlgorithmById("kestrel:undorun")
    parameters = {"LAYER": layer, "JOB_ID": job_id, **others}
    results, is_good = algorithm.run(parameters, context(), Listener(), catchExceptions=False)
    assert is_good
    return results


def test_the_objects_of_one_run_are_deleted(good: dict[str, Any]) -> None:  # noqa: F811
    first, second = run(good)["JOB_ID"], run(good)["JOB_ID"]
    results = undo(good["APPEND_TO"], first)
    assert (results["DELETED_COUNT"], json.loads(results["REMAINING_RUNS"])) == (3, {second: 3})
    assert rows(good["APPEND_TO"], "JobId") == [(second,)] * 3


def test_without_a_run_the_runs_are_listed_and_nothing_is_deleted(good: dict[str, Any]) -> None:  # noqa: F811
    first, second = run(good)["JOB_ID"], run(good)["JOB_ID"]
    with pytest.raises(QgsProcessingException) as caught:
        undo(good["APPEND_TO"])
    assert f"{first} (3 objects)" in str(caught.value)
    assert f"{second} (3 objects)" in str(caught.value)
    with pytest.raises(QgsProcessingException, match="holds no objects of the run '2001'"):
        undo(good["APPEND_TO"], "2001")
    assert len(rows(good["APPEND_TO"], "JobId")) == 6


def test_a_layer_of_the_project_shows_it_at_once_whatever_its_filter(good: dict[str, Any]) -> None:  # noqa: F811
    first, second = run(good)["JOB_ID"], run(good)["JOB_ID"]
    layer = QgsVectorLayer(good["APPEND_TO"], "trees", "ogr")
    QgsProject.instance().addMapLayer(layer)
    layer.setSubsetString("\"Class\" = 'House'")
    assert undo(layer.id(), first)["DELETED_COUNT"] == 3
    assert layer.subsetString() == "\"Class\" = 'House'"
    assert [feature["JobId"] for feature in layer.getFeatures()] == [second]


def test_a_layer_that_is_being_edited_is_left_alone(good: dict[str, Any]) -> None:  # noqa: F811
    job_id = run(good)["JOB_ID"]
    layer = QgsVectorLayer(good["APPEND_TO"], "trees", "ogr")
    QgsProject.instance().addMapLayer(layer)
    layer.startEditing()
    with pytest.raises(QgsProcessingException, match=r"being edited.*Save or discard"):
        undo(layer.id(), job_id)
    assert len(rows(good["APPEND_TO"], "JobId")) == 3


def test_a_layer_without_the_field_is_refused_by_name(good: dict[str, Any]) -> None:  # noqa: F811
    with pytest.raises(QgsProcessingException, match="no field named 'RunId'"):
        undo(good["APPEND_TO"], "x", JOB_ID_FIELD="RunId")
