"""Traces as a collector gets them, over HTTP and in OpenTelemetry's own format."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from sqlalchemy import text

from producer.demo import sample
from tests.acceptance.conftest import Product
from tests.integration.test_probing import closed_port
from tests.wait import PATIENCE_SECONDS

OFF = "import sys; sys.modules['opentelemetry'] = None"


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """The address of what takes traces for the time of the block, and the spans that it got."""
    spans: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = self.rfile.read(length)
            assert self.path == "/v1/traces"
            if self.headers.get("Content-Encoding") is None:
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        spans.extend(scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", spans
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


@pytest.fixture
def school(product: Product) -> Product:
    with product.engine.begin() as connection:
        sample.load(connection, 300)
    return product


def test_a_run_is_one_trace_from_the_command_to_every_batch(school: Product) -> None:
    with collector() as (address, spans):
        school.environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = address
        with school.worker() as worker:
            ended = school.run("enqueue-all", "--wait", "--json")
            assert ended.status == 3, ended.err
            # It sends what it still has when it is told to stop.
            worker.terminate()
            worker.wait(30)
    run_id = ended.json["run_id"]
    assert {attributes(span)["migration.run"] for span in spans} == {run_id}
    assert len({span.trace_id for span in spans}) == 1
    (root,) = (span for span in spans if not span.parent_span_id)
    assert root.name == "enqueue-all"
    assert {span.parent_span_id for span in spans if span is not root} == {root.span_id}
    done = [span for span in spans if attributes(span).get("migration.outcome") == "done"]
    with school.engine.connect() as connection:
        found = connection.execute(text("SELECT id FROM migration.batches WHERE state = 'done'"))
        batches = set(found.scalars())
    assert sorted(attributes(span)["migration.batch"] for span in done) == sorted(batches)
    names = {span.name for span in spans}
    assert {"migration.users", "migration.verify", "migration.advance"} <= names
    assert all(root.start_time_unix_nano <= span.start_time_unix_nano for span in done)
    assert all(span.end_time_unix_nano <= root.end_time_unix_nano for span in done)


@pytest.mark.long
def test_a_collector_that_does_not_answer_holds_nothing_up(school: Product) -> None:
    nowhere = f"http://127.0.0.1:{closed_port()}"
    school.environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = nowhere
    with school.worker() as worker:
        assert school.run("enqueue-all", "--wait").status == 3
        worker.terminate()
        # Celery, with spans that nobody takes: it ends by itself all the same.
        assert worker.wait(PATIENCE_SECONDS) == 0


@pytest.mark.long
def test_without_the_library_the_command_says_what_to_install(school: Product) -> None:
    school.is_installed = True
    (school.folder / "sitecustomize.py").write_text(OFF)
    ended = school.run(
        "enqueue-all",
        "--json",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
        PYTHONPATH=str(school.folder),
    )
    assert ended.status == 2
    assert "[tracing]" in ended.json["error"]["hint"]
    # Nobody who did not ask for traces needs it.
    assert school.run("enqueue-all", "--json", PYTHONPATH=str(school.folder)).status == 0
