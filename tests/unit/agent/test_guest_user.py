"""The user that guests run as is looked up when the agent starts, and refused with a reason."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from agent.guest_user import GuestUser
from common.errors import InvalidRequest


def test_no_name_is_the_agents_own_user_and_changes_nothing(tmp_path: Path):
    before = tmp_path.stat()

    user = GuestUser.named("")
    user.own(tmp_path)
    user.admit(tmp_path)
    user.let_make(tmp_path)

    assert user.prefix == ()
    assert tmp_path.stat() == before


def test_an_unknown_user_is_named():
    with pytest.raises(InvalidRequest, match="'no-such-user': this host has no such user"):
        GuestUser.named("no-such-user")


def test_root_is_no_unprivileged_user():
    with pytest.raises(InvalidRequest, match="is root"):
        GuestUser.named("root")


def test_only_root_can_run_guests_as_another(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(InvalidRequest, match="only an agent that runs as root"):
        GuestUser.named("nobody")


def test_the_command_prefix_leaves_no_group_of_the_agents(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    entry = pwd.getpwnam("nobody")

    prefix = GuestUser.named("nobody").prefix

    assert prefix[:5] == ("setpriv", "--reuid", str(entry.pw_uid), "--regid", str(entry.pw_gid))
    assert prefix[5:] == ("--groups", str(entry.pw_gid), "--inh-caps=-all", "--")
