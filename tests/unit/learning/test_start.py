"""Training that starts from another router: its logits stay part of the new one, also in the saved artifact."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.synthetic_records import Drawn, draw_records
from vlroute import write_records
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.text_encoder import STATIC, Floats, load_text_encoder
from vlroute.errors import ArtifactError, InputError, SettingsError
from vlroute.learning import train_router
from vlroute.learning.fit import fit_classifier
from vlroute.learning.start import load_start
from vlroute.records import Record
from vlroute.sharing import router_folder


def error_of(router: ComplexityClassifier, drawn: list[Drawn], records: list[Record]) -> float:
    """Root mean square error of the predicted gain."""
    gains = [router.predict(record.prompt, record.caption).gain for record in records]
    return float(np.sqrt(np.mean([(g - d.p_thinking + d.p_instruct) ** 2 for g, d in zip(gains, drawn, strict=True)])))


def train(records: list[Record], folder: Path, name: str, **settings: object) -> ComplexityClassifier:
    write_records(folder / f"{name}.jsonl", records)
    train_router([folder / f"{name}.jsonl"], folder / name, seeds=1, console=Console(quiet=True), **settings)  # type: ignore[arg-type]
    return ComplexityClassifier.load(folder / name)


def test_few_records_add_to_what_the_first_router_knows(tmp_path: Path) -> None:
    """The first router uses words only, the new one also the embedding."""
    first = fit_classifier(draw_records(1500, seed=1)[1])
    first.save(tmp_path / "first")
    _, few = draw_records(60, seed=2)
    drawn, test = draw_records(300, seed=3)
    alone = train(few, tmp_path, "alone")
    started = train(few, tmp_path, "started", start=tmp_path / "first")
    assert error_of(started, drawn, test) < error_of(alone, drawn, test) - 0.05
    assert started.start is not None
    assert started.start.classifier.fingerprint == first.fingerprint
    assert first.fingerprint in started.card["provenance"]["settings"]["started from"]
    assert started.fingerprint != alone.fingerprint


def test_the_saved_router_predicts_the_same_as_the_fitted_one(tmp_path: Path) -> None:
    _, records = draw_records(200)
    first = fit_classifier(draw_records(200, seed=1)[1], text=load_text_encoder(STATIC))
    first.save(tmp_path / "first")
    started = train(records, tmp_path, "started", start=str(tmp_path / "first"), encoder=None)
    started.save(tmp_path / "again")
    again = ComplexityClassifier.load(tmp_path / "again")
    for record in records[:20]:
        for caption in (record.caption, None):
            assert again.predict(record.prompt, caption) == started.predict(record.prompt, caption)


def test_an_unknown_router_is_refused_with_the_known_names(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no router 'nowhere'.*qwen3-vl-2b"):
        train(draw_records(60)[1], tmp_path, "started", start="nowhere")
    with pytest.raises(ArtifactError, match=r"no router 'qwen3-vl-2b'"):  # a Path is always a folder
        router_folder(Path("qwen3-vl-2b"))


def test_an_empty_name_is_not_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_classifier(draw_records(60)[1]).save(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert router_folder(".") == Path()
    with pytest.raises(SettingsError, match="router must be"):
        router_folder("")


def test_the_router_to_start_from_is_not_replaced(tmp_path: Path) -> None:
    fit_classifier(draw_records(60, seed=1)[1]).save(tmp_path / "first")
    with pytest.raises(InputError, match=r"cannot write .*router\.json: it is also an input"):
        train(draw_records(60)[1], tmp_path, "first", start=tmp_path / "first")


@pytest.mark.parametrize("name", ["qwen3-vl-2b", "Qwen/Qwen3-VL-2B", "pocket"])
def test_shipped_routers_are_found_by_name(name: str) -> None:
    assert load_start(router_folder(name)).heads.weights.any()


def test_a_router_that_was_started_itself_is_refused(tmp_path: Path) -> None:
    _, records = draw_records(60)
    train(records, tmp_path, "started", start="qwen3-vl-2b")
    with pytest.raises(InputError, match="was itself started from 'qwen3-vl-2b'"):
        load_start(tmp_path / "started")


def test_a_router_of_the_same_records_is_refused(tmp_path: Path) -> None:
    """Its logits for them would be too good, and so would all figures."""
    _, records = draw_records(60)
    train(records, tmp_path, "first")
    with pytest.raises(InputError, match=r"was trained on first\.jsonl"):
        train(records, tmp_path, "first", start=tmp_path / "first")


def test_damaged_slopes_are_refused(tmp_path: Path) -> None:
    _, records = draw_records(60)
    started = train(records, tmp_path, "started", start="qwen3-vl-2b")
    assert started.start is not None
    wrong = dataclasses.replace(started.start, slope=np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="slopes of the first router have shape"):
        ComplexityClassifier(started.encoder, started.heads, started.latency, start=wrong)


class Counted:
    """A text encoder that counts its calls."""

    def __init__(self) -> None:
        self._encoder, self.calls = load_text_encoder(STATIC), 0
        self.name, self.width = self._encoder.name, self._encoder.width
        self.fingerprint, self.revision = self._encoder.fingerprint, None

    def encode(self, texts: Sequence[str], /) -> Floats:
        self.calls += 1
        return self._encoder.encode(texts)


def test_both_routers_use_one_embedding_of_a_text(tmp_path: Path) -> None:
    static = load_text_encoder(STATIC)
    fit_classifier(draw_records(200, seed=1)[1], text=static).save(tmp_path / "first")
    _, records = draw_records(200)
    started = train(records, tmp_path, "started", start=str(tmp_path / "first"))
    assert started.start is not None
    first, counted = started.start.classifier, Counted()
    known = next(record for record in records if record.caption)
    requests = [(record.prompt, record.caption) for record in records[:20]]
    requests += [(known.prompt, "words that no caption of the records contains"), ("", None)]
    first.encoder = first.encoder.with_text(Counted())  # another object, so that all texts are embedded twice
    apart = started.predict_many(requests)
    first.encoder, started.encoder = first.encoder.with_text(counted), started.encoder.with_text(counted)
    assert started.predict_many(requests) == apart
    assert counted.calls == len(requests)
