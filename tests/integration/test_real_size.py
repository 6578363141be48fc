"""The benchmark of the 2B shape, with a small shape."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load, load_file
from training.bench.checkpoint_2b import FIRST_SPECIAL, PairWriter, Shape, build_processor, build_tokenizer
from training.bench.checkpoint_hybrid import HybridWriter
from training.bench.checkpoint_hybrid import Shape as HybridShape
from training.bench.real_size import (
    NEW_TOKENS,
    PROMPT,
    Measurement,
    ModeSeconds,
    draw_picture,
    hybrid_data,
    measure,
    measure_beside,
    measure_second_mode,
    page_data,
    peak_resident,
)
from training.page import in_own_process, render

from vlroute.engine.local.checkpoint import load_models
from vlroute.engine.local.prompt import build_prompt
from vlroute.inputs.messages import parse
from vlroute.types import MODES

TINY = Shape(
    tower_depth=2, tower_width=32, tower_heads=2, tower_mlp=64, deepstack=(0, 1), layers=2, width=64, heads=4,
    key_value_heads=2, head_dim=16, mlp=128, mrope=(4, 2, 2),
)  # fmt: skip
TOWER, LANGUAGE = PairWriter.FILES["tower"], PairWriter.FILES["language"]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> PairWriter:
    writer = PairWriter(tmp_path_factory.mktemp("pair"), TINY)
    writer.prepare()
    return writer


@pytest.fixture
def write(writer: PairWriter) -> Callable[..., Path]:
    def write(case: str) -> Path:
        assert list(writer.write(case))
        return writer.folder

    return write


def test_equal_towers_are_one(write: Callable[..., Path], writer: PairWriter) -> None:
    folder = write("equal")
    found = measure(folder, "equal")
    assert found.shared_tower
    assert found.held == found.needed == 2 * writer.part_bytes("language") + writer.part_bytes("tower")
    assert found.peak >= found.held
    assert found.on_cuda or found.peak >= found.after_load >= found.held
    for mode in MODES:
        assert found.modes[mode].vision_tokens == 14 * 14
        assert found.modes[mode].seconds_per_token > 0
    # <think> and a line break more
    assert found.modes["thinking"].prompt_tokens == found.modes["instruct"].prompt_tokens + 2


def test_different_towers_are_two_and_measured_apart(write: Callable[..., Path], writer: PairWriter) -> None:
    found = in_own_process(measure, write("different"), "different")
    assert not found.shared_tower
    assert found.held == found.needed == 2 * (writer.part_bytes("language") + writer.part_bytes("tower"))
    assert found.modes.keys() == set(MODES)


def test_never_more_than_four_weight_files(write: Callable[..., Path], writer: PairWriter) -> None:
    folder = write("different")
    first = (folder / "instruct" / TOWER).read_bytes()
    assert first != (folder / "thinking" / TOWER).read_bytes()
    written = {mode: (folder / mode / LANGUAGE).stat().st_mtime_ns for mode in MODES}
    write("equal")
    assert (folder / "thinking" / TOWER).samefile(folder / "instruct" / TOWER)
    write("different")  # must not write through the shared name
    assert (folder / "instruct" / TOWER).read_bytes() == first
    assert written == {mode: (folder / mode / LANGUAGE).stat().st_mtime_ns for mode in MODES}
    assert not writer.missing_bytes()


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=2, used=1, free=1))
    with pytest.raises(OSError, match="--folder"):
        PairWriter(tmp_path, TINY).prepare()
    assert not list(tmp_path.iterdir())


def test_an_unfinished_file_is_written_anew(write: Callable[..., Path]) -> None:
    file = write("equal") / "thinking" / LANGUAGE
    whole = file.read_bytes()
    before = load(whole)
    file.write_bytes(whole[:100])
    write("equal")
    after = load_file(file)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_token_ids_are_the_real_ones() -> None:
    tokenizer = build_tokenizer()
    real = {
        "<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|vision_start|>": 151652,
        "<|vision_end|>": 151653, "<|image_pad|>": 151655, "<|video_pad|>": 151656, "<think>": 151667,
        "</think>": 151668,
    }  # fmt: skip
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in real} == real
    assert min(real.values()) == FIRST_SPECIAL
    text = "naïve 中文\n\n\t<filler 300> 7"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert max(ids) < 272  # bytes and the double line break: fillers never come out of text


def test_the_prompt_is_the_real_format(write: Callable[..., Path]) -> None:
    pair = load_models(**{mode: write("equal") / mode for mode in MODES})
    asked = [220 if letter == " " else ord(letter) - 33 for letter in PROMPT]
    user = [151644, 872, 198, 151652, *[151655] * 196, 151653, *asked, 151645, 198]
    for mode, thought in (("instruct", []), ("thinking", [151667, 198])):
        prompt = build_prompt(pair[mode], parse(PROMPT, draw_picture()), [(1, 28, 28)], [])
        assert prompt.tokens.ids.tolist() == [*user, 151644, 77091, 198, *thought]


def test_processors_and_sizes_are_the_real_ones(tmp_path: Path) -> None:
    processor = build_processor("instruct")
    images = processor.image_processor
    assert (images.patch_size, images.merge_size, images.temporal_patch_size) == (16, 2, 2)
    assert (images.size["shortest_edge"], images.size["longest_edge"]) == (256 * 256, 4096 * 4096)
    real = PairWriter(tmp_path, Shape())
    assert round(real.part_bytes("language") / 2e6) == 1721  # 1.72 B and 407 M parameters, two bytes each
    assert round(real.part_bytes("tower") / 2e6) == 407


def page_of(*measurements: Measurement) -> str:
    return render("real_size.md", **page_data([*measurements], Shape(), "here"))


ANSWERED = ModeSeconds(9.5, 1.25, 2.5, 0.125, 242, 196)
MET = Measurement(
    case="equal", device="CPU (some)", load_seconds=1.5, shared_tower=True, held=7_700_000_000,
    needed=7_700_000_000, before=10**9, after_load=2 * 10**9, peak=8_850_000_000, on_cuda=False,
    anonymous=None, modes={"instruct": ANSWERED, "thinking": replace(ANSWERED, prompt_tokens=244)},
)  # fmt: skip


def test_the_table_says_whether_the_bound_was_met() -> None:
    missed = replace(MET, case="different", shared_tower=False, peak=8_860_000_000, anonymous=5 * 10**8)
    assert MET.met
    assert not missed.met
    page = page_of(MET, missed)
    assert "| equal | yes | 1.5 | 7.70 | 1.00 | 2.00 | unknown | 8.85 | 8.86 | yes |" in page
    assert "| different | no | 1.5 | 7.70 | 1.00 | 2.00 | 0.50 | 8.86 | 8.86 | **no** |" in page
    assert "| equal | thinking | 244 | 196 | 9.5 | 1.25 | 2.50 | 0.125 |" in page
    assert f"{NEW_TOKENS} new tokens" in page
    on_cuda = replace(missed, on_cuda=True, peak=8_000_000_000)
    assert on_cuda.met
    assert "allocated on the CUDA device" in page_of(on_cuda)


def test_transformers_answers_beside_the_router(write: Callable[..., Path]) -> None:
    rounds = measure_beside(write("equal"), 2)
    assert len(rounds) == 2
    assert all(value > 0 for one in rounds for value in (one.first, one.first_transformers, one.tokens))
    beside = [replace(rounds[0], first=2.0, first_transformers=3.0, tokens=4.0, tokens_transformers=2.0)] * 3
    page = render("real_size.md", **page_data([MET], Shape(), "here", beside))
    assert "| time to the first token, s | 2.00 | 3.00 | 1.50 (1.50 – 1.50) |" in page
    assert "| tokens per second after it | 4.00 | 2.00 | 2.00 (2.00 – 2.00) |" in page


def test_the_second_mode_of_a_hybrid_reads_its_own_marker(tmp_path: Path) -> None:
    shape = HybridShape(
        tower_depth=2, tower_width=32, tower_heads=2, tower_mlp=64, layers=4, width=64, heads=4, key_value_heads=2,
        head_dim=32, mlp=128, linear_heads=2, linear_width=16, mrope=(2, 1, 1),
    )  # fmt: skip
    writer = HybridWriter(tmp_path / "hybrid", shape)
    writer.write()
    written = (writer.folder / "model.safetensors").stat().st_mtime_ns
    writer.write()
    assert (writer.folder / "model.safetensors").stat().st_mtime_ns == written
    found = measure(writer.folder, "hybrid")
    assert found.shared_tower
    assert found.held == found.needed == 2 * sum(map(math.prod, writer.tensors.values()))
    rounds = measure_second_mode(writer.folder, 2)
    assert [(one.mode, one.read) for one in rounds] == [("instruct", 2), ("thinking", 6)]
    assert all(900 < one.tokens < 1100 for one in rounds)
    hybrid = hybrid_data(found, [replace(one, fresh=10.0, second=1.0) for one in rounds], "here")
    page = render("real_size.md", **page_data([MET], Shape(), "here", (), hybrid))
    assert "| both modes in one checkpoint | yes |" in page
    assert "| 10.0 % |" in page
    assert "Median of the shares: 10.0 % (10.0 – 10.0 %)" in page


def test_peak_is_of_this_process() -> None:
    assert 2 * 10**7 < peak_resident() < 10**12
