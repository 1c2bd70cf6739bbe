"""What the operation answers, in its own JSON: the job, its messages and the value of outObjects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_CODE = re.compile(r"\[([a-z-]+)\]\s*$")
_MEMBER_OF_CODE = (
    ("model", "model"),
    ("untrusted-code", "model"),
    ("backend-missing", "model"),
    ("raster", "inputRaster"),
    ("device-unavailable", "context.processorType"),
    ("output", "outputObjects"),
    ("disk-full", "outputObjects"),
)
_CODES_OF_SERVERS = ("network", "service", "credentials")
_MEMBER_OF_WORDS = (
    (r"^(?:The m|M)odel argument|text_prompt|\bARGUMENTS\b", "modelArguments"),
    (r"\bmask\b|\bMASK\b", "context.mask"),
    (r"\bextent\b|\bEXTENT\b", "context.extent"),
    (r"\bsnap raster\b|\bSNAP_RASTER\b", "context.snapRaster"),
    (r"\bcell size\b|\bCELL_SIZE(?:_LAYER)?\b", "context.cellSize"),
    (r"\bGPU\b", "context.gpuId"),
    (r"\bOUTPUT(?:_SERVICE)?\b", "outputObjects"),
    (r"\bINPUT(?:_SOURCE)?\b", "inputRaster"),
    (r"\bfield\b", "confidenceScoreField, classValueField"),
)
"""Words of what Kestrel and QGIS say of a parameter, for errors whose code does not tell the member."""


@dataclass(frozen=True)
class JobMessage:
    """One message of a job; kind is Informative, Warning or Error."""

    kind: str
    text: str

    def to_dict(self) -> dict[str, str]:
        """Give it as the operation writes it."""
        return {"type": f"esriJobMessageType{self.kind}", "description": self.text}


def out_objects(value: str) -> str:
    """Give the result `outObjects` as JSON.

    Args:
        value: What `kestrel:detectobjects` says of where the objects are, as JSON.
    """
    return _text({"paramName": "outObjects", "dataType": "GPString", "value": json.loads(value)})


def finished_job(job_id: str, messages: Iterable[JobMessage], members: Iterable[str]) -> str:
    """Give the job that has succeeded, as JSON.

    Args:
        job_id: Name of the run.
        messages: What it said.
        members: Names of the members that the request held.
    """
    return _text(
        {
            "jobId": job_id,
            "jobStatus": "esriJobSucceeded",
            "messages": [message.to_dict() for message in messages],
            "results": {"outObjects": {"paramUrl": "results/outObjects"}},
            "inputs": {name: {"paramUrl": f"inputs/{name}"} for name in members},
        }
    )


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def blamed(reason: str, addresses: Mapping[str, Iterable[str]]) -> str:
    """Give the member of the request that a failure of `kestrel:detectobjects` is about, or an empty text.

    Args:
        reason: What was said.
        addresses: Where each member is looked up.
    """
    found = _CODE.search(reason)
    code = found.group(1) if found else ""
    for start, member in _MEMBER_OF_CODE:
        if code.startswith(start):
            return member
    if code in _CODES_OF_SERVERS:
        near = [member for member, urls in addresses.items() if any(url in reason for url in urls)]
        return near[0] if len(near) == 1 else ""
    return next((member for words, member in _MEMBER_OF_WORDS if re.search(words, reason)), "")
