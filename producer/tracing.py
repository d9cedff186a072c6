"""OpenTelemetry traces, off unless OTEL_EXPORTER_OTLP_ENDPOINT is set: a run is a trace.

Messages hold two ids and nothing else, so no context travels in them: the trace's id and that of
its root, the command that opened the run, follow from the run's id, which everybody has.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from models.errors import Misconfigured
from models.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.id_generator import IdGenerator

_DELAY_MS = 1000


@contextmanager
def command(settings: Settings, name: str, run_id: str) -> Iterator[None]:
    """The root of a run's trace, for the time of the block: the command that opened the run."""
    if not settings.otlp_endpoint:
        yield
        return
    provider = _provider(_ids(run_id))
    try:
        with provider.get_tracer("migration").start_as_current_span(name) as span:
            span.set_attribute("migration.run", run_id)
            yield
    finally:
        provider.shutdown()


@contextmanager
def task(settings: Settings, name: str, run_id: str, **attributes: Any) -> Iterator[dict[str, Any]]:
    """A task of the run, below its root; what the block puts into the dict becomes attributes."""
    found: dict[str, Any] = {}
    if not settings.otlp_endpoint:
        yield found
        return
    from opentelemetry import trace

    ids = _ids(run_id)
    root = trace.SpanContext(
        ids.generate_trace_id(),
        ids.generate_span_id(),
        is_remote=True,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
    )
    parent = trace.set_span_in_context(trace.NonRecordingSpan(root))
    with _of_process().get_tracer("migration").start_as_current_span(name, parent) as span:
        try:
            yield found
        finally:
            span.set_attributes({"migration.run": run_id} | attributes | found)


def flush() -> None:
    """Send what was not sent yet: this process ends. Does nothing where nothing was traced."""
    if _of_process.cache_info().currsize:
        _of_process().shutdown()


def require(settings: Settings) -> None:
    """Raise Misconfigured where traces are asked for, and cannot be made."""
    if not settings.otlp_endpoint:
        return
    try:
        importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ModuleNotFoundError:
        raise Misconfigured(
            "OTEL_EXPORTER_OTLP_ENDPOINT: OpenTelemetry is not installed",
            hint="Install it: pip install 'dashboard-migration[tracing]', or unset the variable.",
        ) from None


@cache
def _of_process() -> TracerProvider:
    """Made at the first span: the thread that sends would not survive the fork of a worker."""
    return _provider()


def _provider(ids: IdGenerator | None = None) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": "dashboard-migration"})
    # The last spans are sent by `shutdown`, which a command or a worker's process calls itself.
    provider = TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)
    # The exporter reads the endpoint, headers and certificates from OTEL_EXPORTER_OTLP_*.
    sender = BatchSpanProcessor(OTLPSpanExporter(timeout=5), schedule_delay_millis=_DELAY_MS)
    provider.add_span_processor(sender)
    return provider


def _ids(run_id: str) -> IdGenerator:
    from opentelemetry.sdk.trace.id_generator import IdGenerator

    digest = hashlib.sha256(run_id.encode()).digest()

    class OfRun(IdGenerator):
        """The ids of a run's trace and of its root."""

        def generate_trace_id(self) -> int:
            return int.from_bytes(digest[:16])

        def generate_span_id(self) -> int:
            return int.from_bytes(digest[16:24])

    return OfRun()
