"""The token that opens a tunnel's session: wrong, expired and used ones are refused, and nothing changed."""

from __future__ import annotations

import hashlib
import secrets
from uuid import uuid4

import pytest

from common.errors import WrongState
from common.identity import Identity, Role
from common.pki import issue
from common.rpc.channel import open_channel
from common.rpc.status import calls_to
from ferry.tunnel.v1 import tunnel_control_service_pb2 as control_pb
from ferry.tunnel.v1 import tunnel_control_service_pb2_grpc as control_rpc
from ferry.tunnel.v1 import tunnel_service_pb2 as pb
from ferry.tunnel.v1 import tunnel_service_pb2_grpc as rpc
from tests.e2e.guest import Plan
from tests.e2e.lab import Lab, refused
from tests.e2e.move import State, seconds, wishes
from tests.e2e.steps import Steps, steps
from tests.e2e.waiting import until_equal

LIFETIME_S = 0.2
BUSY = Plan(dirty_mib_s=8.0)


async def check(lab: Lab, token: str, identity: Identity | None) -> None:
    """Ask the destination's tunnel whether a token is good, as another tunnel does."""
    async with open_channel(lab.fleet.tunnel_address("host-b"), identity) as channel:
        await rpc.TunnelServiceStub(channel).CheckSession(pb.CheckSessionRequest(token=token))


async def test_a_wrong_token_is_refused_before_anything_is_sent(lab: Lab):
    guest = await lab.start_guest()
    async with steps(lab, wishes(tunnel=True)) as by_hand:
        await by_hand.begin_and_prepare()
        by_hand.prepared.endpoint.tunnel_token = secrets.token_urlsafe(32)

        half = await by_hand.perform()

        assert half.phase == "Kept"
        assert half.error_reason == "TOKEN_WRONG"
        assert "token" in half.error
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


async def test_a_token_of_an_earlier_move_is_refused(lab: Lab):
    guest = await lab.start_guest()
    first = Steps(lab, wishes(tunnel=True))
    used = (await first.begin_and_prepare()).endpoint.tunnel_token
    half = await first.perform()
    assert half.phase == "HandedOver", half.error
    await first.finish_and_confirm()
    back = await (await lab.start_move(to="host-a", options=wishes())).outcome()
    assert back.state == State.STATE_SUCCEEDED, back.error

    async with steps(lab, wishes(tunnel=True)) as by_hand:
        await by_hand.begin_and_prepare()
        by_hand.prepared.endpoint.tunnel_token = used
        half = await by_hand.perform()

    assert half.phase == "Kept"
    assert half.error_reason == "TOKEN_REUSED"
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


async def test_a_token_whose_connections_are_made_opens_no_more(lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    async with steps(lab, wishes(tunnel=True, bandwidth_mib_s=2)) as by_hand:
        token = (await by_hand.begin_and_prepare()).endpoint.tunnel_token
        call = by_hand.start_perform()
        async for response in call:
            if response.migration.phase == "Transferring":
                break

        with refused("TOKEN_REUSED", "token"):
            await check(lab, token, lab.fleet.identity("host-a"))

        call.cancel()
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


async def test_a_token_that_has_expired_opens_nothing(lab: Lab):
    token = secrets.token_urlsafe(32)
    request = control_pb.OpenExitRequest(
        session_id=str(uuid4()),
        token_sha256=hashlib.sha256(token.encode()).digest(),
        socket_path=str(lab.directory / "in.sock"),
        channel_count=1,
        lifetime=seconds(LIFETIME_S),
    )
    control = lab.fleet.directory / "host-b" / "tunnel.sock"
    async with open_channel(f"unix:{control}", None) as channel:
        await control_rpc.TunnelControlServiceStub(channel).OpenExit(request)

    async def reason() -> str:
        try:
            with calls_to("the tunnel"):
                await check(lab, token, lab.fleet.identity("host-a"))
        except WrongState as error:
            return error.reason
        return ""

    assert await reason() == ""
    await until_equal(reason, "TOKEN_EXPIRED")


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.VIEWER, Role.COORDINATOR])
async def test_only_agents_reach_a_tunnel(role, lab: Lab):
    pki = lab.directory / "other"
    issue(lab.fleet.directory / "pki" / "ca", pki, "other", role, [])

    with refused("NOT_ALLOWED", role.value):
        await check(lab, "a token", Identity.in_directory(pki))
