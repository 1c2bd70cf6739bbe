"""The output file belongs to one run, which leaves nothing half done and takes nothing that is not its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from qgis.core import QgsProcessingOutputLayerDefinition

from kestrel.inference.errors import OutputError
from kestrel.processing_provider.destination import HalfOutput, output_file, sole_writer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("KESTREL_CACHE", str(folder))
    return folder


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/x/out.gpkg", Path("/x/out.gpkg")),
        (QgsProcessingOutputLayerDefinition("/x/out.gpkg"), Path("/x/out.gpkg")),
        ("out.gpkg", Path.cwd() / "out.gpkg"),
        ("TEMPORARY_OUTPUT", None),
        ("memory:trees", None),
        ("ogr:dbname='/x/many.gpkg' table=\"trees\" (geom)", None),
        ("", None),
        (None, None),
    ],
)
def test_the_file_behind_a_value_is_found(value: object, expected: Path | None) -> None:
    assert output_file(value) == expected


def test_a_second_run_to_the_same_file_is_refused_and_names_the_first(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with sole_writer(tmp_path / "out.gpkg"):
        with pytest.raises(OutputError) as caught, sole_writer(tmp_path / "link" / "out.gpkg"):
            pass
        with sole_writer(tmp_path / "other.gpkg"), sole_writer(None):
            pass
    assert caught.value.message == (
        f"Another run, in the process {os.getpid()}, is making the output '{tmp_path}/link/out.gpkg'."
    )
    assert "choose another file" in caught.value.hint


def test_the_file_is_free_again_when_the_run_has_ended(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ZeroDivisionError), sole_writer(tmp_path / "out.gpkg"):
        raise ZeroDivisionError
    with sole_writer(tmp_path / "out.gpkg"):
        assert len(list((cache / "outputs").iterdir())) == 1
    assert list((cache / "outputs").iterdir()) == []


def test_a_cache_that_cannot_hold_the_lock_is_told_with_the_way_out(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(OutputError, match=r"cannot be used.*KESTREL_CACHE"), sole_writer(tmp_path / "out.gpkg"):
        pass


def test_a_half_written_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "half.gpkg"
    path.write_bytes(b"old")
    half = HalfOutput(path)
    path.unlink()
    path.write_bytes(b"half")
    half.note_created()
    path.write_bytes(b"half more")
    half.remove()
    assert not path.exists()


def test_what_came_up_although_no_sink_could_be_made_is_removed(tmp_path: Path) -> None:
    half = HalfOutput(tmp_path / "half.gpkg")
    (tmp_path / "half.gpkg").write_bytes(b"")
    half.remove()
    assert not (tmp_path / "half.gpkg").exists()


def test_a_file_that_the_run_did_not_make_is_left_alone(tmp_path: Path) -> None:
    before = tmp_path / "before.gpkg"
    before.write_bytes(b"before")
    HalfOutput(before).remove()
    replaced = tmp_path / "replaced.gpkg"
    half = HalfOutput(replaced)
    replaced.write_bytes(b"half")
    half.note_created()
    (tmp_path / "winner").write_bytes(b"another's")
    (tmp_path / "winner").replace(replaced)
    half.remove()
    HalfOutput(None).remove()
    assert (before.read_bytes(), replaced.read_bytes()) == (b"before", b"another's")
