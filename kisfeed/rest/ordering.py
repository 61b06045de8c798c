"""Opens the order desk of one appkey: journal, kill switch, book, and the calls on them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from kisfeed.config import Environment
from kisfeed.core.engine import Instant
from kisfeed.core.orders import Book
from kisfeed.errors import ConfigError, StateError
from kisfeed.kis.orders import Account, OrderRules
from kisfeed.rest.account import AccountReader
from kisfeed.rest.halt import HaltSwitch
from kisfeed.rest.journal import open_journal
from kisfeed.rest.ordercalls import OrderCalls
from kisfeed.rest.orders import OrderDesk
from kisfeed.texts import Phrase

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from pathlib import Path

    from kisfeed.config import Config
    from kisfeed.core.told import Missed
    from kisfeed.kfp.orders import Order
    from kisfeed.kis.sessions import Calendar
    from kisfeed.rest.requests import Kis
    from kisfeed.seams import Clock, Disk


@attrs.frozen
class Ordering:
    """Orders as the feed has them.

    Attributes:
        desk: to be run; None while orders are off.
        calls: answers the calls of programs either way.
    """

    desk: OrderDesk | None
    calls: OrderCalls


@contextmanager
def open_ordering(
    config: Config,
    data: Mapping[str, Any],
    kis: Kis,
    calendar: Calendar,
    clock: Clock,
    disk: Disk,
    folder: Path,
    name: str,
    missed: Callable[[Missed, Order | None], None],
) -> Generator[Ordering]:
    """Open what orders need, for the length of the block.

    Args:
        config: the profile.
        data: the parsed ``kis/orders.json``.
        kis: makes the calls.
        calendar: when exchanges are open.
        clock: for deadlines and stamps.
        disk: appends to the journal.
        folder: the state folder.
        name: the appkey's name there.
        missed: told what no notice brought.

    Raises:
        ConfigError: orders are on, and no account is configured.
        StateError: the journal cannot be used, or is damaged.
        LocalRefusal: another process has the journal.
    """
    rules = OrderRules(data)
    account = _account(config)
    reader = None if account is None else AccountReader(kis, account)
    if not config.orders.enabled:
        yield Ordering(None, OrderCalls(None, reader, rules))
        return
    if account is None:
        raise ConfigError(("credentials.account", Phrase("orders need it: 12345678-01")))
    paper = config.environment is Environment.PAPER
    caps = config.orders
    switch = HaltSwitch(folder, name)
    with open_journal(switch.journal, disk) as journal:
        book = Book(rules, caps, caps.ttl_paper_s if paper else caps.ttl_s)
        at = Instant(clock.now(), clock.wall_ns())
        try:
            book.replay(journal.records, at)
        except (ValueError, KeyError, TypeError) as exc:
            raise StateError(f"{journal.path} was not written by this program: {exc}") from exc
        book.forget(at)
        desk = OrderDesk(
            kis, book, journal, switch, account, rules, calendar, caps, clock, paper, missed
        )
        yield Ordering(desk, OrderCalls(desk, reader, rules))


def _account(config: Config) -> Account | None:
    text = config.credentials.account.reveal()
    if not text:
        return None
    try:
        return Account.parse(text)
    except ValueError as exc:
        text = Phrase("an account is 8 digits, a dash and 2 digits")
        raise ConfigError(("credentials.account", text)) from exc
