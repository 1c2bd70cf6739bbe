"""What signs in to the servers of a run, collected in the thread that QGIS's authentication store wants."""

from __future__ import annotations

from dataclasses import replace

from ..inference.net.portal import Reference
from ..inference.secrets import Secrets
from .credentials import secrets_for
from .gdal_source import gdal_source
from .inputs import InputList
from .parameter_reader import ParameterReader
from .raster_source import SourceRaster


def signed_in(inputs: InputList, model: Reference | None, reader: ParameterReader) -> Secrets:
    """Collect what the servers of a run's rasters and model want to see; in the main thread.

    A raster on a web server is signed for by its own layer's authentication configuration alone: the parameter
    AUTHENTICATION belongs to portals and services, and must not go to whoever has a file.

    Args:
        inputs: The rasters.
        model: The item that is the model.
        reader: The parameters.

    Raises:
        RasterOpenError: a source cannot be handed on.
        CredentialError: an authentication configuration cannot be used.
        OutputError: the certificates cannot be written.
        ServiceError: an address is none.
    """
    wanted = [(server.authcfg or reader.sign_in_at(server.address), server.address) for server in inputs.servers]
    if model is not None:
        wanted.append((reader.sign_in_at(model.portal), model.portal))
    if inputs.servers:
        wanted += reader.portal_sign_in()
    named = [gdal_source(source) for source in inputs.sources if isinstance(source, str)]
    seen = [raster.source for raster in inputs.sources if isinstance(raster, SourceRaster)]
    files = [*named, *(source for source in seen if source is not None)]
    wanted += [(source.authcfg, source.address) for source in files if source.address]
    gdal = {source.connection: dict(source.secret) for source in files if source.secret}
    queries = {source.address: source.query for source in files if source.query}
    return replace(secrets_for(wanted, gdal), queries=queries) if wanted or gdal else Secrets()
