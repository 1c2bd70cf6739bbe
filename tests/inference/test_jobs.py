from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path

import pytest

from kestrel.inference import jobs
from kestrel.inference.errors import DiskFullError, JobError, OutputError
from kestrel.inference.job import DetectionJob, RasterItem

posix_only = pytest.mark.skipif(os.name != "posix", reason="POSIX file modes")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KESTREL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def a_job(job_id: str = "job-1") -> DetectionJob:
    return DetectionJob(
        job_id,
        rasters=(RasterItem("gdal", "/data/Bäume/ortho 1.tif"),),
        model="/models/trees.dlpk",
        arguments={"threshold": 0.5},
        objects_of_interest=("Tree",),
        extent=(0.0, 1.5, 20.0, 30.25),
    )


def test_the_cache_can_be_moved_by_the_environment(cache: Path) -> None:
    assert jobs.jobs_folder() == cache / "jobs"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the XDG rule")
def test_without_that_the_users_own_cache_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KESTREL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert jobs.jobs_folder() == tmp_path / "xdg" / "kestrel" / "jobs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert jobs.jobs_folder() == tmp_path / "home" / ".cache" / "kestrel" / "jobs"


@posix_only
def test_a_job_folder_is_private() -> None:
    folder = jobs.create_job_folder("job-1")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_job_id_is_used_once() -> None:
    jobs.create_job_folder("job-1")
    with pytest.raises(JobError, match="already a job"):
        jobs.create_job_folder("job-1")


@posix_only
def test_a_planted_link_is_not_followed(cache: Path, tmp_path: Path) -> None:
    (cache / "jobs").mkdir(parents=True)
    (cache / "jobs" / "job-1").symlink_to(tmp_path)
    with pytest.raises(JobError, match="already a job"):
        jobs.create_job_folder("job-1")


@pytest.mark.parametrize("job_id", ["", ".", "..", "../x", "a/b", "a\\b", "C:x", "-x", "x\n", "x" * 81, "é"])
def test_an_id_that_is_no_plain_name_is_refused(job_id: str) -> None:
    with pytest.raises(JobError):
        jobs.create_job_folder(job_id)


@pytest.mark.parametrize("raster", ["/data/Bäume/ortho 1.tif", "/data/\udce4.tif", '/vsizip/"a".zip/b.tif'])
def test_a_job_comes_back_as_it_was_written(raster: str) -> None:
    folder = jobs.create_job_folder("job-1")
    job = DetectionJob("job-1", rasters=(RasterItem("gdal", raster),), model="m.dlpk", extent=(0.0, 1.5, 20.0, 30.25))
    jobs.write_job(folder, job)
    assert jobs.read_job(folder) == job
    assert [entry.name for entry in folder.iterdir()] == ["job.json"]


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", b"[]", b'{"job_id": "x"}'])
def test_what_is_no_job_is_refused(content: bytes | None) -> None:
    folder = jobs.create_job_folder("job-1")
    if content is not None:
        (folder / jobs.JOB_FILE).write_bytes(content)
    with pytest.raises(JobError):
        jobs.read_job(folder)


@posix_only
def test_a_cache_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KESTREL_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot be used") as caught:
        jobs.create_job_folder("job-1")
    assert "KESTREL_CACHE" in caught.value.hint


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_as_such() -> None:
    folder = jobs.create_job_folder("job-1")
    (folder / "job.json.part").symlink_to("/dev/full")
    with pytest.raises(DiskFullError):
        jobs.write_job(folder, a_job())


def test_batches_of_objects_sort_in_their_order(tmp_path: Path) -> None:
    paths = [jobs.objects_path(tmp_path, number) for number in (0, 9, 10, 1000)]
    assert sorted(paths) == paths
    assert all(path.match(jobs.OBJECTS_PATTERN) and path.parent == tmp_path for path in paths)


def test_only_jobs_untouched_for_long_are_stale() -> None:
    old, resumed, new = (jobs.create_job_folder(name) for name in ("old", "resumed", "new"))
    long_ago = time.time() - 31 * 86400
    (resumed / jobs.LOG_FILE).write_text("at work")
    for folder in (old, resumed):
        jobs.write_job(folder, a_job(folder.name))
        os.utime(folder / jobs.JOB_FILE, (long_ago, long_ago))
        os.utime(folder, (long_ago, long_ago))
    assert jobs.remove_stale(max_age_days=30) == [old]
    assert not old.exists() and resumed.exists() and new.exists()


@posix_only
def test_removing_does_not_follow_links(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("")
    folder = jobs.create_job_folder("job-1")
    (folder / "link").symlink_to(precious)
    jobs.remove_job_folder(folder)
    assert not folder.exists() and (precious / "file").exists()


def test_removing_what_is_gone_is_no_error(tmp_path: Path) -> None:
    jobs.remove_job_folder(tmp_path / "gone")
    assert jobs.remove_stale() == []
