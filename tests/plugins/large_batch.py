"""A server with one complete batch of a million records, which it makes up while it sends them."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["LargeBatch", "large_batch"]

RECORDS = 1_000_000
_SERVICE = {
    "name": "large",
    "version": "1",
    "inputParameterDefinitions": [{"name": "x", "type": "numeric"}],
    "outputParameterDefinitions": [{"name": "y", "type": "numeric"}],
}
_RECORD = (
    '{"success":true,"errorMessage":"","consoleOutput":"","changedFiles":[],'
    '"outputParameters":{"y":0.6418125}}'
)
_AT_ONCE = 500


class LargeBatch:
    """What was sent, and whether the other side hung up before the end."""

    def __init__(self) -> None:
        self.url, self.bytes_sent, self.has_hung_up = "", 0, False


@contextlib.contextmanager
def large_batch() -> Iterator[LargeBatch]:
    """Run it on a free port of this machine."""
    running = LargeBatch()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            """Nothing."""

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self._json({"access_token": "token", "expires_in": 3600, "token_type": "Bearer"})

        def do_GET(self) -> None:
            if "/batch/" in self.path:
                self._batch()
            else:
                self._json([_SERVICE])

        def _json(self, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _batch(self) -> None:
            self.close_connection = True
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            head = (
                f'{{"state":"Complete","completedItemCount":{RECORDS},"totalItemCount":{RECORDS},'
            )
            block = ",".join([_RECORD] * _AT_ONCE).encode()
            try:
                self._send(f'{head}"batchExecutionResults":['.encode())
                for place in range(RECORDS // _AT_ONCE):
                    self._send(b"," + block if place else block)
                self._send(b"]}")
            except OSError:
                running.has_hung_up = True

        def _send(self, data: bytes) -> None:
            self.wfile.write(data)
            running.bytes_sent += len(data)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Nothing: hanging up is what is tested."""

    server = Server(("127.0.0.1", 0), Handler)
    running.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
