"""QEMUs that must not outlive the agent: probes, unlike guests, are nobody's."""

from __future__ import annotations

import shutil


def dying_with_us() -> tuple[str, ...]:
    """Return what goes before a command line so that the kernel ends the program when the thread that started it ends.

    Empty where there is no `setpriv`; a killed agent may then leave a probe behind.

    Source: setpriv(1), PR_SET_PDEATHSIG in prctl(2).
    """
    found = shutil.which("setpriv")
    return () if found is None else (found, "--pdeathsig", "KILL", "--")
