#!/usr/bin/env bash
# Installs QGIS 3.40 or newer with apt where no usable QGIS is present, plus the few tools that tests and pictures need.
# A QGIS that is already installed is left as it is.
set -euo pipefail

MINIMUM=34000   # QGIS 3.40

qgis_version() {
    # The distribution's Python: QGIS's bindings are built for it, not for another one that comes first on PATH.
    /usr/bin/python3 - 2>/dev/null <<'PY' || echo 0
from qgis.core import Qgis
print(Qgis.versionInt())
PY
}

missing_tools() {
    local missing=()
    command -v qgis_process >/dev/null || missing+=(qgis)
    command -v Xvfb >/dev/null || missing+=(xvfb)
    command -v xauth >/dev/null || missing+=(xauth)
    command -v zip >/dev/null || missing+=(zip)
    command -v lrelease >/dev/null || missing+=(qttools5-dev-tools)
    /usr/bin/python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    fc-list 2>/dev/null | grep -q . || missing+=(fonts-dejavu-core)
    echo "${missing[*]:-}"
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"
}

enable_backports() {
    # Debian 12 ships QGIS 3.22; its backports hold 3.40. The address is the one the machine already uses for Debian.
    local uri
    uri=$(awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/debian.sources 2>/dev/null || true)
    [ -n "$uri" ] || uri=$(awk '$1=="deb"{for(i=2;i<=NF;i++) if($i ~ /:\/\//){print $i; exit}}' /etc/apt/sources.list)
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $1-backports main" |
        as_root tee /etc/apt/sources.list.d/kestrel-backports.list >/dev/null
}

main() {
    local version tools codename
    version=$(qgis_version)
    tools=$(missing_tools)
    if [ "$version" -ge "$MINIMUM" ] && [ -z "$tools" ]; then
        return 0
    fi
    if ! command -v apt-get >/dev/null; then
        if [ "$version" -ge "$MINIMUM" ]; then
            echo "Not on an apt system; install these yourself if a target asks for them: $tools" >&2
            return 0
        fi
        echo "QGIS 3.40 or newer was not found and this is no apt system. Install QGIS, then run make again." >&2
        return 1
    fi
    as_root apt-get update -q
    if [ "$version" -lt "$MINIMUM" ]; then
        codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
        local release=()
        if [ "$codename" = bookworm ] || [ "$codename" = trixie ]; then
            enable_backports "$codename"
            as_root apt-get update -q
            release=(-t "$codename-backports")
        fi
        apt_install "${release[@]}" qgis python3-qgis qgis-providers
        version=$(qgis_version)
        if [ "$version" -lt "$MINIMUM" ]; then
            echo "This system's packages hold QGIS $version, and Kestrel needs 3.40 or newer. Install a newer QGIS, then run make again." >&2
            return 1
        fi
        tools=$(missing_tools)
    fi
    # shellcheck disable=SC2086  # a list of package names
    [ -z "$tools" ] || apt_install $tools
}

main "$@"
