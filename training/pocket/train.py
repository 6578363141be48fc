"""Train one stage of the pocket pair, or all of them: `python -m training.pocket.train [STAGE]`.

Seeded, with progress, and resumable: a killed run goes on from its last saved step. About an hour and a quarter on
two cores: tower and transcripts on both, then the two language models side by side, one core each.
"""

from __future__ import annotations

import argparse
import math
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.pocket.checkpoint import build_model, build_tokenizer, save_checkpoint
from training.pocket.data import LABEL, Sequences
from training.pocket.stages import EXAMPLES, STAGES, Scores, Stage, sequence_loss, tower_loss
from vlroute.types import MODES, Mode

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "runs" / "pocket"
SAVE_EVERY = 250
SEED = 20261122


class Trainer:
    """One stage: model, head, optimiser and the source of fresh examples."""

    def __init__(self, stage: Stage, runs: Path) -> None:
        torch.set_num_threads(stage.threads)
        torch.manual_seed(SEED)
        self.stage, self.runs, self.step = stage, runs, 0
        tokenizer = build_tokenizer()
        self.model = build_model(tokenizer)
        self.head = nn.Linear(self.model.config.vision_config.hidden_size, 2 * (len(LABEL) + 1))
        self.sequences = Sequences(tokenizer, stage.mode or "instruct")
        if stage.start:
            self.model.load_state_dict(self._saved(stage.start)["model"])
        if stage.tower_rate == 0:
            self.model.model.visual.requires_grad_(False)
        self.optimiser = torch.optim.AdamW(self._groups(), lr=stage.rate, weight_decay=0.01, betas=(0.9, 0.98))
        if (runs / f"{stage.name}.pt").exists():
            saved = self._saved(stage.name)
            self.model.load_state_dict(saved["model"])
            self.head.load_state_dict(saved["head"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.step = saved["step"]
        # a resumed run draws on from a seed of its own: the examples before it need not be drawn again
        self.rng = random.Random(f"{SEED} {stage.name} {self.step}")
        if stage.name in EXAMPLES:
            self.examples = EXAMPLES[stage.name](self.rng, self.step)

    def _saved(self, name: str) -> dict[str, Any]:
        return dict(torch.load(self.runs / f"{name}.pt", weights_only=True))

    def _groups(self) -> list[dict[str, Any]]:
        """The tower learns at its own rate; its mergers, which speak to the language model, at the full one."""
        slow: list[nn.Parameter] = []
        full: list[nn.Parameter] = [*self.head.parameters()] if self.stage.name == "tower" else []
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad or (self.stage.name == "tower" and ".visual." not in name):
                continue
            (slow if ".visual." in name and "merger" not in name else full).append(parameter)
        return [{"params": full, "share": 1.0}, {"params": slow, "share": self.stage.tower_rate}]

    def loss(self) -> tuple[torch.Tensor, Scores]:
        if self.stage.name == "tower":
            return tower_loss(self.model, self.head, self.rng)
        return sequence_loss(self.model, self.sequences, next(self.examples))

    def train_step(self) -> tuple[float, Scores]:
        self.step += 1
        warm = min(1.0, self.step / 150)
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / self.stage.steps))
        for group in self.optimiser.param_groups:
            group["lr"] = group["share"] * self.stage.rate * warm * (0.02 + 0.98 * cosine)
        loss, scores = self.loss()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for g in self.optimiser.param_groups for p in g["params"]], 1.0)
        self.optimiser.step()
        return loss.item(), scores

    def save(self) -> None:
        self.runs.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
        }
        partial = self.runs / f"{self.stage.name}.partial"
        torch.save(state, partial)
        partial.replace(self.runs / f"{self.stage.name}.pt")

    def run(self) -> None:
        """Train to the end, saving every `SAVE_EVERY` steps and printing what came out whole."""
        began, first = time.monotonic(), self.step
        seen: dict[str, list[float]] = {}
        total = 0.0
        while self.step < self.stage.steps:
            loss, scores = self.train_step()
            total += loss
            for name, (share, count) in scores.items():
                right = seen.setdefault(name, [0.0, 0.0])
                right[0] += share * count
                right[1] += count
            if self.step % 100 == 0:
                each = (time.monotonic() - began) / (self.step - first)
                left = each * (self.stage.steps - self.step) / 60
                whole = "  ".join(f"{name} {100 * r / n:.0f}" for name, (r, n) in sorted(seen.items()))
                print(f"{self.stage.name} {self.step}/{self.stage.steps} loss {total / 100:.4f} "
                      f"{each:.2f} s/step, {left:.0f} min left | {whole}", flush=True)  # fmt: skip
                seen, total = {}, 0.0
            if self.step % SAVE_EVERY == 0 or self.step == self.stage.steps:
                self.save()


def finished(name: str, runs: Path) -> bool:
    path = runs / f"{name}.pt"
    return path.exists() and torch.load(path, weights_only=True)["step"] >= STAGES[name].steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", nargs="?", choices=[*STAGES], help="one stage; without it, all that is not finished")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where training states are kept")
    parser.add_argument("--out", type=Path, default=ROOT / "models" / "pocket", help="where checkpoints are written")
    options = parser.parse_args()
    if options.stage:
        trainer = Trainer(STAGES[options.stage], options.runs)
        trainer.run()
        if mode := trainer.stage.mode:
            save_checkpoint(trainer.model, mode, options.out / mode)
        return
    python = [sys.executable, "-m", "training.pocket.train", "--runs", str(options.runs), "--out", str(options.out)]

    def run_stages(mode: Mode | None) -> None:
        for stage in STAGES.values():
            if stage.mode == mode and not finished(stage.name, options.runs):
                subprocess.run([*python, stage.name], check=True)

    try:
        run_stages(None)
        with ThreadPoolExecutor() as pool:  # each stage is a process of its own
            list(pool.map(run_stages, MODES))
    except subprocess.CalledProcessError as error:
        raise SystemExit("a stage failed; run the same command again to go on from its last saved step") from error


if __name__ == "__main__":
    main()
