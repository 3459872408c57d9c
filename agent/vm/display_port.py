"""A port for a display of type spice: the only display whose port QEMU does not choose by itself."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from agent.vm.options import FREE_PORT
from common.errors import WrongState

if TYPE_CHECKING:
    from agent.vm.definition import Definition

FIRST_PORT: Final = 5900
_PORT_COUNT: Final = 1000


def find_spice_port(definition: Definition) -> int:
    """Find a port that is free on the display's address; the first there is where the definition leaves no choice.

    Raises:
        WrongState: none is free.
    """
    address = next((option.get("addr") for option in definition.find("spice") if option.get("port") == FREE_PORT), None)
    if address is None:
        return FIRST_PORT
    for port in range(FIRST_PORT, FIRST_PORT + _PORT_COUNT):
        try:
            socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET).close()
        except socket.gaierror as error:
            raise WrongState(f"spice address {address}: {error.strerror}", reason="ADDRESS_UNKNOWN", address=address) from error
        except OSError:
            continue
        return port
    raise WrongState(
        f"spice address {address}: none of the ports {FIRST_PORT} to {FIRST_PORT + _PORT_COUNT - 1} is free", reason="PORT_TAKEN"
    )
