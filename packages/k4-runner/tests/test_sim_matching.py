"""Matching: price, then time; nothing lost, nothing traded through. Checked against a model that
keeps one flat list and sorts it."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from k4.runner.sim.matching import MARKET, Book, Prevention, Resting


@dataclass
class Heard:
    """A sink that remembers, and checks each trade when it happens."""

    book: Book
    trades: list[tuple[int, int, int, int]] = field(default_factory=list)  # maker, taker, ...
    prevented_sizes: list[tuple[int, int, bool, bool]] = field(default_factory=list)

    def traded(self, maker: Resting, taker: Resting, price: int, size: int) -> None:
        assert size > 0
        assert maker.buy != taker.buy
        best = self.book.best(maker.buy)
        # Whatever is left on the maker's side is no better than the price that was paid.
        assert best is None or (best <= price if maker.buy else best >= price)
        self.trades.append((maker.number, taker.number, price, size))

    def prevented(
        self, maker: Resting, taker: Resting, size: int, maker_ends: bool, taker_ends: bool
    ) -> None:
        assert maker.owner == taker.owner != MARKET
        self.prevented_sizes.append((maker.number, size, maker_ends, taker_ends))


def enter(book: Book, heard: Heard, order: Resting) -> None:
    """A limit order that rests with what it did not trade."""
    book.take(order, order.price, heard)
    if order.left:
        book.add(order)


def volume(book: Book) -> int:
    return sum(size for buy in (True, False) for _, size in book.levels(buy))


def order(number: int, buy: bool, price: int, size: int, owner: str = "") -> Resting:
    return Resting(owner or f"a{number}", number, buy, price, size)


def test_a_better_price_goes_first_and_then_the_earlier_order() -> None:
    book, heard = Book(), None
    heard = Heard(book)
    for number, price in ((1, 101), (2, 100), (3, 100)):
        enter(book, heard, order(number, False, price, 5))
    enter(book, heard, order(9, True, 101, 12))
    assert heard.trades == [(2, 9, 100, 5), (3, 9, 100, 5), (1, 9, 101, 2)]


def test_a_taker_gets_the_makers_price_and_nothing_beyond_its_limit() -> None:
    book = Book()
    heard = Heard(book)
    enter(book, heard, order(1, True, 99, 3))
    enter(book, heard, order(2, True, 98, 3))
    taker = order(3, False, 99, 10)
    book.take(taker, taker.price, heard)
    assert heard.trades == [(1, 3, 99, 3)]
    assert taker.left == 7


def test_an_order_keeps_its_place_when_the_market_cancels_behind_it() -> None:
    book = Book()
    heard = Heard(book)
    book.quote(True, 100, 5, heard)
    mine = order(1, True, 100, 4)
    enter(book, heard, mine)
    book.quote(True, 100, 8, heard)  # three more behind it
    book.quote(True, 100, 6, heard)  # two of them leave again
    assert [(item.number, item.left) for item in book.queue(True, 100)] == [(0, 5), (1, 4), (0, 1)]
    assert book.hit(False, 100, 6, heard) == 6
    assert mine.left == 3
    assert heard.trades[-1] == (1, 0, 100, 1)


def test_a_market_that_moves_through_an_order_fills_it_at_its_own_price() -> None:
    book = Book()
    heard = Heard(book)
    mine = order(1, True, 100, 4)
    enter(book, heard, mine)
    book.quote(False, 98, 10, heard)
    assert heard.trades == [(1, 0, 100, 4)]
    assert list(book.levels(False)) == [(98, 6)]


def test_less_of_the_market_leaves_an_empty_level_out() -> None:
    book = Book()
    heard = Heard(book)
    book.quote(False, 98, 10, heard)
    book.quote(False, 98, 0, heard)
    assert book.best(False) is None


def test_a_removed_order_does_not_trade_and_is_removed_once() -> None:
    book = Book()
    heard = Heard(book)
    gone, stays = order(1, False, 100, 5), order(2, False, 100, 5)
    enter(book, heard, gone)
    enter(book, heard, stays)
    assert book.remove(gone)
    assert not book.remove(gone)
    assert book.hit(True, 100, 9, heard) == 5


def self_trade(mode: Prevention, maker: int = 5, taker: int = 8) -> tuple[Heard, Book, Resting]:
    """An account's ask with somebody else's behind it, and its own bid."""
    book = Book()
    heard = Heard(book)
    enter(book, heard, order(1, False, 100, maker, "me"))
    enter(book, heard, order(2, False, 100, 10, "other"))
    mine = Resting("me", 3, True, 100, taker, mode)
    book.take(mine, 100, heard)
    return heard, book, mine


def test_without_prevention_an_account_trades_with_itself() -> None:
    heard, _, _ = self_trade(Prevention.NONE)
    assert heard.trades == [(1, 3, 100, 5), (2, 3, 100, 3)]


def test_prevention_ends_the_maker_the_taker_or_both() -> None:
    heard, book, mine = self_trade(Prevention.EXPIRE_MAKER)
    assert heard.prevented_sizes == [(1, 5, True, False)]
    assert heard.trades == [(2, 3, 100, 8)]
    heard, book, mine = self_trade(Prevention.EXPIRE_TAKER)
    assert (heard.trades, mine.left) == ([], 8)
    assert [item.number for item in book.queue(False, 100)] == [1, 2]
    heard, book, mine = self_trade(Prevention.EXPIRE_BOTH)
    assert (heard.trades, mine.left) == ([], 8)
    assert [item.number for item in book.queue(False, 100)] == [2]


def test_decrement_takes_the_smaller_size_from_both() -> None:
    heard, _, _ = self_trade(Prevention.DECREMENT)
    assert heard.prevented_sizes == [(1, 5, True, False)]
    assert heard.trades == [(2, 3, 100, 3)]
    heard, book, _ = self_trade(Prevention.DECREMENT, maker=9)
    assert heard.prevented_sizes == [(1, 8, False, True)]
    assert book.queue(False, 100)[0].left == 1


PRICES, SIZES = st.integers(95, 105), st.integers(1, 20)
ENTRY = st.tuples(st.just("order"), st.booleans(), PRICES, SIZES)
QUOTE = st.tuples(st.just("quote"), st.booleans(), PRICES, st.integers(0, 20))
HIT = st.tuples(st.just("hit"), st.booleans(), PRICES, SIZES)
CANCEL = st.tuples(st.just("cancel"), st.booleans(), st.integers(0, 40), st.just(0))
STEPS = st.lists(st.one_of(ENTRY, QUOTE, HIT, CANCEL), max_size=40)


@settings(deadline=None, max_examples=150)
@given(STEPS)
def test_quantity_is_conserved_and_the_book_never_crosses(
    steps: list[tuple[str, bool, int, int]],
) -> None:
    """What entered is what rests, plus twice what traded, plus what was taken back."""
    book = Book()
    heard = Heard(book)
    orders: list[Resting] = []
    for number, (what, buy, price, size) in enumerate(steps, start=1):
        before, traded = volume(book), sum(trade[3] for trade in heard.trades)
        entered = 0
        if what == "order":
            orders.append(order(number, buy, price, size))
            enter(book, heard, orders[-1])
            entered = size
        elif what == "hit":
            entered = book.hit(buy, price, size, heard)
        elif what == "cancel":
            if orders and book.remove(gone := orders[price % len(orders)]):
                entered = -gone.left
        else:
            mine = [item.left for item in book.queue(buy, price) if item.owner == MARKET]
            book.quote(buy, price, size, heard)
            entered = size - sum(mine)
        now = sum(trade[3] for trade in heard.trades)
        assert volume(book) == before + entered - 2 * (now - traded)
        bid, ask = book.best(True), book.best(False)
        assert bid is None or ask is None or bid < ask
    assert all(item.left >= 0 for item in orders)


@settings(deadline=None, max_examples=150)
@given(st.lists(ENTRY, min_size=1, max_size=40))
def test_trades_are_those_of_a_sorted_list(steps: list[tuple[str, bool, int, int]]) -> None:
    """The model: of all resting orders on the other side, the best price; of those, the first."""
    book = Book()
    heard = Heard(book)
    model: list[list[int]] = []  # number, buy, price, left
    wanted: list[tuple[int, int, int, int]] = []
    for number, (_, buy, price, size) in enumerate(steps, start=1):
        enter(book, heard, order(number, buy, price, size))
        left = size
        while left:
            found = [
                item
                for item in model
                if item[1] != buy and (item[2] <= price if buy else item[2] >= price)
            ]
            if not found:
                break
            best = min(found, key=lambda item: (item[2] if item[1] == 0 else -item[2], item[0]))
            part = min(left, best[3])
            wanted.append((best[0], number, best[2], part))
            best[3] -= part
            left -= part
            if not best[3]:
                model.remove(best)
        if left:
            model.append([number, int(buy), price, left])
    assert heard.trades == wanted


@settings(deadline=None, max_examples=100)
@given(st.lists(ENTRY, max_size=25), st.booleans(), PRICES, SIZES, st.sampled_from(Prevention))
def test_the_plan_is_what_then_happens(
    steps: list[tuple[str, bool, int, int]], buy: bool, price: int, size: int, mode: Prevention
) -> None:
    book = Book()
    heard = Heard(book)
    for number, (_, side, at, amount) in enumerate(steps, start=1):
        enter(book, heard, order(number, side, at, amount, "me" if number % 3 == 0 else ""))
    heard.trades.clear()
    taker = Resting("me", 99, buy, price, size, mode)
    planned = [part for part in book.plan(taker, price) if part[1]]
    book.take(taker, price, heard)
    assert planned == [(at, amount) for _, _, at, amount in heard.trades]
