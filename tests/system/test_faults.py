"""What goes wrong in the middle of a run, done to real processes, and what a user then reads."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "resources" / "models" / "tree_crowns.dlpk"
IMAGE = ROOT / "resources" / "demo" / "OSBS_029.tif"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")


class Run:
    """A qgis_process that detects trees, while it runs."""

    def __init__(
        self,
        raster: Path | str,
        output: Path,
        cache: Path,
        arguments: str = "tile_size 512;padding 128",
        log: str = "",
    ) -> None:
        self.output = output
        self.log = cache.parent / (log or f"{output.stem}.log")
        command = [
            str(ROOT / "tools" / "qgis_process.sh"), "run", "kestrel:detectobjects", f"--INPUT={raster}",
            f"--MODEL={MODEL}", f"--OUTPUT={output}", "--PARALLEL_PROCESSING_FACTOR=1",
            f"--ARGUMENTS={arguments}",
        ]  # fmt: skip
        self._stream = self.log.open("w")
        self.child = subprocess.Popen(
            command, env={**os.environ, "KESTREL_CACHE": str(cache)}, stdout=self._stream, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def wait_for_text(self, text: str, seconds: float = 60) -> None:
        """Wait until the run has said something."""
        self._wait(lambda: text in self.text(), seconds, f"no '{text}'")

    def wait_for_tiles(self, cache: Path, n: int = 3, seconds: float = 60) -> None:
        """Wait until some tiles are in the journal."""
        self._wait(lambda: _committed(cache) >= n, seconds, "no tile was finished")

    def _wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end or self.child.poll() is not None:
                pytest.fail(f"{what}:\n{self.text()}")
            time.sleep(0.02)

    def worker(self) -> int:
        """Give the worker's process id."""
        (pid,) = _workers_of(self.child.pid)
        return pid

    def end(self, seconds: float = 90) -> int:
        """Wait for the end and give the exit code."""
        code = self.child.wait(seconds)
        self._stream.close()
        return code

    def text(self) -> str:
        """Give what was said so far."""
        return self.log.read_text("utf-8", "replace")


def _committed(cache: Path) -> int:
    import sqlite3

    count = 0
    for path in cache.glob("jobs/*/journal.sqlite"):
        try:
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
                count += database.execute("SELECT count(*) FROM tile").fetchone()[0]
        except sqlite3.OperationalError:
            continue
    return count


def _processes() -> Iterator[tuple[int, int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except (OSError, ValueError):
                continue
            yield int(entry.name), parent, command


def _workers_of(parent: int) -> list[int]:
    return [
        pid for pid, above, command in _processes() if above == parent and "inference/worker/__main__.py" in command
    ]


def _is_alive(pid: int) -> bool:
    return any(found == pid and command for found, _, command in _processes())


def _objects(path: Path) -> list[tuple[str, float]]:
    from osgeo import ogr

    source = ogr.Open(str(path))
    layer = source.GetLayer(0)
    return sorted((f.GetGeometryRef().ExportToWkt(), f.GetField("Confidence")) for f in layer)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """An empty cache of its own."""
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


@pytest.mark.slow
def test_an_interrupt_ends_the_run_within_seconds_and_says_canceled(mosaic: Path, tmp_path: Path, cache: Path) -> None:
    run = Run(mosaic, tmp_path / "trees.gpkg", cache)
    run.wait_for_tiles(cache)
    worker = run.worker()
    run.child.send_signal(signal.SIGINT)
    code = run.end(10)
    assert (code != 0, "Canceled by the user." in run.text(), _is_alive(worker)) == (True, True, False)


@pytest.mark.slow
def test_a_killed_worker_is_told_with_its_reason_and_leaves_no_half_output(
    mosaic: Path, tmp_path: Path, cache: Path
) -> None:
    run = Run(mosaic, tmp_path / "trees.gpkg", cache)
    run.wait_for_tiles(cache)
    os.kill(run.worker(), signal.SIGKILL)
    code = run.end(10)
    assert code != 0
    assert "memory" in run.text()
    assert "[worker-crash]" in run.text()
    assert not run.output.exists()


@pytest.mark.slow
def test_when_qgis_is_killed_the_worker_ends_and_the_next_run_goes_on_to_the_same_objects(
    mosaic: Path, tmp_path: Path, cache: Path
) -> None:
    undisturbed = Run(mosaic, tmp_path / "undisturbed.gpkg", tmp_path / "other_cache")
    assert undisturbed.end() == 0
    run = Run(mosaic, tmp_path / "trees.gpkg", cache)
    run.wait_for_tiles(cache)
    worker = run.worker()
    run.child.kill()
    run.end()
    end = time.monotonic() + 5
    while _is_alive(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _is_alive(worker)
    n_before = _committed(cache)
    again = Run(mosaic, tmp_path / "trees.gpkg", cache)
    assert again.end() == 0, again.text()
    assert "Going on with the unfinished run" in again.text()
    assert n_before >= 3
    assert _objects(again.output) == _objects(undisturbed.output)


@pytest.mark.slow
def test_a_second_run_to_the_same_output_is_refused_and_the_first_goes_on(
    mosaic: Path, tmp_path: Path, cache: Path
) -> None:
    first = Run(mosaic, tmp_path / "trees.gpkg", cache)
    first.wait_for_tiles(cache)
    second = Run(mosaic, tmp_path / "trees.gpkg", cache, log="second.log")
    assert second.end() == 1
    assert f"Another run, in the process {first.child.pid}, is making the output" in second.text()
    assert first.end() == 0, first.text()
    assert len(_objects(first.output)) > 500


def test_a_corrupt_package_is_refused_before_the_run(tmp_path: Path, run_qgis_process: Callable[..., Any]) -> None:
    package = tmp_path / "half.dlpk"
    package.write_bytes(MODEL.read_bytes()[: MODEL.stat().st_size // 2])
    answer = run_qgis_process(
        ["run", "kestrel:detectobjects", f"--INPUT={IMAGE}", f"--MODEL={package}", f"--OUTPUT={tmp_path / 'x.gpkg'}"]
    )
    assert answer.code != 0
    assert "The package 'half.dlpk' is damaged" in answer.stderr + answer.stdout
    assert "Copy or download it again." in answer.stderr + answer.stdout


def test_a_home_that_nobody_has_is_refused_with_the_reason(
    tmp_path: Path, run_qgis_process: Callable[..., Any]
) -> None:
    answer = run_qgis_process(
        [
            "run",
            "kestrel:detectobjects",
            f"--INPUT={IMAGE}",
            "--MODEL=~nosuch/x.dlpk",
            f"--OUTPUT={tmp_path / 'x.gpkg'}",
        ]
    )
    assert answer.code == 1
    assert "lies in the home of a user that this computer does not know" in answer.stderr + answer.stdout


def _damage(raster: Path, target: Path, x: int, y: int) -> None:
    """Overwrite the compressed block that holds pixel (x, y)."""
    from osgeo import gdal

    dataset = gdal.Open(str(raster))
    offset = int(dataset.GetRasterBand(1).GetMetadataItem(f"BLOCK_OFFSET_{x // 256}_{y // 256}", "TIFF"))
    shutil.copy(raster, target)
    with target.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * 400)


@pytest.mark.slow
def test_a_corrupt_block_costs_its_tiles_only_and_the_log_names_the_place(
    mosaic: Path, tmp_path: Path, cache: Path
) -> None:
    damaged = tmp_path / "damaged.tif"
    _damage(mosaic, damaged, 1600, 1600)
    run = Run(damaged, tmp_path / "trees.gpkg", cache)
    assert run.end() == 0, run.text()
    assert "tiles could not be read and are missing from the result: columns" in run.text()
    assert "copy it again from its source" in run.text()
    assert len(_objects(run.output)) > 500


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of twelve megabytes."""
    # Named so that no path holds a word that a test looks for.
    folder = tmp_path / "twelve"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a small disk can be mounted by root only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_under_the_journal_is_told_with_the_way_out(mosaic: Path, tmp_path: Path, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"\0" * 7_600_000)
    run = Run(mosaic, tmp_path / "trees.gpkg", small_disk, "threshold 0.0;tile_size 512;padding 128")
    code = run.end()
    assert code != 0
    assert "[disk-full]" in run.text()
    assert "Make room" in run.text()
    assert not run.output.exists()


@pytest.mark.slow
def test_a_full_disk_under_the_output_is_told_and_leaves_no_half_output(
    mosaic: Path, cache: Path, small_disk: Path, tmp_path: Path
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * 12_400_000)
    (tmp_path / "out").symlink_to(small_disk)
    run = Run(mosaic, tmp_path / "out" / "trees.gpkg", cache)
    code = run.end()
    assert code != 0
    assert "[output]" in run.text() or "[disk-full]" in run.text()
    assert "what was found is kept" in run.text()
    assert not run.output.exists()
