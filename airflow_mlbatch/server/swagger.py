"""The Swagger 2.0 document of a service, for clients that are generated from it.

Law: paths, operation ids and definitions are those that the vendor's server writes; the words are
our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow_mlbatch.protocol import routes
from airflow_mlbatch.protocol.routes import Route
from airflow_mlbatch.protocol.services import Parameter, Service
from airflow_mlbatch.protocol.types import TYPES

__all__ = ["swagger_document"]

Json = dict[str, Any]

_SERVICE_GONE = "404: Web service not found"
_EXECUTION_GONE = f"{_SERVICE_GONE}, or Execution not found"
_FILE_GONE = f"{_EXECUTION_GONE}, or File not found"


def swagger_document(service: Service) -> Json:
    """Describe one version of a service and its batches."""
    return {
        "swagger": "2.0",
        "info": {
            "description": service.description,
            "title": service.name,
            "version": service.version,
        },
        "schemes": ["http", "https"],
        "securityDefinitions": {
            "Bearer": {"type": "apiKey", "name": "Authorization", "in": "header"}
        },
        "tags": [{"name": service.name, "description": service.description}],
        "consumes": ["application/json"],
        "produces": ["application/json"],
        "paths": {**_login_paths(), **_service_paths(service)},
        "definitions": _definitions(service),
    }


# --- paths ---------------------------------------------------------------------------------------


def _login_paths() -> Json:
    login = {
        "operationId": routes.LOGIN.name,
        "summary": "Exchanges a user name and a password for tokens",
        "parameters": [_body("loginRequest", _ref("LoginRequest"), "Who logs in.")],
        **_user_operation("AccessTokenResponse", "401: wrong user name or password"),
    }
    renew = {
        "operationId": routes.RENEW.name,
        "summary": "Exchanges a refresh token for a new pair of tokens",
        "parameters": [
            _body("renewTokenRequest", _ref("RenewTokenRequest"), "The token to exchange.")
        ],
        **_user_operation("AccessTokenResponse", "401: the refresh token is not good (any more)"),
    }
    revoke = {
        "operationId": routes.REVOKE.name,
        "summary": "Ends a refresh token and the access token that came with it",
        "parameters": [
            {
                "name": "refreshToken",
                "in": "query",
                "description": "The token to end.",
                "required": True,
                "type": "string",
            }
        ],
        **_user_operation("AccessTokenResponse", "401: the refresh token is not good (any more)"),
    }
    return {
        routes.LOGIN.template: {"post": login},
        routes.RENEW.template: {"post": renew, "delete": revoke},
    }


def _user_operation(answer: str, errors: str) -> Json:
    return {
        "tags": ["User"],
        "responses": {
            "200": {"description": "OK", "schema": _ref(answer)},
            "default": {"description": errors, "schema": _ref("Error")},
        },
    }


def _service_paths(service: Service) -> Json:
    one_index = _in_path("index", "Place of the record in the batch, from 0.", "integer")
    execution = _in_path("executionId", "Id of the batch.", "string")
    file_name = _in_path("fileName", "Name of the file.", "string")
    names = {"type": "array", "items": {"type": "string"}}
    partial = {
        "name": "showPartialResults",
        "in": "query",
        "description": "Whether a running batch answers with the results it has so far.",
        "required": False,
        "type": "boolean",
    }
    parallel = {
        "name": "parallelCount",
        "in": "query",
        "description": "How many records may be scored at once; 10 when left out.",
        "required": False,
        "type": "integer",
        "format": "int32",
    }
    one_record = _body("WebServiceParameters", _ref("InputParameters"), "One record.")
    many_records = _body(
        "BatchWebServiceParameters",
        {"type": "array", "items": _ref("InputParameters")},
        "The records.",
    )
    rows: Sequence[tuple[Route, str, list[Json], Json, str]] = (
        (
            routes.CONSUME,
            "Scores one record.",
            [one_record],
            _ref("WebServiceResult"),
            _SERVICE_GONE,
        ),
        (
            routes.START_BATCH,
            "Starts a batch.",
            [many_records, parallel],
            _ref("StartBatchExecutionResponse"),
            _SERVICE_GONE,
        ),
        (routes.BATCHES, "Lists the ids of the batches.", [], names, _SERVICE_GONE),
        (
            routes.BATCH,
            "Tells how far a batch is, and its results.",
            [execution, partial],
            _ref("BatchWebServiceResult"),
            _EXECUTION_GONE,
        ),
        (
            routes.CANCEL_BATCH,
            "Stops a batch and removes all there is of it.",
            [execution],
            names,
            _EXECUTION_GONE,
        ),
        (
            routes.FILES,
            "Lists the files that a record has left.",
            [execution, one_index],
            names,
            _EXECUTION_GONE,
        ),
        (
            routes.FILE,
            "Fetches a file that a record has left.",
            [execution, one_index, file_name],
            {"type": "file"},
            _FILE_GONE,
        ),
    )
    paths: Json = {}
    for route, summary, parameters, answer, errors in rows:
        operation = _operation(service, route, summary, parameters, answer, errors)
        paths.setdefault(_path(service, route), {})[route.method.lower()] = operation
    return paths


def _operation(
    service: Service,
    route: Route,
    summary: str,
    parameters: list[Json],
    answer: Json,
    errors: str,
) -> Json:
    return {
        "security": [{"Bearer": []}],
        "tags": [service.name],
        "summary": summary,
        "operationId": _operation_id(service, route),
        "consumes": ["application/json"],
        "produces": ["application/json"],
        "parameters": parameters,
        "responses": {
            str(route.success): {"description": "OK", "schema": answer},
            "default": {"description": f"400: bad request, {errors}", "schema": _ref("Error")},
        },
    }


def _operation_id(service: Service, route: Route) -> str:
    return (service.operation_id if route is routes.CONSUME else "") or route.name


def _path(service: Service, route: Route) -> str:
    # The name and the version are filled in, quoted; the other placeholders stay.
    root = routes.CONSUME
    rest = route.template.removeprefix(root.template)
    return root.path(name=service.name, version=service.version) + rest


def _body(name: str, schema: Json, description: str) -> Json:
    return {
        "name": name,
        "in": "body",
        "required": True,
        "description": description,
        "schema": schema,
    }


def _in_path(name: str, description: str, kind: str) -> Json:
    return {
        "name": name,
        "in": "path",
        "description": description,
        "required": True,
        "type": kind,
    }


def _ref(definition: str) -> Json:
    return {"$ref": f"#/definitions/{definition}"}


# --- definitions ---------------------------------------------------------------------------------


def _definitions(service: Service) -> Json:
    text, number = {"type": "string"}, {"type": "integer", "format": "int32"}
    names = {"type": "array", "items": text}
    return {
        "InputParameters": _parameters(service.inputs),
        "OutputParameters": _parameters(service.outputs),
        "Error": _object(code=number, message=text, fields=text),
        "WebServiceResult": _object(
            success=_told({"type": "boolean"}, "Whether the record was scored."),
            errorMessage=_told(text, "Why not."),
            consoleOutput=_told(text, "What the service has printed."),
            changedFiles=_told(names, "Names of the files that the record has left."),
            outputParameters=_ref("OutputParameters"),
        ),
        "StartBatchExecutionResponse": _object(
            batchExecutionId=_told(text, "Id of the batch that was started.")
        ),
        "BatchWebServiceResult": _object(
            state=_told(
                {"type": "string", "enum": ["pending", "inProgress", "ready", "complete"]},
                "Stored, being scored, about to be scored, or done.",
            ),
            completedItemCount=_told(number, "How many records have an outcome."),
            totalItemCount=_told(number, "How many records the batch has."),
            batchExecutionResults=_told(
                {"type": "array", "items": _ref("WebServiceResult")},
                "The outcomes, in the order of the records.",
            ),
        ),
        "LoginRequest": _object(
            username=_told(text, "Name of the user."), password=_told(text, "The password.")
        ),
        "RenewTokenRequest": _object(refreshToken=_told(text, "A refresh token that is good.")),
        "AccessTokenResponse": _object(
            token_type=text, access_token=text, expires_on=text, refresh_token=text
        ),
    }


def _parameters(parameters: Sequence[Parameter]) -> Json:
    # The description is where the vendor's clients look for the type of the service's own language.
    return {
        "type": "object",
        "properties": {
            parameter.name: {**TYPES[parameter.type].swagger, "description": parameter.type}
            for parameter in parameters
        },
    }


def _object(**properties: Json) -> Json:
    return {"type": "object", "properties": properties}


def _told(schema: Json, description: str) -> Json:
    return {**schema, "description": description}
