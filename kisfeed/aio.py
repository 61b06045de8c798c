"""kisfeed for asyncio programs: ``async with kisfeed.aio.connect() as kf:``."""

from __future__ import annotations

from kisfeed.client.aio import Client, connect

__all__ = ["Client", "connect"]
