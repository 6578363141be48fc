"""Makes a loaded model generate the tokens that a test needs, independent of its training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from vlroute import Router

STRONG = 1e4  # above any logit of a model


def token_ids(router: Router, text: str, mode: Any = "thinking") -> list[int]:
    """Token ids of `text`, tags included."""
    ids: list[int] = router.pair[mode].tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def end_id(router: Router, mode: Any = "thinking") -> int:
    """The id that ends an answer."""
    return int(router.pair[mode].tokenizer.eos_token_id)


@contextmanager
def biased(router: Router, mode: Any, bias: Mapping[int, float]) -> Iterator[None]:
    """Add `bias` to the logits of the given ids for every answer of `mode`, alone or in shared forward passes."""

    def add(module: Any, args: Any, output: Any) -> None:
        for token, value in bias.items():
            output[:, token] += value

    hook = router.pair[mode].model.lm_head.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def scripted(router: Router, mode: Any, ids: Sequence[int]) -> Iterator[None]:
    """One answer of `mode` at a time: the model prefers `ids[k]` as its k-th token, and its end token after them.

    A token that the router forces or forbids takes its place in the count.
    """
    wanted = iter([*ids])

    def prefer(module: Any, args: Any, output: Any) -> None:
        output[:, next(wanted, end_id(router, mode))] += STRONG

    hook = router.pair[mode].model.lm_head.register_forward_hook(prefer)
    try:
        yield
    finally:
        hook.remove()


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
