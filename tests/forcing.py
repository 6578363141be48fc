"""Makes a loaded model generate the tokens that a test needs, independent of its training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from vlroute import Router
from vlroute.engine.local.forward import Decoder

STRONG = 1e4  # above any logit of a model


def token_ids(router: Router, text: str, mode: Any = "thinking") -> list[int]:
    """Token ids of `text`, tags included."""
    ids: list[int] = router.pair[mode].tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def end_id(router: Router, mode: Any = "thinking") -> int:
    """The id that ends an answer."""
    return int(router.pair[mode].tokenizer.eos_token_id)


@contextmanager
def _hooked(router: Router, mode: Any, change: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Call `change` with the logits of every forward pass of `mode`."""

    def step(decoder: Decoder, inputs: torch.Tensor, length: int) -> torch.Tensor:
        return decoder._forward(inputs.to(decoder.model.device), length)

    hook = router.pair[mode].model.lm_head.register_forward_hook(lambda module, args, output: change(output))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "_replayed", step)  # a captured CUDA graph runs no hook
        try:
            yield
        finally:
            hook.remove()


@contextmanager
def biased(router: Router, mode: Any, bias: Mapping[int, float]) -> Iterator[None]:
    """Add `bias` to the logits of the given ids for every answer of `mode`, alone or in shared forward passes."""

    def add(logits: torch.Tensor) -> None:
        for token, value in bias.items():
            logits[:, token] += value

    with _hooked(router, mode, add):
        yield


@contextmanager
def scripted(router: Router, mode: Any, ids: Sequence[int]) -> Iterator[None]:
    """One answer of `mode` at a time: the model prefers `ids[k]` as its k-th token, and its end token after them.

    A token that the router forces or forbids takes its place in the count.
    """
    wanted = iter([*ids])

    def prefer(logits: torch.Tensor) -> None:
        logits[:, next(wanted, end_id(router, mode))] += STRONG

    with _hooked(router, mode, prefer):
        yield


@contextmanager
def prompts(router: Router, mode: Any) -> Iterator[list[str]]:
    """Collects the prompts that `mode` prefills. Cached prefixes are removed, so that the first one is whole."""
    router.prefixes.clear()
    read: list[str] = []
    checkpoint = router.pair[mode]

    def keep(module: Any, args: Any) -> None:
        (ids,) = args
        if ids.dim() == 2:  # a decode step has one id per row
            read.append(str(checkpoint.tokenizer.decode(ids[0])))

    hook = checkpoint.model.model.language_model.embed_tokens.register_forward_pre_hook(keep)
    try:
        yield read
    finally:
        hook.remove()
