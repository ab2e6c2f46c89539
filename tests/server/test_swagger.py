"""The Swagger document of a service with inputs `hp`, `wt` and output `answer`.

What is expected here is what a real 9.3 server wrote for such a service: its paths, operation ids,
parameters and definitions; the descriptions are not compared, but for those that name a type.
"""

from __future__ import annotations

from typing import Any

import requests

from airflow_mlbatch.protocol import routes
from tests.server.api import Api
from tests.server_process import RunningServer

TEXT = {"type": "string"}
COUNT = {"type": "integer", "format": "int32"}
NUMBER = {"type": "number", "description": "numeric"}

DEFINITIONS: dict[str, Any] = {
    "InputParameters": {"hp": NUMBER, "wt": NUMBER},
    "OutputParameters": {"answer": NUMBER},
    "Error": {"code": COUNT, "message": TEXT, "fields": TEXT},
    "WebServiceResult": {
        "success": {"type": "boolean"},
        "errorMessage": TEXT,
        "consoleOutput": TEXT,
        "changedFiles": {"type": "array", "items": TEXT},
        "outputParameters": {"$ref": "#/definitions/OutputParameters"},
    },
    "StartBatchExecutionResponse": {"batchExecutionId": TEXT},
    "BatchWebServiceResult": {
        "state": {"type": "string", "enum": ["pending", "inProgress", "ready", "complete"]},
        "completedItemCount": COUNT,
        "totalItemCount": COUNT,
        "batchExecutionResults": {
            "type": "array",
            "items": {"$ref": "#/definitions/WebServiceResult"},
        },
    },
    "LoginRequest": {"username": TEXT, "password": TEXT},
    "RenewTokenRequest": {"refreshToken": TEXT},
    "AccessTokenResponse": {
        "token_type": TEXT,
        "access_token": TEXT,
        "expires_on": TEXT,
        "refresh_token": TEXT,
    },
}

ROOT = "/api/mtService/v1.0.0"
ONE = f"{ROOT}/batch/{{executionId}}"
# Path and verb: operation id, its parameters as (name, where, type or schema), success, its schema.
OPERATIONS: dict[tuple[str, str], tuple[str, list[tuple[str, str, Any]], str, Any]] = {
    ("/login", "post"): (
        "login",
        [("loginRequest", "body", {"$ref": "#/definitions/LoginRequest"})],
        "200",
        {"$ref": "#/definitions/AccessTokenResponse"},
    ),
    ("/login/refreshToken", "post"): (
        "renewToken",
        [("renewTokenRequest", "body", {"$ref": "#/definitions/RenewTokenRequest"})],
        "200",
        {"$ref": "#/definitions/AccessTokenResponse"},
    ),
    ("/login/refreshToken", "delete"): (
        "revokeRefreshToken",
        [("refreshToken", "query", "string")],
        "200",
        {"$ref": "#/definitions/AccessTokenResponse"},
    ),
    (ROOT, "post"): (
        "manualTransmission",
        [("WebServiceParameters", "body", {"$ref": "#/definitions/InputParameters"})],
        "200",
        {"$ref": "#/definitions/WebServiceResult"},
    ),
    (f"{ROOT}/batch", "post"): (
        "StartBatchExecution",
        [
            (
                "BatchWebServiceParameters",
                "body",
                {"type": "array", "items": {"$ref": "#/definitions/InputParameters"}},
            ),
            ("parallelCount", "query", "integer"),
        ],
        "202",
        {"$ref": "#/definitions/StartBatchExecutionResponse"},
    ),
    (f"{ROOT}/batch", "get"): (
        "GetBatchExecutions",
        [],
        "200",
        {"type": "array", "items": TEXT},
    ),
    (ONE, "get"): (
        "GetBatchExecutionStatus",
        [("executionId", "path", "string"), ("showPartialResults", "query", "boolean")],
        "200",
        {"$ref": "#/definitions/BatchWebServiceResult"},
    ),
    (ONE, "delete"): (
        "CancelAndDeleteBatchExecution",
        [("executionId", "path", "string")],
        "200",
        {"type": "array", "items": TEXT},
    ),
    (f"{ONE}/{{index}}/files", "get"): (
        "GetBatchExecutionFiles",
        [("executionId", "path", "string"), ("index", "path", "integer")],
        "200",
        {"type": "array", "items": TEXT},
    ),
    (f"{ONE}/{{index}}/files/{{fileName}}", "get"): (
        "GetBatchExecutionFile",
        [
            ("executionId", "path", "string"),
            ("index", "path", "integer"),
            ("fileName", "path", "string"),
        ],
        "200",
        {"type": "file"},
    ),
}


def without_descriptions(found: Any) -> Any:
    """A schema without its words, but for those that name a type."""
    if isinstance(found, dict):
        return {
            key: without_descriptions(value)
            for key, value in found.items()
            if key != "description" or value == "numeric"
        }
    if isinstance(found, list):
        return [without_descriptions(item) for item in found]
    return found


def test_definitions_are_the_vendors(api: Api) -> None:
    found = api.get(f"{ROOT}/swagger.json").json()["definitions"]
    assert without_descriptions(found) == {
        name: {"type": "object", "properties": properties}
        for name, properties in DEFINITIONS.items()
    }


def test_paths_and_operations_are_the_vendors(api: Api) -> None:
    found = {
        (path, verb): operation
        for path, verbs in api.get(f"{ROOT}/swagger.json").json()["paths"].items()
        for verb, operation in verbs.items()
    }
    assert set(found) == set(OPERATIONS)
    for key, (operation_id, parameters, success, schema) in OPERATIONS.items():
        operation = found[key]
        assert operation["operationId"] == operation_id
        assert [
            (item["name"], item["in"], item["schema"] if item["in"] == "body" else item["type"])
            for item in operation["parameters"]
        ] == parameters
        assert operation["responses"][success]["schema"] == schema
        assert operation["responses"]["default"]["schema"] == {"$ref": "#/definitions/Error"}
        is_work = key[1] == "post" and key[0].startswith("/api/")
        assert ({"400", "500"} <= set(operation["responses"])) == is_work
        assert ("security" in operation) == key[0].startswith("/api/")


def test_the_head_of_the_document(api: Api) -> None:
    found = api.get(f"{ROOT}/swagger.json").json()
    assert found["swagger"] == "2.0"
    assert found["info"]["title"] == "mtService"
    assert found["info"]["version"] == "v1.0.0"
    assert found["securityDefinitions"] == {
        "Bearer": {"type": "apiKey", "name": "Authorization", "in": "header"}
    }
    assert found["consumes"] == found["produces"] == ["application/json"]


def test_each_type_has_its_schema(api: Api) -> None:
    found = api.get("/api/types/1/swagger.json").json()["definitions"]
    inputs = found["InputParameters"]["properties"]
    numbers = {"type": "array", "items": {"type": "number"}}
    assert inputs == {
        "a": {"type": "boolean", "description": "logical"},
        "b": {"type": "integer", "description": "integer"},
        "c": {"type": "number", "description": "numeric"},
        "d": {"type": "string", "description": "character"},
        "e": {**numbers, "description": "vector"},
        "f": {"type": "array", "items": numbers, "description": "matrix"},
        "g": {"type": "object", "description": "data.frame"},
    }


def references(found: Any) -> set[str]:
    """The definitions that a part of a document refers to."""
    if isinstance(found, dict):
        here = {found["$ref"]} if "$ref" in found else set()
        return here.union(*map(references, found.values()))
    return set().union(*map(references, found)) if isinstance(found, list) else set()


def test_the_two_documents_describe_every_route(api: Api, server: RunningServer) -> None:
    core = requests.get(f"{server.url}/swagger.json", timeout=60).json()  # without a token
    own = api.get("/api/double/1/swagger.json").json()
    described = {
        (verb.upper(), path.replace("/api/double/1", "/api/{name}/{version}"))
        for document in (core, own)
        for path, verbs in document["paths"].items()
        for verb in verbs
    }
    not_described = {routes.REVOKE_BY_PATH, routes.CORE_SWAGGER}
    assert described == {
        (route.method, route.template) for route in routes.ROUTES if route not in not_described
    }
    names = {route.template: route.name for route in routes.ROUTES}
    for path, verbs in core["paths"].items():
        assert names[path] in {operation["operationId"] for operation in verbs.values()}
    for document in (core, own):
        assert references(document) <= {f"#/definitions/{name}" for name in document["definitions"]}
    kinds = core["definitions"]["ParameterDefinition"]["properties"]["type"]["enum"]
    assert "data.frame" in kinds


def test_a_name_that_needs_quoting_is_quoted_in_the_paths(api: Api) -> None:
    found = api.get("/api/my%20service%2F%CE%B2/v%201%3F/swagger.json").json()
    assert found["info"]["title"] == "my service/β"
    assert "/api/my%20service%2F%CE%B2/v%201%3F/batch" in found["paths"]
