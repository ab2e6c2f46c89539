"""Where the server is and how to reach it; the same for both drivers."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass

from airflow_mlbatch.errors import ConnectionConfigError

__all__ = ["CHUNK", "Endpoint", "proxy_for"]

# Bytes read off the line at once; also the most that a poll of a finished batch reads.
CHUNK = 64 * 1024


@dataclass(frozen=True)
class Endpoint:
    """A server.

    :param url: ``http(s)://host:port`` with an optional path prefix, without a closing slash
    :param verify: whether to check the server's certificate, or the path of a CA bundle
    :param client_cert: path of a client certificate (PEM)
    :param client_key: path of its key, where it is not in the same file
    :param connect_timeout: seconds to wait for a connection
    :param read_timeout: seconds to wait for the next bytes of a reply
    """

    url: str
    verify: bool | str = True
    client_cert: str | None = None
    client_key: str | None = None
    connect_timeout: float = 10.0
    read_timeout: float = 60.0

    def absolute(self, target: str) -> str:
        """The URL of a target; one that is absolute already (after a redirect) stays as it is."""
        return target if target.startswith(("http://", "https://")) else self.url + target

    def ssl_context(self) -> ssl.SSLContext:
        """What TLS needs to know. Reads files, so it does not belong on an event loop.

        :raises ConnectionConfigError: a certificate cannot be read
        """
        try:
            context = self._trusting_context()
            if self.client_cert:
                # An empty password, or OpenSSL would ask for one on the terminal and wait.
                context.load_cert_chain(self.client_cert, self.client_key, password="")
        except OSError as error:
            # OpenSSL does not tell which file it means.
            given = (self.verify, self.client_cert, self.client_key)
            files = ", ".join(repr(each) for each in given if isinstance(each, str))
            raise ConnectionConfigError(
                f"verify, client_cert or client_key: cannot read the certificate: {error}"
                f"{f' ({files})' if files else ''}"
            ) from None
        if self.verify is False:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _trusting_context(self) -> ssl.SSLContext:
        # The variable is the one that requests reads, and its users set it for the whole machine.
        bundle = os.environ.get("REQUESTS_CA_BUNDLE") if self.verify is True else self.verify
        if isinstance(bundle, str) and bundle:
            is_folder = os.path.isdir(bundle)
            return ssl.create_default_context(
                cafile=None if is_folder else bundle, capath=bundle if is_folder else None
            )
        import certifi

        # What the machine trusts, and what requests brings for machines that trust nobody.
        context = ssl.create_default_context()
        context.load_verify_locations(certifi.where())
        return context


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for an address, read in the way of requests."""
    from requests.utils import get_environ_proxies, select_proxy

    proxy = select_proxy(url, get_environ_proxies(url))
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy
