"""Prometheus metrics: one registry per application, engine figures read when they are scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvasir.core.ports import Engine, EngineStatus
from kvasir.core.tiers import STORED_TIERS, Tier, TierStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FIRST_TOKEN_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_TOKEN_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 10)


class Metrics:
    """What the service counts and measures."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineFigures(engine))
        self._requests = Counter(
            "kvasir_http_requests",
            "HTTP requests by route, method and status.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._first_token = Histogram(
            "kvasir_time_to_first_token_seconds",
            "From the submission of a prompt to its first token, queueing included.",
            buckets=_FIRST_TOKEN_S,
            registry=self._registry,
        )
        self._token = Histogram(
            "kvasir_inter_token_latency_seconds",
            "Between two tokens of one answer.",
            buckets=_TOKEN_S,
            registry=self._registry,
        )

    def request(self, route: str, method: str, status: int) -> None:
        """Count one answered request."""
        self._requests.labels(route, method, str(status)).inc()

    def first_token_after(self, seconds: float) -> None:
        """Measure one answer's first token."""
        self._first_token.observe(seconds)

    def token_after(self, seconds: float) -> None:
        """Measure one further token."""
        self._token.observe(seconds)

    def page(self) -> bytes:
        """The text that a scraper reads."""
        return generate_latest(self._registry)


class RequestCounter:
    """ASGI middleware that counts every answer under its route's template, so that the number of
    time series does not depend on what clients ask for."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._metrics.request(route, method, message["status"])
            await send(message)

        await self._app(scope, receive, counted)


_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})


class _EngineFigures(Collector):
    """Turns ``Engine.status`` into metrics at every scrape."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> list[Metric]:
        return []  # do not ask the engine while registering

    def collect(self) -> Iterator[Metric]:
        status = self._engine.status()
        yield from _gauges(status)
        yield from _counters(status)


def _gauges(status: EngineStatus) -> Iterator[Metric]:
    plain = (
        ("kvasir_requests_running", "Sequences being computed.", status.running),
        ("kvasir_requests_waiting", "Sequences in the queue.", status.waiting),
        ("kvasir_waiting_tokens", "Prompt tokens in the queue.", status.waiting_tokens),
        ("kvasir_last_step_age_seconds", "Since the last step; 0 if idle.", status.last_step_age_s),
    )
    for name, text, value in plain:
        yield GaugeMetricFamily(name, text, value=value)
    yield from _tier_gauges(status.tiers)
    used = status.blocks_total - status.blocks_free - status.blocks_idle
    usage = GaugeMetricFamily(
        "kvasir_kv_usage_ratio", "Blocks that running requests hold.", labels=("tier",)
    )
    usage.add_metric(("device",), used / max(1, status.blocks_total))
    yield usage


def _tier_gauges(tiers: Sequence[TierStatus]) -> Iterator[Metric]:
    sizes = GaugeMetricFamily(
        "kvasir_tier_bytes", "What a tier of stored KV takes, and may take.", labels=_TIER_KIND
    )
    for tier in tiers:
        sizes.add_metric((tier.tier.value, "used"), tier.used_bytes)
        sizes.add_metric((tier.tier.value, "cap"), tier.cap_bytes)
    yield sizes
    for name, text, value in _TIER_GAUGES:
        gauge = GaugeMetricFamily(name, text, labels=("tier",))
        for tier in tiers:
            gauge.add_metric((tier.tier.value,), value(tier))
        yield gauge


def _tier_counters(tiers: Sequence[TierStatus]) -> Iterator[Metric]:
    for name, text, value in _TIER_COUNTERS:
        counter = CounterMetricFamily(name, text, labels=("tier",))
        for tier in tiers:
            counter.add_metric((tier.tier.value,), value(tier))
        yield counter


def _cached(status: EngineStatus) -> Metric:
    """By the tier that it was reused from; whatever came from no stored tier was in the pool."""
    family = CounterMetricFamily(
        "kvasir_cached_tokens", "Prompt tokens that were reused.", labels=("source",)
    )
    stored = {tier: status.reused_by_tier.get(tier, 0) for tier in STORED_TIERS}
    family.add_metric((Tier.DEVICE.value,), status.reused_tokens - sum(stored.values()))
    here = {tier.tier for tier in status.tiers}
    for tier, tokens in stored.items():
        if tier in here or tokens:
            family.add_metric((tier.value,), tokens)
    return family


_TierFigure = tuple[str, str, Callable[[TierStatus], float]]
_TIER_KIND = ("tier", "kind")
_TIER_GAUGES: tuple[_TierFigure, ...] = (
    ("kvasir_tier_records", "Records that are stored.", lambda tier: tier.records),
    ("kvasir_tier_tokens", "Tokens that are stored.", lambda tier: tier.tokens),
    (
        "kvasir_tier_read_bytes_per_second",
        "How fast records are read and verified, as measured.",
        lambda tier: tier.read_bytes_per_s,
    ),
    (
        "kvasir_tier_write_bytes_per_second",
        "How fast records are written and flushed, as measured.",
        lambda tier: tier.write_bytes_per_s,
    ),
    (
        "kvasir_tier_degraded",
        "1 where nothing is written any more, because writing failed.",
        lambda tier: bool(tier.failure),
    ),
)
_TIER_COUNTERS: tuple[_TierFigure, ...] = (
    ("kvasir_tier_saved_bytes", "Bytes that were stored.", lambda tier: tier.saved_bytes),
    ("kvasir_tier_loaded_bytes", "Bytes that were loaded.", lambda tier: tier.loaded_bytes),
    (
        "kvasir_tier_evicted_records",
        "Records that gave way to others.",
        lambda tier: tier.evicted_records,
    ),
    (
        "kvasir_tier_damaged_records",
        "Records that did not verify and were dropped.",
        lambda tier: tier.damaged_records,
    ),
    (
        "kvasir_tier_unsaved_blocks",
        "Blocks that were not stored, for want of room or time.",
        lambda tier: tier.unsaved_blocks,
    ),
)


def _counters(status: EngineStatus) -> Iterator[Metric]:
    yield _cached(status)
    yield from _tier_counters(status.tiers)
    plain = (
        ("kvasir_computed_tokens", "Tokens that were computed.", status.computed_tokens),
        ("kvasir_generated_tokens", "Tokens that were generated.", status.generated_tokens),
        ("kvasir_steps", "Steps of the engine.", status.steps),
        ("kvasir_preemptions", "Sequences that gave up their blocks.", status.preemptions),
        (
            "kvasir_steps_given_up",
            "Long steps given up for a request that came meanwhile.",
            status.steps_given_up,
        ),
        ("kvasir_evicted_blocks", "Blocks that gave way to others.", status.evicted_blocks),
        ("kvasir_restored_blocks", "Blocks loaded from a stored tier.", status.restored_blocks),
        (
            "kvasir_audited_blocks",
            "Restored blocks that were computed again and compared.",
            status.audited_blocks,
        ),
        (
            "kvasir_audit_failures",
            "Audited blocks that were not as they should be: alarm at any.",
            status.audit_failures,
        ),
    )
    for name, text, value in plain:
        yield CounterMetricFamily(name, text, value=value)
    labelled = (
        ("kvasir_requests_finished", "Answers by how they ended.", "reason", status.finished),
        ("kvasir_requests_refused", "Requests not admitted, by kind.", "kind", status.refused),
    )
    for name, text, label, values in labelled:
        family = CounterMetricFamily(name, text, labels=(label,))
        for key, count in values.items():
            family.add_metric((str(key),), count)
        yield family
