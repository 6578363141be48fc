"""Request bodies: the accepted fields, and their meaning for the router."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, model_validator
from pydantic_core import PydanticCustomError

from vlroute.engine.settings import MAX_TOP_LOGPROBS, response_format
from vlroute.errors import MissingExtraError, SettingsError
from vlroute.inputs.tools import Tools, checked_tools
from vlroute.pipeline import RequestOptions
from vlroute.serving.choices import MAX_CHOICES
from vlroute.serving.errors import APIError, encodable
from vlroute.serving.request_log import current_request
from vlroute.serving.settings import EFFORTS, ServerSettings
from vlroute.structured import ResponseFormat, choice, json_schema, read_format, regex
from vlroute.types import MODES, Mode

#: Maximum number of unknown fields in one error message, and of characters of each.
MAX_NAMES, MAX_CHARACTERS = 10, 80
#: Maximum number of token ids or texts in one field.
MAX_ITEMS = 300
#: Maximum number of characters of all `bad_words`: they are looked for after each token.
MAX_WORDS = 5000
TOKEN_ID = re.compile("0|[1-9][0-9]{0,8}")
T = TypeVar("T")
#: No names of models besides those of the modes.
NO_NAMES: Mapping[str, Mode | None] = {}
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_INTEGRAL = BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value)
#: Numbers are strict: neither `true` nor "3" is one. Some clients send 40.0 for 40.
Count = Annotated[int, Field(strict=True, ge=1, lt=2**63), _INTEGRAL]
TopK = Annotated[int, Field(strict=True, ge=-1, le=1_000_000), _INTEGRAL]
Seed = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**64), _INTEGRAL]
#: A number of tokens, which may be 0.
Budget = Annotated[int, Field(strict=True, ge=0, lt=2**63), _INTEGRAL]
TopLogprobs = Annotated[int, Field(strict=True, ge=0, le=MAX_TOP_LOGPROBS), _INTEGRAL]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
#: Lists of which only the first wrong value is reported.
Objects = Annotated[list[dict[str, Any]], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]
TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**31), _INTEGRAL]
Bias = Annotated[Number, Field(ge=-100, le=100)]
Word = Annotated[str, Field(min_length=1, max_length=1000)]
Model = Annotated[
    str,
    Field(
        max_length=200,
        description="'auto' lets the router decide; 'instruct' and 'thinking' force a mode, and so does a name that "
        "ends in -Instruct or -Thinking. Other names are those of `/v1/models`.",
    ),
]


def _short(words: list[str]) -> list[str]:
    """The words; an error if they are too long together."""
    if sum(map(len, words)) > MAX_WORDS:
        raise PydanticCustomError("too_long", "at most {most} characters together are expected", {"most": MAX_WORDS})
    return words


def at_most(count: int) -> BeforeValidator:
    """A limit of the fields of an object that is checked before their values, unlike `max_length` of pydantic.

    Args:
        count: Maximum number of fields.

    Returns:
        The validator.
    """

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > count:
            raise PydanticCustomError("too_long", "an object with at most {count} fields is expected", {"count": count})
        return value

    return BeforeValidator(check)


def _add_undeclared(schema: dict[str, Any], model: type[Fields]) -> None:
    """Add the accepted fields that are not attributes to a JSON schema."""
    known = schema.setdefault("properties", {})
    for name, values in model.neutral.items():
        known[name] = {"enum": [None, *values], "description": "Other values are not supported."}
    for name in sorted(model.harmless):
        known[name] = {"description": "Accepted without effect."}
    schema["additionalProperties"] = False


class Fields(BaseModel):
    """A JSON object with an allow list of fields. A field that is null counts as absent.

    Attributes:
        neutral: Fields that are accepted only with a value that has no effect.
        harmless: Fields that cannot change an answer; they are accepted and not read.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra=_add_undeclared)
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    harmless: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = {name: value for name, value in data.items() if value is not None}
        fields = {field.alias or name for name, field in cls.model_fields.items()}
        known = {*fields, *cls.neutral, *cls.harmless}
        if unknown := [name for name in given if name not in known]:
            names = [encodable(name[:MAX_CHARACTERS]) for name in unknown[:MAX_NAMES]]
            message = _unknown(names, len(unknown) - len(names), known)
            raise PydanticCustomError("unknown_parameter", "{message}", {"name": names[0], "message": message})
        for name, values in cls.neutral.items():
            if name not in given:
                continue
            value = given.pop(name)  # 0 == False in Python, but not in JSON
            if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values):
                accepted = f" or send {' or '.join(map(json.dumps, values))}" if values else ""
                raise PydanticCustomError(
                    "unsupported_parameter", "{name} is not supported here; leave it out{accepted}",
                    {"name": name, "accepted": accepted},
                )  # fmt: skip
        return given

    def unread(self) -> Iterator[str]:
        """Names of the sent fields that are accepted and not read, see `harmless`.

        Yields:
            The next name. Those inside of an object follow a dot.
        """
        yield from self.model_extra or ()
        for name, field in type(self).model_fields.items():
            if isinstance(value := getattr(self, name), Fields):
                yield from (f"{field.alias or name}.{inner}" for inner in value.unread())

    def values(self, *names: str) -> Iterator[tuple[str, Any]]:
        """Each field with its value; None: it is absent.

        Args:
            *names: Names of fields. One inside of an object follows a dot.

        Yields:
            The next field with its value.
        """
        for name in names:
            value: Any = self
            for step in name.split("."):
                value = getattr(value, step, None)
            yield name, value


def _unknown(names: list[str], more: int, known: Iterable[str]) -> str:
    """Name the unknown fields, with the most similar known ones."""
    plain = {name.replace("_", ""): name for name in known}
    listed = []
    for name in names:
        like = difflib.get_close_matches(name.lower().replace("_", "").replace("-", ""), plain, 1, 0.75)
        listed.append(repr(name) + (f" (did you mean {plain[like[0]]!r}?)" if like else ""))
    rest = f" and {more} more" if more else ""
    hint = "; send the contents of extra_body as fields of the request itself" if "extra_body" in names else ""
    return f"unknown field{'s'[: len(names) > 1]} {', '.join(listed)}{rest}{hint}"


#: Options of vlroute that have no effect on an answer without reasoning.
OF_REASONING = ("answer_reserve", "close_loops", "early_exit")


class RouterOptions(Fields):
    """Options of vlroute itself; with OpenAI's client: `extra_body={"vlroute": {"price": 0.2}}`."""

    caption: str | None = Field(
        default=None, max_length=20_000, description="Describes the pictures, instead of the captioner."
    )
    price: Number | None = Field(
        default=None, ge=0, le=1e6, description="Probability of a right answer that one second of waiting is worth."
    )
    answer_reserve: Budget | None = Field(
        default=None, description="Number of tokens that are kept for the answer after the reasoning."
    )
    close_loops: StrictBool | None = Field(default=None, description="Close reasoning that repeats itself (default).")
    early_exit: Number | None = Field(
        default=None, gt=0, le=1, description="Close reasoning whose answer no longer changes, at this probability."
    )


class StreamOptions(Fields):
    """The field `stream_options` of OpenAI."""

    neutral = {"continuous_usage_stats": (False,)}
    harmless = frozenset({"include_obfuscation"})
    include_usage: StrictBool | None = None


class ThinkingSwitch(Fields):
    """The field `thinking` of Anthropic; `auto` is ByteDance's name for `adaptive`."""

    neutral = {"clear_thinking": (True,)}
    type: Literal["enabled", "disabled", "adaptive", "auto"] = Field(description="adaptive, auto: the router decides.")
    budget_tokens: Budget | None = None


class ReasoningSwitch(Fields):
    """The field `reasoning` of OpenRouter; without `effort` and `enabled`, `max_tokens` turns reasoning on."""

    effort: Effort | None = None
    max_tokens: Budget | None = None
    enabled: StrictBool | None = None
    exclude: StrictBool | None = Field(None, description="True: omit the reasoning from the reply.")


class TemplateKwargs(Fields):
    """The arguments that vLLM, SGLang and llama.cpp pass to the chat template."""

    neutral = {
        "add_vision_id": (False,), "preserve_thinking": (False,), "clear_thinking": (True,), "tools": ([],),
        "documents": ([],),
    }  # fmt: skip
    add_generation_prompt: StrictBool | None = None
    continue_final_message: StrictBool | None = None
    enable_thinking: StrictBool | None = None
    thinking: StrictBool | None = None
    reasoning_effort: Effort | None = None
    thinking_budget: Budget | None = None


class CustomParams(Fields):
    """The field `custom_params` of SGLang."""

    thinking_budget: Budget | None = None


class StructuredOutputs(Fields):
    """The field `structured_outputs` of vLLM."""

    neutral = {
        "grammar": (), "structural_tag": (), "json_object": (False,), "whitespace_pattern": (),
        "disable_fallback": (False, True), "disable_any_whitespace": (False,),
        "disable_additional_properties": (False,),
    }  # fmt: skip
    json_: dict[str, Any] | str | None = Field(None, alias="json", description="A JSON schema, or its text.")
    regex: str | None = None
    choice: Texts | None = None


def _outermost(names: Iterable[str]) -> list[str]:
    """The names, sorted, without those inside of an object that is among them."""
    all = {*names}
    return sorted(name for name in all if name.partition(".")[0] == name or name.partition(".")[0] not in all)


class QuestionFields(Fields):
    """A request that is answered, in the form of any API.

    Attributes:
        of_reasoning: Fields that have no effect on an answer without reasoning.
    """

    of_reasoning: ClassVar[tuple[str, ...]] = ()

    def ignored(self, options: RequestOptions) -> list[str]:
        """Names of the sent fields that have no effect, also because of other fields.

        Args:
            options: The options of the request.

        Returns:
            The names. Those inside of an object follow a dot.
        """
        sent = dict(self.values("messages", "tools", "tool_choice", "stream"))
        last, choice = (sent["messages"] or [{}])[-1], sent["tool_choice"]
        mode: Mode | None = "instruct" if last.get("role") == "assistant" else options.mode  # it is continued
        without_effect = list[str]()
        if mode == "instruct":
            without_effect += [*self.of_reasoning, *(f"vlroute.{name}" for name in OF_REASONING)]
        if not sent["stream"]:
            without_effect.append("stream_options")
        if not sent["tools"]:
            without_effect += ["tool_choice", "parallel_tool_calls"]
        elif choice == "none" or getattr(choice, "type", None) == "none":
            without_effect += ["parallel_tool_calls", "tool_choice.disable_parallel_tool_use"]
        if response_format(options.generation) is not None:
            without_effect.append("ignore_eos")
        found = [name for name, value in self.values(*without_effect) if value is not None]
        return _outermost([*self.unread(), *found])


class ChatRequest(QuestionFields):
    """OpenAI's chat completion request, and fields that other servers add to it."""

    of_reasoning = (
        "thinking_budget", "thinking_token_budget", "thinking_budget_tokens", "reasoning_budget",
        "custom_params.thinking_budget", "chat_template_kwargs.thinking_budget", "thinking.budget_tokens",
        "reasoning.max_tokens",
    )  # fmt: skip
    neutral = {
        # OpenAI
        "functions": ([],), "modalities": (["text"],),
        "function_call": ("none", "auto"), "verbosity": ("medium",), "audio": (), "prediction": (), "suffix": (),
        "web_search_options": (), "moderation": (),
        # vLLM and SGLang
        "best_of": (1,), "use_beam_search": (False,), "length_penalty": (1,), "include_stop_str_in_output": (False,),
        "no_stop_trim": (False,), "skip_special_tokens": (True,), "spaces_between_special_tokens": (True,),
        "prompt_logprobs": (), "allowed_token_ids": (), "logits_processors": ([],), "echo": (False,),
        "add_special_tokens": (False,),
        "documents": ([],), "chat_template": (), "mm_processor_kwargs": ({},), "media_io_kwargs": ({},),
        "guided_grammar": (), "guided_json_object": (False,), "guided_decoding_backend": (),
        "guided_whitespace_pattern": (), "structural_tag": (), "ebnf": (), "truncate_prompt_tokens": (),
        "vllm_xargs": ({},), "return_token_ids": (False,), "return_tokens_as_token_ids": (False,),
        "return_hidden_states": (False,),
        "separate_reasoning": (True,), "stream_reasoning": (True,), "reasoning_format": ("parsed", "deepseek", "auto"),
        # llama.cpp and Ollama
        "typical_p": (1,), "mirostat": (0,), "dynatemp_range": (0,), "dry_multiplier": (0,), "xtc_probability": (0,),
        "grammar": ("",), "timings_per_token": (False,), "options": ({},),
    }  # fmt: skip
    harmless = frozenset({
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
        "prompt_cache_options", "prompt_cache_retention", "cache_prompt", "cache_salt", "request_id", "rid", "priority",
        "session_id", "chat_id", "keep_alive",
    })  # fmt: skip
    model: Model | None = None
    messages: list[dict[str, Any]] = Field(
        min_length=1, max_length=2000, description="Messages of OpenAI's API, with pictures as data URIs."
    )
    tools: Objects | None = Field(None, description="Functions that the model may call.")
    continue_final_message: StrictBool | None = Field(
        None,
        description="True: the last message is an answer that is continued. That is the default for such messages.",
    )
    add_generation_prompt: StrictBool | None = Field(None, description="The opposite of continue_final_message.")
    tool_choice: str | dict[str, Any] | None = Field(
        None,
        description="'auto'; 'none': no tools are offered; 'required': the answer consists of calls; a function; or "
        "OpenAI's allowed_tools.",
    )
    parallel_tool_calls: StrictBool | None = Field(None, description="False: the answer ends after one call.")
    vlroute: RouterOptions | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: Count | None = Field(None, description="Reasoning included.")
    max_tokens: Count | None = Field(None, description="Older name of max_completion_tokens.")
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, gt=0, le=1)
    top_k: TopK | None = Field(None, description="-1 and 0: all tokens.")
    min_p: Number | None = Field(None, ge=0, le=1)
    presence_penalty: Number | None = Field(None, ge=-2, le=2)
    frequency_penalty: Number | None = Field(None, ge=-2, le=2)
    repetition_penalty: Number | None = Field(None, gt=0.01, le=10)
    repeat_penalty: Number | None = Field(None, gt=0.01, le=10, description="llama.cpp's name of repetition_penalty.")
    seed: Seed | None = None
    stop: str | Texts | None = Field(None, description="Up to 16 strings; they end the answer, not the reasoning.")
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_ITEMS), at_most(MAX_ITEMS)] | None = Field(
        None, description="For token ids, what is added to their scores, from -100 to 100."
    )
    n: Count | None = Field(
        None, description=f"Number of answers, at most {MAX_CHOICES}. The router decides once; the prompt is read once."
    )
    logprobs: StrictBool | None = Field(
        None, description="True: the log-probability of each token of the answer, not of the reasoning."
    )
    top_logprobs: TopLogprobs | None = Field(
        None, description="How many of the most probable tokens logprobs names at each place."
    )
    min_tokens: Budget | None = Field(None, description="No end token before this many tokens, reasoning included.")
    ignore_eos: StrictBool | None = Field(
        None, description="True: the end tokens of the model do not end the answer. No effect with a response_format."
    )
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_ITEMS)] | None = Field(
        None,
        description="Further tokens that end the answer. They are excluded until it has visible text.",
    )
    bad_words: Annotated[list[Word], Field(max_length=MAX_ITEMS), AfterValidator(_short)] | None = Field(
        None,
        description=f"Texts whose usual tokens are never generated, at most {MAX_WORDS} characters together.",
    )

    response_format: dict[str, Any] | None = Field(
        None,
        description="OpenAI's `json_object`, `json_schema` or `text`. It constrains the answer, not the reasoning.",
    )
    structured_outputs: StructuredOutputs | None = Field(None, description="vLLM's form of response_format.")
    guided_json: dict[str, Any] | str | None = Field(None, description="vLLM's older form: a JSON schema.")
    guided_regex: str | None = Field(None, description="vLLM's older form: a regular expression.")
    guided_choice: Texts | None = Field(None, description="vLLM's older form: the answer is one of these.")
    json_schema: dict[str, Any] | str | None = Field(None, description="SGLang's and llama.cpp's form: a JSON schema.")
    regex: str | None = Field(None, description="SGLang's form: a regular expression.")
    format: dict[str, Any] | str | None = Field(None, description="Ollama's form: 'json' or a JSON schema.")

    reasoning_effort: Effort | None = Field(
        None, description="'none': Instruct. A level: Thinking with a budget of tokens. Absent: the router decides."
    )
    enable_thinking: StrictBool | None = None
    think: StrictBool | Effort | None = None
    thinking: StrictBool | ThinkingSwitch | None = None
    reasoning: ReasoningSwitch | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    include_reasoning: StrictBool | None = Field(None, description="False: omit the reasoning from the reply.")
    thinking_budget: Budget | Literal["auto"] | None = Field(
        None,
        description="Maximum number of reasoning tokens; overrides the effort. It does not choose the mode. 'auto': as "
        "many as are worth their seconds.",
    )
    thinking_token_budget: Budget | None = Field(None, description="vLLM's name of thinking_budget.")
    thinking_budget_tokens: Budget | None = Field(None, description="llama.cpp's name of thinking_budget.")
    reasoning_budget: Budget | None = Field(None, description="NVIDIA's name of thinking_budget.")
    custom_params: CustomParams | None = None

    def options(
        self, settings: ServerSettings, namespace: str, names: Mapping[str, Mode | None] = NO_NAMES
    ) -> RequestOptions:
        """Convert the fields to options for the router.

        Args:
            settings: Limits of the server.
            namespace: Namespace of the caller's caches.
            names: See `mode_of`.

        Returns:
            The options.

        Raises:
            APIError: 400 for fields that contradict each other or exceed a limit, 404 for an unknown model.
        """
        self._check_continued()
        self._check_choices(settings)
        mode, budget = self._mode(names), self._budget()
        given = {
            name: value
            for name in ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "seed")
            if (value := getattr(self, name)) is not None
        }
        given["repetition_penalty"] = agreed(self.values("repetition_penalty", "repeat_penalty"))
        given["stop"] = self._stops()
        given |= {"stop_token_ids": self.stop_token_ids or None, "bad_words": self.bad_words or None}
        given["eos_token_id"] = -1 if self.ignore_eos else None
        given["logit_bias"] = self._bias()
        if self.top_logprobs and not self.logprobs:
            raise APIError(400, "top_logprobs needs logprobs: true", "contradiction", "top_logprobs")
        given |= {"logprobs": self.logprobs, "top_logprobs": self.top_logprobs}
        given["max_new_tokens"], given["min_new_tokens"] = self._max_tokens(settings), self.min_tokens
        if (self.min_tokens or 0) > (most := given["max_new_tokens"] or settings.max_tokens):
            raise APIError(400, f"min_tokens must be at most {most} here", "limit_exceeded", "min_tokens")
        given["thinking_budget"] = budget
        given["response_format"] = self._format()
        extra = self.vlroute or RouterOptions()
        given |= {name: getattr(extra, name) for name in OF_REASONING}
        generation = {name: value for name, value in given.items() if value is not None}
        return RequestOptions(extra.caption, mode, extra.price, None, generation, namespace)

    def offered_tools(self) -> Tools | None:
        """The tools that the model may call. InputError if they are invalid."""
        return checked_tools(self.tools, self.tool_choice, self.parallel_tool_calls)

    @property
    def has_format(self) -> bool:
        """Whether a field constrains the form of the answer. Checking it can take a second."""
        return any(getattr(self, name) is not None for name in _FORMATS)

    def ignored_by_decision(self, options: RequestOptions) -> list[str]:
        """Like `ignored`, if the request is decided on and not answered.

        Args:
            options: The options of the request.

        Returns:
            The names.
        """
        return _outermost([*self.ignored(options), *(self.model_fields_set - _OF_DECISION)])

    @property
    def hides_reasoning(self) -> bool:
        """Whether the reply contains only the answer."""
        return self.include_reasoning is False or bool(self.reasoning and self.reasoning.exclude)

    def _mode(self, names: Mapping[str, Mode | None]) -> Mode | None:
        modes: list[tuple[str, Mode | None]] = [("model", None if self.model is None else mode_of(self.model, names))]
        for name, value in self.values(
            "reasoning_effort", "think", "reasoning.effort", "chat_template_kwargs.reasoning_effort", "enable_thinking",
            "thinking", "thinking.type", "reasoning.enabled", "chat_template_kwargs.enable_thinking",
            "chat_template_kwargs.thinking",
        ):  # fmt: skip
            if value is False or value == "none" or value == "disabled":
                modes.append((name, "instruct"))
            elif value is True or value == "enabled" or (isinstance(value, str) and value in EFFORTS):
                modes.append((name, "thinking"))
        reasoning = self.reasoning
        if reasoning and reasoning.max_tokens is not None and reasoning.effort is None and reasoning.enabled is None:
            modes.append(("reasoning.max_tokens", "thinking"))
        return agreed(modes)

    def _budget(self) -> int | str | None:
        """Maximum number of reasoning tokens: the given budget, else that of the effort."""
        budget = agreed(self.values(*self.of_reasoning))
        names = ("reasoning_effort", "think", "reasoning.effort", "chat_template_kwargs.reasoning_effort")
        effort = agreed((name, value) for name, value in self.values(*names) if isinstance(value, str))
        return EFFORTS.get(effort or "") if budget is None else budget

    def _check_continued(self) -> None:
        """APIError 400 if a switch contradicts the role of the last message."""
        for name, value in self.values(
            "continue_final_message", "add_generation_prompt", "chat_template_kwargs.continue_final_message",
            "chat_template_kwargs.add_generation_prompt",
        ):  # fmt: skip
            if value is None:
                continue
            continues = self.messages[-1].get("role") == "assistant"
            if value == (continues is name.endswith("continue_final_message")):
                continue
            last = "an answer, which is continued" if continues else "no answer that could be continued"
            raise APIError(400, f"{name} does not fit: the last message is {last}", "contradiction", name)

    def _check_choices(self, settings: ServerSettings) -> None:
        """APIError 400 if `n` exceeds the limit; each answer needs a place of its own."""
        most = min(MAX_CHOICES, settings.max_admitted)
        if self.n is not None and self.n > most:
            raise APIError(400, f"n must be at most {most} here", "limit_exceeded", "n")

    def _stops(self) -> list[str] | None:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop
        if stops and (len(stops) > 16 or not all(0 < len(stop) <= 1000 for stop in stops)):
            raise APIError(400, "stop must be up to 16 strings of 1 to 1000 characters", "invalid_value", "stop")
        return stops

    def _bias(self) -> dict[int, float] | None:
        """`logit_bias`, whose keys are strings in JSON."""
        if any(not TOKEN_ID.fullmatch(token) for token in self.logit_bias or ()):
            raise APIError(400, 'the keys of logit_bias must be token ids, such as "42"', "invalid_value", "logit_bias")
        return {int(token): bias for token, bias in (self.logit_bias or {}).items()} or None

    def _format(self) -> ResponseFormat | None:
        """What constrains the answer; several fields must agree."""
        outputs = self.structured_outputs
        given: list[tuple[str, Any, Callable[[str, Any], ResponseFormat]]] = [
            ("response_format", self.response_format, read_format),
            ("structured_outputs.json", outputs and outputs.json_, json_schema),
            ("structured_outputs.regex", outputs and outputs.regex, regex),
            ("structured_outputs.choice", outputs and outputs.choice, choice),
            ("guided_json", self.guided_json, json_schema),
            ("guided_regex", self.guided_regex, regex),
            ("guided_choice", self.guided_choice, choice),
            ("json_schema", self.json_schema, json_schema),
            ("regex", self.regex, regex),
            ("format", self.format or None, _ollama_format),
        ]
        return agreed([(name, read_form(name, value, read)) for name, value, read in given])

    def _max_tokens(self, settings: ServerSettings) -> int | None:
        tokens = agreed(self.values("max_completion_tokens", "max_tokens"))
        if tokens is not None and tokens > settings.max_tokens:
            raise APIError(
                400, f"an answer may have at most {settings.max_tokens} tokens here, {tokens} were asked for",
                "limit_exceeded", "max_completion_tokens" if self.max_completion_tokens else "max_tokens",
            )  # fmt: skip
        return tokens


class FeedbackRequest(Fields):
    """The body of a feedback request: how right an answer was."""

    id: str = Field(max_length=200, description="`id` of an answer in any of the APIs, with or without its prefix.")
    correct: StrictBool | Annotated[Number, Field(ge=0, le=1)] = Field(
        description="True, false, or a number from 0 to 1."
    )
    comment: str | None = Field(None, max_length=20_000)


class PredictRequest(Fields):
    """The body of `/api/predict`, as simple pages for Qwen3-VL send it."""

    harmless = frozenset({"fn_index", "session_hash", "event_data"})  # sent by Gradio's pages
    data: list[str | None] = Field(
        min_length=2, max_length=3, description="A picture (base64, a data URI, or null), the prompt, and a model."
    )


def agreed(values: Iterable[tuple[str, T | None]]) -> T | None:
    """The one value of several fields with the same meaning.

    Args:
        values: Each field with its value; None: it is absent.

    Returns:
        The value; None if all are absent.

    Raises:
        APIError: 400 if two of them differ.
    """
    given = [(name, value) for name, value in values if value is not None]
    for name, value in given:
        first, expected = given[0]
        if value != expected:
            raise APIError(
                400, f"{first} and {name} contradict each other: one asks for {expected!r}, the other for {value!r}; "
                "leave one of them out", "contradiction", name,
            )  # fmt: skip
    return given[0][1] if given else None


#: Fields that have an effect on a decision.
_OF_DECISION = frozenset({
    "model", "messages", "tools", "tool_choice", "vlroute", "reasoning_effort", "enable_thinking", "think", "thinking",
    "reasoning", "chat_template_kwargs", "continue_final_message", "add_generation_prompt",
})  # fmt: skip
#: Fields that constrain the form of the answer.
_FORMATS = (
    "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "json_schema", "regex",
    "format",
)  # fmt: skip


def _ollama_format(name: str, value: Any) -> ResponseFormat:
    return read_format(name, {"type": "json_object"}) if value == "json" else json_schema(name, value)


def read_form(name: str, value: Any, read: Callable[[str, Any], ResponseFormat]) -> ResponseFormat | None:
    """Check a field that constrains the form of an answer.

    Args:
        name: Name of the field.
        value: Its value.
        read: Makes a format of name and value.

    Returns:
        The format; None if the field is absent.

    Raises:
        APIError: 400 for an invalid format; it names the field.
    """
    try:
        return None if value is None else read(name, value)
    except SettingsError as error:
        raise APIError(400, error.public, "invalid_format", name) from error
    except MissingExtraError as error:
        raise APIError(
            400, f"{name} is not supported here, because this server runs without the extra 'structured'; leave it out",
            "unsupported_parameter", name,
        ) from error  # fmt: skip


def mode_of(model: str, names: Mapping[str, Mode | None] = NO_NAMES) -> Mode | None:
    """The mode that the name of a model stands for.

    Args:
        model: The field `model` of a request.
        names: Names of the models that are served, with the mode that each of them forces.

    Returns:
        The mode; None for "auto", and for a model with both modes.

    Raises:
        APIError: 404 for any other name.
    """
    current_request().model = model
    name = model.lower()
    if name == "auto":
        return None
    if name not in MODES and (served := [mode for known, mode in names.items() if known.lower() == name]):
        return served[0]
    for mode in MODES:
        if name == mode or name.endswith(f"-{mode}"):
            return mode
    raise APIError(
        404, f"there is no model {model[:80]!r} here; expected {', '.join(map(repr, ('auto', *MODES, *names)))}",
        "model_not_found", "model",
    )  # fmt: skip
