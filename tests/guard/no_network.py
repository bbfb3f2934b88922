"""Keeps a process of the tests on this machine: what would leave it is refused, and written down.

An audit hook sees every connection and every look-up of a name that Python makes, whichever library asks. The
refusal alone would not do, because a client may take it for a Hub that is down: the test suite reads what was
written down, and fails.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

#: Names the file that attempts are written to; child processes inherit it.
LOG = "ZOFT_TESTS_NETWORK_LOG"

_HERE = {"localhost", "::1", "0.0.0.0", "::", ""}


def is_here(host: Any) -> bool:
    """Whether an address is of this machine."""
    if host is None:
        return True
    name = host.decode(errors="replace") if isinstance(host, bytes) else str(host)
    return name in _HERE or name.startswith(("127.", "::ffff:127.")) or name == socket.gethostname()


def install() -> None:
    """Begin to watch, if there is a log; there is no way back, as for every audit hook."""
    if LOG not in os.environ:
        return

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            address = args[1]
            host = address[0] if isinstance(address, tuple) and address else None  # a path is a Unix socket
        elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
            host = args[0]
        else:
            return
        if not is_here(host):
            with open(os.environ[LOG], "a", encoding="utf-8") as stream:
                stream.write(f"{event} {host!r}\n")
            raise OSError(f"tests stay on this machine, and {host!r} is elsewhere")

    sys.addaudithook(watch)
