"""wayfinder-router: its structural score, and its classifier over the same features, fitted on the labels."""

from __future__ import annotations

import json

from job import CHEAP, STRONG, Fit, Requests, Score, Split, run
from wayfinder_router import calibrate, extract_features, parse_dataset, routing_config_from_toml, score_complexity


def structural(requests: Requests, split: Split) -> Score:
    return lambda at: score_complexity(requests.prompts[at]).score


def classifier(requests: Requests, split: Split) -> Score:
    rows = [
        json.dumps({"text": requests.prompts[at], "label": label})
        for at, label in zip(split.train, split.labels(), strict=True)
    ]
    fitted = routing_config_from_toml(calibrate(parse_dataset("\n".join(rows)), "classifier").toml).classifier
    strong, cheap = fitted.models.index(STRONG), fitted.models.index(CHEAP)

    def score(at: int) -> float:
        logits = fitted.logits(extract_features(requests.prompts[at]))
        return logits[strong] - logits[cheap]

    return score


LEARNERS: dict[str, Fit] = {"wayfinder score": structural, "wayfinder classifier": classifier}

if __name__ == "__main__":
    run("wayfinder-router", LEARNERS)
