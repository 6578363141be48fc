"""Metrics of a server, in Prometheus' format."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    Metric,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from vlroute import __version__
from vlroute.errors import StoreError
from vlroute.learned import MEASURING, Action, LearningHistory
from vlroute.serving.request_log import RequestRecord
from vlroute.shadow import Shadow
from vlroute.store import Store
from vlroute.types import MODES, Answer, Closed, judged_mode

#: Limits of the histograms in seconds: a pocket answer takes 0.02 s, long reasoning minutes.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
#: Limits for the seconds of one token: 0.001 s for a pocket model, 0.2 s for a large one under load.
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1)


class _Registry(CollectorRegistry):
    """Without the series `_created`, which double the number of series and which no query here uses.

    `prometheus_client.disable_created_metrics` would change all registries of the process.
    """

    def collect(self) -> Iterator[Metric]:
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class Metrics:
    """The metrics of one server, with a registry of their own, so that several servers can run in one process."""

    def __init__(self) -> None:
        self.registry = _Registry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        made: dict[str, Any] = {"registry": self.registry}
        #: The series of a metric with these labels. `labels` itself takes a lock and converts the labels.
        self._series = cache(lambda metric, *labels: metric.labels(*labels))
        self.requests = Counter("vlroute_requests", "Requests that have ended.", ["route", "mode", "status"], **made)
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
        self.expected = Counter(
            "vlroute_expected_correct_answers",
            "Answers that are expected to be correct, if one mode gives all of them, and as routed.",
            ["policy"],
            **made,
        )
        self.seconds = Histogram("vlroute_answer_seconds", "Arrival to last token.", ["mode"], buckets=BUCKETS, **made)
        self.first = Histogram(
            "vlroute_first_token_seconds",
            "Arrival to first token, also of reasoning.",
            ["mode"],
            buckets=BUCKETS,
            **made,
        )
        self.queue = Histogram("vlroute_queue_seconds", "Wait for a free sequence.", ["mode"], buckets=BUCKETS, **made)
        self.token = Histogram(
            "vlroute_output_token_seconds",
            "Mean seconds of a token of an answer after the first one.",
            ["mode"],
            buckets=TOKEN_BUCKETS,
            **made,
        )
        self.steps = Histogram(
            "vlroute_step_seconds", "Seconds of one step of an answer.", ["mode", "step"], buckets=BUCKETS, **made
        )
        self.tokens = Counter("vlroute_tokens", "Tokens, by kind.", ["mode", "kind"], **made)
        self.running = Gauge("vlroute_requests_running", "Requests admitted and not yet answered.", **made)
        self.queued = Gauge("vlroute_requests_queued", "Admitted requests that wait for others to end.", **made)
        self.waiting = Gauge("vlroute_requests_waiting", "Requests that wait for a free sequence.", ["mode"], **made)
        self.state = Gauge("vlroute_state", "1 for the state of the server, 0 for the other ones.", ["state"], **made)
        versions = {"version": __version__, "python_version": platform.python_version()}
        for package in ("torch", "transformers"):
            try:
                versions[f"{package}_version"] = version(package)
            except PackageNotFoundError:
                versions[f"{package}_version"] = ""
        Info("vlroute_build", "Versions of the server.", **made).info(versions)

    def answered(self, answer: Answer, seconds: float, first_token_seconds: float | None) -> None:
        """Count an answer. A rescued one counts as an answer of Thinking, whose seconds and tokens it contains.

        Args:
            answer: The answer.
            seconds: Time from the arrival of the request to the end of the answer.
            first_token_seconds: Time from the arrival to the first token; None if there is none.
        """
        series, mode, decision = self._series, judged_mode(answer.decision), answer.decision
        series(self.answers, mode, decision.stage, str(decision.forced).lower(), answer.finish_reason).inc()
        expected: dict[str, float] = {"instruct": decision.p_instruct, "thinking": decision.p_thinking}
        for policy, probability in (*expected.items(), ("router", expected[mode])):
            series(self.expected, policy).inc(probability)
        if answer.closed is not None:
            series(self.closed, answer.closed).inc()
        if decision.rescued:
            self.rescued.inc()
        series(self.seconds, mode).observe(seconds)
        if first_token_seconds is not None:
            series(self.first, mode).observe(first_token_seconds)
        if (seconds_per_token := token_seconds(answer)) is not None:
            series(self.token, mode).observe(seconds_per_token)
        series(self.queue, mode).observe(answer.timing.queue)
        for step in ("caption", "decide", "vision", "prefill", "decode"):
            series(self.steps, mode, step).observe(getattr(answer.timing, step))
        used = answer.usage
        for kind, count in {
            "prompt": used.prompt_tokens, "cached": used.cached_tokens, "vision": used.vision_tokens,
            "completion": used.completion_tokens, "thinking": used.thinking_tokens,
        }.items():  # fmt: skip
            series(self.tokens, mode, kind).inc(count or 0)  # None if an endpoint sent no count

    def ended(self, record: RequestRecord) -> None:
        """Count a request that has ended, unless its endpoint is polled and it was not refused."""
        if record.polled and record.error is None:
            return
        mode = record.decision.mode if record.decision else "none"
        status = record.error_status or record.status or 200
        self._series(self.requests, record.route or "none", mode, str(status)).inc()

    def refused(self, status: int, code: str) -> None:
        """Count a request that ended in an error."""
        self._series(self.refusals, str(status), code).inc()

    def watch_caches(self, read: Callable[[], Mapping[str, Any] | None]) -> None:
        """Export the statistics of the caches.

        Args:
            read: Returns the statistics by name of the cache ("vision", "prefix"); None while no model is loaded.
        """
        self.registry.register(_Caches(read))

    def watch_shadow(self, shadow: Shadow) -> None:
        """Export the counts of a shadow."""
        self.registry.register(_Shadow(shadow))

    def watch_store(self, store: Store) -> None:
        """Export how often a store failed."""
        self.registry.register(_StoreFailures(store))

    def watch_learner(self, history: LearningHistory) -> None:
        """Export what `vlroute learn` did, and the drift that it measured."""
        self.registry.register(_Learner(history))

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics.

        Args:
            accept: The header Accept of the request: Prometheus asks for OpenMetrics.

        Returns:
            The metrics in Prometheus' text format or as OpenMetrics, and the content type.
        """
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # versions in the header that are no numbers
            encode, content_type = choose_encoder("")
        return encode(self.registry), content_type


def token_seconds(answer: Answer) -> float | None:
    """Mean seconds of a token after the first one; None if there is no such token."""
    further = answer.usage.completion_tokens - 1
    return answer.timing.decode / further if further > 0 else None


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


class _Learner(Collector):
    def __init__(self, history: LearningHistory) -> None:
        self.history = history

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        try:
            latest, counts = self.history.latest(), self.history.counts()
        except StoreError:  # counted as an error of the store
            return
        if latest is None:
            return
        steps = CounterMetricFamily("vlroute_learner_steps", "Steps of vlroute learn.", labels=["action"])
        for action in get_args(Action):
            steps.add_metric([action.replace(" ", "_")], counts.get(action, 0))
        yield steps
        text = "Time of the last step of vlroute learn, in seconds since 1970."
        yield GaugeMetricFamily("vlroute_learner_last_step_timestamp_seconds", text, value=latest.created)
        found = self.history.events(1, *MEASURING)
        details = found[0].details if found else {}
        if "ratings" in details:
            text = "Ratings in the store from which vlroute learn learns."
            yield GaugeMetricFamily("vlroute_learner_ratings", text, value=details["ratings"])
        drift = GaugeMetricFamily("vlroute_learner_drift", "Drift of recent requests.", labels=["quantity"])
        for quantity, value in details.get("drift", {}).items():
            if isinstance(value, float):
                drift.add_metric([quantity], value)
        yield drift


class _StoreFailures(Collector):
    def __init__(self, store: Store) -> None:
        self.store = store

    def collect(self) -> Iterator[CounterMetricFamily]:
        text = "Answers, responses, feedback and counts that could not be read or written."
        family = CounterMetricFamily("vlroute_store_errors", text, labels=["operation"])
        for verb, count in self.store.failures().items():
            family.add_metric([{"read": "read", "written": "write"}[verb]], count)
        yield family


class _Caches(Collector):
    #: Help texts by the name of the metric.
    _COUNTS: ClassVar[dict[str, str]] = {
        "hits": "Requested entries that were found in a cache.",
        "evictions": "Entries that were removed from a cache.",
        "encodes": "Pictures and videos that were encoded.",
        "tokens": "Tokens of all prompts that were looked up.",
        "reused_tokens": "Tokens of prompts that were found.",
        "prompts": "Prompts that were looked up.",
    }
    _SIZES: ClassVar[dict[str, str]] = {"bytes": "Size of a cache.", "items": "Entries of a cache."}
    #: Attributes of the statistics that have another name.
    _ATTRIBUTES: ClassVar[dict[str, str]] = {"reused_tokens": "tokens_reused"}

    def __init__(self, read: Callable[[], Mapping[str, Any] | None]) -> None:
        self.read = read

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        found = self.read() or {}
        for name, text in (self._COUNTS | self._SIZES).items():
            kind = CounterMetricFamily if name in self._COUNTS else GaugeMetricFamily
            family = kind(f"vlroute_cache_{name}", text, labels=["cache"])
            attribute = self._ATTRIBUTES.get(name, name)
            for which, stats in found.items():
                if hasattr(stats, attribute):
                    family.add_metric([which], getattr(stats, attribute))
            yield family
