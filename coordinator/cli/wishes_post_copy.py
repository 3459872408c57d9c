"""What `ferry migrate` may wish of post-copy."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Group, Parameter

from coordinator.cli.options import Switch, bandwidth_of, one_value
from ferry.common.v1 import post_copy_pb2 as pb

POST_COPY = Group("Post-copy", sort_key=50)


class When(enum.Enum):
    """When post-copy begins."""

    NEVER = "never"
    ALLOWED = "allowed"
    IMMEDIATELY = "immediately"
    AFTER_FIRST_PASS = "after-first-pass"  # noqa: S105 -- no word of a secret


_MESSAGES = {
    When.NEVER: pb.PostCopy.WHEN_NEVER,
    When.ALLOWED: pb.PostCopy.WHEN_ALLOWED,
    When.IMMEDIATELY: pb.PostCopy.WHEN_IMMEDIATELY,
    When.AFTER_FIRST_PASS: pb.PostCopy.WHEN_AFTER_FIRST_PASS,
}


@Parameter(name="*", group=POST_COPY)
@dataclass(frozen=True, slots=True)
class PostCopyWishes:
    """Whether and how the guest may go before its memory."""

    postcopy: Annotated[
        When,
        Parameter(
            metavar="WHEN",
            help="Let the guest go first and the rest of its memory after it: never, allowed (by ferry migration postcopy), "
            "immediately, after-first-pass. It always ends; from then on it cannot be cancelled.",
        ),
    ] = When.NEVER
    postcopy_bandwidth: Annotated[
        int | None,
        one_value("RATE", bandwidth_of, "Bound of what is pushed in post-copy, as 100MiB/s; 0 for none."),
    ] = None
    postcopy_preempt: Annotated[Switch, Parameter(help="Give pages that the guest waits for a connection of their own.")] = False

    def message(self) -> pb.PostCopy:
        """Turn the wishes into a message."""
        return pb.PostCopy(
            when=_MESSAGES[self.postcopy],
            bandwidth_bytes_per_second=self.postcopy_bandwidth or 0,
            preempt=self.postcopy_preempt,
        )


NO_POST_COPY = PostCopyWishes()
