"""Real programs as children: qgis_process, and QGIS itself on a virtual screen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUI_PRELUDE = Path(__file__).with_name("gui_prelude.py")


@dataclass(frozen=True)
class Answer:
    """What a child process said."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The output, read as JSON."""
        return json.loads(self.stdout)


@pytest.fixture
def run_qgis_process() -> Callable[..., Answer]:
    """Give `run_qgis_process(args, stdin="", timeout=300, profile=None, env=None)`, which runs tools/qgis_process.sh.

    With `profile`, QGIS's own qgis_process runs on that profile folder instead of build/profile.
    """

    def run(
        args: Sequence[str],
        stdin: str = "",
        timeout: float = 300,
        profile: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> Answer:
        variables = {**os.environ, **(env or {})}
        command = [str(ROOT / "tools" / "qgis_process.sh")]
        if profile:
            command = ["qgis_process"]
            variables.update(QGIS_CUSTOM_CONFIG_PATH=str(profile), QT_QPA_PLATFORM="offscreen")
        child = subprocess.run(
            [*command, *args], input=stdin, env=variables, cwd=ROOT, capture_output=True, text=True, timeout=timeout
        )
        return Answer(child.returncode, child.stdout, child.stderr)

    return run


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """A new QGIS profile with this repository's plugin enabled."""
    folder = tmp_path / "profile"
    make_profile(folder, ROOT)
    return folder


def make_profile(folder: Path, plugin: Path) -> None:
    """Make a QGIS profile with the plugin of that folder enabled."""
    interpreter = ROOT / "build" / "env" / "inference" / "bin" / "python"
    command = [sys.executable, str(ROOT / "tools" / "make_profile.py"), str(folder), str(plugin), str(interpreter)]
    subprocess.run(command, check=True, timeout=60)


@pytest.fixture
def run_in_qgis(tmp_path: Path, profile: Path) -> Callable[..., Any]:
    """Give `run_in_qgis(script, arguments=None, timeout=120)`: runs a script in a real QGIS, gives back its answer.

    The script is Python source, or a path to it. It runs when the window is up, and finds the names `iface`,
    `arguments`, `wait_until(condition, seconds)`, `save_picture(widget, path)` and `answer(value)`; the JSON value that
    it answers is what the caller gets. An uncaught error fails the test with its traceback.
    """

    def run(script: str | Path, arguments: Any = None, timeout: float = 120) -> Any:
        source, result = tmp_path / "script.py", tmp_path / "answer.json"
        source.write_text(script.read_text("utf-8") if isinstance(script, Path) else script, "utf-8")
        variables = {
            **os.environ,
            "QT_QPA_PLATFORM": "xcb",
            "QGIS_CUSTOM_CONFIG_PATH": str(profile),
            "XDG_RUNTIME_DIR": str(tmp_path),
            "KESTREL_GUI_SCRIPT": str(source),
            "KESTREL_GUI_ANSWER": str(result),
            "KESTREL_GUI_ARGUMENTS": json.dumps(arguments),
            "KESTREL_GUI_SECONDS": str(timeout),
        }
        screen = ["xvfb-run", "-a", "-s", "-screen 0 1600x1000x24"]
        qgis = ["qgis", "--noversioncheck", "--nologo", "--code", str(GUI_PRELUDE)]
        child = subprocess.run(
            [*screen, *qgis], env=variables, cwd=ROOT, capture_output=True, text=True, timeout=timeout + 60
        )
        if not result.exists():
            pytest.fail(f"QGIS ended with code {child.returncode} and no answer\n{child.stdout}\n{child.stderr}")
        outcome = json.loads(result.read_text("utf-8"))
        if "error" in outcome:
            pytest.fail(f"{outcome['error']}\n{child.stderr}")
        return outcome["answer"]

    return run


@pytest.fixture(scope="session")
def mosaic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the demo image, six by six times side by side: a run of some seconds."""
    from osgeo import gdal

    gdal.UseExceptions()
    source = gdal.Open(str(ROOT / "resources" / "demo" / "OSBS_029.tif"))
    n, size = 6, source.RasterXSize
    path = tmp_path_factory.mktemp("mosaic") / "mosaic.tif"
    options = ["TILED=YES", "BLOCKXSIZE=256", "BLOCKYSIZE=256", "COMPRESS=DEFLATE"]
    target = gdal.GetDriverByName("GTiff").Create(str(path), n * size, n * size, 3, gdal.GDT_Byte, options)
    target.SetGeoTransform(source.GetGeoTransform())
    target.SetProjection(source.GetProjection())
    data = source.ReadRaster()
    for row in range(n):
        for column in range(n):
            target.WriteRaster(column * size, row * size, size, size, data)
    target.FlushCache()
    del target
    return path
