"""For tests, ours and other people's: a simulated KIS, on loopback or wholly in memory.

The in-memory one uses nothing but Trio's clock, so that under a ``MockClock`` hours pass in
milliseconds; the same options and requests give the same frames.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio
import trio.testing

from kisfeed.simulator import (
    Exchange,
    Fault,
    Happening,
    Kind,
    Market,
    Options,
    Rules,
    Simulator,
    open_simulator,
)
from kisfeed.simulator.rest import Down

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

__all__ = [
    "Exchange",
    "Fault",
    "Happening",
    "Kind",
    "Market",
    "MemorySimulator",
    "Options",
    "Rules",
    "Simulator",
    "open_memory_simulator",
    "open_simulator",
]


class MemorySimulator:
    """A simulated KIS without sockets.

    Attributes:
        simulator: the simulator itself.
        exchange: the oracle.
        market: prices and volumes.
    """

    def __init__(self, simulator: Simulator, nursery: trio.Nursery) -> None:
        self.simulator = simulator
        self.exchange = simulator.exchange
        self.market = simulator.market
        self._nursery = nursery

    async def dial(self, host: str, port: int) -> trio.abc.Stream:
        """Connect to the WebSocket server; the address does not matter.

        Raises:
            ConnectionRefusedError: a fault says that nobody listens.
        """
        await trio.lowlevel.checkpoint()
        if self.simulator.refuses():
            self.exchange.refused_dial(trio.current_time())
            raise ConnectionRefusedError(f"nobody listens on {host}:{port}")
        ours, theirs = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self.simulator.serve_websocket, theirs)
        return ours

    async def dial_rest(self) -> trio.abc.Stream:
        """Connect to the HTTP server."""
        await trio.lowlevel.checkpoint()
        ours, theirs = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self.simulator.serve_rest, theirs)
        return ours

    async def rest(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """One HTTP call without HTTP: status, headers, body.

        Raises:
            ConnectionResetError: a fault says that the host is dead.
        """
        await trio.lowlevel.checkpoint()
        try:
            reply = self.simulator.rest.handle(method, path, headers, body, trio.current_time())
        except Down:
            raise ConnectionResetError("the host ended the connection") from None
        await trio.sleep(reply.delay)
        return reply.status, dict(reply.headers), reply.body

    def inject(self, fault: Fault | Kind | str) -> None:
        """Make something go wrong now.

        Raises:
            ValueError: no such kind.
        """
        self.simulator.inject(fault)


@contextlib.asynccontextmanager
async def open_memory_simulator(options: Options | None = None) -> AsyncGenerator[MemorySimulator]:
    """Run a simulated KIS in memory for as long as the block lasts.

    Raises:
        UsageError: an option that cannot be.
    """
    simulator = Simulator(Options() if options is None else options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(simulator.run)
        yield MemorySimulator(simulator, nursery)
        nursery.cancel_scope.cancel()
