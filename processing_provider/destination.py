"""The output file: whether it can be written at all, one run at a time, and what goes when it was not finished."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from osgeo import gdal
from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsFeature,
    QgsFeatureSink,
    QgsGeometry,
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingOutputLayerDefinition,
    QgsProcessingUtils,
    QgsProject,
    QgsProviderRegistry,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QLockFile

from ..inference.errors import OutputError
from ..inference.jobs import CACHE_VARIABLE, jobs_folder
from .feature_sink import FieldNames, check_written, output_fields

_PROVIDER = re.compile(r"(.{3,}?):")
"""How QGIS tells `postgres:...` from a file; a drive's letter is shorter."""

_DRIVERS = {".parquet": "Parquet", ".geoparquet": "Parquet", ".feather": "Arrow", ".arrow": "Arrow"}
"""GDAL's drivers that not every build has, by suffix."""


def output_file(value: Any) -> Path | None:
    """Give the file that the value of a sink parameter names, or None for a database, a service or a temporary layer.

    Raises:
        OutputError: QGIS would take the name of the file for something else.
    """
    if isinstance(value, QgsProcessingOutputLayerDefinition):
        value = value.sink.staticValue()
    if not isinstance(value, str) or value in ("", QgsProcessing.TEMPORARY_OUTPUT):
        return None
    provider = _PROVIDER.match(value)
    if provider is None:
        return Path(value).absolute()
    if provider[1] not in ("postgis", *QgsProviderRegistry.instance().providerList()):
        raise OutputError(
            f"The output '{value}' holds a colon, before which QGIS looks for the name of a data provider.",
            hint="Choose a file name without a colon.",
        )
    return None


def check_destination(path: Path, names: FieldNames, project: QgsProject | None) -> Path:
    """Try the output's folder and format, so that hours of work do not end before a closed door.

    Args:
        path: What was asked for.
        names: The names of its fields that were chosen.
        project: Its layers must not be editing the file.

    Returns:
        The file that QGIS is going to write: it adds an extension where it knows none.

    Raises:
        OutputError: the file cannot be written there, or not in that format, or its layer is being edited.
    """
    _check_driver(path.suffix)
    if path.is_dir():
        raise OutputError(f"The output '{path}' is a folder.", hint="Add the name of a file, such as objects.gpkg.")
    _check_folder(path.parent)
    path = path.with_name(path.stem + _working_suffix(path.suffix, names))
    if path.is_dir():
        raise OutputError(f"The output '{path}' is a folder.", hint="Choose another name.")
    for layer in project.mapLayers().values() if project else ():
        is_same = Path(layer.source().split("|")[0]) == path
        if is_same and isinstance(layer, QgsVectorLayer) and layer.isEditable():
            raise OutputError(
                f"The output file belongs to the layer '{layer.name()}', which is being edited.",
                hint="Save or discard its edits first, or choose another file.",
            )
    return path


def _check_driver(suffix: str) -> None:
    """Refuse formats that this QGIS's GDAL lacks: QGIS would write a GeoPackage with two suffixes instead."""
    name = _DRIVERS.get(suffix.lower(), "")
    if name and gdal.GetDriverByName(name) is None:
        raise OutputError(
            f"A file '*{suffix}' needs GDAL's driver '{name}', which this QGIS's GDAL {gdal.__version__} lacks.",
            hint="Choose another format, such as GeoPackage (.gpkg) or FlatGeobuf (.fgb).",
        )


def _check_folder(folder: Path) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".kestrel-"):
            pass
    except OSError as error:
        raise OutputError(
            f"The output folder '{folder}' cannot be written: {error.strerror or error}.", hint="Choose another folder."
        ) from error


@lru_cache
def _working_suffix(suffix: str, names: FieldNames) -> str:
    """Write one polygon to a file with that suffix, as the run will; give the suffix that the file got.

    Raises:
        OutputError: the format does not take it.
    """
    # The driver's own complaints would go to the terminal; what matters of them is in the exception.
    fields = output_fields(names)
    folder = tempfile.mkdtemp(prefix="kestrel-")
    start = str(Path(folder) / "probe")
    gdal.PushErrorHandler("CPLQuietErrorHandler")
    try:
        sink, written = QgsProcessingUtils.createFeatureSink(
            start + suffix, QgsProcessingContext(), fields, Qgis.WkbType.Polygon, QgsCoordinateReferenceSystem()
        )
        feature = QgsFeature(fields)
        feature.setGeometry(QgsGeometry.fromWkt("Polygon ((0 0, 0 1, 1 1, 0 0))"))
        sink.addFeatures([feature], QgsFeatureSink.Flag.FastInsert)
        # The file is complete only when nobody holds the sink any more.
        del sink
        check_written(written, 1)
        return written[len(start) :]
    except (QgsProcessingException, OutputError) as error:
        raise OutputError(
            f"A file '*{suffix}' cannot hold polygons with the fields of the result.",
            hint="Choose another format, such as GeoPackage (.gpkg).",
        ) from error
    finally:
        gdal.PopErrorHandler()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def sole_writer(path: Path | None) -> Iterator[None]:
    """Keep other runs away from an output file for as long as the context lasts.

    Args:
        path: The file; None: there is nothing to keep.

    Raises:
        OutputError: another run has it.
    """
    if path is None:
        yield
        return
    lock = QLockFile(str(_lock_path(path)))
    # However long a run takes, its lock does not age; Qt still sees when the process that held it is gone.
    lock.setStaleLockTime(0)
    if not lock.tryLock(0):
        raise _taken(path, lock)
    try:
        yield
    finally:
        lock.unlock()


def _lock_path(path: Path) -> Path:
    folder = jobs_folder().with_name("outputs")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _no_lock(folder, error.strerror or str(error)) from error
    name = os.path.normcase(os.path.realpath(path))
    return folder / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.lock"


def _taken(path: Path, lock: QLockFile) -> OutputError:
    if lock.error() != QLockFile.LockError.LockFailedError:
        return _no_lock(_lock_path(path).parent, "permission denied or no room")
    process = lock.getLockInfo()[1]
    return OutputError(
        f"Another run, in the process {process}, is making the output '{path}'.",
        hint="Wait until that run has ended, stop it, or choose another file.",
    )


def _no_lock(folder: Path, reason: str) -> OutputError:
    return OutputError(
        f"The folder {folder} cannot be used: {reason}.",
        hint=f"Set the environment variable {CACHE_VARIABLE} to a folder that you may write to.",
    )


class HalfOutput:
    """The output file while it is written; it goes when it cannot be finished, if it is this run's.

    Args:
        path: The file, before anything is written; None: the output is no file, and is left alone.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._was_there = path is not None and path.exists()
        self._created: tuple[int, int] | None = None

    def note_created(self) -> None:
        """Remember the file that the sink has just made."""
        self._created = self._identity()

    def remove(self) -> None:
        """Remove the file, unless somebody else made it."""
        is_ours = self._identity() == self._created if self._created else not self._was_there
        if self._path is not None and is_ours:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        return (status.st_dev, status.st_ino) if status is not None else None
