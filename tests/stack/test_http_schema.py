"""The OpenAPI document against the server: what it says is what happens, and never a 5xx."""

from __future__ import annotations

import contextlib
from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from virtual_server import World, world

from kvasir.service.schemas import ChatRequest, CompletionRequest

EXAMPLES = 30  # per operation and mode
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_the_server_does_what_the_document_says(mode: GenerationMode) -> None:
    with world(window=64) as own:  # answers go on to the end of the window
        schema = schemathesis.openapi.from_dict(own.app.openapi())
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) > 8
        statuses = Counter[int]()
        for operation in operations:
            try_out(operation, mode, own.url, statuses)
        assert own.client.status().alive
        own.cache.check()
    assert statuses[200 if mode is GenerationMode.POSITIVE else 400] > EXAMPLES


def try_out(
    operation: schemathesis.APIOperation, mode: GenerationMode, url: str, statuses: Counter[int]
) -> None:
    """Send what the document allows, or what it does not, and hold the answers against it."""

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    def conforms(case: schemathesis.Case) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "virtual"  # else nearly everything is a 404
        if isinstance(case.body, dict) and case.body.get("tier") == "disk":
            case.body["tier"] = "auto"  # this server has no disk, and says so with a 507
        response = case.call(base_url=url, timeout=30)
        statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    with contextlib.suppress(Unsatisfiable):  # nothing can be wrong about a GET without parameters
        conforms()


def test_every_field_of_a_body_is_in_the_document(shared: World) -> None:
    schemas = shared.app.openapi()["components"]["schemas"]
    for model in (ChatRequest, CompletionRequest):
        assert set(schemas[model.__name__]["properties"]) == set(model.model_fields)
    assert set(schemas["ErrorDetail"]["required"]) == {"message", "type", "param", "code"}


def test_every_answer_that_a_route_can_give_is_in_the_document(shared: World) -> None:
    paths = shared.app.openapi()["paths"]
    for path in ("/v1/chat/completions", "/v1/completions"):
        answers = paths[path]["post"]["responses"]
        expected = "200 400 401 403 404 408 409 410 413 415 429 500 503"
        assert set(answers) == set(expected.split())
        assert set(answers["200"]["content"]) == {"application/json", "text/event-stream"}
    for operations in paths.values():
        for operation in operations.values():
            assert "HTTPValidationError" not in str(operation["responses"].get("422"))
            assert {"400", "403"} <= set(operation["responses"])
