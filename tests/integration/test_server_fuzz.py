"""Damaged picture files of every format that Pillow reads: an answer or status 400, never a crash."""

from __future__ import annotations

import base64
import io
import os
import random
from collections import Counter
from collections.abc import Iterator

import pytest
from PIL import Image

from tests.conftest import task
from tests.serving import Served, served

#: `make soak` asks for more.
FILES = int(os.environ.get("VLROUTE_FUZZED_FILES", "1000"))
PICTURE = task("ocr").frames[0]
Image.init()
#: First bytes of files in the formats that Pillow reads but does not write; noise follows.
MAGIC = {
    "CUR": b"\0\0\2\0\1\0\x20\x20\0\0\1\0\x20\0\x30\0\0\0\x16\0\0\0", "DCX": b"\xb1\x68\xde\x3a\x0c\0\0\0",
    "FITS": b"SIMPLE  =                    T".ljust(80) + b"BITPIX  =                    8".ljust(80),
    "FLI": b"\x80\0\0\0\x12\xaf\2\0\x40\1\xc8\0\x08\0\3\0", "FTEX": b"FTEX\0\0\1\0" + b"\x20\0\0\0" * 4,
    "GBR": b"\0\0\0\x1c\0\0\0\2\0\0\0\x20\0\0\0\x20\0\0\0\4GIMP\0\0\0\x0a", "IMT": b"*image\nwidth 32\nheight 32\n\x0c",
    "IPTC": b"\x1c\x03\x3c\0\2\0\1\x1c\x03\x14\0\1\x20", "MCIDAS": b"\0\0\0\0\0\0\0\4",
    "MPEG": b"\0\0\1\xb3\x02\0\x20\x14",
    "PCD": b"\xff" * 2048 + b"PCD_OPA", "PIXAR": b"\x80\xe8\0\0".ljust(416, b"\0") + b"\x20\0\x20\0",
    "PSD": b"8BPS\0\1\0\0\0\0\0\0\0\3\0\0\0\x20\0\0\0\x20\0\x08\0\3", "SUN": b"\x59\xa6\x6a\x95" + b"\0\0\0\x20" * 3,
    "XPM": b'/* XPM */\nstatic char *x[] = {\n"2 2 2 1",\n"a c #000000",\n"b c #ffffff",\n"ab",\n"ba"};',
    "XVTHUMB": b"P7 332\n#END_OF_COMMENTS\n32 32 255\n",
}  # fmt: skip


def originals() -> dict[str, bytes]:
    """A file of each format."""
    found = {name: magic + random.Random(name).randbytes(2000) for name, magic in MAGIC.items()}
    for name in sorted(Image.SAVE):
        for mode in ("RGB", "L", "1", "P", "F"):
            buffer = io.BytesIO()
            try:
                PICTURE.convert(mode).save(buffer, name)
            except Exception:  # not in this mode, or only with a program that is missing
                continue
            found[name] = buffer.getvalue()
            break
    return found


def mutated(data: bytes, chance: random.Random) -> bytes:
    file = bytearray(data)
    for _ in range(chance.randint(1, 12)):
        at = int(len(file) * chance.random() ** 2)  # headers more often
        match chance.randrange(5):
            case 0:
                file[at : at + 1] = chance.randbytes(1)
            case 1:
                file[at : at + 4] = chance.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\1"))
            case 2:
                del file[at : at + chance.randint(1, 64)]
            case 3:
                file[at:at] = chance.randbytes(chance.randint(1, 64))
            case 4:
                del file[max(at, 1) :]
        file = file or bytearray(b"x")
    return bytes(file)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as one:
        yield one


def test_damaged_pictures_never_break_the_server(server: Served) -> None:
    files, chance, statuses = originals(), random.Random(FILES), Counter[tuple[str, int]]()
    unwritable = {"QOI"} - set(Image.SAVE)  # by Pillow before 12
    assert set(files) >= set(Image.OPEN) - {"BUFR", "GRIB", "HDF5", "WMF"} - unwritable  # it reads only their names
    with server.http() as http:
        for number in range(FILES):
            name = sorted(files)[number % len(files)]
            data = mutated(files[name], chance) if number >= len(files) else files[name]
            uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
            content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "What is it?"}]
            said = http.post("/v1/route", json={"messages": [{"role": "user", "content": content}]})
            statuses[name, said.status_code] += 1
            assert said.status_code in (200, 400), (name, number, said.text)
            if said.status_code == 400:
                assert said.json()["error"]["code"] in ("unreadable_media", "limit_exceeded"), (name, said.text)
        assert http.get("/ready").status_code == 200
    kinds = {status for _, status in statuses}
    assert kinds == {200, 400}
    assert statuses["PNG", 200]
    assert statuses["JPEG", 200]
    assert not statuses["EPS", 200]
