"""Questions about any number of symbols, cut into calls that stay small and short."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from kisfeed.errors import BadFrame
from kisfeed.kfp.models import Answers, DailyPrice, Price, SymbolInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

M = TypeVar("M", Price, DailyPrice, SymbolInfo)

_MOST_SYMBOLS: Final = {"quotes": 200, "daily": 50, "symbols": 200}
_NOT_YET: Final = frozenset({"timeout", "rate_limited"})


class Questions(Generic[M]):
    """What one caller wants to know; the shell makes the calls.

    What the daemon could not get in time is asked again as long as each call brings something.

    Attributes:
        name: the call.
        open: there is something left to ask.
    """

    def __init__(self, name: str, model: type[M], symbols: Sequence[str], **how: object) -> None:
        self.name = name
        self._model: type[M] = model
        self._how = how
        self._symbols = list(dict.fromkeys(symbols))
        self._left = list(self._symbols)
        self._found: dict[str, M] = {}
        self._missing: dict[str, str] = {}

    @property
    def open(self) -> bool:
        return bool(self._left)

    def arguments(self) -> dict[str, object]:
        """Those of the next call."""
        return {"symbols": self._left[: _MOST_SYMBOLS[self.name]], **self._how}

    def take(self, result: object) -> None:
        """The next call's result.

        Raises:
            BadFrame: it does not have the shape of one.
        """
        asked = self._left[: _MOST_SYMBOLS[self.name]]
        try:
            found, missing = _maps(result)
            items = {symbol: self._model.from_map(item) for symbol, item in found.items()}
        except (TypeError, KeyError) as error:
            raise BadFrame(f"the answer to {self.name} lacks something: {error}") from error
        again = [symbol for symbol in asked if items and missing.get(symbol) in _NOT_YET]
        self._found.update(items)
        self._missing.update((s, code) for s, code in missing.items() if s not in again)
        self._left = again + self._left[len(asked) :]

    def answers(self) -> Answers[M]:
        """Everything that was learnt, in the order in which it was asked for."""
        return Answers(
            {symbol: self._found[symbol] for symbol in self._symbols if symbol in self._found},
            {symbol: self._missing[symbol] for symbol in self._symbols if symbol in self._missing},
        )


def _maps(result: object) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    if not isinstance(result, Mapping):
        raise TypeError("it is no map")
    items, missing = result["items"], result["missing"]
    if not isinstance(items, dict) or not isinstance(missing, dict):
        raise TypeError("items and missing are maps")
    return items, missing
