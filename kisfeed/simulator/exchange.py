"""The oracle: what KIS would hold and answer. Pure; it is told the time and what happened.

Checkers read its counters and its history, and nothing else: they are this module's own and
share no code with the program under test.
"""

from __future__ import annotations

import base64
import collections
import enum
import json
import math
import string
from typing import TYPE_CHECKING, Any, Final

import attrs

from kisfeed.kis import server
from kisfeed.kis.control import AesKey
from kisfeed.simulator.faults import Board, Fault, Kind

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Mapping

    from kisfeed.kis.catalogue import RegKey, Tr
    from kisfeed.seams import Rng

APPROVAL_LIFE_S: Final = 86_400.0
TOKEN_LIFE_S: Final = 86_400.0
TOKEN_GAP_S: Final = 60.0
TOKEN_SAME_S: Final = 6 * 3600.0

_HEX: Final = "0123456789abcdef"


@attrs.frozen
class Rules:
    """What this KIS allows; the defaults are KIS's own.

    Attributes:
        cap: registrations a session.
        hold_s: how long an uncleanly closed session keeps its appkey's slot.
        token_gap_s: a second token within this is refused with EGW00133.
        rest_per_s: REST calls in any second, per appkey.
        accounts: appkey to appsecret; None accepts any.
        hts_id: the only HTS ID notices may name; empty accepts any.
        unknown_keys: tr_keys that no TR knows.
        bare_ack_ratio: how many of a plain TR's acks come without ``output``.
        strict_pong_s: a session that answers no PINGPONG for this long is dropped; None: never.
    """

    cap: int = 41
    hold_s: float = 18.0
    token_gap_s: float = TOKEN_GAP_S
    rest_per_s: int = 18
    accounts: Mapping[str, str] | None = attrs.field(default=None, repr=False)
    hts_id: str = ""
    unknown_keys: tuple[str, ...] = ("000000", "999999")
    bare_ack_ratio: float = 0.1
    strict_pong_s: float | None = None


class Happening(enum.StrEnum):
    """What a line of the history says."""

    CONNECT = "connect"
    REFUSED_DIAL = "refused_dial"
    HANDSHAKE = "handshake"
    CLOSED = "closed"
    BOUND = "bound"
    IN_USE = "in_use"
    SUBSCRIBE = "subscribe"
    UNSUBSCRIBE = "unsubscribe"
    MALFORMED = "malformed"
    PONG = "pong"
    DROPPED = "dropped"
    FORGOTTEN = "forgotten"
    TOKEN = "token"  # noqa: S105  # a kind of line
    APPROVAL = "approval"
    REST = "rest"
    FAULT = "fault"


@attrs.frozen
class Line:
    """One line of the history. ``code`` is the answer's code, where there was one."""

    at: float
    what: Happening
    session: int = 0
    key: RegKey | None = None
    code: str = ""


@attrs.define(eq=False)
class Tally:
    """Records of one registration key, and the shares in them.

    Attributes:
        records, volume, frames: written to a socket that was not silenced.
        withheld_records, withheld_volume: made while registered, and kept back or lost in a
            silenced or breaking connection.
    """

    records: int = 0
    volume: int = 0
    frames: int = 0
    withheld_records: int = 0
    withheld_volume: int = 0


@attrs.define(eq=False)
class Session:
    """One WebSocket connection, from its TCP accept on.

    Attributes:
        appkey: None until its first message with a valid approval key.
        registrations: what it holds; the AES key is of a notice TR's latest ack.
        clean: after the end, whether the slot was free at once.
        pongs: replies to PINGPONG by form: ``text``, ``pong``, ``ping``.
        said: the last yes about a registration that went out in time.
    """

    number: int
    opened_at: float
    appkey: str | None = attrs.field(default=None, repr=False)
    registrations: dict[RegKey, AesKey | None] = attrs.field(factory=dict, repr=False)
    closed_at: float | None = None
    clean: bool | None = None
    most_registrations: int = 0
    operations: int = 0
    pongs: dict[str, int] = attrs.field(factory=dict)
    pong_due: float = math.inf
    said: dict[RegKey, str] = attrs.field(factory=dict, repr=False)


@attrs.frozen
class Send:
    """Send this text, *delay* seconds from now; what follows does not wait for it."""

    text: str
    delay: float = 0.0


@attrs.frozen
class Drop:
    """End the TCP connection after what was queued, without a close frame."""


Action = Send | Drop


@attrs.define(eq=False)
class _Slot:
    session: Session | None = None
    held_until: float = -math.inf


@attrs.define(eq=False)
class _Token:
    value: str = attrs.field(repr=False)
    asked_at: float
    issued_at: float
    expires_at: float
    valid: bool = True


@attrs.frozen
class OauthReply:
    """An OAuth answer: HTTP status and JSON body."""

    status: int
    body: dict[str, Any] = attrs.field(repr=False)


class Exchange:
    """Sessions, registrations, keys, tokens, limits; every answer KIS would give.

    Attributes:
        rules: what is allowed; ``cap`` can change while running (see ``cap``).
        cap: the cap in force.
        board: the faults in force.
        history: everything that happened, in order.
        tallies: records sent, by registration key.
    """

    def __init__(
        self,
        rules: Rules,
        trs: Mapping[str, Tr],
        rng: Rng,
        kst: Callable[[float], dt.datetime],
    ) -> None:
        self.rules = rules
        self.cap = rules.cap
        self.board = Board()
        self.history: list[Line] = []
        self.sessions: list[Session] = []
        self.tallies: collections.defaultdict[RegKey, Tally] = collections.defaultdict(Tally)
        self._trs = trs
        self._rng = rng
        self._kst = kst
        self._open: dict[int, Session] = {}
        self._slots: dict[str, _Slot] = {}
        self._approvals: dict[str, tuple[str, float]] = {}
        self._tokens: dict[str, _Token] = {}
        self._calls: dict[str, collections.deque[float]] = {}

    # Counters for checkers

    def times(self, what: Happening, code: str | None = None) -> list[float]:
        """When each line of this kind (and answer) was written."""
        return [x.at for x in self.history if x.what is what and code in {None, x.code}]

    @property
    def connects(self) -> list[float]:
        """When each TCP connection was accepted."""
        return self.times(Happening.CONNECT)

    def most_within(self, what: Happening, seconds: float, code: str | None = None) -> int:
        """The largest number of such lines (with this answer) in any span of this length."""
        window: collections.deque[float] = collections.deque()
        most = 0
        for at in self.times(what, code):
            window.append(at)
            while window[0] <= at - seconds:
                window.popleft()
            most = max(most, len(window))
        return most

    def counts(self, now: float) -> dict[str, Any]:
        """What was counted until now, as ``kisfeed sim --control`` prints it."""
        operations = sorted(self.times(Happening.SUBSCRIBE) + self.times(Happening.UNSUBSCRIBE))
        return {
            "at": now,
            "connects": self.connects,
            "sessions": [[s.number, s.opened_at, s.closed_at, s.clean] for s in self.sessions],
            "tokens": self.times(Happening.TOKEN, "ok"),
            "approvals": self.times(Happening.APPROVAL, "ok"),
            "in_use": len(self.times(Happening.IN_USE)),
            "operations": operations,
            "most_rest_1s": self.most_within(Happening.REST, 1.0),
            "most_registrations": self.most_registrations,
            "records": sum(t.records + t.withheld_records for t in self.tallies.values()),
        }

    @property
    def most_registrations(self) -> int:
        """The most that any session ever held."""
        return max((s.most_registrations for s in self.sessions), default=0)

    @property
    def open_sessions(self) -> list[Session]:
        """Connections that have not ended, oldest first."""
        return list(self._open.values())

    def holder(self, appkey: str) -> Session | None:
        """The open session that holds this appkey's slot."""
        slot = self._slots.get(appkey)
        return None if slot is None else slot.session

    def registered(self) -> dict[RegKey, list[Session]]:
        """Every registration of every open session, in order of registration."""
        found: dict[RegKey, list[Session]] = {}
        for session in self._open.values():
            for key in session.registrations:
                found.setdefault(key, []).append(session)
        return found

    def registered_by(self, key: RegKey) -> list[Session]:
        """The open sessions that have this registration."""
        return [session for session in self._open.values() if key in session.registrations]

    # Sessions

    def refused_dial(self, now: float) -> None:
        """A dial found nobody listening."""
        self._note(now, Happening.REFUSED_DIAL)

    def connect(self, now: float) -> Session:
        """A TCP connection was accepted."""
        session = Session(len(self.sessions) + 1, now)
        self.sessions.append(session)
        self._open[session.number] = session
        self._note(now, Happening.CONNECT, session)
        return session

    def handshake(self, session: Session, now: float) -> None:
        """The upgrade was answered with 101."""
        self._note(now, Happening.HANDSHAKE, session)

    def message(self, session: Session, text: str, now: float) -> list[Action]:
        """A text message arrived; returns what to send, and whether to drop the line."""
        match server.read_message(text):
            case server.Echo():
                self.pong(session, "text", now)
                return []
            case server.Refusal(key=key, msg_cd=msg_cd):
                self._note(now, Happening.MALFORMED, session, key, msg_cd)
                return [Send(server.build_ack(key, msg_cd))]
            case server.Request() as request:
                return self._request(session, request, now)

    def pong(self, session: Session, form: str, now: float) -> None:
        """A reply to PINGPONG arrived, as ``text``, WebSocket ``pong`` or WebSocket ``ping``."""
        session.pongs[form] = session.pongs.get(form, 0) + 1
        session.pong_due = math.inf
        self._note(now, Happening.PONG, session, code=form)

    def pinged(self, session: Session, now: float) -> None:
        """A PINGPONG was sent: in strict mode its answer is due."""
        if self.rules.strict_pong_s is not None:
            session.pong_due = min(session.pong_due, now + self.rules.strict_pong_s)

    def disconnect(self, session: Session, now: float, *, clean: bool) -> None:
        """The connection ended; an unclean end keeps the appkey's slot for ``hold_s``."""
        if session.closed_at is not None:
            return
        session.closed_at = now
        del self._open[session.number]
        session.clean = clean
        self._note(now, Happening.CLOSED, session, code="clean" if clean else "unclean")
        if session.appkey is not None:
            slot = self._slots[session.appkey]
            if slot.session is session:
                slot.session = None
                slot.held_until = now if clean else now + self.rules.hold_s

    def sent(self, key: RegKey, records: int, volume: int) -> None:
        """A data frame was written to a client that can hear it."""
        tally = self.tallies[key]
        tally.frames += 1
        tally.records += records
        tally.volume += volume

    def withheld(self, key: RegKey, records: int, volume: int) -> None:
        """Records were made for a registered key, and the client cannot get them."""
        tally = self.tallies[key]
        tally.withheld_records += records
        tally.withheld_volume += volume

    def inject(self, fault: Fault, now: float) -> None:
        """Note *fault* and put it in force; the caller acts on the kinds that act at once."""
        self._note(now, Happening.FAULT, code=fault.kind.value)
        if fault.kind is Kind.KEY_EXPIRED:
            self._approvals.clear()
        elif fault.kind is Kind.TOKENS_INVALID:
            for token in self._tokens.values():
                token.valid = False
        elif fault.kind is Kind.CAP:
            self.cap = int(fault.value)
        elif fault.kind is Kind.DROP_KEY:
            for session in self.open_sessions:
                for key in [k for k in session.registrations if fault.hits(k, session.appkey)]:
                    del session.registrations[key]
                    self._note(now, Happening.FORGOTTEN, session, key)
        else:
            self.board.post(fault, now)

    def _request(self, session: Session, request: server.Request, now: float) -> list[Action]:
        what = Happening.SUBSCRIBE if request.subscribe else Happening.UNSUBSCRIBE
        session.operations += 1
        appkey = self._appkey_of(request.approval_key, now)
        if appkey is None or session.appkey not in {None, appkey}:
            self._note(now, what, session, request.key, server.BAD_APPROVAL)
            text = f"invalid approval : {request.approval_key}"
            return [Send(server.build_ack(request.key, server.BAD_APPROVAL, text))]
        if session.appkey is None and not self._bind(session, appkey, now):
            self._note(now, Happening.IN_USE, session, request.key, server.IN_USE)
            return [Send(server.build_ack(("(null)", ""), server.IN_USE)), Drop()]
        code = self._judge(session, request)
        if code is None:
            self._note(now, Happening.DROPPED, session, request.key)
            return [Drop()]
        nack = self.board.take(Kind.NACK, now, key=request.key, appkey=appkey)
        if nack is not None:
            code = nack.code or "OPSP0007"
        self._note(now, what, session, request.key, code)
        ack = self._apply(session, request.key, code)
        return self._say(session, ack, request.key, code, appkey, now)

    def _appkey_of(self, approval_key: str, now: float) -> str | None:
        appkey, expires_at = self._approvals.get(approval_key, (None, 0.0))
        return appkey if now < expires_at else None

    def _bind(self, session: Session, appkey: str, now: float) -> bool:
        slot = self._slots.setdefault(appkey, _Slot())
        stranger = self.board.active(Kind.STRANGER, now, appkey=appkey)
        if slot.session is not None or slot.held_until > now or stranger is not None:
            return False
        slot.session = session
        session.appkey = appkey
        self._note(now, Happening.BOUND, session)
        return True

    def _judge(self, session: Session, request: server.Request) -> str | None:
        """The answer's code; None: the line is dropped instead (wrong HTS ID)."""
        tr_id, tr_key = request.key
        tr = self._trs.get(tr_id)
        if tr is None:
            return server.UNKNOWN_TR
        if not request.subscribe:
            held = request.key in session.registrations
            return server.UNSUBSCRIBED if held else server.NOT_SUBSCRIBED
        if tr.encrypted:
            if self.rules.hts_id and tr_key != self.rules.hts_id:
                return None
        elif tr_key in self.rules.unknown_keys or not tr.key_pattern.fullmatch(tr_key):
            return server.UNKNOWN_KEY
        if request.key in session.registrations:
            return server.ALREADY_SUBSCRIBED
        if len(session.registrations) >= self.cap:
            return server.OVER_CAP
        return server.SUBSCRIBED

    def _apply(self, session: Session, key: RegKey, code: str) -> str:
        tr = self._trs.get(key[0])
        encrypted = tr is not None and tr.encrypted
        if code == server.UNSUBSCRIBED:
            session.registrations.pop(key, None)  # a NACK of this code may name what is not held
            return server.build_ack(key, code, encrypt=encrypted)
        if code != server.SUBSCRIBED:
            return server.build_ack(key, code, encrypt=encrypted)
        aes = AesKey(
            key=self._letters(32, string.ascii_lowercase).encode(),
            iv=self._letters(16, _HEX).encode(),
        )
        session.registrations[key] = aes if encrypted else None
        session.most_registrations = max(session.most_registrations, len(session.registrations))
        bare = not encrypted and self._rng.random() < self.rules.bare_ack_ratio
        return server.build_ack(key, code, encrypt=encrypted, aes=None if bare else aes)

    def _say(
        self, session: Session, ack: str, key: RegKey, code: str, appkey: str, now: float
    ) -> list[Action]:
        if self.board.take(Kind.ACK_LOST, now, key=key, appkey=appkey):
            return []
        late = self.board.take(Kind.ACK_LATE, now, key=key, appkey=appkey)
        if late is not None:
            return [Send(ack, late.value)]
        wrong = self.board.take(Kind.ACK_WRONG_KEY, now, key=key, appkey=appkey)
        if wrong is not None:
            return [Send(server.build_ack((key[0], wrong.text or "000001"), code))]
        twice = self.board.take(Kind.ACK_TWICE, now, key=key, appkey=appkey)
        before = session.said.get(key, ack)
        if code in {server.SUBSCRIBED, server.UNSUBSCRIBED}:
            session.said[key] = ack
        if twice is None:
            return [Send(ack)]
        return [Send(before if twice.value else ack), Send(ack)]

    # OAuth and REST limits

    def issue_approval(self, appkey: str, appsecret: str, now: float) -> OauthReply:
        """``/oauth2/Approval``: a fresh key every call; earlier ones stay valid."""
        refusal = self._credentials(appkey, appsecret)
        if refusal is not None:
            self._note(now, Happening.APPROVAL, code=refusal)
            return OauthReply(403, server.oauth_error(refusal))
        digits = self._letters(32, _HEX)
        key = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
        self._approvals[key] = (appkey, now + APPROVAL_LIFE_S)
        self._note(now, Happening.APPROVAL, code="ok")
        return OauthReply(200, server.approval_reply(key))

    def approval_key(self, appkey: str, now: float) -> str:
        """An approval key for tests that do not go through REST."""
        secret = "" if self.rules.accounts is None else self.rules.accounts[appkey]
        key: str = self.issue_approval(appkey, secret, now).body["approval_key"]
        return key

    def issue_token(self, appkey: str, appsecret: str, now: float) -> OauthReply:
        """``/oauth2/tokenP``: 403 within a minute, the same token within six hours."""
        refusal = self._credentials(appkey, appsecret)
        if refusal is not None:
            self._note(now, Happening.TOKEN, code=refusal)
            return OauthReply(403, server.oauth_error(refusal))
        token = self._tokens.get(appkey)
        early = token is not None and now - token.asked_at < self.rules.token_gap_s
        if early or self.board.take(Kind.TOKEN_TOO_SOON, now):
            self._note(now, Happening.TOKEN, code="EGW00133")
            return OauthReply(403, server.oauth_error("EGW00133"))
        if token is None or not token.valid or now - token.issued_at >= TOKEN_SAME_S:
            token = _Token(self._jwt(appkey, now), now, now, now + TOKEN_LIFE_S)
            self._tokens[appkey] = token
        token.asked_at = now
        self._note(now, Happening.TOKEN, code="ok")
        expires = self._kst(token.expires_at).strftime("%Y-%m-%d %H:%M:%S")
        return OauthReply(200, server.token_reply(token.value, expires, int(TOKEN_LIFE_S)))

    def revoke_token(self, appkey: str, value: str, now: float) -> OauthReply:
        """``/oauth2/revokeP``."""
        token = self._tokens.get(appkey)
        if token is None or token.value != value:
            self._note(now, Happening.TOKEN, code="EGW00103")
            return OauthReply(403, server.oauth_error("EGW00103"))
        token.valid = False
        self._note(now, Happening.TOKEN, code="revoked")
        return OauthReply(200, server.revoke_reply())

    def admit_call(self, path: str, appkey: str, bearer: str | None, now: float) -> str | None:
        """Judge one REST call: None if it may go on, else the EGW code.

        Args:
            path: which call; the ledger's have a limit of their own.
            appkey: whose budget is used.
            bearer: the access token; None where none is needed (hashkey).
            now: seconds.
        """
        code = self._call_code(path, appkey, bearer, now)
        self._note(now, Happening.REST, key=(path, ""), code=code or "ok")
        return code

    def _call_code(self, path: str, appkey: str, bearer: str | None, now: float) -> str | None:
        calls = self._calls.setdefault(appkey, collections.deque())
        while calls and calls[0] <= now - 1.0:
            calls.popleft()
        if len(calls) >= self.rules.rest_per_s or self.board.take(Kind.RATE_LIMITED, now):
            return "EGW00201"
        calls.append(now)
        if bearer is None:
            return None
        token = self._tokens.get(appkey)
        if token is None or token.value != bearer or not token.valid:
            return "EGW00121"
        if now >= token.expires_at or self.board.take(Kind.TOKEN_EXPIRED, now):
            return "EGW00123"
        return "EGW00215" if "/trading/" in path and self._ledger_is_busy(now) else None

    def _ledger_is_busy(self, now: float) -> bool:
        busy = self.board.active(Kind.LEDGER_BUSY, now)
        if busy is None or (busy.value and self._rng.random() >= busy.value):
            return False
        return self.board.take(Kind.LEDGER_BUSY, now) is not None

    def _credentials(self, appkey: str, appsecret: str) -> str | None:
        accounts = self.rules.accounts
        if not appkey or (accounts is not None and appkey not in accounts):
            return "EGW00103"
        if accounts is not None and accounts[appkey] != appsecret:
            return "EGW00105"
        return None

    def _jwt(self, appkey: str, now: float) -> str:
        issued = int(self._kst(now).timestamp())
        claims = {
            "sub": "token",
            "aud": self._letters(32, _HEX),
            "iss": "unogw",
            "exp": issued + int(TOKEN_LIFE_S),
            "iat": issued,
            "jti": appkey,
        }
        parts = [
            base64.urlsafe_b64encode(json.dumps(part, separators=(",", ":")).encode())
            .decode("ascii")
            .rstrip("=")
            for part in ({"typ": "JWT", "alg": "HS512"}, claims)
        ]
        return ".".join((*parts, self._letters(86, string.ascii_letters + string.digits)))

    def _letters(self, count: int, alphabet: str) -> str:
        return "".join(alphabet[int(self._rng.random() * len(alphabet))] for _ in range(count))

    def _note(
        self,
        at: float,
        what: Happening,
        session: Session | None = None,
        key: RegKey | None = None,
        code: str = "",
    ) -> None:
        number = 0 if session is None else session.number
        self.history.append(Line(at, what, number, key, code))
