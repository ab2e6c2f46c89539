"""What the fork server, which starts the worker processes, loads beside their code.

Law: nothing else imports this; importing it changes how a process takes a signal.

Whoever stops a service often signals all its processes at once (systemd's control groups, a shell's
process group). Were the fork server to go first, all workers would count as dead.
"""

from __future__ import annotations

import signal

__all__: list[str] = []

# It ends with the server in any case: by the pipe between them.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
