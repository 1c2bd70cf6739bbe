"""Stub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qgis.core import QgsProcessingFeedback

from ..feature_sink import RunFacts
from .summary import Written


class Publisher:
    def publish(self, files: Sequence[Path], facts: RunFacts, count: int, feedback: QgsProcessingFeedback) -> Written:
        raise NotImplementedError
