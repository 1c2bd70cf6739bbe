"""The job store: one private folder a job, in the user's cache, never beside the output (which may be on a network).

    <cache>/kestrel/jobs/<job id>/
        job.json            the DetectionJob
        journal.sqlite      what has been found so far (journal.py)
        worker.log          what the worker and its libraries wrote to stderr
        objects-*.npz       finished objects on their way to QGIS (object_file.py)
        work-*/             the worker's own empty working directory, while it runs

QGIS imports this module: it needs nothing but the standard library.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DiskFullError, JobError, OutputError
from .job import DetectionJob, job_from_json

JOB_FILE = "job.json"
JOURNAL_FILE = "journal.sqlite"
LOG_FILE = "worker.log"
OBJECTS_PATTERN = "objects-*.npz"
WORK_PREFIX = "work-"

CACHE_VARIABLE = "KESTREL_CACHE"
"""Environment variable that moves the cache, for tests and for administrators."""

# No dot in front, no separator, no device name with a colon: the id becomes a folder's name on every system.
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")
_DAY = 86400.0


def cache_folder() -> Path:
    """Give Kestrel's folder in the user's cache; it need not exist yet."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).absolute()
    home = Path.home()
    if sys.platform == "win32":
        # Local, not roaming: journals and environments hold gigabytes.
        cache = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        cache = home / "Library" / "Caches"
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return cache / "kestrel"


def jobs_folder() -> Path:
    """Give the folder that holds the job folders; it need not exist yet."""
    return cache_folder() / "jobs"


def create_job_folder(job_id: str) -> Path:
    """Make the folder of a new job, readable by this user only.

    Raises:
        JobError: the id cannot be a folder's name, or is taken.
        OutputError: the cache cannot be written.
    """
    if not _JOB_ID.fullmatch(job_id):
        raise JobError(f"The job id '{job_id}' holds more than letters, digits, '-' and '_'.")
    folder = jobs_folder() / job_id
    with _told(folder.parent):
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            raise JobError(f"There is already a job with the id '{job_id}'.") from None
    return folder


def write_job(folder: Path, job: DetectionJob) -> None:
    """Write a job into its folder, whole or not at all.

    Raises:
        OutputError: the folder cannot be written.
    """
    part = folder / (JOB_FILE + ".part")
    with _told(folder):
        # File names that are no valid text on this system travel as lone surrogates.
        part.write_bytes(job.to_json().encode("utf-8", "surrogatepass"))
        part.replace(folder / JOB_FILE)


def read_job(folder: Path) -> DetectionJob:
    """Read the job that `write_job` wrote.

    Raises:
        JobError: there is none, it cannot be read, or it is not a job.
    """
    try:
        text = (folder / JOB_FILE).read_bytes().decode("utf-8", "surrogatepass")
    except OSError as error:
        raise JobError(f"The job in {folder} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise JobError(f"The job file in {folder} is not text.") from error
    return job_from_json(text)


def item_folder(folder: Path, fingerprint: str) -> Path:
    """Make the folder of one of several rasters that are searched one by one.

    Args:
        folder: Begins the name.
        fingerprint: Of the run; ends it, so that a raster that has changed since begins anew, and no other does.

    Raises:
        OutputError: the folder cannot be written.
    """
    place = folder.with_name(f"{folder.name}-{fingerprint[:16]}")
    with _told(place):
        place.mkdir(mode=0o700, exist_ok=True)
    return place


def objects_path(folder: Path, number: int) -> Path:
    """Give the path of a job's batch of finished objects; names sort in the order of the numbers."""
    return folder / OBJECTS_PATTERN.replace("*", f"{number:08d}")


def remove_job_folder(folder: Path) -> None:
    """Remove a job with all that it found; what cannot be removed now is left to `remove_stale`."""
    shutil.rmtree(folder, ignore_errors=True)


def remove_stale(max_age_days: float = 30) -> list[Path]:
    """Remove the jobs in which nothing was written for a long time, and give their folders."""
    oldest = time.time() - max_age_days * _DAY
    try:
        folders = [entry for entry in jobs_folder().iterdir() if entry.is_dir() and not entry.is_symlink()]
    except OSError:
        return []
    stale = [folder for folder in folders if _last_written(folder) < oldest]
    for folder in stale:
        remove_job_folder(folder)
    return stale


def _last_written(folder: Path) -> float:
    try:
        return max(entry.lstat().st_mtime for entry in (folder, *folder.iterdir()))
    except OSError:
        # A file has just gone: somebody is at work here.
        return time.time()


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Translate the system's errors for the folder."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"The disk of {folder} is full.", hint="Make room, then start again.") from error
        raise OutputError(
            f"The folder {folder} cannot be used: {error.strerror or error}.",
            hint=f"Set the environment variable {CACHE_VARIABLE} to a folder that you may write to.",
        ) from error
