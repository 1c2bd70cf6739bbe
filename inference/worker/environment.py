"""The environment variables that a worker process may inherit.

QGIS and the project's set-up import this: it needs nothing but the standard library.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

# An allow-list, because QGIS and its launchers export variables that break the worker (PROJ_LIB makes every CRS of
# the rasterio wheel fail) and others that would let a user's shell change what the worker trusts
# (TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD, GDAL_VRT_ENABLE_PYTHON, LD_PRELOAD).
_INHERITED = frozenset(
    """
    PATH HOME USER LOGNAME LANG LANGUAGE TZ TMPDIR TMP TEMP
    XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME XDG_RUNTIME_DIR
    HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY
    CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUDA_CACHE_PATH CUDA_PATH NVIDIA_VISIBLE_DEVICES NVIDIA_DRIVER_CAPABILITIES
    HIP_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES HSA_OVERRIDE_GFX_VERSION
    PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF PYTORCH_ENABLE_MPS_FALLBACK
    OMP_NUM_THREADS MKL_NUM_THREADS
    KESTREL_CACHE
    SYSTEMROOT SYSTEMDRIVE WINDIR COMSPEC PATHEXT USERNAME USERDOMAIN USERPROFILE HOMEDRIVE HOMEPATH
    APPDATA LOCALAPPDATA PROGRAMDATA ALLUSERSPROFILE PROGRAMFILES PROGRAMFILES(X86) PROGRAMW6432 COMMONPROGRAMFILES
    NUMBER_OF_PROCESSORS PROCESSOR_ARCHITECTURE
    """.split()
)
_CERTIFICATES = frozenset({"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"})


def child_environment(base: Mapping[str, str]) -> dict[str, str]:
    """Give the environment variables for a worker process.

    Args:
        base: The variables of this process, usually `os.environ`.

    Returns:
        The allowed ones, and what the worker and its own children need.
    """
    child = {name: value for name, value in base.items() if _is_inherited(name, value)}
    osgeo4w = base.get("OSGEO4W_ROOT")
    if osgeo4w:
        # On Windows DLLs are searched along PATH, and QGIS puts its own GDAL, PROJ and OpenMP there.
        inside = os.path.normcase(osgeo4w)
        folders = child.get("PATH", "").split(os.pathsep)
        child["PATH"] = os.pathsep.join(path for path in folders if not os.path.normcase(path).startswith(inside))
    # The worker itself runs isolated (-I) and ignores PYTHON*: these are for processes that it may start.
    child.update(PYTHONIOENCODING="utf-8", PYTHONSAFEPATH="1")
    # Idle OpenMP threads that spin take the cores that decode the next tiles.
    child["OMP_WAIT_POLICY"] = "PASSIVE"
    return child


def _is_inherited(name: str, value: str) -> bool:
    upper = name.upper()
    if upper in _CERTIFICATES:
        return Path(value).exists()
    return upper in _INHERITED or upper.startswith("LC_")
