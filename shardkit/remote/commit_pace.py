"""How often a run may commit to the Hub, which allows a free account 128 commits an hour: arithmetic alone."""

from __future__ import annotations

FIRST_COMMITS = 24  # at once, and again after a pause
COMMITS_AN_HOUR = 100  # for as long as it goes on


class CommitPace:
    """Says when the next commit may be made: in any hour at most `FIRST_COMMITS + COMMITS_AN_HOUR`.

    Times are seconds of any clock that does not go back.
    """

    def __init__(self, now: float) -> None:
        self._left, self._at = float(FIRST_COMMITS), now

    def allows(self, now: float) -> bool:
        """Whether a commit may be made at the time `now`."""
        self._left = min(FIRST_COMMITS, self._left + (now - self._at) * COMMITS_AN_HOUR / 3600)
        self._at = now
        return self._left >= 1

    def count(self) -> None:
        """Take note of a commit, one that was not allowed too."""
        self._left -= 1
