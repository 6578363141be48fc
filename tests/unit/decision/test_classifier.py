"""The classifier: what it learns, its calibration, artifacts of this schema and of the previous one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.artifacts import weights_of
from tests.synthetic_records import PER_TOKEN, PREFILL, caption_decides, draw_records
from vlroute.decision.artifact import CARD_FILE, WEIGHTS_FILE, write_artifact
from vlroute.decision.classifier import ComplexityClassifier, Prediction
from vlroute.decision.text_encoder import STATIC, TextEncoder, load_text_encoder
from vlroute.errors import ArtifactError
from vlroute.files import shipped
from vlroute.learning.fit import fit_classifier
from vlroute.types import ToolUse


@pytest.fixture(scope="module")
def classifier() -> ComplexityClassifier:
    return fit_classifier(draw_records(1500)[1])


def test_the_gain_follows_prompt_and_caption_together(classifier: ComplexityClassifier) -> None:
    gain = {
        (prompt, caption): classifier.predict(prompt, caption).gain
        for prompt in ("Add the numbers.", "Guess the hidden number.")
        for caption in ("one number", "four numbers")
    }
    assert gain["Add the numbers.", "four numbers"] > 0.5
    assert gain["Guess the hidden number.", "four numbers"] > gain["Add the numbers.", "four numbers"]
    assert gain["Add the numbers.", "one number"] < 0.2
    assert gain["Guess the hidden number.", "one number"] < 0.2


def test_the_prompt_alone_can_decide(classifier: ComplexityClassifier) -> None:
    assert classifier.predict("Start at C and follow 4 arrows.", "six boxes").gain > 0.5
    assert classifier.predict("Start at C and follow 1 arrows.", "six boxes").gain < 0.3


def test_gain_is_close_to_the_truth_on_new_requests(classifier: ComplexityClassifier) -> None:
    rng = random.Random(99)
    drawn = [caption_decides(rng) for _ in range(500)]
    errors = [
        abs(classifier.predict(one.prompt, one.caption).gain - (one.p_thinking - one.p_instruct)) for one in drawn
    ]
    assert np.mean(errors) < 0.05


def test_each_condition_uses_its_own_calibration(classifier: ComplexityClassifier) -> None:
    calibration = np.zeros((2, 2, 2), np.float32)
    calibration[0, :, 1] = [-1, 1]
    calibration[1, :, 1] = [2, -2]
    constant = ComplexityClassifier(
        classifier.encoder, dataclasses.replace(classifier.heads, calibration=calibration), classifier.latency
    )
    without, with_caption = constant.predict("Add the numbers."), constant.predict("Add the numbers.", "one number")
    assert [without.p_instruct, without.p_thinking] == pytest.approx([0.2689, 0.8808], abs=1e-4)
    assert [with_caption.p_instruct, with_caption.p_thinking] == pytest.approx([0.7311, 0.1192], abs=1e-4)


@pytest.mark.parametrize("captioned", [True, False])
def test_probabilities_are_calibrated_in_both_conditions(classifier: ComplexityClassifier, captioned: bool) -> None:
    rng = random.Random(7)
    drawn = [caption_decides(rng) for _ in range(800)]
    predicted = [classifier.predict(one.prompt, one.caption if captioned else None) for one in drawn]
    assert np.mean([p.p_instruct for p in predicted]) == pytest.approx(
        np.mean([one.p_instruct for one in drawn]), abs=0.04
    )
    if not captioned:  # "add" without its caption: the mean over captions is all that can be known
        assert classifier.predict("Add the numbers.").p_instruct == pytest.approx(0.5, abs=0.1)


def test_expected_tokens(classifier: ComplexityClassifier) -> None:
    prediction = classifier.predict("Add the numbers.", "two numbers")
    assert prediction.tokens_instruct == pytest.approx(6, rel=0.15)
    assert prediction.tokens_thinking == pytest.approx(60, rel=0.15)  # the mean; the exponential of mean logs is 45


def test_latency_is_that_of_the_records_and_fresh_each_time(classifier: ComplexityClassifier) -> None:
    assert classifier.latency.expected("instruct", 6) == pytest.approx(PREFILL + 6 * PER_TOKEN)
    assert classifier.latency.expected("thinking", 60) == pytest.approx(PREFILL + 60 * PER_TOKEN)
    assert classifier.latency is not classifier.latency


def test_far_from_the_training_data(classifier: ComplexityClassifier) -> None:
    assert classifier.predict("Add the numbers.", "two numbers").coverage == 1
    assert classifier.predict("Refactor my asyncio service").coverage == 0


def test_the_effect_of_tools_is_learned() -> None:
    rng, records = random.Random(5), []
    for record in draw_records(600)[1]:
        tools = rng.choice(get_args(ToolUse))
        if tools == "offered":  # Thinking gets worse
            record = dataclasses.replace(record, thinking=dataclasses.replace(record.thinking, correct=0.2))
        if tools == "result":  # Instruct gets better
            record = dataclasses.replace(record, instruct=dataclasses.replace(record.instruct, correct=0.95))
        records.append(dataclasses.replace(record, tools=tools))
    learned = fit_classifier(records)
    asked = "Add the numbers.", "four numbers"
    without, offered, result = (learned.predict(*asked, tools) for tools in get_args(ToolUse))
    assert offered.p_thinking < without.p_thinking - 0.4
    assert result.p_instruct > without.p_instruct + 0.4


def test_an_artifact_of_a_version_that_did_not_see_tools(classifier: ComplexityClassifier, tmp_path: Path) -> None:
    classifier.save(tmp_path)

    def drop(arrays: dict) -> None:
        for name in ("center", "scale", "weights"):
            arrays[name] = arrays[name][:-2]

    edit_card(lambda card: card.update(dense=card["dense"][:-2]))(tmp_path)
    edit_weights(drop)(tmp_path)
    loaded = ComplexityClassifier.load(tmp_path)
    for request in (("Add the numbers.", "four numbers"), ("把数字加起来。", None)):
        expected = classifier.predict(*request)
        assert [loaded.predict(*request, tools) for tools in get_args(ToolUse)] == [expected] * 3


def test_predict_many(classifier: ComplexityClassifier) -> None:
    requests: list[tuple[str, str | None, ToolUse]] = [
        ("Add the numbers.", "one number", ""), ("Add the numbers.", None, "offered")
    ]  # fmt: skip
    assert classifier.predict_many(requests) == [classifier.predict(*request) for request in requests]


def test_a_prediction_takes_well_under_a_millisecond(classifier: ComplexityClassifier) -> None:
    seconds = []
    for _ in range(200):
        start = time.perf_counter()
        classifier.predict("Start at C and follow 4 arrows.", "three numbers in a column")
        seconds.append(time.perf_counter() - start)
    assert median(seconds) < 1e-3  # about 0.1 ms; the bound leaves room for a busy machine


def test_saved_and_loaded_it_predicts_the_same(classifier: ComplexityClassifier, tmp_path: Path) -> None:
    classifier.card["provenance"] = {"records": 1500}
    classifier.save(tmp_path / "new" / "folder")
    loaded = ComplexityClassifier.load(tmp_path / "new" / "folder")
    for request in (("Add the numbers.", "four numbers"), ("把数字加起来。", None), ("", None)):
        assert loaded.predict(*request) == classifier.predict(*request)
    assert loaded.card["provenance"] == {"records": 1500}
    assert loaded.latency.to_dict() == classifier.latency.to_dict()
    loaded.save(tmp_path / "again")
    first, second = (
        {one.name: one.read_bytes() for one in (tmp_path / name).iterdir()} for name in ("new/folder", "again")
    )
    assert first == second


def edit_card(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        card = json.loads((folder / CARD_FILE).read_text("utf-8"))
        change(card)
        (folder / CARD_FILE).write_text(json.dumps(card), "utf-8")

    return damage


def edit_weights(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """Damage that a matching checksum does not reveal."""

    def damage(folder: Path) -> None:
        arrays = load_file(weights_of(folder))
        change(arrays)
        card = json.loads((folder / CARD_FILE).read_text("utf-8"))
        for key in ("schema", "weights_sha256"):
            del card[key]
        write_artifact(folder, card, arrays)

    return damage


def flip_a_byte(folder: Path) -> None:
    content = bytearray(weights_of(folder).read_bytes())
    content[-1] ^= 1
    weights_of(folder).write_bytes(content)


def swap_weights(folder: Path) -> None:
    save_file({"weights": np.zeros((3, 4), np.float32)}, weights_of(folder))


def link_to_zeros(folder: Path) -> None:
    (folder / CARD_FILE).unlink()
    (folder / CARD_FILE).symlink_to("/dev/zero")


def pipe(folder: Path) -> None:
    (weights := weights_of(folder)).unlink()
    os.mkfifo(weights)


def term_twice(card: dict) -> None:
    card["vocabulary"]["prompt"][0] = card["vocabulary"]["prompt"][1]


def number_for_a_term(card: dict) -> None:
    card["vocabulary"]["prompt"][0] = 5


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / CARD_FILE).unlink(), "cannot read"),
        (link_to_zeros, "not a regular file"),
        (pipe, "not a regular file"),
        (lambda folder: os.truncate(folder / CARD_FILE, 2**33), "more than the limit"),  # 8 GiB that need no disk
        (lambda folder: os.truncate(weights_of(folder), 2**33), "more than the limit"),
        (edit_card(lambda card: card.update(metrics=math.nan)), "NaN is not a finite number"),
        (edit_card(lambda card: card.update(model={"name": "\ud800"})), "surrogates not allowed"),
        (edit_card(lambda card: card.update(provenance=None)), "provenance"),
        (edit_card(lambda card: card.update(provenance={"data": [{"sha256": []}]})), "provenance"),
        (edit_card(lambda card: card["latency"]["prefill"].update(instruct=10**400)), "seconds must be"),
        (edit_card(lambda card: card["latency"]["per_token"].update(thinking=1e300)), "at most 1e\\+09"),
        (edit_card(lambda card: card.update(latency=["per_token", "prefill"])), "per_token"),
        (edit_card(term_twice), "term twice"),
        (edit_card(number_for_a_term), "must be strings"),
        (lambda folder: weights_of(folder).unlink(), "cannot read"),
        (lambda folder: (folder / CARD_FILE).write_text("{"), "not valid JSON"),
        (lambda folder: (folder / CARD_FILE).write_text("[]"), "schema None"),
        (lambda folder: (folder / CARD_FILE).write_bytes(b"\xff\xfe"), "not valid JSON"),
        (edit_card(lambda card: card.update(schema=99)), "schema 99; this version of vlroute reads 3 to 5"),
        (edit_card(lambda card: card.pop("weights_sha256")), "no valid weights_sha256"),
        (edit_card(lambda card: card.update(weights_sha256="../" * 30)), "no valid weights_sha256"),
        (edit_card(lambda card: card.pop("vocabulary")), "vocabulary"),
        (edit_card(lambda card: card["vocabulary"]["prompt"].pop()), "idf has shape"),
        (edit_card(lambda card: card.update(latency={})), "per_token"),
        (edit_card(lambda card: card.update(dense=["other"])), "plain numbers"),
        (flip_a_byte, "damaged"),
        (swap_weights, "belongs to another"),
        (edit_weights(lambda arrays: arrays.update(weights=arrays["weights"][:-1])), "weights has shape"),
        (edit_weights(lambda arrays: arrays.update(calibration=np.ones((2, 2), np.float32))), "calibration has shape"),
        (edit_weights(lambda arrays: arrays.pop("bias")), "bias"),
        (edit_weights(lambda arrays: arrays.update(bias=np.full(4, np.nan, np.float32))), "finite"),
        (edit_weights(lambda arrays: arrays.update(bias=np.full(4, 3e38, np.float32))), "beyond ±1e\\+20"),
        (edit_weights(lambda arrays: arrays.update(log_tokens=np.full((2, 3), 800, np.float32))), "log_tokens"),
        (edit_weights(lambda arrays: arrays.update(idf_prompt=arrays["idf_prompt"] * 0)), "idf of a term"),
        (edit_weights(lambda arrays: arrays.update(idf_grams=-arrays["idf_grams"])), "idf of an n-gram"),
        (edit_weights(lambda arrays: arrays.update(scale=arrays["scale"] * np.float32(1e-30))), "scale"),
    ],
)
def test_a_damaged_artifact_is_refused_with_a_remedy(
    classifier: ComplexityClassifier, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    classifier.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ArtifactError, match=message) as raised:
        ComplexityClassifier.load(tmp_path)
    assert "vlroute train" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("calibration_set.right", -1), ("calibration_set.right", 1.5), ("calibration_set.coverage", 2),
        ("calibration_set.p", -1), ("calibration_set.later.answer", 7), ("calibration_set.tokens", -5),
        ("calibration_set.expected", -5), ("stage.prefill.scale", 0),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(tmp_path: Path, name: str, number: float) -> None:
    ComplexityClassifier.load(shipped("pocket/router")).save(tmp_path)
    edit_weights(lambda arrays: arrays.update({name: np.full_like(arrays[name], number)}))(tmp_path)
    with pytest.raises(ArtifactError, match=r"must be (from 0 to 1|at least 0|positive)"):
        ComplexityClassifier.load(tmp_path)


def test_links_to_files_are_followed(classifier: ComplexityClassifier, tmp_path: Path) -> None:
    classifier.save(tmp_path / "blobs")  # as in the cache of the hub
    (tmp_path / "snapshot").mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    assert ComplexityClassifier.load(tmp_path / "snapshot").fingerprint == classifier.fingerprint


def test_an_encoder_in_a_folder_is_loaded_if_the_folder_has_one(tmp_path: Path) -> None:
    name = tmp_path / "encoder"
    shutil.copytree(shipped("encoder"), name)
    router = fit_classifier(draw_records(60)[1], text=load_text_encoder(str(name)))
    router.save(tmp_path / "router")
    assert ComplexityClassifier.load(tmp_path / "router").fingerprint == router.fingerprint
    (name / "modules.json").unlink()  # as any other folder, whose files are not read
    with pytest.raises(ArtifactError, match=r"no modules\.json or config\.json"):
        ComplexityClassifier.load(tmp_path / "router")


def test_an_encoder_of_the_hub_is_loaded_only_if_it_is_trusted(
    classifier: ComplexityClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, loaded = load_text_encoder(STATIC), list[tuple[str, str | None]]()

    def load(name: str, revision: str | None = None) -> TextEncoder:
        loaded.append((name, revision))
        return text

    monkeypatch.setattr("vlroute.decision.classifier.load_text_encoder", load)
    classifier.save(tmp_path)
    wanted = {"name": "someone/encoder", "fingerprint": text.fingerprint, "revision": "abc"}
    edit_card(lambda card: card.update(text_encoder=wanted))(tmp_path)
    for other in (None, "someone/else"):
        with pytest.raises(ArtifactError, match=r"names the text encoder 'someone/encoder'.*trust_encoder="):
            ComplexityClassifier.load(tmp_path, trust_encoder=other)
    assert loaded == []
    # the heads were trained without an encoder, so that the shapes differ after it was loaded
    with pytest.raises(ArtifactError, match="do not fit"):
        ComplexityClassifier.load(tmp_path, trust_encoder="someone/encoder")
    monkeypatch.setenv("VLROUTE_TRUST_ENCODER", "someone/encoder")
    with pytest.raises(ArtifactError, match="do not fit"):
        ComplexityClassifier.load(tmp_path)
    assert loaded == [("someone/encoder", "abc")] * 2


@pytest.mark.parametrize("wanted", [5, {"name": 5, "fingerprint": ""}, {"name": "static", "fingerprint": []},
                                    {"name": "\0", "fingerprint": ""}, {"name": "static"}])  # fmt: skip
def test_a_damaged_entry_of_the_encoder(classifier: ComplexityClassifier, tmp_path: Path, wanted: Any) -> None:
    classifier.save(tmp_path)
    edit_card(lambda card: card.update(text_encoder=wanted))(tmp_path)
    with pytest.raises(ArtifactError):
        ComplexityClassifier.load(tmp_path)


OLD_NAMES = {"model": "pair", "latency": "pace", "model_selection": "candidates"}


def schema_3(classifier: ComplexityClassifier, folder: Path, *, crossed: list[str], **arrays: np.ndarray) -> None:
    """Write `classifier` as the previous version of vlroute did."""
    classifier.save(folder)
    card = json.loads((folder / CARD_FILE).read_text("utf-8"))
    weights = load_file(weights_of(folder))
    weights_of(folder).unlink()
    weights["centre"] = weights.pop("center")
    weights |= {"blend": np.zeros((2, 2), np.float32), "idf_crossed": np.ones(len(crossed), np.float32), **arrays}
    save_file(weights, folder / WEIGHTS_FILE)
    card = {OLD_NAMES.get(key, key): value for key, value in card.items()}
    card["schema"], card["vocabulary"]["crossed"] = 3, crossed
    card["weights_sha256"] = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    (folder / CARD_FILE).write_text(json.dumps(card), "utf-8")


def test_artifacts_of_the_previous_schema_are_read(classifier: ComplexityClassifier, tmp_path: Path) -> None:
    schema_3(classifier, tmp_path, crossed=[])
    loaded = ComplexityClassifier.load(tmp_path)
    assert loaded.predict("Add the numbers.", "four numbers") == classifier.predict("Add the numbers.", "four numbers")
    assert loaded.card["model_selection"] == json.loads(json.dumps(classifier.card["model_selection"]))
    loaded.save(tmp_path)
    assert json.loads((tmp_path / CARD_FILE).read_text("utf-8"))["schema"] == 5
    assert [file.name for file in tmp_path.glob("*.safetensors")] == [weights_of(tmp_path).name] != [WEIGHTS_FILE]


@pytest.mark.parametrize(
    "used",
    [
        {"crossed": ["add|three"]},
        {"crossed": [], "neighbours.keys": np.ones((2, 2), np.float32)},
        {"crossed": [], "forest.depth": np.ones(1, np.int32)},
    ],
    ids=["crosses", "neighbors", "trees"],
)
def test_artifacts_that_use_removed_learners_are_refused(
    classifier: ComplexityClassifier, tmp_path: Path, used: dict[str, Any]
) -> None:
    schema_3(classifier, tmp_path, **used)
    with pytest.raises(ArtifactError, match="vlroute train"):
        ComplexityClassifier.load(tmp_path)


@pytest.mark.parametrize("name", ["pocket", "qwen3-vl-2b"])
def test_the_shipped_routers_can_be_read(name: str) -> None:
    classifier = ComplexityClassifier.load(shipped(name) / "router")
    assert classifier.model is not None
    assert classifier.calibration is not None
    assert 0 < classifier.predict("Start at T and follow 4 arrows.").p_thinking < 1


def test_another_text_encoder_of_the_same_name_is_refused(tmp_path: Path) -> None:
    _, records = draw_records(60)
    fit_classifier(records, text=load_text_encoder(STATIC)).save(tmp_path)
    edit_card(lambda card: card["text_encoder"].update(fingerprint="0" * 64))(tmp_path)
    with pytest.raises(ArtifactError, match="another text encoder"):
        ComplexityClassifier.load(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot read"):
        ComplexityClassifier.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "wrong",
    [{"p_instruct": float("nan")}, {"p_thinking": 1.01}, {"coverage": -0.1}, {"tokens_thinking": float("inf")}],
)
def test_impossible_predictions_cannot_be_made(wrong: dict[str, float]) -> None:
    right = {"p_instruct": 0.4, "p_thinking": 0.6, "tokens_instruct": 5.0, "tokens_thinking": 50.0, "coverage": 1.0}
    assert Prediction(**right).gain == pytest.approx(0.2)
    with pytest.raises(ValueError, match="must be"):
        Prediction(**{**right, **wrong})
    with pytest.raises(dataclasses.FrozenInstanceError):
        Prediction(**right).coverage = 0.5  # type: ignore[misc]
