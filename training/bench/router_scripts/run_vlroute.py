"""The router of this project, as `vlroute train` fits it, with the shipped text encoder."""

from __future__ import annotations

from job import Requests, Score, Split, run

from vlroute.decision.text_encoder import STATIC, load_text_encoder
from vlroute.learning.embeddings import embed_texts
from vlroute.learning.fit import fit_classifier
from vlroute.records import Outcome, Record


def fit(requests: Requests, split: Split) -> Score:
    records = [
        Record(
            str(at), requests.prompts[at], requests.captions[at], Outcome(cheap), Outcome(strong),
            topic=requests.topics[at],
        )
        for at, (cheap, strong) in zip(split.train, split.right, strict=True)
    ]  # fmt: skip
    encoder = load_text_encoder(STATIC)
    classifier = fit_classifier(records, seed=split.seed, text=embed_texts(records, encoder))
    if classifier.encoder.text is not None:
        classifier.encoder = classifier.encoder.with_text(encoder)

    def score(at: int) -> float:
        found = classifier.predict(requests.prompts[at], requests.captions[at] or None)
        return found.p_thinking - found.p_instruct

    return score


if __name__ == "__main__":
    run("vlroute", {"vlroute": fit})
