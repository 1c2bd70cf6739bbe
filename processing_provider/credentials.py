"""From QGIS's authentication store and network settings to what signs the run's requests, see inference/secrets.py.

QGIS itself applies an authentication configuration to a request that is never sent, and the headers are read from it:
so every method that works with headers does (Esri token, OAuth2, basic, API header), and Kestrel knows none of them.
Call it in the main thread: OAuth2 may open a browser, and the store may ask for its master password.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

from qgis.core import QgsApplication, QgsNetworkAccessManager
from qgis.PyQt.QtCore import QUrl
from qgis.PyQt.QtNetwork import QNetworkProxy, QNetworkProxyQuery, QNetworkRequest

from ..inference.errors import CredentialError, OutputError
from ..inference.jobs import cache_folder
from ..inference.net.addresses import origin_of
from ..inference.secrets import Secrets

_PROXIES = {QNetworkProxy.ProxyType.HttpProxy: "http", QNetworkProxy.ProxyType.Socks5Proxy: "socks5h"}
_FOLDER = "certificates"


def secrets_for(wanted: Iterable[tuple[str, str]], gdal: Mapping[str, Mapping[str, str]] | None = None) -> Secrets:
    """Collect what a run needs to sign in, to get through the proxy, and to trust servers.

    Args:
        wanted: Id of an authentication configuration (empty: none), and the URL that it is for; of two for one server
            the first counts.
        gdal: See `Secrets.gdal`.

    Raises:
        CredentialError: a configuration cannot be used.
        OutputError: the certificates cannot be written.
        ServiceError: an address is none.
    """
    headers: dict[str, dict[str, str]] = {}
    urls = []
    for authcfg, url in wanted:
        urls.append(url)
        origin = origin_of(url)
        if authcfg and origin not in headers:
            headers[origin] = signature(authcfg, url)
    credentials = tuple({"origin": origin, "headers": lines} for origin, lines in headers.items())
    return Secrets(credentials, proxies(urls), str(certificates() or ""), dict(gdal or {}))


def signature(authcfg: str, url: str) -> dict[str, str]:
    """Give the header lines with which an authentication configuration signs requests to a URL.

    Raises:
        CredentialError: there is no such configuration, it cannot be opened, or it does not work with headers.
    """
    manager = QgsApplication.authManager()
    if authcfg not in manager.configIds():
        raise CredentialError(
            f"There is no authentication configuration '{authcfg}' in this QGIS profile.",
            hint="Choose another one, or make it under Settings, Options, Authentication.",
        )
    method = manager.configAuthMethodKey(authcfg)
    request = QNetworkRequest(QUrl(url))
    before = {bytes(name) for name in request.rawHeaderList()}
    done = manager.updateNetworkRequest(request, authcfg)
    if not (done[0] if isinstance(done, tuple) else done):
        raise CredentialError(
            f"The authentication configuration '{authcfg}' ({method}) cannot be used now.",
            hint="Unlock the authentication store with its master password, or sign in again.",
        )
    names = [bytes(name) for name in request.rawHeaderList()]
    lines = {_text(name): _text(bytes(request.rawHeader(name))) for name in names if name not in before}
    if not lines or request.url() != QUrl(url):
        raise CredentialError(
            f"The authentication configuration '{authcfg}' is of the method {method}, which does not sign by headers.",
            hint="Kestrel signs in with Esri token, OAuth2, basic and API header configurations.",
        )
    return lines


def proxies(urls: Iterable[str]) -> dict[str, str]:
    """Give QGIS's proxy for these URLs, see `Secrets.proxies`; of several proxies the first counts."""
    network = QgsNetworkAccessManager.instance()
    factory = network.proxyFactory()
    found: dict[str, str] = {}
    for url in urls:
        answer = factory.queryProxy(QNetworkProxyQuery(QUrl(url))) if factory is not None else []
        proxy = _proxy_url(answer[0]) if answer else ""
        if proxy:
            found = {"http": proxy, "https": proxy}
            break
    if not found:
        return {}
    exceptions = [entry for entry in (*network.noProxyList(), *network.excludeList()) if entry]
    return {**found, **({"no_proxy": ",".join(exceptions)} if exceptions else {})}


def certificates() -> Path | None:
    """Write the certificates that QGIS trusts, the system's and the user's, and give the file; None where it has none.

    They are no secret, but nobody else may change them: a file that only this user reads and writes, named by the hash
    of its content and compared with it each time. GDAL and requests both want a file.

    Raises:
        OutputError: the cache cannot be written.
    """
    text = bytes(QgsApplication.authManager().trustedCaCertsPemText())
    if not text.strip():
        return None
    folder = cache_folder() / _FOLDER
    path = folder / f"{hashlib.sha256(text).hexdigest()[:16]}.pem"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.is_symlink() and path.is_file() and path.read_bytes() == text:
            return path
        part = path.with_suffix(f".{os.getpid()}.part")
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text)
        part.replace(path)
    except OSError as error:
        raise OutputError(f"The certificates cannot be written to {folder}: {error.strerror or error}.") from error
    return path


def _proxy_url(proxy: QNetworkProxy) -> str:
    """Write a proxy as a URL; empty where it is none."""
    scheme = _PROXIES.get(proxy.type())
    if scheme is None or not proxy.hostName():
        return ""
    user = f"{quote(proxy.user(), safe='')}:{quote(proxy.password(), safe='')}@" if proxy.user() else ""
    return f"{scheme}://{user}{proxy.hostName()}:{proxy.port()}"


def _text(line: bytes) -> str:
    return line.decode("latin-1").strip()
