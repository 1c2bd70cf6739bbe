"""What the tests of the core share: a cache of their own, and quiet threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before any library that brings OpenMP: waiting threads sleep instead of spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


settings.register_profile("core", max_examples=40, deadline=None)
settings.load_profile("core")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Kestrel's cache for the whole session, so that each network is measured once."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KESTREL_CACHE", str(folder))
        yield folder
