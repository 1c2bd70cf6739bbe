"""Carriers: files and folders that bring a model without a definition, each translated into a definition of Kestrel's.

A translator looks at one path, as data and within bounds, and gives the JSON object of a definition as if it lay beside
the file (in the folder, where the path is one), with notes on what was assumed. Everything after that, from the hash to
the consent, is the way of any other definition. QGIS imports these modules: they need the standard library alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, Optional

from . import huggingface, onnx_graph, stac_mlm, state_dict, torch_program

Translation = tuple[Mapping[str, Any], tuple[str, ...]]
Translator = Callable[[Path], Optional[Translation]]

_TRANSLATORS: tuple[Translator, ...] = (
    stac_mlm.translate,
    onnx_graph.translate,
    huggingface.translate,
    torch_program.translate,
    state_dict.translate,
)
"""Asked in this order; the first answer counts."""


def translate(path: Path) -> Translation | None:
    """Give the definition of a file or folder that is none itself, and what was assumed; None: no carrier.

    Raises:
        ModelError: a carrier that Kestrel knows and cannot run; it says what to do instead.
        OSError: the path cannot be read.
    """
    answers = (translator(path) for translator in _TRANSLATORS)
    return next((answer for answer in answers if answer is not None), None)


def as_bytes(definition: Mapping[str, Any]) -> bytes:
    """Give a translated definition as bytes, the same for the same content: they are hashed."""
    return json.dumps(definition, sort_keys=True, indent=1).encode("ascii")
