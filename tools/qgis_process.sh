#!/usr/bin/env bash
# QGIS's own qgis_process on the repository's profile (build/profile): same arguments, same standard input, same exit code.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ ! -f "$root/build/profile/made-for.txt" ]; then
    echo "The QGIS profile build/profile is not there yet: run 'make setup' first." >&2
    exit 2
fi
if [ -z "${XDG_RUNTIME_DIR:-}" ]; then
    # Qt complains on each start without one, or when others may read it.
    export XDG_RUNTIME_DIR="$root/build/run"
    mkdir -p -m 700 "$XDG_RUNTIME_DIR"
fi
# An active virtual environment's Python must not leak into the one inside QGIS.
unset PYTHONHOME PYTHONPATH
export QGIS_CUSTOM_CONFIG_PATH="$root/build/profile" QT_QPA_PLATFORM=offscreen
exec qgis_process "$@"
