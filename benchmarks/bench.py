"""`make bench`: what the pipeline costs beside the network, what it holds in memory, and what tiling does to objects.

Times are ratios of two things measured in one run; absolute times say more about the machine than about Kestrel.
Prints tables in Markdown, as they stand in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build" / "plugins"))

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import rasterio  # noqa: E402
import shapely  # noqa: E402
from merging import MAX_OVERLAP, merging_rows  # noqa: E402

from kestrel.inference.detect import detect  # noqa: E402
from kestrel.inference.detectors import load_detector  # noqa: E402
from kestrel.inference.detectors.protocol import DetectorSettings  # noqa: E402
from kestrel.inference.events import Objects  # noqa: E402
from kestrel.inference.job import DetectionJob, RasterItem  # noqa: E402
from kestrel.inference.models.arguments import resolve_arguments  # noqa: E402
from kestrel.inference.models.package import open_package  # noqa: E402
from kestrel.inference.object_file import MapObjects, read_objects  # noqa: E402
from kestrel.inference.plan import usable_cores  # noqa: E402
from kestrel.inference.rasters.gdal_pixels import GdalPixels  # noqa: E402
from kestrel.inference.rasters.model_raster import ModelRaster  # noqa: E402
from kestrel.inference.rasters.source import GridRequest  # noqa: E402
from kestrel.inference.tiling import TileGrid, Window  # noqa: E402

MODEL = ROOT / "resources" / "models" / "tree_crowns.dlpk"
IMAGE = ROOT / "resources" / "demo" / "OSBS_029.tif"
MOVED = 0.01  # pixels
PADDINGS = (0, 16, 32, 64, 96, 128, 160)


@dataclass(frozen=True)
class RunResult:
    """A finished run: its summary, its objects, its wall time in seconds and its peak memory in MB."""

    summary: dict[str, Any]
    objects: list[MapObjects]
    seconds: float
    peak_mb: float


def run_job(raster: Path, **job: Any) -> RunResult:
    """Run a job in this process."""
    objects: list[MapObjects] = []

    def report(event: Any) -> None:
        if isinstance(event, Objects):
            objects.append(read_objects(Path(event.path)))
            Path(event.path).unlink()

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        made = DetectionJob(uuid.uuid4().hex, (RasterItem("gdal", str(raster)),), str(MODEL), **job)
        summary = detect(made, Path(folder), report, lambda: False)
        seconds = time.perf_counter() - start
    return RunResult(summary, objects, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _in_child(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a fresh process, so that its peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def tiled_copies(folder: Path, times: int) -> Path:
    """Write the demo image, repeated `times` by `times`, as a tiled JPEG GeoTIFF without holding it in memory."""
    path = folder / f"mosaic_{times}.tif"
    with rasterio.open(IMAGE) as source:
        pixels = source.read()
        profile = {
            "driver": "GTiff", "dtype": "uint8", "count": 3, "crs": source.crs, "transform": source.transform,
            "width": source.width * times, "height": source.height * times,
            "tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "JPEG", "photometric": "YCBCR",
        }  # fmt: skip
    row = np.tile(pixels, (1, 1, times))
    with rasterio.open(path, "w", **profile) as target:
        for index in range(times):
            window = rasterio.windows.Window(0, index * pixels.shape[1], target.width, pixels.shape[1])
            target.write(row, window=window)
    return path


def overhead(raster: Path, n_threads: int) -> dict[str, Any]:
    """Give end-to-end time over pure forward time on the same tiles, held in memory."""
    run_job(raster)  # warm: calibration, file cache
    whole = [run_job(raster, parallel_processing_factor=str(n_threads)) for _ in range(3)]
    summary = whole[0].summary
    forward = [_forward_seconds(raster, summary, n_threads) for _ in range(3)]
    area = summary["tiles"] * summary["tile_size"] ** 2
    with rasterio.open(raster) as dataset:
        useful = dataset.width * dataset.height
    return {
        "tiles": summary["tiles"],
        "tile_size": summary["tile_size"],
        "padding": summary["padding"],
        "threads": n_threads,
        "end_to_end": statistics.median(result.seconds for result in whole),
        "forward": statistics.median(forward),
        "ratio": statistics.median(result.seconds for result in whole) / statistics.median(forward),
        "halo_factor": area / useful,
        "objects": summary["objects"],
    }


def _forward_seconds(raster: Path, summary: dict[str, Any], n_threads: int) -> float:
    """Time the network alone on the run's own tiles, with as many callers as the run had."""
    from concurrent.futures import ThreadPoolExecutor

    package = open_package(str(MODEL))
    arguments = resolve_arguments(package.definition, {}).values
    spec = package.definition.input
    source = ModelRaster(GdalPixels(RasterItem("gdal", str(raster)), spec.bands, GridRequest()), spec)
    info = source.info
    area = Window(0, 0, info.width, info.height)
    grid = TileGrid(info.width, info.height, area, summary["tile_size"], summary["padding"], summary["stride"])
    tiles = [source.read(tile.outer)[0][None] for tile in grid]
    source.close()
    with tempfile.TemporaryDirectory() as folder:
        detector = load_detector(package, arguments, DetectorSettings("cpu", n_threads), Path(folder))
        with ThreadPoolExecutor(n_threads) as callers:
            detector.predict(tiles[0])
            start = time.perf_counter()
            list(callers.map(detector.predict, tiles))
            return time.perf_counter() - start


def memory_of_run(raster: Path) -> tuple[float, int, int]:
    """Give peak memory in MB, tiles and objects of a run; call it in a fresh process."""
    result = run_job(raster)
    return result.peak_mb, result.summary["tiles"], result.summary["objects"]


def seam_table(raster: Path, tile_size: int) -> list[dict[str, Any]]:
    """Compare tiled runs with one pass over the whole raster: objects missing, extra, and moved."""
    with rasterio.open(raster) as dataset:
        side, pixel = max(dataset.width, dataset.height), abs(dataset.transform.a)
    whole = _boxes(run_job(raster, arguments={"tile_size": side}).objects)
    rows = []
    for padding in PADDINGS:
        if 2 * padding >= tile_size:
            continue
        result = run_job(raster, arguments={"tile_size": tile_size, "padding": padding})
        missing, extra, moved = compare(whole, _boxes(result.objects), pixel)
        rows.append({
            "padding": result.summary["padding"], "tiles": result.summary["tiles"], "missing": missing,
            "extra": extra, "moved": moved, "is_exact": result.summary["is_exact"], "objects": len(whole),
        })  # fmt: skip
    return rows


def _boxes(batches: list[MapObjects]) -> np.ndarray[Any, np.dtype[np.float64]]:
    wkb = [geometry for batch in batches for geometry in batch.wkb]
    return np.asarray(shapely.bounds(shapely.from_wkb(wkb)), np.float64).reshape(-1, 4)


def compare(whole: Any, tiled: Any, pixel: float) -> tuple[int, int, int]:
    """Match boxes (N, 4), (M, 4) in map units by centre within half a pixel-scale box; count misses, extras, moves."""
    if len(whole) == 0 or len(tiled) == 0:
        return len(whole), len(tiled), 0
    tree = shapely.STRtree(shapely.box(*tiled.T))
    i, j = tree.query(shapely.box(*whole.T), predicate="intersects")
    low, high = np.maximum(whole[i, :2], tiled[j, :2]), np.minimum(whole[i, 2:], tiled[j, 2:])
    common = np.clip(high - low, 0, None).prod(axis=1)
    size = (whole[i, 2:] - whole[i, :2]).prod(axis=1) + (tiled[j, 2:] - tiled[j, :2]).prod(axis=1)
    overlap = common / (size - common)
    used_i, used_j, moved = set(), set(), 0
    for k in np.argsort(-overlap, kind="stable"):
        if overlap[k] < 0.5 or i[k] in used_i or j[k] in used_j:
            continue
        used_i.add(i[k])
        used_j.add(j[k])
        moved += bool(np.abs(whole[i[k]] - tiled[j[k]]).max() > MOVED * pixel)
    return len(whole) - len(used_i), len(tiled) - len(used_j), moved


def _table(head: list[str], rows: list[list[Any]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row) + " |")
    print(flush=True)


def _print_machine() -> None:
    print(
        f"Machine: {platform.machine()}, {usable_cores()} cores; Python {platform.python_version()}, "
        f"ONNX Runtime {onnxruntime.__version__}, GDAL {rasterio.__gdal_version__}.\n"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=6, help="copies of the demo image along each side")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--only-merging", action="store_true", help="measure merging and nothing else")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    _print_machine()
    print(f"## Merging: Kestrel beside torchvision and SAHI, limit {MAX_OVERLAP:g}\n")
    figures["merging"] = merging_rows()
    _table(list(figures["merging"][0]), [list(row.values()) for row in figures["merging"]])
    if not options.only_merging:
        _measure_runs(options, figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


def _measure_runs(options: argparse.Namespace, figures: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rasters = {scale: tiled_copies(folder, options.side * scale) for scale in (1, 2, 4)}
        print("## Time: end to end over the forward pass alone\n")
        figures["overhead"] = [overhead(rasters[1], threads) for threads in sorted({1, usable_cores()})]
        _table(list(figures["overhead"][0]), [list(row.values()) for row in figures["overhead"]])
        print("## Peak memory of the worker\n")
        memory = {scale: _in_child(memory_of_run, path) for scale, path in rasters.items()}
        figures["memory"] = [
            {"pixels": f"{scale**2}x", "side": 400 * options.side * scale, "tiles": tiles, "objects": objects,
             "peak_mb": round(peak)}
            for scale, (peak, tiles, objects) in memory.items()
        ]  # fmt: skip
        _table(list(figures["memory"][0]), [list(row.values()) for row in figures["memory"]])
        print("## Seams: tiled run against one pass over the whole raster\n")
        for key, raster, tile_size in (("seams_image", IMAGE, 288), ("seams_mosaic", rasters[1], 512)):
            figures[key] = seam_table(raster, tile_size)
            print(f"{raster.name}, tiles of {tile_size} pixels:\n")
            _table(list(figures[key][0]), [list(row.values()) for row in figures[key]])


if __name__ == "__main__":
    main()
