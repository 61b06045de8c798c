"""What an appkey is called where it must not be told: in file names, logs and metrics."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kisfeed.config import Environment, Secret

_NAME_BYTES: Final = 10


def appkey_name(environment: Environment, appkey: Secret) -> str:
    """A file name that belongs to this appkey and does not tell it."""
    digest = hashlib.blake2b(
        appkey.reveal().encode(), digest_size=_NAME_BYTES, person=b"kisfeed-appkey"
    )
    return f"{environment}-{digest.hexdigest()}"
