"""Metrics of a server, in Prometheus' format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from vlroute.shadow import Shadow
from vlroute.types import MODES, Answer, Closed, judged_mode

#: Limits of the histograms in seconds: a pocket answer takes 0.02 s, long reasoning minutes.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The metrics of one server, with a registry of their own, so that several servers can run in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        self.answers = Counter("vlroute_answers", "Answers.", ["mode", "stage", "forced", "finish_reason"], **made)
        self.closed = Counter(
            "vlroute_reasoning_closed", "Reasoning that was closed before the model did so.", ["reason"], **made
        )
        for reason in get_args(Closed):  # all series exist from the start, so that rates include the first event
            self.closed.labels(reason)
        self.rescued = Counter("vlroute_rescued", "Answers that Instruct gave because Thinking gave none.", **made)
        self.refusals = Counter("vlroute_errors", "Requests that ended in an error.", ["status", "code"], **made)
        self.decisions = Counter("vlroute_decisions", "Decisions without an answer.", ["mode"], **made)
        self.feedback = Counter("vlroute_feedback", "Feedback received.", **made)
        self.seconds = Histogram("vlroute_answer_seconds", "Arrival to last token.", ["mode"], buckets=BUCKETS, **made)
        self.first = Histogram(
            "vlroute_first_token_seconds",
            "Arrival to first token, also of reasoning.",
            ["mode"],
            buckets=BUCKETS,
            **made,
        )
        self.steps = Histogram(
            "vlroute_step_seconds", "Seconds of one step of an answer.", ["mode", "step"], buckets=BUCKETS, **made
        )
        self.tokens = Counter("vlroute_tokens", "Tokens, by kind.", ["mode", "kind"], **made)
        self.running = Gauge("vlroute_requests_running", "Requests admitted and not yet answered.", **made)
        self.waiting = Gauge("vlroute_requests_waiting", "Requests that wait for a free sequence.", ["mode"], **made)

    def answered(self, answer: Answer, seconds: float) -> None:
        """Count an answer. A rescued one counts as an answer of Thinking, whose seconds and tokens it contains.

        Args:
            answer: The answer.
            seconds: Time from the arrival of the request to the end of the answer.
        """
        mode, decision = judged_mode(answer.decision), answer.decision
        self.answers.labels(mode, decision.stage, str(decision.forced).lower(), answer.finish_reason).inc()
        if answer.closed is not None:
            self.closed.labels(answer.closed).inc()
        if decision.rescued:
            self.rescued.inc()
        self.seconds.labels(mode).observe(seconds)
        if answer.usage.completion_tokens:
            self.first.labels(mode).observe(max(seconds - answer.timing.decode, 0.0))
        for step in ("caption", "decide", "vision", "prefill", "decode"):
            self.steps.labels(mode, step).observe(getattr(answer.timing, step))
        used = answer.usage
        for kind, count in {
            "prompt": used.prompt_tokens, "cached": used.cached_tokens, "vision": used.vision_tokens,
            "completion": used.completion_tokens, "thinking": used.thinking_tokens,
        }.items():  # fmt: skip
            self.tokens.labels(mode, kind).inc(count or 0)  # None if an endpoint sent no count

    def refused(self, status: int, code: str) -> None:
        """Count a request that ended in an error."""
        self.refusals.labels(str(status), code).inc()

    def watch_caches(self, read: Callable[[], Mapping[str, Any] | None]) -> None:
        """Export the statistics of the caches.

        Args:
            read: Returns the statistics by name of the cache ("vision", "prefix"); None while no model is loaded.
        """
        self.registry.register(_Caches(read))

    def watch_shadow(self, shadow: Shadow) -> None:
        """Export the counts of a shadow."""
        self.registry.register(_Shadow(shadow))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Shadow(Collector):
    def __init__(self, shadow: Shadow) -> None:
        self.shadow = shadow

    def collect(self) -> Iterator[CounterMetricFamily]:
        stats = self.shadow.stats()
        decisions = CounterMetricFamily(
            "vlroute_shadow_decisions", "Stored decisions of the shadow.", labels=["mode", "shadow_mode"]
        )
        for mode in MODES:
            for shadow_mode in MODES:
                decisions.add_metric([mode, shadow_mode], stats.decisions.get((mode, shadow_mode), 0))
        yield decisions
        for name, text, label, counts in (
            ("errors", "Decisions of the shadow that failed or were not stored.", "step", stats.errors),
            ("labels", "Requests drawn to be answered in both modes.", "result", stats.labels),
        ):
            family = CounterMetricFamily(f"vlroute_shadow_{name}", text, labels=[label])
            for value, count in counts.items():
                family.add_metric([value], count)
            yield family


class _Caches(Collector):
    _COUNTS = ("hits", "evictions", "encodes", "tokens", "tokens_reused", "prompts")

    def __init__(self, read: Callable[[], Mapping[str, Any] | None]) -> None:
        self.read = read

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        found = self.read() or {}
        for name in (*self._COUNTS, "bytes", "items"):
            kind = CounterMetricFamily if name in self._COUNTS else GaugeMetricFamily
            family = kind(f"vlroute_cache_{name}", f"{name} of a cache.", labels=["cache"])
            for cache, stats in found.items():
                if hasattr(stats, name):
                    family.add_metric([cache], getattr(stats, name))
            yield family
