"""Traces and metrics of the requests for OpenTelemetry, configured by its standard environment variables."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from vlroute import __version__
from vlroute.errors import MissingExtraError
from vlroute.serving.metrics import token_seconds
from vlroute.serving.request_log import STEPS, RequestRecord
from vlroute.types import Answer

log = logging.getLogger("vlroute")

CLOSE_SECONDS = 5.0
_EXPORTERS = ("otlp", "console", "none")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
#: Limits of the histograms, from the semantic conventions for generative AI.
_DURATIONS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_OUTPUT_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = tuple(4**power for power in range(14))


def telemetry_from_environment(environment: Mapping[str, str] = os.environ) -> Telemetry | None:
    """The telemetry that the environment asks for. OpenTelemetry is imported only then.

    Args:
        environment: The variables. Signals are exported if `OTEL_EXPORTER_OTLP_ENDPOINT` or
            `OTEL_EXPORTER_OTLP_{TRACES,METRICS}_ENDPOINT` is set, or as `OTEL_{TRACES,METRICS}_EXPORTER` says.
            OpenTelemetry itself reads the further variables from `os.environ`.

    Returns:
        The telemetry; None if nothing is to be exported.

    Raises:
        ValueError: A variable has a value that is not supported.
        MissingExtraError: The extra otel is not installed.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    traces, metrics = _exporters(environment, "TRACES"), _exporters(environment, "METRICS")
    if not traces and not metrics:
        return None
    if environment.get("OTEL_LOGS_EXPORTER", "none").strip().lower() not in ("", "none"):
        log.warning("OTEL_LOGS_EXPORTER has no effect: the log is written to stderr only")
    try:
        return Telemetry(traces, metrics)
    except ModuleNotFoundError as error:
        raise MissingExtraError(error, "otel") from error


def _exporters(environment: Mapping[str, str], signal: str) -> list[str]:
    """Names of the exporters of a signal, without "none"."""
    name = f"OTEL_{signal}_EXPORTER"
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    default = "otlp" if any(environment.get(endpoint, "").strip() for endpoint in endpoints) else "none"
    names = [one.strip().lower() for one in (environment.get(name, "").strip() or default).split(",")]
    if unknown := [one for one in names if one not in _EXPORTERS]:
        raise ValueError(f"{name} must be {', '.join(_EXPORTERS)} or a list of them, not {unknown[0]!r}")
    names = [one for one in dict.fromkeys(names) if one != "none"]
    protocols = ("OTEL_EXPORTER_OTLP_PROTOCOL", f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL")
    for variable in protocols if "otlp" in names else ():
        if (protocol := environment.get(variable, "").strip()) not in ("", "http/protobuf"):
            raise ValueError(f"{variable} must be http/protobuf, not {protocol!r}")
    return names


class Telemetry:
    """Exports a span and metrics for each request, in threads of OpenTelemetry. Its failures are only logged.

    The spans are made when a request has ended. The providers are not the global ones of OpenTelemetry, so that an
    application in which the server is mounted keeps its own.

    Args:
        traces: Names of the exporters of spans: "otlp", "console".
        metrics: Names of the exporters of metrics.
    """

    def __init__(self, traces: list[str], metrics: list[str]) -> None:
        from opentelemetry import propagate

        # imported for other exporters too: without them the extra is not installed completely
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

        self._extract = propagate.extract
        own = Resource.create({"service.name": "vlroute", "service.version": __version__})
        resource = own.merge(OTELResourceDetector().detect())  # the environment may name the service
        self._tracers, self._meters = TracerProvider(resource=resource), None
        for name in traces:
            self._tracers.add_span_processor(
                BatchSpanProcessor(OTLPSpanExporter() if name == "otlp" else ConsoleSpanExporter())
            )
        self._tracer = self._tracers.get_tracer("vlroute", __version__) if traces else None
        if metrics:
            readers = [
                PeriodicExportingMetricReader(OTLPMetricExporter() if name == "otlp" else ConsoleMetricExporter())
                for name in metrics
            ]
            self._meters = MeterProvider(readers, resource)
            self._create_histograms()

    def _create_histograms(self) -> None:
        assert self._meters is not None
        histogram = self._meters.get_meter("vlroute", __version__).create_histogram
        self._duration = histogram(
            "gen_ai.server.request.duration", "s", "Seconds from the arrival of a request to the end of its response.",
            explicit_bucket_boundaries_advisory=_DURATIONS,
        )  # fmt: skip
        self._first_token = histogram(
            "gen_ai.server.time_to_first_token", "s", "Seconds from the arrival of a request to the first token.",
            explicit_bucket_boundaries_advisory=_FIRST_TOKEN,
        )  # fmt: skip
        self._output_token = histogram(
            "gen_ai.server.time_per_output_token", "s", "Mean seconds of a token after the first one.",
            explicit_bucket_boundaries_advisory=_OUTPUT_TOKEN,
        )  # fmt: skip
        self._usage = histogram(
            "gen_ai.client.token.usage", "{token}", "Tokens of prompts and answers.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )  # fmt: skip

    def export(self, record: RequestRecord) -> None:
        """Export a request that has ended, and set its trace id. Never raises an error.

        Args:
            record: The request. Requests that are polled are left out.
        """
        if record.polled and record.error is None:
            return
        try:
            if self._tracer is not None:
                self._trace(record)
            if self._meters is not None:
                self._measure(record)
        except Exception:
            log.exception("the telemetry of request %s failed", record.id)

    def close(self) -> None:
        """Export what is left, and give up after `CLOSE_SECONDS` if the collector does not answer."""
        ends = [self._tracers.shutdown] if self._meters is None else [self._tracers.shutdown, self._meters.shutdown]
        threads = [threading.Thread(target=end, name="vlroute-telemetry", daemon=True) for end in ends]
        for thread in threads:
            thread.start()
        until = time.monotonic() + CLOSE_SECONDS
        for thread in threads:
            thread.join(max(until - time.monotonic(), 0.0))

    def _trace(self, record: RequestRecord) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        assert self._tracer is not None
        if record.method:
            method = record.method if record.method in _METHODS else "HTTP"
            name, kind = f"{method} {record.route}" if record.route else method, SpanKind.SERVER
        else:
            name, kind = "chat", SpanKind.INTERNAL  # an answer of the web page
        began = record.began_ns
        span = self._tracer.start_span(
            name, self._extract(dict(record.headers)), kind, _span_attributes(record), start_time=began
        )
        if span.get_span_context().trace_flags.sampled:
            record.trace_id = f"{span.get_span_context().trace_id:032x}"
        if record.error_status is not None and record.error_status >= 500:
            span.set_status(Status(StatusCode.ERROR, record.error))
        if record.answer is not None and span.is_recording():
            inside = set_span_in_context(span)
            for step, first, last in _timeline(record.answer, began + int(record.answer_seconds * 1e9)):
                self._tracer.start_span(step, inside, start_time=first).end(last)
        span.end(began + int(record.seconds * 1e9))

    def _measure(self, record: RequestRecord) -> None:
        answer = record.answer
        if answer is None and (record.error is None or record.model is None or record.decision is not None):
            return  # not a request for an answer
        names = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "vlroute"}
        if answer is not None:  # otherwise the model is what a client has written
            names |= {"gen_ai.request.model": record.model or "auto", "gen_ai.response.model": answer.decision.mode}
        failed = {} if record.error is None else {"error.type": record.error}
        self._duration.record(record.seconds, names | failed)
        if answer is None or answer.finish_reason == "cancelled":
            return
        if record.first_token_seconds is not None:
            self._first_token.record(record.first_token_seconds, names)
        if (seconds := token_seconds(answer)) is not None:
            self._output_token.record(seconds, names)
        if answer.usage.prompt_tokens is not None:
            self._usage.record(answer.usage.prompt_tokens, {**names, "gen_ai.token.type": "input"})
        self._usage.record(answer.usage.completion_tokens, {**names, "gen_ai.token.type": "output"})


def _span_attributes(record: RequestRecord) -> dict[str, Any]:
    """Attributes by the semantic conventions for HTTP servers and for generative AI, and those of vlroute."""
    found: dict[str, Any] = {"vlroute.request_id": record.id, "error.type": record.error}
    if record.method:
        found |= {
            "http.request.method": record.method if record.method in _METHODS else "_OTHER",
            "url.path": record.path[:200], "url.scheme": record.scheme, "http.route": record.route,
            "http.response.status_code": record.status,
        }  # fmt: skip
    if record.model is not None or record.answer is not None:
        found["gen_ai.request.model"] = (record.model or "auto")[:200]
    if (decision := record.decision) is not None:
        found |= {
            "vlroute.mode": decision.mode, "vlroute.stage": decision.stage, "vlroute.forced": decision.forced,
            "vlroute.gain": decision.gain,
        }  # fmt: skip
    if (answer := record.answer) is not None:
        used = answer.usage
        found |= {
            "gen_ai.operation.name": "chat", "gen_ai.provider.name": "vlroute", "gen_ai.response.id": answer.id,
            "gen_ai.response.model": answer.decision.mode, "gen_ai.response.finish_reasons": [answer.finish_reason],
            "gen_ai.usage.input_tokens": used.prompt_tokens, "gen_ai.usage.output_tokens": used.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": used.cached_tokens,
            "gen_ai.usage.reasoning.output_tokens": used.thinking_tokens,
        }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def _timeline(answer: Answer, ended: int) -> list[tuple[str, int, int]]:
    """Name, begin and end in nanoseconds of each step of an answer that ended at `ended`.

    Only the durations are known. Caption and decision are placed at the beginning, the other steps before the end.
    """
    lengths = {step: int(getattr(answer.timing, step) * 1e9) for step in STEPS}
    decided = ended - int(answer.timing.total * 1e9) + lengths["caption"] + lengths["decide"]
    found, first = [], ended
    for step in reversed(STEPS):
        last = min(first, decided) if step == "decide" else first
        first = last - lengths[step]
        if lengths[step]:
            found.append((step, first, last))
    return found[::-1]
