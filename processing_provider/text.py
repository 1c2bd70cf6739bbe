"""Texts for people: translation, and the cleaning of strings that come from models, layers and servers."""

from __future__ import annotations

import html
import re
import unicodedata
from pathlib import PurePath

from qgis.PyQt.QtCore import QCoreApplication

MAX_LENGTH = 200


def tr(text: str) -> str:
    """Translate a literal."""
    return QCoreApplication.translate("Kestrel", text)


def without_control_characters(text: str) -> str:
    """Drop control characters and those that turn the direction of writing; line ends and tabs become spaces."""
    spaced = "".join(" " if character in "\n\r\t" else character for character in text)
    # Cf holds the bidirectional controls and zero-width characters: a name must not look like another one.
    return "".join(character for character in spaced if unicodedata.category(character) not in ("Cc", "Cf", "Cs"))


def to_ui(value: object, max_length: int = MAX_LENGTH) -> str:
    """Give a foreign string in a form that is safe where QGIS draws HTML: labels, message bar, metadata, help."""
    return html.escape(_shortened(without_control_characters(str(value)), max_length))


def to_plain(value: object, max_length: int = 2000) -> str:
    """Give a foreign string in a form that is safe where Qt guesses whether a text is HTML.

    No tag begins without "<": a typographic one takes its place, so that the text stays readable on a terminal too.
    """
    return _shortened(without_control_characters(str(value)), max_length).replace("<", "\u2039")


def _shortened(text: str, max_length: int) -> str:
    return text if len(text) <= max_length else text[: max_length - 1] + "\u2026"


def size_text(n_bytes: int) -> str:
    """Give a number of bytes as people read it: 812 bytes, 4.2 kB, 170 MB."""
    if n_bytes < 1000:
        return tr("{count} bytes").format(count=n_bytes)
    power, unit = next((item for item in _UNITS if n_bytes < 999.5 * item[0]), _UNITS[-1])
    return f"{n_bytes / power:.3g} {unit}"


_UNITS = ((10**3, "kB"), (10**6, "MB"), (10**9, "GB"))


def to_label(value: object, max_length: int = MAX_LENGTH) -> str:
    """Give a foreign string for a legend: QGIS evaluates what stands between [% and %] in one."""
    return to_plain(value, max_length).replace("[%", "[\u200a%")


_SIGN_IN = re.compile(r"(?<=://)[^/@\s]*@")
_SECRET_PAIRS = re.compile(r"\b(password|passwd|pwd|authcfg|user|token|apikey|key)\s*=\s*('(?:\\.|[^'])*'|\S+)", re.I)


def without_secrets(source: str) -> str:
    """Give the source of a layer without what signs in: user and password, and all behind a question mark."""
    return _SECRET_PAIRS.sub("", _SIGN_IN.sub("", source.split("?")[0])).strip()


def file_name(source: str) -> str:
    """Give the last part of a path or address; of an address without what stands behind its question mark."""
    return PurePath(without_secrets(source) if "://" in source else source).name
