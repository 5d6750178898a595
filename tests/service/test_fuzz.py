"""The server against its own OpenAPI document: generated requests, valid and not, on every route.

Whatever comes in, the answer is one the document names, in the shape it names, and never a server
error but the documented 503 and 504.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.helpers.server_process import ServerProcess

# Loading, unloading and stopping would change the server under the other examples' feet.
LEFT_OUT = r"/v1/internal/(model/(load|unload)|stop-generation)"
FAST = {"tokens_per_second": 100000, "eos_every": 7}


@pytest.fixture(name="server", scope="module")
def _server() -> Iterator[ServerProcess]:
    with ServerProcess("--max-request-seconds", "20", options=FAST) as server:
        yield server.wait_until_ready()


def test_every_answer_is_one_the_document_names(server: ServerProcess) -> None:
    """No 5xx but 503 and 504; status, content type and body as documented, on every route."""
    document = server.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document).exclude(path_regex=LEFT_OUT)
    schema.config.update(base_url=server.url)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 20, "the document has lost its routes"
    for operation in operations:
        _fuzz(operation)


def _fuzz(operation: APIOperation) -> None:
    modes = [GenerationMode.POSITIVE]
    if operation.method.lower() == "post":
        modes.append(GenerationMode.NEGATIVE)
    for mode in modes:

        @settings(
            max_examples=20,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case) -> None:
            response = case.call()
            checks = [status_code_conformance, content_type_conformance]
            checks.append(response_schema_conformance)
            if response.status_code not in (503, 504):
                checks.append(not_a_server_error)
            case.validate_response(response, checks=checks)

        check()
