"""Run the demo model on a remote raster whose server fails: 5 % bad answers, and an outage of a minute; real limits.

    build/env/inference/bin/python tools/long_faults.py [SECONDS]

Prints what happened, and ends with 1 where the objects differ from those of the local file.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "build" / "plugins"))

import rasterio  # noqa: E402

from kestrel.inference.rasters.access import RasterAccess  # noqa: E402
from kestrel.tests.fixtures.runs import Result, run  # noqa: E402
from kestrel.tests.fixtures.servers.faults import FaultPlan  # noqa: E402
from kestrel.tests.fixtures.servers.range_server import serving_files  # noqa: E402

IMAGE = ROOT / "resources" / "demo" / "OSBS_029.tif"
MODEL = ROOT / "resources" / "models" / "tree_crowns.dlpk"
TIMES = 5
"""The demo image so many times along each side."""


def write_mosaic(path: Path) -> None:
    """Write the demo image several times side by side, in small blocks."""
    with rasterio.open(IMAGE) as source:
        pixels = source.read()
        size = {"width": source.width * TIMES, "height": source.height * TIMES}
        form = {"driver": "GTiff", "tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate"}
        profile = {"count": source.count, "dtype": "uint8", "crs": source.crs, "transform": source.transform}
    with rasterio.open(path, "w", **profile, **size, **form) as target:
        for row in range(TIMES):
            for column in range(TIMES):
                height, width = pixels.shape[1:]
                area = rasterio.windows.Window(column * width, row * height, width, height)
                target.write(pixels, window=area)


def detect(folder: Path, raster: Path | str) -> tuple[Result, float]:
    """Run, and give the seconds, too."""
    start = time.monotonic()
    result = run(folder, raster, MODEL, arguments={"tile_size": 256, "padding": 64}, access=RasterAccess())
    return result, time.monotonic() - start


def main(outage: float) -> int:
    """Compare the two runs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_mosaic(folder / "mosaic.tif")
        local, local_seconds = detect(folder / "local", folder / "mosaic.tif")
        with serving_files({"/mosaic.tif": (folder / "mosaic.tif").read_bytes()}) as (server, files):
            server.plan = plan = FaultPlan(0.05, outage_after=40, outage=outage)
            remote, seconds = detect(folder / "remote", f"{server.url}/mosaic.tif")
    for message in remote.messages("info"):
        if message.id == "waiting":
            print(message.text)
    print(f"local: {len(local)} objects, {local_seconds:.1f} s")
    print(f"remote: {len(remote)} objects, {seconds:.1f} s, an outage of {outage:g} s among them")
    print(f"{plan.count} requests, {files.n_bytes / 1e6:.1f} MB, bad answers: {dict(Counter(plan.given))}")
    print(f"tiles: {remote.summary['tiles_by_state']}")
    is_equal = local.content() == remote.content()
    print("the objects are equal" if is_equal else "THE OBJECTS DIFFER")
    return 0 if is_equal and len(local) else 1


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0))
