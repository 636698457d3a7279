"""A project traced by OpenTelemetry; the spans are written to a file."""

import os
from pathlib import Path

from celery import Celery
from celery.signals import worker_process_init
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

OUTBOX = Path(os.environ["OUTBOX"])


def trace_this_process(**kwargs):
    provider = TracerProvider()
    exporter = ConsoleSpanExporter(out=OUTBOX.open("a"), formatter=lambda span: span.to_json(indent=None) + "\n")
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    CeleryInstrumentor().instrument(tracer_provider=provider)


worker_process_init.connect(trace_this_process, weak=False)

app = Celery("traced_shop", broker=os.environ["BROKER"], backend=os.environ["RESULTS"])


@app.task
def add(x, y):
    return x + y


@app.task(bind=True, max_retries=1, default_retry_delay=0)
def fail(self):
    if self.request.retries == 0:
        raise self.retry(exc=ValueError("again"))
    raise ValueError("as asked")
