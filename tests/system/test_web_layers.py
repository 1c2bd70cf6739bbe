"""Layers of the web through qgis_process, where nobody has a project: their address is the parameter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kestrel.tests.fixtures.servers.scene import demo_tiles, inner_extent
from kestrel.tests.fixtures.servers.xyz_server import serving

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "resources" / "models" / "tree_crowns.dlpk"


def objects(path: Path) -> list[tuple[str, float]]:
    from osgeo import ogr

    source = ogr.Open(str(path))
    return sorted((f.GetGeometryRef().ExportToWkt(), f.GetField("Confidence")) for f in source.GetLayer(0))


def test_tiles_by_their_address_give_the_objects_of_the_file_and_keep_the_key_of_the_address(
    run_qgis_process: Callable[..., Any], profile: Path, tmp_path: Path
) -> None:
    truth, outputs = tmp_path / "truth.tif", {name: tmp_path / f"{name}.gpkg" for name in ("file", "tiles")}
    cache = tmp_path / "cache"
    with serving(demo_tiles(truth)) as tiles:
        tiles.query = "?apikey%3Dcanary4711"
        for name, source in (("file", str(truth)), ("tiles", f"wms://{tiles.uri}")):
            inputs = {"INPUT": source, "MODEL": str(MODEL), "EXTENT": inner_extent(tiles), "ARGUMENTS": "threshold 0.4",
                      "OUTPUT": str(outputs[name]), "SUMMARY_FILE": str(tmp_path / f"{name}.json")}  # fmt: skip
            answer = run_qgis_process(["run", "kestrel:detectobjects", "-"], json.dumps({"inputs": inputs}),
                                      profile=profile, env={"KESTREL_CACHE": str(cache)})  # fmt: skip
            assert answer.code == 0, answer.stderr
        assert set(tiles.asked.values()) == {1}
        assert "canary4711" in tiles.server.asked[0].query.values()
    assert objects(outputs["tiles"]) == objects(outputs["file"]) and len(objects(outputs["file"])) > 30
    # QGIS's answer repeats its input; of what Kestrel writes nothing holds the key.
    told = [*tmp_path.glob("tiles.*"), *(path for path in cache.rglob("*") if path.is_file())]
    assert len(told) >= 2 and not [path for path in told if b"canary4711" in path.read_bytes()]
    assert "canary4711" not in json.dumps(answer.json["results"])


def test_an_interrupt_ends_a_run_whose_server_stalls(profile: Path, tmp_path: Path) -> None:
    with serving(demo_tiles(tmp_path / "truth.tif")) as tiles:
        tiles.fault = lambda tile, n: "stall"
        command = ["qgis_process", "run", "kestrel:detectobjects", f"--INPUT=wms://{tiles.uri}", f"--MODEL={MODEL}",
                   f"--EXTENT={inner_extent(tiles)}", f"--OUTPUT={tmp_path / 'out.gpkg'}"]  # fmt: skip
        variables = {**os.environ, "QGIS_CUSTOM_CONFIG_PATH": str(profile), "QT_QPA_PLATFORM": "offscreen",
                     "KESTREL_CACHE": str(tmp_path / "cache"), "XDG_RUNTIME_DIR": str(tmp_path)}  # fmt: skip
        child = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            end = time.monotonic() + 60
            while not tiles.asked and child.poll() is None and time.monotonic() < end:
                time.sleep(0.02)
            assert tiles.asked
            interrupted = time.monotonic()
            child.send_signal(signal.SIGINT)
            text, _ = child.communicate(timeout=20)
        finally:
            child.kill()
    assert time.monotonic() - interrupted < 4  # with QGIS's own end
    assert child.returncode != 0 and "Canceled by the user." in text
