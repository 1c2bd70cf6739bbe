from __future__ import annotations

from typing import Any

import pytest

from kestrel.inference.errors import ProtocolError
from kestrel.inference.secrets import Secrets

CANARY = "canary-7f3a"
FULL = Secrets(
    ({"origin": "https://a.example", "headers": {"Authorization": CANARY}},),
    {"https": f"http://me:{CANARY}@proxy:1"},
    "/certificates.pem",
    {"/vsis3/bucket": {"AWS_SECRET_ACCESS_KEY": CANARY}},
    {"https://a.example/a.tif": f"sig={CANARY}"},
)


def test_secrets_come_back_from_their_wire_form() -> None:
    assert FULL == Secrets.from_dict(FULL.to_dict())
    assert Secrets() == Secrets.from_dict(Secrets().to_dict())


def test_secrets_do_not_show_themselves() -> None:
    assert CANARY not in repr(FULL)


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "job"},
        {"credentials": [{"origin": CANARY}]},
        {"proxies": [CANARY]},
        {"ca_file": 5},
        {"gdal": CANARY},
        {"queries": CANARY},
    ],
)
def test_a_damaged_line_is_refused_without_repeating_it(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError) as caught:
        Secrets.from_dict({**FULL.to_dict(), **changes})
    assert CANARY not in str(caught.value)
