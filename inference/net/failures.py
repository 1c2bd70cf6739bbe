"""What goes wrong on the way to a server, in words of our own: a library's text may hold the query."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import requests

from ..errors import NetworkError, ServiceError, first_line
from .addresses import origin_of, shown
from .limits import HttpLimits
from .replies import TryAgain
from .transport import ShortAnswer, StallError


@contextmanager
def told(url: str, limits: HttpLimits) -> Iterator[None]:
    """Translate what happens on the way; never with a library's text, which may hold the query."""
    try:
        yield
    except (StallError, requests.Timeout) as error:
        seconds = getattr(
            error, "seconds", limits.connect if isinstance(error, requests.ConnectTimeout) else limits.read
        )
        raise TryAgain(unreachable(url, f"no answer within {seconds:g} s")) from None
    except ShortAnswer:
        raise TryAgain(short_answer(url)) from None
    except requests.exceptions.InvalidURL:
        raise ServiceError(f"The address '{shown(url)}' cannot be used.") from None
    except requests.exceptions.SSLError as error:
        if not has_cause(error, ssl.SSLCertVerificationError):
            raise TryAgain(unreachable(url, "the encrypted connection broke off")) from None
        raise NetworkError(
            f"The certificate of '{origin_of(url)}' is not trusted: {_certificate_reason(error)}.",
            hint="Add the authority's certificate to QGIS (Settings, Options, Authentication), or repair the server's.",
        ) from None
    except requests.exceptions.InvalidSchema:
        raise NetworkError(
            "A SOCKS proxy cannot be used: the Python package PySocks is missing.",
            hint="Choose an HTTP proxy in QGIS's network settings, or add PySocks to the environment.",
        ) from None
    except requests.exceptions.ProxyError:
        raise TryAgain(unreachable(url, "the proxy does not let it through")) from None
    except (requests.RequestException, ValueError, OSError) as error:
        raise TryAgain(unreachable(url, _connection_reason(error))) from None


def unreachable(url: str, reason: str) -> NetworkError:
    """Give the error for a server that cannot be talked to."""
    return NetworkError(
        f"The server '{origin_of(url)}' cannot be reached: {reason}.",
        hint="Check the address and the connection, then run again; what is done already is kept.",
    )


def short_answer(url: str) -> NetworkError:
    """Give the error for an answer that ends before its length."""
    return NetworkError(f"The answer to '{shown(url)}' breaks off before its end.", hint="Run again.")


def too_long(url: str, max_bytes: int) -> ServiceError:
    """Give the error for an answer that is longer than allowed."""
    return ServiceError(f"The answer to '{shown(url)}' is longer than {max_bytes} bytes.", max_bytes=max_bytes)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Give an error and what it wraps: as cause, as context, in urllib3's `reason`, or as an argument."""
    todo, known = [error], set()
    while todo:
        current = todo.pop()
        if id(current) in known:
            continue
        known.add(id(current))
        yield current
        wrapped = (current.__cause__, current.__context__, getattr(current, "reason", None), *current.args)
        todo += [item for item in wrapped if isinstance(item, BaseException)]


def has_cause(error: BaseException, kind: type[BaseException]) -> bool:
    """Tell whether an error wraps one of a kind, however deep."""
    return any(isinstance(cause, kind) for cause in _causes(error))


def _certificate_reason(error: BaseException) -> str:
    reasons = [cause.verify_message for cause in _causes(error) if isinstance(cause, ssl.SSLCertVerificationError)]
    return first_line(Exception(reasons[0])) if reasons else "it cannot be verified"


def _connection_reason(error: BaseException) -> str:
    names = {type(cause).__name__ for cause in _causes(error)}
    if names & {"gaierror", "NameResolutionError"}:
        return "its name is not known"
    if "ConnectionRefusedError" in names:
        return "it refuses the connection"
    if names & {"ConnectionResetError", "RemoteDisconnected", "ProtocolError", "BrokenPipeError"}:
        return "the connection broke off"
    return "there is no connection"
