"""What Airflow is told about this package when it looks for providers.

Law: imports nothing but the version. Airflow loads this in every process, and a provider whose
info cannot be loaded breaks the discovery of all others.

Forms of connections: ``conn-fields`` and ``ui-field-behaviour`` here serve Airflow 3.2 and later,
which builds the form without importing the hook; 3.0 and 3.1 ignore both keys and ask the hook.
"""

from __future__ import annotations

from typing import Any

from airflow_mlbatch import __version__

__all__ = ["get_provider_info"]

INTEGRATION = "Machine Learning Server"


def get_provider_info() -> dict[str, Any]:
    """Describe this provider as Airflow's ``provider_info.schema.json`` asks for.

    ``package-name`` must be the canonical name of the distribution: Airflow raises otherwise.
    """
    return {
        "package-name": "airflow-mlbatch",
        "name": INTEGRATION,
        "description": "Batch scoring on Machine Learning Server.",
        "versions": [__version__],
        "integrations": [{"integration-name": INTEGRATION, "tags": ["service"]}],
        "hooks": _modules("airflow_mlbatch.hooks"),
        "operators": _modules("airflow_mlbatch.operators"),
        "sensors": _modules("airflow_mlbatch.sensors"),
        "triggers": _modules("airflow_mlbatch.triggers"),
        "task-decorators": [
            {
                "name": "mlbatch",
                "class-name": "airflow_mlbatch.operators.decorated.mlbatch_task",
            }
        ],
        "extra-links": ["airflow_mlbatch.links.BatchExecutionLink"],
        "config": {
            "mlbatch": {
                "description": "What Airflow's pages show of batch scoring.",
                "options": {
                    "ui_enabled": {
                        "description": (
                            "Whether the API server serves the pages about batches, and tasks link "
                            "to them. Set it alike for the API server and the workers."
                        ),
                        "version_added": "0.1.0",
                        "type": "boolean",
                        "example": None,
                        "default": "True",
                    }
                },
            }
        },
        "connection-types": [
            {
                "connection-type": "mlbatch",
                "hook-class-name": "airflow_mlbatch.hooks.MLBatchHook",
                "hook-name": INTEGRATION,
                "conn-fields": _conn_fields(),
                "ui-field-behaviour": {
                    "relabeling": {
                        "host": "Host or URL",
                        "schema": "Scheme",
                        "port": "Port (type 12800)",
                        "login": "User name",
                        "password": "Password or token",
                    },
                    "placeholders": {
                        "host": "localhost, or https://proxy.example.com/mlserver",
                        "schema": "http or https",
                        "port": "type 12800: the Test button fails while it is blank",
                    },
                },
            }
        ],
    }


def _modules(module: str) -> list[dict[str, Any]]:
    return [{"integration-name": INTEGRATION, "python-modules": [module]}]


def _conn_fields() -> dict[str, Any]:
    return {
        "auth": _field(
            "Authentication",
            "password: log in with user name and password. token: the password is a ready bearer "
            "token. entra: a token from Microsoft Entra ID.",
            enum=["password", "token", "entra"],
            default="password",
        ),
        "verify": _field(
            "Verify TLS",
            "true, false, or the path of a file with the certificates to trust",
            default="true",
        ),
        "client_cert": _field("Client certificate", "Path of a PEM file"),
        "client_key": _field("Client key", "Path of a PEM file, if not in the certificate's"),
        "connect_timeout": _field("Connect timeout", "Seconds", type="number", minimum=0),
        "read_timeout": _field("Read timeout", "Seconds", type="number", minimum=0),
        "tenant_id": _field("Entra tenant", "For entra: the tenant's id or domain"),
        "client_id": _field("Entra client", "For entra: the application's (client) id"),
        "client_secret": _field(
            "Entra client secret",
            "For entra: empty means a managed or workload identity",
            format="password",
        ),
        "resource": _field("Entra resource", "For entra: the server's application id (audience)"),
        "authority": _field("Entra authority", "For entra: https://login.microsoftonline.com"),
    }


def _field(label: str, description: str, *, type: str = "string", **schema: Any) -> dict[str, Any]:
    # "null" beside the type: a field that nobody filled in is sent as null and must validate.
    return {
        "label": label,
        "description": description,
        "schema": {"type": [type, "null"], **schema},
    }
