"""Stands before a server and cuts lines at random, in the middle of replies and before them."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Iterator

__all__ = ["cutting_proxy"]

# A reply to the start of a batch has some 400 bytes.
_LONGEST_CUT = 450


@contextlib.contextmanager
def cutting_proxy(url: str, seed: int) -> Iterator[str]:
    """Pass lines on to a server, every second one with its reply cut off; yields the address.

    The server may be down for a while: then lines are closed at once.

    :param url: of the server
    :param seed: of the random cuts
    """
    host, _, port = url.removeprefix("http://").rpartition(":")
    dice = random.Random(seed)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listening.accept()
                    cut = dice.randrange(_LONGEST_CUT) if dice.random() < 0.5 else None
                    line = (client, (host, int(port)), cut)
                    threading.Thread(target=_pass, args=line, daemon=True).start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        accepting.join()


def _pass(client: socket.socket, server: tuple[str, int], cut: int | None) -> None:
    """Serve one line to its end.

    :param cut: how many bytes of replies pass before the line is cut; ``None`` lets all pass
    """
    with client, contextlib.suppress(OSError), socket.create_connection(server) as there:
        threading.Thread(target=_copy, args=(client, there), daemon=True).start()
        try:
            while data := there.recv(65536):
                client.sendall(data[:cut])
                if cut is not None:
                    cut -= len(data)
                    if cut <= 0:
                        return
        finally:
            # Closing alone would not end the line while the other thread reads from it.
            client.shutdown(socket.SHUT_RDWR)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
