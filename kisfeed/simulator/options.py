"""How a simulated KIS is set up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from kisfeed.config import Environment
from kisfeed.simulator.brokerage import Dealing
from kisfeed.simulator.exchange import Rules
from kisfeed.simulator.market import OPEN_MARKET

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Mapping
    from pathlib import Path

    from kisfeed.simulator.faults import Fault


@attrs.frozen
class Options:
    """Everything that can be chosen. The same options and the same requests give the same frames.

    Attributes:
        seed: decides prices, keys and tokens.
        environment: PAPER serves the paper TR ids only; REAL and SIM the real ones.
        ws_port, rest_port: on loopback; 0 lets the system choose.
        rate_hz: frames a second for each registered trade or book; expected executions come at
            a fifth, the other channels at a tenth of it.
        shared: that rate is for all registrations together.
        records: the fewest and the most records in a trade frame; other frames carry one.
        width: 46 or 47 values in a stock trade record.
        book_width: 59, 62 or 63 values in an H0STASP0 record.
        widths: the record width of any other TR, by TR id; default: its usual one.
        pingpong_s: seconds between two PINGPONG messages.
        notice_s: seconds between two notices on a notice registration.
        acknowledge_close: answer a close frame; KIS is reported not to.
        rules: caps, holds, accounts and the like.
        dealing: money, fills and the day's list.
        scenario: faults on a timetable.
        play: a file of captured frames to play for the keys it has, in place of the market.
        start: the date and time in Seoul at the start.
        time_scale: exchange seconds in one second; market hours and dates only.
        always_open: trade at any hour.
    """

    seed: int = 1
    environment: Environment = Environment.SIM
    ws_port: int = 0
    rest_port: int = 0
    rate_hz: float = 5.0
    shared: bool = False
    records: tuple[int, int] = (1, 4)
    width: int = 46
    book_width: int = 59
    widths: Mapping[str, int] = attrs.field(factory=dict)
    pingpong_s: float = 10.0
    notice_s: float = 15.0
    acknowledge_close: bool = True
    rules: Rules = attrs.field(factory=Rules)
    dealing: Dealing = attrs.field(factory=Dealing)
    scenario: tuple[Fault, ...] = ()
    play: Path | None = None
    start: dt.datetime = OPEN_MARKET
    time_scale: float = 1.0
    always_open: bool = True
