"""Tokens from Microsoft Entra ID, through azure-identity (the extra ``entra``).

With a client secret the application authenticates itself; without one it is a workload identity
(Kubernetes) or a managed identity (a machine in Azure) that does.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from airflow_mlbatch.errors import (
    AuthenticationError,
    ConnectionConfigError,
    ConnectionLostError,
    MLBatchError,
)
from airflow_mlbatch.protocol.documents import Tokens
from airflow_mlbatch.protocol.messages import EntraSource
from airflow_mlbatch.transport.lost import causes

__all__ = ["fetch_token", "fetch_token_async"]


# azure-identity repeats by itself; its own default keeps a task waiting for minutes.
_REPEATS = 2
_OF_MICROSOFT = (
    "login.microsoftonline.com",
    "login.microsoftonline.us",
    "login.chinacloudapi.cn",
)


def fetch_token(source: EntraSource, verify: bool | str) -> Tokens:
    """Ask for a token.

    :param verify: whether to check the certificate of an authority of one's own, or the path of a CA
        bundle; Microsoft's is always checked, by what this machine trusts
    :raises AuthenticationError: the authority refused
    :raises ConnectionLostError: it could not be reached
    :raises ConnectionConfigError: azure-identity is not installed, or a setting makes no sense
    """
    try:
        import azure.identity
    except ImportError:
        raise _not_installed() from None
    try:
        with _credential(azure.identity, source, verify) as credential:
            return _tokens(credential.get_token(source.scope))
    except Exception as error:
        raise _judged(error, source) from None


async def fetch_token_async(source: EntraSource, verify: bool | str) -> Tokens:
    """:func:`fetch_token` on an event loop."""
    try:
        # Importing it takes a good part of a second: not on the loop.
        identity = await asyncio.to_thread(importlib.import_module, "azure.identity.aio")
    except ImportError:
        raise _not_installed() from None
    try:
        async with _credential(identity, source, verify) as credential:
            return _tokens(await credential.get_token(source.scope))
    except Exception as error:
        raise _judged(error, source) from None


def _credential(identity: ModuleType, source: EntraSource, verify: bool | str) -> Any:
    """The same names in the synchronous and the asynchronous module of azure-identity."""
    is_own = source.authority is not None and _host(source.authority) not in _OF_MICROSOFT
    # A bundle for the scoring server knows nothing of Microsoft's certificate, and who leaves that
    # server unchecked has not agreed to send a client secret to anybody.
    settings: dict[str, Any] = {
        "connection_verify": verify if is_own else True,
        "retry_total": _REPEATS,
    }
    if source.authority:
        settings["authority"] = source.authority
        # An authority of one's own is not in the public list of known ones.
        settings["disable_instance_discovery"] = True
    if source.client_secret:
        return identity.ClientSecretCredential(
            source.tenant_id, source.client_id, source.client_secret, **settings
        )
    # Not left to the default credential, which forgets the authority and takes a lost line for a
    # refusal.
    if os.environ.get("AZURE_FEDERATED_TOKEN_FILE"):
        return identity.WorkloadIdentityCredential(
            tenant_id=source.tenant_id or None, client_id=source.client_id or None, **settings
        )
    if source.client_id:
        settings["managed_identity_client_id"] = source.client_id
    return identity.DefaultAzureCredential(
        exclude_workload_identity_credential=True,
        exclude_environment_credential=True,
        exclude_developer_cli_credential=True,
        exclude_cli_credential=True,
        exclude_powershell_credential=True,
        exclude_visual_studio_code_credential=True,
        exclude_shared_token_cache_credential=True,
        exclude_interactive_browser_credential=True,
        exclude_broker_credential=True,
        **settings,
    )


def _host(authority: str) -> str | None:
    return urlsplit(authority if "://" in authority else f"https://{authority}").hostname


def _tokens(token: Any) -> Tokens:
    return Tokens(str(token.token), None, float(token.expires_on))


def _not_installed() -> ConnectionConfigError:
    return ConnectionConfigError(
        "auth: found 'entra', but azure-identity is not installed; install airflow-mlbatch[entra]"
    )


def _judged(error: Exception, source: EntraSource) -> MLBatchError:
    from azure.core.exceptions import (
        ClientAuthenticationError,
        ServiceRequestError,
        ServiceResponseError,
    )

    words = " ".join(str(error).split())[:500]
    if source.client_secret:
        words = words.replace(source.client_secret, "***")
    # azure-identity dresses a lost line up as a failed authentication.
    lost = (ServiceRequestError, ServiceResponseError)
    if any(isinstance(cause, lost) for cause in causes(error)):
        return ConnectionLostError(f"Entra ID cannot be reached: {words}")
    if isinstance(error, ClientAuthenticationError):
        return AuthenticationError(f"Entra ID gave no token for {source.scope}: {words}", 401)
    if isinstance(error, ValueError):
        return ConnectionConfigError(f"tenant_id, authority: {words}")
    return ConnectionLostError(f"Entra ID: {type(error).__name__}: {words}")
