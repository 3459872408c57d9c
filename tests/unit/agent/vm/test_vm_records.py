"""Records of a VM of which some cannot be read."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from agent.store import Store, VmDirectory
from agent.vm.registry import Registry
from common.errors import NotFound, WrongState

UUID_1 = UUID("b3a1fd0e-8b4f-4d13-a2c5-1f8a8f4b2f10")


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("s"))


def put(path: Path, content: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)


def loaded(store: Store) -> Registry:
    registry = Registry(store)
    assert list(registry.load()) == []
    return registry


@pytest.fixture
def directory(store: Store) -> VmDirectory:
    return store.vm(UUID_1)


@pytest.mark.parametrize("content", ["", "{", '{"kind": "definition", "version": 9, "body": {}}', "\\0\\0"])
def test_a_definition_that_cannot_be_read_keeps_its_uuid_and_its_file(content: str, store: Store, directory: VmDirectory):
    put(directory.definition_path, content)

    registry = loaded(store)

    (unread,) = registry.unreadable()
    assert (unread.uuid, unread.name, unread.is_running) == (UUID_1, str(UUID_1), False)
    with pytest.raises(WrongState) as caught:
        registry.get(str(UUID_1))
    assert caught.value.reason == "RECORD_BROKEN"
    assert str(directory.definition_path) in caught.value.text
    assert directory.definition_path.read_text() == content


def test_its_name_is_kept_as_far_as_any_record_tells_it(store: Store, directory: VmDirectory):
    put(directory.definition_path, '{"kind": "definition", "version": 1, "body": {"version": 1, "name": "web", "uuid": "b3')

    registry = loaded(store)

    with pytest.raises(WrongState):
        registry.get("web")
    with pytest.raises(NotFound):
        registry.get("db")
    assert registry.find_unreadable("web") is not None


def test_what_can_be_read_of_no_record_is_not_removed_as_the_rest_of_a_vm(store: Store, directory: VmDirectory):
    put(directory.running_path, "{")

    loaded(store)

    assert directory.running_path.exists()


def test_the_rest_of_a_vm_without_records_is_removed(store: Store, directory: VmDirectory):
    put(directory.log_path, "last words")

    assert loaded(store).unreadable() == []
    assert not directory.path.exists()
