"""A lab to try Ferry in: two hosts in namespaces of their own, and a shell to steer them.

    python -m deploy.lab          needs root; leave the shell to end everything

In the shell `ferry` is on the PATH and knows the fleet. The variables A and B hold the names of the namespaces:

    ferry host ls
    ferry vm define "$LAB/web.xml" --host host-a; ferry vm start web; tail -f "$LAB/console.log"
    ferry migrate web --to host-b
    ip netns exec $A tc qdisc replace dev eth0 root tbf rate 100mbit burst 64kb latency 50ms     # a slow link
    ip netns exec $B ip link set eth0 down                                                       # a pulled cable
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from deploy.demo import guest
from deploy.lab.fleet import HOSTS, Fleet
from deploy.lab.network import TwoHosts


def main() -> int:
    """Build the lab, run a shell in it, and take it down."""
    if os.geteuid() != 0:
        print("network namespaces need root", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="ferry-") as name, TwoHosts() as hosts:
        directory = Path(name)
        (directory / "web.xml").write_text(guest.definition(directory / "console.log"))
        with Fleet(directory, places=hosts) as fleet:
            a, b = (hosts.namespace(host) for host in HOSTS)
            path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
            variables = {"A": a, "B": b, "LAB": name, "PATH": path, "PS1": "(ferry lab) $ "}
            print(__doc__)
            shell = (os.environ.get("SHELL", "/bin/sh"),)
            subprocess.run(shell, env={**fleet.environment, **variables}, cwd=directory, check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
