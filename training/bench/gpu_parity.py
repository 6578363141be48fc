"""Compares the answers of the engine with those of plain transformers on the same device: tokens and logits."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from PIL import Image
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from training.bench.figure import Figure, Report
from training.bench.real_size import draw_picture
from vlroute import Router
from vlroute.engine.local import scheduler

#: Largest difference of two logits in float32. In bfloat16 the bound is relative, see `compare`.
FLOAT32_BOUND = 1e-4
#: In bfloat16, the difference from float32 may be so many times that of plain transformers in bfloat16.
BFLOAT16_FACTOR = 2.0
NEW_TOKENS = 12
#: Prompt tokens of a chunk, so small that every prompt is read in several chunks.
SMALL_CHUNK = 24
Messages = list[dict[str, Any]]
Key = tuple[int, ...]


class Recorder:
    """The times of all tokens that the scheduler chooses within the block, and their logits if `keep_logits`.

    The public interface returns text and totals only, so the method that chooses tokens is wrapped meanwhile.
    """

    def __init__(self, keep_logits: bool = False) -> None:
        self.keep_logits = keep_logits
        self.times: dict[Any, list[float]] = {}
        self.logits: dict[Any, dict[int, torch.Tensor]] = {}  # by the place of the token in the answer

    def __enter__(self) -> Self:
        original = self._original = scheduler._Lane.sample  # noqa: SLF001 (see above)

        def sample(lane: Any, answers: Sequence[Any], logits: torch.Tensor) -> None:
            if self.keep_logits:
                for one, row in zip(answers, logits.float().cpu(), strict=True):
                    self.logits.setdefault(one, {})[len(one.ids) - one.sampler.prompt_length] = row
            original(lane, answers, logits)
            now = time.perf_counter()
            for one in answers:
                self.times.setdefault(one, []).append(now)

        scheduler._Lane.sample = sample  # type: ignore[assignment]  # noqa: SLF001
        return self

    def __exit__(self, *_: object) -> None:
        scheduler._Lane.sample = self._original  # type: ignore[method-assign]  # noqa: SLF001

    def first_token(self) -> float:
        """When the first token of the only answer was chosen, as `time.perf_counter`."""
        (times,) = self.times.values()
        return times[0]

    def intervals(self) -> list[float]:
        """Seconds between the tokens of each answer."""
        return [b - a for times in self.times.values() for a, b in itertools.pairwise(times)]

    def steady_rate(self) -> float | None:
        """Tokens per second while all answers are being generated; None if there was no such time."""
        begin, end = max(times[0] for times in self.times.values()), min(times[-1] for times in self.times.values())
        if end <= begin:
            return None
        return sum(begin < at <= end for times in self.times.values() for at in times) / (end - begin)


@dataclass(frozen=True, slots=True)
class Case:
    """A question, with a picture or without, and a second question that follows a fixed answer."""

    first: str
    second: str
    picture: Image.Image | None = None

    def messages(self, turn: int) -> Messages:
        """The messages up to the first or second question, as transformers reads them."""
        image = [{"type": "image", "image": self.picture}] if self.picture else []
        found: Messages = [{"role": "user", "content": [*image, {"type": "text", "text": self.first}]}]
        if turn == 2:
            found.append({"role": "assistant", "content": [{"type": "text", "text": "There are 7 of them."}]})
            found.append({"role": "user", "content": [{"type": "text", "text": self.second}]})
        return found

    def ask(self, router: Router, turn: int) -> None:
        settings: dict[str, Any] = {"mode": "instruct", "do_sample": False, "max_new_tokens": NEW_TOKENS}
        if turn == 1:
            router.ask(self.first, self.picture, **settings)
        else:
            router.ask(self.second, history=self.messages(2)[:2], **settings)


def cases(count: int, side: int) -> list[Case]:
    """Different questions of different lengths; every second one has a picture."""
    return [
        Case(
            f"{i}. How many circles are in the picture, and which numbers do you read? " + "Count again. " * (3 * i),
            "And how many squares? " * (i + 1),
            draw_picture(side, 40 + i) if i % 2 == 0 else None,
        )
        for i in range(count)
    ]


@dataclass
class Plain:
    """Plain transformers with the Instruct checkpoint of a folder."""

    folder: Path
    device: str
    dtype: torch.dtype
    inputs: dict[Key, Any] = field(default_factory=dict)
    generated: dict[Key, Key] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model = Qwen3VLForConditionalGeneration.from_pretrained(self.folder, dtype=self.dtype)
        self.model = model.to(self.device).eval()
        self.processor = AutoProcessor.from_pretrained(self.folder)

    @torch.inference_mode()
    def read(self, messages: Messages, generate: bool) -> None:
        """Prepare the inputs of a conversation, and generate its answer if asked to."""
        inputs = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.device)
        key = tuple(inputs["input_ids"][0].tolist())
        self.inputs[key] = inputs
        if generate:
            ids = self.model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)[0, len(key) :]
            self.generated[key] = tuple(ids.tolist())

    @torch.inference_mode()
    def logits(self, key: Key, output: Sequence[int]) -> torch.Tensor:
        """Logits of each token of `output` behind the prompt `key`, read in one pass, float32 on the CPU."""
        inputs = dict(self.inputs[key])
        more = torch.tensor([[*output[:-1]]], dtype=torch.long, device=self.device)
        for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            if name in inputs:
                value = {"input_ids": more, "attention_mask": torch.ones_like(more)}.get(name, torch.zeros_like(more))
                inputs[name] = torch.cat([inputs[name], value.to(inputs[name].dtype)], dim=1)
        self.model.model.rope_deltas = None
        return self.model(**inputs, use_cache=False).logits[0, -len(output) :].float().cpu()


@dataclass(slots=True)
class Found:
    """Differences of the answers that were generated in one way."""

    answers: int = 0
    equal_answers: int = 0
    tokens: int = 0
    equal_tokens: int = 0
    difference: float = 0.0
    plain_difference: float = 0.0

    @property
    def note(self) -> str:
        return (
            f"answers equal to generate in float32: {self.equal_answers} of {self.answers}; "
            f"tokens equal to the best logit in float32: {self.equal_tokens} of {self.tokens}"
        )


def compare(recorder: Recorder, exact: Plain, same: Plain | None) -> Found:
    """Compare all recorded answers with plain transformers in float32, and with `same`, which has the engine's type.

    In bfloat16 two correct implementations differ. What rounding costs is measured on transformers itself: the
    difference between its logits in bfloat16 and in float32.
    """
    found = Found()
    for one, rows in recorder.logits.items():
        key, output = tuple(one.ids[: one.sampler.prompt_length]), one.sampler.output_ids
        if key not in exact.inputs:
            raise RuntimeError("the prompt differs from that of transformers")
        reference, own = exact.logits(key, output), torch.stack([rows[i] for i in range(len(output))])
        if not torch.isfinite(own).all():  # max() below would ignore NaN
            raise RuntimeError("some logits are not finite")
        found.difference = max(found.difference, float((own - reference).abs().max()))
        if same is not None:
            rounded = same.logits(key, output)
            found.plain_difference = max(found.plain_difference, float((rounded - reference).abs().max()))
        found.tokens += len(output)
        found.equal_tokens += sum(a == b for a, b in zip(output, reference.argmax(-1).tolist(), strict=True))
        found.answers += 1
        found.equal_answers += tuple(output) == exact.generated.get(key)
    return found


@contextmanager
def small_chunks() -> Iterator[None]:
    """Prompts are read in small chunks, between the tokens of answers that run."""
    before = scheduler.CHUNK, scheduler.CHUNK_ALONE
    scheduler.CHUNK = scheduler.CHUNK_ALONE = SMALL_CHUNK
    try:
        yield
    finally:
        scheduler.CHUNK, scheduler.CHUNK_ALONE = before


def at_once(works: Sequence[Callable[[], Any]], seconds: float = 60.0) -> None:
    """Run all in threads of their own; raises the first error. TimeoutError if one has not ended in time."""
    errors: list[BaseException] = []

    def run(work: Callable[[], Any]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    if errors:
        raise errors[0]
    if left := sum(thread.is_alive() for thread in threads):
        raise TimeoutError(f"{left} of {len(threads)} requests have no answer after {seconds:.0f} s")


def ways(router: Router, questions: Sequence[Case]) -> Iterator[tuple[str, Callable[[], None], bool]]:
    """Name, work and small chunks of each way to generate the answers."""

    def alone(turn: int) -> None:
        for case in questions:
            at_once([partial(case.ask, router, turn)])

    def together() -> None:
        at_once([partial(case.ask, router, 1) for case in questions])

    def chunked() -> None:
        # short prompts run already when the long ones are read
        works = [partial(case.ask, router, 1) for case in questions]
        at_once([*works, *(partial(case.ask, router, 2) for case in questions)])

    def reused() -> None:
        before = router.prefixes.stats().tokens_reused
        alone(2)
        if router.prefixes.stats().tokens_reused == before:
            raise RuntimeError("no prefix was reused")

    # the second turns follow the first ones, whose keys and values they reuse
    yield "alone", lambda: alone(1), False
    yield "prefix reuse", reused, False
    yield "in a batch", together, False
    yield "chunked prefill", chunked, True


def measure_variant(
    report: Report, label: str, router: Router, questions: Sequence[Case], exact: Plain, same: Plain | None
) -> None:
    """Generate in each way with `router` and report the differences."""
    for way, work, chunks in ways(router, questions):
        if way != "prefix reuse":
            router.prefixes.clear()
        name = f"{label}: {way}"
        with ExitStack() as stack:
            recorder = stack.enter_context(Recorder(keep_logits=True))
            if chunks:
                stack.enter_context(small_chunks())
            try:
                work()
                found = compare(recorder, exact, same)
            except Exception as error:
                report(Figure.of_error(name, error))
                continue
        bound = FLOAT32_BOUND if same is None else BFLOAT16_FACTOR * found.plain_difference
        report(Figure(name, found.difference, "logits", bound, note=found.note))


@dataclass(frozen=True, slots=True)
class Variant:
    """Options of the router."""

    attention: str
    dtype: str
    compile: Literal["auto", "off", "max"]

    def __str__(self) -> str:
        return f"{self.attention}, {self.dtype}, compile={self.compile}"


def variants(pair: str, small: bool, cuda: bool) -> list[Variant]:
    """What is compared. The attention kernels differ most where keys are shared; sampling is that of all pairs."""
    auto, rounded = Variant("sdpa", "float32", "auto"), Variant("sdpa", "bfloat16", "auto")
    off, eager = Variant("sdpa", "float32", "off"), Variant("eager", "float32", "off")
    if small:
        return [auto] if pair == "grouped keys" else [eager, rounded]
    if pair == "pocket" or not cuda:
        return [auto, off, rounded]
    return [
        auto, off, eager, rounded, Variant("sdpa", "bfloat16", "off"), Variant("eager", "float32", "auto"),
        Variant("eager", "bfloat16", "auto"), Variant("flash_attention_2", "bfloat16", "auto"),
        Variant("flex_attention", "float32", "auto"),
    ]  # fmt: skip


def measure_parity(pairs: dict[str, Path], device: str, small: bool, report: Report) -> None:
    """Compare all variants on each pair of `pairs`, by name."""
    torch.backends.cudnn.allow_tf32 = False  # else the patch embedding of the tower is not computed in float32
    for name, folder in pairs.items():
        side = 96 if name == "pocket" else 256
        questions = cases(2 if small else 8, side)
        exact = Plain(folder / "instruct", device, torch.float32)
        rounded = Plain(folder / "instruct", device, torch.bfloat16)
        for case in questions:
            for turn in (1, 2):
                exact.read(case.messages(turn), generate=True)
                rounded.read(case.messages(turn), generate=False)
        for variant in variants(name, small, device.startswith("cuda")):
            label = f"{name}, {variant}"
            try:
                router = Router.from_pretrained(
                    instruct=folder / "instruct", thinking=folder / "thinking", device=device, dtype=variant.dtype,
                    attn_implementation=variant.attention, compile=variant.compile,
                    # the caches of several routers must fit beside each other
                    memory=0.2 if device.startswith("cuda") else None,
                ).load()  # fmt: skip
            except Exception as error:
                report(Figure.of_error(label, error))
                continue
            same = rounded if variant.dtype == "bfloat16" else None
            measure_variant(report, label, router, questions, exact, same)
            router.close()
