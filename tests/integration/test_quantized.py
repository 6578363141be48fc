"""Quantized checkpoints give what plain transformers gives with them, or an error says what is missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from tests.conftest import forget, pixel_path, reply, task
from tests.quantized import CONFIGS, set_quantization, write_fp8, write_quantized
from tests.recording import recorded
from tests.tiny import HYBRIDS, SHAPES, write_tiny
from vlroute import CheckpointError, Router, SettingsError
from vlroute.cli.doctor import examine
from vlroute.engine.local import checkpoint as loading
from vlroute.engine.local.checkpoint_files import CheckpointFiles
from vlroute.engine.local.language import is_plain
from vlroute.engine.local.loading import KEEP, QUANTIZATIONS, quantization_config
from vlroute.engine.local.quantized import PACKAGES, is_dequantized
from vlroute.inputs.messages import Conversation, parse
from vlroute.types import MODES, Mode, other

pytestmark = pytest.mark.float32
HOP = task("hop")
#: No token ends the answer, so that every answer has this many.
FIVE = {"do_sample": False, "answer_reserve": 0, "max_new_tokens": 5, "eos_token_id": -1}


@pytest.fixture(scope="module", autouse=True)
def usual_kernel() -> Iterator[None]:
    """bitsandbytes computes in bfloat16 on processors that can, for rows of a multiple of 64; tiny models have 48."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False, raising=False)
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda family: write_tiny(family, tmp_path_factory.mktemp(family)))


def parts(folder: Path) -> list[Path]:
    """The checkpoints in a folder that `write_tiny` wrote."""
    return [folder] if (folder / "config.json").exists() else [folder / mode for mode in MODES]


def refusal(*args: Any, error: type[Exception] = CheckpointError, **options: Any) -> str:
    """The message with which a model is refused, without or with loading."""
    with pytest.raises(error) as refused, Router.from_pretrained(*args, **options) as router:
        router.load()
    return str(refused.value)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Hides installed packages."""
    version, hidden = metadata.version, set[str]()

    def found(name: str) -> str:
        if name in hidden:
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", found)
    return hidden.add


@pytest.mark.parametrize("kind", PACKAGES)
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"])
def test_the_missing_packages_are_named_before_loading(
    family: str, kind: str, tiny: Callable[[str], Path], tmp_path: Path, without: Callable[[str], None]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny(family), folder)
    quantized = parts(folder)[-1]  # of a pair, only one
    set_quantization(quantized, CONFIGS[kind])
    for package in PACKAGES[kind]:
        without(Requirement(package).name)
    with pytest.raises(CheckpointError) as refused:
        Router.from_pretrained(folder)
    said = str(refused.value)
    assert all(package in said for package in PACKAGES[kind])
    assert str(quantized) in said
    assert "pip install" in said
    problems = [one.found for one in examine(str(folder)) if one.state == "problem"]
    assert said in problems


@pytest.mark.parametrize("kind", ["bitsandbytes", "torchao"])
def test_packages_of_an_extra_are_installed_by_it(
    kind: str, tiny: Callable[[str], Path], tmp_path: Path, without: Callable[[str], None]
) -> None:
    shutil.copytree(tiny("qwen3_5"), tmp_path / "model")
    set_quantization(tmp_path / "model", CONFIGS[kind], "text_config")
    without(kind)
    assert "pip install 'vlroute[quantize]'" in refusal(tmp_path / "model")


def test_an_old_package_is_a_missing_one(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny("qwen3_5"), tmp_path / "model")
    set_quantization(tmp_path / "model", CONFIGS["torchao"])
    monkeypatch.setattr(metadata, "version", lambda name: "0.9.0")
    assert "torchao>=0.15" in refusal(tmp_path / "model")


@pytest.mark.parametrize(
    ("quantization", "said"),
    [
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "ModelOpt"),  # transformers only warns, and loads it
        ({"quant_method": "nvfp4"}, "not supported yet"),
        ({"quant_method": "made_up"}, "made_up"),
        ({"bits": 4}, "a method that its config.json does not name"),
    ],
)
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"])
def test_kinds_that_transformers_does_not_load(
    family: str, quantization: dict[str, Any], said: str, tiny: Callable[[str], Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """They are refused before weights are downloaded."""
    folder = tmp_path / "model"
    shutil.copytree(tiny(family), folder)
    set_quantization(parts(folder)[0], quantization)
    asked, checkpoint_folder = list[Any](), loading.checkpoint_folder

    def asking(source: Any, *patterns: Any) -> Path:
        asked.append(patterns)
        return checkpoint_folder(source, *patterns)

    monkeypatch.setattr(loading, "checkpoint_folder", asking)
    assert said in refusal(folder)
    assert all(asked)
    assert asked


@pytest.mark.parametrize("kind", ["fp8", "bitsandbytes", "torchao"])
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"])
@pytest.mark.parametrize("quantization", ["int8", "4bit"])
def test_what_is_quantized_is_not_quantized_again(
    family: str, kind: str, quantization: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny(family), folder)
    set_quantization(parts(folder)[-1], CONFIGS[kind])
    with pytest.raises(SettingsError, match=f"quantization='{quantization}' cannot be used.*already is quantized"):
        Router.from_pretrained(folder, quantization=quantization)


@pytest.mark.parametrize(
    "name",
    ["Qwen/Qwen3-VL-2B-Instruct-GGUF", "some/Qwen3.5-2B-gguf", "some/Qwen3.5-2B-GGUF:Q4_K_M", "qwen3-vl-2b-q4_k_m.gguf",
     "some/folder/model.GGUF"],
)  # fmt: skip
def test_gguf_names_are_refused(name: str, tiny: Callable[[str], Path]) -> None:
    for arguments in ({"name": name}, {"instruct": name, "thinking": tiny("qwen3_vl") / "thinking"}):
        with pytest.raises(CheckpointError, match=r"GGUF of llama\.cpp.*docs/how-to/endpoints\.md.*safetensors"):
            Router.from_pretrained(**arguments)


def test_gguf_folders_are_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for arguments in (
        {"name": tmp_path}, {"name": tmp_path / "model.gguf"}, {"instruct": tmp_path, "thinking": tmp_path},
        {"instruct": tiny("qwen3_vl") / "instruct", "thinking": tmp_path},
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=r"format GGUF of llama\.cpp"):
            Router.from_pretrained(**arguments)
    # some repositories add the other files of the checkpoint
    for file in (tiny("qwen3_5")).iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    with pytest.raises(CheckpointError, match=r"format GGUF of llama\.cpp"):
        Router.from_pretrained(tmp_path)


def test_a_hub_repository_with_gguf_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name does not tell, and the files themselves are not downloaded."""
    monkeypatch.setattr(loading, "snapshot_download", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr(loading, "list_repo_files", lambda *_: ["README.md", "model-Q4_K_M.gguf"])
    assert "format GGUF" in refusal(instruct="me/some-Instruct", thinking="me/some-Thinking")
    monkeypatch.setattr(loading, "list_repo_files", lambda *_: ["README.md"])
    assert "no config.json" in refusal(instruct="me/some-Instruct", thinking="me/some-Thinking")


def test_a_folder_called_gguf_may_contain_a_pair(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "not-gguf"
    shutil.copytree(tiny("qwen3_vl"), folder)
    Router.from_pretrained(folder).close()


# What is quantized, and what the answers are


def exact(name: str) -> Any:
    """The quantization of a name, for "8bit" without outliers, which depend on the other tokens of a call.

    Bitsandbytes computes a column in float16 where any token of the call exceeds a threshold. With the default
    threshold, the scores of plain transformers differ as well between one pass and a generation token by token.
    """
    config = quantization_config(name)
    if name == "8bit":
        config.llm_int8_threshold = 0.0
    return config


@pytest.fixture(scope="module")
def models(
    tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str, str, bool], tuple[Router, Callable[[Mode], Any]]]]:
    """By family, name and whether the checkpoint is stored quantized: a router, and the model of plain transformers."""
    routers: list[Router] = []

    @cache
    def opened(family: str, name: str, stored: bool) -> tuple[Router, Callable[[Mode], Any]]:
        folder = tiny(family)
        if stored:
            target = tmp_path_factory.mktemp("quantized") / family
            write = write_fp8 if name == "fp8" else lambda *to: write_quantized(*to, exact(name))
            for part in parts(folder):
                write(part, target / part.relative_to(folder))
            folder = target
        own = {} if stored else {"quantization": exact(name)}
        plain = {} if stored else {"quantization_config": exact(name)}
        routers.append(Router.from_pretrained(folder, device="cpu", dtype="float32", **own, **FIVE).load())

        @cache
        def model(where: Path) -> Any:
            found = AutoModelForImageTextToText.from_pretrained(where, dtype=torch.float32, device_map="cpu", **plain)
            return found.eval(), AutoProcessor.from_pretrained(where)

        return routers[-1], lambda mode: model(folder if family in HYBRIDS else folder / mode)

    yield opened
    for router in routers:
        router.close()


#: The kinds, and which mode's scores are compared: checkpoints of both modes are quantized in the same way.
KINDS: list[tuple[str, bool, Mode]] = [
    ("4bit", False, "instruct"), ("4bit", True, "thinking"), ("8bit", False, "thinking"), ("8bit", True, "instruct"),
    ("int8", False, "instruct"), ("int8", True, "thinking"), ("fp8", True, "instruct"), ("fp8", True, "thinking"),
]  # fmt: skip


#: A pair and a hybrid with every kind. Experts are not quantized: of the others, half of the kinds are enough.
SCORED = [
    (family, *kind) for family in SHAPES for kind in (KINDS if family in ("qwen3_vl", "qwen3_5_moe") else KINDS[1::2])
]


@pytest.mark.parametrize(("family", "name", "stored", "mode"), SCORED)
def test_scores_are_those_of_transformers(
    family: str, name: str, stored: bool, mode: Mode, models: Callable[..., Any]
) -> None:
    """Fresh; again, behind the prefix of the first time; and behind that of the other mode."""
    router, plain = models(family, name, stored)
    conversation = parse(HOP.prompt, images=[HOP.frames[0]])
    forget(router)
    fresh = scores_of(router, conversation, mode)
    expected = expected_scores(*plain(mode), router, conversation, mode, fresh.argmax(1))
    assert_equal(name, fresh, expected)
    assert_equal(name, scores_of(router, conversation, mode), expected)
    forget(router)
    reply(router, conversation, other(mode), FIVE)
    assert_equal(name, scores_of(router, conversation, mode), expected)


def assert_equal(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Of "8bit", only nearly: rounding the inputs of layers to 8 bits amplifies differences in their last bits."""
    if name == "8bit":
        assert float((found - expected).abs().mean()) < 0.03 * float(expected.std())
    else:
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def scores_of(router: Router, conversation: Conversation, mode: Mode) -> torch.Tensor:
    with recorded() as recorder:
        reply(router, conversation, mode, FIVE)
        return torch.stack(recorder.scores())


def expected_scores(
    model: Any, processor: Any, router: Router, conversation: Conversation, mode: Mode, ids: torch.Tensor
) -> torch.Tensor:
    """Scores of plain transformers for each of the tokens `ids` of an answer, on the pixel path."""
    inputs = pixel_path(processor, conversation, **router.pair[mode].template_options)
    prompt = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids[None]], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["mm_token_type_ids"] = nn.functional.pad(inputs["mm_token_type_ids"], (0, len(ids)))
    with torch.inference_mode():
        scores: torch.Tensor = model(**inputs).logits[0, prompt - 1 : -1]
    return scores


@pytest.mark.parametrize("name", QUANTIZATIONS)
@pytest.mark.parametrize("family", SHAPES)
def test_only_linear_layers_of_the_language_model_are_quantized(
    family: str, name: str, models: Callable[..., Any]
) -> None:
    """All of them except experts, which transformers keeps in joint tensors, and their router."""
    model = models(family, name, False)[0].pair.thinking.model
    quantized = {path for path, one in model.named_modules() if hasattr(one, "in_features") and not is_plain(one)}
    linear = {path for path, one in model.named_modules() if hasattr(one, "in_features")}
    assert quantized == {path for path in linear if not path.startswith(tuple(KEEP))}
    assert any(path.startswith("model.visual") for path in linear)
    assert "lm_head" in linear


@pytest.mark.parametrize(("name", "both"), [*((name, True) for name in (*QUANTIZATIONS, "fp8")), ("4bit", False)])
def test_a_quantized_pocket_pair(name: str, both: bool, folders: dict[str, Path], tmp_path: Path) -> None:
    """It shares the tower, which is not quantized, and answers as plain transformers does; also with one quantized."""
    write = partial(write_fp8, block=32) if name == "fp8" else lambda *to: write_quantized(*to, exact(name))
    stored = {mode: write(folder, tmp_path / mode) for mode, folder in folders.items() if both or mode == "instruct"}
    conversation = parse(HOP.prompt, images=[HOP.frames[0]])
    with Router.from_pretrained(**{**folders, **stored}, device="cpu", dtype="float32") as router:
        assert router.load().pair.shared_tower
        for mode in MODES:
            found = reply(router, conversation, mode, {"do_sample": False, "answer_reserve": 0, "max_new_tokens": 24})
            source = stored.get(mode, folders[mode])
            processor = AutoProcessor.from_pretrained(source)
            model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32, device_map="cpu").eval()
            inputs = pixel_path(processor, conversation)
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=24)[0, inputs["input_ids"].shape[1] :]
            text = processor.tokenizer.decode(ids, skip_special_tokens=True)
            assert (
                text.split()
                == f"{found.thinking or ''}</think>{found.text}".replace(
                    "</think>", " </think> " if "</think>" in text else " "
                ).split()
            )


def test_fp8_experts_that_are_read_without_scales_are_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """As transformers 5.24 reads the joint experts of Qwen3-VL."""
    for mode in MODES:
        write_fp8(tiny("qwen3_vl_moe") / mode, tmp_path / mode)
    file = tmp_path / "thinking" / "model.safetensors"
    tensors = load_file(file)
    experts = next(name for name in tensors if name.endswith("experts.down_proj"))
    tensors[experts] = tensors[experts].to(torch.float8_e4m3fn)
    tensors[f"{experts}_scale_inv"] = torch.ones(4, 3, 2)
    save_file(tensors, file, metadata={"format": "pt"})
    said = refusal(tmp_path, device="cpu")
    assert "without their scales" in said
    assert "endpoints" in said


def test_a_quantized_checkpoint_that_lacks_tensors_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = write_quantized(tiny("qwen3_5"), tmp_path / "model", quantization_config("4bit"))
    tensors = load_file(folder / "model.safetensors")
    absent = next(name for name in tensors if name.endswith("norm.weight"))
    save_file(
        {name: t for name, t in tensors.items() if name != absent}, folder / "model.safetensors", {"format": "pt"}
    )
    assert "lacks 1 tensors" in refusal(folder)


def test_fp8_on_a_gpu_needs_a_package(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU that computes with FP8, where transformers would notice at the first token."""
    folder = write_fp8(tiny("qwen3_5"), tmp_path / "model")
    files = CheckpointFiles.read(None, folder, folder)
    monkeypatch.setattr(FineGrainedFP8HfQuantizer, "validate_environment", lambda *_, **__: None)
    monkeypatch.setattr(loading.import_utils, "is_kernels_available", lambda: False)
    with pytest.raises(CheckpointError, match=r"package kernels on cuda:1; pip install 'kernels"):
        loading.check_loadable(files, {"device_map": "cuda:1"})
    loading.check_loadable(files, {"device_map": "cpu"})  # where the weights are converted


@pytest.mark.parametrize(
    ("kind", "device", "converted"),
    [("fp8", "cpu", True), ("fp8", "mps", True), ("fp8", "cuda:1", False), ("compressed-tensors", "cuda", True),
     ("awq", "cpu", False), ("bitsandbytes", "cpu", False)],
)  # fmt: skip
def test_which_weights_are_converted(kind: str, device: str, converted: bool) -> None:
    assert is_dequantized(CONFIGS[kind], device) is converted


def test_layers_that_another_package_changed_are_not_used_directly() -> None:
    """As compressed-tensors changes them, which keeps their class."""
    layer = nn.Linear(4, 4)
    assert is_plain(layer)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    assert not is_plain(layer)
    layer = nn.Linear(4, 4)
    layer.register_forward_pre_hook(lambda *_: None)
    assert not is_plain(layer)
    layer = nn.Linear(4, 4)
    del layer.weight
    assert not is_plain(layer)
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    assert not is_plain(layer)
