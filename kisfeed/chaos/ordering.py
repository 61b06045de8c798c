"""What must hold of orders: each check reads the broker's own books beside what was told."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Final

from kisfeed.chaos.findings import Finding
from kisfeed.chaos.schedule import Trouble
from kisfeed.config import Orders
from kisfeed.kfp.orders import OrderState
from kisfeed.texts import Phrase

if TYPE_CHECKING:
    from kisfeed.chaos.run import Run
    from kisfeed.chaos.seen import Seen
    from kisfeed.chaos.trader import Post, Terms
    from kisfeed.limits import Limits
    from kisfeed.simulator.brokerage import Placed

_SLACK_S: Final = 0.5
_LOOKS_S: Final = 130.0  # a token that is refused is tried once a minute
_LIST: Final = "/inquire-daily-ccld"
_NOTHING_DONE: Final = (
    OrderState.NOT_SENT,
    OrderState.EXPIRED,
    OrderState.REJECTED,
    OrderState.NOT_EXECUTED,
)
_UNSETTLED: Final = (OrderState.QUEUED, OrderState.SENDING, OrderState.UNKNOWN)


def _taken(run: Run) -> dict[Terms, list[Placed]]:
    """New orders that took effect and were not placed by hand, by their terms."""
    found: dict[Terms, list[Placed]] = {}
    for placed in run.brokerage.orders:
        if placed.action == "new" and not placed.hand:
            terms = placed.symbol, placed.side, placed.qty, placed.price
            found.setdefault(terms, []).append(placed)
    return found


def _alone(run: Run) -> set[str]:
    """Ids whose terms no other id and no person has."""
    terms = {asked.id: asked.terms for asked in run.trader.asked}
    times = Counter(terms.values())
    by_hand = {(o.symbol, o.side, o.qty, o.price) for o in run.brokerage.orders if o.hand}
    return {name for name, its in terms.items() if times[its] == 1 and its not in by_hand}


def _true_clock(run: Run) -> bool:
    """The daemon's clock was KIS's all along: today's list was today's."""
    kinds = {step.kind for step in run.case.steps}
    return not kinds & {Trouble.CLOCK_STEP, Trouble.SUSPEND}


def once(seen: Seen, _: Limits) -> Finding:
    """I36: no id is executed twice on a day, whatever happened in between."""
    run = seen.run
    days: dict[Terms, set[tuple[str, str]]] = {}
    for asked in run.trader.asked:
        days.setdefault(asked.terms, set()).update((asked.id, day) for day in asked.days)
    taken = _taken(run)
    too_many = {
        terms: len(orders) - len(days.get(terms, ()))
        for terms, orders in taken.items()
        if len(orders) > len(days.get(terms, ()))
    }
    return Finding(
        {Phrase("executed beyond once"): sum(too_many.values())},
        counts={
            Phrase("requests"): len(run.trader.asked),
            Phrase("executed"): sum(map(len, taken.values())),
        },
        faults=tuple(f"{terms} was executed {n} times too often" for terms, n in too_many.items()),
    )


def intended(seen: Seen, _: Limits) -> Finding:
    """I37: the intent was on disk when the first byte left."""
    posts = seen.run.trader.posts
    bare = [post for post in posts if not post.intended]
    return Finding(
        {Phrase("without an intent"): len(bare)},
        counts={Phrase("POSTs"): len(posts)},
        faults=tuple(f"{post.began_at:.3f}: a POST without its intent" for post in bare[:5]),
    )


def evidence(seen: Seen, _: Limits) -> Finding:
    """I38: what is called accepted was executed under that number, what is called not was not."""
    run = seen.run
    taken = _taken(run)
    terms = {asked.id: asked.terms for asked in run.trader.asked}
    alone = _alone(run)
    by_hand = {placed.number for placed in run.brokerage.orders if placed.hand}
    faults, taken_over = [], 0
    for name, order in run.trader.final.items():
        numbers = {placed.number for placed in taken.get(terms[name], ())}
        if order["order_no"] and int(order["order_no"]) not in numbers:
            if int(order["order_no"]) in by_hand and not _tellable(run, name):
                taken_over += 1
            else:
                faults.append(f"{name} is said to be order {order['order_no']}, which is not it")
        elif (
            order["state"] in _NOTHING_DONE
            and not order["order_no"]
            and numbers
            and name in alone
            and len({day for a in run.trader.asked if a.id == name for day in a.days}) == 1
        ):
            faults.append(f"{name} is said to be {order['state']} and was executed")
    return Finding(
        {Phrase("misclassified"): len(faults)},
        counts={
            **Counter(str(o["state"]) for o in run.trader.final.values()),
            Phrase("a person's order taken for a lost one"): taken_over,
        },
        faults=tuple(faults),
    )


def _tellable(run: Run, name: str) -> bool:
    """A person's row was told from this order's by where it was entered.

    That is known from an order of ours that KIS had taken and answered on the same day.
    """
    final = run.trader.final
    began = min(asked.at for asked in run.trader.asked if asked.id == name)
    return any(
        asked.until < began
        and asked.id in final
        and final[asked.id]["order_no"]
        and final[asked.id]["evidence"] == "answer"
        and final[asked.id]["day"] == final[name]["day"]
        for asked in run.trader.asked
    )


def _doubt(posts: list[Post], number: int, settle_s: float) -> list[Post]:
    """Earlier new orders whose fate nobody could know when this one left."""
    now = posts[number].began_at
    return [p for p in posts[:number] if not p.told and p.at <= now < p.began_at + settle_s]


def twins(seen: Seen, _: Limits) -> Finding:
    """I39: beside an order in doubt neither its twin nor, with enough of them, anything leaves."""
    run, rules = seen.run, Orders()
    posts = [post for post in run.trader.posts if post.is_new]
    faults, most = [], 0
    for number, post in enumerate(posts if _true_clock(run) else ()):
        doubtful = _doubt(posts, number, rules.settle_s)
        most = max(most, len(doubtful))
        if any(other.terms == post.terms for other in doubtful):
            faults.append(f"{post.began_at:.3f}: the twin of an order in doubt was sent")
        if len(doubtful) >= rules.max_unknown:
            faults.append(f"{post.began_at:.3f}: sent with {len(doubtful)} in doubt")
    return Finding({Phrase("sent beside doubts"): most}, faults=tuple(faults))


def _unread_s(run: Run) -> float:
    """The longest time without a look at the day's list while an order was in doubt at the end."""
    began = run.trader.asks_from
    ended = began + run.trader.in_doubt_s
    reads = [at for at, path, _ in run.rest_calls if path.endswith(_LIST) and began < at < ended]
    return max(two - one for one, two in itertools.pairwise([began, *reads, ended]))


def settled(seen: Seen, _: Limits) -> Finding:
    """I40: every doubt ends, in KIS's truth where the list shows one candidate alone."""
    run = seen.run
    taken, alone = _taken(run), _alone(run)
    terms = {asked.id: asked.terms for asked in run.trader.asked}
    took, faults = [], []
    for name, order in run.trader.final.items():
        if order["evidence"] == "list":
            took.append((order["updated_ts"] - order["sent_ts"]) / 1e9)
        if order["state"] in _UNSETTLED:
            faults.append(f"{name} is {order['state']} {run.trader.in_doubt_s:.0f} s after")
        elif (
            order["state"] == OrderState.HUMAN
            and name in alone
            and _true_clock(run)
            and any(f"{o.time:%Y%m%d}" == order["day"] for o in taken.get(terms[name], ()))
        ):
            faults.append(f"{name} was left to a person, and the list shows it")
    unread = _unread_s(run)
    if unread > _LOOKS_S:
        faults.append(f"for {unread:.0f} s nobody looked for an order in doubt")
    return Finding(
        {
            Phrase("still unknown"): sum(
                order["state"] in _UNSETTLED for order in run.trader.final.values()
            ),
            Phrase("not looked for s"): round(unread, 3),
        },
        {Phrase("settled by the list after s"): took},
        faults=tuple(faults),
    )


def halted(seen: Seen, _: Limits) -> Finding:
    """I41: once ``halt`` has answered nothing but cancellations leaves."""
    trader = seen.run.trader
    late = [
        post.began_at
        for post in trader.posts
        for halt in trader.halts
        if post.is_new and halt.since < post.began_at < halt.until
    ]
    return Finding(
        {Phrase("POSTs after a halt"): len(late)},
        counts={Phrase("halts"): len(trader.halts)},
        faults=tuple(f"{at:.3f}: an order left although halted" for at in late),
    )


def in_time(seen: Seen, _: Limits) -> Finding:
    """I42: an order leaves within its time or not at all."""
    trader, rules = seen.run.trader, Orders()
    most, faults = 0.0, []
    for post in trader.posts:
        if not post.is_new:
            continue
        waits = [
            post.began_at - asked.at
            for asked in trader.asked
            if asked.at <= post.began_at
            and (asked.terms[0], asked.terms[2], asked.terms[3])
            == (post.terms[0], post.terms[2], post.terms[3])
        ]
        wait = min(waits, default=0.0)
        most = max(most, wait)
        if wait > rules.ttl_s + _SLACK_S:
            faults.append(f"{post.began_at:.3f}: sent {wait:.3f} s after it was asked for")
    return Finding({Phrase("sent after s"): most}, faults=tuple(faults))
