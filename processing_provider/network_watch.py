"""NetworkWatch: what became of the requests that QGIS's data providers make.

A provider whose tiles did not come tells nothing of it: the pixels are just transparent. QGIS's network manager of the
main thread announces every reply of every thread, so whoever looks there knows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import parse_qsl

from qgis.core import QgsNetworkAccessManager, QgsNetworkReplyContent
from qgis.PyQt.QtCore import QCoreApplication, QEventLoop, QMetaObject, QObject, Qt, QUrl, pyqtSlot
from qgis.PyQt.QtNetwork import QNetworkReply, QNetworkRequest

from .feedback import is_main_thread

_LIMIT = 2.0
"""Seconds in which QGIS's main thread has to hand on what it heard."""
_NOT_PICTURES = ("text/", "application/json", "application/xml", "application/vnd.ogc.se_xml", "application/geo+json")
"""Beginnings of the media types of pages and error messages."""
_NOTHING_THERE = (204, 404, 410)
"""How servers of tiles say that there is no tile."""
_OTHER_QUESTIONS = ("getcapabilities", "describecoverage", "getlegendgraphic", "getfeatureinfo", "getstyles")


@dataclass(frozen=True)
class Heard:
    """What was heard since the last look.

    Attributes:
        answered: Good answers that came from a server.
        failures: Requests that failed.
        reason: What the last failure was; holds nothing of an address.
    """

    answered: int = 0
    failures: int = 0
    reason: str = ""


class NetworkWatch(QObject):
    """Counts good and bad replies of some hosts.

    Args:
        hosts: Names of servers, "host" or "host:port"; a request counts when its server's ends with one of them. Empty:
            nothing is watched.
    """

    def __init__(self, hosts: Iterable[str]) -> None:
        """Begin to listen, in QGIS's main thread."""
        super().__init__()
        self._hosts = tuple(host.lower() for host in hosts if host)
        self._lock = threading.Lock()
        self._answered, self._failures, self._reason = 0, 0, ""
        self._bad: list[QUrl] = []
        self._marked = threading.Event()
        application = QCoreApplication.instance()
        if self._hosts and application is not None:
            self.moveToThread(application.thread())
            self._call("_listen")

    def close(self) -> None:
        """Stop listening."""
        if self._hosts:
            self._call("_stop")

    def take(self) -> Heard:
        """Give what was heard since the last call, once QGIS's main thread has handed on all that came before it."""
        if not self._hosts:
            return Heard()
        is_complete = self._settle()
        with self._lock:
            heard = Heard(self._answered, self._failures, self._reason)
            self._answered, self._failures, self._reason = 0, 0, ""
        return heard if is_complete else Heard(0, max(heard.failures, 1), heard.reason or "QGIS was busy")

    def forget_bad_replies(self) -> None:
        """Take replies that were no pictures out of QGIS's cache: it would give them again."""
        with self._lock:
            bad, self._bad = self._bad, []
        cache = QgsNetworkAccessManager.instance().cache()
        for url in bad if cache is not None else ():
            cache.remove(url)

    def _call(self, slot: str) -> None:
        if is_main_thread():
            getattr(self, slot)()
        else:
            QMetaObject.invokeMethod(self, slot, Qt.ConnectionType.QueuedConnection)

    def _settle(self) -> bool:
        if is_main_thread():
            QCoreApplication.processEvents(QEventLoop.ProcessEventsFlag.ExcludeUserInputEvents)
            return True
        self._marked.clear()
        self._call("_mark")
        return self._marked.wait(_LIMIT)

    @pyqtSlot()
    def _listen(self) -> None:
        QgsNetworkAccessManager.instance().finished[QgsNetworkReplyContent].connect(self._note)

    @pyqtSlot()
    def _stop(self) -> None:
        QgsNetworkAccessManager.instance().finished[QgsNetworkReplyContent].disconnect(self._note)
        self.deleteLater()

    @pyqtSlot()
    def _mark(self) -> None:
        self._marked.set()

    def _note(self, reply: QgsNetworkReplyContent) -> None:
        """Count one reply; called in the main thread."""
        url = reply.request().url()
        if not _server_of(url).endswith(self._hosts) or _is_other_question(url):
            return
        reason = _failure(reply)
        is_cached = bool(reply.attribute(QNetworkRequest.Attribute.SourceIsFromCacheAttribute))
        with self._lock:
            if reason is not None:
                self._failures += 1
                self._reason = reason
                self._bad.append(url)
            elif not is_cached:
                self._answered += 1


def _server_of(url: QUrl) -> str:
    port = url.port()
    return url.host().lower() + (f":{port}" if port > 0 else "")


def _is_other_question(url: QUrl) -> bool:
    """Tell whether a request is about the service and not for a picture."""
    query = {name.lower(): value.lower() for name, value in parse_qsl(url.query())}
    return query.get("request") in _OTHER_QUESTIONS or query.get("f") in ("json", "pjson")


def _failure(reply: QgsNetworkReplyContent) -> str | None:
    """Give what is wrong with a reply; None for a picture, and for the word that there is none."""
    error = reply.error()
    status = reply.attribute(QNetworkRequest.Attribute.HttpStatusCodeAttribute)
    if error == QNetworkReply.NetworkError.OperationCanceledError or status in _NOTHING_THERE:
        return None
    if status is not None and int(status) >= 400:
        return f"the server answered with HTTP status {int(status)}"
    if error != QNetworkReply.NetworkError.NoError:
        return _WORDS.get(error, "the connection to the server failed")
    kind = bytes(reply.rawHeader(b"Content-Type")).decode("latin-1").lower()
    if kind.startswith(_NOT_PICTURES):
        return "the server sent a page or a message instead of a picture"
    return None


_WORDS = {
    QNetworkReply.NetworkError.ConnectionRefusedError: "the server refuses connections",
    QNetworkReply.NetworkError.RemoteHostClosedError: "the server closed the connection too early",
    QNetworkReply.NetworkError.HostNotFoundError: "the server's name is not known",
    QNetworkReply.NetworkError.TimeoutError: "the server did not answer in time",
    QNetworkReply.NetworkError.SslHandshakeFailedError: "no safe connection to the server can be made",
    QNetworkReply.NetworkError.AuthenticationRequiredError: "the server asks for credentials",
}
