"""Why something KIS sent was refused; shared by every reader of this room."""

from __future__ import annotations

import enum

import attrs


class Reject(enum.StrEnum):
    """Why a frame was refused. Every refusal is counted, none raises."""

    GARBAGE = "garbage"  # not a data frame and not JSON
    BAD_COUNT = "bad_count"  # the record count is no number from 1 to 999
    UNKNOWN_TR = "unknown_tr"  # the TR id is not in the catalogue
    TOO_SHORT = "too_short"  # fewer values than the shortest known record
    BAD_WIDTH = "bad_width"  # the values cannot be shared out evenly among the records
    BAD_JSON = "bad_json"  # a control message that is not a JSON object of the known form
    BAD_BASE64 = "bad_base64"  # an encrypted payload that is not Base64
    UNDECRYPTABLE = "undecryptable"  # no key, a wrong length or wrong padding
    FORGED = "forged"  # plain on an encrypted TR, or encrypted on a plain one


@attrs.frozen
class Rejected:
    """A frame that was refused.

    Attributes:
        reason: counted by this.
        detail: a short text for people; holds no key and no payload.
    """

    reason: Reject
    detail: str
