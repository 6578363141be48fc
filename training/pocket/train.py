"""Train one phase of the pocket pair, or all of them: `python -m training.pocket.train [PHASE]`.

Seeded, with progress, and resumable: a stopped run continues from its last saved step. About three hours and
a half on two cores: tower and transcripts on both, then the two language models side by side, one core each.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from training.page import POCKET, ROOT, argument_parser
from training.pocket.checkpoint import build_model, build_tokenizer, save_checkpoint
from training.pocket.data import LABEL, Sequences
from training.pocket.phases import EXAMPLES, PHASES, SHIPPED, Phase, Scores, sequence_loss, tower_loss
from vlroute import Mode
from vlroute.types import MODES

RUNS = ROOT / "runs" / "pocket"
SAVE_EVERY = 250
SEED = 20261128


def vocabulary_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of the tokens and their ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def load_state(name: str, runs: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The saved state of a phase. A state of another vocabulary is refused; older states do not record theirs."""
    path = runs / f"{name}.pt"
    state = dict(torch.load(path, weights_only=True))
    if state.get("vocabulary", own := vocabulary_hash(tokenizer)) != own:
        raise SystemExit(
            f"{path} was trained with another vocabulary; choose another folder with --runs, or delete this file and "
            "those of the later phases"
        )
    return state


@contextmanager
def phase_lock(name: str, runs: Path) -> Iterator[None]:
    """Lock a phase, so that two processes do not write its state. The lock ends with its process."""
    runs.mkdir(parents=True, exist_ok=True)
    path = runs / f"{name}.lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"another process trains the phase {name} and holds {path}; wait until it ends") from None
        yield


def write_checkpoint(model: Any, kind: str, folder: Path) -> None:
    """Write a checkpoint folder under a temporary name, then rename it. An existing folder is replaced.

    `kind`: see `build_processor`.
    """
    partial, old = (folder.with_name(f"{folder.name}.{suffix}") for suffix in ("partial", "old"))
    for one in (partial, old):
        shutil.rmtree(one, ignore_errors=True)
    partial.mkdir(parents=True)
    save_checkpoint(model, kind, partial)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], tower_rate: float) -> list[dict[str, Any]]:
    """The tower has a learning rate of its own, relative to the others; its mergers have that of the language model."""
    slow: list[nn.Parameter] = []
    full: list[nn.Parameter] = []
    for name, parameter in named:
        if parameter.requires_grad:
            (slow if ".visual." in name and "merger" not in name else full).append(parameter)
    return [{"params": full, "share": 1.0}, {"params": slow, "share": tower_rate}]


def set_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
    """The learning rates of a step: a short rise, then half a cosine."""
    warm, cosine = min(1.0, step / 150), 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = group["share"] * rate * warm * (0.02 + 0.98 * cosine)


class Trainer:
    """One phase: model, head, optimizer and the source of new examples."""

    def __init__(self, phase: Phase, runs: Path) -> None:
        torch.set_num_threads(phase.threads)
        torch.manual_seed(SEED)
        self.phase, self.runs, self.step = phase, runs, 0
        self.tokenizer = build_tokenizer()
        self.model = build_model(self.tokenizer)
        self.head = nn.Linear(self.model.config.vision_config.hidden_size, 2 * (len(LABEL) + 1))
        self.sequences = Sequences(self.tokenizer, phase.mode or "instruct")
        if phase.start:
            weights = self._saved(phase.start)["model"]
            if phase.start == "tower":  # it has trained nothing else
                weights = {**self.model.state_dict(), **{n: w for n, w in weights.items() if ".visual." in n}}
            self.model.load_state_dict(weights)
        if phase.tower_rate == 0:
            self.model.model.visual.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self._groups(), lr=phase.rate, weight_decay=0.01, betas=(0.9, 0.98))
        if (runs / f"{phase.name}.pt").exists():
            saved = self._saved(phase.name)
            for name in ("model", "head", "optimizer"):
                getattr(self, name).load_state_dict(saved[name])
            self.step = saved["step"]
        # a resumed run has a seed of its own, so that earlier examples need not be drawn again
        self.rng = random.Random(f"{SEED} {phase.name} {self.step}")
        if phase.name in EXAMPLES:
            self.examples = EXAMPLES[phase.name](self.rng, self.step)

    def _saved(self, name: str) -> dict[str, Any]:
        return load_state(name, self.runs, self.tokenizer)

    def _groups(self) -> list[dict[str, Any]]:
        named = self.model.named_parameters()
        if self.phase.name == "tower":
            named = [*self.head.named_parameters(), *(pair for pair in named if ".visual." in pair[0])]
        return parameter_groups(named, self.phase.tower_rate)

    def train_step(self) -> tuple[float, Scores]:
        self.step += 1
        set_rate(self.optimizer, self.phase.rate, self.step, self.phase.steps)
        if self.phase.name == "tower":
            loss, scores = tower_loss(self.model, self.head, self.rng)
        else:
            loss, scores = sequence_loss(self.model, self.sequences, next(self.examples))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], 1.0)
        self.optimizer.step()
        return loss.item(), scores

    def save(self) -> None:
        self.runs.mkdir(parents=True, exist_ok=True)
        state = {name: getattr(self, name).state_dict() for name in ("model", "head", "optimizer")}
        partial = self.runs / f"{self.phase.name}.partial"
        torch.save({**state, "step": self.step, "vocabulary": vocabulary_hash(self.tokenizer)}, partial)
        partial.replace(self.runs / f"{self.phase.name}.pt")

    def run(self) -> None:
        """Train to the end, save every `SAVE_EVERY` steps, and print exact-match accuracies."""
        began, first = time.monotonic(), self.step
        correct, counts, losses = Counter[str](), Counter[str](), list[float]()
        while self.step < self.phase.steps:
            loss, scores = self.train_step()
            losses.append(loss)
            correct.update({name: right for name, (right, _) in scores.items()})
            counts.update({name: count for name, (_, count) in scores.items()})
            if self.step % 100 == 0:
                each = (time.monotonic() - began) / (self.step - first)
                left = each * (self.phase.steps - self.step) / 60
                whole = "  ".join(f"{name} {100 * correct[name] / n:.0f}" for name, n in sorted(counts.items()))
                print(f"{self.phase.name} {self.step}/{self.phase.steps} loss {sum(losses) / len(losses):.4f} "
                      f"{each:.2f} s/step, {left:.0f} min left | {whole}", flush=True)  # fmt: skip
                correct, counts, losses = Counter(), Counter(), []
            if self.step % SAVE_EVERY == 0 or self.step == self.phase.steps:
                self.save()


def finished(name: str, runs: Path) -> bool:
    path = runs / f"{name}.pt"
    return path.exists() and load_state(name, runs, build_tokenizer())["step"] >= PHASES[name].steps


def write_finished(mode: Mode, runs: Path, out: Path) -> None:
    """Write the checkpoint folder of a mode: the mean of the weights of the phases in `SHIPPED`."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    with phase_lock(SHIPPED[mode][-1], runs):
        states = [load_state(name, runs, tokenizer)["model"] for name in SHIPPED[mode]]
        mean = {name: torch.stack([state[name].double() for state in states]).mean(0) for name in states[0]}
        model.load_state_dict(mean)
        write_checkpoint(model, mode, out / mode)


def main() -> None:
    parser = argument_parser(__doc__, POCKET, "where checkpoints are written")
    parser.add_argument("phase", nargs="?", choices=[*PHASES], help="one phase; without it, all that is not finished")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where training states are kept")
    options = parser.parse_args()
    if options.phase:
        with phase_lock(options.phase, options.runs):
            trainer = Trainer(PHASES[options.phase], options.runs)
            trainer.run()
            if mode := trainer.phase.mode:
                write_checkpoint(trainer.model, mode, options.out / mode)
        return
    python = [sys.executable, "-m", "training.pocket.train", "--runs", str(options.runs), "--out", str(options.out)]

    def run_phases(mode: Mode | None) -> None:
        for phase in PHASES.values():
            if phase.mode == mode and not finished(phase.name, options.runs):
                subprocess.run([*python, phase.name], check=True)

    try:
        run_phases(None)
        with ThreadPoolExecutor() as pool:  # each phase is a process of its own
            list(pool.map(run_phases, MODES))
    except subprocess.CalledProcessError as error:
        raise SystemExit("a phase failed; run the same command again to continue from its last saved step") from error
    # a phase may have been stopped after its last save, before it wrote the folder
    for mode in MODES:
        write_finished(mode, options.runs, options.out)


if __name__ == "__main__":
    main()
