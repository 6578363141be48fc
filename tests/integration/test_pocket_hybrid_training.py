"""The recipe of the pocket hybrid: both modes learn, a stopped run continues, and the result is a checkpoint."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import multiprocessing
from training.page import POCKET
from training.pocket import hybrid
from training.pocket.data import IGNORE, Example, Sequences, tools_example
from training.pocket.hybrid import PHASES, Batches, Trainer
from training.pocket.train import write_checkpoint

from tests.conftest import media, task
from vlroute import Router
from vlroute.types import MODES

pytestmark = pytest.mark.float32


def fewer(source: Batches) -> Batches:
    def batches(rng: random.Random, start: int) -> Iterator[list[Example]]:
        return (batch[:3] for batch in source(rng, start))

    return batches


def shortened(number: int, steps: int) -> Any:
    """A phase of so many steps with three examples each."""
    (first, one), (second, two) = PHASES[number].batches
    return replace(PHASES[number], steps=steps, batches=((first, fewer(one)), (second, fewer(two))))


def train(rank: int, folder: Path, steps: tuple[int, ...]) -> None:
    """The first phases, with so many steps, in one of two processes."""
    torch.set_num_threads(1)
    hybrid.PHASES = tuple(shortened(number, count) for number, count in enumerate(steps))
    meeting = folder / f"meeting {steps}"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    for number in range(len(steps)):
        trainer = Trainer(number, rank, folder)
        trainer.run()
    weights = torch.cat([one.detach().flatten() for one in trainer.model.parameters()])
    torch.save(weights, folder / f"weights-{rank}.pt")
    dist.destroy_process_group()


def run(folder: Path, *steps: int) -> None:
    multiprocessing.spawn(train, (folder, steps), nprocs=2)


def saved(folder: Path, name: str) -> dict[str, Any]:
    return dict(torch.load(folder / f"{name}.pt", weights_only=True))


def test_both_processes_train_one_model_and_a_stopped_run_continues(tmp_path: Path) -> None:
    run(tmp_path, 1)
    first = saved(tmp_path, "reading")
    assert first["step"] == 1
    run(tmp_path, 2, 1)
    reading, both = saved(tmp_path, "reading"), saved(tmp_path, "both")
    assert (reading["step"], both["step"]) == (2, 1)
    weights = [torch.load(tmp_path / f"weights-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(*weights)
    own = load_file(POCKET / "instruct" / "model.safetensors")
    for name, value in both["model"].items():
        changed = not torch.equal(value, reading["model"][name])
        assert not (changed and ".visual." in name), "the tower is frozen after the first phase"
        if ".visual.patch_embed" in name:
            assert not torch.equal(value, own[name])  # but it has learned in the first one
            torch.testing.assert_close(value, own[name], atol=0.05, rtol=0)  # from that of the pair
    moved = [not torch.equal(first["model"][name], value) for name, value in reading["model"].items()]
    assert sum(moved) > len(moved) / 2


def test_the_loss_of_a_step_is_that_of_all_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hybrid, "PHASES", (shortened(0, 1), shortened(2, 1)))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        trainer = Trainer(0, 0, tmp_path)
        examples = next(trainer.examples)
        parts = trainer.parts(examples)
        assert sorted(map(id, itertools.chain(*parts))) == sorted(map(id, examples))
        losses = []
        for _ in range(3):
            trainer.examples = iter([examples])
            losses.append(trainer.train_step()[0])
        assert losses[-1] < losses[0]
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("number", range(len(PHASES)))
def test_each_process_has_its_mode(number: int) -> None:
    """And its batches contain requests of every kind within some steps."""
    for rank, (mode, batches) in enumerate(PHASES[number].batches):
        assert mode == ("instruct" if number == 0 else MODES[rank])
        drawn = batches(random.Random(5), 1000)
        some = [example for batch in itertools.islice(drawn, 8) for example in batch]
        thoughts = sum("</think>" in example.target for example in some)
        assert (thoughts > len(some) / 4) == (mode == "thinking")


def test_targets_follow_the_template_of_the_hybrid() -> None:
    """Instruct's targets begin after the empty thought, and calls are in tags."""
    for mode in MODES:
        sequences = Sequences(hybrid.build_hybrid_tokenizer(), mode, hybrid=True)
        example = tools_example(random.Random(5), mode)
        inputs, labels = sequences.training_batch([example])
        asked = sequences.tokenizer.decode(labels[labels != IGNORE])
        whole = sequences.tokenizer.decode(inputs["input_ids"][0])
        assert asked.count("<function=") == sum("tool_calls" in message for message in example.messages) > 0
        assert ("<think>\n\n</think>\n\n<tool_call>" in whole) == (mode == "instruct")


def test_a_trained_model_is_written_and_answers_in_both_modes(tmp_path: Path) -> None:
    tokenizer = hybrid.build_hybrid_tokenizer()
    model = hybrid.build_hybrid(tokenizer).to(torch.bfloat16)
    write_checkpoint(model, "hybrid", tmp_path / "checkpoint")
    size = sum(file.stat().st_size for file in (tmp_path / "checkpoint").iterdir())
    assert size < 6 * 2**20
    one = task("ocr", "easy")
    with Router.from_pretrained(tmp_path / "checkpoint") as router:
        for mode in MODES:
            assert router.ask(one.prompt, **media(one), mode=mode, max_new_tokens=20).text
