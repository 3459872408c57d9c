"""What is wrong after a round, judged from outside by what was seen. Pure.

Lost by design is only what `excuse` names; docs/chaos.md tells the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.chaos.case import Case, Fault, Victim

_GIVEN_AWAY = ("Sent", "HandedOver", "Retiring", "Retired", "Following", "Broken", "Losing", "Lost")
_TAKEN_OVER = ("Resuming", "Running", "Finished", "Entering", "Filling")
_IN_POSTCOPY = ("Crossing", "Following", "Broken", "Losing", "Refused")
MAX_GAP_S = 3.5


@dataclass(frozen=True, slots=True)
class Ending:
    """What Ferry says of a migration at the end.

    Attributes:
        state: `succeeded`, `failed`, `cancelled`, `not begun`, or another one where it did not end.
        host: where it says that the guest is; empty for nowhere, or where it does not say.
        text: its last words.
        reason: the word for programs.
    """

    state: str
    host: str
    text: str = ""
    reason: str = ""

    @property
    def is_final(self) -> bool:
        """Whether it says that all is over."""
        return self.state in {"succeeded", "failed", "cancelled", "not begun"}


@dataclass(slots=True)
class Observed:
    """What was seen of a round.

    Attributes:
        ending: what Ferry says at the end.
        speakers: hosts whose QEMU spoke on the console at the end.
        qemus: hosts that had a QEMU at the end.
        complaints: of the console: doubled, missing, torn or wrong lines.
        longest_gap_s: the longest silence of the guest in the round, None where it was not measured.
        source_phase, destination_phase: of the records, when the fault was done.
        has_hit_qemu: whether a QEMU was really ended.
        followed: the commands that were advised and run, with the exit code and the words of each.
        was_restarted: whether the guest was started again because that was advised.
        leftovers: files, processes, jobs, locks that were left.
        findings: what the doctor found.
        second: what a second move came to; None where none was made.
        second_speakers: hosts whose QEMU spoke after it.
        disk_errors: sectors of the newest image that are wrong.
    """

    ending: Ending
    speakers: list[str] = field(default_factory=list)
    qemus: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    longest_gap_s: float | None = None
    source_phase: str = ""
    destination_phase: str = ""
    has_hit_qemu: bool = False
    followed: list[tuple[str, int, str]] = field(default_factory=list)
    was_restarted: bool = False
    leftovers: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    second: Ending | None = None
    second_speakers: list[str] = field(default_factory=list)
    disk_errors: list[str] = field(default_factory=list)


def excuse(case: Case, seen: Observed) -> str:
    """Say why the guest may have been lost in this round; empty when nothing excuses it."""
    hit = [victim for victim in case.victims if victim.is_qemu and case.fault is Fault.KILL]
    if not hit or not seen.has_hit_qemu:
        return ""
    if len(hit) > 1:
        return "both QEMUs were ended"
    in_postcopy = case.kind.is_postcopy and seen.source_phase in _IN_POSTCOPY
    if in_postcopy:
        return "each QEMU has a part of the guest in post-copy, and one was ended"
    if hit == [Victim.SOURCE_QEMU]:
        return "" if seen.destination_phase in _TAKEN_OVER else "the QEMU that had the guest was ended"
    may_be_there = seen.source_phase in _GIVEN_AWAY or seen.destination_phase in _TAKEN_OVER
    return "the QEMU that had the guest was ended" if may_be_there else ""


def judge(case: Case, seen: Observed) -> list[str]:
    """Return what is wrong, a sentence each; empty when all is as it must be."""
    excused = excuse(case, seen)
    wrong = [f"console: {text}" for text in seen.complaints]
    wrong += [f"disk: {text}" for text in seen.disk_errors]
    wrong += [f"advised command failed: ferry {command}: {code}: {said}" for command, code, said in seen.followed if code != 0]
    if not seen.ending.is_final:
        wrong.append(f"not final ({seen.ending.state}): {seen.ending.text}")
    if len(seen.speakers) > 1:
        wrong.append("two QEMUs speak on the console")
    if seen.was_restarted and not excused:
        wrong.append("the guest was lost, and nothing excuses that")
    if not seen.speakers:
        wrong.append("the guest does not run" if excused else "the guest does not run, and nothing excuses that")
    wrong += _against_the_truth(seen)
    if seen.longest_gap_s is not None and seen.longest_gap_s > MAX_GAP_S and not _may_wait(case, seen):
        wrong.append(f"the guest stood still for {seen.longest_gap_s:.1f} s")
    wrong += [f"left: {name}" for name in seen.leftovers]
    wrong += [f"doctor: {text}" for text in seen.findings]
    if seen.second is not None and seen.second.state != "succeeded":
        wrong.append(f"the second move {seen.second.state}: {seen.second.reason}: {seen.second.text}")
    elif seen.second is not None and seen.second_speakers != [seen.second.host]:
        wrong.append(f"after the second move to {seen.second.host} the guest runs on {seen.second_speakers}")
    return wrong


def _against_the_truth(seen: Observed) -> list[str]:
    if not seen.ending.is_final or seen.ending.state == "not begun":
        return []
    if seen.was_restarted:
        return []
    if seen.speakers and seen.speakers != [seen.ending.host]:
        return [f"the record says {seen.ending.state}, guest at {seen.ending.host or 'nowhere'}; it runs on {seen.speakers}"]
    if not seen.speakers and seen.ending.host and not seen.qemus and seen.ending.state != "succeeded":
        return [f"the record says that the guest is at {seen.ending.host}, where no QEMU is"]
    return []


def _may_wait(case: Case, seen: Observed) -> bool:
    """Say whether the guest had to wait for what was away: given away to a host that cannot be reached, or memory that is there."""
    if case.fault is Fault.STOP and any(victim.is_qemu for victim in case.victims):
        return True
    if any(victim.is_network for victim in case.victims):
        return seen.source_phase in (*_GIVEN_AWAY, "Switching", "Crossing") or case.kind.is_postcopy
    return False
