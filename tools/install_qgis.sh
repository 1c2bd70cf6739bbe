#!/usr/bin/env bash
# Installs QGIS 3.40 or newer with apt where there is none, and the few tools that tests and packaging need.
# A QGIS that is already installed is left as it is, also one that is too old: upgrading it is its owner's decision.
# Debian 12 and 13 (from their backports where their own is too old), Ubuntu from 25.04 on.
# With the argument "tests" also the servers that tests start: QGIS Server of the same version, PostgreSQL with PostGIS.
# Tests pass over themselves where these are missing, so that what cannot be installed is told and stops nothing.
set -euo pipefail

MINIMUM=34000   # QGIS 3.40

qgis_version() {
    # The distribution's Python: QGIS's bindings are built for it, not for another one that comes first on PATH.
    /usr/bin/python3 -c 'from qgis.core import Qgis; print(Qgis.versionInt())' 2>/dev/null || echo 0
}

missing_tools() {
    local missing=()
    command -v qgis_process >/dev/null || missing+=(qgis)
    command -v xvfb-run >/dev/null || missing+=(xvfb)
    command -v xauth >/dev/null || missing+=(xauth)
    command -v lrelease >/dev/null || missing+=(qttools5-dev-tools)
    /usr/bin/python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    find /usr/share/fonts -name '*.ttf' -print -quit 2>/dev/null | grep -q . || missing+=(fonts-dejavu-core)
    echo "${missing[*]:-}"
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "This needs root or sudo: $*" >&2
        return 1
    fi
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"
}

packaged_version() {
    # What apt would install: 1:3.22.16+dfsg-2 becomes 32216; nothing at all becomes 0.
    apt-cache policy qgis | sed -nE 's/^ *Candidate: *([0-9]+:)?([0-9]+)\.([0-9]+)\.([0-9]+).*/\2 \3 \4/p' |
        awk '{n = $1 * 10000 + $2 * 100 + $3} END {print n + 0}'
}

enable_backports() {
    # The address is the one that the machine already uses for Debian.
    local uri keyring
    uri=$(awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/debian.sources 2>/dev/null || true)
    [ -n "$uri" ] || uri=$(awk '$1 == "deb" {for (i = 2; i <= NF; i++) if ($i ~ /:\/\//) {print $i; exit}}' /etc/apt/sources.list)
    for keyring in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
        [ ! -f "$keyring" ] || break
    done
    echo "deb [signed-by=$keyring] $uri $1-backports main" |
        as_root tee /etc/apt/sources.list.d/kestrel-backports.list >/dev/null
}

install_qgis() {
    local release=() codename
    if [ "$(packaged_version)" -lt "$MINIMUM" ]; then
        codename=$(. /etc/os-release && echo "${ID:-} ${VERSION_CODENAME:-}")
        case "$codename" in
            "debian bookworm" | "debian trixie")
                codename=${codename#debian }
                enable_backports "$codename"
                as_root apt-get update -q
                release=(-t "$codename-backports")
                ;;
            *)
                echo "This system's packages hold no QGIS 3.40 or newer. Install one from QGIS's own packages, then run make again." >&2
                return 1
                ;;
        esac
    fi
    apt_install "${release[@]}" qgis python3-qgis qgis-providers
}

install_test_servers() {
    # The version that is installed, by name and all at once: apt would take another one for what they depend on.
    local servers=() databases=() version part
    version=$(dpkg-query -W -f='${Version}' python3-qgis 2>/dev/null || true)
    if [ -n "$version" ] && ! is_installed qgis-server-bin qgis-server-wms qgis-server-wmts qgis-server-wcs; then
        for part in common bin wms wmts wcs; do
            servers+=("qgis-server-$part=$version")
        done
    fi
    compgen -G '/usr/share/postgresql/*/extension/postgis.control' >/dev/null || databases=(postgresql postgresql-postgis)
    [ "$((${#servers[@]} + ${#databases[@]}))" -gt 0 ] || return 0
    command -v apt-get >/dev/null || return 0
    as_root apt-get update -q || true
    [ "${#servers[@]}" -eq 0 ] || apt_install "${servers[@]}" || pass_over "QGIS Server"
    [ "${#databases[@]}" -eq 0 ] || apt_install "${databases[@]}" || pass_over "PostgreSQL with PostGIS"
}

is_installed() {
    local package
    for package in "$@"; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || return 1
    done
}

pass_over() {
    echo "$1 cannot be installed: tests that need it pass over themselves." >&2
}

main() {
    local version tools
    version=$(qgis_version)
    tools=$(missing_tools)
    if [ "$version" -ge "$MINIMUM" ] && [ -z "$tools" ]; then
        return 0
    fi
    if [ "$version" -gt 0 ] && [ "$version" -lt "$MINIMUM" ]; then
        echo "QGIS $version is installed, and Kestrel needs 3.40 (34000) or newer. Upgrade it, then run make again." >&2
        return 1
    fi
    if ! command -v apt-get >/dev/null; then
        if [ "$version" -ge "$MINIMUM" ]; then
            echo "Not an apt system; install these yourself if a target asks for them: $tools" >&2
            return 0
        fi
        echo "QGIS 3.40 or newer was not found and this is no apt system. Install QGIS, then run make again." >&2
        return 1
    fi
    as_root apt-get update -q
    if [ "$version" -eq 0 ]; then
        install_qgis
        tools=$(missing_tools)
    fi
    # shellcheck disable=SC2086  # a list of package names
    [ -z "$tools" ] || apt_install $tools
}

main
[ "${1:-}" != tests ] || install_test_servers
