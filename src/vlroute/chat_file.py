"""A conversation on disk: `chat.json` and the pictures as PNG files named by content. Nothing in it can run code."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from vlroute.answer import Answer, Timing, Usage
from vlroute.chat import Turn
from vlroute.checks import refused
from vlroute.decision.policy import Decision
from vlroute.errors import ChatFileError
from vlroute.files import check_outputs, replace_file
from vlroute.limits import DEFAULT_LIMITS, Limits
from vlroute.media import Picture, PixelBudget, Video, load_picture
from vlroute.messages import Message, Part, Role

FORMAT = 1
FILE, MEDIA = "chat.json", "media"


def check_chat_output(folder: str | Path) -> Path:
    """The folder as a path. OutputError if a conversation cannot be saved there."""
    folder = Path(folder)
    check_outputs(folder / FILE, folder / MEDIA / "new")
    return folder


def write_chat(folder: str | Path, system: str | None, turns: tuple[Turn, ...]) -> Path:
    """Write pictures first, `chat.json` last and at once: a killed process leaves the old chat or the new one."""
    folder = check_chat_output(folder)
    (folder / MEDIA).mkdir(parents=True, exist_ok=True)
    kept = [
        {
            "before": [{"role": one.role, "parts": _parts(folder, one)} for one in turn.before],
            "parts": _parts(folder, turn.message),
            "answer": turn.answer.as_dict(),
        }
        for turn in turns
    ]
    text = json.dumps({"format": FORMAT, "system": system, "turns": kept}, ensure_ascii=False, indent=1)
    replace_file(folder / FILE, (text + "\n").encode())
    return folder


def read_chat(folder: str | Path, limits: Limits = DEFAULT_LIMITS) -> tuple[str | None, tuple[Turn, ...]]:
    """System prompt and turns. ChatFileError if something is missing, damaged or of another format."""
    if not isinstance(folder, str | Path):
        raise refused("folder", folder, "a folder that Chat.save wrote")
    folder = Path(folder)
    try:
        chat = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ChatFileError(
            f"cannot read {FILE} in {folder.name!r}: {error}; expected a folder of Chat.save"
        ) from error
    if not isinstance(chat, dict) or chat.get("format") != FORMAT:
        raise ChatFileError(f"{FILE} in {folder.name!r} is not of format {FORMAT}, the one this version reads")
    try:
        system = None if chat["system"] is None else _string(chat["system"], "system")
        return system, tuple(_turn(folder, turn, limits) for turn in chat["turns"])
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ChatFileError(f"{FILE} in {folder.name!r} is damaged: {error}; save the chat again") from error


def _parts(folder: Path, message: Message) -> list[dict[str, Any]]:
    return [_part(folder, part) for part in message.parts]


def _part(folder: Path, part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"text": part}
    if isinstance(part, Picture):
        kept: dict[str, Any] = {"picture": _keep(folder, part.image)}
    else:
        kept = {"video": [_keep(folder, frame) for frame in part.frames], "times": part.times}
    if budget := part.budget.as_dict():
        kept["budget"] = budget
    return {**kept, "digest": part.digest}


def _keep(folder: Path, image: Image.Image) -> str:
    name = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest() + ".png"
    path = folder / MEDIA / name
    if not path.exists():
        png = io.BytesIO()
        image.save(png, format="PNG")
        replace_file(path, png.getvalue())
    return name


def _turn(folder: Path, turn: dict[str, Any], limits: Limits) -> Turn:
    answer = dict(turn["answer"])
    _string(answer["text"], "text of an answer")
    answer["decision"] = Decision(**answer["decision"])
    answer["usage"] = Usage(**answer["usage"])
    answer["timing"] = Timing(**answer["timing"])
    before = tuple(_message(folder, one["role"], one["parts"], limits) for one in turn.get("before", ()))
    return Turn(_message(folder, "user", turn["parts"], limits), Answer(**answer), before)


def _string(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"the {name} is not a string")
    return value


def _message(folder: Path, role: Role, parts: list[dict[str, Any]], limits: Limits) -> Message:
    return Message(role, tuple(_load(folder, part, limits) for part in parts))


def _load(folder: Path, part: dict[str, Any], limits: Limits) -> Part:
    if "text" in part:
        return _string(part["text"], "text of a part")
    loaded: Picture | Video
    budget = PixelBudget(**part.get("budget", {}))
    if "picture" in part:
        loaded = load_picture(_picture(folder, part["picture"], limits), limits, budget=budget)
    else:
        frames = tuple(_picture(folder, name, limits).image for name in part["video"])
        loaded = Video(frames, tuple(float(time) for time in part["times"]), budget)
    if loaded.digest != part["digest"]:
        raise KeyError("a picture is not the one that was saved")
    return loaded


def _picture(folder: Path, name: str, limits: Limits) -> Picture:
    if Path(name).name != name:
        raise KeyError("a picture lies outside the folder")
    return load_picture(folder / MEDIA / name, limits)
