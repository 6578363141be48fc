"""Names, folders and files of a pair: each is used, or refused with a CheckpointError."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from vlroute import Router
from vlroute.errors import ArtifactError, CheckpointError
from vlroute.files import shipped
from vlroute.hub import EMBEDDED, resolve_pair
from vlroute.learning.collect import collect_records
from vlroute.learning.train import train_router
from vlroute.records import Outcome, Record, write_records
from vlroute.types import MODES

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "processor_config.json",
    "generation_config.json", "model.safetensors",
)  # fmt: skip
INDEX = "model.safetensors.index.json"


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def to_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def dangling(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.with_name("nowhere"))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "half": half,
    "a pointer": lambda file: file.write_text(POINTER),
    "a list": lambda file: file.write_text("[]"),
    "binary": lambda file: file.write_bytes(b"\xff\x00\x9c" * 30),
    "a folder": to_folder,
    "a dangling link": dangling,
}
FINE = {("generation_config.json", "missing")}  # then Qwen's recommended settings hold


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Path]:
    """A copy of the pocket pair, without its router."""
    for mode in MODES:
        shutil.copytree(shipped(f"pocket/{mode}"), tmp_path / "pair" / mode)
    yield tmp_path / "pair"
    shutil.rmtree(tmp_path)


def refusal(*names: Any, **named: Any) -> str:
    """The message of the CheckpointError of `load`; the test fails if there is none."""
    with pytest.raises(CheckpointError) as refused:
        Router.from_pretrained(*names, **named).load()
    assert type(refused.value) is CheckpointError
    assert "\n" not in str(refused.value)
    return str(refused.value)


def change(file: Path, **values: Any) -> None:
    whole = json.loads(file.read_text("utf-8"))
    for path, value in values.items():
        *outer, last = path.split("__")
        part = whole
        for key in outer:
            part = part[key]
        part[last] = value
    file.write_text(json.dumps(whole), "utf-8")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_named(pair: Path, file: str, damage: str) -> None:
    mode = MODES[(FILES.index(file) + len(damage)) % 2]
    DAMAGES[damage](pair / mode / file)
    if (file, damage) in FINE:
        Router.from_pretrained(pair).load()
        return
    said = refusal(pair)
    assert mode in said
    assert file in said or "template" in said
    assert "again" in said or "git lfs" in said


@pytest.mark.parametrize("file", [file for file in FILES if file != "chat_template.jinja"])
@pytest.mark.parametrize("damage", ["half", "a pointer"])
def test_damaged_files_are_found_before_anything_is_loaded(pair: Path, file: str, damage: str) -> None:
    DAMAGES[damage](pair / "thinking" / file)
    with pytest.raises(CheckpointError, match=file):
        Router.from_pretrained(pair)


JSON_VALUES = st.sampled_from([None, [], {}, "x", -1, 0, 1.5, True, ["x"]])


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_other_error_leaves_load(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("pair")
    for mode in MODES:
        shutil.copytree(shipped(f"pocket/{mode}"), folder / mode)
    file = folder / data.draw(st.sampled_from(MODES)) / data.draw(st.sampled_from(FILES))
    try:
        if file.suffix == ".json" and data.draw(st.booleans()):
            whole = part = json.loads(file.read_text("utf-8"))
            while isinstance(part, dict) and part:
                inner, key = part, data.draw(st.sampled_from(sorted(part)))
                part = inner[key]
                if data.draw(st.booleans()):
                    break
            inner[key] = data.draw(JSON_VALUES)
            file.write_text(json.dumps(whole), "utf-8")
        else:
            content = file.read_bytes()
            at = data.draw(st.integers(0, min(len(content), 20_000)))
            drop = data.draw(st.integers(0, 40))
            file.write_bytes(content[:at] + data.draw(st.binary(max_size=20)) + content[at + drop :])
        with contextlib.suppress(CheckpointError):
            Router.from_pretrained(folder).load()
    finally:
        shutil.rmtree(folder)


def test_weights_in_several_files(pair: Path) -> None:
    folder = pair / "thinking"
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {"model-1.safetensors": sorted(tensors)[::2], "model-2.safetensors": sorted(tensors)[1::2]}
    for shard, names in shards.items():
        save_file({name: tensors[name] for name in names}, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, names in shards.items() for name in names}}
    (folder / INDEX).write_text(json.dumps(index))
    Router.from_pretrained(pair).load()
    kept = (folder / "model-2.safetensors").read_bytes()
    (folder / "model-2.safetensors").unlink()
    assert "model-2.safetensors" in refusal(pair)
    (folder / "model-2.safetensors").write_text(POINTER)
    assert "git lfs" in refusal(pair)
    (folder / "model-2.safetensors").write_bytes(kept)
    for wrong in ("{}", '{"weight_map": 3}', "[]", '{"weight_map": {"x": "../model-1.safetensors"}}', "{"):
        (folder / INDEX).write_text(wrong)
        assert INDEX in refusal(pair)
    index["weight_map"]["model.strange"] = "model-1.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    assert "model.strange" in refusal(pair)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    Router.from_pretrained(pair).load()  # one whole file is read before an index, as by transformers


def test_weights_that_lack_a_tensor(pair: Path) -> None:
    file = pair / "instruct" / "model.safetensors"
    tensors = load_file(file)
    lost = sorted(name for name in tensors if "visual" not in name)[3]
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, file, metadata={"format": "pt"})
    assert lost in refusal(pair)


def test_a_file_that_may_not_be_read(pair: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (pair / "thinking" / "tokenizer.json").chmod(0)
    assert "tokenizer.json" in refusal(pair)


def test_a_swapped_pair(pair: Path) -> None:
    assert "wap the two" in refusal(instruct=pair / "thinking", thinking=pair / "instruct")
    (pair / "instruct").rename(pair / "third")
    (pair / "thinking").rename(pair / "instruct")
    (pair / "third").rename(pair / "thinking")
    said = refusal(pair)
    assert "wap the two" in said
    assert "<think>" in said


def test_one_checkpoint_for_both_modes(pair: Path) -> None:
    link = pair / "link"
    link.symlink_to(pair / "instruct")
    for twin in (pair / "instruct", f"{pair}/instruct/", pair / "thinking" / ".." / "instruct", link):
        assert "same checkpoint" in refusal(instruct=pair / "instruct", thinking=twin)
    assert "same checkpoint" in refusal(instruct="me/some", thinking="Me/Some/")
    shutil.copytree(pair / "thinking", pair / "copy")
    assert "same" in refusal(instruct=pair / "copy", thinking=pair / "thinking")
    # with the other edition's template the copy is still the same weights
    shutil.copy(pair / "instruct" / "chat_template.jinja", pair / "copy")
    assert "same checkpoint" in refusal(instruct=pair / "copy", thinking=pair / "thinking")


@pytest.mark.parametrize("kind", MODES)
def test_two_checkpoints_of_one_kind(pair: Path, kind: str) -> None:
    """Different weights, equal templates: only the rendered template tells."""
    other = MODES[1 - MODES.index(kind)]
    shutil.copy(pair / kind / "chat_template.jinja", pair / other)
    said = refusal(pair)
    assert f"{kind.capitalize()} checkpoints" in said
    assert f"as {other}" in said


def test_the_template_is_rendered_not_searched(pair: Path) -> None:
    """Templates name <think> without opening it: in a comment, for past turns, or as a closed empty thought."""
    file = pair / "instruct" / "chat_template.jinja"
    plain = file.read_text("utf-8")
    closed = plain.replace("assistant\\n'", "assistant\\n<think>\\n\\n</think>\\n\\n'")
    assert closed != plain
    for template in ("{# never <think> here #}" + plain, closed):
        file.write_text(template, "utf-8")
        Router.from_pretrained(pair).load()


def test_a_template_elsewhere(pair: Path) -> None:
    """Older checkpoints keep it in chat_template.json or tokenizer_config.json."""
    folder = pair / "thinking"
    template = (folder / "chat_template.jinja").read_text("utf-8")
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}), "utf-8")
    Router.from_pretrained(pair).load()
    (folder / "chat_template.json").write_text("{", "utf-8")
    assert "chat_template.json" in refusal(pair)


def test_checkpoints_of_two_sizes(pair: Path) -> None:
    change(pair / "thinking" / "config.json", text_config__num_attention_heads=7)
    said = refusal(pair)
    assert "num_attention_heads 4" in said
    assert "num_attention_heads 7" in said


@pytest.mark.parametrize("key", ["text_config__num_hidden_layers", "vision_config__depth"])
@pytest.mark.parametrize("count", [10**7, 2**63, 2, "5", None])
def test_another_number_of_layers(pair: Path, key: str, count: Any) -> None:
    """Transformers would create all of them, until memory runs out."""
    change(pair / "thinking" / "config.json", **{key: count})
    assert f"{key.replace('__', '.')} in config.json is {count!r}, but the weights have" in refusal(pair)


@pytest.mark.parametrize("kind", ["qwen3_vl_moe", "qwen2_5_vl", "llama", "", None])
def test_another_kind_of_model(pair: Path, kind: str | None) -> None:
    change(pair / "instruct" / "config.json", model_type=kind)
    assert "qwen3_vl" in refusal(pair)


def test_control_tokens_at_other_ids(pair: Path) -> None:
    file = pair / "thinking" / "tokenizer.json"
    whole = file.read_text("utf-8")
    file.write_text(whole.replace("<|image_pad|>", "<|picture|>"), "utf-8")
    assert "image_pad" in refusal(pair)
    file.write_text(whole.replace("</think>", "<end>"), "utf-8")
    assert "</think>" in refusal(pair)
    file.write_text(whole, "utf-8")
    change(pair / "thinking" / "config.json", image_token_id=7)
    assert "image_token_id" in refusal(pair)


@pytest.mark.parametrize("longest", ["512", [512], {}])
def test_a_longest_prompt_that_is_no_number(pair: Path, longest: Any) -> None:
    change(pair / "instruct" / "tokenizer_config.json", model_max_length=longest)
    assert "model_max_length" in refusal(pair)


def test_a_processor_of_another_model(pair: Path) -> None:
    change(pair / "instruct" / "processor_config.json", image_processor__patch_size=14)
    assert "patch_size" in refusal(pair)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["Qwen/Qwen3-VL-2B-{}", "qwen/qwen3-vl-2b-{}/", "Qwen/Qwen3-VL-2B_{}"])
def test_one_of_the_two_is_no_pair(mode: str, name: str) -> None:
    for spelled in (name.format(mode), name.format(mode.capitalize())):
        said = refusal(spelled)
        assert "Qwen3-VL-2B'" in said or "qwen3-vl-2b'" in said
        assert "instruct=" in said
        assert "thinking=" in said


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("Qwen/Qwen3-VL-8B-Instruct-FP8", "FP8"), ("Qwen/Qwen3-VL-8B-FP8", "FP8"),
     ("some/Qwen3-VL-8B-Thinking-AWQ-4bit", "AWQ-4bit"), ("some/Qwen3-VL-4B-GPTQ-Int4", "GPTQ-Int4")],
)  # fmt: skip
def test_quantized_checkpoints_are_named_one_by_one(name: str, suffix: str) -> None:
    said = refusal(name)
    assert f"Instruct-{suffix}'" in said
    assert f"Thinking-{suffix}'" in said


@pytest.mark.parametrize("name", ["Qwen/Qwen3-VL-4B", "Qwen/Qwen3-VL-4B/", "qwen/qwen3-vl-4b", "QWEN/QWEN3-VL-4B"])
def test_spellings_of_one_pair(name: str) -> None:
    router = Router.from_pretrained(name)
    assert (router.instruct, router.thinking) == ("Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-4B-Thinking")


@pytest.mark.parametrize(
    "name", ["", "/nope", "./nope", "../nope/", "~/nope-nope", "~nobody-here/x", "a/b/c", "a b", "x\0y",
             "https://huggingface.co/Qwen/Qwen3-VL-2B", "-"],
)  # fmt: skip
def test_what_is_neither_folder_nor_name(name: str) -> None:
    assert "pass" in refusal(name)
    assert "instruct" in refusal(instruct=name, thinking="a/b")


def test_a_name_that_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "nobody/nothing-Instruct" in refusal("nobody/nothing")


def test_folders_that_hold_no_pair(pair: Path) -> None:
    assert "instruct=" in refusal(pair / "instruct")
    assert "file" in refusal(pair / "instruct" / "model.safetensors")
    shutil.rmtree(pair / "thinking")
    assert "no folder thinking" in refusal(pair)
    (pair / "thinking").write_text("")
    assert "no folder thinking" in refusal(pair)
    (pair / "instruct").rename(pair / "elsewhere")
    said = refusal(pair)
    assert "no folder instruct" in said
    assert "no folder thinking" in said


def test_names_of_the_embedded_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {name: resolve_pair(name, None, None, None) for name in (None, "pocket", "pocket-hybrid")}
    assert sources[None] == sources["pocket"] == tuple(shipped(f"pocket/{name}") for name in (*MODES, "router"))
    hybrid = shipped("pocket-hybrid")
    assert sources["pocket-hybrid"] == (hybrid, hybrid, hybrid / "router")
    assert resolve_pair("pocket-hybrid/", None, None, None) == sources["pocket-hybrid"]
    for one in ("pocket-hybrid", str(hybrid)):
        assert resolve_pair(None, one, one, None)[2] == hybrid / "router"
    with pytest.raises(CheckpointError, match="'pocket' is a pair; pass only its name"):
        resolve_pair(None, "pocket", "pocket-hybrid", None)
    for near in ("Pocket-Hybrid", "pocket_hybrid"):
        with pytest.raises(CheckpointError, match="pass 'pocket-hybrid'"):
            resolve_pair(near, None, None, None)
    (tmp_path / "pocket").mkdir()
    monkeypatch.chdir(tmp_path)  # a folder of this name is meant
    with pytest.raises(CheckpointError, match=r"no folder instruct.*hides the embedded model 'pocket'"):
        resolve_pair("pocket", None, None, None)


def test_downloads_that_lie_side_by_side(pair: Path) -> None:
    for mode in MODES:
        (pair / mode).rename(pair / f"Some-2B-{mode.capitalize()}")
    Router.from_pretrained(pair / "Some-2B").load()


# router artifacts


def another(router: Path, to: Path, **card: Any) -> Path:
    shutil.copytree(router, to)
    change(to / "router.json", **card)
    return to


def test_a_pair_folder_with_its_router(pair: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = {"prompt": "What is the sum of the numbers?", "caption": "five numbers"}
    bare = Router.from_pretrained(pair)
    assert bare.selector.classifier is None
    shutil.copytree(shipped("pocket/router"), pair / "router")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        router = Router.from_pretrained(pair)
        assert router.decide(**asked) == Router.from_pretrained().decide(**asked)
        assert router.selector.probe is not None
    assert "another pair" not in caplog.text
    assert "trained for" not in caplog.text
    (pair / "router" / "router.json").write_text("{")
    with pytest.raises(ArtifactError):
        Router.from_pretrained(pair)
    mine = another(shipped("pocket/router"), tmp_path / "mine")
    assert Router.from_pretrained(pair, router=mine).selector.classifier is not None


def test_a_router_of_another_pair_is_noticed(pair: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def warned(act: Callable[[], Any]) -> bool:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "vlroute"):
            act()
        return "was trained for" in caplog.text

    pocket, prior = shipped("pocket/router"), shipped("qwen3-vl-2b/router")
    silent = another(pocket, tmp_path / "silent", model=None)
    assert not warned(lambda: Router.from_pretrained(pair, router=pocket).load())
    assert not warned(lambda: Router.from_pretrained("Qwen/Qwen3-VL-2B"))
    assert not warned(lambda: Router.from_pretrained("Qwen/Qwen3-VL-8B", router=silent))
    assert warned(lambda: Router.from_pretrained("Qwen/Qwen3-VL-8B", router=prior))
    for name in EMBEDDED:
        assert warned(lambda name=name: Router.from_pretrained(name, router=prior))
    assert warned(lambda: Router.from_pretrained("Qwen/Qwen3-VL-2B", router=pocket))
    tuned = load_file(pair / "thinking" / "model.safetensors")
    name = next(name for name in sorted(tuned) if "mlp" in name and "visual" not in name)
    tuned[name] = tuned[name] + 1
    save_file(tuned, pair / "thinking" / "model.safetensors", metadata={"format": "pt"})
    assert warned(lambda: Router.from_pretrained(pair, router=pocket))
    router = Router.from_pretrained(pair, router=silent)
    assert warned(lambda: router.use(pocket))
    assert not warned(lambda: router.use(silent))


@pytest.mark.parametrize("record", [3, "pocket", {}, {"name": 1}, {"name": "x", "fingerprint": 5}])
def test_a_record_of_a_pair_that_makes_no_sense(tmp_path: Path, record: Any) -> None:
    with pytest.raises(ArtifactError, match="pair"):
        Router.from_pretrained(router=another(shipped("pocket/router"), tmp_path / "router", model=record))


def test_training_records_the_pair_that_answered(
    router: Router, pair: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"id": str(i), "prompt": f"Add {i} and 3.", "answer": str(i + 3)} for i in range(50)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    collect_records(router, tmp_path / "rows.jsonl", tmp_path / "records.jsonl", generation={"max_new_tokens": 2})
    quick: dict[str, Any] = {"encoder": None, "folds": 2, "seeds": 1, "learner": "words", "jobs": 1}
    train_router([tmp_path / "records.jsonl"], tmp_path / "router", **quick)
    with caplog.at_level(logging.WARNING):
        Router.from_pretrained(pair, router=tmp_path / "router").load()
    assert "was trained for" not in caplog.text
    change(tmp_path / "router" / "router.json", model__fingerprint="0" * 64)
    with caplog.at_level(logging.WARNING):
        Router.from_pretrained(pair, router=tmp_path / "router")
    assert "was trained for" in caplog.text


def test_records_that_name_no_pair_or_several(tmp_path: Path) -> None:
    quick: dict[str, Any] = {"encoder": None, "folds": 2, "seeds": 1, "learner": "words", "jobs": 1}

    def learn(name: str, pairs: list[str], pair: str | None = None) -> Any:
        right = Outcome(True, 3, 0.5)
        records = [Record(str(i), f"Add {i}.", None, right, right, model=pairs[i % len(pairs)]) for i in range(50)]
        write_records(tmp_path / f"{name}.jsonl", records)
        train_router([tmp_path / f"{name}.jsonl"], tmp_path / name, model=pair, **quick)
        return json.loads((tmp_path / name / "router.json").read_text("utf-8")).get("model")

    assert learn("silent", [""]) is None
    assert learn("several", ["a/one", "a/two"]) is None
    assert learn("one", ["a/one"])["name"] == "a/one"
    assert learn("told", [""], "Qwen/Qwen3-VL-2B")["name"] == "Qwen/Qwen3-VL-2B"
    assert len(learn("folder", [""], str(shipped("pocket")))["fingerprint"]) == 64
