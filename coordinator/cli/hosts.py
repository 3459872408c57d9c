"""`ferry host`."""

from __future__ import annotations

from cyclopts import App

from coordinator.cli.exits import ExitCode
from coordinator.cli.link import Link
from coordinator.cli.options import DEFAULT_SETTINGS, Output, Settings
from coordinator.cli.plain import to_plain
from coordinator.cli.report import hosts_table
from coordinator.cli.screen import Format, Screen

app = App(name="host", help="Look at the hosts of the fleet.")


@app.command(name="ls")
async def list_hosts(*, output: Output = Format.TABLE, settings: Settings = DEFAULT_SETTINGS) -> ExitCode:
    """List the hosts, whether they answer, and what they can run."""
    screen = Screen()
    async with Link(settings) as link:
        hosts = await link.hosts()
    screen.show([to_plain(host) for host in hosts], lambda: hosts_table(hosts), output)
    for host in hosts:
        if not host.is_reachable:
            screen.warn(f"{host.name}: {host.error or 'does not answer'}")
        for warning in host.warnings:
            screen.warn(f"{host.name}: {warning}")
    return ExitCode.DONE
