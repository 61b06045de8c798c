"""The server half of KIS's protocols: read what a client sent, build what KIS answers.

Pure, and about the protocol only: who may hold what is decided by whoever calls this (the
simulator, later the KIS-compatible door). Texts and shapes follow captured frames and the
portal's error list; the WebSocket half is JSON text both ways, the OAuth half JSON bodies.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, Final

import attrs
from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from kisfeed.kis import codes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kisfeed.kis.catalogue import RegKey
    from kisfeed.kis.control import AesKey

SUBSCRIBED: Final = codes.SUBSCRIBED
UNSUBSCRIBED: Final = "OPSP0001"
ALREADY_SUBSCRIBED: Final = "OPSP0002"
NOT_SUBSCRIBED: Final = "OPSP0003"
OVER_CAP: Final = "OPSP0008"
BAD_APPROVAL: Final = "OPSP0011"
UNKNOWN_TR: Final = "OPSP8991"
UNKNOWN_KEY: Final = "OPSP8992"
MALFORMED_KEY: Final = "OPSP8993"
IN_USE: Final = "OPSP8996"
BAD_TR_TYPE: Final = "OPSP8997"
BAD_CUSTTYPE: Final = "OPSP8998"
NO_TR_KEY: Final = "OPSP9990"
NO_INPUT: Final = "OPSP9991"
NO_BODY: Final = "OPSP9992"
NO_APPROVAL: Final = "OPSP9996"
NO_CUSTTYPE: Final = "OPSP9997"
NO_HEADER: Final = "OPSP9998"
NOT_JSON: Final = "OPSP9999"

_PARSING: Final = "JSON PARSING ERROR : "

# Portal error list; the texts of 0000-0003, 0011 and 8996 as live sessions printed them.
TEXTS: Final[Mapping[str, str]] = {
    "OPSP0000": "SUBSCRIBE SUCCESS",
    "OPSP0001": "UNSUBSCRIBE SUCCESS",
    "OPSP0002": "ALREADY IN SUBSCRIBE",
    "OPSP0003": "UNSUBSCRIBE ERROR(not found!)",
    "OPSP0007": "SUBSCRIBE INTERNAL ERROR",
    "OPSP0008": "MAX SUBSCRIBE OVER",
    "OPSP0009": "SUBSCRIBE ERROR : mci send failed",
    "OPSP0010": "SUBSCRIBE WARNING : invalid appkey",
    "OPSP0011": "invalid approval : NOT FOUND",
    "OPSP8991": "SUBSCRIBE ERROR : invalid tr_id",
    "OPSP8992": "SUBSCRIBE ERROR : invalid tr_key",
    "OPSP8993": _PARSING + "invalid tr_key",
    "OPSP8994": _PARSING + "personalseckey not found",
    "OPSP8995": _PARSING + "appsecret not found",
    "OPSP8996": "ALREADY IN USE appkey",
    "OPSP8997": _PARSING + "invalid tr_type",
    "OPSP8998": _PARSING + "invalid custtype",
    "OPSP8999": _PARSING + "resource not available (ALLOC_CALL_PARAM)",
    "OPSP9990": _PARSING + "tr_key not found",
    "OPSP9991": _PARSING + "input not found",
    "OPSP9992": _PARSING + "body not found",
    "OPSP9993": _PARSING + "internal error",
    "OPSP9994": _PARSING + "INVALID appkey",
    "OPSP9995": _PARSING + "resource not available",
    "OPSP9996": _PARSING + "appkey",
    "OPSP9997": _PARSING + "custtype not found",
    "OPSP9998": _PARSING + "header not found",
    "OPSP9999": _PARSING + "invalid json format",
}

_OAUTH_TEXTS: Final[Mapping[str, str]] = {
    "EGW00002": "서버 에러가 발생했습니다.",
    "EGW00103": "유효하지 않은 AppKey입니다.",
    "EGW00105": "유효하지 않은 AppSecret입니다.",
    "EGW00133": "접근토큰 발급 잠시 후 다시 시도하세요(1분당 1회)",
}

_GATEWAY_TEXTS: Final[Mapping[str, str]] = {
    "EGW00121": "유효하지 않은 token 입니다.",
    "EGW00123": "기간이 만료된 token 입니다.",
    "EGW00201": "초당 거래건수를 초과하였습니다.",
    "EGW00202": "GW라우팅 중 오류가 발생했습니다.",
    "EGW00213": "모의투자 TR  이 아닙니다.",
    "EGW00215": "원장에서 허용 가능한 초당 거래건수를 초과하였습니다.",
    "MCA00124": "해당 서비스를 찾을수 없습니다.",
}


@attrs.frozen
class Request:
    """One registration or its end, as a client asked for it.

    Attributes:
        subscribe: True for ``tr_type`` 1, False for 2.
        approval_key: who asks; a secret.
        key: ``(tr_id, tr_key)`` as sent; neither is known to exist.
    """

    subscribe: bool
    approval_key: str = attrs.field(repr=False)
    key: RegKey = attrs.field(default=("", ""))


@attrs.frozen
class Echo:
    """The answer to a PINGPONG, as a text message."""


@attrs.frozen
class Refusal:
    """A message that cannot be a request; :func:`build_ack` makes its answer.

    Attributes:
        key: as much of ``(tr_id, tr_key)`` as could be read.
        msg_cd: the OPSP code.
    """

    key: RegKey
    msg_cd: str


def read_message(message: str) -> Request | Echo | Refusal:
    """Read one text message of a client; never raises.

    A malformed message is answered by the code of the first part that is missing or wrong, in
    the order of the portal's list. ``tr_type`` "0", which some docstrings show, is not valid.
    """
    try:
        parsed = json.loads(message)
    except (ValueError, RecursionError):
        # python clients are known to answer PINGPONG with the text "0|pingpong".
        if message.lower() == "0|pingpong":
            return Echo()
        return Refusal(("", ""), NOT_JSON)
    if not isinstance(parsed, dict):
        return Refusal(("", ""), NOT_JSON)
    header = parsed.get("header")
    if not isinstance(header, dict):
        return Refusal(("", ""), NO_HEADER)
    if header.get("tr_id") == "PINGPONG":
        return Echo()
    body = parsed.get("body")
    if not isinstance(body, dict):
        return Refusal(("", ""), NO_BODY)
    entry = body.get("input")
    if not isinstance(entry, dict):
        return Refusal(("", ""), NO_INPUT)
    return _request(header, entry)


def _request(header: Mapping[str, Any], entry: Mapping[str, Any]) -> Request | Refusal:
    tr_id, tr_key = entry.get("tr_id"), entry.get("tr_key")
    approval_key, tr_type = header.get("approval_key"), header.get("tr_type")
    custtype = header.get("custtype")
    key = (
        tr_id if isinstance(tr_id, str) else "",
        tr_key if isinstance(tr_key, str) else "",
    )
    if tr_key is None or tr_key == "":
        return Refusal(key, NO_TR_KEY)
    if not isinstance(tr_key, str):
        return Refusal(key, MALFORMED_KEY)
    if not isinstance(approval_key, str) or not approval_key:
        return Refusal(key, NO_APPROVAL)
    if custtype is None:
        return Refusal(key, NO_CUSTTYPE)
    if custtype not in {"P", "B"}:
        return Refusal(key, BAD_CUSTTYPE)
    if tr_type not in {"1", "2"}:
        return Refusal(key, BAD_TR_TYPE)
    return Request(subscribe=tr_type == "1", approval_key=approval_key, key=key)


def rt_cd(msg_cd: str) -> str:
    """``"0"`` for a success, ``"9"`` for the session error OPSP8996, else ``"1"``."""
    if msg_cd in {SUBSCRIBED, UNSUBSCRIBED}:
        return "0"
    return "9" if msg_cd == IN_USE else "1"


def build_ack(
    key: RegKey,
    msg_cd: str,
    text: str | None = None,
    *,
    encrypt: bool = False,
    aes: AesKey | None = None,
) -> str:
    """The answer to a registration.

    Args:
        key: echoed; use ``("(null)", "")`` with OPSP8996.
        msg_cd: the OPSP code.
        text: ``msg1``; None for the code's usual text.
        encrypt: the header's ``encrypt`` field.
        aes: goes into ``output``; without it there is no ``output``.
    """
    body: dict[str, Any] = {
        "rt_cd": rt_cd(msg_cd),
        "msg_cd": msg_cd,
        "msg1": TEXTS.get(msg_cd, "") if text is None else text,
    }
    if aes is not None:
        body["output"] = {"iv": aes.iv.decode("ascii"), "key": aes.key.decode("ascii")}
    header = {"tr_id": key[0], "tr_key": key[1], "encrypt": "Y" if encrypt else "N"}
    return _compact({"header": header, "body": body})


def pingpong(datetime_kst: str) -> str:
    """The PINGPONG message; *datetime_kst* is ``YYYYMMDDHHMMSS`` in Seoul."""
    return _compact({"header": {"tr_id": "PINGPONG", "datetime": datetime_kst}})


def data_frame(tr_id: str, rows: Sequence[Sequence[str]], aes: AesKey | None = None) -> str:
    """One data frame with all *rows*, each as wide as the others; encrypted if *aes* is given."""
    payload = "^".join("^".join(row) for row in rows)
    if aes is None:
        return f"0|{tr_id}|{len(rows):03d}|{payload}"
    return f"1|{tr_id}|{len(rows):03d}|{encrypt(payload, aes)}"


def encrypt(plain: str, aes: AesKey) -> str:
    """AES-256-CBC with PKCS7 padding, as standard Base64: the payload of a notice."""
    padder = padding.PKCS7(128).padder()
    padded = padder.update(plain.encode()) + padder.finalize()
    encryptor = Cipher(algorithms.AES(aes.key), modes.CBC(aes.iv)).encryptor()
    return base64.b64encode(encryptor.update(padded) + encryptor.finalize()).decode("ascii")


def token_reply(access_token: str, expires_kst: str, expires_in: int) -> dict[str, Any]:
    """The body of a successful ``/oauth2/tokenP``; *expires_kst* is ``YYYY-MM-DD HH:MM:SS``."""
    return {
        "access_token": access_token,
        "access_token_token_expired": expires_kst,
        "token_type": "Bearer",
        "expires_in": expires_in,
    }


def approval_reply(approval_key: str) -> dict[str, Any]:
    """The body of a successful ``/oauth2/Approval``."""
    return {"approval_key": approval_key}


def revoke_reply() -> dict[str, Any]:
    """The body of a successful ``/oauth2/revokeP``."""
    return {"code": 200, "message": "접근토큰 폐기에 성공하였습니다"}


def oauth_error(code: str) -> dict[str, Any]:
    """The body of a refused OAuth call, which KIS sends with HTTP 403."""
    return {"error_code": code, "error_description": _OAUTH_TEXTS.get(code, "")}


def gateway_error(code: str) -> dict[str, Any]:
    """The body of a gateway error, which KIS sends with HTTP 500; ``message`` repeats the code."""
    return {"rt_cd": "1", "msg1": _GATEWAY_TEXTS.get(code, ""), "msg_cd": code, "message": code}


def _compact(message: Mapping[str, Any]) -> str:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))
