"""Makes the pictures of the documentation again, in a real QGIS on a virtual screen, and the model that one shows.

screenshots.py [NAME ...]     dialog, result, modeler, model_info, consent, service; all when left out
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "images"
NAMES = ("dialog", "result", "modeler", "model_info", "consent", "service")
SCREEN = "-screen 0 1600x1000x24 -dpi 96"
SECONDS = 180
ARGUMENTS = {
    # Relative to the repository, where QGIS is started: no picture shows where someone keeps it.
    "raster": "resources/demo/OSBS_029.tif",
    "model": "resources/models/tree_crowns.dlpk",
    "model_file": str(ROOT / "tests" / "fixtures" / "trees_centroids.model3"),
}


def main() -> int:
    """Make the pictures; 0 when all were made."""
    sys.path.insert(0, str(ROOT / "build" / "plugins"))
    from kestrel.tests.fixtures.servers.image_server import image_server
    from kestrel.tests.fixtures.servers.pixels import open_image

    names = sys.argv[1:] or NAMES
    with image_server(open_image(ROOT / ARGUMENTS["raster"])) as service:
        return max(take(name, service=service.image) for name in names)


def take(name: str, **arguments: str) -> int:
    """Run one script in QGIS with further arguments; 0 when its picture was made."""
    picture = PICTURES / f"{name}.png"
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "answer.json"
        variables = {
            **os.environ,
            "QT_QPA_PLATFORM": "xcb",
            "QGIS_CUSTOM_CONFIG_PATH": str(ROOT / "build" / "profile"),
            "XDG_RUNTIME_DIR": folder,
            "KESTREL_GUI_SCRIPT": str(ROOT / "tools" / "gui" / f"{name}.py"),
            "KESTREL_GUI_ANSWER": str(result),
            "KESTREL_GUI_ARGUMENTS": json.dumps({**ARGUMENTS, **arguments, "picture": str(picture)}),
            "KESTREL_GUI_SECONDS": str(SECONDS),
        }
        prelude = ROOT / "tests" / "system" / "gui_prelude.py"
        command = ["xvfb-run", "-a", "-s", SCREEN, "qgis", "--noversioncheck", "--nologo", "--code", str(prelude)]
        done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS + 60)
        outcome = json.loads(result.read_text("utf-8")) if result.exists() else {"error": done.stderr}
    if "error" in outcome:
        print(f"{name}: {outcome['error']}", file=sys.stderr)
        return 1
    print(picture.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
