"""Generation settings: which are supported, with which values, and what is used where nothing is set.

`SETTINGS` is the one table for checks, error messages and docs/reference/configuration.md. Imports neither torch nor
transformers.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vlroute.checks import MANY, Number, Whole, refused, shown
from vlroute.errors import SettingsError
from vlroute.structured import TEXT, ResponseFormat, read_format
from vlroute.types import MODES

log = logging.getLogger("vlroute")

#: What Qwen recommends for each edition, where a checkpoint's own generation config does not say otherwise.
RECOMMENDED: dict[str, dict[str, Any]] = {
    "instruct": {
        "do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "presence_penalty": 1.5,
        "max_new_tokens": 2048,
    },
    "thinking": {
        "do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 20, "presence_penalty": 0.0,
        "max_new_tokens": 8192,
    },
}  # fmt: skip
#: Value of `thinking_budget`: the router chooses.
AUTO = "auto"
#: The reserve for the answer is a quarter of `max_new_tokens`, and at most this many tokens.
MAX_RESERVE = 256
#: Largest `top_logprobs`, as in OpenAI's API.
MAX_TOP_LOGPROBS = 20
#: Below this temperature, decoding is greedy: dividing scores by a smaller number overflows.
COLDEST = 1e-3


@dataclass(frozen=True, slots=True)
class Setting:
    """One supported setting. `accepts` and `meaning` are texts for errors and docs; `read` checks and converts a value.

    `sampling`: it affects sampling only, so it has no effect on greedy answers. `off`: the value without
    effect. `endpoints`: it can be sent to an OpenAI-compatible server.
    """

    accepts: str
    read: Callable[[str, Any], Any]
    meaning: str
    sampling: bool = False
    off: Any = None
    endpoints: bool = False


def _ranged(range_: Number | Whole, meaning: str, **rest: Any) -> Setting:
    return Setting(str(range_), range_.read, meaning, **rest)


def _flag(name: str, value: Any) -> bool:
    if not (isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")):  # numpy's
        raise refused(name, value, "True or False")
    return bool(value)


_TOKEN, _TOP_K = Whole(), Whole(-1)


def _items(name: str, value: Any, accepts: str, hint: str = "") -> list[Any]:
    """`value` as a list. SettingsError for strings, mappings, and what cannot be iterated, such as a 0-d array."""
    try:
        if isinstance(value, str | bytes | Mapping):
            raise TypeError
        return list(value)
    except TypeError:
        raise refused(name, value, accepts, hint) from None


def _ids(name: str, value: Any) -> list[int]:
    return [_TOKEN.read(f"a token id in {name}", one) for one in _items(name, value, "a list of token ids")]


def _end_ids(name: str, value: Any) -> int | list[int]:
    if not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
        return Whole(-1).read(name, value)
    if not (ids := _ids(name, value)):
        raise refused(name, value, "a token id or a list of at least one token id")
    return ids


def _top_k(name: str, value: Any) -> int:
    return max(_TOP_K.read(name, value), 0)


def _words(name: str, value: Any) -> list[list[int]]:
    accepts = "a list of lists of at least one token id each"
    words = []
    for one in _items(name, value, accepts):
        if not isinstance(one, Iterable) or not (ids := _ids(name, one)):
            raise refused(name, value, accepts)
        words.append(ids)
    return words


_BIAS = Number(-10_000, 10_000)


def _biases(name: str, value: Any) -> dict[tuple[int, ...], float]:
    accepts = "a dict of {(token ids): bias} or a list of [[token ids], bias]"
    pairs = list(value.items()) if isinstance(value, Mapping) else _items(name, value, accepts)
    biases: dict[tuple[int, ...], float] = {}
    for pair in pairs:
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            raise refused(name, value, accepts)
        ids = tuple(_ids(name, pair[0]))
        if not ids:
            raise refused(name, value, accepts)
        biases[ids] = _BIAS.read(f"a bias in {name}", pair[1])
    return biases


def _token_biases(name: str, value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise refused(name, value, "a dict of {token id: bias}")
    return {
        _TOKEN.read(f"a token id in {name}", token): _BIAS.read(f"a bias in {name}", bias)
        for token, bias in value.items()
    }


def _budget(name: str, value: Any) -> int | str:
    if isinstance(value, str):
        if value != AUTO:
            raise refused(name, value, f"{Whole()}, or 'auto'")
        return AUTO
    return Whole().read(name, value)


def _strings(name: str, value: Any) -> list[str]:
    strings = _items(name, value, "a list of strings", f"for one string, write {name}=['…']")
    if not all(isinstance(one, str) and one for one in strings):
        raise refused(name, value, "a list of non-empty strings")
    if any("\ud800" <= character <= "\udfff" for one in strings for character in one):
        raise refused(name, value, "a list of strings in valid Unicode", "one contains half of a surrogate pair")
    return strings


#: All settings that are supported, by name.
SETTINGS: dict[str, Setting] = {
    "max_new_tokens": _ranged(Whole(1), "maximum number of tokens of an answer, reasoning included", endpoints=True),
    "min_new_tokens": _ranged(Whole(), "no end token before this many tokens", off=0),
    "do_sample": Setting("True or False", _flag, "sample each token, or take the most likely one", endpoints=True),
    "temperature": _ranged(
        Number(0, 1000), f"divides the scores; below {COLDEST:g} the answer is greedy", sampling=True, off=1.0,
        endpoints=True,
    ),
    "top_k": Setting(
        str(_TOP_K), _top_k, "sample from this many most likely tokens; 0 and -1: from all", sampling=True, off=0,
        endpoints=True,
    ),
    "top_p": _ranged(
        Number(0, 1), "sample from the most likely tokens with this total probability", sampling=True, off=1.0,
        endpoints=True,
    ),
    "min_p": _ranged(
        Number(0, 1), "sample from tokens with at least this fraction of the highest probability", sampling=True,
        off=0.0, endpoints=True,
    ),
    "typical_p": _ranged(
        Number(0, 1, above=True), "sample from the most typical tokens with this total probability",
        sampling=True, off=1.0,
    ),
    "epsilon_cutoff": _ranged(
        Number(0, 1, below=True), "sample from tokens with at least this probability", sampling=True, off=0.0
    ),
    "eta_cutoff": _ranged(
        Number(0, 1, below=True), "as `epsilon_cutoff`, but lower if the entropy is high", sampling=True, off=0.0
    ),
    "seed": _ranged(Whole(-(2**63), 2**64 - 1), "makes sampling reproducible", endpoints=True),
    "presence_penalty": _ranged(
        Number(-10_000, 10_000), "lowers the score of every token of the answer so far, once", off=0.0, endpoints=True
    ),
    "frequency_penalty": _ranged(
        Number(-10_000, 10_000), "lowers the score of every token of the answer so far, once per occurrence", off=0.0,
        endpoints=True,
    ),
    "repetition_penalty": _ranged(
        Number(0.01, 100), "scales down the score of every token of prompt and answer so far", off=1.0, endpoints=True
    ),
    "no_repeat_ngram_size": _ranged(
        Whole(), "no sequence of this many tokens occurs twice, the prompt included", off=0
    ),
    "bad_words_ids": Setting("a list of lists of token ids", _words, "sequences that are never generated"),
    "bad_words": Setting(
        "a list of non-empty strings", _strings,
        "texts whose usual tokens are never generated, also after a space; other tokens may still spell them",
    ),
    "sequence_bias": Setting(
        "a dict of {(token ids): bias} or a list of [[token ids], bias]", _biases,
        f"added to the score of a sequence's last token; {_BIAS}",
    ),
    "logit_bias": Setting(
        "a dict of {token id: bias}", _token_biases, f"OpenAI's form of `sequence_bias` for single tokens; {_BIAS}"
    ),
    "suppress_tokens": Setting("a list of token ids", _ids, "tokens that are never generated"),
    "begin_suppress_tokens": Setting(
        "a list of token ids", _ids, "tokens that are never the first token of the output"
    ),
    "eos_token_id": Setting(
        "a token id or a list of at least one token id", _end_ids, "tokens that end an answer; -1: none does"
    ),
    "stop_token_ids": Setting(
        "a list of token ids", _ids,
        "further tokens that end an answer, besides those of `eos_token_id`; excluded until it has visible text. With "
        "a `response_format`, only control tokens end it",
    ),
    "stop": Setting(
        "a list of non-empty strings", _strings, "strings that end the answer, not the reasoning",
        endpoints=True,
    ),
    "thinking_budget": Setting(
        f"{Whole()}, or 'auto'", _budget,
        "maximum number of reasoning tokens; then the answer follows. Instruct ignores it. 'auto': as many as are worth"
        " their seconds at the gain and the price of the request", endpoints=True,
    ),
    "answer_reserve": _ranged(
        Whole(), "how many of the `max_new_tokens` are kept for the answer after the reasoning; 0: none; by default a "
        f"quarter, at most {MAX_RESERVE}", endpoints=True,
    ),
    "close_loops": Setting(
        "True or False", _flag, "close reasoning that repeats itself, so that an answer follows; on by default",
        off=True, endpoints=True,
    ),
    "early_exit": _ranged(
        Number(0, 1, above=True), "close reasoning whose answer no longer changes: two trials in a row give the same "
        "answer, each token of it with at least this probability; off by default",
    ),
    "response_format": Setting(
        "a pydantic model, or a dict such as `{'type': 'json_object'}`, `{'json': a schema}`, `{'choice': strings}` or "
        "`{'regex': a string}`", read_format,
        "what form the answer, not the reasoning, has; `{'type': 'text'}`: any. Needs the extra `structured`", off=TEXT,
        endpoints=True,
    ),
    "logprobs": Setting(
        "True or False", _flag, "give `Answer.logprobs`, the log-probability of each token of the answer", off=False,
        endpoints=True,
    ),
    "top_logprobs": _ranged(
        Whole(0, MAX_TOP_LOGPROBS), "how many of the most probable tokens `logprobs` names at each place", off=0,
        endpoints=True,
    ),
    "pad_token_id": _ranged(Whole(), "accepted without effect: answers are not padded"),
    "bos_token_id": _ranged(Whole(), "accepted without effect: the chat template begins the prompt"),
}  # fmt: skip
SAMPLING = frozenset(name for name, setting in SETTINGS.items() if setting.sampling)

_ONE_ANSWER = "one answer is generated at a time; ask several times with different seeds"
_BEAMS = "beam search is not supported; leave it out, or sample with do_sample=True"
_ASSISTED = "assisted and speculative generation are not supported; leave it out"
_TEXT_ONLY = "an answer contains only text, token counts and log-probabilities (logprobs=); leave it out"
_CACHES = "PrefixCache stores the keys and values; leave it out, or pass prefix_cache="
_ENCODER = "it belongs to encoder-decoder models; leave it out"
_NEVER = "leave it out"
_IMAGES, _VIDEOS = "pass images=", "pass videos="
_SYSTEM = "begin the messages with one of the role 'system', or use Router.chat(system='…')"
_OF_PART = "it is a field of the part with the picture or video (docs/reference/inputs.md)"
_OF_ROUTER = "it is an argument of Router.from_pretrained"
#: Settings of transformers and other APIs, and misplaced arguments: the values without effect, which are accepted, and
#: what to use instead.
UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_return_sequences": ((1,), _ONE_ANSWER), "n": ((1,), _ONE_ANSWER), "best_of": ((1,), _ONE_ANSWER),
    "num_beams": ((1,), _BEAMS), "num_beam_groups": ((1,), _BEAMS), "diversity_penalty": ((0,), _BEAMS),
    "early_stopping": ((False,), _BEAMS), "length_penalty": ((1,), _BEAMS), "constraints": ((), _BEAMS),
    "force_words_ids": ((), _BEAMS), "penalty_alpha": ((0,), "contrastive search is not supported; leave it out"),
    "dola_layers": ((), _NEVER), "low_memory": ((False,), _NEVER), "guidance_scale": ((1,), _NEVER),
    "top_h": ((1,), "use min_p or typical_p"), "watermarking_config": ((), _NEVER), "token_healing": ((False,), _NEVER),
    "remove_invalid_values": ((False,), _NEVER), "renormalize_logits": ((False,), "it has no effect; leave it out"),
    "exponential_decay_length_penalty": ((), "use max_new_tokens"), "forced_bos_token_id": ((), _NEVER),
    "forced_eos_token_id": ((), "use eos_token_id"), "decoder_start_token_id": ((), _ENCODER),
    "encoder_repetition_penalty": ((1,), _ENCODER), "encoder_no_repeat_ngram_size": ((0,), _ENCODER),
    "max_length": ((), "use max_new_tokens"), "min_length": ((0,), "use min_new_tokens"),
    "max_tokens": ((), "use max_new_tokens"), "max_completion_tokens": ((), "use max_new_tokens"),
    "min_tokens": ((0,), "use min_new_tokens"), "max_time": ((), "set the event that you pass as cancel="),
    "stop_strings": ((), "use stop="), "stop_sequences": ((), "use stop="),
    "repeat_penalty": ((1,), "use repetition_penalty="), "enable_thinking": ((), "use mode='thinking' or 'instruct'"),
    "reasoning_effort": ((), "use mode= and thinking_budget="), "streamer": ((), "use Router.stream"),
    "return_dict_in_generate": ((False,), _TEXT_ONLY), "output_scores": ((False,), _TEXT_ONLY),
    "output_logits": ((False,), _TEXT_ONLY), "output_attentions": ((False,), _TEXT_ONLY),
    "output_hidden_states": ((False,), _TEXT_ONLY), "use_cache": ((True,), _CACHES),
    "cache_implementation": ((), _CACHES), "cache_config": ((), _CACHES), "max_cache_len": ((), _CACHES),
    "prefill_chunk_size": ((), _NEVER), "compile_config": ((), _NEVER), "disable_compile": ((False,), _NEVER),
    "continuous_batching_config": ((), "make the router with max_num_seqs="), "use_mtp": ((False,), _ASSISTED),
    "is_assistant": ((False,), _ASSISTED), "num_assistant_tokens": ((20,), _ASSISTED),
    "num_assistant_tokens_schedule": (("constant",), _ASSISTED), "assistant_early_exit": ((), _ASSISTED),
    "assistant_confidence_threshold": ((0.4,), _ASSISTED), "assistant_lookbehind": ((10,), _ASSISTED),
    "assistant_ensemble_weight": ((), _ASSISTED), "target_lookbehind": ((10,), _ASSISTED),
    "prompt_lookup_num_tokens": ((), _ASSISTED), "max_matching_ngram_size": ((), _ASSISTED),
    "speculation_type": ((), _ASSISTED), "assistant_model": ((), _ASSISTED),
    "image": ((), _IMAGES), "picture": ((), _IMAGES), "pictures": ((), _IMAGES), "video": ((), _VIDEOS),
    "frames": ((), _VIDEOS), "system": ((), _SYSTEM), "system_prompt": ((), _SYSTEM),
    "messages": ((), "pass the list of messages as the prompt"), "max_pixels": ((), _OF_PART),
    "min_pixels": ((), _OF_PART), "total_pixels": ((), _OF_PART), "resized_height": ((), _OF_PART),
    "resized_width": ((), _OF_PART), "detail": ((), _OF_PART), "fps": ((), _OF_PART), "nframes": ((), _OF_PART),
    "num_frames": ((), _OF_PART), "min_frames": ((), _OF_PART), "max_frames": ((), _OF_PART),
    "limits": ((), _OF_ROUTER), "policy": ((), _OF_ROUTER), "captioner": ((), _OF_ROUTER),
    "price": ((), "pass policy=Policy(price=…) to Router.from_pretrained, or price= to ask"),
}  # fmt: skip
#: Names in a dump of a GenerationConfig that have no effect on an answer.
_NOTES = frozenset({"transformers_version", "_from_model_config"})


def checked(settings: Mapping[str, Any], endpoints: bool = False, where: str = "generation") -> dict[str, Any]:
    """Check the settings of one source (a call, a router, a mode) and convert them to plain Python values.

    None means "not set here". A temperature turns sampling on, and so does every other sampling setting;
    `temperature=0` gives a greedy answer. The result contains `do_sample` if any of these settings is set.

    Args:
        settings: values by name.
        endpoints: whether they are for endpoints, which accept fewer settings.
        where: name of the argument for errors.

    Returns:
        The settings by name.

    Raises:
        SettingsError: an unknown or unsupported name, a value of the wrong type or out of range, or two settings that
            contradict each other.
    """
    if not isinstance(settings, Mapping):
        raise refused(where, settings, "a mapping of generation settings")
    if unknown := sorted(str(name) for name in settings if name not in SETTINGS and not _is_foreign(name)):
        raise SettingsError(_unknown(unknown, _names(endpoints)))
    read: dict[str, Any] = {}
    for name, value in settings.items():
        if value is None or name in _NOTES:
            continue
        if name in UNSUPPORTED:
            neutral, instead = UNSUPPORTED[name]
            if not (isinstance(value, bool | int | float | str) and value in neutral):
                raise SettingsError(f"{name}={shown(value)} is not supported: {instead}")
            continue
        read[name] = SETTINGS[name].read(name, value)
        if endpoints and not SETTINGS[name].endpoints and read.pop(name) != SETTINGS[name].off:
            raise SettingsError(f"endpoints do not take the setting {name}; expected some of {_names(endpoints)}")
    check_lengths(read)
    if (reserve := read.get("answer_reserve", 0)) >= (most := read.get("max_new_tokens", MANY)):
        raise SettingsError(f"answer_reserve={reserve} leaves no reasoning tokens of max_new_tokens={most}")
    return _settled(read)


def checked_per_mode(generation: Mapping[str, Any], endpoints: bool = False) -> dict[str, Any]:
    """As `checked`, for settings that may contain settings per mode under "instruct" and "thinking"; same errors."""
    both = checked({name: value for name, value in generation.items() if name not in MODES}, endpoints)
    modes = {
        mode: checked(generation[mode], endpoints, f"generation[{mode!r}]")
        for mode in MODES
        if generation.get(mode) is not None
    }
    for own in modes.values():
        check_lengths(both | own)
    return both | modes


def combined(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """`checked` settings of several sources; the last one wins.

    `do_sample=False` removes earlier sampling settings, and `logprobs=False` an earlier `top_logprobs`.
    """
    settings: dict[str, Any] = {}
    for layer in layers:
        if layer.get("do_sample") is False:
            settings = {name: value for name, value in settings.items() if name not in SAMPLING}
        if layer.get("logprobs") is False:
            settings.pop("top_logprobs", None)
        settings |= layer
    return settings


def own_settings(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The supported settings of a checkpoint's generation config; one warning names the others."""
    own: dict[str, Any] = {}
    left_out: list[str] = []
    for name, value in config.items():
        try:
            if value is not None and name in SETTINGS:
                own[name] = SETTINGS[name].read(name, value)
            else:
                checked({name: value})
        except SettingsError:
            left_out.append(f"{name}={shown(value)}")
    if own.get("temperature", 1.0) < COLDEST:
        own["do_sample"] = False
        del own["temperature"]
    if left_out:
        log.warning("%s: unsupported settings in generation_config.json are ignored: %s", source, ", ".join(left_out))
    return own


def check_lengths(settings: Mapping[str, Any]) -> None:
    """SettingsError if `min_new_tokens` is greater than `max_new_tokens`."""
    least, most = settings.get("min_new_tokens", 0), settings.get("max_new_tokens", MANY)
    if least > most:
        raise SettingsError(f"min_new_tokens={least} is greater than max_new_tokens={most}")


def check_logprobs(settings: Mapping[str, Any]) -> None:
    """SettingsError if `top_logprobs` is set without `logprobs`."""
    if (count := settings.get("top_logprobs")) and not settings.get("logprobs"):
        raise SettingsError(f"top_logprobs={count} needs logprobs=True")


def answer_reserve(settings: Mapping[str, Any], most: int) -> int:
    """Number of tokens that are kept for the answer after the reasoning.

    Args:
        settings: Checked generation settings.
        most: Maximum number of tokens of reasoning and answer.

    Returns:
        The number, at most `most`.
    """
    asked = settings.get("answer_reserve")
    return min(MAX_RESERVE, max(1, most // 4)) if asked is None else min(int(asked), most)


def response_format(settings: Mapping[str, Any]) -> ResponseFormat | None:
    """The format that restricts the answer; None if there is none.

    Args:
        settings: Checked generation settings.

    Returns:
        The format.
    """
    found: ResponseFormat = settings.get("response_format") or TEXT
    return None if found.kind == "text" else found


def _is_foreign(name: object) -> bool:
    return name in UNSUPPORTED or name in _NOTES


def _names(endpoints: bool) -> str:
    return ", ".join(name for name, setting in SETTINGS.items() if setting.endpoints or not endpoints)


def _unknown(names: Collection[str], expected: str) -> str:
    close = [match for name in names for match in difflib.get_close_matches(name, SETTINGS, 1)]
    meant = f" (did you mean {', '.join(close)}?)" if close else ""
    return f"unknown generation setting{'s'[: len(names) > 1]} {', '.join(names)}{meant}; expected some of {expected}"


def _settled(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` with `do_sample` where the others imply it. SettingsError if it contradicts them."""
    drawn = {name for name in SAMPLING & settings.keys() if settings[name] != SETTINGS[name].off}
    cold = settings.get("temperature", 1.0) < COLDEST
    if settings.get("do_sample") is True and cold:
        raise SettingsError(
            f"temperature={shown(settings['temperature'])} (greedy) contradicts do_sample=True; leave one of them out"
        )
    if settings.get("do_sample") is False and drawn and not cold:
        name = min(drawn)
        raise SettingsError(
            f"{name}={shown(settings[name])} contradicts do_sample=False (no sampling); leave one of them out"
        )
    if settings.get("do_sample") is False or cold:
        # as the temperature approaches 0, only the most likely token remains, whatever the other sampling settings
        return {name: value for name, value in settings.items() if name not in SAMPLING} | {"do_sample": False}
    return settings | ({"do_sample": True} if drawn or "temperature" in settings else {})
