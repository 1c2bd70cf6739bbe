"""Whole runs through Processing, with a worker that a script plays."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qgis.core import (
    Qgis,
    QgsExpression,
    QgsExpressionContext,
    QgsExpressionContextUtils,
    QgsProcessingAlgRunnerTask,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProject,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QCoreApplication

from kestrel.inference.jobs import jobs_folder
from kestrel.processing_provider import detect_objects
from kestrel.processing_provider.destination import sole_writer
from kestrel.tests.qgis.examples import Listener, algorithm, context, write_interpreter, write_model, write_raster

FIND_THREE = """
sys.path.insert(0, "/usr/lib/python3/dist-packages")
import numpy as np
from kestrel.inference.object_file import MapObjects
import struct
def square(x, y):
    points = [(x, y), (x + 2, y), (x + 2, y + 2), (x, y + 2), (x, y)]
    return struct.pack("<BIII", 1, 3, 1, 5) + b"".join(struct.pack("<dd", *point) for point in points)
say("progress", done=1, total=2, objects=3)
hand_out(MapObjects(
    [square(500010, 5599950), square(500020, 5599950), square(500030, 5599950)],
    np.array([0.9, 0.5, 0.25], np.float32), np.array([0, 0, 1], np.int32), np.array([0, 0, 1]),
    np.array([False, False, True])))
say("progress", done=2, total=2, objects=3)
say("done", summary={"tiles": 2})
"""

FAIL = """
say("failed", error={"code": "device-memory", "message": "Too little memory.", "hint": "Smaller tiles.", "context": {}})
sys.exit(1)
"""

WAIT = """
say("progress", done=1, total=100, objects=0)
while sys.stdin.readline().strip() not in ("cancel", ""):
    pass
say("canceled")
"""


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Parameters that nothing is wrong with, and a cache of their own."""
    monkeypatch.setenv("KESTREL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, FIND_THREE))
    yield {
        "INPUT": write_raster(tmp_path / "raster.tif"),
        "MODEL": write_model(tmp_path),
        "OUTPUT": str(tmp_path / "out.gpkg"),
    }


def run(parameters: dict[str, Any], feedback: QgsProcessingFeedback | None = None) -> dict[str, Any]:
    results, is_good = algorithm().run(parameters, context(), feedback or Listener(), catchExceptions=False)
    assert is_good
    return results


def folders() -> list[Path]:
    return sorted(jobs_folder().glob("*"))


def test_a_run_writes_the_objects_and_tells_what_it_did(good: dict[str, Any]) -> None:
    results = run(good)
    layer = QgsVectorLayer(results["OUTPUT"], "out", "ogr")
    assert (layer.featureCount(), layer.crs().authid()) == (3, "EPSG:32633")
    assert (results["OBJECT_COUNT"], results["TILE_COUNT"]) == (3, 2)
    assert json.loads(results["CLASS_COUNTS"]) == {"Palm": 2, "House": 1}
    assert results["ELAPSED_SECONDS"] > 0
    assert {feature["JobId"] for feature in layer.getFeatures()} == {results["JOB_ID"]}


def test_the_job_folder_is_removed_after_success(good: dict[str, Any]) -> None:
    run(good)
    assert folders() == []


def test_the_worker_gets_the_job_that_the_parameters_describe(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f"(folder / 'job.json').rename({str(tmp_path / 'seen.json')!r})\n" + FIND_THREE
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, body))
    run({**good, "ARGUMENTS": {"threshold": 0.4}, "PROCESSOR_TYPE": "CPU"})
    job = json.loads((tmp_path / "seen.json").read_text())
    assert (job["rasters"][0]["source"], job["arguments"], job["processor"]) == (
        good["INPUT"],
        {"threshold": 0.4},
        "cpu",
    )
    assert len(job["model_sha256"]) == 64


def test_a_failure_is_told_whole_in_one_exception_and_leaves_folder_and_no_output(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, FAIL))
    with pytest.raises(QgsProcessingException) as caught:
        run(good)
    (folder,) = folders()
    assert str(caught.value) == f"Too little memory. Smaller tiles. Log: {folder}/worker.log [device-memory]"
    assert not (tmp_path / "out.gpkg").exists()


def test_a_worker_that_dies_is_told_with_its_reason(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, "import os\nos.kill(os.getpid(), 9)"))
    with pytest.raises(QgsProcessingException, match=r"memory was used up \(SIGKILL\).*\[worker-crash\]"):
        run(good)


def test_the_same_run_started_again_goes_on_in_the_folder_of_the_failed_one(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good_interpreter = Path(write_interpreter(tmp_path, FIND_THREE)).read_text()
    (tmp_path / "bad").mkdir()
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path / "bad", FAIL))
    with pytest.raises(QgsProcessingException):
        run(good)
    (folder,) = folders()
    (tmp_path / "bad" / "interpreter").write_text(good_interpreter)
    feedback = Listener()
    results = run(good, feedback)
    assert results["JOB_ID"] == folder.name
    assert ("info", f"Going on with the unfinished run {folder.name}.") in feedback.said
    assert folders() == []


def test_a_run_with_other_arguments_does_not_go_on_with_it(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, FAIL))
    for threshold in (0.3, 0.4):
        with pytest.raises(QgsProcessingException):
            run({**good, "ARGUMENTS": {"threshold": threshold}})
    assert len(folders()) == 2


def test_a_journal_that_does_not_fit_any_more_is_given_up(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = """
marker = folder / "journal.sqlite"
if not marker.exists():
    marker.write_text("")
    if not (folder.parent.parent / "again").exists():
        (folder.parent.parent / "again").write_text("")
        sys.exit(3)
else:
    say("failed", error={"code": "job", "message": "The journal is another job's.", "hint": "", "context": {}})
    sys.exit(1)
"""
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, body + FIND_THREE))
    with pytest.raises(QgsProcessingException):
        run(good)
    feedback = Listener()
    assert run(good, feedback)["OBJECT_COUNT"] == 3
    assert ("info", "What that run found does not fit any more; starting anew.") in feedback.said
    assert folders() == []


UNUSABLE = """
say("failed", error={"code": CODE, "message": "The journal cannot be used.", "hint": "", "context": {}})
sys.exit(1)
"""


def unfinished(good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> Path:
    """Leave a run whose journal the worker refuses with that code; a new run finds three objects."""
    body = f"CODE = {code!r}\nif (folder / 'old').exists():" + UNUSABLE.replace("\n", "\n    ") + "\n"
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, "import os\nos.kill(os.getpid(), 9)"))
    with pytest.raises(QgsProcessingException):
        run(good)
    (folder,) = folders()
    (folder / "old").touch()
    (folder / "journal.sqlite").touch()
    write_interpreter(tmp_path, body + FIND_THREE)
    return folder


def test_a_journal_that_cannot_be_used_is_given_up_for_a_new_folder(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unfinished(good, tmp_path, monkeypatch, "output")
    results = run(good)
    assert results["OBJECT_COUNT"] == 3
    assert results["JOB_ID"] != folder.name
    assert folders() == []


def test_a_run_that_is_given_up_after_it_began_to_publish_says_so(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unfinished(good, tmp_path, monkeypatch, "output")
    (folder / "publish.sqlite").touch()
    feedback = Listener()
    run(good, feedback)
    told = f"The run {folder.name} had begun to publish: delete its objects there, they carry its name in JobId."
    assert ("warning", told) in feedback.said


def test_a_run_that_is_refused_is_refused_at_once_the_second_time_too(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = (
        'say("failed", error={"code": "job", "message": "Too many tiles.", "hint": "", "context": {}})\nsys.exit(1)'
    )
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, refused))
    for _ in range(2):
        feedback = Listener()
        with pytest.raises(QgsProcessingException, match="Too many tiles"):
            run(good, feedback)
        assert not [text for _, text in feedback.said if "starting anew" in text]


def test_a_run_that_is_too_large_keeps_what_was_found_and_goes_on_when_the_limit_is_raised(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = """
(folder / "item-00001").mkdir(exist_ok=True)
(folder / "item-00001" / "journal.sqlite").touch()
if job["max_tiles"] < 9:
    context = {"reason": "too-large"}
    say("failed", error={"code": "job", "message": "Too many tiles.", "hint": "", "context": context})
    sys.exit(1)
"""
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, body + FIND_THREE))
    for _ in range(2):
        with pytest.raises(QgsProcessingException, match="Too many tiles"):
            run({**good, "MAX_TILES": 8})
    (folder,) = folders()
    assert run({**good, "MAX_TILES": 9})["JOB_ID"] == folder.name


def test_a_full_disk_does_not_cost_what_an_earlier_run_found(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unfinished(good, tmp_path, monkeypatch, "disk-full")
    with pytest.raises(QgsProcessingException, match=r"\[disk-full\]"):
        run(good)
    assert folders() == [folder]


def test_a_second_run_to_one_output_is_refused_and_the_first_ones_file_stays(
    good: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "out.gpkg").write_bytes(b"the other run's")
    with sole_writer(tmp_path / "out.gpkg"), pytest.raises(QgsProcessingException) as caught:
        run(good)
    assert f"Another run, in the process {os.getpid()}, is making the output" in str(caught.value)
    assert str(caught.value).endswith("[output]")
    assert (tmp_path / "out.gpkg").read_bytes() == b"the other run's"
    assert folders() == []


def test_an_output_that_goes_wrong_after_the_detection_is_told_with_the_way_out_and_the_log(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.setenv(
        "KESTREL_PYTHON", write_interpreter(tmp_path, f"Path({str(tmp_path / 'sub')!r}).rmdir()\n" + FIND_THREE)
    )
    with pytest.raises(QgsProcessingException) as caught:
        run({**good, "OUTPUT": str(tmp_path / "sub" / "out.gpkg")})
    (folder,) = folders()
    assert "what was found is kept." in str(caught.value)
    assert str(caught.value).endswith(f"Log: {folder}/worker.log [output]")


def test_what_nobody_foresaw_ends_the_run_with_a_message(good: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise TypeError("odd")

    monkeypatch.setattr(detect_objects, "complete_job", fail)
    with pytest.raises(QgsProcessingException, match=r"Unexpected error \(TypeError\): odd.*\[error\]"):
        run(good)
    monkeypatch.setattr(detect_objects, "make_draft", fail)
    feedback = Listener()
    assert not algorithm().run(good, context(), feedback)[1]
    (said,) = [text for level, text in feedback.said if level == "error"]
    assert re.search(r"Unexpected error \(TypeError\): odd.*\[error\]", said)


def test_names_that_a_shapefile_shortens_do_not_cost_colours_and_labels(good: dict[str, Any], tmp_path: Path) -> None:
    where, path = context(), str(tmp_path / "out.shp")
    where.addLayerToLoadOnCompletion(path, QgsProcessingContext.LayerDetails("", QgsProject.instance(), "OUTPUT"))
    names = {"CLASS_VALUE_FIELD": "ConfidenceOfWhat", "CONFIDENCE_SCORE_FIELD": "ConfidenceOfThat"}
    algorithm().run({**good, **names, "OUTPUT": path}, where, Listener(), catchExceptions=False)
    style = where.layerToLoadOnCompletionDetails(path).postProcessor()
    layer = QgsVectorLayer(path, "out", "ogr")
    style.postProcessLayer(layer, where, Listener())
    scope = QgsExpressionContext(QgsExpressionContextUtils.globalProjectLayerScopes(layer))
    scope.setFeature(next(layer.getFeatures()))
    assert layer.renderer().classAttribute() == "Confidence"
    assert QgsExpression(layer.labeling().settings().fieldName).evaluate(scope) == "Palm 90%"


def test_a_cancel_in_the_main_thread_is_an_exception_and_keeps_the_folder(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, WAIT))
    feedback = Listener()
    threading.Timer(1.0, feedback.cancel).start()
    with pytest.raises(QgsProcessingException, match="Canceled by the user"):
        run(good, feedback)
    assert len(folders()) == 1
    assert not (tmp_path / "out.gpkg").exists()


def test_a_cancelled_task_ends_as_cancelled_and_not_as_failed(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, WAIT))
    feedback, where, ends = Listener(), context(), []
    task = QgsProcessingAlgRunnerTask(algorithm(), good, where, feedback)
    task.executed.connect(lambda is_good, results: ends.append((is_good, dict(results))))
    thread = threading.Thread(target=task.run)
    thread.start()
    threading.Timer(0.7, feedback.cancel).start()
    while thread.is_alive():
        QCoreApplication.processEvents()
    task.finished(False)
    assert ends == [(False, {})]
    assert [text for level, text in feedback.said if level == "error"] == []


def test_a_temporary_layer_takes_the_objects_too(good: dict[str, Any]) -> None:
    where = context()
    results, is_good = algorithm().run({**good, "OUTPUT": "TEMPORARY_OUTPUT"}, where, Listener())
    assert is_good
    assert where.takeResultLayer(results["OUTPUT"]).featureCount() == 3


def test_messages_of_the_worker_reach_the_log(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = 'say("message", level="warning", id="x", text="Look out.")\n' + FIND_THREE
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, body))
    feedback = Listener()
    run(good, feedback)
    assert ("warning", "Look out.") in feedback.said
    assert feedback.said[-1] == ("info", "Found 3 objects. Palm: 2, House: 1.")


FIND_POINTS = """
sys.path.insert(0, "/usr/lib/python3/dist-packages")
import numpy as np
import struct
from kestrel.inference.object_file import MapObjects
hand_out(MapObjects(
    [struct.pack("<BIdd", 1, 1, 500010.0 + i, 5599950.0) for i in range(2)],
    np.array([0.9, 0.5], np.float32), np.array([0, 1], np.int32), np.array([0, 0]), np.array([False, False]),
    [{"Height": 12.5, "Note": "old"}, {"Height": 3}]))
fields = [{"name": "Height", "type": "number"}, {"name": "Note", "type": "text"}]
say("done", summary={"tiles": 1, "geometry": "point", "fields": fields})
"""


@pytest.mark.parametrize("output", ["out.gpkg", "TEMPORARY_OUTPUT"])
def test_a_model_of_points_gives_a_layer_of_points_with_its_own_fields(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, FIND_POINTS))
    where = context()
    target = output if output == "TEMPORARY_OUTPUT" else str(tmp_path / output)
    results, _ = algorithm().run({**good, "OUTPUT": target}, where, Listener(), catchExceptions=False)
    is_file = output != "TEMPORARY_OUTPUT"
    layer = QgsVectorLayer(target, "", "ogr") if is_file else where.takeResultLayer(results["OUTPUT"])
    assert layer.wkbType() == Qgis.WkbType.Point
    rows = [(feature["Class"], feature["Height"], feature["Note"] or None) for feature in layer.getFeatures()]
    assert rows == [("Palm", 12.5, "old"), ("House", 3.0, None)]


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "expected"), [
    ("point", Qgis.GeometryType.Point), ("box", Qgis.GeometryType.Polygon), ("model", Qgis.GeometryType.Polygon),
])  # fmt: skip
def test_the_shape_that_was_asked_for_settles_the_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path, shape: str, expected: Qgis.GeometryType
) -> None:
    interpreter = repository / "build" / "env" / "inference" / "bin" / "python"
    if not interpreter.exists():
        pytest.skip("the inference environment is not there")
    monkeypatch.setenv("KESTREL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KESTREL_PYTHON", str(interpreter))
    parameters = {
        "INPUT": str(repository / "resources" / "demo" / "OSBS_029.tif"),
        "MODEL": str(repository / "resources" / "models" / "tree_crowns.dlpk"),
        "ARGUMENTS": {"shape": shape}, "PROCESSOR_TYPE": "CPU", "OUTPUT": str(tmp_path / "out.gpkg"),
    }  # fmt: skip
    layer = QgsVectorLayer(run(parameters)["OUTPUT"], "out", "ogr")
    assert (True, expected) == (layer.featureCount() > 20, layer.geometryType())
    assert {expected} == {feature.geometry().type() for feature in layer.getFeatures()}
