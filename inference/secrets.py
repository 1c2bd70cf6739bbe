"""Secrets: what signs in to servers, on its way from QGIS's authentication store to the worker.

It travels as the first line on the worker's standard input, `{"type": "secrets", ...}`, and lives in memory only: it is
never part of the job, the environment, an argument, a log or a file. Which credential goes to which server is decided
by HttpClient (net/http.py) and, for GDAL, by the prefix of a path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .errors import ProtocolError


@dataclass(frozen=True)
class Secrets:
    """Everything secret that a run needs; none of it is shown by `repr`.

    Attributes:
        credentials: Each {"origin": 'https://host', "headers": {name: value}}, see net/http.py's Credential.
        proxies: "http" and "https" -> URL of the proxy, which may hold its password; "no_proxy" -> hosts and beginnings
            of URLs that go without, with commas.
        ca_file: Certificates to trust, a file in PEM; empty: those that come with the libraries.
        gdal: Beginning of a path -> configuration options of GDAL for what begins so.
        queries: Address of a file on a web server -> what stands behind its question mark, where that signs in.
    """

    credentials: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    ca_file: str = field(default="", repr=False)
    gdal: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    queries: Mapping[str, str] = field(default_factory=dict, repr=False)

    type: ClassVar[str] = "secrets"

    def to_dict(self) -> dict[str, Any]:
        """Give the wire form."""
        return {
            "type": self.type,
            "credentials": [
                {"origin": entry["origin"], "headers": dict(entry["headers"])} for entry in self.credentials
            ],
            "proxies": dict(self.proxies),
            "ca_file": self.ca_file,
            "gdal": {prefix: dict(options) for prefix, options in self.gdal.items()},
            "queries": dict(self.queries),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Secrets:
        """Rebuild what `to_dict` gave.

        Raises:
            ProtocolError: it is something else. The text does not repeat it.
        """
        try:
            if data["type"] != cls.type:
                raise ValueError
            return cls(
                tuple(
                    {"origin": _text(entry["origin"]), "headers": _texts(entry["headers"])}
                    for entry in data["credentials"]
                ),
                _texts(data["proxies"]),
                _text(data["ca_file"]),
                {_text(prefix): _texts(options) for prefix, options in data["gdal"].items()},
                _texts(data["queries"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ProtocolError("The line of secrets cannot be understood.") from None


def _texts(values: Mapping[Any, Any]) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in values.items()}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
