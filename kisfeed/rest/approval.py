"""Approval keys: what every WebSocket registration is signed with."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import attrs
import trio

from kisfeed.config import Credentials, Secret
from kisfeed.errors import KisRefused, KisUnreachable
from kisfeed.kis.rest import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from kisfeed.kis.rest import RestCodes
    from kisfeed.limits import Window
    from kisfeed.rest.keyfile import KeyFile
    from kisfeed.rest.transport import RestTransport
    from kisfeed.seams import Clock

PATH: Final = "/oauth2/Approval"
_LONGEST: Final = 4_096
_SLACK: Final = 1.05
_LATER: Final = frozenset({Kind.SERVER, Kind.RATE_LIMITED, Kind.TOKEN_TOO_SOON})


@attrs.define(eq=False)
class ApprovalKeys:
    """Fetches approval keys and keeps the last one, on disk too.

    A key lives 24 hours but counts only while a session starts; an open session goes on without
    a new one (KIS portal, WebSocket access key issue).

    Attributes:
        renewed: called with every key, for whoever must keep it out of the logs.
    """

    _rest: RestTransport
    _credentials: Credentials
    _clock: Clock
    _window: Window
    _codes: RestCodes
    _file: KeyFile
    _max_age_s: float
    renewed: Callable[[Secret], None]
    _key: Secret | None = attrs.field(default=None, init=False)
    _issued_at: float = attrs.field(default=-math.inf, init=False)
    _issued: int = attrs.field(default=0, init=False)
    _asked_at: float = attrs.field(default=-math.inf, init=False)
    _one: trio.Lock = attrs.field(factory=trio.Lock, init=False)

    def __attrs_post_init__(self) -> None:
        try:
            found = self._file.read()
        except ValueError as exc:
            self._file.failed = str(exc)
            return
        if found is not None and isinstance(found[0], dict):
            value, age = found[0].get("value"), found[1]
            if isinstance(value, str) and value:
                self._asked_at = self._clock.boot() - age
                self._take(Secret(value), self._asked_at)

    async def get(self, *, fresh: bool) -> Secret:
        """The approval key to dial with.

        Args:
            fresh: issue one even if the last is young (KIS refused it).

        Raises:
            KisUnreachable: no readable answer, or one that says to ask later.
            KisRefused: KIS refused the appkey or secret; carries its code.
        """
        issued = self._issued
        async with self._one:
            young = self._clock.boot() - self._issued_at < self._max_age_s
            recent = self._issued > issued  # while this caller waited
            if self._key is not None and (recent or (young and not fresh)):
                return self._key
            since = self._clock.boot() - self._asked_at
            await trio.sleep(max(0.0, self._window.seconds * _SLACK / self._window.count - since))
            return await self._issue()

    def change(self, window: Window) -> None:
        """Another limit is in force."""
        self._window = window

    async def _issue(self) -> Secret:
        # The field is "secretkey" here, "appsecret" at /oauth2/tokenP, for the same value.
        try:
            answer = await self._rest.post(
                PATH,
                {
                    "grant_type": "client_credentials",
                    "appkey": self._credentials.appkey.reveal(),
                    "secretkey": self._credentials.appsecret.reveal(),
                },
            )
        finally:
            self._asked_at = self._clock.boot()  # KIS may have counted it, answered or not
        verdict = self._codes.verdict(answer.status, answer.body)
        # Of keys that are not set KIS says that its server failed (EGW00002), but with 403.
        unset = verdict.kind is Kind.SERVER and answer.status == HTTPStatus.FORBIDDEN
        if verdict.kind in _LATER and not unset:
            raise KisUnreachable(f"{verdict.code}: {verdict.text}")
        if verdict.kind is not Kind.OK:
            raise KisRefused(verdict.code, verdict.text)
        key = answer.body.get("approval_key")
        if not isinstance(key, str) or not key or len(key) > _LONGEST:
            raise KisUnreachable(f"{PATH}: no approval_key in the answer")
        self._take(Secret(key), self._asked_at)
        await self._file.write({"value": key})
        return Secret(key)

    def _take(self, key: Secret, issued_at: float) -> None:
        self._key, self._issued_at = key, issued_at
        self._issued += 1
        self.renewed(key)
