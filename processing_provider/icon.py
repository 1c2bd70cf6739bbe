"""The bird: the icon of Kestrel's algorithms, provider and menu."""

from __future__ import annotations

from pathlib import Path

ICON_PATH = str(Path(__file__).parent.parent / "resources" / "icons" / "kestrel.svg")
