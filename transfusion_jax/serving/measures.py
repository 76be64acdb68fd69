"""What `/metrics` reports."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Measures:
    """Prometheus's instruments, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.requests = Counter("transfusion_requests", "Answers by status.", ["status"], registry=r)
        self.images = Counter("transfusion_images", "Images drawn.", registry=r)
        self.ended = Counter("transfusion_samples", "Samples made to their end.", registry=r)
        self.waiting = Gauge("transfusion_waiting", "Requests that wait.", registry=r)
        self.busy = Gauge("transfusion_batches", "Batches under way.", registry=r)
        self.waited = Histogram("transfusion_waited_seconds", "Time in the queue.", registry=r)
        rows = (1, 2, 4, 8, 16, 32, 64, 128)
        self.rows = Histogram("transfusion_batch_rows", "Requests decoded together.", buckets=rows, registry=r)
