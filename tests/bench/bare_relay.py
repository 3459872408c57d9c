"""A process that accepts connections and copies each to another socket, both ways, and does nothing else.

python -m tests.bench.bare_relay entrance LISTENING_FD HOST:PORT
python -m tests.bench.bare_relay exit LISTENING_FD PATH
"""

from __future__ import annotations

import socket
import sys
import threading

CHUNK_BYTES = 256 * 1024


def copy(source: socket.socket, target: socket.socket) -> None:
    """Copy until the source ends its direction."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while count := source.recv_into(buffer):
        target.sendall(buffer[:count])
    target.shutdown(socket.SHUT_WR)


def main() -> None:
    """Relay until killed."""
    kind, descriptor, target = sys.argv[1:]
    listener = socket.socket(fileno=int(descriptor))
    while True:
        connection, _ = listener.accept()
        if kind == "entrance":
            host, _, port = target.rpartition(":")
            onward = socket.create_connection((host, int(port)))
        else:
            onward = socket.socket(socket.AF_UNIX)
            onward.connect(target)
        for side in (connection, onward):
            if side.family == socket.AF_INET:
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=copy, args=(connection, onward), daemon=True).start()
        threading.Thread(target=copy, args=(onward, connection), daemon=True).start()


if __name__ == "__main__":
    main()
