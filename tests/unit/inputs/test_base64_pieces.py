"""Base64 that is decoded in pieces: the bytes and the errors do not depend on where a piece ends."""

from __future__ import annotations

import base64
import random
from urllib.parse import quote

import pytest

from vlroute.errors import LimitError, UnreadableMediaError
from vlroute.inputs import encoded
from vlroute.inputs.encoded import decode_base64

DATA = random.Random(3).randbytes(1000)


@pytest.fixture(autouse=True, params=[3, 4, 7, 100, 2**20])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "_PIECE", request.param)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 999, 1000])
def test_the_forms_of_base64(length: int) -> None:
    data = DATA[:length]
    plain = base64.b64encode(data).decode()
    for text in (
        plain, plain.rstrip("="), base64.urlsafe_b64encode(data).decode(), base64.encodebytes(data).decode(),
        quote(plain, safe=""), "".join(f"%{ord(one):02x}" for one in plain), f" {plain} \n", f"{plain}\n=\n==",
        f"data:image/png;base64,{plain}",
    ):  # fmt: skip
        assert decode_base64(text, "a picture", 2000) == data


@pytest.mark.parametrize(("text", "message"), [
    ("QUJD" * 50 + "*" + "QUJD", "character 200 is not a base64"), ("QUJD" * 50 + "é", "character 200 is not ASCII"),
    ("QUJD" * 50 + "Q", "201 characters, so"), ("", "no data"), ("====", "no data"), ("=QUJD", "character 0 is not"),
    ("data:image/png;base64," + "QUJD" * 50 + "é", "character 200 is not ASCII"),
])  # fmt: skip
def test_errors(text: str, message: str) -> None:
    with pytest.raises(UnreadableMediaError, match=message):
        decode_base64(text, "a picture", 2000)


def test_the_limit_counts_bytes() -> None:
    text = base64.b64encode(DATA).decode()
    assert decode_base64(text, "a picture", 1000) == DATA
    with pytest.raises(LimitError, match="1000 bytes"):
        decode_base64(text, "a picture", 999)
