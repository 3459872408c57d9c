"""Whatever stands where a definition has a value, it stays that value: no new option, no new key, no file outside of the roots."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.vm import argv
from agent.vm.definition import Accelerator
from agent.vm.host_checks import check_paths
from agent.vm.host_files import host_files
from agent.vm.options import Option, Syntax, of_json, text
from agent.vm.paths import confine
from common.errors import InvalidRequest, WrongState
from tests.unit.agent.vm.samples import FULL, parse, pinned

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.vm.definition import Definition

_NASTY = (
    *(",", ",,", "=", ",x=y", "\n", "\x00", "..", "/../", "-monitor", "--", " -S", "'", '"', "\\", "{", "}", "{run}", "%", "$(id)"),
    *(
        ",script=/bin/sh",
        "file:/etc/shadow",
        "json:{}",
        "/etc/shadow",
        "on",
        "id=",
        ",id=vda",
        "\u2028",
        "é",
        "\u202e",
        "&amp;",
        "&#10;",
    ),
)
# What is switched off of a CPU and unknown to QEMU is left out of its words.
_LESS = {("-cpu", ("(word)",) * count) for count in range(1, 9)}
# Every place of the sample where a value stands: between quotes, or between tags.
_PLACES = tuple(re.finditer(r"='([^']*)'|>([^<>\n]+)<", FULL))


@given(st.sampled_from(range(len(_PLACES))), st.lists(st.sampled_from(_NASTY), min_size=1, max_size=3), st.booleans())
@settings(max_examples=600)
def test_a_value_of_a_domain_cannot_become_more_than_a_value(place: int, pieces: list[str], keeps: bool) -> None:  # noqa: FBT001
    match = _PLACES[place]
    group = 1 if match.group(1) is not None else 2
    value = (match.group(group) if keeps else "") + "".join(pieces)
    xml = FULL[: match.start(group)] + value.replace("<", "").replace("'", "&apos;") + FULL[match.end(group) :]

    try:
        definition = pinned(xml)
    except (InvalidRequest, WrongState):
        return

    assert {one for one in shape(definition) if one not in _LESS} <= _SHAPE


def shape(definition: Definition) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Give every option of the command line with its keys, without the values."""
    words = iter(build(definition)[1:])
    for option in words:
        assert option.startswith("-"), option
        if option in ("-nodefaults", "-no-user-config", "-S"):
            yield option, ()
            continue
        yield option, tuple(sorted(keys_of(option, next(words))))


def keys_of(option: str, text: str) -> Iterator[str]:
    """Give the keys of one argument as QEMU would find them."""
    if option in ("-append", "-kernel", "-initrd", "-bios", "-uuid"):
        return
    if text.startswith("{"):
        yield from json.loads(text)
        return
    for word in re.findall(r"(?:[^,]|,,)+", text):
        is_feature = option == "-cpu"  # its keys are values of the definition
        yield "(word)" if is_feature or "=" not in word else word.partition("=")[0]


def build(definition: Definition) -> tuple[str, ...]:
    taps = {tap.netdev: argv.TapFds([20], [30]) for tap in definition.taps}
    return argv.build(definition, argv.HostSide("/usr/bin/qemu", Accelerator.TCG, 9, tap_fds=taps))


_SHAPE = frozenset(shape(pinned(FULL)))
_PATH_PARTS = st.lists(
    st.sampled_from(["images", "link", "loop", "..", ".", "a.img", "", "etc", "~", "-x"]), min_size=1, max_size=6
)


@given(_PATH_PARTS, st.booleans())
def test_no_path_leads_out_of_the_roots(tmp_path_factory: pytest.TempPathFactory, parts: list[str], below: bool) -> None:  # noqa: FBT001
    place = tmp_path_factory.getbasetemp() / "confined"
    if not place.exists():
        (place / "images").mkdir(parents=True)
        (place / "images" / "link").symlink_to("/etc")
        (place / "images" / "loop").symlink_to(place / "images" / "loop")
        (place / "images" / "a.img").touch()
    path = "/".join([str(place / "images") if below else str(place), *parts])

    try:
        found = confine(path, [place / "images"])
    except InvalidRequest:
        return

    assert found.is_relative_to(place / "images")
    assert not str(found).startswith("/etc")


_OUTSIDE = Path("/etc/shadow")


@given(
    st.sampled_from(
        ["drive", "chardev", "object", "netdev", "fsdev", "audiodev", "blockdev", "net", "vnc", "serial", "tpmdev", "boot"]
    ),
    st.sampled_from(["file", "file.filename", "path", "filename", "mem-path", "logfile", "dir", "backing.file.filename", "tftp"]),
    st.sampled_from(
        ["{}", "file:{}", "fat:rw:{}", "host_device:{}", 'json:{{"filename":"{}"}}', "..{}", "srv/..{}", "unix:{}", "pipe:{}"]
    ),
    st.sampled_from(Syntax),
)
@example("drive", "file", 'json:{{"filename":"\\u002fetc\\u002fshadow"}}', Syntax.KEYVAL)
def test_no_option_of_a_definition_names_a_file_outside_of_the_roots(name: str, key: str, form: str, syntax: Syntax) -> None:
    value = form.format(_OUTSIDE)
    try:
        if syntax is Syntax.TEXT:
            option = Option(name, syntax, f"x,{key}={value.replace(',', ',,')}", {})
        else:
            option = Option(name, syntax, None, {"id": "x", key: value})
    except InvalidRequest:
        return
    definition = parse(FULL)
    tampered = replace(definition, options=(*definition.options, option))

    with pytest.raises(InvalidRequest):
        check_paths(tampered, [Path(file.path).parent for file in host_files(definition)])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("net", "tap,script=/tmp/x"),
        ("nic", "bridge,helper=/tmp/x"),
        ("net", "tap,,x=y,downscript=/tmp/x"),
        ("serial", "mon:stdio"),
        ("net", "tap,fd=9"),
        ("netdev", "user,id=n,guestfwd=tcp:10.0.2.9:1-cmd:id"),
    ],
)
def test_a_text_that_runs_a_program_or_opens_a_monitor_is_refused(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match="may not be part of a definition"):
        Option(name, Syntax.TEXT, value, {})


@pytest.mark.parametrize(
    "name", ["monitor", "qmp", "mon", "incoming", "daemonize", "runas", "chroot", "plugin", "pidfile", "D", "sandbox", ""]
)
def test_an_option_that_is_no_part_of_a_guest_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="may not be part of a definition"):
        Option(name, Syntax.TEXT, "x", {})


@pytest.mark.parametrize("kind", ["monitor-hmp", "monitor-qmp"])
def test_an_object_that_is_a_monitor_is_refused(kind: str) -> None:
    with pytest.raises(InvalidRequest, match="monitor"):
        of_json("object", {"qom-type": kind, "id": "m", "chardev": "c"})
    with pytest.raises(InvalidRequest, match="monitor"):
        text("object", f"{kind},id=m,chardev=c")
