"""An XML from before a disk got another image does not put the old one back without a word."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.vm.definition import Definition
from agent.vm.domain.parse import parse_domain
from agent.vm.replaced_images import check_images
from common.errors import WrongState


def on(path: Path, inside: str = "") -> Definition:
    xml = f"""<domain type='qemu'><name>web</name><memory>65536</memory><os><type machine='q35'>hvm</type></os><devices>
        <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{path}'/>
        <target dev='vda' bus='virtio'/>{inside}</disk></devices></domain>"""
    return parse_domain(xml.encode(), "web.xml")


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    old, new = tmp_path / "old.raw", tmp_path / "new.raw"
    old.touch()
    new.touch()
    return old, new


def test_another_image_than_the_one_in_use_is_refused_with_both_named(images: tuple[Path, Path]):
    old, new = images

    with pytest.raises(
        WrongState, match=r"disk vda is on .*new\.raw \(last written .*, the new definition names .*old\.raw"
    ) as caught:
        check_images(on(old), [on(new)])

    assert caught.value.reason == "IMAGE_REPLACED"
    assert "--force" in caught.value.text


def test_the_image_that_runs_or_is_stored_is_taken_by_whatever_name(images: tuple[Path, Path], tmp_path: Path):
    old, new = images
    (tmp_path / "link").symlink_to(new)

    check_images(on(new), [on(old), on(new)])
    check_images(on(tmp_path / "link"), [on(new)])


def test_an_image_that_is_gone_or_read_only_may_be_another(images: tuple[Path, Path], tmp_path: Path):
    old, new = images

    check_images(on(old), [on(tmp_path / "gone.raw")])
    check_images(on(old), [on(new, "<readonly/>")])
