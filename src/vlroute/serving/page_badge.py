"""The line below an answer: which mode, what gain, how many seconds, what was found again."""

from __future__ import annotations

from html import escape

from vlroute.answer import Answer
from vlroute.decision.policy import Decision
from vlroute.serving.page_words import Words


def badge(answer: Answer, words: Words, predicted: bool) -> str:
    """As HTML. `predicted`: whether a router artefact stands behind the gain."""
    decision, usage, timing = answer.decision, answer.usage, answer.timing
    items = [_item(words.modes[decision.mode], decision.mode)]
    if predicted:
        help = words.gain_help.format(decision.p_instruct, decision.p_thinking)
        items.append(_item(words.gain.format(signed(decision.gain)), "gain", help))
    items.append(_item(words.seconds.format(timing.total), "seconds"))
    if usage.vision_tokens and usage.encoded is not None:
        spent = timing.caption + timing.vision  # the encoder runs for the captioner where that comes first
        read = words.read.format(spent) if usage.encoded else words.known
        items.append(_item(read, "read" if usage.encoded else "known"))
    if usage.cached_tokens:
        items.append(_item(words.kept.format(usage.cached_tokens, usage.prompt_tokens), "kept", words.kept_help))
    if answer.finish_reason == "length":
        items.append(_item(words.cut, "warn"))
    items.append(_item(why(decision, words, predicted), "why"))
    return f'<div class="badge">{"".join(items)}</div>'


def stopped_badge(words: Words) -> str:
    """Below an answer that was stopped."""
    return f'<div class="badge">{_item(words.stopped, "warn")}</div>'


def why(decision: Decision, words: Words, predicted: bool) -> str:
    """The reason of a decision in the language of the page."""
    extra = decision.seconds_thinking - decision.seconds_instruct
    worth = decision.gain > decision.threshold
    if decision.forced or decision.fallback:
        reason = "forced" if decision.forced else "fallback"
    elif not predicted:
        reason = "no_artefact"
    elif worth != (decision.mode == "thinking"):
        reason = "unsure"
    elif decision.gain <= 0:
        reason = "no_gain"
    elif extra <= 0:
        reason = "free"
    else:
        reason = "over" if worth else "under"
    return words.why[reason].format(extra=extra, threshold=decision.threshold)


def signed(gain: float) -> float:
    """Two decimals, and never the minus zero that `format` would show."""
    return round(gain, 2) + 0.0


def _item(text: str, kind: str, help: str = "") -> str:
    title = f' title="{escape(help)}"' if help else ""
    return f'<span class="{kind}"{title}>{escape(text)}</span>'
