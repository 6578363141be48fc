"""Benchmarks of conversations, with small models and few turns."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from training.bench.checkpoint_2b import PairWriter
from training.bench.memory import Soak, Stretch, soak
from training.bench.second_turn import SecondTurn, measure_second_turn
from training.page import render

from tests.integration.test_real_size import TINY
from vlroute.types import MODES

TURN = SecondTurn(
    device="CPU (some)", dtype="bfloat16", side=1024, repeats=1, vision_tokens=1024, prompt_tokens=1070,
    uncached_same=30, encoder_calls=1, encode=200.0, lookup=0.004, same=5.0, other=150.0,
    plain={"instruct": 400.0, "thinking": 330.0}, served=410.0,
)  # fmt: skip


@pytest.mark.parametrize(("case", "encoder_calls"), [("equal", 2), ("different", 4)])
def test_second_turns_against_plain_transformers_and_its_server(tmp_path: Path, case: str, encoder_calls: int) -> None:
    writer = PairWriter(tmp_path, TINY)
    writer.prepare()
    assert list(writer.write(case))
    found = measure_second_turn(tmp_path, 128, "float32", repeats=2)
    assert found.encoder_calls == encoder_calls  # once for each picture and each distinct tower
    assert found.vision_tokens == 64  # the real processor enlarges to 256 × 256
    assert 0 < found.uncached_same < found.prompt_tokens - 64
    assert min(found.encode, found.lookup, found.same, found.other, found.served, *found.plain.values()) > 0
    assert found.plain.keys() == set(MODES)


def test_the_soak_outgrows_its_budget_and_stays_within() -> None:
    found = soak(turns=20, pictures=8, limit=2_000_000, side=288)
    assert found.all_features > 8 * 144 * 128 * 4  # twelve by twelve tokens at least, with their deepstack layers
    assert found.stretches[-1].turn == 20
    assert max(max(s.vision_most, s.prefix_most) for s in found.stretches) <= 2_000_000
    assert found.stretches[-1].hits > 0


def test_values_that_miss_their_target_are_bold() -> None:
    slow = replace(TURN, other=200.0, lookup=3.0)
    stretches = [Stretch(100 * i, 9e8, 900_000_000 + i, 60_000_000, 50_000_000, 10 * i, i, 20 * i) for i in (1, 2)]
    found = {
        "2b": {"where": "here", "rows": [asdict(replace(slow, side=448)), asdict(TURN)]},
        "memory": {"where": "there", "rows": [asdict(Soak(200, 50, 768, 5, 67_108_864, 78_643_200, stretches))]},
    }
    page = render("conversations.md", data=found)
    assert "| 1024 × 1024 | 80.0× | 82.0× | 2.2× | 1 for 1 | 4.00 ms | 0.002 % |" in page
    assert "| 448 × 448 | 80.0× | 82.0× | 1.6× | 1 for 1 | 3000.00 ms | **1.500 %** |" in page
    assert "pocket pair\n" not in page  # a part that was not run
    assert "within the limit" in page
    assert "1.000 of that in the first, flat" in page
    found["2b"]["rows"][1]["other"] = 200.0
    found["memory"]["rows"][0]["stretches"][1]["resident_most"] = 950_000_000
    page = render("conversations.md", data=found)
    assert "**1.6×**" in page
    assert "**not flat**" in page
