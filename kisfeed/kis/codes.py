"""What KIS's ``msg_cd`` means, one meaning a code, from ``schemas/kis/codes.json``."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

SUBSCRIBED: Final = "OPSP0000"
"""KIS took a registration that it did not hold before."""


class Meaning(enum.StrEnum):
    """What an answer to a subscribe or unsubscribe means for the registration."""

    HELD = "held"  # KIS holds the registration
    FREE = "free"  # KIS does not hold it
    OVER_CAP = "over_cap"  # the session's registrations are used up
    PERMANENT = "permanent"  # this key is refused for good
    TRANSIENT = "transient"  # the server's fault; try again later, bounded
    KEY_REFUSED = "key_refused"  # the approval key; one fresh key, then stop
    IN_USE = "in_use"  # another session holds this appkey
    CLIENT_BUG = "client_bug"  # our message was malformed
    UNKNOWN = "unknown"  # not in the table and not a success: drop the registration and say so


class Codes:
    """The table of codes."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        """Read the parsed ``kis/codes.json``."""
        self._meanings = {e["code"]: Meaning(e["meaning"]) for e in data["websocket"]}
        self._texts: dict[str, str] = {
            e["code"]: e["text"] for part in ("websocket", "rest") for e in data[part]
        }

    def meaning(self, msg_cd: str, rt_cd: str) -> Meaning:
        """The one meaning of *msg_cd*; an unknown code with *rt_cd* ``0`` is a success."""
        known = self._meanings.get(msg_cd)
        if known is not None:
            return known
        return Meaning.HELD if rt_cd == "0" else Meaning.UNKNOWN

    def text(self, msg_cd: str) -> str:
        """KIS's text for *msg_cd* (OPSP and REST codes); empty when the code is unknown."""
        return self._texts.get(msg_cd, "")
