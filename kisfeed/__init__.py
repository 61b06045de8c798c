"""kisfeed: one KIS (한국투자증권) WebSocket session, shared by any number of local programs.

::

    with kisfeed.connect() as kf:
        for event in kf.subscribe("trade.krx.005930"):
            print(event)

:func:`connect` is the synchronous client, :func:`open_client` the one for Trio, ``kisfeed.aio``
the one for asyncio; :func:`open_feed` runs the session inside the caller's own Trio program.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from kisfeed import aio
    from kisfeed.client.structured import open_client
    from kisfeed.client.sync import connect
    from kisfeed.errors import (
        AppkeyInUse,
        BadFrame,
        ConfigError,
        DaemonError,
        Disconnected,
        KisError,
        KisfeedError,
        LocalRefusal,
        NoDaemon,
        ServerRefused,
        StateError,
        UnknownTopic,
        UsageError,
    )
    from kisfeed.feed import open_feed
    from kisfeed.kfp.events import (
        Book,
        Event,
        Expected,
        Gap,
        Goaway,
        Heartbeat,
        Lost,
        MarketStatus,
        Notice,
        Raw,
        Row,
        Session,
        Status,
        Trade,
    )
    from kisfeed.kfp.models import Answers, Bar, DailyPrice, Price, SymbolInfo

__all__ = [
    "Answers",
    "AppkeyInUse",
    "BadFrame",
    "Bar",
    "Book",
    "ConfigError",
    "DaemonError",
    "DailyPrice",
    "Disconnected",
    "Event",
    "Expected",
    "Gap",
    "Goaway",
    "Heartbeat",
    "KisError",
    "KisfeedError",
    "LocalRefusal",
    "Lost",
    "MarketStatus",
    "NoDaemon",
    "Notice",
    "Price",
    "Raw",
    "Row",
    "ServerRefused",
    "Session",
    "StateError",
    "Status",
    "SymbolInfo",
    "Trade",
    "UnknownTopic",
    "UsageError",
    "aio",
    "connect",
    "open_client",
    "open_feed",
]

_MODULES: Final = {
    "aio": "kisfeed.aio",
    "connect": "kisfeed.client.sync",
    "open_client": "kisfeed.client.structured",
    "open_feed": "kisfeed.feed",
}
_HOMES: Final = ("kisfeed.kfp.events", "kisfeed.kfp.models", "kisfeed.errors")


def __getattr__(name: str) -> Any:
    # A script that reads one topic must not pay for Trio, and the daemon not for asyncio.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _MODULES:
        module = importlib.import_module(_MODULES[name])
        value = module if name == "aio" else getattr(module, name)
    else:
        homes = map(importlib.import_module, _HOMES)
        value = next(getattr(home, name) for home in homes if hasattr(home, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
