"""JSON bodies that are checked piece by piece: the value is that of Python's parser, and the limits hold."""

from __future__ import annotations

import base64
import json
import random
import string
from typing import Any

import pytest

from vlroute.serving.bodies import LONG, MAX_DEPTH, MAX_STRUCTURE, BodyPool, JSONBody, PooledBody
from vlroute.serving.errors import APIError

PICTURE = base64.b64encode(random.Random(1).randbytes(9000)).decode()


def read(body: bytes, size: int = 2**15, max_text: int = 2**20) -> Any:
    one = JSONBody(max_text)
    for at in range(0, len(body), size):
        one.feed(body[at : at + size])
    return one.value()


def a_value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.choice(["text", "text", "picture", "number", "word", *(["list", "object"] * 2 if depth < 4 else [])])
    match kind:
        case "text":
            return "".join(chance.choices(string.printable + '"\\\\/é你😀\ud800', k=chance.choice([0, 5, 60, 6000])))
        case "picture":
            return chance.choice(["", "data:image/png;base64,"]) + PICTURE[: chance.choice([40, LONG, 12_000])]
        case "number":
            return chance.choice([0, -1, 1.5, 1e300, 10**30, -0.0, 1e-7])
        case "word":
            return chance.choice([True, False, None])
        case "list":
            return [a_value(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {f'k{i}"\\': a_value(chance, depth + 1) for i in range(chance.randrange(4))}


@pytest.mark.parametrize("seed", range(40))
def test_the_value_is_that_of_pythons_parser_in_pieces_of_any_size(seed: int) -> None:
    chance = random.Random(seed)
    value = {"first": PICTURE, "rest": [a_value(chance) for _ in range(5)]}
    text = json.dumps(value, ensure_ascii=chance.random() < 0.5, indent=chance.choice([None, 1]))
    body = text.encode("utf-8", "surrogatepass")
    if chance.random() < 0.3:
        body = body.replace(b"/", b"\\/")  # as PHP writes it
    for size in (1, chance.randrange(2, 50), 2**15):
        assert read(body, size) == json.loads(body)


def test_base64_with_line_breaks_is_kept_out_of_the_parser() -> None:
    lines = base64.encodebytes(random.Random(2).randbytes(60_000)).decode()
    assert read(json.dumps({"data": lines}).encode(), 1000, max_text=LONG + 100) == {"data": lines}


@pytest.mark.parametrize("broken", [
    b'{"a": 1,}', b'["%s" 1]', b'["%s""%s"]', b'[1"%s"]', b'[-"%s"]', b'[1e"%s"]', b'[0."%s"]', b'"%s',
    b'["%s\\', b'["%s\\q"]', b'["%s\n"]', b"[1] 2", b"\xff", b'["%s\xff"]', b"", b"[", b"]", b'"\\',
])  # fmt: skip
def test_what_is_not_json_stays_an_error(broken: bytes) -> None:
    body = broken.replace(b"%s", PICTURE.encode())
    with pytest.raises((json.JSONDecodeError, UnicodeDecodeError)):
        json.loads(body)
    for size in (1, 7, 2**15):
        with pytest.raises((json.JSONDecodeError, UnicodeDecodeError)):
            read(body, size)


def test_the_place_of_a_syntax_error_counts_the_pictures() -> None:
    body = f'{{"é": ["{PICTURE}", "{PICTURE}"], "b": 1,}}'.encode()
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(body)
    with pytest.raises(json.JSONDecodeError) as found:
        read(body)
    assert (found.value.msg, found.value.pos) == (expected.value.msg, expected.value.pos)


def test_a_picture_is_no_name_of_a_field() -> None:
    with pytest.raises(ValueError, match="property name"):
        read(json.dumps({PICTURE: 1}).encode())


def test_other_encodings_than_utf_8_are_errors_and_a_byte_order_mark_is_not() -> None:
    assert read(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
    with pytest.raises(UnicodeDecodeError):
        read('{"a": 1}'.encode("utf-16"))


@pytest.mark.parametrize(("body", "status", "message"), [
    (b"[" * (MAX_DEPTH + 1), 400, "nested too deeply"),
    (b"[" + b"[]," * MAX_STRUCTURE, 413, "brackets, commas"),
    (b"{" + b'"a":1,' * MAX_STRUCTURE, 413, "brackets, commas"),
    (b'""' * (MAX_STRUCTURE + 1), 413, "brackets, commas"),
    (b" " * 2**21, 413, "besides pictures"), (b'"' + b"a b " * 2**19, 413, "besides pictures"),
    (b'"' + b"\\n" * 2**20, 413, "besides pictures"), (b'"' + b"a" * 2**21 + b" ", 413, "besides pictures"),
    ("你".encode() * 2**19, 413, "besides pictures"),
])  # fmt: skip
def test_limits(body: bytes, status: int, message: str) -> None:
    with pytest.raises(APIError, match=message) as caught:
        read(body)
    assert caught.value.status == status


def test_depth_within_strings_does_not_count() -> None:
    value = ["[" * 10_000, '\\"[{' * 500]
    assert read(json.dumps(value).encode(), 11) == value
    nested = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert read(nested.encode()) == json.loads(nested)


def fill(body: PooledBody, flow: str) -> None:
    while True:
        body.take(flow, 1)


def test_each_flow_finds_room_in_the_pool_and_its_limit_holds() -> None:
    pool, flows = BodyPool(1000), ["a", "b", "c", "d"]
    bodies = {flow: PooledBody(pool) for flow in flows}
    held = []
    for flow in flows:  # each takes as much as it gets
        before = pool.held
        with pytest.raises(APIError, match="max_total_body") as caught:
            fill(bodies[flow], flow)
        held.append(pool.held - before)
        error = caught.value
        assert (error.status, error.code, error.headers) == (429, "too_many_bytes", {"Retry-After": "5"})
    assert held == [500, 250, 125, 63]
    assert pool.held == sum(held) <= 1000
    assert bodies["b"].release() == 250
    PooledBody(pool).take("c", 1)  # the room is free for others again
    assert bodies["b"].release() == 0


def test_a_body_counts_for_the_flow_of_its_first_bytes() -> None:
    pool = BodyPool(100)
    body = PooledBody(pool)
    body.take("address", 20)
    body.take("key", 20)
    body.release()
    assert pool.held == 0
    PooledBody(pool).take("address", 50)
