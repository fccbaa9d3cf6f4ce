"""The state of an order: every transition, and any order, duplication and loss of reports."""

from __future__ import annotations

from decimal import Decimal

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from k4.core.trading import (
    ZERO,
    AccountType,
    Direction,
    Fill,
    NewOrder,
    OrderStatus,
    OrderType,
)
from k4.td import state as states
from k4.td.state import AMEND, CANCEL, PLACE, STATUS, OrderState
from k4.td.venue import Report

ORDER = NewOrder(
    symbol="BTCUSDT",
    account_type=AccountType.SPOT,
    direction=Direction.BUY,
    order_type=OrderType.GTC,
    quantity=Decimal(10),
    price=Decimal(100),
    client_order_id="k4-1",
)


def fill(number: int, quantity: str = "1", price: str = "100") -> Fill:
    return Fill(
        symbol="BTCUSDT",
        account_type=AccountType.SPOT,
        direction=Direction.BUY,
        client_order_id="k4-1",
        order_id="7",
        trade_id=str(number),
        price=Decimal(price),
        quantity=Decimal(quantity),
        commission=Decimal("0.1"),
        commission_asset="BNB",
        trade_time_us=number,
    )


def report(status: OrderStatus, time_us: int = 1, executed: str = "0", *fills: Fill) -> Report:
    return Report(
        symbol="BTCUSDT",
        client_order_id="k4-1",
        order_id="7",
        status=status,
        quantity=Decimal(10),
        price=Decimal(100),
        executed=Decimal(executed),
        average=Decimal(100) if Decimal(executed) else ZERO,
        time_us=time_us,
        fills=fills,
    )


def fresh() -> OrderState:
    return states.intend(ORDER, 0)


S = OrderStatus


def test_the_plain_life_of_an_order() -> None:
    state = fresh()
    assert (state.status, state.exposure) == (S.PENDING_NEW, Decimal(10))
    state = states.hear(states.settle(state, PLACE), report(S.NEW))
    assert (state.status, state.order_id) == (S.NEW, "7")
    state = states.hear(state, report(S.PARTIALLY_FILLED, 2, "4", fill(1, "4")))
    assert (state.status, state.exposure) == (S.PARTIALLY_FILLED, Decimal(6))
    state = states.ask(state, CANCEL)
    assert state.status is S.PENDING_CANCEL
    state = states.hear(states.settle(state, CANCEL), report(S.CANCELED, 3, "4"))
    assert (state.status, state.exposure, state.filled) == (S.CANCELED, ZERO, Decimal(4))


def test_a_refusal_rejects_and_a_report_overrides_it() -> None:
    state = states.refuse(fresh(), "no balance")
    assert (state.status, state.reason, state.exposure) == (S.REJECTED, "no balance", ZERO)
    state = states.hear(state, report(S.NEW))
    assert state.status is S.NEW
    assert states.refuse(state, "too late").status is S.NEW


def test_an_unknown_order_is_open_at_full_size_until_any_trace_of_it() -> None:
    state = states.doubt(fresh(), PLACE, "timeout")
    assert (state.status, state.exposure) == (S.UNKNOWN, Decimal(10))
    assert states.hear(state, report(S.NEW)).status is S.NEW
    assert states.fill(state, [fill(1)]).status is S.PARTIALLY_FILLED
    assert states.refuse(state, "not placed").status is S.REJECTED


def test_a_cancel_in_doubt_shows_unknown_and_a_final_report_ends_the_doubt() -> None:
    state = states.hear(states.settle(fresh(), PLACE), report(S.NEW))
    state = states.doubt(states.ask(state, CANCEL), CANCEL, "lost")
    assert (state.status, state.exposure) == (S.UNKNOWN, Decimal(10))
    state = states.hear(state, report(S.NEW, 2))
    assert state.status is S.UNKNOWN  # a report that may be older than the cancel
    assert states.hear(state, report(S.CANCELED, 3)).status is S.CANCELED
    assert states.settle(state, CANCEL).status is S.NEW


def test_an_amend_in_doubt_is_settled_by_its_own_figures() -> None:
    state = states.hear(states.settle(fresh(), PLACE), report(S.NEW))
    state = states.ask(state, AMEND, (Decimal(20), Decimal(101)))
    state = states.doubt(state, AMEND, "lost")
    assert (state.status, state.exposure) == (S.UNKNOWN, Decimal(20))
    newer = msgspec.structs.replace(report(S.NEW, 5), quantity=Decimal(20), price=Decimal(101))
    state = states.hear(state, newer)
    assert (state.status, state.quantity, state.price) == (S.NEW, Decimal(20), Decimal(101))


def test_an_older_report_changes_no_figures() -> None:
    newer = msgspec.structs.replace(report(S.NEW, 5), quantity=Decimal(4))
    state = states.hear(states.hear(fresh(), newer), report(S.NEW, 3))
    assert state.quantity == Decimal(4)


def test_a_status_that_is_not_documented_is_unknown_until_a_known_one() -> None:
    state = states.hear(fresh(), report(S.UNKNOWN))
    assert (state.status, state.doubts) == (S.UNKNOWN, (STATUS,))
    assert states.hear(states.settle(state, PLACE), report(S.NEW, 2)).status is S.NEW
    final = states.hear(fresh(), report(S.FILLED, 3, "10"))
    assert states.hear(final, report(S.UNKNOWN, 4)).status is S.FILLED


def test_expiry_and_self_trade_prevention_keep_their_reason() -> None:
    ended = msgspec.structs.replace(report(S.EXPIRED, 2, "3"), reason="self-trade prevention")
    update = states.view(states.hear(fresh(), ended))
    assert (update.status, update.reason) == (S.EXPIRED, "self-trade prevention")
    assert update.filled_quantity == Decimal(3)


def test_fills_count_once_by_trade_id_and_average_by_quantity() -> None:
    state = states.fill(fresh(), [fill(1, "2", "100"), fill(2, "1", "103")])
    state = states.fill(state, [fill(1, "2", "100")])
    update = states.view(state)
    assert (update.filled_quantity, update.filled_avg_price) == (Decimal(3), Decimal(101))
    assert (update.commission, update.commission_asset) == (Decimal("0.2"), "BNB")


def test_a_fill_after_the_end_is_still_counted() -> None:
    state = states.hear(fresh(), report(S.CANCELED, 9, "1"))
    state = states.fill(state, [fill(1)])
    assert (state.status, state.filled) == (S.CANCELED, Decimal(1))


# Any venue history, heard in any way.


@st.composite
def histories(draw: st.DrawFn) -> list[Report]:
    """What a venue really does with one order: accepted, filled in parts, amended, ended."""
    quantity, price, executed, worth = Decimal(10), Decimal(100), ZERO, ZERO
    reports: list[Report] = []
    trade = 0

    def tell(status: OrderStatus, *fills: Fill) -> None:
        reports.append(
            Report(
                symbol="BTCUSDT",
                client_order_id="k4-1",
                order_id="7",
                status=status,
                quantity=quantity,
                price=price,
                executed=executed,
                average=worth / executed if executed else ZERO,
                time_us=len(reports) + 1,
                fills=fills,
            )
        )

    tell(S.NEW)
    for step in draw(st.lists(st.sampled_from(["fill", "amend"]), max_size=6)):
        if executed == quantity:
            break
        if step == "fill":
            amount = Decimal(draw(st.integers(1, int(quantity - executed))))
            trade += 1
            executed += amount
            worth += amount * price
            entry = fill(trade, str(amount), str(price))
            tell(S.FILLED if executed == quantity else S.PARTIALLY_FILLED, entry)
        else:
            quantity = executed + draw(st.integers(1, 10))
            price = Decimal(draw(st.integers(90, 110)))
            tell(S.PARTIALLY_FILLED if executed else S.NEW)
    if executed < quantity and draw(st.booleans()):
        tell(draw(st.sampled_from([S.CANCELED, S.EXPIRED])))
    return reports


def shown(state: OrderState) -> tuple[object, ...]:
    update = states.view(state)
    return (
        update.status,
        update.quantity,
        update.price,
        update.filled_quantity,
        update.filled_avg_price,
        update.order_id,
    )


@given(histories(), st.data())
def test_any_order_duplication_and_loss_converges_to_the_venue_s_truth(
    history: list[Report], data: st.DataObject
) -> None:
    """Whatever was lost, the last query makes good (here: the last report, without its fills)."""
    truth = states.settle(fresh(), PLACE)
    for entry in history:
        truth = states.hear(truth, entry)
    heard = data.draw(st.lists(st.sampled_from(history), max_size=20))
    state = fresh()
    if data.draw(st.booleans()):
        state = states.doubt(state, PLACE, "timeout")
    query = msgspec.structs.replace(history[-1], fills=())
    at = data.draw(st.integers(0, len(heard)))
    for entry in [*heard[:at], query, *heard[at:]]:
        state = states.hear(state, entry)
    assert shown(states.settle(state, PLACE)) == shown(truth)


@given(histories(), st.data())
def test_the_join_is_the_same_in_every_order(history: list[Report], data: st.DataObject) -> None:
    one, other = states.settle(fresh(), PLACE), states.settle(fresh(), PLACE)
    for entry in history:
        one = states.hear(one, entry)
    for entry in data.draw(st.permutations([*history, *history])):
        other = states.hear(other, entry)
    assert shown(one) == shown(other)
    assert one.fills == other.fills


@given(histories(), st.data())
def test_a_final_order_never_opens_again_and_nothing_filled_is_lost(
    history: list[Report], data: st.DataObject
) -> None:
    state = fresh()
    for entry in data.draw(st.permutations(history)):
        before = state
        state = states.hear(state, entry)
        assert not (before.final and not state.final)
        assert state.filled >= before.filled
        assert state.exposure >= 0
