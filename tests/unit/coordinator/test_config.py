"""Settings: from a file, from the environment, and what is said about wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import InvalidRequest
from coordinator.config import load

GOOD = """
listen = "127.0.0.1:7800"
insecure = true

[hosts.host-a]
agent = "127.0.0.1:7701"

[hosts.host-b]
agent = "[::1]:7701"
tunnel = "host-b.example:7702"
"""


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for name in ("LISTEN", "PKI", "INSECURE", "STATE_DIR", "OTLP_ENDPOINT", "LOG_LEVEL"):
        monkeypatch.delenv(f"FERRY_COORDINATOR_{name}", raising=False)


def write(directory: Path, text: str) -> Path:
    path = directory / "coordinator.toml"
    path.write_text(text)
    return path


def test_a_file_names_the_hosts(tmp_path: Path):
    config = load(write(tmp_path, GOOD))

    assert config.listen == "127.0.0.1:7800"
    assert config.identity is None
    assert {name: (host.agent, host.tunnel) for name, host in config.hosts.items()} == {
        "host-a": ("127.0.0.1:7701", ""),
        "host-b": ("[::1]:7701", "host-b.example:7702"),
    }


def test_the_environment_is_stronger_than_the_file(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("FERRY_COORDINATOR_LISTEN", "127.0.0.1:9999")
    monkeypatch.setenv("FERRY_COORDINATOR_STATE_DIR", "/tmp/elsewhere")

    config = load(write(tmp_path, GOOD))

    assert config.listen == "127.0.0.1:9999"
    assert config.state_dir == Path("/tmp/elsewhere")


def test_without_a_file_the_environment_is_enough(monkeypatch):
    monkeypatch.setenv("FERRY_COORDINATOR_PKI", "/etc/ferry/pki")

    config = load(None)

    assert config.identity is not None
    assert config.identity.certificate == Path("/etc/ferry/pki/cert.pem")
    assert config.hosts == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("insecure = true\nlisten = ", r"config file .*coordinator\.toml: "),
        ("insecure = true\nlissten = 1", "setting lissten: extra inputs are not permitted"),
        ("insecure = true\n[hosts.host-a]\ntunnel = '127.0.0.1:1'", r"setting hosts\.host-a\.agent: field required"),
        ("insecure = true\n[hosts.host-a]\nagent = '127.0.0.1'", r"setting hosts\.host-a\.agent: address '127.0.0.1': host:port"),
        ("insecure = true\n[hosts.host-a]\nagent = 'a:1'\ntunnel = 'b'", r"setting hosts\.host-a\.tunnel: address 'b'"),
        ("insecure = true\nlisten = 'everywhere'", "setting listen: address 'everywhere'"),
        ("listen = '127.0.0.1:1'", "no certificates: set pki .* or insecure = true"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, told: str):
    with pytest.raises(InvalidRequest, match=told):
        load(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InvalidRequest, match=r"nothing\.toml: No such file"):
        load(tmp_path / "nothing.toml")


def test_a_misspelt_variable_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("FERRY_COORDINATOR_LISTN", "127.0.0.1:9999")

    with pytest.raises(InvalidRequest, match=r"FERRY_COORDINATOR_LISTN is no setting; known: .*FERRY_COORDINATOR_LISTEN"):
        load(write(tmp_path, GOOD))
