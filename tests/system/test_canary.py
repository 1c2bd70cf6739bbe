"""A secret that QGIS keeps is found nowhere but in its store and at the server it is for, however a run ends."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from kestrel.tests.fixtures.servers.base import Request, Server, serving
from kestrel.tests.fixtures.servers.image_server import image_server
from kestrel.tests.fixtures.servers.pixels import open_image
from kestrel.tests.fixtures.servers.range_server import WebFiles
from kestrel.tests.system.test_main_job import IMAGE, MODEL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into processes by /proc"),
]

CANARY = "c4n4ry0f5tep4"
BASIC = base64.b64encode(f"me:{CANARY}".encode()).decode()
TRACES = (CANARY.encode(), BASIC.encode())
MASTER = "of the tests"

STORE = f"""
import sys
from qgis.core import QgsApplication, QgsAuthMethodConfig
app = QgsApplication([], False)
app.initQgis()
manager = app.authManager()
assert manager.setMasterPassword({MASTER!r}, True)
for method, values in (("EsriToken", {{"token": {CANARY!r}}}), ("Basic", {{"username": "me", "password": {CANARY!r}}})):
    config = QgsAuthMethodConfig()
    config.setName(method)
    config.setMethod(method)
    for key, value in values.items():
        config.setConfig(key, value)
    manager.storeAuthenticationConfig(config)
    print(config.id())
app.exitQgis()
"""


@dataclass
class Place:
    """A server with the demo image that wants to see the secret; `parameters` name it."""

    server: Server
    parameters: list[str]
    withdraw: Callable[[], None]
    is_pixels: Callable[[Request], bool]


@contextlib.contextmanager
def service(token: str, _basic: str) -> Iterator[Place]:
    """An image service, for which the parameter AUTHENTICATION signs in."""
    with image_server(open_image(IMAGE), token=CANARY) as double:

        def withdraw() -> None:
            double.settings = replace(double.settings, token="another")

        parameters = [f"--INPUT_SOURCE={double.image}", f"--AUTHENTICATION={token}"]
        yield Place(double.server, parameters, withdraw, lambda request: request.path.endswith("/exportImage"))


@contextlib.contextmanager
def file(_token: str, basic: str) -> Iterator[Place]:
    """A raster on a web server, for which the layer's own configuration signs in."""
    files = WebFiles({"/scene.tif": IMAGE.read_bytes()}, wanted=("authorization", f"Basic {BASIC}"))
    with serving(files) as server:

        def withdraw() -> None:
            files.wanted = ("authorization", "another")

        parameters = [f"--INPUT=/vsicurl/{server.url}/scene.tif authcfg='{basic}'"]
        # Beyond what both look at: the worker alone reads in the middle of the file.
        yield Place(
            server, parameters, withdraw, lambda request: request.headers.get("user-agent", "")[:7] == "Kestrel"
        )


@dataclass
class Processes:
    """Looks at the arguments and the environment of all processes, again and again.

    Attributes:
        guilty: What held the secret.
        workers: Ids of the workers of this test that were seen.
    """

    cache: str
    guilty: set[str] = field(default_factory=set)
    workers: set[int] = field(default_factory=set)
    _end: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Processes:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.03):
            for folder in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    texts = [(folder / name).read_bytes() for name in ("cmdline", "environ")]
                    self.guilty |= {f"{folder}: {texts[0]!r}" for trace in TRACES if any(trace in t for t in texts)}
                    if b"worker/__main__.py" in texts[0] and self.cache.encode() in texts[0]:
                        self.workers.add(int(folder.name))


def traces_in(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if any(trace in path.read_bytes() for trace in TRACES)]


@pytest.mark.parametrize(
    ("place", "outcome"), [(service, "success"), (file, "failure"), (service, "crash"), (file, "cancel")]
)
def test_a_secret_is_found_nowhere(
    place: Callable[..., contextlib.AbstractContextManager[Place]], outcome: str, profile: Path, tmp_path: Path
) -> None:
    password, output = tmp_path / "master", tmp_path / "out"
    password.write_text(MASTER)
    for folder in ("auth", "out", "tmp"):
        (tmp_path / folder).mkdir()
    variables = {**os.environ, "QGIS_CUSTOM_CONFIG_PATH": str(profile), "QT_QPA_PLATFORM": "offscreen",
                 "KESTREL_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "tmp"),
                 "XDG_RUNTIME_DIR": str(tmp_path),
                 "QGIS_AUTH_DB_DIR_PATH": str(tmp_path / "auth"), "QGIS_AUTH_PASSWORD_FILE": str(password)}  # fmt: skip
    stored = subprocess.run([sys.executable, "-c", STORE], env=variables, capture_output=True, text=True, timeout=60)
    token, basic = stored.stdout.split()[-2:]
    with place(token, basic) as at, Processes(str(tmp_path / "cache")) as processes:
        reached = threading.Event()

        def fault(request: Request) -> str | None:
            if outcome == "success" or not processes.workers or not at.is_pixels(request):
                return None
            reached.set()
            if outcome == "failure":
                at.withdraw()
                return None
            return "stall"

        at.server.chance = fault
        command = ["qgis_process", "run", "kestrel:detectobjects", *at.parameters, f"--MODEL={MODEL}",
                   f"--OUTPUT={output / 'out.gpkg'}", f"--SUMMARY_FILE={output / 'summary.json'}"]  # fmt: skip
        child = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            if outcome in ("crash", "cancel"):
                assert reached.wait(60), child.communicate(timeout=60)
                time.sleep(0.2)
                if outcome == "crash":
                    os.kill(max(processes.workers), signal.SIGKILL)
                else:
                    child.send_signal(signal.SIGINT)
            said, _ = child.communicate(timeout=120)
        finally:
            child.kill()
    # What is looked for was there: at the server, in a run that ended as it was to.
    assert any(at.server.asked_with(trace.decode()) for trace in TRACES) and processes.workers
    assert (child.returncode == 0) == (outcome == "success"), said
    words = {"success": "OBJECT_COUNT", "failure": "[credentials]", "crash": "[worker", "cancel": "Canceled"}
    assert words[outcome] in said, said
    assert processes.guilty == set() and not any(trace.decode() in said for trace in TRACES)
    assert list((tmp_path / "cache").rglob("job.json")) or outcome == "success"  # what is kept is looked through
    assert traces_in(tmp_path) == []
