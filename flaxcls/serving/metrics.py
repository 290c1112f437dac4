"""What a server counts, as Prometheus reads it."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """Counts of one server.

    Attributes:
      requests: to /predict, by the status of their response.
      seconds: from a request's header to its response.
      batch_size: images of each batch.
    """

    def __init__(self, max_batch: int, under_way: Callable[[], int], waiting: Callable[[], int]):
        self._registry = CollectorRegistry()
        self.requests = Counter(
            'flaxcls_requests',
            'Responses to /predict by HTTP status; 499: the other side has gone.',
            ['status'],
            registry=self._registry,
        )
        self.seconds = Histogram(
            'flaxcls_request_seconds',
            'From the header of a request to /predict to its response.',
            registry=self._registry,
        )
        sizes = [1 << power for power in range(max_batch.bit_length()) if 1 << power < max_batch]
        self.batch_size = Histogram(
            'flaxcls_batch_size',
            'Images computed at once.',
            buckets=[*sizes, max_batch],
            registry=self._registry,
        )
        for name, what, count in (
            ('flaxcls_requests_under_way', 'Requests to /predict without a response.', under_way),
            ('flaxcls_queue_length', 'Images that wait to be computed.', waiting),
        ):
            Gauge(name, what, registry=self._registry).set_function(count)

    def render(self) -> bytes:
        """Returns the text of GET /metrics."""
        return generate_latest(self._registry)
