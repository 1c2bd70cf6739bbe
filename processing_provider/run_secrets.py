"""What signs in to where the rasters of GDAL lie that a run reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .gdal_source import GdalSource, gdal_source
from .inputs import InputList
from .raster_source import SourceRaster


def gdal_sources(inputs: InputList) -> list[GdalSource]:
    """Give the rasters of a run that GDAL opens, those that are only named among them.

    Raises:
        RasterOpenError: a source cannot be handed on.
    """
    named = [gdal_source(source) for source in inputs.sources if isinstance(source, str)]
    layers = [source.source for source in inputs.sources if isinstance(source, SourceRaster)]
    return [*named, *(source for source in layers if source is not None)]


def sign_ins(sources: Iterable[GdalSource]) -> list[tuple[str, str]]:
    """Give the authentication configurations of rasters on servers, and the addresses that they are for.

    A raster on a web server is signed for by its own layer's configuration alone: the parameter AUTHENTICATION belongs
    to portals and services, and must not go to whoever has a file.
    """
    return [(source.authcfg, source.address or source.store) for source in sources if source.address or source.store]


def store_secrets(sources: Iterable[GdalSource]) -> Mapping[str, Mapping[str, str]]:
    """Give what signs in to object stores, see `Secrets.gdal`."""
    return {source.connection: dict(source.secret) for source in sources if source.secret}
