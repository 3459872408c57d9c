"""One QMP connection, from dialling to its end, on the library qemu.qmp.

It adds to the library what QEMU's own rules demand:

- the peer of the socket must be the QEMU we mean;
- OOB is negotiated, and never more than `IN_BAND_LIMIT` in-band commands are unanswered. With 8
  of them QEMU stops reading and would not see an OOB command either, which is what frees it;
- a command that timed out still counts as unanswered, as QEMU will run it; answers come in the order of the commands, so one that
  is skipped will not come any more;
- what is sent that is not QMP ends the connection, and nothing else: who dials anew may find a QEMU that is better.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from qemu.qmp import ConnectError, ExecInterruptedError, QMPClient, QMPError, Runstate, StateError
from qemu.qmp.qmp_client import BadReplyError

from agent.qemu.errors import NotUnderstood, QemuInUse, QemuSilent
from agent.qemu.stamps import Stamps
from agent.qemu.subscription import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from qemu.qmp.message import Message

    from agent.qemu.identity import Process

# Source: monitor/qmp.c, QMP_REQ_QUEUE_LEN_MAX is 8, and reading stops when the eighth is queued.
IN_BAND_LIMIT: Final = 7
_UCRED: Final = struct.Struct("3i")  # Source: unix(7), struct ucred
_MICROSECONDS: Final = 1e6

# The library reports as errors what is ordinary here, such as QEMU's end; we raise or log that.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class NotSent(Exception):
    """The connection ended before the command left this process."""


class Interrupted(Exception):
    """The connection ended before the answer came; the command may have run."""


class _Nonsense(QMPError):
    """What came is not QMP."""


# A QEMU that served another client before may still have the answer to that one's command; more than a few are no such rest.
_FOREIGN_LIMIT: Final = 3


class _Client(QMPClient):
    """The library's client without its rendering of every message, and with a look at replies."""

    def __init__(self, peer: socket.socket, on_event: Callable[[Event], None]) -> None:
        super().__init__()
        self._peer = peer
        self.has_greeted = False
        self.last_answer_s = time.monotonic()
        self.free_slots = asyncio.Semaphore(IN_BAND_LIMIT)
        self._unanswered: dict[object, None] = {}  # in-band ones, in their order
        self._unanswered_oob: set[object] = set()
        self._foreign_count = 0
        self._on_event = on_event
        self._stamps = Stamps()

    async def _do_recv(self) -> Message:
        try:
            return await super()._do_recv()
        except RecursionError as error:
            raise _Nonsense("a message is nested too deeply") from error

    def _do_send(self, msg: Message) -> None:
        """Write, but not through the stream where QEMU has closed: that would end the connection with QEMU's last words unread."""
        if self._writer is None:
            raise EOFError
        content = bytes(msg)
        if self._writer.transport.get_write_buffer_size() == 0:
            try:
                content = content[self._peer.send(content) :]
            except BlockingIOError:
                pass
            except OSError:
                return  # reading comes to its end too, which tells those who wait for an answer
        if content:
            self._writer.write(content)

    def _cb_outbound(self, msg: Message) -> Message:
        if "execute" in msg:
            self._unanswered[msg.get("id")] = None
        else:
            self._unanswered_oob.add(msg.get("id"))
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        now_s = time.monotonic()
        if "event" in msg:
            self._on_event(_event(msg, now_s, self._stamps))
        elif "QMP" in msg:
            self.has_greeted = True
        else:
            self.last_answer_s = now_s
            self._note_answer(msg.get("id"))
        return msg

    def _note_answer(self, identifier: object) -> None:
        if identifier is not None and not isinstance(identifier, str):
            raise _Nonsense(f"an answer with the id {identifier!r:.80}")
        if identifier in self._unanswered:
            while True:
                answered = next(iter(self._unanswered))
                del self._unanswered[answered]
                if answered is not None:  # that of the negotiation, which takes no slot
                    self.free_slots.release()
                if answered == identifier:
                    return
        if identifier in self._unanswered_oob:
            self._unanswered_oob.discard(identifier)
            return
        self._foreign_count += 1
        if self._foreign_count > _FOREIGN_LIMIT:
            raise _Nonsense(f"{self._foreign_count} answers to what was not asked, the last with the id {identifier!r:.80}")


class Connection:
    """An open QMP session; dial() makes it, close() must end it."""

    def __init__(self, client: _Client, peer: socket.socket) -> None:
        self._client = client
        self._peer = peer

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent."""
        return self._client.runstate is Runstate.RUNNING

    @property
    def peer(self) -> socket.socket:
        """Our end of the socket: whoever has a copy can end the connection."""
        return self._peer

    @property
    def last_answer_s(self) -> float:
        """The monotonic time of the last reply, or of dialling when there was none."""
        return self._client.last_answer_s

    async def ask(
        self, command: str, arguments: Mapping[str, object] | None, *, is_oob: bool, passed_fd: int | None = None
    ) -> object:
        """Send a command and wait for its answer, without a deadline; `passed_fd` is what `getfd` or `add-fd` takes.

        Raises:
            ExecuteError: QEMU answered with an error.
            NotUnderstood: its answer is none of QMP's.
            NotSent, Interrupted: the connection ended before or after sending.
        """
        if not is_oob:
            await self._client.free_slots.acquire()
        try:
            if passed_fd is not None:
                self._pass(passed_fd)
            return await self._client.execute(command, arguments, oob=is_oob)
        except BadReplyError as error:
            raise NotUnderstood(f"{command}: QEMU's answer is neither a result nor an error") from error
        except StateError as error:
            self._client.free_slots.release()  # whoever waits for a slot has to learn it too
            raise NotSent from error
        except ExecInterruptedError as error:
            self._client.free_slots.release()
            raise Interrupted from error

    def _pass(self, fd: int) -> None:
        """Send a descriptor on a blank; QEMU keeps the last one for the command that asks for it."""
        try:
            socket.send_fds(self._peer, [b" "], [fd])
        except OSError as error:
            raise StateError(f"descriptor not sent: {error}", self._client.runstate, Runstate.RUNNING) from error

    def shut_down(self) -> None:
        """End the connection at once; wait_lost() returns soon, and close() is still to be called."""
        with suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)

    async def wait_lost(self) -> None:
        """Return when the connection has ended, after everything that came before was read."""
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()

    async def close(self) -> None:
        """End the connection and clean up; not to be cancelled, and short, as nobody is waited for.

        QEMU may be mute: without the shutdown the library would wait until QEMU has read what we sent.
        """
        self.shut_down()
        # It raises what ended the connection, which its users have been told already.
        with suppress(EOFError, OSError, QMPError, ValueError):
            await self._client.disconnect()
        self._client.free_slots.release()


async def dial(path: Path, process: Process, on_event: Callable[[Event], None], *, timeout_s: float) -> Connection:
    """Connect, check the peer and negotiate, OOB included.

    Raises:
        QemuInUse: no greeting came, as another client is attached.
        QemuSilent: nobody listens, or QEMU's main thread does not answer.
    """
    peer = _connect(path, process)
    # The library's disconnect() is the only owner of the socket from connect() on.
    client = _Client(peer, on_event)
    client.events.event_filter = _never  # else the library keeps every event for ever
    try:
        async with asyncio.timeout(timeout_s):
            await client.connect(peer)
    except TimeoutError as error:
        raise _unanswered(path, process, timeout_s, has_greeted=client.has_greeted) from error
    except ConnectError as error:
        text = f"QMP socket {path}: {error}"
        raise QemuSilent(text, reason="QMP_NOT_CONNECTED", path=path) from error
    finally:
        if client.runstate is not Runstate.RUNNING:
            peer.close()
    return Connection(client, peer)


def _connect(path: Path, process: Process) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    try:
        peer.settimeout(0)  # refuse, not wait, while the backlog is full
        peer.connect(str(path))
        pid = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[0]
    except BlockingIOError as error:
        peer.close()
        raise _in_use(path) from error
    except OSError as error:
        peer.close()
        text = f"QMP socket {path}: {error.strerror or error}"
        raise QemuSilent(text, reason="QMP_NOT_CONNECTED", path=path) from error
    if pid != process.pid:
        peer.close()
        text = f"QMP socket {path}: belongs to process {pid}, not to QEMU {process.pid}"
        raise QemuSilent(text, reason="QMP_PEER_IS_ANOTHER", path=path, pid=pid)
    return peer


def _in_use(path: Path) -> QemuInUse:
    return QemuInUse(f"QMP socket {path} is in use by another client", path=path)


def _unanswered(path: Path, process: Process, timeout_s: float, *, has_greeted: bool) -> QemuInUse | QemuSilent:
    """Tell the three silences apart.

    QEMU greets from a thread of its own, even while its main thread is blocked.
    """
    if process.is_stopped():
        text = f"QMP socket {path}: QEMU {process.pid} is stopped by a signal or a debugger"
        return QemuSilent(text, path=path)
    if not has_greeted:
        return _in_use(path)
    text = f"QMP socket {path}: no answer to qmp_capabilities in {timeout_s:.1f} s, QEMU is blocked"
    return QemuSilent(text, path=path)


def _never(_event: Message) -> bool:
    return False


def _event(msg: Message, received_s: float, stamps: Stamps) -> Event:
    """Decode an event leniently: a malformed one must not end the connection."""
    stamp = msg.get("timestamp")
    stamp_s = 0.0
    if isinstance(stamp, dict):
        with suppress(TypeError, OverflowError):
            stamp_s = float(stamp.get("seconds", 0) + stamp.get("microseconds", 0) / _MICROSECONDS)
    details = msg.get("data")
    return Event(
        name=str(msg["event"]),
        data=details if isinstance(details, dict) else {},
        at_s=stamps.instant_of(stamp_s),
        received_s=received_s,
    )
