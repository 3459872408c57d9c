"""Command lines are taken apart as QEMU takes them apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.vm.adoption.words import Given, last, parse_argument, parse_words, split_options
from agent.vm.options import Option, Syntax, write_keyval
from common.errors import InvalidRequest

KEYS = st.from_regex(r"[a-z][a-z0-9_.-]{0,12}", fullmatch=True).filter(lambda key: not key.startswith("no"))
VALUES = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=30)
PRINTABLE = VALUES.filter(str.isprintable)


@given(st.dictionaries(KEYS, VALUES, min_size=1))
def test_what_was_written_is_read_again(properties):
    assert parse_words(write_keyval(properties)) == properties


@given(st.dictionaries(KEYS, PRINTABLE, min_size=1), st.sampled_from(["device", "chardev", "netdev", "drive", "fsdev"]))
def test_an_option_is_read_as_it_was_written(properties, name):
    first = {"driver": "x,y", **{key: value for key, value in properties.items() if key not in ("driver", "id")}}
    option = Option(name, Syntax.KEYVAL, None, first)

    (found,) = split_options(option.write())

    assert (found.name, parse_words(found.text, "driver")) == (name, first)


@given(st.dictionaries(KEYS, st.lists(PRINTABLE, min_size=2, max_size=4), min_size=1))
def test_a_repeated_key_is_a_list(properties):
    assert parse_words(write_keyval(properties)) == properties


@given(st.text(max_size=60))
def test_any_text_is_read_without_an_accident(text):
    parse_words(text, "driver")


@pytest.mark.parametrize(
    ("text", "implied", "wanted"),
    [
        ("virtio-net-pci,netdev=n,mq", "driver", {"driver": "virtio-net-pci", "netdev": "n", "mq": "on"}),
        (
            "socket,id=a,path=/x,,y=z,server,nowait",
            "backend",
            {"backend": "socket", "id": "a", "path": "/x,y=z", "server": "on", "wait": "off"},
        ),
        ("file=/a b/é'\".img,,,if=none", "", {"file": "/a b/é'\".img,", "if": "none"}),
        ("user,id=n,hostfwd=a,hostfwd=b", "type", {"type": "user", "id": "n", "hostfwd": ["a", "b"]}),
        ("driver=x=y", "driver", {"driver": "x=y"}),
        ("", "driver", {}),
    ],
)
def test_words_are_read_as_qemu_reads_them(text, implied, wanted):
    assert parse_words(text, implied) == wanted


def test_options_are_told_from_their_arguments():
    found = split_options(["--nographic", "-M", "q35", "disk.img", "-S", "-serial", "-", "--device", "-x"])

    assert found == (
        Given("nographic", None),
        Given("machine", "q35"),
        Given("hda", "disk.img"),
        Given("S", None),
        Given("serial", "-"),
        Given("device", "-x"),
    )


def test_json_keeps_its_types():
    assert parse_argument('{"driver":"x","n":1,"on":true}', "driver") == ({"driver": "x", "n": 1, "on": True}, True)


@pytest.mark.parametrize("words", [["-m"], ["-nographic", "-device"]])
def test_an_option_without_its_argument_is_no_command_line_of_qemu(words):
    with pytest.raises(InvalidRequest, match="has no argument"):
        split_options(words)


def test_json_that_is_none_is_refused():
    with pytest.raises(InvalidRequest, match="is not JSON"):
        parse_argument("{driver", "driver")


def test_of_a_repeated_key_the_last_counts():
    assert last(["a", "b"]) == "b"
