"""Videos as such, which only vLLM takes. `make test-servers` runs this."""

from __future__ import annotations

from typing import Any

import pytest
from training.bench.peer_servers import VLLM

from tests.conftest import SECONDS, task
from tests.e2e.conftest import RealServers
from vlroute import Router
from vlroute.types import MODES

pytestmark = pytest.mark.float32


@pytest.mark.parametrize("real", [VLLM], indirect=True)
def test_videos(router: Router, real: RealServers) -> None:
    """The server gets no times and assumes one frame per second, which is right for these videos."""
    with real.router(videos="video_url") as there:
        for seed, language in ((0, "en"), (1, "zh"), (2, "en")):
            one = task("video", "easy", seed, language)
            asked: Any = {"videos": [(list(one.frames), SECONDS[: len(one.frames)])]}
            for mode in MODES:
                ours = router.ask(one.prompt, **asked, mode=mode, do_sample=False, max_new_tokens=200)
                theirs = there.ask(one.prompt, **asked, mode=mode)
                assert (theirs.text, theirs.thinking) == (ours.text, ours.thinking)
                assert theirs.usage.prompt_tokens == ours.usage.prompt_tokens
