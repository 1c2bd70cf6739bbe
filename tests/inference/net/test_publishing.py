"""Objects are published exactly once, whatever becomes of the answers."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kestrel.inference.errors import CredentialError, NetworkError, OutputError, ServiceError
from kestrel.inference.events import Canceled
from kestrel.inference.net import publishing
from kestrel.inference.net.feature_service import check_editable, open_service
from kestrel.inference.net.hosted_service import (
    NewService,
    create_service,
    define_layer,
    feature_url,
    signed_in_user,
)
from kestrel.inference.net.http import Credential, HttpClient
from kestrel.inference.net.ledger import Ledger
from kestrel.inference.net.limits import HttpLimits
from kestrel.inference.net.publishing import Publication, Publisher, chunks
from kestrel.tests.fixtures.servers.base import Server, serving
from kestrel.tests.fixtures.servers.feature_server import TREES, USER, FeatureServer, without_global_ids

ROOT = Path(__file__).resolve().parents[3]
QUICK = HttpLimits(connect=2, read=0.3, total=2, patience=0.8, first_pause=0.01, longest_pause=0.02)
CANARY = "canary-51d0"
LAYERS = {"with global ids": TREES, "without global ids": without_global_ids(TREES)}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "_CHUNK_OBJECTS", 10)


@pytest.fixture(params=list(LAYERS))
def double(request: pytest.FixtureRequest) -> FeatureServer:
    made = FeatureServer()
    made.add_service("Trees", LAYERS[request.param])
    return made


@pytest.fixture
def server(double: FeatureServer) -> Iterator[Server]:
    with serving(double) as running:
        running.stall = 2.0
        yield running


def features(count: int, job_id: str = "run-1") -> list[dict[str, Any]]:
    def square(x: float) -> dict[str, Any]:
        return {"rings": [[[x, 0], [x, 1], [x + 1, 1], [x + 1, 0], [x, 0]]], "spatialReference": {"wkid": 3857}}

    return [
        {"geometry": square(i), "attributes": {"Class": "Palm", "Confidence": float(i), "JobId": job_id}}
        for i in range(count)
    ]


def publish(server: Server, folder: Path, count: int = 20, job_id: str = "run-1", **options: Any) -> None:
    client = HttpClient(
        options.pop("credentials", ()), limits=QUICK, is_cancelled=options.get("is_cancelled", lambda: False)
    )
    layer = open_service(client, f"{server.url}/rest/services/Trees/FeatureServer")
    assert layer is not None
    ledger, what = Ledger(folder, layer.url), Publication(job_id, "JobId", count)
    options = {"patience": 5.0, "first_pause": 0.01, **options}
    Publisher(client, layer, ledger, what, **options).publish(lambda: features(count, job_id))


def numbers(double: FeatureServer, job_id: str = "run-1") -> list[int]:
    """Give the numbers of a run's objects in the service."""
    rows = [row["attributes"] for row in double.rows()]
    return sorted(int(row["Confidence"]) for row in rows if row["JobId"] == job_id)


def test_all_objects_are_there_once_with_their_geometry(
    double: FeatureServer, server: Server, tmp_path: Path
) -> None:  # fmt: skip
    publish(server, tmp_path)
    assert numbers(double) == list(range(20))
    assert [row["geometry"] for row in double.rows()] == [feature["geometry"] for feature in features(20)]


def test_publishing_again_adds_nothing(double: FeatureServer, server: Server, tmp_path: Path) -> None:
    publish(server, tmp_path)
    publish(server, tmp_path)
    assert numbers(double) == list(range(20))


def test_two_runs_lie_side_by_side(double: FeatureServer, server: Server, tmp_path: Path) -> None:
    for job_id in ("run-1", "run-2"):
        (tmp_path / job_id).mkdir()
        publish(server, tmp_path / job_id, job_id=job_id, count=10 if job_id == "run-1" else 12)
    assert (numbers(double, "run-1"), numbers(double, "run-2")) == (list(range(10)), list(range(12)))


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(list(LAYERS)))
def test_answers_that_are_dropped_at_random_cost_nothing_and_double_nothing(
    seed: int, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    chance, double = random.Random(seed), FeatureServer()
    double.add_service("Trees", LAYERS[kind])
    with serving(double) as server:
        faults = ["reset", "reset", "short", "503", "500", "json-error", "html"]
        server.plan.extend(chance.choice(faults) if chance.random() < 0.35 else None for _ in range(60))
        until_it_works(server, tmp_path_factory.mktemp("job"), 40)
    assert numbers(double) == list(range(40))


def until_it_works(server: Server, folder: Path, count: int) -> None:
    """Publish, and start the same run again as a person does who is told so."""
    for _ in range(20):
        try:
            publish(server, folder, count)
        except (NetworkError, ServiceError):
            continue
        return
    pytest.fail("it never works")


@pytest.mark.parametrize("fault", ["reset", "short", "stall", "html", "503", "json-error"])
def test_a_chunk_whose_answer_is_lost_is_looked_for_before_it_is_sent_again(
    double: FeatureServer, server: Server, tmp_path: Path, fault: str
) -> None:
    server.plan.extend([None, None, None, fault])  # service, layer, count, first chunk
    publish(server, tmp_path, 20)
    assert numbers(double) == list(range(20))
    adding = [request for request in server.asked if request.path.endswith(("/addFeatures", "/applyEdits"))]
    # 503 and the error came instead of the work; of the others the service had done it. Rows without global ids could
    # be anybody's: they are taken away and sent again.
    is_known = bool(double.services["Trees"].layers[0]["globalIdField"])
    assert len(adding) == (2 if is_known and fault not in ("503", "json-error", "html") else 3)


def test_work_that_the_server_does_after_its_answer_got_lost_is_noticed(
    double: FeatureServer, server: Server, tmp_path: Path
) -> None:
    double.late = 1
    publish(server, tmp_path, 40, first_pause=0.001)
    time.sleep(0.4)
    publish(server, tmp_path, 40)
    assert numbers(double) == list(range(40))


def test_a_server_that_takes_twins_keeps_none_in_the_end(tmp_path: Path) -> None:
    double = FeatureServer(refuses_twins=False)
    double.add_service("Trees", TREES)
    with serving(double) as server:
        double.late = 1
        publish(server, tmp_path, 40, first_pause=0.001)
        time.sleep(0.4)
        publish(server, tmp_path, 40)
    assert numbers(double) == list(range(40))


_CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from kestrel.tests.inference.net import test_publishing as t
t.publishing._CHUNK_OBJECTS = 10
class Address:
    url = sys.argv[2]
t.publish(Address, Path(sys.argv[3]), 50)
"""


@pytest.mark.parametrize("seed", range(2))
def test_a_process_that_is_killed_in_the_middle_goes_on_where_it_was(
    double: FeatureServer, server: Server, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    command = [sys.executable, "-c", _CHILD, str(ROOT / "build" / "plugins"), server.url, str(tmp_path)]
    child = subprocess.Popen(command)
    end, wanted = time.monotonic() + 30, 10 * chance.randrange(1, 4)
    while len(double.rows()) < wanted and child.poll() is None and time.monotonic() < end:
        time.sleep(0.001)
    child.kill()
    child.wait()
    between = len(numbers(double))
    server.plan.extend(chance.choice(["reset", None]) for _ in range(30))
    publish(server, tmp_path, 50)
    assert between > 0
    assert numbers(double) == list(range(50))


def test_a_ledger_that_is_lost_doubles_nothing(double: FeatureServer, server: Server, tmp_path: Path) -> None:
    publish(server, tmp_path)
    (tmp_path / "publish.sqlite").unlink()
    publish(server, tmp_path)
    assert numbers(double) == list(range(20))


def test_rows_that_somebody_deletes_meanwhile_come_back(
    double: FeatureServer, server: Server, tmp_path: Path
) -> None:  # fmt: skip
    publish(server, tmp_path)
    rows = double.services["Trees"].rows[0]
    for object_id in list(rows)[3:9]:
        del rows[object_id]
    publish(server, tmp_path)
    assert numbers(double) == list(range(20))


def test_a_row_that_is_refused_is_told_with_the_services_reason_and_the_rest_goes_on_later(
    double: FeatureServer, server: Server, tmp_path: Path
) -> None:
    double.refuse_class = "Palm"
    with pytest.raises(ServiceError, match="not in the domain") as caught:
        publish(server, tmp_path)
    assert "Start the same run again" in caught.value.hint
    assert numbers(double) == []
    double.refuse_class = ""
    publish(server, tmp_path)
    assert numbers(double) == list(range(20))


def test_a_service_that_is_down_is_told_after_the_limit_and_the_rest_goes_on_later(
    double: FeatureServer, server: Server, tmp_path: Path
) -> None:
    server.plan.extend([None] * 4 + ["503"] * 1000)
    with pytest.raises(NetworkError):
        publish(server, tmp_path, patience=0.3)
    assert 0 < len(numbers(double)) < 20
    server.plan.clear()
    publish(server, tmp_path)
    assert numbers(double) == list(range(20))


def test_a_sign_in_that_expires_in_the_middle_is_told_and_the_rest_goes_on_with_a_new_one(tmp_path: Path) -> None:
    double = FeatureServer(token=CANARY)
    double.add_service("Trees", TREES)
    with serving(double) as server:
        signed = (Credential(server.url, {"X-Esri-Authorization": f"Bearer {CANARY}"}),)
        double.expires_after = 4
        with pytest.raises(CredentialError, match="Nothing is sent twice") as caught:
            publish(server, tmp_path, credentials=signed)
        assert CANARY not in str(caught.value)
        double.expires_after = None
        publish(server, tmp_path, credentials=signed)
        assert CANARY.encode() not in (tmp_path / "publish.sqlite").read_bytes()
        assert [request for request in server.asked if CANARY in request.path + str(request.query)] == []
    assert numbers(double) == list(range(20))


def test_a_cancel_ends_a_stalled_chunk_at_once_and_nothing_is_lost(
    double: FeatureServer, server: Server, tmp_path: Path
) -> None:
    server.plan.extend([None, None, None, "stall"])
    cancel = threading.Event()
    threading.Timer(0.2, cancel.set).start()
    with pytest.raises(Canceled):
        publish(server, tmp_path, is_cancelled=cancel.is_set)
    publish(server, tmp_path)
    assert numbers(double) == list(range(20))


def test_a_service_without_deleting_and_global_ids_is_believed_when_the_number_is_right(tmp_path: Path) -> None:
    double = FeatureServer()
    double.add_service("Trees", {**without_global_ids(TREES), "capabilities": "Create,Query"})
    with serving(double) as server:
        server.plan.extend([None, None, None, "reset"])
        publish(server, tmp_path)
    assert numbers(double) == list(range(20))


def test_a_service_without_deleting_says_so_when_rows_are_in_doubt(tmp_path: Path) -> None:
    double = FeatureServer(has_rollback=False)
    double.add_service("Trees", {**without_global_ids(TREES), "capabilities": "Create,Query"})
    with serving(double) as server:
        publish(server, tmp_path)
        double.services["Trees"].rows[0].pop(1)
        with pytest.raises(OutputError, match="does not let them be deleted"):
            publish(server, tmp_path)


def test_what_a_service_does_not_allow_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    double = FeatureServer()
    double.add_service("Trees", {**TREES, "capabilities": "Query"})
    double.add_service("Many", TREES, {**TREES, "name": "Shrubs"})
    double.add_service("Table", {"name": "Table", "fields": []})
    with serving(double) as server:
        client = HttpClient(limits=QUICK)
        start = f"{server.url}/rest/services"
        with pytest.raises(OutputError, match="does not allow: Create"):
            check_editable(open_service(client, f"{start}/Trees/FeatureServer"))
        with pytest.raises(ServiceError, match=r"several layers: 0 \(Trees\), 1 \(Shrubs\)"):
            open_service(client, f"{start}/Many/FeatureServer")
        assert open_service(client, f"{start}/Many/FeatureServer/1").name == "Shrubs"
        with pytest.raises(ServiceError, match="not a layer of features"):
            open_service(client, f"{start}/Table/FeatureServer/0")
        with pytest.raises(ServiceError, match="not the address of a feature service"):
            open_service(client, f"{start}/Trees/MapServer")


@pytest.mark.parametrize("fault", [None, "reset", "503", "short"])
def test_a_new_service_is_made_once_although_the_answer_gets_lost(fault: str | None) -> None:
    double = FeatureServer(token=CANARY)
    new = NewService("Trees", "Kestrel run 7", "", {"wkid": 3857})
    with serving(double) as server:
        client = HttpClient((Credential(server.url, {"X-Esri-Authorization": f"Bearer {CANARY}"}),), limits=QUICK)
        portal = f"{server.url}/portal"
        user = signed_in_user(client, portal)
        server.plan.extend([None, fault])  # the look for an older one, the request
        if fault == "503":
            with pytest.raises(NetworkError):
                create_service(client, portal, user, new)
            server.plan.clear()
        item_id, url = create_service(client, portal, user, new)
        again = create_service(client, portal, user, new)
        assert ((item_id, url), user) == (again, USER)
        assert list(double.services) == ["Trees"]
        assert feature_url(client, portal, item_id) == url
        assert open_service(client, url) is None
        server.plan.extend([fault] if fault != "503" else [])
        define_layer(client, url, {**TREES, "name": "Found"})
        assert open_service(client, url).name == "Found"
        with pytest.raises(OutputError, match="named 'Trees' already"):
            create_service(client, portal, user, NewService("Trees", "Kestrel run 8", "", {"wkid": 3857}))


@given(st.lists(st.integers(1, 40_000), max_size=40))
@settings(max_examples=30, deadline=None)
def test_chunks_hold_every_object_once_in_order(vertices: list[int]) -> None:
    made = [{"geometry": {"rings": [[0] * count]}, "attributes": {"n": i}} for i, count in enumerate(vertices)]
    found = list(chunks(made))
    assert [feature["attributes"]["n"] for chunk in found for feature in chunk.features] == list(range(len(made)))
    assert [chunk.first for chunk in found] == [
        sum(len(other.features) for other in found[:index]) for index in range(len(found))
    ]
    assert Counter(chunk.number for chunk in found) == Counter(range(len(found)))
