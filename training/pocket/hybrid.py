"""Train the pocket hybrid: `python -m training.pocket.hybrid`.

One model learns both modes: two processes, one core each, compute the gradients of one mode each, and each step takes
their mean. The tower begins with that of the pair. Seeded, with progress, and resumable: a stopped run continues from
its last saved step. A little more than three hours on two cores.

reading      list, count and follow everything in a picture; easy questions answered at once
both         Instruct answers at once and writes short captions; Thinking looks and reasons step by step
both_last    practice of tasks of low accuracy; all kinds of requests: two pictures, unknown pictures, tools, no picture
"""

from __future__ import annotations

import itertools
import random
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import multiprocessing, nn
from transformers.models.qwen3_5 import modeling_qwen3_5

from training.page import POCKET, POCKET_HYBRID, ROOT, argument_parser
from training.pocket.checkpoint import build_hybrid, build_hybrid_tokenizer
from training.pocket.data import Example, Sequences
from training.pocket.phases import (
    EXAMPLES,
    more_instruct,
    more_thinking,
    thinking_unknown,
    thinking_wide,
    token_losses,
)
from training.pocket.train import load_state, parameter_groups, phase_lock, set_rate, vocabulary_hash, write_checkpoint
from vlroute import Mode
from vlroute.types import MODES

RUNS = ROOT / "runs" / "pocket-hybrid"
SAVE_EVERY, PRINT_EVERY = 100, 50
#: Number of forward passes in which a process reads its batch.
PARTS = 4
SEED = 20261129
#: Draws the batches of one process from the first step on.
Batches = Callable[[random.Random, int], Iterator[list[Example]]]


@dataclass(frozen=True, slots=True)
class Phase:
    """Settings of a phase.

    Attributes:
        name: Its name.
        steps: Number of steps.
        rate: Highest learning rate.
        tower_rate: Learning rate of the tower, relative to `rate`.
        batches: For each process, the mode of its prompts and its batches.
    """

    name: str
    steps: int
    rate: float
    tower_rate: float
    batches: tuple[tuple[Mode, Batches], tuple[Mode, Batches]]


def _mixed(*sources: Batches) -> Batches:
    """One batch of each source in turn."""

    def batches(rng: random.Random, start: int) -> Iterator[list[Example]]:
        each = [source(rng, start // len(sources)) for source in sources]
        for step in itertools.count(start):
            yield next(each[step % len(each)])

    return batches


def _both(instruct: Batches, thinking: Batches) -> tuple[tuple[Mode, Batches], tuple[Mode, Batches]]:
    return ("instruct", instruct), ("thinking", thinking)


PHASES = (
    Phase(
        "reading", 1200, 2e-3, 0.15, (("instruct", EXAMPLES["transcripts"]), ("instruct", EXAMPLES["transcripts"]))
    ),
    Phase("both", 1200, 1.2e-3, 0.0, _both(EXAMPLES["instruct"], EXAMPLES["thinking"])),
    Phase(
        "both_last", 1300, 1e-3, 0.0,
        _both(
            _mixed(more_instruct, EXAMPLES["instruct_forms"], EXAMPLES["instruct_last"]),
            _mixed(
                more_thinking, thinking_wide, more_thinking, EXAMPLES["thinking_last"], more_thinking, thinking_unknown
            ),
        ),
    ),
)  # fmt: skip


class Trainer:
    """One phase in one of the two processes."""

    def __init__(self, number: int, rank: int, runs: Path) -> None:
        torch.manual_seed(SEED)
        self.phase, self.rank, self.runs, self.step = PHASES[number], rank, runs, 0
        self.tokenizer = build_hybrid_tokenizer()
        self.model = build_hybrid(self.tokenizer)
        mode, batches = self.phase.batches[rank]
        self.sequences = Sequences(self.tokenizer, mode, hybrid=True)
        if number:
            self.model.load_state_dict(self._saved(PHASES[number - 1].name)["model"])
        else:
            self._take_tower()
        if not self.phase.tower_rate:
            self.model.model.visual.requires_grad_(False)
        self.parameters = [one for one in self.model.parameters() if one.requires_grad]
        groups = parameter_groups(self.model.named_parameters(), self.phase.tower_rate)
        self.optimizer = torch.optim.AdamW(groups, lr=self.phase.rate, weight_decay=0.01, betas=(0.9, 0.98))
        if (runs / f"{self.phase.name}.pt").exists():
            saved = self._saved(self.phase.name)
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.step = saved["step"]
        # a resumed run has a seed of its own, so that earlier examples need not be drawn again
        self.examples = batches(random.Random(f"{SEED} {self.phase.name} {rank} {self.step}"), self.step)

    def _saved(self, name: str) -> dict[str, Any]:
        return load_state(name, self.runs, self.tokenizer)

    def _take_tower(self) -> None:
        """Begin with the tower of the pair: it can read the glyphs. The merger remains random."""
        tower = self.model.model.visual
        own = {name.removeprefix("model.visual."): one for name, one in load_file(
            POCKET / "instruct" / "model.safetensors").items() if name.startswith("model.visual.")}  # fmt: skip
        tower.load_state_dict({name: own.get(name, one) for name, one in tower.state_dict().items()})

    def train_step(self) -> tuple[float, Counter[str], Counter[str]]:
        """One step. Returns its loss, and for each kind of example the numbers of targets without error and of all."""
        self.step += 1
        set_rate(self.optimizer, self.phase.rate, self.step, self.phase.steps)
        self.optimizer.zero_grad(set_to_none=True)
        total, targets, correct, counts = 0.0, 0, Counter[str](), Counter[str]()
        for part in self.parts(next(self.examples)):
            losses, scores = token_losses(self.model, self.sequences, part)
            losses.sum().backward()
            total, targets = total + losses.sum().item(), targets + len(losses)
            correct.update({name: right for name, (right, _) in scores.items()})
            counts.update({name: count for name, (_, count) in scores.items()})
        # a batch without pictures has no gradient of the tower
        gradient = torch.cat([
            (torch.zeros_like(one) if one.grad is None else one.grad).flatten() for one in self.parameters
        ])  # fmt: skip
        gradient /= targets * dist.get_world_size()
        dist.all_reduce(gradient)
        for one, part in zip(self.parameters, gradient.split([p.numel() for p in self.parameters]), strict=True):
            one.grad = part.view_as(one)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return total / targets, correct, counts

    def parts(self, examples: list[Example]) -> list[list[Example]]:
        """Group examples of similar lengths; otherwise half of the tokens of a batch are padding."""
        lengths = self.sequences.lengths(examples)
        order = sorted(range(len(examples)), key=lengths.__getitem__)
        size = -(-len(order) // PARTS)
        return [[examples[i] for i in order[start : start + size]] for start in range(0, len(order), size)]

    def save(self) -> None:
        if self.rank == 0:
            state = {name: getattr(self, name).state_dict() for name in ("model", "optimizer")}
            unfinished = self.runs / f"{self.phase.name}.partial"
            torch.save({**state, "step": self.step, "vocabulary": vocabulary_hash(self.tokenizer)}, unfinished)
            unfinished.replace(self.runs / f"{self.phase.name}.pt")

    def run(self) -> None:
        """Train to the end, save every `SAVE_EVERY` steps, and print exact-match accuracies."""
        began, first, losses = time.monotonic(), self.step, list[float]()
        correct, counts = Counter[str](), Counter[str]()
        while self.step < self.phase.steps:
            loss, *scores = self.train_step()
            losses.append(loss)
            correct += scores[0]
            counts += scores[1]
            if self.step % PRINT_EVERY == 0:
                each = (time.monotonic() - began) / (self.step - first)
                left = each * (self.phase.steps - self.step) / 60
                whole = "  ".join(f"{name} {100 * correct[name] / n:.0f}" for name, n in sorted(counts.items()))
                print(f"{self.phase.name} {self.step}/{self.phase.steps} {self.sequences.mode} loss "
                      f"{sum(losses) / len(losses):.4f} {each:.2f} s/step, {left:.0f} min left | {whole}",
                      flush=True)  # fmt: skip
                correct, counts, losses = Counter(), Counter(), []
            if self.step % SAVE_EVERY == 0 or self.step == self.phase.steps:
                self.save()
        dist.barrier()  # the next phase begins with what the first process has saved


def _train(rank: int, options: Namespace, meeting: str) -> None:
    """All phases in one of the processes."""
    torch.set_num_threads(1)
    # a chunk of 64 tokens, the default, is longer than most of these sequences
    chunked = partial(modeling_qwen3_5.torch_chunk_gated_delta_rule, chunk_size=32)
    modeling_qwen3_5.torch_chunk_gated_delta_rule = chunked
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=len(MODES))
    for number in range(len(PHASES)):
        trainer = Trainer(number, rank, options.runs)
        trainer.run()
    if rank == 0:
        # as the real checkpoints; half the size
        write_checkpoint(trainer.model.to(torch.bfloat16), "hybrid", options.out)
    dist.destroy_process_group()


def main() -> None:
    parser = argument_parser(__doc__, POCKET_HYBRID, "where the checkpoint is written")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where training states are kept")
    options = parser.parse_args()
    with phase_lock("hybrid", options.runs):
        meeting = options.runs / "meeting"
        meeting.unlink(missing_ok=True)
        multiprocessing.spawn(_train, (options, str(meeting.resolve())), nprocs=len(MODES))


if __name__ == "__main__":
    main()
