"""The steps of the demo, each shown as a user would type it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

from deploy.demo import guest
from deploy.demo.console import GuestConsole
from deploy.lab.fleet import HOSTS, REPOSITORY, Fleet, ferry_argv
from deploy.lab.processes import processes_of

if TYPE_CHECKING:
    from types import TracebackType

BOOT_TIMEOUT_S = 90.0
COUNT_TIMEOUT_S = 20.0
PROBE_TIMEOUT_S = 20.0
COMMAND_TIMEOUT_S = 120.0
# So slow that the progress can be seen; the guest changes less than that.
BANDWIDTH = "48MiB/s"
_COUNTS_BETWEEN = 8
_POLL_S = 0.5


class CommandFailed(Exception):
    """A command of the demo ended with another code than 0."""


class Demo:
    """One run of the demo; a context manager that ends all that it has started."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._began_s = time.monotonic()
        self._console = GuestConsole(directory / "console.log")
        self._fleet = Fleet(directory)

    def __enter__(self) -> Self:
        """Nothing runs yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """End everything, unless `keep` was called."""
        self._stack.close()
        if kind is None and self._is_ended():
            print(f"\nnothing is left running; {time.monotonic() - self._began_s:.0f} s in all")

    def play(self) -> None:
        """Run the demo from the certificates to the trace.

        Raises:
            CommandFailed, ProcessFailed, GuestSilent: a step did not work.
            AssertionError: the guest is not whole.
        """
        self._certificates()
        self._heading("two hosts and a coordinator, each process with a certificate of its own")
        self._stack.enter_context(self._fleet)
        for name in ("FERRY_COORDINATOR", "FERRY_PKI"):
            print(f"$ export {name}={self._fleet.environment[name]}")
        self._wait_probed()
        self._ferry("host", "ls")
        self._boot()
        first = self._move(HOSTS[1], "directly, encrypted", "--bandwidth", BANDWIDTH)
        second = self._move(HOSTS[0], "back through the tunnel", "--tunnel")
        self._heading("what became of it")
        self._ferry("migration", "ls")
        self._ferry("migration", "show", first[:8], "--trace")
        self._summary((first, second))

    def keep(self) -> None:
        """Leave everything up and say what can be done with it."""
        self._stack.pop_all()
        environment = self._fleet.environment
        print(
            f"""
It is left up. To play with it:
  export PATH={shlex.quote(str(_bin_directory()))}:$PATH
  export FERRY_COORDINATOR={environment["FERRY_COORDINATOR"]} FERRY_PKI={environment["FERRY_PKI"]}
  tail -f {self._directory / "console.log"}
  ferry vm ls
  ferry migrate web --to host-b --multifd 4          # Ctrl-C asks whether to cancel
  ferry migrate web --to host-a --bandwidth 10MiB/s --detach; ferry migration ls
  ferry migration set ID --bandwidth 0; ferry migration watch ID
  ferry vm show web; ferry migration show ID --trace
The servers' logs are {self._directory}/*.log. To end it all:
  make -C {shlex.quote(str(REPOSITORY))} demo-stop"""
        )

    def _certificates(self) -> None:
        self._heading("certificates")
        pki = self._directory / "pki"
        self._ferry("pki", "init", str(pki / "ca"))
        holders = [("coordinator", "coordinator"), ("operator", "operator"), *((host, "agent") for host in HOSTS)]
        for name, role in holders:
            address = ("--address", "127.0.0.1") if role != "operator" else ()
            self._ferry("pki", "issue", name, "--role", role, *address, "--ca", str(pki / "ca"))

    def _wait_probed(self) -> None:
        """Wait until both agents have tried what their QEMU can run."""
        deadline_s = time.monotonic() + PROBE_TIMEOUT_S
        while time.monotonic() < deadline_s:
            hosts = json.loads(self._fleet.ferry("host", "ls", "-o", "json", check=True).stdout)
            if all(host["accelerator"] for host in hosts):
                return
            time.sleep(_POLL_S)

    def _boot(self) -> None:
        self._heading(f"a Linux guest on {HOSTS[0]}; its counter is on its console")
        definition = self._directory / "web.xml"
        definition.write_text(guest.definition(self._directory / "console.log"))
        self._ferry("vm", "define", str(definition), "--host", HOSTS[0])
        self._ferry("vm", "start", guest.NAME)
        self._console.wait_counter(_COUNTS_BETWEEN, BOOT_TIMEOUT_S)
        self._ferry("vm", "ls")

    def _move(self, host: str, how: str, *options: str) -> str:
        """Move the guest and prove that its counter went on; give the migration's id."""
        self._heading(f"to {host} {how}")
        before = self._console.counters()[-1]
        self._ferry("migrate", guest.NAME, "--to", host, *options)
        after = self._console.counters()[-1]
        self._console.wait_counter(after + _COUNTS_BETWEEN, COUNT_TIMEOUT_S)
        print(f"\n  the console, from before the move (counter {before}) and from after it (counter {after}):")
        for line in [*self._console.around(before)[:3], "...", *self._console.around(after)]:
            print(f"    {line}")
        counters = self._console.counters()
        print(f"  counter 0 to {counters[-1]}: every number once, in order, and no page of memory wrong")
        shown = self._fleet.ferry("migration", "ls", "--limit", "1", "-o", "json", check=True)
        return str(json.loads(shown.stdout)[0]["id"])

    def _summary(self, ids: tuple[str, ...]) -> None:
        self._heading("downtime")
        for migration_id in ids:
            shown = self._fleet.ferry("migration", "show", migration_id, "-o", "json", check=True)
            migration = cast("dict[str, dict[str, float] | None]", json.loads(shown.stdout))
            downtime = migration["downtime"] or {}
            way = f"{migration['source_host']} -> {migration['destination_host']}"
            total_ms, qemu_ms = (1000 * (downtime.get(name) or 0) for name in ("total_s", "qemu_reported_s"))
            print(f"  {way}: the guest stood still for {total_ms:.1f} ms (QEMU's own figure: {qemu_ms:.0f} ms)")

    def _ferry(self, *arguments: str) -> None:
        """Show a command and run it on this terminal."""
        print(f"$ ferry {shlex.join(arguments)}")
        done = subprocess.run(
            ferry_argv(*arguments),
            cwd=self._directory,
            env=self._fleet.environment,
            stdin=subprocess.DEVNULL,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise CommandFailed(f"ferry {shlex.join(arguments)} ended with {done.returncode}")

    def _heading(self, text: str) -> None:
        print(f"\n== {text} ({time.monotonic() - self._began_s:.0f} s)")

    def _is_ended(self) -> bool:
        return not processes_of(self._directory)


def _bin_directory() -> Path:
    return Path(sys.executable).parent
