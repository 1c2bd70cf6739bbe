"""qgis_process on a raster behind http: a run that is killed goes on, as on a file."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from kestrel.tests.fixtures.servers.range_server import serving_apart
from kestrel.tests.system.test_faults import Run, _committed, _is_alive, _objects

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")


SMALL = "tile_size 256;padding 64"


@pytest.mark.slow
def test_a_killed_run_on_a_remote_raster_goes_on_where_it_ended(mosaic: Path, tmp_path: Path) -> None:
    from osgeo import gdal

    cache, part = tmp_path / "cache", tmp_path / "part.tif"
    cache.mkdir()
    gdal.Translate(str(part), str(mosaic), srcWin=[0, 0, 800, 800], creationOptions=["TILED=YES", "COMPRESS=DEFLATE"])
    undisturbed = Run(part, tmp_path / "undisturbed.gpkg", tmp_path / "other_cache", SMALL)
    assert undisturbed.end() == 0
    with serving_apart({"/part.tif": part.read_bytes()}, share=0.05, after=8) as server:
        remote = f"/vsicurl/{server.url}/part.tif"
        run = Run(remote, tmp_path / "trees.gpkg", cache, SMALL)
        run.wait_for_tiles(cache)
        worker = run.worker()
        run.child.kill()
        run.end()
        end = time.monotonic() + 5
        while _is_alive(worker) and time.monotonic() < end:
            time.sleep(0.05)
        n_before = _committed(cache)
        again = Run(remote, tmp_path / "trees.gpkg", cache, SMALL)
        assert again.end() == 0, again.text()
    assert "Going on with the unfinished run" in again.text()
    assert "starting anew" not in again.text()
    assert n_before >= 3
    assert _objects(again.output) == _objects(undisturbed.output)
