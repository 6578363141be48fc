"""RouteLLM's matrix factorization, trained by its own training loop with the settings of its example.

Its own embeddings come from a paid service and its published weights belong to them; here embeddings are given.
"""

from __future__ import annotations

import os
from functools import partial

os.environ.setdefault("OPENAI_API_KEY", "not used")  # importing the package creates a client
import numpy as np
import torch
from job import Fit, Requests, Score, Split, run
from routellm.routers.matrix_factorization.model import MODEL_IDS
from routellm.routers.matrix_factorization.train_matrix_factorization import (
    MFModel_Train,
    PairwiseDataset,
    train_loops,
)

STRONG, WEAK = "gpt-4-1106-preview", "mixtral-8x7b-instruct-v0.1"  # its default pair: two of the names that it knows


def fit(encoder: str, requests: Requests, split: Split) -> Score:
    file = requests.embeddings[encoder]
    count, width = np.load(file, mmap_mode="r").shape
    pairs = [
        {"model_a": STRONG, "model_b": WEAK, "idx": at, "winner": "model_a" if strong > weak else "model_b"}
        for at, (weak, strong) in zip(split.train, split.right, strict=True)
        if strong != weak  # it does not learn from ties
    ]
    model = MFModel_Train(dim=128, num_models=len(MODEL_IDS), num_prompts=count, text_dim=width, npy_path=file)
    loader = PairwiseDataset(pairs).get_dataloaders(batch_size=64)
    train_loops(
        model, loader, loader, lr=3e-4, weight_decay=1e-5, alpha=0.1, num_epochs=100, device="cpu",
        evaluator=lambda *_: (0.0, 0.0),  # without one, its training loop fails
    )  # fmt: skip
    model.eval()
    strong, weak = torch.tensor([MODEL_IDS[STRONG]]), torch.tensor([MODEL_IDS[WEAK]])

    @torch.no_grad()
    def score(at: int) -> float:
        return model(strong, weak, torch.tensor([at]), test=True).item()

    return score


LEARNERS: dict[str, Fit] = {f"RouteLLM MF, {encoder}": partial(fit, encoder) for encoder in ("static", "MiniLM")}

if __name__ == "__main__":
    torch.set_num_threads(1)
    run("routellm", LEARNERS, torch.manual_seed)
