"""The API on a real port against its own schema, with whatever Schemathesis thinks of."""

import pytest

from served import server


@pytest.fixture(scope="module")
def schema():
    import schemathesis  # not above: the default selection collects this file, too

    with server() as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/model"])
def test_what_is_read_is_as_the_schema_says(schema, path):
    check(schema[path]["GET"].as_strategy(), {200})


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/generate", "/v1/caption"])
def test_what_the_schema_allows_is_served_or_refused_with_a_reason(schema, path):
    check(schema[path]["POST"].as_strategy(), {200, 400} if path.endswith("generate") else {400})


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/generate", "/v1/caption"])
def test_what_the_schema_forbids_is_refused(schema, path):
    from schemathesis import GenerationMode

    check(schema[path]["POST"].as_strategy(generation_mode=GenerationMode.NEGATIVE), {422})


def check(cases, expected):
    """Every answer is one that the schema knows, and these are among them."""
    import hypothesis
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    found, every = set(), list(hypothesis.HealthCheck)

    @hypothesis.given(case=cases)
    @hypothesis.settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=every)
    def call(case):
        # A model may be unable to do what the schema of all models allows.
        found.add(case.call_and_validate(excluded_checks=[positive_data_acceptance]).status_code)

    call()
    assert expected <= found <= expected | {400, 413, 415, 422}
