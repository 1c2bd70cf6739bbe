from __future__ import annotations

import datetime
import hashlib
import ipaddress
import random
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kestrel.inference.errors import CredentialError, InferenceError, NetworkError, ServiceError
from kestrel.inference.events import Canceled
from kestrel.inference.net.http import Credential, HttpClient
from kestrel.inference.net.limits import HttpLimits
from kestrel.tests.fixtures.servers.base import Answer, Request, Server, esri_error, json_answer, ranged, serving

CANARY = "canary-7f3a"
QUICK = HttpLimits(connect=2, read=0.3, total=5, patience=1, first_pause=0.02, longest_pause=0.1)


def client(*credentials: Credential, **options: Any) -> HttpClient:
    return HttpClient(credentials, **{"limits": QUICK, **options})


def signed(server: Server) -> Credential:
    return Credential(server.url, {"X-Esri-Authorization": f"Bearer {CANARY}", "Authorization": f"Bearer {CANARY}"})


def hello(_request: Request) -> Answer:
    return Answer(b"hello")


def redirecting(target: Callable[[], str], status: int = 302) -> Callable[[Request], Answer]:
    def handle(_request: Request) -> Answer:
        return Answer(status=status, headers={"Location": target()})

    return handle


def test_a_credential_signs_requests_to_its_own_server() -> None:
    with serving(hello) as server:
        assert b"hello" == client(signed(server)).get(server.url).content
        assert f"Bearer {CANARY}" == server.asked[0].headers["x-esri-authorization"]


@pytest.mark.parametrize("packing", ["gzip, gzip", "br", "gzip, identity"])
def test_an_answer_that_is_packed_otherwise_than_asked_for_is_not_unpacked(packing: str) -> None:
    with serving(lambda _: Answer(b"x", headers={"Content-Encoding": packing})) as server:
        with pytest.raises(ServiceError, match="packed in a way"):
            client().get(server.url)
        assert "gzip, deflate" == server.asked[0].headers["accept-encoding"]


def test_a_name_that_a_public_server_gave_must_not_lead_inside_later() -> None:
    """Its addresses may be others the next time somebody asks for them."""
    addresses = {"localhost": ["93.184.215.14"], "127.0.0.1": ["127.0.0.1"]}
    with serving(hello) as server:
        asking = client(resolve=lambda host: addresses.get(host, ["93.184.215.14"]))
        url = f"http://localhost:{server.port}/arcgis"
        asking.check_reference("https://public.example/item", url)
        with pytest.raises(ServiceError, match="inside of your own network"):
            asking.get(url)
        assert [] == server.asked


def test_a_credential_never_shows_its_headers() -> None:
    assert CANARY not in repr(Credential("https://a.example", {"Authorization": CANARY}))


@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_credential_does_not_follow_a_redirect_to_another_server(status: int, post: bool) -> None:
    with serving(hello) as other, serving(redirecting(lambda: f"{other.url}/data", status)) as first:
        reply = client(signed(first)).get(first.url, {"f": "json"}, post=post)
        assert b"hello" == reply.content
        assert (1, 1) == (len(first.asked_with(CANARY)), len(other.asked))
        assert [] == other.asked_with(CANARY)


def test_a_credential_follows_a_redirect_on_its_own_server() -> None:
    def handle(request: Request) -> Answer:
        return Answer(b"hello") if request.path == "/b" else Answer(status=302, headers={"Location": "/b"})

    with serving(handle) as server:
        assert b"hello" == client(signed(server)).get(f"{server.url}/a").content
        assert 2 == len(server.asked_with(CANARY))


def test_a_form_is_not_handed_on_to_another_host() -> None:
    with serving(hello) as other:
        target = f"http://localhost:{other.port}/"
        with serving(redirecting(lambda: target, 307)) as first, pytest.raises(ServiceError, match="another server"):
            client().get(first.url, {"secret": CANARY}, post=True)
        assert [] == other.asked


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_form_is_sent_again_where_the_same_host_wants_it(status: int) -> None:
    def handle(request: Request) -> Answer:
        return Answer(request.query["q"].encode())

    with serving(handle) as other, serving(redirecting(lambda: f"{other.url}/new", status)) as first:
        assert b"x" * 3000 == client().get(first.url, {"q": "x" * 3000}).content


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://host/x", "gopher://127.0.0.1/", "http://user:pw@127.0.0.1/", "", "//[::1"]
)
def test_a_redirect_to_something_else_than_a_plain_http_address_ends_there(target: str) -> None:
    with serving(redirecting(lambda: target)) as server, pytest.raises(ServiceError, match="does not read"):
        client().get(server.url)


def test_redirects_without_end_are_followed_five_times() -> None:
    with serving(redirecting(lambda: "/again")) as server:
        with pytest.raises(ServiceError, match="more than 5 times"):
            client().get(server.url)
        assert 6 == len(server.asked)


def public(host: str) -> list[str]:
    """Resolve names as if 'localhost' were a server on the internet; addresses are themselves."""
    return {"localhost": ["93.184.215.14"], "rebound.localhost": ["93.184.215.14"]}.get(host, [host.strip("[]")])


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1:{port}/", "http://169.254.169.254/latest/meta-data", "http://10.1.2.3/", "http://192.168.0.1/",
     "http://[::1]/", "http://[fd00::1]/", "http://[::ffff:127.0.0.1]/", "http://0.0.0.0:{port}/"],
)  # fmt: skip
def test_a_public_server_cannot_send_us_into_the_own_network(target: str) -> None:
    with serving(hello) as inner, serving(redirecting(lambda: target.format(port=inner.port))) as first:
        with pytest.raises(ServiceError, match="inside of your own network"):
            client(resolve=public).get(f"http://localhost:{first.port}/")
        assert [] == inner.asked


def test_a_name_that_leads_elsewhere_at_the_second_look_is_seen_at_the_connection() -> None:
    with serving(hello) as inner:
        target = f"http://localhost:{inner.port}/"  # `public` calls it public, the system connects to the loopback
        with serving(redirecting(lambda: target)) as first, pytest.raises(ServiceError, match="own network"):
            client(resolve=public).get(f"http://localhost:{first.port}/")
        assert [] == inner.asked


def test_a_server_of_the_own_network_may_refer_to_another_one() -> None:
    with serving(hello) as other, serving(redirecting(lambda: other.url)) as first:
        assert b"hello" == client().get(first.url).content


def test_a_sign_in_is_not_sent_unencrypted_into_the_internet() -> None:
    with serving(hello) as server:
        url = f"http://localhost:{server.port}"
        with pytest.raises(CredentialError, match="not encrypted"):
            client(Credential(url, {"Authorization": CANARY}), resolve=public).get(url)
        assert [] == server.asked


def test_nothing_is_taken_from_netrc_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"machine 127.0.0.1 login me password {CANARY}\ndefault login me password {CANARY}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with serving(hello) as server:
        client().get(server.url)
        assert "authorization" not in server.asked[0].headers


def test_cookies_are_not_kept() -> None:
    with serving(lambda _: Answer(b"x", headers={"Set-Cookie": f"session={CANARY}; Path=/"})) as server:
        http = client()
        http.get(server.url)
        http.get(server.url)
        assert [] == server.asked_with(CANARY)


@pytest.mark.parametrize("url", ["https://me:secret@host/x", "https://host/ImageServer?TOKEN=abc"])
def test_an_address_with_a_secret_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(CredentialError) as caught:
        client().get(url)
    assert not {"secret", "abc"} & set(str(caught.value).replace(":", " ").replace("=", " ").split())


@pytest.mark.parametrize("url", ["file:///etc/passwd", "host/x", "https://", "http://host:99999/", "http://[::1"])
def test_what_is_no_http_address_is_refused(url: str) -> None:
    with pytest.raises(ServiceError):
        client().get(url)


@pytest.mark.parametrize("fault", ["503", "500", "429", "stall", "reset", "short"])
def test_a_fault_that_passes_is_not_seen(fault: str) -> None:
    waits: list[str] = []
    with serving(lambda _: Answer(b"0123456789" * 1000)) as server:
        server.plan.extend([fault, fault])
        reply = client(on_wait=lambda reason, _seconds: waits.append(reason)).get(server.url, {"q": CANARY})
        assert (b"0123456789" * 1000, 3) == (reply.content, len(server.asked))
    assert 2 == len(waits)
    assert CANARY not in "".join(waits)


@pytest.mark.parametrize("fault", ["503", "500", "html", "json-error", "stall", "reset", "short"])
def test_json_comes_through_faults_or_is_an_error_in_the_end(fault: str) -> None:
    with serving(lambda _: json_answer({"currentVersion": 11.3})) as server:
        server.plan.append(fault)
        assert {"currentVersion": 11.3} == client().get_json(server.url)
        server.plan.extend([fault] * 200)
        with pytest.raises((NetworkError, ServiceError)) as caught:
            client(limits=HttpLimits(2, 0.1, 5, 0.3, 0.01, 0.05)).get_json(server.url, {"q": CANARY})
    assert CANARY not in str(caught.value)


def test_a_server_that_is_down_is_an_error_after_all_patience_and_names_it() -> None:
    with serving(hello) as server:
        url = server.url
    started = time.monotonic()
    with pytest.raises(NetworkError, match=f"'{url}' cannot be reached: it refuses the connection") as caught:
        client().get(f"{url}/secret/path", {"token_like": CANARY})
    assert time.monotonic() - started >= QUICK.patience
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None  # the library's error holds the query


def test_less_patience_may_be_asked_for() -> None:
    with serving(hello) as server:
        server.plan.extend(["503"] * 500)
        started = time.monotonic()
        with pytest.raises(NetworkError):
            client(limits=HttpLimits(first_pause=0.02, longest_pause=0.1)).get_json(server.url, patience=0.2)
    assert time.monotonic() - started < HttpLimits().patience / 2


def test_asking_once_means_once() -> None:
    with serving(hello) as server:
        server.plan.extend(["503"] * 5)
        with pytest.raises(NetworkError):
            client().get(server.url, tries=False)
        assert 1 == len(server.asked)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (esri_error(498), CredentialError),
        (esri_error(499), CredentialError),
        (esri_error(403), CredentialError),
        (Answer(status=401), CredentialError),
        (Answer(status=403), CredentialError),
        (Answer(status=407), CredentialError),
        (esri_error(400), ServiceError),
        (Answer(status=404), ServiceError),
        (json_answer({"status": "error", "code": 499, "messages": ["Token Required"]}), CredentialError),
        (json_answer([1, 2]), ServiceError),
    ],
)
def test_what_the_server_refuses_has_its_own_error(answer: Answer, kind: type[InferenceError]) -> None:
    with serving(lambda _: answer) as server, pytest.raises(kind):
        client().get_json(server.url)


def test_text_of_a_server_is_shown_in_one_short_line() -> None:
    answer = esri_error(400, "bad\n\x1b[31m\u202enews " + "x" * 5000)
    with serving(lambda _: answer) as server, pytest.raises(ServiceError) as caught:
        client().get_json(server.url)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_long_questions_go_as_a_form_and_say_the_same() -> None:
    rule = {"where": "Name = '" + "x" * 3000 + "'", "ids": [1, 2]}
    with serving(lambda r: json_answer({"rule": r.query["mosaicRule"], "method": r.method})) as server:
        answer = client().get_json(f"{server.url}/exportImage?a=1", {"mosaicRule": rule, "none": None, "yes": True})
        assert "POST" == answer["method"]
        assert {"f", "mosaicRule", "yes", "a"} == set(server.asked[0].query)
        assert '"ids":[1,2]' in answer["rule"]
        assert "GET" == client().get_json(server.url, {"mosaicRule": {"a": 1}})["method"]


def test_an_answer_that_is_too_long_is_cut_off() -> None:
    with serving(lambda _: Answer(bytes(3_000_000))) as server, pytest.raises(ServiceError, match="longer than"):
        client().get(server.url, max_bytes=1_000_000)


def test_a_proxy_is_used_where_it_is_set_and_not_for_its_exceptions() -> None:
    with serving(lambda _: Answer(b"by proxy")) as proxy, serving(hello) as server:
        proxies = {"http": proxy.url, "no_proxy": f"intranet.example, {server.url}/direct"}
        assert b"by proxy" == client(proxies=proxies).get(f"{server.url}/x").content
        assert b"hello" == client(proxies=proxies).get(f"{server.url}/direct/x").content
        assert b"hello" == client(proxies={**proxies, "no_proxy": "127.0.0.1"}).get(f"{server.url}/x").content


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that nobody has signed, and what a server needs of it."""
    folder = tmp_path_factory.mktemp("tls")
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    end = now + datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, end)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    own = builder.add_extension(address, critical=False)
    pem = own.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    plain = serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (folder / "server.pem").write_bytes(pem + secret)
    (folder / "ca.pem").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return folder / "ca.pem", context


def test_a_certificate_that_nobody_trusts_ends_it_at_once(certificate: tuple[Path, ssl.SSLContext]) -> None:
    with serving(hello, certificate[1]) as server, pytest.raises(NetworkError, match="is not trusted: self"):
        client(limits=HttpLimits()).get(server.url)


def test_a_certificate_that_qgis_trusts_is_trusted(certificate: tuple[Path, ssl.SSLContext]) -> None:
    with serving(hello, certificate[1]) as server:
        assert b"hello" == client(signed(server), ca_file=str(certificate[0])).get(server.url).content
        assert 1 == len(server.asked_with(CANARY))


def test_a_token_is_not_carried_from_https_to_http(certificate: tuple[Path, ssl.SSLContext]) -> None:
    with serving(hello) as plain, serving(redirecting(lambda: plain.url), certificate[1]) as first:
        client(signed(first), ca_file=str(certificate[0])).get(first.url)
        assert ([], 1) == (plain.asked_with(CANARY), len(plain.asked))


def cancelled_after(seconds: float) -> Callable[[], bool]:
    event = threading.Event()
    threading.Timer(seconds, event.set).start()
    return event.is_set


PATIENT = HttpLimits(read=60, patience=600, first_pause=60)


@pytest.mark.parametrize("fault", ["stall", "503"])
def test_cancelling_ends_a_stall_and_a_pause_at_once(fault: str) -> None:
    with serving(lambda _: Answer(bytes(1000))) as server:
        server.plan.append(fault)
        with pytest.raises(Canceled):
            client(limits=PATIENT, is_cancelled=cancelled_after(0.3)).get(server.url)
        assert 1 == len(server.asked)


def test_cancelling_ends_a_slow_look_up_of_a_name() -> None:
    waiting = threading.Event()

    def slow(_host: str) -> list[str]:
        waiting.wait(20)
        return ["127.0.0.1"]

    credential = Credential("http://127.0.0.1:1", {"Authorization": CANARY})
    with pytest.raises(Canceled):
        client(credential, limits=PATIENT, resolve=slow, is_cancelled=cancelled_after(0.3)).get("http://127.0.0.1:1")
    waiting.set()


CONTENT = random.Random(1).randbytes(700_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_download_that_is_cut_at_twenty_places_goes_on_where_it_was(tmp_path: Path) -> None:
    cuts = iter(sorted(random.Random(2).sample(range(20_000, 60_000), 20)))

    def handle(request: Request) -> Answer:
        whole = ranged(CONTENT, request)
        return Answer(whole.content, whole.status, headers=whole.headers, cut=next(cuts, None))

    seen: list[tuple[int, int | None]] = []
    with serving(handle) as server:
        digest = client().download(server.url, tmp_path / "m.dlpk", progress=lambda *now: seen.append(now))
        starts = [request.headers.get("range") for request in server.asked]
    assert DIGEST == digest
    assert (tmp_path / "m.dlpk").read_bytes() == CONTENT
    assert ["m.dlpk"] == left(tmp_path)
    assert (len(CONTENT), len(CONTENT)) == seen[-1]
    assert 21 == len(set(starts))


@pytest.mark.parametrize("fault", ["503", "stall", "reset", "short"])
def test_a_download_comes_through_faults(tmp_path: Path, fault: str) -> None:
    with serving(lambda request: ranged(CONTENT, request)) as server:
        server.plan.extend([fault, None])
        assert DIGEST == client().download(server.url, tmp_path / "m")


def test_a_cancelled_download_is_gone_on_with_by_the_next_call(tmp_path: Path) -> None:
    def cut(request: Request) -> Answer:
        whole = ranged(CONTENT, request)
        return Answer(whole.content, whole.status, headers=whole.headers, cut=400_000)

    stop = threading.Event()
    with serving(cut) as server:
        with pytest.raises(Canceled):
            client(is_cancelled=stop.is_set, on_wait=lambda *_: stop.set()).download(server.url, tmp_path / "m")
        assert ["m.part", "m.part.json"] == left(tmp_path)
        kept = (tmp_path / "m.part").stat().st_size
        server.handle = lambda request: ranged(CONTENT, request)
        assert DIGEST == client().download(server.url, tmp_path / "m")
        assert f"bytes={kept}-" == server.asked[-1].headers["range"]
    assert kept > 0


def test_a_file_that_changed_on_the_server_is_downloaded_anew(tmp_path: Path) -> None:
    versions = iter([(CONTENT, '"1"', 300_000), (CONTENT[::-1], '"2"', None)])

    def handle(request: Request) -> Answer:
        content, etag, cut = next(versions)
        whole = ranged(content, request, etag)
        return Answer(whole.content, whole.status, headers=whole.headers, cut=cut)

    with serving(handle) as server:
        digest = client().download(server.url, tmp_path / "m")
    assert hashlib.sha256(CONTENT[::-1]).hexdigest() == digest


def test_a_server_that_cannot_go_on_sends_the_whole_file_again(tmp_path: Path) -> None:
    cuts = iter([300_000, None])
    with serving(lambda _: Answer(CONTENT, cut=next(cuts))) as server:
        assert DIGEST == client().download(server.url, tmp_path / "m")
        assert "range" not in server.asked[-1].headers


def test_a_server_that_always_cuts_at_the_same_place_does_not_keep_us_for_ever(tmp_path: Path) -> None:
    with (
        serving(lambda _: Answer(CONTENT, cut=300_000)) as server,
        pytest.raises(NetworkError, match=r"(broke|breaks) off"),
    ):
        client(limits=HttpLimits(2, 1, 5, 0.3, 0.01, 0.05)).download(server.url, tmp_path / "m")


def test_a_part_of_another_file_is_thrown_away(tmp_path: Path) -> None:
    (tmp_path / "m.part").write_bytes(b"something else")
    (tmp_path / "m.part.json").write_text('{"name": "http://other/", "validator": "\\"1\\"", "total": 700000}')
    with serving(lambda request: ranged(CONTENT, request)) as server:
        assert DIGEST == client().download(server.url, tmp_path / "m")


def test_a_range_that_does_not_fit_is_not_glued_on(tmp_path: Path) -> None:
    answers = iter([
        Answer(CONTENT, headers={"ETag": '"1"'}, cut=200_000),
        Answer(CONTENT[5:], 206, headers={"ETag": '"1"', "Content-Range": f"bytes 5-699999/{len(CONTENT)}"}),
        Answer(CONTENT, headers={"ETag": '"1"'}),
    ])  # fmt: skip
    with serving(lambda _: next(answers)) as server:
        assert DIGEST == client().download(server.url, tmp_path / "m")


def test_two_downloads_of_one_file_do_not_write_into_each_other(tmp_path: Path) -> None:
    entered, go = threading.Event(), threading.Event()

    def slow(request: Request) -> Answer:
        entered.set()
        go.wait(5)
        return ranged(CONTENT, request)

    with serving(slow) as server:
        first = threading.Thread(target=client(limits=HttpLimits()).download, args=(server.url, tmp_path / "m"))
        first.start()
        entered.wait(5)
        with pytest.raises(InferenceError, match="another run"):
            client().download(server.url, tmp_path / "m")
        go.set()
        first.join(5)
    assert CONTENT == (tmp_path / "m").read_bytes()


def test_a_download_that_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    with serving(hello) as server, pytest.raises(InferenceError, match="cannot be written"):
        client().download(server.url, tmp_path / "missing" / "m")
