from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kestrel.inference.errors import ServiceError
from kestrel.inference.job import RasterItem
from kestrel.inference.net.catalog import catalog_items
from kestrel.inference.net.http import HttpClient
from kestrel.inference.net.limits import HttpLimits
from kestrel.inference.rasters.image_service import ImageServicePixels
from kestrel.inference.rasters.source import GridRequest
from kestrel.inference.tiling import Window
from kestrel.tests.fixtures.rasters import noise
from kestrel.tests.fixtures.servers.image_server import image_server
from kestrel.tests.fixtures.servers.pixels import Image

WHOLE = Image(np.zeros((3, 60, 100), "uint8"), (500_000.0, 5_400_000.0), (0.5, 0.5))
PARTS = {
    number: replace(WHOLE, pixels=noise(3, 60, 40, seed=number), corner=(500_000.0 + 10 * number, 5_400_000.0))
    for number in range(4)
}


@pytest.mark.parametrize("page", [1, 3, 1000])
def test_each_item_of_a_mosaic_is_read_by_itself(page: int) -> None:
    client = HttpClient(limits=HttpLimits(patience=1))
    with image_server(WHOLE, items=PARTS, page=page) as arcgis:
        items = catalog_items(client, arcgis.image)
        assert [(number, f"item {number}") for number in range(4)] == [(item.id, item.name) for item in items]
        for item in items:
            raster = RasterItem("image_service", arcgis.image, item.name, item.options())
            source = ImageServicePixels(raster, (0, 1, 2), GridRequest(), client)
            pixels, _ = source.read(Window(0, 0, source.info.width, source.info.height))
            source.close()
            assert np.array_equal(PARTS[item.id].pixels, pixels)


def test_a_service_without_items_says_so() -> None:
    with image_server(WHOLE) as arcgis, pytest.raises(ServiceError, match="names no rasters"):
        catalog_items(HttpClient(), arcgis.image)
