"""One run of a job in the worker: its folder, going on where an equal run stopped, and clearing up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from qgis.core import QgsProcessingFeedback
from qgis.PyQt.QtCore import QLockFile

from ..inference.errors import TOO_LARGE, DiskFullError, JobError, OutputError
from ..inference.events import Done, WasCanceled
from ..inference.job import DetectionJob
from ..inference.jobs import (
    JOB_FILE,
    JOURNAL_FILE,
    LOG_FILE,
    create_job_folder,
    jobs_folder,
    read_job,
    remove_job_folder,
    remove_stale,
    write_job,
)
from ..inference.net.ledger import LEDGER_FILE
from ..inference.secrets import Secrets
from ..inference.worker.client import run_worker
from .feedback import EventListener, pump_events
from .pixel_server import PixelServer
from .text import tr

_LOCK_FILE = "in-use.lock"


@dataclass
class JobRun:
    """A job and the folder that it owns.

    Attributes:
        job: The job; the id is the one of the run that it goes on with, as long as it does.
        folder: Its folder.
        is_resumed: Whether the folder holds what an earlier run found.
    """

    job: DetectionJob
    folder: Path
    is_resumed: bool
    _lock: QLockFile
    _new_id: str

    @property
    def log(self) -> Path:
        """Give the worker's log file."""
        return self.folder / LOG_FILE

    def execute(
        self,
        interpreter: str,
        listener: EventListener,
        feedback: QgsProcessingFeedback,
        pixels: PixelServer,
        secrets: Secrets,
    ) -> Done | WasCanceled:
        """Run the worker.

        What an earlier run found is given up when its journal cannot be used: the raster or the plugin has changed
        since, or the file is damaged.

        Raises:
            InferenceError: what went wrong; the folder is kept.
        """
        if self.is_resumed:
            feedback.pushInfo(tr("Going on with the unfinished run {job}.").format(job=self.job.job_id))
        try:
            return self._run(interpreter, listener, feedback, pixels, secrets)
        except (JobError, OutputError) as error:
            # A full disk is full for the next run, too; and without a journal nothing was found that could not fit.
            is_same_next = isinstance(error, DiskFullError) or error.context.get("reason") == TOO_LARGE
            if is_same_next or not (self.is_resumed and self._has_journal()):
                raise
        feedback.pushInfo(tr("What that run found does not fit any more; starting anew."))
        if (self.folder / LEDGER_FILE).exists():
            told = tr("The run {job} had begun to publish: delete its objects there, they carry its name in JobId.")
            feedback.pushWarning(told.format(job=self.job.job_id))
        listener.object_files.clear()
        listener.items.clear()
        self._start_anew()
        return self._run(interpreter, listener, feedback, pixels, secrets)

    def _run(
        self,
        interpreter: str,
        listener: EventListener,
        feedback: QgsProcessingFeedback,
        pixels: PixelServer,
        secrets: Secrets,
    ) -> Done | WasCanceled:
        return run_worker(
            interpreter, self.folder, listener, feedback.isCanceled, idle=pump_events, pixels=pixels, secrets=secrets
        )

    def _has_journal(self) -> bool:
        return any(self.folder.rglob(JOURNAL_FILE))

    def _start_anew(self) -> None:
        self.remove()
        # A name of its own: the old folder may be one that cannot be removed.
        self.job = replace(self.job, job_id=self._new_id)
        self.folder, self._lock = _new_folder(self.job)
        self.is_resumed = False

    def release(self) -> None:
        """Keep the folder, for a look at the log or for a run that goes on from here."""
        self._lock.unlock()

    def remove(self) -> None:
        """Remove the folder."""
        self._lock.unlock()
        remove_job_folder(self.folder)


def start_run(job: DetectionJob) -> JobRun:
    """Take the folder of an equal run that did not finish, or make a new one.

    Raises:
        InferenceError: the cache cannot be written.
    """
    remove_stale()
    for folder, found in _unfinished():
        lock = _lock_of(folder)
        # A run that was refused as too large goes on when the limit is raised.
        if replace(found, job_id=job.job_id, max_tiles=job.max_tiles) == job and lock.tryLock(0):
            found = replace(found, max_tiles=job.max_tiles)
            write_job(folder, found)
            return JobRun(found, folder, True, lock, job.job_id)
    folder, lock = _new_folder(job)
    return JobRun(job, folder, False, lock, job.job_id)


def _new_folder(job: DetectionJob) -> tuple[Path, QLockFile]:
    folder = create_job_folder(job.job_id)
    lock = _lock_of(folder)
    lock.tryLock(0)
    write_job(folder, job)
    return folder, lock


def _lock_of(folder: Path) -> QLockFile:
    lock = QLockFile(str(folder / _LOCK_FILE))
    # However long a run takes, its lock does not age; Qt still sees when the process that held it is gone.
    lock.setStaleLockTime(0)
    return lock


def _unfinished() -> Iterator[tuple[Path, DetectionJob]]:
    """Give the jobs in the store, newest first."""
    for path in sorted(jobs_folder().glob(f"*/{JOB_FILE}"), reverse=True):
        job = _job_in(path.parent)
        if job is not None:
            yield path.parent, job


def _job_in(folder: Path) -> DetectionJob | None:
    try:
        return read_job(folder)
    except JobError:
        return None
