"""Whole runs into existing layers: files, also while they are open in QGIS, and what is refused."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from qgis.core import (
    Qgis,
    QgsCoordinateTransformContext,
    QgsFeature,
    QgsGeometry,
    QgsProcessingAlgRunnerTask,
    QgsProcessingException,
    QgsProject,
    QgsVectorFileWriter,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QCoreApplication

from kestrel.inference.jobs import jobs_folder
from kestrel.processing_provider.outputs import append, writers
from kestrel.tests.qgis.examples import ROOT, Listener, algorithm, context, refusal, write_interpreter, write_model
from kestrel.tests.qgis.examples import write_raster as write_small_raster
from kestrel.tests.qgis.test_run import FIND_POINTS, FIND_THREE

PLACE = (15.000155, 50.551492)
"""Longitude and latitude of the first object. Source: PROJ, of (500011, 5599951) in EPSG:32633."""
FIELDS = (
    "Class:string(20)", "Confidence:double", "ClassValue:integer", "ModelName:string(80)", "Tile:int8",
    "CutByEdge:boolean", "JobId:string(80)",
)  # fmt: skip


def make_layer(
    path: Path, kind: str = "Polygon", crs: str = "EPSG:32633", fields: tuple[str, ...] = FIELDS, table: str = "trees"
) -> str:
    """Write an empty layer to a file; give its source."""
    declared = "".join(f"&field={field}" for field in fields)
    template = QgsVectorLayer(f"{kind}?crs={crs}{declared}", "template", "memory")
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName = {".gpkg": "GPKG", ".shp": "ESRI Shapefile", ".geojson": "GeoJSON", ".gml": "GML"}[path.suffix]
    options.layerName = table
    if path.exists():
        options.actionOnExistingFile = QgsVectorFileWriter.ActionOnExistingFile.CreateOrOverwriteLayer
    error, message, *_ = QgsVectorFileWriter.writeAsVectorFormatV3(
        template, str(path), QgsCoordinateTransformContext(), options
    )
    assert error == QgsVectorFileWriter.WriterError.NoError, message
    return f"{path}|layername={table}" if path.suffix == ".gpkg" else str(path)


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Parameters of a run that appends to a GeoPackage and writes nothing else."""
    monkeypatch.setenv("KESTREL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, FIND_THREE))
    return {
        "INPUT": write_small_raster(tmp_path / "raster.tif"),
        "MODEL": write_model(tmp_path),
        "APPEND_TO": make_layer(tmp_path / "trees.gpkg"),
    }


def run(parameters: dict[str, Any], feedback: Listener | None = None) -> dict[str, Any]:
    results, is_good = algorithm().run(parameters, context(), feedback or Listener(), catchExceptions=False)
    assert is_good
    return results


def rows(source: str, *names: str) -> list[tuple[Any, ...]]:
    layer = QgsVectorLayer(source, "", "ogr")
    assert layer.isValid()
    return [tuple(feature[name] for name in names) for feature in layer.getFeatures()]


def test_objects_are_appended_and_nothing_else_is_written(good: dict[str, Any], tmp_path: Path) -> None:
    assert refusal(good) == ""  # QGIS writes statistics beside a raster that it opens
    before = sorted(path.name for path in tmp_path.iterdir())
    first, second = run(good), run(good)
    found = rows(good["APPEND_TO"], "Class", "Confidence", "ClassValue", "Tile", "CutByEdge", "JobId")
    once = [("Palm", 90.0, 4, 0, False), ("Palm", 50.0, 4, 0, False), ("House", 25.0, 7, 1, True)]
    assert found == [(*row, results["JOB_ID"]) for results in (first, second) for row in once]
    assert "OUTPUT" not in first
    assert json.loads(first["OUT_OBJECTS"]) == {"uri": good["APPEND_TO"]}
    assert [name for name in sorted(path.name for path in tmp_path.iterdir()) if name not in before] == ["cache"]


def test_a_new_layer_and_an_existing_one_take_the_same_objects(good: dict[str, Any], tmp_path: Path) -> None:
    results = run({**good, "OUTPUT": str(tmp_path / "new.gpkg")})
    assert rows(results["OUTPUT"], "Class", "JobId") == rows(good["APPEND_TO"], "Class", "JobId")
    outputs = json.loads(results["SUMMARY"])["outputs"]
    assert [(item["kind"], item["count"]) for item in outputs] == [("layer", 3), ("append", 3)]


def test_without_any_output_the_run_is_refused_with_the_ways_out(good: dict[str, Any]) -> None:
    del good["APPEND_TO"]
    assert "Nothing says where the objects are to be written" in refusal(good)
    assert "APPEND_TO" in refusal(good)


def test_objects_go_to_the_place_that_the_layers_coordinates_say(good: dict[str, Any], tmp_path: Path) -> None:
    good["APPEND_TO"] = make_layer(tmp_path / "world.gpkg", "MultiPolygon", "EPSG:4326")
    run(good)
    layer = QgsVectorLayer(good["APPEND_TO"], "", "ogr")
    centres = [feature.geometry().centroid().asPoint() for feature in layer.getFeatures()]
    assert (round(centres[0].x(), 6), round(centres[0].y(), 6)) == PLACE
    assert layer.wkbType() == Qgis.WkbType.MultiPolygon
    assert {feature.geometry().wkbType() for feature in layer.getFeatures()} == {Qgis.WkbType.MultiPolygon}


@pytest.mark.parametrize("name", ["trees.shp", "trees.geojson", "trees.fgb"])
def test_files_without_transactions_take_the_objects_once_too(
    good: dict[str, Any], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / name)
    first = run({**good, "APPEND_TO": None, "OUTPUT": path})["JOB_ID"]
    good["APPEND_TO"] = path
    kept(good, monkeypatch)
    second = run(good)["JOB_ID"]
    assert sorted(rows(path, "Class", "JobId")) == sorted(
        (name, job) for job in (first, second) for name in ("Palm", "Palm", "House")
    )


def kept(good: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run break off after it has written, before it could say so."""
    with monkeypatch.context() as patch:
        patch.setattr(append, "_check_count", lambda *_: (_ for _ in ()).throw(QgsProcessingException("killed")))
        with pytest.raises(QgsProcessingException, match="killed"):
            run(good)


def test_a_run_that_broke_off_after_the_insert_is_not_inserted_again(
    good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(good, monkeypatch)
    (folder,) = jobs_folder().iterdir()
    feedback = Listener()
    results = run(good, feedback)
    assert results["JOB_ID"] == folder.name
    assert rows(good["APPEND_TO"], "JobId") == [(folder.name,)] * 3
    assert ("info", "The objects of this run were in the layer trees already.") in feedback.said


def test_a_part_of_a_run_that_broke_off_is_replaced(good: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    kept(good, monkeypatch)
    layer = QgsVectorLayer(good["APPEND_TO"], "", "ogr")
    layer.dataProvider().deleteFeatures([next(layer.getFeatures()).id()])
    del layer
    run(good)
    assert len(rows(good["APPEND_TO"], "JobId")) == 3


def test_a_process_that_is_killed_while_it_inserts_leaves_nothing(good: dict[str, Any], tmp_path: Path) -> None:
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT / "build" / "plugins")!r})
os.environ["QT_QPA_PLATFORM"] = "offscreen"
from qgis.core import QgsApplication, QgsFeature, QgsGeometry, QgsVectorLayer
app = QgsApplication([], False); app.initQgis()
from kestrel.processing_provider.outputs.writers import write
layer = QgsVectorLayer({good["APPEND_TO"]!r}, "trees", "ogr")
def features():
    for number in range(5000):
        feature = QgsFeature(layer.fields())
        feature["JobId"] = "killed"
        feature.setGeometry(QgsGeometry.fromWkt("Polygon((0 0, 1 0, 1 1, 0 0))"))
        yield feature
    os.kill(os.getpid(), 9)
write(layer, "JobId", "killed", features, lambda: False)
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=60, capture_output=True)
    assert done.returncode == -9
    assert rows(good["APPEND_TO"], "JobId") == []


def in_project(source: str) -> QgsVectorLayer:
    layer = QgsVectorLayer(source, "trees", "ogr")
    QgsProject.instance().addMapLayer(layer)
    return layer


def test_a_layer_that_is_open_and_being_read_takes_the_objects_and_shows_them(good: dict[str, Any]) -> None:
    run(good)
    layer = in_project(good["APPEND_TO"])
    reading = layer.getFeatures()
    next(reading)
    run({**good, "APPEND_TO": layer.id()})
    assert len(list(reading)) >= 2
    assert (layer.featureCount(), len(list(layer.getFeatures()))) == (6, 6)
    assert not layer.extent().isEmpty()


@pytest.mark.parametrize("groups", [Qgis.TransactionMode.Disabled, Qgis.TransactionMode.BufferedGroups])
def test_edits_that_were_not_saved_survive_an_append(good: dict[str, Any], groups: Qgis.TransactionMode) -> None:
    QgsProject.instance().setTransactionMode(groups)
    first = run(good)["JOB_ID"]
    layer = in_project(good["APPEND_TO"])
    assert layer.startEditing()
    changed, gone, _ = list(layer.getFeatures())
    layer.changeAttributeValue(changed.id(), layer.fields().indexOf("Class"), "Date palm")
    layer.deleteFeature(gone.id())
    drawn = QgsFeature(layer.fields())
    drawn.setGeometry(QgsGeometry.fromWkt("Polygon((500000 5599990, 500001 5599990, 500001 5599991, 500000 5599990))"))
    drawn["Class"] = "drawn by hand"
    layer.addFeature(drawn)
    second = run({**good, "APPEND_TO": layer.id()})["JOB_ID"]
    assert layer.isEditable()
    assert sorted(f["Class"] for f in layer.getFeatures()) == sorted(
        ["Date palm", "House", "drawn by hand", "Palm", "Palm", "House"]
    )
    assert layer.commitChanges(), layer.commitErrors()
    QgsProject.instance().clear()
    saved = [(name, job or None) for name, job in rows(good["APPEND_TO"], "Class", "JobId")]
    assert sorted(saved, key=str) == sorted(
        [("Date palm", first), ("House", first), ("drawn by hand", None)]
        + [(name, second) for name in ("Palm", "Palm", "House")],
        key=str,
    )


def test_rows_that_the_layers_filter_hides_count_too(good: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = in_project(good["APPEND_TO"])
    assert layer.setSubsetString("\"Class\" = 'House'")
    run({**good, "APPEND_TO": layer.id()})
    assert len(rows(good["APPEND_TO"], "JobId")) == 3
    assert layer.featureCount() == 1


def test_a_file_that_another_program_is_writing_to_is_waited_for_and_then_told(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "_PATIENCE", 0.3)
    with closing(sqlite3.connect(tmp_path / "trees.gpkg", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(QgsProcessingException, match=r"'trees'.*another program.*what was found is kept"):
            run(good)
        other.execute("ROLLBACK")
    results = run(good)
    assert len(rows(good["APPEND_TO"], "JobId")) == results["OBJECT_COUNT"] == 3


def test_a_cancel_while_it_appends_leaves_the_layer_as_it_was(
    good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    feedback = Listener()
    inner = append.fitted
    monkeypatch.setattr(append, "fitted", lambda *a: (feedback.cancel(), inner(*a))[1])
    with pytest.raises(QgsProcessingException, match="Canceled by the user"):
        run(good, feedback)
    assert rows(good["APPEND_TO"], "JobId") == []
    assert len(list(jobs_folder().iterdir())) == 1


@pytest.mark.parametrize(
    ("fields", "field_map", "expected"),
    [
        (FIELDS[:-1], None, ["no field named 'JobId'", "FIELD_MAP"]),
        (FIELDS[1:], None, ["no field named 'Class'", '{"Class": null} leaves them out', "Its fields are: Confidence"]),
        (FIELDS[1:], {"Class": "Species"}, ["no field named 'Species'"]),
        (FIELDS, {"JobId": None}, ["leaves out JobId", "Name a text field"]),
        (FIELDS, {"Class": "JobId"}, ["the field 'JobId' would get two values"]),
        (FIELDS, ["Class"], ["not a JSON object"]),
        (("Class:string(3)", *FIELDS[1:]), None, ["'Class' holds 3 characters, 'Class' has up to 5"]),
        ((*FIELDS[:-1], "JobId:string(10)"), None, ["'JobId' holds 10 characters, 'JobId' has up to 22"]),
        ((FIELDS[0], "Confidence:integer", *FIELDS[2:]), None, ["'Confidence' holds whole numbers"]),
        ((*FIELDS[:-1], "JobId:integer"), None, ["'JobId' holds whole numbers, 'JobId' is text"]),
    ],
)
def test_fields_that_do_not_fit_are_refused_by_name_before_the_run(
    good: dict[str, Any], tmp_path: Path, fields: tuple[str, ...], field_map: Any, expected: list[str]
) -> None:
    good["APPEND_TO"] = make_layer(tmp_path / "odd.gpkg", fields=fields)
    reason = refusal({**good, **({"FIELD_MAP": field_map} if field_map is not None else {})})
    assert [text for text in expected if text not in reason] == []


def test_a_field_map_puts_values_where_they_belong_and_leaves_some_out(good: dict[str, Any], tmp_path: Path) -> None:
    fields = ("species:string", "SCORE:double", "run:string", "remark:string")
    good["APPEND_TO"] = make_layer(tmp_path / "mapped.gpkg", fields=fields)
    left_out = dict.fromkeys(["ClassValue", "ModelName", "Tile", "CutByEdge"])
    field_map = {"class": "Species", "Confidence": "score", "JobId": "run", **left_out}
    results = run({**good, "FIELD_MAP": json.dumps(field_map)})
    found = [(*row[:3], row[3] or None) for row in rows(good["APPEND_TO"], "species", "SCORE", "run", "remark")]
    job = results["JOB_ID"]
    assert found == [("Palm", 90.0, job, None), ("Palm", 50.0, job, None), ("House", 25.0, job, None)]


def test_geometries_of_another_kind_are_refused_before_the_run(good: dict[str, Any], tmp_path: Path) -> None:
    good["APPEND_TO"] = make_layer(tmp_path / "points.gpkg", "Point")
    good["MODEL"] = {
        "kestrel_definition": 1, "name": "boxes", "classes": [{"value": 1, "name": "Palm"}],
        "detector": {"kind": "onnx", "weights": str(tmp_path / "weights.onnx"), "head": "yolov8"},
    }  # fmt: skip
    reason = refusal(good)
    assert "holds geometries of the type Point" in reason
    assert 'shape to "point"' in reason
    assert refusal({**good, "ARGUMENTS": {"shape": "point"}}) == ""


def test_a_table_a_temporary_layer_and_one_that_is_not_there_are_refused(good: dict[str, Any], tmp_path: Path) -> None:
    table = make_layer(tmp_path / "table.gpkg", "NoGeometry")
    assert "table without geometry" in refusal({**good, "APPEND_TO": table})
    memory = QgsVectorLayer("Polygon?crs=EPSG:32633", "scratch", "memory")
    QgsProject.instance().addMapLayer(memory)
    assert "Make Permanent" in refusal({**good, "APPEND_TO": memory.id()})
    assert refusal({**good, "APPEND_TO": str(tmp_path / "nowhere.gpkg")}) != ""


def test_a_new_layer_in_the_place_of_the_file_that_is_appended_to_is_refused(
    good: dict[str, Any], tmp_path: Path
) -> None:
    for name in ("trees.gpkg", "trees"):
        assert "would replace the file" in refusal({**good, "OUTPUT": str(tmp_path / name)})
    table = f"ogr:dbname='{tmp_path / 'trees.gpkg'}' table=\"{{}}\" (geom)"
    for source in (good["APPEND_TO"], str(tmp_path / "trees.gpkg")):
        assert "would replace the table" in refusal({**good, "APPEND_TO": source, "OUTPUT": table.format("trees")})
    assert refusal({**good, "OUTPUT": table.format("other")}) == ""


def test_a_format_that_nothing_can_be_added_to_is_refused(good: dict[str, Any], tmp_path: Path) -> None:
    reason = refusal({**good, "APPEND_TO": make_layer(tmp_path / "flat.gml")})
    assert "Nothing can be added to the layer" in reason


def test_a_model_of_points_cannot_end_in_a_layer_of_polygons_and_keeps_what_it_found(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, FIND_POINTS))
    with pytest.raises(QgsProcessingException, match=r"geometries of the type Polygon.*of the type Point"):
        run(good)
    assert len(list(jobs_folder().iterdir())) == 1
    good["APPEND_TO"] = make_layer(tmp_path / "points.gpkg", "PointZ", fields=(*FIELDS, "Height:double"))
    feedback = Listener()
    monkeypatch.setattr("kestrel.processing_provider.outputs.targets._geometry", lambda *_: "any")
    run(good, feedback)
    assert rows(good["APPEND_TO"], "Height") == [(12.5,), (3.0,)]
    assert ("warning", "The layer points got no values of: Note.") in feedback.said


def test_a_column_that_goes_during_the_run_is_told_at_the_commit(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = f"""
import sqlite3
with sqlite3.connect({str(tmp_path / "trees.gpkg")!r}) as database:
    database.execute("ALTER TABLE trees RENAME COLUMN Tile TO Kachel")
"""
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, drop + FIND_THREE))
    with pytest.raises(QgsProcessingException, match="no field named 'Tile'"):
        run(good)
    assert rows(good["APPEND_TO"], "JobId") == []
    left = {"FIELD_MAP": {"Tile": "Kachel"}}
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, FIND_THREE))
    run({**good, **left})
    assert rows(good["APPEND_TO"], "Kachel") == [(0,), (0,), (1,)]


def test_outlines_in_parts_need_a_layer_of_parts(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_parts = FIND_THREE.replace(
        "[square(500010, 5599950), ",
        "[struct.pack('<BII', 1, 6, 2) + square(500010, 5599950) + square(500050, 5599950), ",
    ).replace('"tiles": 2', '"tiles": 2, "geometry": "polygon"')
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, two_parts))
    with pytest.raises(QgsProcessingException, match=r"has 2 parts, and the layer 'trees'.*one part"):
        run(good)
    assert rows(good["APPEND_TO"], "JobId") == []
    good["APPEND_TO"] = make_layer(tmp_path / "parts.gpkg", "MultiPolygon")
    assert run(good)["OBJECT_COUNT"] == 3
    assert len(rows(good["APPEND_TO"], "JobId")) == 3


def test_an_edit_session_that_holds_the_file_is_told_and_loses_nothing(
    good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    QgsProject.instance().setTransactionMode(Qgis.TransactionMode.AutomaticGroups)
    run(good)
    layer = in_project(good["APPEND_TO"])
    assert layer.startEditing()
    layer.changeAttributeValue(next(layer.getFeatures()).id(), layer.fields().indexOf("Class"), "Date palm")
    monkeypatch.setattr(writers, "_PATIENCE", 0.3)
    with pytest.raises(QgsProcessingException, match=r"another program, or an edit session in QGIS.*Save or discard"):
        run({**good, "APPEND_TO": layer.id()})
    assert layer.commitChanges()
    run({**good, "APPEND_TO": layer.id()})
    assert sorted(f["Class"] for f in layer.getFeatures()) == ["Date palm", "House", "House", "Palm", "Palm", "Palm"]


def run_in_thread(parameters: dict[str, Any]) -> dict[str, Any]:
    """Run as a dialog does: the work in a thread, what comes after it here."""
    where, feedback, ends, results = context(), Listener(), [], {}
    task = QgsProcessingAlgRunnerTask(algorithm(), parameters, where, feedback)
    task.executed.connect(lambda is_good, found: results.update(found))
    thread = threading.Thread(target=lambda: ends.append(task.run()))
    thread.start()
    while thread.is_alive():
        QCoreApplication.processEvents()
    assert ends == [True], feedback.said
    task.finished(True)
    return results


def test_a_run_in_a_thread_of_its_own_appends_and_the_project_shows_it(good: dict[str, Any]) -> None:
    layer, changes = in_project(good["APPEND_TO"]), []
    layer.dataProvider().dataChanged.connect(lambda: changes.append(1))
    assert run_in_thread({**good, "APPEND_TO": layer.id()})["OBJECT_COUNT"] == 3
    assert layer.featureCount() == 3
    assert changes
