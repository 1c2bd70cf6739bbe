"""What signs in to the servers of a run's rasters, collected in the thread that QGIS's authentication store wants."""

from __future__ import annotations

from ..inference.secrets import Secrets
from .credentials import secrets_for
from .gdal_source import gdal_source
from .inputs import InputList


def take_secrets(inputs: InputList) -> Secrets:
    """Collect what the layers of a run say; call it in the main thread.

    A raster on a web server is signed for by its own layer's authentication configuration alone: the parameter
    AUTHENTICATION belongs to portals and services, and must not go to whoever has a file.

    Raises:
        RasterOpenError: a source cannot be handed on.
        CredentialError: a configuration cannot be used.
    """
    sources = [gdal_source(found) if isinstance(found, str) else found.source for found in inputs.sources]
    given = [source for source in sources if source is not None]
    wanted = [(source.authcfg, source.address or source.store) for source in given if source.address or source.store]
    gdal = {source.connection: dict(source.secret) for source in given if source.secret}
    return secrets_for(wanted, gdal) if wanted or gdal else Secrets()
