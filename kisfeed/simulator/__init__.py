"""A faithful fake KIS: both protocols, its own counters, faults on a timetable.

What it does as KIS documents it, what it does because somebody saw it, and what is assumed is
said in ``FIDELITY.md`` beside this file.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

from kisfeed.simulator.exchange import Exchange as Exchange, Happening as Happening, Rules as Rules
from kisfeed.simulator.faults import Fault as Fault, Kind as Kind
from kisfeed.simulator.host import Simulator as Simulator
from kisfeed.simulator.market import Market as Market
from kisfeed.simulator.options import Options as Options
from kisfeed.simulator.scenario import (
    load_scenario as load_scenario,
    read_fault as read_fault,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

_HOST = "127.0.0.1"


@contextlib.asynccontextmanager
async def open_simulator(options: Options | None = None) -> AsyncGenerator[Simulator]:
    """Run a simulated KIS on loopback TCP for as long as the block lasts.

    Its addresses are ``rest_url`` and ``ws_url``; everything is closed at the end of the block.

    Raises:
        OSError: a port is taken.
        UsageError: an option that cannot be.
    """
    options = Options() if options is None else options
    simulator = Simulator(options)
    async with trio.open_nursery() as nursery:
        rest_port: int = await nursery.start(_serve_rest, simulator, options.rest_port)
        ws_port: int = await nursery.start(_serve_websocket, simulator, options.ws_port)
        simulator.rest_url = f"http://{_HOST}:{rest_port}"
        simulator.ws_url = f"ws://{_HOST}:{ws_port}"
        nursery.start_soon(simulator.run)
        yield simulator
        nursery.cancel_scope.cancel()


async def _serve_rest(
    simulator: Simulator,
    port: int,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    listeners = await trio.open_tcp_listeners(port, host=_HOST)
    task_status.started(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(simulator.serve_rest, listeners)


async def _serve_websocket(
    simulator: Simulator,
    port: int,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen, except while a fault says that the port refuses; open clients are not touched."""
    async with trio.open_nursery() as clients:
        listeners = await trio.open_tcp_listeners(port, host=_HOST)
        port = listeners[0].socket.getsockname()[1]
        task_status.started(port)
        while True:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(_accept, simulator, listeners, clients)
                while not simulator.refuses():
                    await simulator.refusal_change()
                accepting.cancel_scope.cancel()
            while simulator.refuses():
                await simulator.refusal_change()
            listeners = await trio.open_tcp_listeners(port, host=_HOST)


async def _accept(
    simulator: Simulator, listeners: list[trio.SocketListener], clients: trio.Nursery
) -> None:
    await trio.serve_listeners(simulator.serve_websocket, listeners, handler_nursery=clients)
