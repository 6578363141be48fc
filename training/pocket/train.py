"""Train one phase of the pocket pair, or all of them: `python -m training.pocket.train [PHASE]`.

Seeded, with progress, and resumable: a stopped run continues from its last saved step. About three hours on
two cores: tower and transcripts on both, then the two language models side by side, one core each.
"""

from __future__ import annotations

import math
import random
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.page import POCKET, ROOT, argument_parser
from training.pocket.checkpoint import build_model, build_tokenizer, save_checkpoint
from training.pocket.data import LABEL, Sequences
from training.pocket.phases import EXAMPLES, PHASES, Phase, Scores, sequence_loss, tower_loss
from vlroute import Mode
from vlroute.types import MODES

RUNS = ROOT / "runs" / "pocket"
SAVE_EVERY = 250
SEED = 20261128


class Trainer:
    """One phase: model, head, optimizer and the source of new examples."""

    def __init__(self, phase: Phase, runs: Path) -> None:
        torch.set_num_threads(phase.threads)
        torch.manual_seed(SEED)
        self.phase, self.runs, self.step = phase, runs, 0
        tokenizer = build_tokenizer()
        self.model = build_model(tokenizer)
        self.head = nn.Linear(self.model.config.vision_config.hidden_size, 2 * (len(LABEL) + 1))
        self.sequences = Sequences(tokenizer, phase.mode or "instruct")
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
        return dict(torch.load(self.runs / f"{name}.pt", weights_only=True))

    def _groups(self) -> list[dict[str, Any]]:
        """The tower has a learning rate of its own; its mergers have that of the language model."""
        slow: list[nn.Parameter] = []
        full: list[nn.Parameter] = [*self.head.parameters()] if self.phase.name == "tower" else []
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad or (self.phase.name == "tower" and ".visual." not in name):
                continue
            (slow if ".visual." in name and "merger" not in name else full).append(parameter)
        return [{"params": full, "share": 1.0}, {"params": slow, "share": self.phase.tower_rate}]

    def train_step(self) -> tuple[float, Scores]:
        self.step += 1
        warm = min(1.0, self.step / 150)
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / self.phase.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = group["share"] * self.phase.rate * warm * (0.02 + 0.98 * cosine)
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
        torch.save({**state, "step": self.step}, partial)
        partial.replace(self.runs / f"{self.phase.name}.pt")

    def run(self) -> None:
        """Train to the end, save every `SAVE_EVERY` steps, and print exact-match accuracies."""
        began, first = time.monotonic(), self.step
        correct, counts, total = Counter[str](), Counter[str](), 0.0
        while self.step < self.phase.steps:
            loss, scores = self.train_step()
            total += loss
            correct.update({name: right for name, (right, _) in scores.items()})
            counts.update({name: count for name, (_, count) in scores.items()})
            if self.step % 100 == 0:
                each = (time.monotonic() - began) / (self.step - first)
                left = each * (self.phase.steps - self.step) / 60
                whole = "  ".join(f"{name} {100 * correct[name] / n:.0f}" for name, n in sorted(counts.items()))
                print(f"{self.phase.name} {self.step}/{self.phase.steps} loss {total / 100:.4f} "
                      f"{each:.2f} s/step, {left:.0f} min left | {whole}", flush=True)  # fmt: skip
                correct, counts, total = Counter(), Counter(), 0.0
            if self.step % SAVE_EVERY == 0 or self.step == self.phase.steps:
                self.save()


def finished(name: str, runs: Path) -> bool:
    path = runs / f"{name}.pt"
    return path.exists() and torch.load(path, weights_only=True)["step"] >= PHASES[name].steps


def main() -> None:
    parser = argument_parser(__doc__, POCKET, "where checkpoints are written")
    parser.add_argument("phase", nargs="?", choices=[*PHASES], help="one phase; without it, all that is not finished")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where training states are kept")
    options = parser.parse_args()
    if options.phase:
        trainer = Trainer(PHASES[options.phase], options.runs)
        trainer.run()
        if mode := trainer.phase.mode:
            save_checkpoint(trainer.model, mode, options.out / mode)
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


if __name__ == "__main__":
    main()
