from __future__ import annotations

import numpy as np
from affine import Affine

from kestrel.inference.detections import make_detections
from kestrel.inference.merge import Band, Found
from kestrel.inference.rasters.source import RasterInfo
from kestrel.inference.results import _inside

INFO = RasterInfo(100, 50, 1, "uint8", Affine.identity(), "")


def test_boxes_end_with_the_raster_and_what_lies_beside_it_is_dropped() -> None:
    boxes = [[-5, -6, 10, 10], [90, 40, 104, 60], [20, 20, 30, 30], [101, 0, 110, 10], [0, -9, 10, -1]]
    n = len(boxes)
    found = Found(
        make_detections(boxes, np.ones(n), np.zeros(n)), np.zeros(n, np.int64), np.zeros(n, np.int8), np.ones(n, bool)
    )
    (band,) = _inside(iter([Band(found, 12.0)]), INFO)
    expected = [[0, 0, 10, 10], [90, 40, 100, 50], [20, 20, 30, 30]]
    assert (expected, 12.0) == (band.found.detections.boxes.tolist(), band.frontier)
