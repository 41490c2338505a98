"""What the watchers of one process know together."""

from __future__ import annotations

from renderjobs.compat.eas import wakeups
from renderjobs.compat.eas.wakeups import QueueHub


def test_who_looks_in_vain_does_so_for_its_like_until_something_changes_or_time_is_up(monkeypatch):
    hub = QueueHub()
    turn, other = hub.turn_of("kind"), hub.turn_of("other")
    turn.in_vain(since=3)
    assert hub.turn_of("kind").is_in_vain(since=3) and not turn.is_in_vain(since=4) and not other.is_in_vain(since=3)
    monkeypatch.setattr(wakeups, "POLL_SECONDS", 0)
    assert not turn.is_in_vain(since=3)


def test_nothing_is_kept_of_what_nobody_looks_for_any_more():
    hub = QueueHub()
    hub.turn_of("kind").in_vain(since=3)
    assert not hub.turn_of("kind").is_in_vain(since=3)
