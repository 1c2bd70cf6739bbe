"""The mask polygons -> one MultiPolygon in the raster's coordinate reference system."""

from __future__ import annotations

from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransformContext,
    QgsFeatureRequest,
    QgsGeometry,
    QgsProcessingFeatureSource,
)

from ..inference.errors import JobError


def dissolve(
    source: QgsProcessingFeatureSource, crs: QgsCoordinateReferenceSystem, transforms: QgsCoordinateTransformContext
) -> QgsGeometry:
    """Give the union of a layer's polygons: valid, two-dimensional, in another coordinate reference system.

    Raises:
        JobError: there is no area in them, or they cannot be converted.
    """
    lost: list[int] = []
    request = QgsFeatureRequest().setNoAttributes().setDestinationCrs(crs, transforms)
    # What QGIS cannot convert comes without a geometry, or with one that lies nowhere.
    request.setTransformErrorCallback(lambda feature: lost.append(feature.id()))
    features = [feature for feature in source.getFeatures(request) if feature.hasGeometry()]
    lost += [feature.id() for feature in features if not feature.geometry().boundingBox().isFinite()]
    parts = [_flat(feature.geometry()) for feature in features] if not lost else []
    if lost:
        raise JobError(
            f"{len(lost)} polygons of the mask cannot be converted to {crs.userFriendlyIdentifier()}, the coordinate "
            f"reference system of the raster; the first has the id {lost[0]}.",
            hint="Cut the mask to where the raster lies, or save it in the raster's coordinate reference system.",
        )
    merged = QgsGeometry.unaryUnion(parts) if parts else QgsGeometry()
    merged.convertGeometryCollectionToSubclass(Qgis.GeometryType.Polygon)
    merged.convertToMultiType()
    if merged.isEmpty() or not merged.area() > 0:
        raise JobError("The mask holds no polygon.", hint="Choose another layer, or leave the mask empty.")
    return merged


def _flat(geometry: QgsGeometry) -> QgsGeometry:
    """Give a valid geometry of straight lines without heights or measures."""
    straight = QgsGeometry(geometry.constGet().segmentize())
    abstract = straight.get()
    abstract.dropZValue()
    abstract.dropMValue()
    return straight.makeValid()
