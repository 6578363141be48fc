"""LLMRouter's kNN, SVM, MLP and MF, trained by its own trainers with the settings that it publishes.

Its own embeddings come from a Longformer of the hub; here they are given. It only returns the name of the chosen
model, so the score is read from the trained model.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from job import CHEAP, STRONG, Fit, Requests, Score, Split, run
from llmrouter.models import (
    KNNRouter,
    KNNRouterTrainer,
    MFRouter,
    MFRouterTrainer,
    MLPRouter,
    MLPTrainer,
    SVMRouter,
    SVMRouterTrainer,
)

#: Router, trainer and the published settings. Without `probability` the SVM is the same, only faster.
LEARNED: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "kNN": (KNNRouter, KNNRouterTrainer, {"n_neighbors": 5}),
    "SVM": (SVMRouter, SVMRouterTrainer, {"kernel": "rbf", "C": 1.0, "gamma": "scale"}),
    "MLP": (
        MLPRouter, MLPTrainer,
        {
            "hidden_layer_sizes": [128, 64], "activation": "relu", "lr": 0.001, "epochs": 100, "batch_size": 32,
            "alpha": 0.0001,
        },
    ),
    "MF": (MFRouter, MFRouterTrainer, {"latent_dim": 128, "lr": 0.001, "epochs": 5, "noise_alpha": 0.0}),
}  # fmt: skip


def trained(name: str, vectors: Any, split: Split, folder: Path) -> tuple[Any, Any]:
    """The router and its trainer after training, with LLMRouter's files in `folder`."""
    router_class, trainer_class, settings = LEARNED[name]
    torch.save(torch.from_numpy(vectors), folder / "embeddings.pt")
    with (folder / "routing.jsonl").open("w", encoding="utf-8") as lines:
        for at, right in zip(split.train, split.right, strict=True):
            for model, performance in zip((CHEAP, STRONG), right, strict=True):  # of equal ones the first is chosen
                # rows of equal queries are merged; equal texts have other pictures here, so the query is the position
                row = {"query": f"{at:06}", "model_name": model, "performance": performance, "embedding_id": at}
                lines.write(json.dumps(row) + "\n")
    config = {
        "data_path": {
            "query_embedding_data": str(folder / "embeddings.pt"), "routing_data_train": str(folder / "routing.jsonl"),
        },
        "model_path": {"ini_model_path": "", "save_model_path": str(folder / "model.pkl")},
        "hparam": settings | ({"text_dim": vectors.shape[1]} if name == "MF" else {}),
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    router = router_class(str(folder / "config.yaml"))
    trainer = trainer_class(router, device="cpu")
    trainer.train()
    return router, trainer


def fit(name: str, encoder: str, requests: Requests, split: Split) -> Score:
    vectors = np.load(requests.embeddings[encoder])
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        router, trainer = trained(name, vectors, split, Path(folder))
    return scorer(name, router, trainer.model, vectors)


def scorer(name: str, router: Any, model: Any, vectors: Any) -> Score:
    if name == "kNN":
        strong = list(model.classes_).index(STRONG)
        return lambda at: model.predict_proba(vectors[at : at + 1])[0, strong]
    if name == "SVM":
        sign = 1.0 if model.classes_[1] == STRONG else -1.0
        return lambda at: sign * model.decision_function(vectors[at : at + 1])[0]
    model.eval()
    forward: Callable[[Any], Any] = model
    if name == "MF":
        forward = lambda vector: model.score_all(model.project_text(vector))[None]  # noqa: E731
    strong, cheap = router.model_to_idx[STRONG], router.model_to_idx[CHEAP]

    @torch.no_grad()
    def score(at: int) -> float:
        logits = forward(torch.from_numpy(vectors[at : at + 1]))[0]
        return (logits[strong] - logits[cheap]).item()

    return score


LEARNERS: dict[str, Fit] = {
    f"LLMRouter {name}, {encoder}": partial(fit, name, encoder) for encoder in ("static", "MiniLM") for name in LEARNED
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    run("llmrouter-lib", LEARNERS, torch.manual_seed)
