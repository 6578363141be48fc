"""The training recipe: inputs equal to the real processors', decreasing losses, resumed runs."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from training.pocket.checkpoint import build_model, build_processor, build_tokenizer, save_checkpoint
from training.pocket.data import (
    IGNORE,
    LABEL,
    Example,
    Sequences,
    answered,
    content,
    cut_patches,
    fitted,
    glyph_labels,
    links_example,
    lists_example,
    number_example,
    paths_example,
    plain_example,
    question_example,
    results_example,
    seen,
    sums_example,
    tally_example,
    times_example,
    tools_example,
    turns_example,
    two_pictures_example,
    unknown_example,
)
from training.pocket.phases import EXAMPLES, PHASES, SHIPPED, sequence_loss, tower_loss
from training.pocket.train import Trainer, phase_lock, write_checkpoint, write_finished

from tests.conftest import task
from vlroute.pocket.tasks import draw_scene
from vlroute.types import MODES


def examples(kind: str, mode: str) -> list[Example]:
    """Examples with pictures, with videos, with several of them, and with none."""
    rng = random.Random(kind)
    video = task("video")
    one, two = draw_scene(rng, "hop"), draw_scene(rng, "ocr")
    every: dict[str, Callable[[], Iterator[Example]]] = {
        "picture": lambda: (question_example(rng, one, mode) for _ in range(4)),
        "video": lambda: iter(
            [plain_example("video", video, video.prompt, answered(video.answer, video.thinking, mode))]
        ),
        "two": lambda: (two_pictures_example(rng, (one, two), mode) for _ in range(4)),
        "turns": lambda: (turns_example(rng, [one, two], mode) for _ in range(4)),
        "unknown": lambda: (unknown_example(rng, mode) for _ in range(8)),
        "tools": lambda: (tools_example(rng, mode) for _ in range(4)),
    }
    return list(every[kind]())


@pytest.mark.parametrize("mode", ["instruct", "thinking"])
@pytest.mark.parametrize("kind", ["picture", "video", "two", "turns", "unknown", "tools"])
def test_training_prompts_equal_the_real_processor(mode: str, kind: str) -> None:
    processor = build_processor(mode)
    for example in examples(kind, mode):
        ours = Sequences(processor.tokenizer, mode).prompt_batch([example])
        text = processor.apply_chat_template(list(example.messages), tools=example.tools, add_generation_prompt=True)
        media: dict[str, Any] = {}
        if pictures := [one.frames[0] for one in example.media if not one.is_video]:
            media |= {"images": pictures, "do_resize": False}  # they have their size: see `fitted`
        if videos := [list(one.frames) for one in example.media if one.is_video]:
            metadata = {"fps": 1.0, "total_num_frames": 8, "frames_indices": list(range(8))}
            media |= {"videos": videos, "video_metadata": [metadata] * len(videos), "do_sample_frames": False}
        real = processor(text=[text + example.begun], return_tensors="pt", **media)
        assert set(ours) == set(real)
        for name, value in real.items():
            torch.testing.assert_close(ours[name].to(value.dtype), value, atol=1e-5, rtol=0)


@settings(deadline=None)
@given(st.integers(20, 400), st.integers(20, 400))
def test_any_picture_gets_the_size_of_the_processor(width: int, height: int) -> None:
    picture = Image.new("RGB", (width, height), (9, 99, 199))
    real = build_processor("instruct").image_processor(picture, return_tensors="pt")
    assert list(fitted(picture).grid) == real["image_grid_thw"][0].tolist()


def test_glyph_labels_follow_the_order_of_patches() -> None:
    """Paint every labeled glyph's patch black: the black patches must be exactly the labeled ones."""
    some = task("hop")
    picture = some.frames[0].copy()
    picture.paste((255, 255, 255), (0, 0, *picture.size))
    for glyph in some.glyphs[0]:
        x, y = int(glyph.x // 12) * 12, int(glyph.y // 12) * 12
        picture.paste((0, 0, 0), (x, y, x + 12, y + 12))
    patches = cut_patches([(picture, picture)])
    labels = glyph_labels([(some.glyphs[0], some.glyphs[0])])
    assert torch.equal(patches.mean(1) < 0, labels[:, 0] > 0)
    assert sorted(labels[labels[:, 0] > 0, 0].tolist()) == sorted(LABEL[g.label] for g in some.glyphs[0])


def test_video_pairs_keep_their_order() -> None:
    pairs = seen(task("video")).pairs
    assert len(pairs) == 4
    assert pairs[1] == (task("video").frames[2], task("video").frames[3])


def test_the_tokenizer_loses_nothing() -> None:
    tokenizer = build_tokenizer()
    for text in ("Start at B and follow 3 arrows.", "图中有多少个三角形？ naïve 好\n\n\n x", "ABCD", "<0.5 seconds>"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert tokenizer.tokenize("KX") == ["K", "X"]  # drawn letters stay apart
    assert tokenizer.tokenize("READ THE TEXT") == ["READ", " THE", " TEXT"]  # but not words in capitals
    assert tokenizer.tokenize("K>X<B") == ["K", ">X", "<B"]  # but for the arrow that led to them


def test_only_what_can_be_known_is_asked() -> None:
    rng, sequences = random.Random(3), Sequences(build_tokenizer(), "thinking")
    results = (results_example(rng, "thinking") for _ in itertools.count())
    second_goal = next(example for example in results if example.name == "second goal")
    for example, pattern in (
        (links_example(rng, draw_scene(rng, "hop", "medium", 0.5)), r"(>[A-Z]){5}<\|im_end\|>"),
        (tally_example(rng, draw_scene(rng, "count")), r"\d{3}<\|im_end\|>"),
        (sums_example(rng), r"(\d\d=\d\d\d?)+<\|im_end\|>"),
        (times_example(rng), r"\d{6}<\|im_end\|>"),
        (number_example(rng), r"\d{3}(\d)\n</think>\n\n\1<\|im_end\|>"),
        (lists_example(rng), r"\d{2,4}<\|im_end\|>"),
        (second_goal, r"[A-Z]<\|im_end\|>"),
        (paths_example(rng, draw_scene(rng, "hop", "medium")), r"[A-Z]{2,6}<\|im_end\|>"),
        (paths_example(rng, draw_scene(rng, "gui", "medium")), r"[A-Z ]{6,30}<\|im_end\|>"),
    ):
        _, labels = sequences.training_batch([example])
        assert re.fullmatch(pattern, sequences.tokenizer.decode(labels[labels != IGNORE]))


def test_every_form_of_a_message_has_question_and_pictures_once() -> None:
    picture, video = seen(task("hop")), seen(task("video"))
    question = "Where does the zebra of Anna live?"
    for media in ([], [picture], [video], [picture, video], [video, picture, picture]):
        rng, layouts = random.Random(8), set()
        for _ in range(300):
            parts = content(rng, media, question, rng.choice(("en", "zh")))
            if isinstance(parts, str):
                parts = [{"type": "text", "text": parts}]
            texts = [part["text"] for part in parts if part["type"] == "text"]
            assert "|".join(texts).count(question) == 1
            assert [part["type"] for part in parts if part["type"] != "text"] == [one.part["type"] for one in media]
            layouts.add(tuple(part["type"] for part in parts))
        assert len(layouts) == (1, 3, 5, 5)[len(media)]


def test_the_longest_thought_of_a_sum_can_be_cut_but_ends_by_itself(tmp_path: Path) -> None:
    rng, tokenizer = random.Random(9), build_tokenizer()
    drawn = [draw_scene(rng, "math", "hard", rng.choice((None, 1.0))).question(rng) for _ in range(200)]
    lengths = [len(tokenizer.tokenize(answered(one.answer, one.thinking, "thinking"))) + 1 for one in drawn]
    save_checkpoint(build_model(tokenizer), "thinking", tmp_path)
    most = json.loads((tmp_path / "generation_config.json").read_text("utf-8"))["max_new_tokens"]
    assert 150 <= max(lengths) <= 210 < most


def test_every_step_with_tools_is_a_target() -> None:
    for mode in MODES:
        example, sequences = tools_example(random.Random(5), mode), Sequences(build_tokenizer(), mode)
        _, labels = sequences.training_batch([example])
        asked = sequences.tokenizer.decode(labels[labels != IGNORE])
        assert asked.count("<tool_call>") == sum("tool_calls" in message for message in example.messages) > 0
        assert asked.endswith(example.target + "<|im_end|>")
        assert not {"tool_response", "user", "system"} & set(re.findall(r"\w+", asked))


@pytest.mark.parametrize(
    ("name", "batch"),
    [(name, 0) for name in sorted(EXAMPLES)] + [(name, 1) for name in sorted(EXAMPLES) if name.endswith("_last")],
)
def test_every_phase_lowers_its_loss(name: str, batch: int) -> None:
    """Every second batch of the last phases has requests without a picture."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model, mode = build_model(tokenizer), PHASES[name].mode or "instruct"
    some = next(itertools.islice(EXAMPLES[name](random.Random(0), 702), batch, None))[:4]
    assert batch == 0 or not any(example.media for example in some)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(4):
        loss, scores = sequence_loss(model, Sequences(tokenizer, mode), some)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert sum(count for _, count in scores.values()) == len(some)


def test_a_stopped_run_continues(tmp_path: Path) -> None:
    phase = replace(PHASES["tower"], steps=2, threads=torch.get_num_threads())
    first = Trainer(phase, tmp_path)
    first.run()
    again = Trainer(replace(phase, steps=3), tmp_path)
    assert again.step == 2
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    moments = [s["exp_avg"] for s in first.optimizer.state.values()]
    assert all(torch.equal(a, s["exp_avg"]) for a, s in zip(moments, again.optimizer.state.values(), strict=True))
    loss, _ = tower_loss(again.model, again.head, again.rng)
    assert torch.isfinite(loss)


def test_a_state_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    phase = replace(PHASES["tower"], threads=torch.get_num_threads())
    Trainer(phase, tmp_path).save()
    state = torch.load(tmp_path / "tower.pt", weights_only=True)
    recorded = state.pop("vocabulary")
    torch.save(state, tmp_path / "tower.pt")
    assert Trainer(phase, tmp_path).step == 0  # older states do not record it
    torch.save({**state, "vocabulary": recorded[::-1]}, tmp_path / "tower.pt")
    with pytest.raises(SystemExit, match="another vocabulary"):
        Trainer(phase, tmp_path)


def test_a_phase_is_trained_by_one_process_at_a_time(tmp_path: Path) -> None:
    with phase_lock("tower", tmp_path):
        with phase_lock("thinking", tmp_path):
            pass
        with pytest.raises(SystemExit, match="another process trains the phase tower"), phase_lock("tower", tmp_path):
            pass
    with phase_lock("tower", tmp_path):
        pass


def test_the_checkpoint_folder_has_the_mean_of_the_last_phases(tmp_path: Path) -> None:
    states = []
    for name in SHIPPED["thinking"]:
        trainer = Trainer(replace(PHASES[name], start=None, threads=torch.get_num_threads()), tmp_path / "runs")
        with torch.no_grad():
            trainer.model.lm_head.weight += len(states)
        trainer.save()
        states.append({key: value.clone() for key, value in trainer.model.state_dict().items()})
    write_checkpoint(build_model(build_tokenizer()), "thinking", tmp_path / "thinking")  # an earlier checkpoint
    write_finished("thinking", tmp_path / "runs", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "thinking"]
    saved = load_file(tmp_path / "thinking" / "model.safetensors")
    mean = {name: torch.stack([state[name].double() for state in states]).mean(0) for name in saved}
    assert len(states) == 2
    assert all(torch.equal(value, mean[name].to(value.dtype)) for name, value in saved.items())


def test_the_printed_loss_is_a_mean_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    trainer = Trainer(replace(PHASES["tower"], steps=101, threads=torch.get_num_threads()), tmp_path)
    trainer.step = 98

    def train_step() -> tuple[float, dict[str, tuple[int, int]]]:
        trainer.step += 1
        return 2.0, {"glyphs": (1, 2)}

    monkeypatch.setattr(trainer, "train_step", train_step)
    trainer.run()
    assert "loss 2.0000" in capsys.readouterr().out


def test_language_phases_leave_the_tower_alone(tmp_path: Path) -> None:
    Trainer(replace(PHASES["transcripts"], start=None, threads=torch.get_num_threads()), tmp_path).save()
    trainer = Trainer(replace(PHASES["thinking"], threads=torch.get_num_threads()), tmp_path)
    trainer.examples = iter([next(trainer.examples)[:4]])
    before = {n: p.clone() for n, p in trainer.model.named_parameters()}
    trainer.train_step()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (".visual." in name), name


def test_paths_are_the_answers_to_questions() -> None:
    for seed in range(40):
        rng = random.Random(seed)
        for kind in ("gui", "hop"):
            scene = draw_scene(rng, kind, severity=rng.choice((None, rng.random())))
            question = scene.question(rng)
            words = question.words
            for key, answer in re.findall(r"(\w+):([A-Z ]+)", paths_example(rng, scene).target):
                asked = f"{words['start']}{words['goal' if kind == 'gui' else 'count']}"
                if key == asked or question.wording == "end":
                    assert answer == question.answer
