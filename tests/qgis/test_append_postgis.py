"""Appending to PostGIS and writing a new table there, on a server of the test's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from qgis.core import QgsProcessingException, QgsProject, QgsVectorLayer

from kestrel.inference.jobs import jobs_folder
from kestrel.processing_provider.outputs import append
from kestrel.tests.fixtures.postgres import PASSWORD, Postgres, postgres_server
from kestrel.tests.qgis.examples import ROOT, Listener, refusal
from kestrel.tests.qgis.test_append import good, run, run_in_thread  # noqa: F401  # good is a fixture

TABLE = """
DROP TABLE IF EXISTS trees;
CREATE TABLE trees (
    fid serial PRIMARY KEY, "Class" varchar(40), confidence double precision, classvalue integer, modelname text,
    tile bigint, cutbyedge boolean, jobid text, owner text NOT NULL DEFAULT 'me', geom geometry(MultiPolygon, 25833)
);
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres_server() as running:
        yield running


@pytest.fixture
def trees(server: Postgres) -> str:
    """An empty table; its source in QGIS."""
    server.sql(TABLE)
    return server.layer("trees", srid=25833)


def into(good: dict[str, Any], source: str) -> dict[str, Any]:  # noqa: F811
    return {**good, "APPEND_TO": f"postgres://{source}"}


def test_objects_are_appended_to_a_table_with_keys_and_defaults_of_its_own(
    good: dict[str, Any], server: Postgres, trees: str  # noqa: F811
) -> None:  # fmt: skip
    results = run(into(good, trees))
    found = server.sql('SELECT fid, "Class", classvalue, cutbyedge, owner, round(ST_Area(geom)) FROM trees ORDER BY 1')
    assert found.splitlines() == ["1|Palm|4|f|me|4", "2|Palm|4|f|me|4", "3|House|7|t|me|4"]
    assert server.sql("SELECT DISTINCT jobid FROM trees") == results["JOB_ID"]


def test_the_password_is_in_no_output_and_no_folder(
    good: dict[str, Any], trees: str, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    feedback = Listener()
    results = run(into(good, trees), feedback)
    assert PASSWORD not in json.dumps(results) + repr(feedback.said)
    assert json.loads(results["OUT_OBJECTS"])["uri"].count("trees") == 1
    with monkeypatch.context() as patch:
        patch.setattr(append, "write", lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
        with pytest.raises(QgsProcessingException) as caught:
            run(into(good, trees))
    assert PASSWORD not in str(caught.value)
    files = [path for path in jobs_folder().rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []


def test_a_run_that_broke_off_after_the_commit_is_not_inserted_again(
    good: dict[str, Any], server: Postgres, trees: str, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(append, "_check_count", lambda *_: (_ for _ in ()).throw(QgsProcessingException("killed")))
        with pytest.raises(QgsProcessingException, match="killed"):
            run(into(good, trees))
    run(into(good, trees))
    assert server.sql("SELECT count(*) FROM trees") == "3"


def test_a_process_that_is_killed_before_the_commit_leaves_nothing(server: Postgres, trees: str) -> None:
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT / "build" / "plugins")!r})
os.environ["QT_QPA_PLATFORM"] = "offscreen"
from qgis.core import QgsApplication, QgsFeature, QgsGeometry, QgsVectorLayer
app = QgsApplication([], False); app.initQgis()
from kestrel.processing_provider.outputs.writers import write
layer = QgsVectorLayer({trees!r}, "trees", "postgres")
defaults = [layer.dataProvider().defaultValueClause(i) or None for i in range(layer.fields().count())]
def features():
    for number in range(3000):
        feature = QgsFeature(layer.fields())
        feature.setAttributes(defaults)
        feature["jobid"] = "killed"
        feature.setGeometry(QgsGeometry.fromWkt("MultiPolygon(((0 0, 1 0, 1 1, 0 0)))"))
        yield feature
    os.kill(os.getpid(), 9)
write(layer, "jobid", "killed", features, lambda: False)
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=60, capture_output=True)
    assert done.returncode == -9, done.stderr
    assert server.sql("SELECT count(*) FROM trees") == "0"


def test_a_row_that_the_database_refuses_undoes_all_of_them(
    good: dict[str, Any], server: Postgres, trees: str  # noqa: F811
) -> None:  # fmt: skip
    server.sql("ALTER TABLE trees ADD CHECK (confidence > 30)")
    with pytest.raises(QgsProcessingException, match=r"'trees'.*violates check constraint.*nothing of them is in it"):
        run(into(good, trees))
    assert server.sql("SELECT count(*) FROM trees") == "0"
    server.sql("ALTER TABLE trees DROP CONSTRAINT trees_confidence_check")
    assert run(into(good, trees))["OBJECT_COUNT"] == 3
    assert server.sql("SELECT count(*) FROM trees") == "3"


def test_a_field_that_must_not_be_empty_is_told_before_the_run(
    good: dict[str, Any], server: Postgres, trees: str  # noqa: F811
) -> None:  # fmt: skip
    server.sql("ALTER TABLE trees ADD COLUMN species text NOT NULL")
    assert "the field 'species' must not be empty" in refusal(into(good, trees))


def test_an_edit_session_on_the_table_keeps_its_edits(
    good: dict[str, Any], server: Postgres, trees: str  # noqa: F811
) -> None:  # fmt: skip
    run(into(good, trees))
    layer = QgsVectorLayer(trees, "trees", "postgres")
    QgsProject.instance().addMapLayer(layer)
    layer.startEditing()
    first = next(layer.getFeatures())
    layer.changeAttributeValue(first.id(), layer.fields().indexOf("Class"), "Date palm")
    run_in_thread({**good, "APPEND_TO": layer.id()})
    assert [feature["Class"] for feature in layer.getFeatures()].count("Date palm") == 1
    assert layer.featureCount() == 6
    assert layer.commitChanges()
    assert server.sql("SELECT count(*) FROM trees WHERE \"Class\" = 'Date palm'") == "1"


def test_a_new_table_takes_the_objects(good: dict[str, Any], server: Postgres) -> None:  # noqa: F811
    server.sql("DROP TABLE IF EXISTS found")
    del good["APPEND_TO"]
    results = run({**good, "OUTPUT": f'postgis:{server.uri} table="public"."found" (geom)'})
    assert server.sql('SELECT count(*), count(DISTINCT "JobId"), ST_SRID(min(geom)) FROM found') == "3|1|32633"
    assert PASSWORD not in json.dumps({key: value for key, value in results.items() if key != "OUTPUT"})


def test_a_new_table_in_the_place_of_the_one_that_is_appended_to_is_refused(
    good: dict[str, Any], server: Postgres, trees: str  # noqa: F811
) -> None:  # fmt: skip
    made = f'postgis:{server.uri} table="public"."{{}}" (geom)'
    assert "would replace the table" in refusal({**into(good, trees), "OUTPUT": made.format("trees")})
    assert refusal({**into(good, trees), "OUTPUT": made.format("found")}) == ""
