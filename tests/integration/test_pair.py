"""Two checkpoints in one process: what is equal is kept once, what differs is told apart."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.conftest import DTYPE, media, task
from vlroute import Router
from vlroute.engine.local.checkpoint import checkpoint_folder, load_models, tower_fingerprint
from vlroute.engine.local.loading import quantization_config
from vlroute.errors import CheckpointError
from vlroute.types import MODES


def test_towers_are_one_byte_for_byte(router: Router, folders: dict[str, Path]) -> None:
    files = [load_file(folders[mode] / "model.safetensors") for mode in MODES]
    towers = [{name: t for name, t in file.items() if ".visual." in name} for file in files]
    assert towers[0].keys() == towers[1].keys()
    assert all(torch.equal(towers[0][name], towers[1][name]) for name in towers[0])
    assert router.pair.shared_tower
    both = sum(t.numel() * DTYPE.itemsize for file in files for t in file.values())
    one = sum(t.numel() * DTYPE.itemsize for t in towers[0].values())
    assert router.pair.parameter_bytes() == both - one


def test_a_single_bit_makes_two_towers(
    folders: dict[str, Path], other_tower: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert tower_fingerprint(folders["thinking"]) != tower_fingerprint(other_tower)
    pair = load_models(folders["instruct"], other_tower)
    assert not pair.shared_tower
    assert pair.instruct.vision_key != pair.thinking.vision_key
    assert "towers differ" in caplog.text
    assert "two different towers" in str(pair)


def test_different_towers_still_answer(folders: dict[str, Path], other_tower: Path) -> None:
    router = Router.from_pretrained(instruct=folders["instruct"], thinking=other_tower)
    some = task("ocr", "easy")
    for mode in MODES:
        assert router.ask(some.prompt, **media(some), mode=mode).finish_reason == "stop"


def test_models_that_are_loaded_at_the_same_time_are_complete(folders: dict[str, Path]) -> None:
    tie_weights = transformers.PreTrainedModel.tie_weights
    together = threading.Barrier(4)

    def load(_: int) -> torch.Tensor:
        together.wait()
        model = load_models(folders["instruct"], folders["thinking"]).instruct.model
        assert isinstance(model, transformers.Qwen3VLForConditionalGeneration)
        return model.lm_head.weight

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(load, range(4))
    assert transformers.PreTrainedModel.tie_weights is tie_weights
    assert all(torch.equal(first, other) for other in others)


def test_equal_towers_with_other_processor_settings_share_no_features(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "thinking"
    shutil.copytree(folders["thinking"], folder)
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["image_processor"]["image_mean"] = [0.4, 0.5, 0.5]
    (folder / "processor_config.json").write_text(json.dumps(settings))
    pair = load_models(folders["instruct"], folder)
    assert pair.shared_tower
    assert pair.instruct.vision_key != pair.thinking.vision_key


def test_sharded_weights_have_the_same_fingerprint(folders: dict[str, Path], tmp_path: Path) -> None:
    pair = load_models(**folders, dtype="auto")
    pair.instruct.model.save_pretrained(tmp_path, max_shard_size="1MB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert tower_fingerprint(tmp_path) == tower_fingerprint(folders["instruct"])


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_dtype_and_attention_can_be_set(folders: dict[str, Path], dtype: str | torch.dtype) -> None:
    router = Router.from_pretrained(
        instruct=folders["instruct"],
        thinking=folders["thinking"],
        dtype=dtype,
        attn_implementation="eager",
    )
    some = task("ocr", "easy")
    assert router.ask(some.prompt, **media(some), mode="thinking").text
    model = router.pair.thinking.model
    assert str(model.dtype).removeprefix("torch.") == str(dtype).removeprefix("torch.")
    assert model.model.visual.dtype == model.dtype
    assert model.config.text_config._attn_implementation == "eager"  # noqa: SLF001 (no public attribute)


def test_folders_that_are_no_checkpoint(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"without config\.json"):
        checkpoint_folder(tmp_path)
    shutil.copy(folders["instruct"] / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match="safetensors weights"):
        tower_fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not a header...")
    with pytest.raises(CheckpointError, match="cannot read the vision tower"):
        tower_fingerprint(tmp_path)


def test_a_checkpoint_that_cannot_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="Pass a folder or a hub id"):
        checkpoint_folder("no/such model name")


def test_quantization_names() -> None:
    config = quantization_config("4bit")
    assert config.load_in_4bit
    assert "model.visual" in config.llm_int8_skip_modules
    given = object()
    assert quantization_config(given) is given
    with pytest.raises(ValueError, match="expected one of 4bit, 8bit, int8 or"):
        quantization_config("3bit")


@pytest.mark.parametrize("name", ["int8", "8bit", "4bit"])
def test_quantised_pairs_answer_on_the_cpu(folders: dict[str, Path], name: str) -> None:
    router = Router.from_pretrained(**folders, quantization=name, device="cpu", dtype="float32")
    some = task("ocr", "easy")
    assert router.ask(some.prompt, **media(some), mode="instruct").text == some.answer
    model = router.pair.instruct.model.model
    assert model.device == torch.device("cpu")
    weight = model.language_model.layers[0].mlp.up_proj.weight
    assert type(weight.data) is not torch.Tensor or weight.element_size() == 1  # torchao has tensor classes of its own
    plain = model.visual.blocks[0].mlp.linear_fc1
    assert type(plain) is torch.nn.Linear
    assert plain.weight.dtype == torch.float32
    assert router.pair.shared_tower


def test_the_shipped_pair_shares_its_features(router: Router) -> None:
    assert router.pair.shared_tower
    assert router.pair.instruct.vision_key == router.pair.thinking.vision_key
