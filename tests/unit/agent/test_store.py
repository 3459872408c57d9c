"""The agent's directory."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from agent.store import MAX_SOCKET_PATH_BYTES, Store
from common.errors import InvalidRequest

UUID_1 = UUID("00000000-0000-0000-0000-000000000001")
UUID_2 = UUID("00000000-0000-0000-0000-000000000002")


def test_records_of_a_vm_come_back_until_the_vm_is_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.vm(UUID_1).save_definition({"a": 1})
    store.vm(UUID_1).save_running({"b": 2})

    again = Store(tmp_path)

    assert list(again.vm_uuids()) == [UUID_1]
    assert again.vm(UUID_1).find_definition() == {"a": 1}
    assert again.vm(UUID_1).find_running() == {"b": 2}
    again.vm(UUID_1).remove()
    assert list(again.vm_uuids()) == []


def test_directories_are_the_agents_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    store.vm(UUID_1).save_definition({})

    for directory in (store.state_dir, store.run_dir, store.keys_dir, store.vm(UUID_1).path):
        assert directory.stat().st_mode & 0o077 == 0


def test_migrations_whose_ids_begin_alike_have_sockets_of_their_own(tmp_path: Path) -> None:
    store = Store(tmp_path)

    assert store.session_socket_path("web-to-host-b-1", "in") != store.session_socket_path("web-to-host-b-2", "in")


def test_uuids_that_begin_alike_have_sockets_of_their_own(tmp_path: Path) -> None:
    store = Store(tmp_path)

    assert store.vm(UUID_1).qmp_path != store.vm(UUID_2).qmp_path


def test_a_directory_too_deep_for_sockets_is_refused_with_the_numbers(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * MAX_SOCKET_PATH_BYTES)

    with pytest.raises(InvalidRequest, match=f"{MAX_SOCKET_PATH_BYTES} is the most"):
        Store(deep)

    assert not deep.exists()


def test_sockets_may_lie_elsewhere(tmp_path: Path) -> None:
    store = Store(tmp_path / ("d" * MAX_SOCKET_PATH_BYTES), run_dir=tmp_path / "r")

    assert store.vm(UUID_1).qmp_path.parent == (tmp_path / "r").resolve()


def test_files_that_are_not_ours_are_no_vms(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "vms" / "lost+found").mkdir()
    (tmp_path / "vms" / str(UUID_1).upper().replace("-", "")).mkdir()

    assert list(store.vm_uuids()) == []


def test_sessions_come_back_by_id(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save_session("m-2", {"n": 2})
    store.save_session("m-1", {"n": 1})

    assert store.session_ids() == ["m-1", "m-2"]
    assert store.find_session("m-2") == {"n": 2}
    store.remove_session("m-1")
    assert store.find_session("m-1") is None


@pytest.mark.parametrize("session_id", ["", "../x", "a/b", "a.json", "a\n", "-a", "x" * 65])
def test_a_session_id_cannot_leave_its_directory(tmp_path: Path, session_id: str) -> None:
    store = Store(tmp_path)

    with pytest.raises(InvalidRequest, match="migration id"):
        store.save_session(session_id, {})
