"""The part of `make bench` about merging: Kestrel beside torchvision and SAHI, on the same boxes, in one run.

Each figure comes from a process of its own: the shortest of five times (one for a million boxes), and how far peak
memory rose above what it was with the boxes loaded. A competitor that needs more than the limits is reported as such.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "build" / "plugins"))

import numpy as np

from kestrel.inference.errors import is_out_of_memory

COUNTS = (1_000, 100_000, 1_000_000)
MAX_OVERLAP = 0.5
SECONDS = 300
GIGABYTES = 12
N_CLASSES = 20
REPEATS = 5
COPIES = 3
_BAND = 1024.0


def write_scene(path: Path, count: int, seed: int = 0) -> None:
    """Write boxes, scores and classes of objects that are each found three times.

    Sides are log-uniform from 8 to 128 pixels, aspect ratios up to 1.6; objects together have the area of the image;
    the three boxes of one differ by 8 % of its sides; scores are all different.
    """
    random = np.random.default_rng(seed)
    n = -(-count // COPIES)
    size, ratio = np.exp(random.uniform(np.log(8), np.log(128), n)), np.exp(random.uniform(-0.5, 0.5, n))
    sides = np.stack([size * ratio**0.5, size / ratio**0.5], axis=1)
    corner = random.uniform(0, sides.prod(axis=1).sum() ** 0.5, (n, 2))
    which = np.repeat(np.arange(n), COPIES)[:count]
    boxes = np.concatenate([corner, corner + sides], axis=1)[which]
    boxes += random.normal(0, 0.08, (count, 4)) * np.tile(sides[which], 2)
    scores = random.permutation(np.linspace(0.1, 1, count)).astype(np.float32)
    order = random.permutation(count)
    np.savez(path, boxes=boxes.astype(np.float32)[order], scores=scores[order],
             labels=random.integers(0, N_CLASSES, n)[which][order])  # fmt: skip


Scene = tuple[np.ndarray, np.ndarray, np.ndarray]
Kept = np.ndarray


def _kestrel(method: str, is_streamed: bool) -> Callable[[Scene], Callable[[], Kept]]:
    def load(scene: Scene) -> Callable[[], Kept]:
        from kestrel.inference.detections import make_detections
        from kestrel.inference.merge import Band, Found, Rule, suppress

        boxes, scores, labels = scene
        n = len(boxes)
        # The number of a box travels as its tile.
        found = Found(make_detections(boxes, scores, labels), np.arange(n), np.zeros(n, np.int8), np.ones(n, np.bool_))
        bands = [Band(found, np.inf)]
        if is_streamed:
            tops = found.detections.boxes[:, 1]
            rows = np.floor((tops - tops.min()) / _BAND).astype(int)
            order = np.argsort(rows, kind="stable")
            parts = np.split(order, np.flatnonzero(np.diff(rows[order])) + 1)
            lows = [float(tops[part].min()) for part in parts]
            bands = [Band(found.take(part), low) for part, low in zip(parts, [*lows[1:], np.inf])]
            del found
        return lambda: np.concatenate(
            [band.found.tiles for band in suppress(bands, Rule(MAX_OVERLAP, method=method, threshold=0.1))]
        )

    return load


def _torchvision(scene: Scene) -> Callable[[], Kept]:
    import torch
    from torchvision.ops import batched_nms

    # In 64 bits, as the others compute: in 32 bits two boxes just at the limit may be judged the other way.
    boxes, scores = (torch.from_numpy(array).double() for array in scene[:2])
    labels = torch.from_numpy(scene[2])
    batched_nms(boxes[:10], scores[:10], labels[:10], MAX_OVERLAP)
    return lambda: batched_nms(boxes, scores, labels, MAX_OVERLAP).numpy()


def _sahi(name: str) -> Callable[[Scene], Callable[[], Kept]]:
    def load(scene: Scene) -> Callable[[], Kept]:
        from sahi.postprocess import combine

        function = getattr(combine, name)
        predictions = np.column_stack([*scene]).astype(np.float64)
        function(predictions[:10], "IOU", MAX_OVERLAP)
        return lambda: np.array([*function(predictions, "IOU", MAX_OVERLAP)])

    return load


CONTENDERS: dict[str, Callable[[Scene], Callable[[], Kept]]] = {
    "Kestrel nms": _kestrel("nms", False),
    "Kestrel nms, row by row": _kestrel("nms", True),
    "torchvision batched_nms": _torchvision,
    "SAHI batched_nms": _sahi("batched_nms"),
    "Kestrel nmm": _kestrel("nmm", False),
    "SAHI batched_greedy_nmm": _sahi("batched_greedy_nmm"),
    "Kestrel wbf": _kestrel("wbf", False),
    "Kestrel soft-nms": _kestrel("soft-nms", False),
}
SAME_AS_TORCHVISION = ("Kestrel nms", "Kestrel nms, row by row", "Kestrel nmm", "Kestrel wbf")


def _begin_peak() -> float:
    """Forget the highest memory up to now, and give the present one in MB; as Linux counts it."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def _measure(name: str, path: Path, kept_path: Path, connection: Any) -> None:
    limit = GIGABYTES << 30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with np.load(path) as file:
        scene = file["boxes"], file["scores"], file["labels"].astype(np.int64)
    work = CONTENDERS[name](scene)
    before = _begin_peak()
    seconds = []
    try:
        for _ in range(1 if len(scene[0]) >= COUNTS[-1] else REPEATS):
            start = time.perf_counter()
            kept = work()
            seconds.append(time.perf_counter() - start)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        connection.send(f"more than {GIGABYTES} GB")
        return
    peak = _memory("VmHWM")
    np.save(kept_path, np.sort(kept))
    connection.send((min(seconds), peak - before, len(kept)))


def _in_child(name: str, path: Path, kept_path: Path) -> tuple[float, float, int] | str:
    """Measure in a process of its own; give seconds, MB and survivors, or which limit it went over."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(name, path, kept_path, theirs))
    child.start()
    theirs.close()
    try:
        if ours.poll(SECONDS):
            return ours.recv()
        return f"more than {SECONDS} s"
    except EOFError:
        raise RuntimeError(f"{name} failed; it said why above.") from None
    finally:
        child.kill()
        child.join()


def merging_rows(counts: tuple[int, ...] = COUNTS) -> list[dict[str, Any]]:
    """Measure all contenders on scenes of these sizes.

    Raises:
        AssertionError: Kestrel's survivors are not torchvision's.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            path = Path(folder) / f"{count}.npz"
            write_scene(path, count)
            kept = {name: Path(folder) / f"{place}.npy" for place, name in enumerate(CONTENDERS)}
            found = {name: _in_child(name, path, kept_path) for name, kept_path in kept.items()}
            own = found["Kestrel nms"][0]
            same = {}
            if isinstance(found["torchvision batched_nms"], tuple):
                expected = np.load(kept["torchvision batched_nms"])
                same = {name: np.array_equal(expected, np.load(kept[name])) for name in CONTENDERS
                        if isinstance(found[name], tuple)}  # fmt: skip
                assert all(same[name] for name in SAME_AS_TORCHVISION), same
            rows += [_row(count, name, result, own, same.get(name)) for name, result in found.items()]
    return rows


def _row(
    count: int, name: str, result: tuple[float, float, int] | str, own: Any, is_same: bool | None
) -> dict[str, Any]:
    row: dict[str, Any] = {"boxes": count, "method": name}
    if isinstance(result, str):
        return {**row, "seconds": result, "over_kestrel_nms": "", "mb": "", "objects": "", "survivors": ""}
    seconds, megabytes, n = result
    told = "" if is_same is None else "as torchvision" if is_same else "others"
    return {**row, "seconds": f"{seconds:.4f}" if seconds < 0.1 else f"{seconds:.2f}",
            "over_kestrel_nms": round(seconds / own, 2), "mb": round(megabytes), "objects": n,
            "survivors": told}  # fmt: skip
