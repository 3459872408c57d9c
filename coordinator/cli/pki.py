"""`ferry pki`: the certificates of a fleet."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from common.errors import InvalidRequest, WrongState
from common.identity import Role
from common.pki import Issued, find_issued, init_authority, issue
from coordinator.cli.exits import ExitCode
from coordinator.cli.options import Switch
from coordinator.cli.screen import Screen

app = App(name="pki", help="Make the certificates of a fleet: one authority, then one certificate for each process and user.")

DEFAULT_AUTHORITY = Path("ferry-ca")


class RoleName(enum.Enum):
    """What the owner of a certificate may do."""

    AGENT = "agent"
    COORDINATOR = "coordinator"
    OPERATOR = "operator"
    VIEWER = "viewer"


@contextlib.contextmanager
def _files() -> Iterator[None]:
    """Tell of files that cannot be written as of any other refusal."""
    try:
        yield
    except OSError as error:
        raise WrongState(f"{error.filename}: {error.strerror}", reason="FILE_UNWRITABLE") from error
    except ValueError as error:
        raise InvalidRequest(f"an address cannot stand in a certificate: {error}", reason="ADDRESS_INVALID") from error


@app.command
def init(directory: Path = DEFAULT_AUTHORITY, /) -> ExitCode:
    """Make a certificate authority; refused where there is one.

    Args:
        directory: Gets ca.pem, to be given to everybody, and ca-key.pem, to be kept from everybody.
    """
    with _files():
        init_authority(directory)
    screen = Screen()
    screen.note(f"authority made in {directory}; keep its ca-key.pem off the hosts")
    screen.note(f"next: ferry pki issue host-a --role agent --address <name or IP of host-a> --ca {directory}")
    return ExitCode.DONE


@app.command(name="issue")
def issue_certificate(  # noqa: PLR0913 - an option each
    name: str,
    /,
    *,
    role: Annotated[RoleName, Parameter(metavar="ROLE")],
    address: Annotated[tuple[str, ...], Parameter(name=("--address", "-a"), negative="", show_default=False)] = (),
    ca: Path = DEFAULT_AUTHORITY,
    out: Path | None = None,
    replace: Switch = False,
) -> ExitCode:
    """Make a certificate for a process or a user; again, to renew one: without --address it keeps its addresses.

    Args:
        name: Name of the host, for an agent and its tunnel; else any name.
        role: What it may do: agent (also for its tunnel), coordinator, operator (may do everything), viewer (may look).
        address: DNS name or IP address that others reach it by; once for each. Not needed for operators and viewers.
        ca: Directory of the authority.
        out: Directory that gets ca.pem, cert.pem and key.pem; without it a directory of that name beside the authority.
        replace: Overwrite the certificate of another holder, or drop addresses of the one before.
    """
    directory = ca.parent / name if out is None else out.expanduser()
    screen = Screen()
    before = find_issued(directory)
    if before is not None:
        _check_holder(before, directory, name, Role[role.name], is_sure=replace)
        dropped = [host for host in before.hosts if address and host not in address]
        if dropped and not replace:
            raise WrongState(
                f"the certificate in {directory} also names {', '.join(dropped)}: give all addresses, or none to keep them, "
                "or --replace to drop them",
                reason="ADDRESSES_DROPPED",
            )
    hosts = list(address) or ([] if before is None else list(before.hosts))
    with _files():
        issued = issue(ca, directory, name, Role[role.name], hosts)
    screen.note(f"{role.value} certificate of {name} made in {directory}, valid until {issued.ends:%Y-%m-%d}")
    if issued.hosts:
        kept = "" if address else ", kept from the one before"
        screen.note(f"others reach it by {', '.join(issued.hosts)}{kept}")
    if before is not None:
        screen.note("restart the process that uses it: certificates are read when it starts")
    return ExitCode.DONE


def _check_holder(before: Issued, directory: Path, name: str, role: Role, *, is_sure: bool) -> None:
    """Refuse to overwrite the certificate of somebody else."""
    if (before.name, before.role) != (name, role) and not is_sure:
        raise WrongState(
            f"{directory} holds the {before.role.value} certificate of {before.name}: name another directory by --out, "
            "or give --replace to overwrite it",
            reason="CERTIFICATE_OF_OTHER",
        )
