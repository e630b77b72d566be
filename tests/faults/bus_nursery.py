"""Forks publishers and subscribers for test_bus_kill: Python and ipc are imported once, a child is born in 2 ms.

stdin     `publisher N` (publishes N, then N+1 at each SIGUSR1), `subscriber I`; end of file kills all
stdout    `born <command> PID`; `holds PID I N` whenever a subscriber holds a newer value
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from pathlib import Path

from ipc.bus import Bus
from ipc.topics import Node


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())  # one write is atomic on a pipe


def publish(directory: Path, first: int) -> None:
    reading, writing = socket.socketpair()
    for end in (reading, writing):
        end.setblocking(False)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.set_wakeup_fd(writing.fileno())
    newest = first
    with Bus(directory, "coordinator") as bus:
        bus.publish("node", Node(str(newest)))
        say("born", "publisher", os.getpid())
        while True:
            bus.poll(None, [reading.fileno()])
            try:
                newest += len(reading.recv(100))
            except BlockingIOError:
                continue
            bus.publish("node", Node(str(newest)))


def subscribe(directory: Path, index: int) -> None:
    with Bus(directory, None, ["node", "role", "process.*"]) as bus:
        say("born", "subscriber", os.getpid())
        while True:
            for value in bus.poll(None):
                say("holds", os.getpid(), index, value.body.state)


def main() -> None:
    directory = Path(sys.argv[1])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead are reaped by the kernel
    gc.freeze()
    children = []
    for line in sys.stdin:
        what, number = line.split()
        child = os.fork()
        if child == 0:
            try:
                (publish if what == "publisher" else subscribe)(directory, int(number))
            finally:
                os._exit(1)
        children.append(child)
    for child in children:
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            continue  # killed before, by the test


if __name__ == "__main__":
    main()
