"""Ports for servers that have to be told one.

`ports.py COUNT` prints so many. They are below the ports that the system gives to connections: another test's
connection would have one of those before its server does.
"""

import random
import socket
import sys


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has."""
    for _ in range(1000):
        try:
            with socket.create_server(("127.0.0.1", random.randrange(12000, 30000))) as server:
                return server.getsockname()[1]
        except OSError as error:
            why = error
    raise why


if __name__ == "__main__":
    ports = set()
    while len(ports) < int(sys.argv[1]):
        ports.add(free_port())
    print(*ports)
