"""RequestRun: the run of `kestrel:detectobjects` that a request of ArcGIS's operation asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qgis.core import QgsCoordinateReferenceSystem, QgsProcessingOutputLayerDefinition

from ..inference.errors import InferenceError
from ..inference.net.http import make_client
from ..inference.net.limits import FIRST_CONTACT
from ..inference.net.portal import is_at_home, portal_url
from . import parameters as keys
from .credentials import secrets_for
from .detect_objects import DetectObjectsAlgorithm
from .inputs import input_list, opened
from .parameter_reader import ParameterReader
from .rest_request.context import feature_layer
from .rest_request.sources import addresses
from .rest_request.text import read_request
from .rest_request.translate import Translation, translate
from .rest_request.values import refused
from .service_grid import grid_raster

PASSED_ON = (keys.AUTHENTICATION, keys.PORTAL, keys.MAX_TILES, keys.PLAN_ONLY, keys.ALLOW_PACKAGE_CODE)
"""Parameters of `kestrel:detectobjects` for what the operation has no words for."""


@dataclass(frozen=True)
class RequestRun:
    """The run of `kestrel:detectobjects` that a request asks for.

    Attributes:
        algorithm: The one that does it.
        parameters: Its parameters.
        translation: What the request means.
        addresses: Where each of the request's members is looked up.
        portal: Address of the portal.
    """

    algorithm: DetectObjectsAlgorithm
    parameters: dict[str, Any]
    translation: Translation
    addresses: Mapping[str, tuple[str, ...]]
    portal: str


def request_run(text: str, reader: ParameterReader) -> RequestRun:
    """Translate a request.

    Args:
        text: The request.
        reader: The parameters beside it.

    Raises:
        InferenceError: the request cannot be read, or asks for what cannot be done.
    """
    translation = translate(read_request(text))
    for member, reference in translation.crs.items():
        if not QgsCoordinateReferenceSystem(reference).isValid():
            raise refused(member, "names a coordinate reference system that QGIS does not know", "Check its number.")
    values = {**translation.values, **{key: reader.parameters[key] for key in PASSED_ON if reader.is_given(key)}}
    if reader.is_given(keys.OUTPUT):
        values[keys.OUTPUT] = reader.parameters[keys.OUTPUT]
    elif keys.OUTPUT in values:
        # A window shows what was made; without a window nothing is loaded.
        values[keys.OUTPUT] = QgsProcessingOutputLayerDefinition(values[keys.OUTPUT], reader.context.project())
    elif keys.OUTPUT_SERVICE not in values:
        raise refused("outputObjects", "is missing", 'Write for example {"uri": "/data/trees.gpkg"}, or set OUTPUT.')
    if reader.is_given(keys.AUTHENTICATION):
        values[keys.AT_PORTAL_ALONE] = True
    portal = portal_url(str(values.get(keys.PORTAL) or ""))
    places = addresses(values, portal)
    values.update(service_layers(values, translation))
    algorithm = DetectObjectsAlgorithm()
    algorithm.initAlgorithm()
    values = algorithm.preprocessParameters(values)
    if translation.cell_factor is not None:
        own = _cell_size(ParameterReader(algorithm, values, reader.context))
        values[keys.CELL_SIZE] = translation.cell_factor * own
    return RequestRun(algorithm, values, translation, places, portal)


def service_layers(values: Mapping[str, Any], translation: Translation) -> dict[str, str]:
    """Give the layers of services that the context names.

    They sign in only where the portal is: a request may come from somebody else, and nobody else is shown who asks.

    Args:
        values: Parameters of `kestrel:detectobjects`.
        translation: The request.
    """
    authcfg = str(values.get(keys.AUTHENTICATION) or "")
    portal = portal_url(str(values.get(keys.PORTAL) or ""))
    layers = {}
    for key, (member, url) in translation.services.items():
        signs = authcfg if is_at_home(portal, url) else ""
        if key == keys.MASK:
            layers[key] = feature_layer(url, signs)
        else:
            with _told_of(member):
                layers[key] = grid_raster(url, make_client(secrets_for([(signs, url)]), limits=FIRST_CONTACT))
    return layers


@contextmanager
def _told_of(member: str) -> Iterator[None]:
    """Let what is wrong with a server begin with the member that names it."""
    try:
        yield
    except InferenceError as error:
        error.message = f"The request's member '{member}': {error.message}"
        raise


def _cell_size(reader: ParameterReader) -> float:
    inputs = input_list(reader)
    if not inputs.is_quick:
        raise refused(
            "context.cellSize.factor",
            "cannot be used with rasters on a server: how large their cells are is not known before the run",
            "Give the size as a number.",
        )
    return opened(inputs, reader.context.transformContext()).whole.cell_size
