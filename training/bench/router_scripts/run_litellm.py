"""LiteLLM's complexity router: the `heuristic` and the predictor that it ships for `heuristic_v2`."""

from __future__ import annotations

from job import Fit, Requests, Score, Split, run
from litellm.router_strategy.complexity_router.complexity_router import ComplexityRouter

TIERS = {"SIMPLE": "cheap", "MEDIUM": "cheap", "COMPLEX": "strong", "REASONING": "strong"}


def router(classifier_type: str) -> ComplexityRouter:
    config = {"classifier_type": classifier_type, "tiers": TIERS}
    return ComplexityRouter("router", None, config, derive_savings_baseline=False)


def heuristic(requests: Requests, split: Split) -> Score:
    """The weighted sum that the router compares with its tier boundaries."""
    rules = router("heuristic")
    return lambda at: rules.classify(requests.prompts[at])[1]


def predictor(requests: Requests, split: Split) -> Score:
    """Predicted success of the highest tier minus that of the lowest one."""
    trained = router("heuristic_v2")

    def score(at: int) -> float:
        forecast = trained._classify_with_heuristic_v2(requests.prompts[at]).heuristic_v2_forecast  # noqa: SLF001
        return forecast["probabilities"]["REASONING"] - forecast["probabilities"]["SIMPLE"]

    return score


LEARNERS: dict[str, Fit] = {"LiteLLM heuristic": heuristic, "LiteLLM heuristic_v2": predictor}

if __name__ == "__main__":
    run("litellm", LEARNERS)
