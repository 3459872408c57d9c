"""What is refused, with a message that says what to do, and with nothing left behind."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import stat
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from agent.tunnel.app import Settings, tunnel
from agent.tunnel.client import TunnelClient
from agent.tunnel.frames import HALF_CLOSE, encode_data, encode_open
from common.errors import Expired, FerryError, InvalidRequest, Unreachable, WrongState
from common.identity import Identity
from common.rpc.channel import open_channel
from tests.fakes.network import black_hole, closed_port
from tests.unit.agent.tunnel.fakes import LOOPBACK, PATIENCE_S, TOKEN, Pair, pair

RELAY = "/ferry.tunnel.v1.TunnelService/Relay"


async def refusal(tunnels: Pair, token: str = TOKEN) -> FerryError:
    with pytest.raises(FerryError) as refused:
        await tunnels.open_entrance(token=token)
    assert not tunnels.entrance_path.exists()
    assert await tunnels.source.list_sessions() == ()
    assert token not in refused.value.text
    return refused.value


async def outcome(call: grpc.aio.StreamStreamCall[bytes, bytes]) -> grpc.StatusCode:
    """Read all that comes, and return the code at the end."""
    with suppress(grpc.aio.AioRpcError):
        async with asyncio.timeout(PATIENCE_S):
            while await call.read() is not grpc.aio.EOF:
                pass
    return await call.code()


async def test_a_wrong_token_is_refused_before_qemu_is_asked_to_connect(tunnels):
    await tunnels.open_exit()

    error = await refusal(tunnels, "not-" + TOKEN)

    assert isinstance(error, WrongState)
    assert error.reason == "TOKEN_WRONG"


async def test_an_expired_token_is_refused(tunnels):
    await tunnels.open_exit(lifetime_s=1e-9)

    assert (await refusal(tunnels)).reason == "TOKEN_EXPIRED"


async def test_the_token_of_a_closed_session_is_refused(tunnels):
    await tunnels.open_exit()
    await tunnels.destination.close_session("migration-1")

    assert (await refusal(tunnels)).reason == "TOKEN_REUSED"


async def test_a_token_whose_connections_were_all_made_is_refused(tunnels):
    await tunnels.open()
    await tunnels.connect()
    await tunnels.source.close_session("migration-1")

    assert (await refusal(tunnels)).reason == "TOKEN_REUSED"


async def test_a_tunnel_that_is_not_running_is_named_with_the_command_to_start_it(directory):
    path = directory / "nobody.control"

    async with TunnelClient(path) as client:
        with pytest.raises(Unreachable) as refused:
            await client.list_sessions()

    assert refused.value.reason == "TUNNEL_NOT_RUNNING"
    assert refused.value.text.endswith(f"start it: ferry-tunnel --control {path}")


async def test_the_other_hosts_tunnel_that_is_not_running_is_not_taken_for_ours(tunnels):
    tunnels.peer_port = closed_port()

    error = await refusal(tunnels)

    assert isinstance(error, Unreachable)
    assert error.reason == "PEER_UNREACHABLE"
    assert f"tunnel at {LOOPBACK}:{tunnels.peer_port}" in error.text


async def test_another_hosts_tunnel_that_does_not_answer_is_given_up(tunnels, monkeypatch):
    monkeypatch.setattr("agent.tunnel.entrance.CHECK_TIMEOUT_S", 0.2)
    with black_hole() as (_, port):
        tunnels.peer_port = port

        error = await refusal(tunnels)

    assert isinstance(error, Expired | Unreachable)
    assert f"tunnel at {LOOPBACK}:{port}" in error.text


async def test_a_certificate_of_another_role_may_not_use_the_tunnel(directory, identity, pki):
    operator = Identity.in_directory(pki / "operator")
    settings = Settings(f"{LOOPBACK}:0", directory / "o.control", operator)
    async with pair(directory, identity) as tunnels, tunnel(settings), TunnelClient(settings.control) as client:
        with pytest.raises(InvalidRequest) as refused:
            await client.open_entrance("m", TOKEN, directory / "o.sock", f"{LOOPBACK}:{tunnels.peer_port}", 1)

    assert refused.value.reason == "NOT_ALLOWED"
    assert "the caller's certificate says operator" in refused.value.text


async def test_a_tunnel_without_certificate_does_not_reach_one_that_has_one(directory, identity):
    settings = Settings(f"{LOOPBACK}:0", directory / "p.control", None)
    async with pair(directory, identity) as tunnels, tunnel(settings), TunnelClient(settings.control) as client:
        with pytest.raises(Unreachable) as refused:
            await client.open_entrance("m", TOKEN, directory / "p.sock", f"{LOOPBACK}:{tunnels.peer_port}", 1)

    assert refused.value.reason == "PEER_UNREACHABLE"
    assert "certificate" in refused.value.text


async def test_plain_text_is_for_loopback_only(directory):
    with pytest.raises(InvalidRequest) as refused:
        async with tunnel(Settings("0.0.0.0:0", directory / "x.control", None)):
            pass

    assert refused.value.reason == "PLAIN_TEXT_NOT_LOOPBACK"


async def test_two_tunnels_on_loopback_may_speak_plain_text(directory):
    async with pair(directory, None) as tunnels:
        await tunnels.open()
        source, destination = await tunnels.connect()

        await source.send(b"ping")

        assert await destination.receive() == b"ping"


@pytest.mark.parametrize("frame_bytes", [0, 4095, 4 * 1024 * 1024 + 1])
def test_a_frame_size_out_of_range_is_refused(frame_bytes):
    with pytest.raises(InvalidRequest) as refused:
        Settings(f"{LOOPBACK}:0", Path("/run/x"), None, frame_bytes=frame_bytes)

    assert refused.value.reason == "CONFIG_INVALID"


async def test_the_control_socket_is_for_its_owner_alone(tunnels):
    assert stat.S_IMODE((tunnels.directory / "source.control").stat().st_mode) == 0o600


async def test_a_second_tunnel_does_not_take_the_control_socket_of_a_running_one(tunnels):
    with pytest.raises(WrongState) as refused:
        async with tunnel(Settings(f"{LOOPBACK}:0", tunnels.directory / "source.control", None)):
            pass

    assert refused.value.reason == "ADDRESS_TAKEN"
    assert await tunnels.source.list_sessions() == ()


async def test_the_control_socket_that_a_killed_tunnel_left_is_replaced(directory):
    path = directory / "x.control"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))

    async with tunnel(Settings(f"{LOOPBACK}:0", path, None)), TunnelClient(path) as client:
        assert await client.list_sessions() == ()
    assert not path.exists()


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ((encode_data(b"first"),), grpc.StatusCode.INVALID_ARGUMENT),
        ((b"\x22\x00",), grpc.StatusCode.INVALID_ARGUMENT),
        ((encode_open("wrong", 0),), grpc.StatusCode.FAILED_PRECONDITION),
        ((encode_open(TOKEN, 1),), grpc.StatusCode.INVALID_ARGUMENT),
        ((encode_open(TOKEN, 0), encode_open(TOKEN, 0)), grpc.StatusCode.ABORTED),
        ((encode_open(TOKEN, 0), HALF_CLOSE, encode_data(b"late")), grpc.StatusCode.ABORTED),
        ((encode_open(TOKEN, 0), b"rubbish"), grpc.StatusCode.ABORTED),
    ],
    ids=["data first", "no frame", "wrong token", "ordinal", "open twice", "data after the end", "rubbish"],
)
async def test_a_stream_that_breaks_the_rules_is_refused(tunnels, identity, frames, code):
    await tunnels.open_exit()
    channel = open_channel(f"{LOOPBACK}:{tunnels.peer_port}", identity)
    call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(RELAY)()

    for frame in frames:
        await call.write(frame)
    answer = await outcome(call)
    await channel.close()

    assert answer is code


async def test_a_frame_larger_than_the_limit_breaks_the_connection_and_nothing_else(tunnels, identity):
    await tunnels.open_exit(channel_count=2)
    channel = open_channel(f"{LOOPBACK}:{tunnels.peer_port}", identity)
    call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(RELAY)()

    await call.write(encode_open(TOKEN, 0))
    await call.write(encode_data(bytes(5 * 1024 * 1024)))
    code = await outcome(call)
    await channel.close()

    assert code is grpc.StatusCode.ABORTED
    assert len(await tunnels.destination.list_sessions()) == 1


async def test_an_entrance_that_is_opened_again_replaces_the_first(tunnels):
    await tunnels.open_exit(channel_count=2)
    await tunnels.open_entrance(channel_count=2)
    first, _ = await tunnels.connect()

    await tunnels.destination.open_exit("migration-1", hashlib.sha256(b"new").digest(), tunnels.qemu.path, 1, 60.0)
    await tunnels.open_entrance(token="new")
    await first.wait_end()
    source, destination = await tunnels.connect()
    await source.send(b"ping")

    assert await destination.receive() == b"ping"
