"""The model card of a router artifact: README.md with metadata, as model hubs show it, written from the artifact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from vlroute.decision.captions import VisionProbe
from vlroute.decision.classifier import ComplexityClassifier, Start
from vlroute.engine.families import family_of_hub_id
from vlroute.errors import ArtifactError
from vlroute.hub import HUB_ID
from vlroute.markdown import cell, code, table

README = "README.md"
TAGS = ("vlroute", "router", "routing", "vision-language", "reasoning")
#: Number of words that `Vocabulary.rare` contains.
EXAMPLES = 10
#: Rows of the metrics and what they mean.
WAYS = {
    "always instruct": "Instruct answers every request",
    "always thinking": "Thinking answers every request",
    "random, same share": "random requests go to Thinking, as many as the router sends",
    "longest prompts, same share": "the longest prompts go to Thinking, as many as the router sends",
    "routed": "this router",
    "routed, captions withheld": "this router without captions of the pictures",
    "oracle": "knows which answers are right; cannot be reached",
}
LIMITS = """\
- The router was trained for {model}. Gains do not carry over to another model: train a router for yours.
- The figures are out of fold, on records like those of training. They do not cover other kinds of requests, and the
  intervals do not cover a change of requests over time.
- It predicts from text: the prompt, a caption of the pictures, and plain numbers such as lengths. It sees no pixels.
- It chooses how a question is answered. It neither filters nor moderates content, and it does not check answers."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What an artifact contains of the texts it was trained on.

    Attributes:
        hashed: Whether words and n-grams are hashed.
        prompt: Number of words and pairs of words from prompts.
        caption: The same from captions.
        grams: Number of runs of two to four characters from prompts.
        captions: Number of texts of the vision probe: whole captions, or their words. They are never hashed.
        records: Number of hashes of training records.
        rare: Words that the fewest training requests contain, the longest first; empty if they are hashed.
    """

    hashed: bool
    prompt: int
    caption: int
    grams: int
    captions: int
    records: int
    rare: tuple[str, ...]

    @property
    def counts(self) -> str:
        """What the artifact contains, in words, without examples."""
        form = "as hashes" if self.hashed else "in plain text"
        text = (
            f"{self.prompt} words and pairs of words of prompts, {self.caption} of captions and {self.grams} runs of "
            f"up to four characters, {form}"
        )
        if self.captions:
            text += f", and {self.captions} captions of the vision probe, in plain text"
        return text


def vocabulary_of(classifier: ComplexityClassifier, probe: VisionProbe | None = None) -> Vocabulary:
    """Count and sample the words of training requests in an artifact.

    Args:
        classifier: The classifier.
        probe: Its vision probe.

    Returns:
        The counts and examples.
    """
    encoders = [classifier.encoder]
    if classifier.start is not None:
        encoders.append(classifier.start.classifier.encoder)
    hashed = all(encoder.salt is not None for encoder in encoders)
    rarity: dict[str, float] = {}
    for part in [part for one in encoders if one.salt is None for part in (one.caption, one.prompt)]:
        top = np.max(part.idf, initial=0)  # of the terms that two texts contain
        rarity |= {term: float(top - idf) for term, idf in zip(part.terms, part.idf, strict=True) if " " not in term}
    rare = sorted(rarity, key=lambda term: (rarity[term], -len(term), term))[:EXAMPLES]
    captions = 0 if probe is None else len(probe.texts)
    return Vocabulary(
        hashed,
        sum(one.prompt.width for one in encoders),
        sum(one.caption.width for one in encoders),
        sum(one.grams.width for one in encoders),
        captions,
        0 if classifier.record_hashes is None else len(classifier.record_hashes.hashes),
        tuple(rare),
    )


def base_models(name: str) -> list[str]:
    """The hub ids of the checkpoints of a model.

    Args:
        name: The name of the model in the artifact, see `ModelIdentity`.

    Returns:
        One or two hub ids; none if the model is a folder or of an unknown family.
    """
    if " + " in name:
        return [one for one in name.split(" + ") if "/" in one and HUB_ID.fullmatch(one)]
    family = family_of_hub_id(name) if "/" in name and HUB_ID.fullmatch(name) else None
    if family is None:
        return []
    return [name] if family.hybrid else [f"{name}-Instruct", f"{name}-Thinking"]


def model_card(
    classifier: ComplexityClassifier, probe: VisionProbe | None, source: str, *, license: str | None = None
) -> str:
    """Write the model card of an artifact.

    Args:
        classifier: The classifier.
        probe: Its vision probe.
        source: What `router=` has to be to load it: a repository of the hub, or a folder.
        license: License of the artifact, an identifier of the hub such as "apache-2.0".

    Returns:
        Markdown, with metadata in YAML at the beginning.

    Raises:
        ArtifactError: Provenance or metrics of the artifact have another form than those that vlroute writes.
    """
    from huggingface_hub import ModelCardData

    model = classifier.model
    head = ModelCardData(
        license=license,
        library_name="vlroute",
        tags=list(TAGS),
        # not that of the models: the artifact classifies the text of a request
        pipeline_tag="text-classification",
        base_model=(base_models(model.name) if model else []) or None,
    ).to_yaml()
    try:
        sections = "\n\n".join(_sections(classifier, probe, source, license))
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"cannot write a model card: provenance or metrics in the artifact have an unknown form ({error!r}); train "
            "the router again with 'vlroute train'"
        ) from error
    return f"---\n{head}\n---\n\n{sections}\n"


def _sections(
    classifier: ComplexityClassifier, probe: VisionProbe | None, source: str, license: str | None
) -> Iterator[str]:
    card, model = classifier.card, classifier.model
    name = "a vision-language model" if model is None else model.name
    provenance, metrics = card.get("provenance") or {}, card.get("metrics") or {}
    yield f"# Router for {cell(name)}"
    yield (
        "A router artifact of the Python package vlroute. For each request it predicts how probably the modes Instruct "
        "and Thinking of a vision-language model answer correctly and how long they take, so that vlroute sends only "
        "those requests to Thinking for which it is worth the time."
    )
    loaded = f'"{name}", ' if model is not None and "/" in name and HUB_ID.fullmatch(name) else ""
    yield f"""\
## Use

```python
from vlroute import Router

router = Router.from_pretrained({loaded}router="{code(source)}")
answer = router.ask("What is the total?", "receipt.jpg")
```

Pass `revision="…"` with a commit of this repository to keep deciding with the same artifact. On the command line:
`vlroute ask "What is the total?" --image receipt.jpg --router {code(source)}`. The files are JSON and safetensors;
loading them runs no code."""
    trained_for = "a model that the artifact does not name" if model is None else cell(model.name)
    yield (
        f"## Intended use\n\nChoosing the mode of requests that resemble the training records, for {trained_for}. "
        "`vlroute eval` measures it on records of your own."
    )
    yield f"## Limits\n\n{LIMITS.format(model=trained_for)}"
    yield "## Training data\n\n" + "\n\n".join(_training(provenance, model, classifier.start))
    if metrics:
        yield "## Results\n\n" + "\n\n".join(_results(metrics, provenance))
    if learned := card.get("learned"):
        yield "## Learned from ratings\n\n" + _learned(learned)
    if warnings := card.get("warnings"):
        yield "## Warnings of the training\n\n" + "\n".join(f"- {cell(str(one))}." for one in warnings)
    yield "## Contents\n\n" + _contents(classifier, probe)
    yield "## Words of training requests\n\n" + _privacy(vocabulary_of(classifier, probe))
    yield "## License\n\n" + (f"{cell(license)}" if license else "The publisher has not stated a license.")
    yield f"This card was written by vlroute {metadata.version('vlroute')} from the artifact."


def _training(provenance: Mapping[str, Any], model: Any, start: Start | None) -> Iterator[str]:
    rows = [("model", "not recorded" if model is None else str(model))]
    if not provenance:
        yield table(("what", "value"), rows)
        yield "The artifact does not record its training data."
        return
    sets = ", ".join(f"{name or 'unnamed'} {count}" for name, count in provenance["sets"].items())
    rows += [("records", f"{provenance['records']} ({sets})"), ("date", str(provenance.get("date", "not recorded")))]
    settings = provenance.get("settings", {})
    if start is not None and "started from" not in settings:
        rows.append(("started from", start.name))
    rows += [(str(name), str(value)) for name, value in settings.items()]
    if skipped := provenance.get("skipped lines"):
        rows.append(("skipped lines", str(skipped)))
    if evidence := provenance.get("evidence"):
        rows.append(("records with evidence for later stages", str(evidence["records"])))
    libraries = provenance.get("libraries", {})
    rows.append(("libraries", ", ".join(f"{name} {version}" for name, version in libraries.items())))
    yield table(("what", "value"), rows)
    yield "Files of records and the SHA-256 of their content:"
    yield table(("file", "SHA-256"), [(str(one["file"]), str(one["sha256"])) for one in provenance["data"]])


def _results(metrics: Mapping[str, Any], provenance: Mapping[str, Any]) -> Iterator[str]:
    price = provenance.get("settings", {}).get("price")
    at = "" if price is None else f" At the price of {price:g} per second."
    yield f"Out-of-fold results on the {metrics['records']} training records.{at}"
    yield table(
        ("way of choosing the mode", "to Thinking", "accuracy", "95 % interval", "mean tokens", "mean seconds"),
        [
            (
                row["name"], f"{row['share']:.1%}", f"{row['accuracy']:.1%}", _interval(row.get("interval"), ".1%"),
                f"{row['tokens']:.0f}", f"{row['seconds']:.2f}",
            )
            for row in metrics["rows"]
        ],
    )  # fmt: skip
    used = [row["name"] for row in metrics["rows"]]
    yield "\n".join(f"- {name}: {meaning}." for name, meaning in WAYS.items() if name in used)
    if assumed := provenance.get("assumed"):
        yield _assumed(assumed)
    figures = metrics.get("figures", {})
    rows = [
        (name, "undefined" if one["value"] is None else f"{one['value']:.3f}", _interval(one.get("interval"), ".3f"))
        for name, one in figures.items()
        if "captions withheld" not in name
    ]
    if rows:
        yield table(("figure", "value", "95 % interval"), rows)
        yield (
            "Area over random: mean over all shares of Thinking of the accuracy above the random line, in points. Gain "
            "AUC: how often the predicted gain ranks a record that only Thinking answers correctly above one that only "
            "Instruct does. Headroom captured: 0 is the better single mode, 1 the oracle. ECE and Brier: errors of the "
            "probabilities, 0 is perfect."
        )
    if covers := metrics.get("covers"):
        yield cell(str(covers))


def _assumed(assumed: Mapping[str, Any]) -> str:
    """What `train` assumed about tokens and seconds, in words."""
    tokens = ", ".join(f"{str(mode).capitalize()} {value:g}" for mode, value in assumed["tokens of an answer"].items())
    seconds = ", ".join(
        f"{str(mode).capitalize()} {prefill:.3g} s of prefill and {each:.3g} s per token"
        for mode, (prefill, each) in assumed["prefill and seconds per token"].items()
    )
    figures = {"Tokens of an answer": tokens, "Seconds": seconds}
    return " ".join(
        f"{what} are assumed where the records contain none: {cell(found)}." for what, found in figures.items() if found
    )


def _learned(learned: Mapping[str, Any]) -> str:
    found = learned["comparison"]
    difference, low, high = (100 * float(found[name]) for name in ("difference", "low", "high"))
    return (
        f"This artifact corrects the artifact {cell(str(learned['base']))} with {learned['ratings']} ratings of "
        "answers in use (`vlroute learn`). The training data and results above are those of that first artifact. The "
        "vocabulary also contains words of rated requests.\n\n"
        f"Accuracy at equal seconds, minus that of the artifact in use before: {difference:+.1f} points ({low:+.1f} to "
        f"{high:+.1f}, 95 %), from {found['ratings']} held-out ratings."
    )


def _interval(ends: Sequence[float] | None, form: str) -> str:
    return "–" if ends is None else " – ".join(format(end, form) for end in ends)


def _contents(classifier: ComplexityClassifier, probe: VisionProbe | None) -> str:
    encoder, text = classifier.encoder, classifier.encoder.text
    numbers = sum(array.size for array in (classifier.heads.weights, classifier.heads.embedded, classifier.heads.bias))
    rows = [
        ("weights", f"{numbers}, for {encoder.width} features and an embedding of {encoder.embedding_width} numbers"),
        ("text encoder", "none" if text is None else f"{text.name}, {text.width} numbers, {text.fingerprint[:12]}…"),
        (
            "calibration set (presets and targets)",
            "none" if classifier.calibration is None else f"{len(classifier.calibration.coverage)} records",
        ),
        (
            "stages",
            "prompt" if classifier.stages is None else ", ".join(["prompt", *classifier.stages.as_card()["heads"]]),
        ),
        ("vision probe", "none" if probe is None else f"{len(probe.texts)} texts, for the tower {probe.tower[:12]}…"),
    ]
    return table(("part", "size"), rows)


def _privacy(found: Vocabulary) -> str:
    counts = f"The artifact contains {found.counts}."
    if not found.hashed:
        text = f"{counts} They come from the training records and can be read by everyone who can read this repository."
        if found.records:
            text += (
                f" It also contains salted hashes of {found.records} training records with measured seconds, each of "
                "id, prompt, caption, tokens and seconds, by which `vlroute eval` and `vlroute train --from` recognize "
                "these records."
            )
        return text
    return (
        f"{counts} The hashes hide the words from readers and from searches, not from an attack: the salt is part of "
        "the artifact, so guesses can be tested, and runs of up to four characters can be enumerated."
    )
