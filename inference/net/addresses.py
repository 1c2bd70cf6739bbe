"""URLs and the hosts behind them: whose they are, how they are shown, and where a server may send us.

A public server must not make this computer ask its own services or those of its network: what a redirect names is
resolved and looked at first, and the connection's other end again before anything is said.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from typing import Union
from urllib.parse import SplitResult, parse_qsl, urlsplit

from ..errors import CredentialError, ServiceError

Resolver = Callable[[str], Iterable[str]]
"""From a host's name to its addresses as texts; raises OSError where it has none."""

_PORTS = {"http": 80, "https": 443}
_Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]


def system_resolver(host: str) -> list[str]:
    """Give the addresses of a host, as the system knows them."""
    return sorted({str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)})


def shown(url: str) -> str:
    """Give a URL as it may be told and logged: without user, password, query and fragment."""
    parts = _split(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"[:300]


def origin_of(url: str) -> str:
    """Give scheme, host and port of a URL, in one spelling: 'https://host' or 'https://host:8443'.

    Raises:
        ServiceError: it is no http or https URL, or it names no host.
    """
    parts = _split(url)
    scheme = parts.scheme.lower()
    if scheme not in _PORTS or not parts.hostname:
        raise ServiceError(
            f"'{shown(url)}' is not an address that Kestrel reads: it must begin with https:// or http://."
        )
    try:
        port = parts.port
    except ValueError:
        raise ServiceError(f"The address '{shown(url)}' has no valid port.") from None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{scheme}://{host}" if port in (None, _PORTS[scheme]) else f"{scheme}://{host}:{port}"


def host_of(url: str) -> str:
    """Give a URL's host, without port and brackets."""
    return _split(url).hostname or ""


def check_given(url: str) -> None:
    """Look at a URL that came from the user or from a server's answer.

    Raises:
        ServiceError: it cannot be asked for.
        CredentialError: it holds a secret.
    """
    origin_of(url)
    parts = _split(url)
    if "@" in parts.netloc:
        raise CredentialError(
            f"The address '{shown(url)}' holds a user name or password.",
            hint="Take it out, and choose an authentication configuration of QGIS instead.",
        )
    if any(name.lower() == "token" for name, _ in parse_qsl(parts.query)):
        raise CredentialError(
            f"The address '{shown(url)}' holds a token, which logs and histories would keep.",
            hint="Take it out, and choose an authentication configuration of QGIS (Esri token) instead.",
        )


def is_inner(host: str, resolve: Resolver) -> bool:
    """Tell whether a host is this computer or on its network: one of its addresses is not of the public internet.

    A name that does not resolve here (a proxy may know it) is not inner.
    """
    return any(not _is_public(address) for address in _addresses(host, resolve))


def check_jump(origin: str, target: str, resolve: Resolver) -> None:
    """Look at where a public server sends us.

    Args:
        origin: URL of the server.
        target: URL that it names.
        resolve: Gives the addresses of a host.

    Raises:
        ServiceError: the target is a service of this computer or of its network.
    """
    if is_inner(host_of(target), resolve):
        raise refused_jump(origin, target)


def refused_jump(origin: str, target: str) -> ServiceError:
    """Give the error that ends a request which would have gone from a public server to an inner one."""
    return ServiceError(
        f"The server {origin_of(origin)} refers to '{shown(target)}', which is inside of your own network.",
        hint="If that is right, give that address itself instead.",
    )


def is_public_address(text: str) -> bool:
    """Tell whether an address, as text, belongs to the public internet."""
    return _is_public(ipaddress.ip_address(text.partition("%")[0]))


def _addresses(host: str, resolve: Resolver) -> list[_Address]:
    try:
        texts = list(resolve(host))
    except (OSError, UnicodeError):
        return []
    return [ipaddress.ip_address(text.partition("%")[0]) for text in texts]


def _is_public(address: _Address) -> bool:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_global and not (mapped or address).is_multicast


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        raise ServiceError("The address is damaged: it has no readable host.") from None
