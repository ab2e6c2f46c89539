"""Ports that stay free for the programs that they are meant for."""

from __future__ import annotations

import socket
import sys

__all__ = ["ReservedPort"]


class ReservedPort:
    """A port of this machine, held until it is closed; ``number`` is its own.

    It is bound and does not listen. Linux lets a server listen on it all the same, since servers set
    SO_REUSEADDR, and gives it to nobody who asks for just any port. Elsewhere a server could not bind
    to it: there it is only known to have been free.

    :param number: of the port; 0 takes any
    """

    def __init__(self, number: int = 0) -> None:
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", number))
        self.number = int(self._place.getsockname()[1])
        if sys.platform != "linux":
            self.close()

    def close(self) -> None:
        """Let it go."""
        self._place.close()
