"""Consent to the programs of model packages: to one exact content, kept, taken back, and locked by administrators.

A program is known by the SHA-256 of its file set (inference/models/program.py), never by a path or a name. Nothing in
here asks anybody: the dialog does that (ui/consent_dialog.py), and a run without a window is refused with the hash to
allow.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Any

from qgis.core import QgsApplication, QgsSettings
from qgis.PyQt.QtCore import QSettings

from ..inference.errors import JobError, UntrustedCodeError
from ..inference.models.package import ModelPackage
from ..inference.models.program import ProgramFile, program_files, program_sha256
from .text import to_plain, tr

TRUSTED_SETTING = "kestrel/trusted_code"
"""The user's own: JSON text of a list of {sha256, name, date}."""
POLICY_SETTING = "kestrel/code_policy"
"""The administrator's: "ask" (the default) or "deny". Read from the global settings only."""
PRESET_SETTING = "kestrel/trusted_code_global"
"""The administrator's: hashes with commas between. Read from the global settings only."""
PARAMETER = "ALLOW_PACKAGE_CODE"

_GLOBAL_FILE_VARIABLE = "QGIS_GLOBAL_SETTINGS_FILE"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SEPARATORS = re.compile(r"[\s,;]+")
_MOST_KEPT_HASHES = 64
MAX_BYTES_AT_ONCE = 64 * 10**6
"""Larger programs are not hashed while somebody only chooses a model: the window must not stand still."""

_this_time: set[str] = set()
"""Allowed until QGIS ends."""
_hashes: dict[tuple[str, int, int], str] = {}
"""Hashes of archives that were looked at, by path, size and time: the worker hashes what it runs once more."""
_looked_at: dict[int, str] = {}
"""Hashes of large programs that somebody looked at, by their files' names and sizes: for what a window says only."""


class Consent(Enum):
    """Whether a program may run."""

    GIVEN = "given"
    MISSING = "missing"
    DENIED = "denied"
    UNKNOWN = "unknown"
    """Its files are large, and nobody has looked at them yet."""


@dataclass(frozen=True)
class TrustedProgram:
    """A program that the user has allowed for good."""

    sha256: str
    name: str
    date: str


def needs_consent(package: ModelPackage) -> bool:
    """Tell whether a package can only be run as a program."""
    return bool(package.definition.program)


def sha256_of(package: ModelPackage) -> str:
    """Give the hash of a package's program.

    Raises:
        ModelPackageError: its files cannot be read.
    """
    key = _archive_key(package)
    if key is None:
        return program_sha256(package)
    if key not in _hashes:
        _keep(_hashes, key, program_sha256(package))
    return _hashes[key]


def look_anew(package: ModelPackage) -> str:
    """Give the hash of a package's program as it is now, whatever was looked at before.

    Raises:
        ModelPackageError: its files cannot be read.
    """
    key, files = _archive_key(package), program_files(package)
    sha256 = program_sha256(package)
    if key is not None:
        _keep(_hashes, key, sha256)
    _keep(_looked_at, _outline(package, files), sha256)
    return sha256


def known_sha256(package: ModelPackage) -> str:
    """Give the hash of a package's program where that takes no time, or else an empty text.

    Raises:
        ModelPackageError: its files cannot be read.
    """
    key, files = _archive_key(package), program_files(package)
    if key in _hashes or sum(file.size for file in files) <= MAX_BYTES_AT_ONCE:
        return sha256_of(package)
    return _looked_at.get(_outline(package, files), "") if key is None else ""


def _archive_key(package: ModelPackage) -> tuple[str, int, int] | None:
    path = getattr(package.members, "path", None)
    try:
        status = path.stat() if path is not None else None
    except OSError:
        return None
    return (str(path), status.st_size, status.st_mtime_ns) if status is not None else None


def _outline(package: ModelPackage, files: list[ProgramFile]) -> int:
    place = str(getattr(package.members, "folder", ""))
    return hash((place, package.root, package.definition_bytes, tuple((file.name, file.size) for file in files)))


def _keep(kept: dict[Any, str], key: Any, sha256: str) -> None:
    if len(kept) >= _MOST_KEPT_HASHES:
        kept.clear()
    kept[key] = sha256


def consent_to(sha256: str, also: Iterable[str] = ()) -> Consent:
    """Tell whether the program of that hash may run.

    Args:
        sha256: The hash.
        also: Hashes that are allowed for this run.
    """
    if sha256 in preset_hashes():
        return Consent.GIVEN
    if is_denied():
        return Consent.DENIED
    is_allowed_here = sha256 in _this_time or sha256 in also
    return Consent.GIVEN if is_allowed_here or is_allowed(sha256) else Consent.MISSING


def allowed_code(package: ModelPackage, given: str) -> str:
    """Give the hash of a package's program if it may run, an empty text if it holds none.

    Args:
        package: The opened package.
        given: The parameter ALLOW_PACKAGE_CODE.

    Raises:
        UntrustedCodeError: nobody has allowed exactly this program, or the administrator forbids programs.
        JobError: the parameter holds no hash.
    """
    also = parse_hashes(given)
    if not needs_consent(package):
        return ""
    sha256 = sha256_of(package)
    # A model of the designer may bring the parameter along: where somebody can be asked, it counts for nothing.
    consent = consent_to(sha256, () if has_window() else also)
    if consent is Consent.DENIED:
        raise _denied(package, sha256)
    if consent is Consent.MISSING:
        raise _missing(package, sha256, is_given=bool(also))
    return sha256


def has_window() -> bool:
    """Tell whether this is QGIS with its window, where consent is given by looking."""
    return str(QgsApplication.platform()) == "desktop"


def _denied(package: ModelPackage, sha256: str) -> UntrustedCodeError:
    return UntrustedCodeError(
        f"The model '{package.definition.name}' is a program ('{package.definition.program}'), and the administrator "
        "of this QGIS does not allow models to run programs.",
        hint=f"Use a model without a program, or ask the administrator to allow the content {sha256}.",
        sha256=sha256,
        program=package.definition.program,
    )


def _missing(package: ModelPackage, sha256: str, *, is_given: bool) -> UntrustedCodeError:
    n_files = len(program_files(package))
    others = f" with {n_files - 1} more files" if n_files > 2 else " with one more file" if n_files == 2 else ""
    reason = "nobody has allowed this exact content to run"
    if is_given and has_window():
        reason = f"{PARAMETER} is for runs without a window: in QGIS's window it allows nothing"
    elif is_given:
        reason = f"{PARAMETER} allows another content"
    return UntrustedCodeError(
        f"The model '{package.definition.name}' is a program ('{package.definition.program}'{others}), and {reason}.",
        hint="Only if you trust where it comes from: in the dialog, press 'Look and allow\u2026' below the model; "
        f"without a window, set {PARAMETER}={sha256}.",
        sha256=sha256,
        program=package.definition.program,
    )


def parse_hashes(value: Any) -> frozenset[str]:
    """Read hashes: one, or several with commas, spaces or semicolons between, or a JSON list.

    Raises:
        JobError: something in it is no SHA-256.
    """
    text = str(value or "").strip()
    if text.startswith("["):
        try:
            words = [str(item) for item in json.loads(text)]
        except (ValueError, RecursionError) as error:
            raise JobError(f"{PARAMETER} is not a valid JSON list: {error}.") from error
    else:
        words = _SEPARATORS.split(text)
    hashes = [word.strip().strip('"').lower().removeprefix("sha256:") for word in words if word.strip()]
    for item in hashes:
        if not _SHA256.fullmatch(item):
            raise JobError(
                f"{PARAMETER} holds {item[:80]!r}, which is no SHA-256 (64 digits 0 to 9 and a to f).",
                hint="Copy the hash from the message of the run that was refused.",
            )
    return frozenset(hashes)


# -- The user's own list -----------------------------------------------------------------------------------------------


def trusted_programs() -> list[TrustedProgram]:
    """Give the programs that the user has allowed for good, in the order in which they were allowed."""
    try:
        stored = json.loads(str(QgsSettings().value(TRUSTED_SETTING, "[]") or "[]"))
    except (ValueError, RecursionError):
        return []
    if not isinstance(stored, list):
        return []
    return [
        TrustedProgram(entry["sha256"], str(entry.get("name", "")), str(entry.get("date", "")))
        for entry in stored
        if isinstance(entry, dict) and _SHA256.fullmatch(str(entry.get("sha256")))
    ]


def is_allowed(sha256: str) -> bool:
    """Tell whether the user has allowed that program for good."""
    return any(entry.sha256 == sha256 for entry in trusted_programs())


def allow(sha256: str, name: str) -> None:
    """Allow exactly this program for good."""
    if not is_allowed(sha256):
        _store([*trusted_programs(), TrustedProgram(sha256, to_plain(name, 80), date.today().isoformat())])


def allow_this_time(sha256: str) -> None:
    """Allow exactly this program until QGIS ends."""
    _this_time.add(sha256)


def revoke(sha256: str) -> None:
    """Take back what was allowed, for good or for this time."""
    _this_time.discard(sha256)
    _store([entry for entry in trusted_programs() if entry.sha256 != sha256])


def _store(entries: list[TrustedProgram]) -> None:
    QgsSettings().setValue(TRUSTED_SETTING, json.dumps([asdict(entry) for entry in entries], ensure_ascii=False))


# -- The administrator's word ------------------------------------------------------------------------------------------


def is_denied() -> bool:
    """Tell whether the administrator forbids programs, but for those that he allowed himself.

    Any word but "ask" forbids them: a misspelt one must not open what was meant to be closed.
    """
    return bool(_forbidding_files())


def _forbidding_files() -> set[str]:
    return {path for path, policy in _global_values(POLICY_SETTING) if str(policy).strip().lower() != "ask"}


def preset_hashes() -> frozenset[str]:
    """Give the hashes that the administrator has allowed.

    QGIS's own file counts. Any other one is named by a variable or an option, which whoever starts QGIS may set: it
    does not open what another file closes.
    """
    found: set[str] = set()
    own, forbidding = _own_global_file(), _forbidding_files()
    for path, value in _global_values(PRESET_SETTING):
        if path != own and forbidding - {path}:
            continue
        text = ",".join(str(item) for item in value) if isinstance(value, (list, tuple)) else str(value or "")
        found.update(word.lower() for word in _SEPARATORS.split(text) if _SHA256.fullmatch(word.lower()))
    return frozenset(found)


def _global_values(key: str) -> list[tuple[str, Any]]:
    """Give each global file of QGIS that holds a setting, and its value there; the user's own settings are not asked.

    QGIS reads one such file, and qgis_process none at all: here every place is looked at where QGIS looks for it. Upper
    and lower case make no difference, as on Windows.
    """
    named = (QgsSettings.globalSettingsPath(), os.environ.get(_GLOBAL_FILE_VARIABLE, ""))
    paths = {_own_global_file(), *(os.path.realpath(path) for path in named if path)}
    found = []
    for path in sorted(path for path in paths if Path(path).is_file()):
        settings = QSettings(path, QSettings.Format.IniFormat)
        found += [(path, settings.value(name)) for name in settings.allKeys() if name.lower() == key]
    return found


def _own_global_file() -> str:
    return os.path.realpath(Path(QgsApplication.pkgDataPath()) / "resources" / "qgis_global_settings.ini")


def policy_text() -> str:
    """Say what the administrator has settled."""
    if is_denied():
        return tr("The administrator of this QGIS does not allow models to run programs, but for those that he listed.")
    n_preset = len(preset_hashes())
    listed = tr("The administrator has allowed {count} besides.").format(count=n_preset) if n_preset else ""
    asks = tr("A model that is a program runs only after you have looked at it and allowed exactly that content.")
    return f"{asks} {listed}".strip()
