"""Which line a console is attached to."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.vm.lines import Place, find_line
from common.errors import NotFound, WrongState

QMP = {"label": "qmp0", "filename": "unix:/run/x.qmp,server=on", "frontend-open": True}
PTY = {"label": "charserial0", "filename": "pty:/dev/pts/3", "frontend-open": True}
FREE = {"label": "charserial1", "filename": "disconnected:unix:/run/s1,server=on", "frontend-open": True}
TAKEN = {"label": "serial2", "filename": "unix:/run/s2,server=on", "frontend-open": True}
FILE = {"label": "charconsole0", "filename": "file", "frontend-open": True}


@pytest.mark.parametrize(
    ("device", "wanted"),
    [
        ("", Place("serial0", Path("/dev/pts/3"), is_socket=False, is_taken=False)),
        ("serial1", Place("serial1", Path("/run/s1"), is_socket=True, is_taken=False)),
        ("serial2", Place("serial2", Path("/run/s2"), is_socket=True, is_taken=True)),
    ],
)
def test_a_line_is_found_by_its_name_or_the_first_is_taken(device, wanted):
    assert find_line([QMP, FREE, PTY, TAKEN, FILE], device, "web") == wanted


def test_a_monitor_is_no_line():
    with pytest.raises(NotFound, match="VM web has no line qmp0; its lines: serial0"):
        find_line([QMP, PTY], "qmp0", "web")


def test_a_file_cannot_be_attached():
    with pytest.raises(WrongState, match="console0 goes to file; only a line of type pty or unix"):
        find_line([QMP, FILE], "", "web")


def test_a_vm_without_lines_says_so():
    with pytest.raises(NotFound, match="VM web has no line at all; its lines: none"):
        find_line([QMP], "", "web")
