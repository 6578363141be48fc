"""Damage inputs at random, and count the errors that are not of a public type.

Each kind of input is damaged in its bytes and, where it is JSON, in its structure. A damaged input may still be valid;
what loads is then used, so that nothing incomplete is accepted.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from training.chaos.kills import a_question, an_answer
from vlroute.chat import Turn, read_chat, write_chat
from vlroute.decision.artifact import CARD_FILE, read_artifact, write_artifact
from vlroute.decision.captions import VisionProbe
from vlroute.decision.classifier import ComplexityClassifier, Start
from vlroute.decision.evidence import ANSWER_NUMBERS
from vlroute.decision.selector import ModeSelector
from vlroute.decision.target import Target
from vlroute.decision.text_encoder import load_text_encoder
from vlroute.engine.remote.endpoint import read_endpoints
from vlroute.errors import VLRouteError
from vlroute.files import shipped
from vlroute.inputs.limits import Limits
from vlroute.inputs.media import load_picture, load_video
from vlroute.model_card import model_card, vocabulary_of
from vlroute.records import Outcome, Record, Skipped, read_records, write_records
from vlroute.store import Store, export_feedback
from vlroute.types import MODES

#: Damaged pictures and videos must not take long, so that a run of thousands ends.
SMALL = Limits(max_pixels=2**20, max_bytes=2**20, max_video_bytes=2**20)
_HUGE = "1e999"  # becomes a number in JSON
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**70, -(2**63), 10**400, -1.5, 1e308, float("nan"), float("inf"), _HUGE, "", "\0", "\ud800",
    "x" * 5000, "../../etc/passwd", [], {}, [[]], [None], {"": ""}, [{}] * 300, json.loads("[" * 300 + "]" * 300),
    "instruct", "thinking",
)  # fmt: skip
Load = Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of input.

    Attributes:
        name: Its name in the table.
        files: Writes valid inputs to a folder and returns the files to damage.
        load: Reads and uses the files of a folder; or one file, if there is only one or they are separate.
        separate: Whether each file is an input of its own.
        damage: Damages a folder with these files; None: one of the files is damaged.
    """

    name: str
    files: Callable[[Path], list[Path]]
    load: Load
    separate: bool = False
    damage: Callable[[random.Random, Path], None] | None = None


@dataclass(slots=True)
class Damaged:
    """Result of the mutants of one kind.

    Attributes:
        kind: Its name.
        mutants: Number of damaged inputs.
        accepted: Number of those that were read without an error.
        refused: Number of those that led to a public error.
        untyped: Number of those that led to another error.
        errors: The first of these.
    """

    kind: str
    mutants: int = 0
    accepted: int = 0
    refused: int = 0
    untyped: int = 0
    errors: tuple[str, ...] = ()


def run(kind: Kind, mutants: int, seed: int = 0, advance: Callable[[], object] = lambda: None) -> Damaged:
    """Load `mutants` damaged inputs of one kind."""
    result, rng = Damaged(kind.name), random.Random(f"{kind.name} {seed}")
    with _folder() as valid:
        originals = {file.relative_to(valid): file.read_bytes() for file in kind.files(valid)}
        whole = {file.relative_to(valid): file.read_bytes() for file in valid.rglob("*") if file.is_file()}
    names = sorted(originals)
    for _ in range(mutants):
        name = rng.choice(names)
        with _folder() as folder:
            for other, data in whole.items():
                (folder / other).parent.mkdir(parents=True, exist_ok=True)
                (folder / other).write_bytes(data)
            if kind.damage is None:
                (folder / name).write_bytes(mutated(rng, originals[name]))
            else:
                kind.damage(rng, folder)
            result.mutants += 1
            try:
                kind.load(folder / name if kind.separate or len(whole) == 1 else folder)
                result.accepted += 1
            except VLRouteError:
                result.refused += 1
            except Exception as error:
                result.untyped += 1
                where = traceback.extract_tb(error.__traceback__)[-1]
                line = f"{type(error).__name__}: {error}"[:150] + f" ({Path(where.filename).name}:{where.lineno})"
                result.errors = (*result.errors, line)[:5] if line not in result.errors else result.errors
        advance()
    return result


def mutated(rng: random.Random, data: bytes) -> bytes:
    """One damaged version of `data`: of its structure, if it is JSON or JSON lines, otherwise of its bytes."""
    if rng.random() < 0.6:
        try:
            lines = data.splitlines() if data.count(b"\n") > 1 and _is_json(data.splitlines()[0]) else [data]
            at = rng.randrange(len(lines))
            lines[at] = _dumped(rng, _changed(rng, json.loads(lines[at])))
            return b"\n".join(lines)
        except ValueError:
            pass
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at, length = rng.randrange(len(changed) + 1), rng.choice((1, 2, 4, 16, 200))
        match rng.randrange(6):
            case 0:
                changed[at : at + length] = rng.randbytes(length)
            case 1:
                del changed[at : at + length]
            case 2:
                changed[at:at] = changed[at : at + length]
            case 3:
                del changed[at:]
            case 4:
                changed[at : at + 4] = rng.choice(
                    (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x80")
                )
            case _:
                changed[at : at + 1] = bytes([rng.randrange(256)])
    return bytes(changed)


def _dumped(rng: random.Random, value: Any) -> bytes:
    """`value` as JSON; sometimes with a key twice."""
    text = json.dumps(value).replace(f'"{_HUGE}"', _HUGE)
    if isinstance(value, dict) and value and rng.random() < 0.05:
        text = f"{{{json.dumps(rng.choice(list(value)))}: {json.dumps(rng.choice(VALUES))}, {text[1:]}"
    return text.encode()


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _changed(rng: random.Random, value: Any) -> Any:
    """`value` with one change at a random place."""
    places = [*_places(value)]
    if not places or rng.random() < 0.02:
        return rng.choice(VALUES)
    container, key = rng.choice(places)
    match rng.randrange(5):
        case 0:
            del container[key]
        case 1 if isinstance(container, dict):
            container[rng.choice(("x", "", f"{key} ", "id"))] = container.pop(key)
        case 2 if isinstance(container, list):
            container.insert(key, container[key])
        case 3 if places:
            other, name = rng.choice(places)
            container[key] = json.loads(json.dumps(other[name]))
        case _:
            container[key] = rng.choice(VALUES)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each item of each dict and list."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in [*items]:
        yield value, key
        yield from _places(item)


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="vlroute-mutant-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _one_file(name: str, data: Callable[[], bytes], folder: Path) -> list[Path]:
    (folder / name).write_bytes(data())
    return [folder / name]


def noise(size: int = 24) -> Image.Image:
    """A small picture."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8))


def _picture(form: str) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, Any] = (
        {"save_all": True, "append_images": [noise().rotate(90)]} if form in ("GIF", "TIFF") else {}
    )
    noise().save(buffer, form, **options)
    return buffer.getvalue()


def _movie() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        for shade in range(0, 250, 25):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _load_picture(file: Path) -> object:
    return load_picture(file.read_bytes(), limits=SMALL).image.tobytes()


def _load_video(file: Path) -> object:
    return [frame.tobytes() for frame in load_video(str(file), limits=SMALL).frames]


def _router(folder: Path) -> list[Path]:
    router = ComplexityClassifier.load(shipped("pocket/router"))
    router.start = Start(ComplexityClassifier.load(shipped("pocket/router")), np.ones(2, np.float32), "first")
    router.save(folder)
    return [*folder.iterdir()]


def _extreme_numbers(rng: random.Random, folder: Path) -> None:
    """Change one array or one entry of the card. The checksum in the card is that of the changed weights."""
    card, arrays = read_artifact(folder)
    if rng.random() < 0.3:
        name = rng.choice(sorted(card.keys() - {"vocabulary", "dense"}))
        changed = _changed(rng, {name: card.pop(name)})
        write_artifact(folder, card, arrays)
        rest = json.loads((folder / CARD_FILE).read_bytes())
        (folder / CARD_FILE).write_bytes(
            _dumped(rng, rest | (changed if isinstance(changed, dict) else {name: changed}))
        )
        return
    name = rng.choice(sorted(arrays))
    array, dtype = arrays[name].copy(), arrays[name].dtype
    extreme = rng.choice((0, 1, -1, 1e-45, -1e-9, 65504, 1e9, 1e19, -1e20, 3e38, -3e38, np.inf, np.nan))
    with np.errstate(all="ignore"):
        match rng.randrange(7):
            case 0:
                array = np.full(array.shape, extreme).astype(dtype)
            case 1 if array.size:
                array.flat[rng.randrange(array.size)] = np.asarray(extreme).astype(array.dtype)
            case 2:  # sums of both signs
                array = array * np.where(np.arange(array.size).reshape(array.shape) % 2, extreme, -1)
            case 3:
                dtype = np.dtype(rng.choice(("f2", "f8", "i4", "i8", "u8", "?")))
            case 4:
                array = rng.choice((array[None], array[:0], array[:-1], array[..., None], array.reshape(-1)[0]))
            case 5:
                array = -array
            case _:
                array = array[::-1]
        write_artifact(folder, card, arrays | {name: np.asarray(array).astype(dtype)})


def _use_router(folder: Path) -> object:
    router = ComplexityClassifier.load(folder)
    for prompt, caption in (("Add the numbers.", "four numbers"), ("Start at T and follow 4 arrows.", None), ("", "")):
        prediction = router.predict(prompt, caption, "offered")
        router.gain_interval(prediction.gain)
        if router.budgets is not None:
            router.budgets.budget(prediction.gain, prediction.tokens_thinking, 0.1)
        if router.stages is not None:
            evidence = {
                "prefill": np.ones(router.stages.source.width, np.float32),
                "answer": np.ones(len(ANSWER_NUMBERS), np.float32),
            }
            for passed in router.stages.heads:
                router.stages.predict((0.5, 0.6), {stage: evidence[stage] for stage in passed})
    selector = ModeSelector(router)
    if router.calibration is not None:
        selector.operating_point(Target(preset="balanced"))
    router.with_hashed_vocabulary().save(folder / "again")
    return model_card(router, None, "router"), vocabulary_of(router, None)


def _probe(folder: Path) -> list[Path]:
    VisionProbe.load(shipped("pocket/router/probe")).save(folder)
    return [*folder.iterdir()]


def _use_probe(folder: Path) -> object:
    probe = VisionProbe.load(folder)
    return probe.describe(np.ones(probe.weights.shape[1], np.float32))


def _encoder(folder: Path) -> list[Path]:
    (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.StaticEmbedding", "path": ""}]')
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(("?", "add", "the", "numbers"))}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file({"embedding.weight": np.eye(4, dtype=np.float32)}, folder / "model.safetensors")
    return [folder / "tokenizer.json", folder / "model.safetensors"]


def _use_encoder(folder: Path) -> object:
    return load_text_encoder(str(folder)).encode(["add the numbers", "", "read"])


def _records(folder: Path) -> list[Path]:
    made = [Record(str(i), f"Read {i}.", "a sign", Outcome(True, 3, 0.5, 0.1), Outcome(0.5)) for i in range(5)]
    write_records(folder / "records.jsonl", made)
    return [folder / "records.jsonl"]


def _read_records(file: Path) -> object:
    list(read_records(file, skipped=Skipped()))
    return list(read_records(file))


def _store(folder: Path) -> list[Path]:
    with Store(folder / "answers.db", keep_text=True) as store:
        for mode in MODES:
            store.feedback(store.record(an_answer(mode=mode), a_question(1)), correct=True)
    return [folder / "answers.db"]


def _use_store(file: Path) -> object:
    with Store(file) as store:
        export_feedback(store)
        store.count()
        return store.record(an_answer(), a_question(1))


def _chat(folder: Path) -> list[Path]:
    turns = tuple(Turn(a_question(i).messages[0], an_answer(str(i))) for i in range(2))
    write_chat(folder / "chat", "Be brief.", turns)
    return [file for file in (folder / "chat").rglob("*") if file.is_file()]


def _use_chat(folder: Path) -> object:
    system, turns = read_chat(folder / "chat", SMALL)
    return write_chat(folder / "again", system, turns)


def _endpoints(folder: Path) -> list[Path]:
    one = {"base_url": "http://127.0.0.1:1/v1", "model": "a", "headers": {"a": "b"}, "idle_seconds": 3.0}
    (folder / "endpoints.json").write_text(json.dumps({"instruct": one, "thinking": one}))
    return [folder / "endpoints.json"]


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("table.csv", "prompt,image\nWhat?,a.png\n多少？,b.png\n")
        for name in ("a.png", "b.png"):
            file.writestr(name, _picture("PNG"))
    return buffer.getvalue()


def _use_zip(file: Path) -> object:
    from vlroute.serving.ui.batch_table import read_table

    renamed = file.with_suffix(".zip")
    file.rename(renamed)
    table = read_table([str(renamed)])
    return [picture(2**20) for picture in table.pictures.values() if picture is not None]


KINDS = (
    *(Kind(f"picture ({form})", partial(_one_file, "picture", partial(_picture, form)), _load_picture)
      for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")),
    Kind("video", partial(_one_file, "video.mp4", _movie), _load_video),
    Kind("router artifact", _router, _use_router),
    Kind("numbers of a router", _router, _use_router, damage=_extreme_numbers),
    Kind("vision probe", _probe, _use_probe),
    Kind("numbers of a probe", _probe, _use_probe, damage=_extreme_numbers),
    Kind("text encoder", _encoder, _use_encoder),
    Kind("chat", _chat, _use_chat),
    Kind("records", _records, _read_records),
    Kind("store", _store, _use_store),
    Kind("endpoints", _endpoints, read_endpoints),
    Kind("zip of a batch", partial(_one_file, "batch", _zip), _use_zip),
)  # fmt: skip
