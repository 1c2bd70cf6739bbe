"""Makes a QGIS profile of its own, with Kestrel linked into it and enabled. Runs in QGIS's Python.

    make_profile.py PROFILE_FOLDER PLUGIN_FOLDER [INTERPRETER]

QGIS uses it with QGIS_CUSTOM_CONFIG_PATH=PROFILE_FOLDER (or --profiles-path), so a user's own profile is never touched.
"""

from __future__ import annotations

import sys
from pathlib import Path

from qgis.core import QgsApplication
from qgis.PyQt.QtCore import QSettings


def make_profile(folder: Path, plugin: Path, interpreter: str = "") -> None:
    """Make the profile, or bring it up to date.

    Args:
        folder: Where profiles are kept; the one made is its `profiles/default`, the only place where QGIS looks.
        plugin: The plugin's folder.
        interpreter: The Python of the inference environment; empty leaves it to be set by hand.
    """
    profile = folder.resolve() / "profiles" / "default"
    link = profile / "python" / "plugins" / "kestrel"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(plugin.resolve(), target_is_directory=True)
    # The name of the file differs between QGIS 3 and 4.
    ini = profile / QgsApplication.QGIS_ORGANIZATION_NAME / f"{QgsApplication.QGIS_APPLICATION_NAME}.ini"
    ini.parent.mkdir(parents=True, exist_ok=True)
    settings = QSettings(str(ini), QSettings.Format.IniFormat)
    settings.setValue("PythonPlugins/kestrel", True)
    settings.setValue("kestrel/interpreter", interpreter)
    settings.sync()
    if settings.status() != QSettings.Status.NoError:
        sys.exit(f"{ini} cannot be written")


if __name__ == "__main__":
    make_profile(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:4])
