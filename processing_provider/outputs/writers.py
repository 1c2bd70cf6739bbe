"""Who writes into an existing layer: GDAL's OGR for files, QGIS's data provider for databases and services.

QGIS's own transactions of files run on a connection that may be the user's edit session; OGR opens one of its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from osgeo import gdal, ogr
from qgis.core import (
    QgsExpression,
    QgsFeature,
    QgsFeatureRequest,
    QgsFeatureSink,
    QgsProviderRegistry,
    QgsTransaction,
    QgsVariantUtils,
    QgsVectorDataProvider,
    QgsVectorLayer,
)

from ...inference.errors import OutputError
from ...inference.events import Canceled

_BATCH = 1000
_PATIENCE = 30.0
"""Seconds for which another program may hold a file before the run gives up."""
_BUSY_MS = "800"
_STATEMENT_SECONDS = 600
KEPT = "Then start the same run again, with this output or another: what was found is kept."

Rows = Callable[[], Iterable[QgsFeature]]
IsCancelled = Callable[[], bool]


def run_filter(job_field: str, job_id: str) -> str:
    """Give the filter of one run's objects, as QGIS and OGR read it."""
    return f"{QgsExpression.quotedColumnRef(job_field)} = {QgsExpression.quotedString(job_id)}"


def run_request(layer: QgsVectorLayer, job_field: str, job_id: str) -> QgsFeatureRequest:
    """Give the request of one run's objects, without geometry and attributes."""
    request = QgsFeatureRequest().setFilterExpression(run_filter(job_field, job_id))
    return request.setFlags(QgsFeatureRequest.Flag.NoGeometry).setSubsetOfAttributes([job_field], layer.fields())


def count_of_run(layer: QgsVectorLayer, job_field: str, job_id: str) -> int:
    """Count the objects of a run in a layer."""
    return sum(1 for _ in layer.dataProvider().getFeatures(run_request(layer, job_field, job_id)))


def write(layer: QgsVectorLayer, job_field: str, job_id: str, rows: Rows, is_cancelled: IsCancelled) -> None:
    """Put a run's features into a layer, in the place of those of the same run that are there.

    All or nothing where the format or database has transactions. Where it has none, what was written is taken away
    again when something goes wrong; a process that is killed leaves a part, which the same run replaces.

    Args:
        layer: The layer, opened for this.
        job_field: The field that holds the run's id.
        job_id: The run.
        rows: Gives the features with the layer's fields; called again when a file was locked.
        is_cancelled: Asked now and then.

    Raises:
        OutputError: the layer does not take them.
        Canceled: the user wants it to stop.
    """
    if layer.providerType() == "ogr":
        _write_file(layer, job_field, job_id, rows, is_cancelled)
    else:
        _write_provider(layer, job_field, job_id, rows, is_cancelled)


def _write_file(layer: QgsVectorLayer, job_field: str, job_id: str, rows: Rows, is_cancelled: IsCancelled) -> None:
    until, run = time.monotonic() + _PATIENCE, run_filter(job_field, job_id)
    while reason := _busy(layer, run, rows, is_cancelled):
        if is_cancelled():
            raise Canceled
        if time.monotonic() > until:
            raise _refused(layer.name(), f"another program, or an edit session in QGIS, holds the file ({reason})")
        time.sleep(0.2)


def _busy(layer: QgsVectorLayer, run: str, rows: Rows, is_cancelled: IsCancelled) -> str:
    """Write once; give what GDAL says where another program is writing to the file, '' when it is done."""
    try:
        with _quiet_gdal():
            _attempt(layer, run, rows, is_cancelled)
    except RuntimeError as error:
        if "locked" in str(error) or "busy" in str(error):
            return str(error)
        raise _refused(layer.name(), str(error)) from error
    return ""


def _attempt(layer: QgsVectorLayer, run: str, rows: Rows, is_cancelled: IsCancelled) -> None:
    dataset, table = _open_file(layer)
    has_transactions = bool(dataset.TestCapability(ogr.ODsCTransactions))
    names = [item.name() for item in layer.dataProvider().fields()]
    indices = [table.GetLayerDefn().GetFieldIndex(name) for name in names]
    if has_transactions:
        _check(dataset.StartTransaction())
    try:
        _delete_rows(table, run)
        for number, row in enumerate(rows()):
            if number % _BATCH == 0 and is_cancelled():
                raise Canceled
            _check(table.CreateFeature(_as_ogr(row, table.GetLayerDefn(), indices)))
        if has_transactions:
            _check(dataset.CommitTransaction())
        _check(table.SyncToDisk())
    except BaseException:
        if has_transactions:
            with contextlib.suppress(RuntimeError):
                dataset.RollbackTransaction()
        else:
            _delete_rows(table, run)
        raise
    finally:
        # OGR writes the rest when nobody holds the dataset any more.
        del table, dataset


def _open_file(layer: QgsVectorLayer) -> tuple[gdal.Dataset, ogr.Layer]:
    source = layer.dataProvider().dataSourceUri(True)
    parts = QgsProviderRegistry.instance().decodeUri("ogr", source)
    dataset = gdal.OpenEx(parts["path"], gdal.OF_UPDATE | gdal.OF_VECTOR, open_options=parts.get("openOptions") or [])
    if dataset is None:
        _check(1)
    name, number = parts.get("layerName"), parts.get("layerId")
    table = dataset.GetLayerByName(name) if name else dataset.GetLayer(int(number) if number is not None else 0)
    if table is None:
        raise _refused(layer.name(), "its table is gone")
    return dataset, table


def _delete_rows(table: ogr.Layer, run: str) -> None:
    _check(table.SetAttributeFilter(run))
    numbers = [feature.GetFID() for feature in iter(table.GetNextFeature, None)]
    for number in numbers:
        _check(table.DeleteFeature(number))
    _check(table.SetAttributeFilter(None))


def _as_ogr(row: QgsFeature, definition: ogr.FeatureDefn, indices: list[int]) -> ogr.Feature:
    feature = ogr.Feature(definition)
    for index, value in zip(indices, row.attributes()):
        if index >= 0 and not QgsVariantUtils.isNull(value):
            feature.SetField(index, int(value) if isinstance(value, bool) else value)
    feature.SetGeometryDirectly(ogr.CreateGeometryFromWkb(bytes(row.geometry().asWkb())))
    return feature


def _check(status: int | None) -> None:
    """Raise what OGR says through its return value, as it does through exceptions where they are switched on."""
    if status:
        raise RuntimeError(gdal.GetLastErrorMsg() or f"OGR's error {status}")


@contextmanager
def _quiet_gdal() -> Iterator[None]:
    """Keep GDAL's complaints off the terminal, and its waits short; both count for this thread only."""
    before = gdal.GetThreadLocalConfigOption("OGR_SQLITE_BUSY_TIMEOUT")
    gdal.PushErrorHandler("CPLQuietErrorHandler")
    gdal.SetThreadLocalConfigOption("OGR_SQLITE_BUSY_TIMEOUT", _BUSY_MS)
    try:
        yield
    finally:
        gdal.SetThreadLocalConfigOption("OGR_SQLITE_BUSY_TIMEOUT", before)
        gdal.PopErrorHandler()


def _write_provider(layer: QgsVectorLayer, job_field: str, job_id: str, rows: Rows, is_cancelled: IsCancelled) -> None:
    transaction = QgsTransaction.create({layer}) if QgsTransaction.supportsTransaction(layer) else None
    if transaction is not None:
        _told(layer, transaction.begin(_STATEMENT_SECONDS))
    try:
        delete_run(layer, job_field, job_id)
        waiting = iter(rows())
        while batch := list(islice(waiting, _BATCH)):
            if is_cancelled():
                raise Canceled
            is_good, _ = layer.dataProvider().addFeatures(batch, QgsFeatureSink.Flag.FastInsert)
            if not is_good:
                raise _refused(layer.name(), layer.dataProvider().lastError())
        if transaction is not None:
            _told(layer, transaction.commit())
    except BaseException:
        if transaction is not None:
            transaction.rollback()
        else:
            with contextlib.suppress(OutputError):
                delete_run(layer, job_field, job_id)
        raise


def delete_run(layer: QgsVectorLayer, job_field: str, job_id: str) -> int:
    """Delete a run's objects; give how many they were.

    Raises:
        OutputError: the layer does not let go of them.
    """
    provider = layer.dataProvider()
    numbers = [feature.id() for feature in provider.getFeatures(run_request(layer, job_field, job_id))]
    if not numbers:
        return 0
    can_delete = provider.capabilities() & QgsVectorDataProvider.Capability.DeleteFeatures
    if not can_delete or not provider.deleteFeatures(numbers):
        raise OutputError(
            f"The {len(numbers)} objects of the run {job_id} cannot be deleted from the layer '{layer.name()}': "
            f"{(provider.lastError() if can_delete else '') or 'its format or the rights on it do not allow it'}.",
            hint="Delete them with another program, or choose another layer.",
        )
    return len(numbers)


def _told(layer: QgsVectorLayer, answer: Any) -> None:
    is_good, reason = answer if isinstance(answer, tuple) else (answer, "")
    if not is_good:
        raise _refused(layer.name(), reason)


def _refused(layer_name: str, reason: str) -> OutputError:
    return OutputError(
        f"The objects could not be written to the layer '{layer_name}': {reason.strip() or 'no reason was given'}; "
        "nothing of them is in it.",
        hint="Check that the disk has room and that no other program holds the layer. Save or discard edits of it. "
        f"{KEPT}",
    )
