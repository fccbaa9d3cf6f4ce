"""`TdModule` against a venue on loopback that verifies every request from its raw bytes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from td_setup import ALL, SHORT_WINDOW, TIMING, Log, config, contents, order, running
from td_venue import KEY, SECRET, FakeVenue
from td_venue import Fault as VenueFault

from k4.core.clock import SystemClock
from k4.core.config import RiskLimits, Secret
from k4.core.enums import Kind
from k4.core.loading import load
from k4.core.shm import ShmMdStore, remove_store
from k4.core.trading import (
    AccountType,
    AuthRefused,
    BalanceChanged,
    Connected,
    Direction,
    Disconnected,
    Fault,
    Filled,
    FilterRefused,
    ForeignOrder,
    InvalidOrder,
    JournalError,
    KeyRefreshed,
    LocalLimit,
    NotReady,
    OrderChanged,
    OrderMissing,
    OrderStatus,
    OrderType,
    OrderUpdate,
    PositionChanged,
    PositionSide,
    RiskRefused,
    RuleRefused,
    VenueBusy,
    VenueLimit,
    VenueRefused,
    WouldNotRest,
)
from k4.td import TdModule, Timing

FOREIGN = {
    "symbol": "BTCUSDT",
    "side": "SELL",
    "type": "LIMIT",
    "timeInForce": "GTC",
    "quantity": "1",
    "price": "200",
    "newClientOrderId": "web_1",
}


@pytest.fixture
async def venue() -> AsyncIterator[FakeVenue]:
    fake = FakeVenue()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.mark.parametrize("account", ALL)
async def test_an_order_lives_and_dies_on_every_product(
    account: str, venue: FakeVenue, tmp_path: Path
) -> None:
    async with running(config(venue, tmp_path, (account,))) as td:
        log = Log(td)
        placed = await td.insert_order(order(account))
        assert placed.status is OrderStatus.NEW
        assert placed.order_id == str(venue.orders[0].id)
        [listed] = await td.query_open_orders()
        assert listed.client_order_id == placed.client_order_id
        venue.fill(venue.orders[0], Decimal("0.040"))
        await log.until(lambda event: isinstance(event, Filled))
        asked = await td.query_order(placed.client_order_id)
        assert asked.status is OrderStatus.PARTIALLY_FILLED
        assert (asked.filled_quantity, asked.filled_avg_price) == (Decimal("0.040"), Decimal("90"))
        assert (asked.commission, asked.commission_asset) == (Decimal("0.001"), "BNB")
        gone = await td.cancel_order(placed.client_order_id)
        assert gone.status is OrderStatus.CANCELED
        assert gone.filled_quantity == Decimal("0.040")
        assert await td.query_open_orders() == []
    assert venue.unverified == 0


async def test_signatures_of_every_key_type_are_verified_from_raw_bytes(tmp_path: Path) -> None:
    keys: tuple[ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey, ...] = (
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
    )
    for number, key in enumerate(keys):
        path = tmp_path / f"{number}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        path.chmod(0o600)
        fake = FakeVenue(key.public_key())
        await fake.start()
        is_ed = isinstance(key, ed25519.Ed25519PrivateKey)
        name = "ed25519_key_path" if is_ed else "rsa_key_path"
        folder = tmp_path / str(number)
        folder.mkdir()
        own_key: dict[str, Any] = {name: str(path)}
        settings = config(fake, folder, secret_key=None, **own_key)
        async with running(settings) as td:
            for account in ALL:
                update = await td.insert_order(order(account))
                assert update.status is OrderStatus.NEW
                assert (await td.cancel_order(update.client_order_id)).status.final
        await fake.stop()
        assert fake.unverified == 0
        assert len(fake.raw) > 10
        assert fake.logons == (3 if is_ed else 0)


@pytest.mark.parametrize(
    ("kind", "account", "expected"),
    [
        (OrderType.LIMIT, "spot", {"type": "LIMIT", "timeInForce": "GTC"}),
        (OrderType.IOC, "spot", {"type": "LIMIT", "timeInForce": "IOC"}),
        (OrderType.FOK, "ubase", {"type": "LIMIT", "timeInForce": "FOK"}),
        (OrderType.POST_ONLY, "spot", {"type": "LIMIT_MAKER"}),
        (OrderType.POST_ONLY, "ubase", {"type": "LIMIT", "timeInForce": "GTX"}),
        (OrderType.POST_ONLY, "cbase", {"type": "LIMIT", "timeInForce": "GTX"}),
        (OrderType.MARKET, "spot", {"type": "MARKET"}),
        (OrderType.MARKET, "cbase", {"type": "MARKET"}),
    ],
)
async def test_order_types_reach_the_venue_as_it_wants_them(
    kind: OrderType, account: str, expected: dict[str, str], venue: FakeVenue, tmp_path: Path
) -> None:
    price = Decimal(0) if kind is OrderType.MARKET else Decimal("90.0")
    async with running(config(venue, tmp_path, (account,))) as td:
        update = await td.insert_order(order(account, order_type=kind, price=price))
    sent = venue.orders[0].params
    assert {name: sent[name] for name in expected} == expected
    assert ("timeInForce" in sent) == ("timeInForce" in expected)
    assert ("price" in sent) == (kind is not OrderType.MARKET)
    if kind in (OrderType.IOC, OrderType.FOK):
        assert update.status is OrderStatus.EXPIRED
    elif kind is OrderType.MARKET:
        assert update.status is OrderStatus.FILLED
        assert update.filled_quantity == Decimal("0.100")
    else:
        assert update.status is OrderStatus.NEW


async def test_gtd_hedge_and_reduce_only_follow_the_product(
    venue: FakeVenue, tmp_path: Path
) -> None:
    soon = (venue.now_ms() + 700_000) * 1000
    async with running(config(venue, tmp_path)) as td:
        update = await td.insert_order(
            order("ubase", order_type=OrderType.GTD, good_till_us=soon, reduce_only=True)
        )
        assert update.status is OrderStatus.NEW
        assert venue.orders[0].gtd == soon // 1_000_000 * 1000
        assert venue.orders[0].reduce_only == "true"
        for wrong, text in (
            (order("spot", order_type=OrderType.GTD, good_till_us=soon), "gtd does not exist"),
            (order("cbase", order_type=OrderType.GTD, good_till_us=soon), "gtd does not exist"),
            (order("ubase", order_type=OrderType.GTD, good_till_us=1), "600 s"),
            (order("ubase", good_till_us=soon), "good_till_us goes with gtd"),
            (order("spot", reduce_only=True), "spot has no reduce_only"),
            (order("ubase", position_side=PositionSide.LONG), "one-way mode"),
            (order("spot", client_order_id="a b"), "pattern"),
            (order("spot", client_order_id="x" * 37), "pattern"),
            (order("spot", recv_window=60001.0), "60000"),
            (order("ubase", recv_window=100.5), "whole milliseconds"),
            (order("spot", order_type=OrderType.MARKET), "no price"),
            (order("spot", price=Decimal(0)), "positive price"),
            (order("spot", quantity=Decimal(0)), "not positive"),
            (order("spot", symbol="BTCUSD"), "no symbol"),
        ):
            with pytest.raises(InvalidOrder, match=text):
                await td.insert_order(wrong)
    assert len(venue.orders) == 1


async def test_a_window_with_a_fraction_goes_to_spot_alone(
    venue: FakeVenue, tmp_path: Path
) -> None:
    async with running(config(venue, tmp_path, recv_window=2500.5)) as td:
        for account in ALL:
            await td.insert_order(order(account))
    windows = set(re.findall(r'recvWindow"?[=:]([0-9.]+)', " ".join(venue.raw)))
    assert windows == {"2500.5", "2501"}
    for entry in venue.orders:
        wanted = 2500.5 if entry.product == "spot" else 2501
        assert float(entry.params["recvWindow"]) == wanted


async def test_hedge_mode_is_learnt_from_the_account(venue: FakeVenue, tmp_path: Path) -> None:
    venue.hedge = True
    async with running(config(venue, tmp_path, ("ubase",))) as td:
        with pytest.raises(InvalidOrder, match="hedge mode"):
            await td.insert_order(order("ubase"))
        with pytest.raises(InvalidOrder, match="reduce_only does not exist"):
            await td.insert_order(order("ubase", position_side=PositionSide.LONG, reduce_only=True))
        update = await td.insert_order(order("ubase", position_side=PositionSide.LONG))
        assert update.position_side is PositionSide.LONG
        assert venue.orders[0].position_side == "LONG"


async def test_filters_are_checked_before_anything_leaves(venue: FakeVenue, tmp_path: Path) -> None:
    async with running(config(venue, tmp_path, ("spot",))) as td:
        with pytest.raises(FilterRefused) as price:
            await td.insert_order(order(price=Decimal("90.07")))
        assert (price.value.filter, price.value.nearest) == ("PRICE_FILTER", Decimal("90.1"))
        with pytest.raises(FilterRefused) as lot:
            await td.insert_order(order(quantity=Decimal("0.1004")))
        assert (lot.value.filter, lot.value.nearest) == ("LOT_SIZE", Decimal("0.100"))
        with pytest.raises(FilterRefused) as notional:
            await td.insert_order(order(quantity=Decimal("0.050")))
        assert (notional.value.filter, notional.value.nearest) == ("NOTIONAL", Decimal("0.056"))
        update = await td.insert_order(order(symbol="BTC/USDT"))
        assert update.symbol == "BTCUSDT"
    assert len(venue.orders) == 1


async def test_a_refusal_is_a_typed_error_with_the_rejected_order(
    venue: FakeVenue, tmp_path: Path
) -> None:
    async with running(config(venue, tmp_path, ("spot",))) as td:
        with pytest.raises(WouldNotRest) as caught:
            await td.insert_order(order(order_type=OrderType.POST_ONLY, price=Decimal("150.0")))
        assert caught.value.venue_code == -2010
        assert caught.value.remedy
        rejected = caught.value.order
        assert rejected is not None
        assert rejected.status is OrderStatus.REJECTED
        again = await td.query_order(rejected.client_order_id)
        assert again.status is OrderStatus.REJECTED


UNKNOWN_ENDS = [
    VenueFault("order.place|POST order$", "drop", "before"),
    VenueFault("order.place|POST order$", "drop", "after"),
    VenueFault("order.place|POST order$", "close", "before"),
    VenueFault("order.place|POST order$", "close", "after"),
    VenueFault("order.place", "error", "before", 503, -1007, "Timeout waiting for response."),
    VenueFault("order.place", "error", "after", 503, -1007, "Timeout waiting for response."),
    VenueFault("order.place", "error", "after", 500, -1006, "An unexpected response."),
    VenueFault("order.place", "error", "after", 503, 0, "Unknown error, please check"),
    VenueFault("order.place", "error", "before", 408, 0, "timeout"),
]


@pytest.mark.parametrize("account", ["spot", "ubase"])
@pytest.mark.parametrize("fault", UNKNOWN_ENDS, ids=lambda f: f"{f.what}-{f.when}-{f.code}")
async def test_an_unknown_outcome_is_settled_by_the_venue_alone(
    fault: VenueFault, account: str, venue: FakeVenue, tmp_path: Path
) -> None:
    """P7: unknown until the venue says; never sent twice."""
    async with running(config(venue, tmp_path, (account,), recv_window=SHORT_WINDOW)) as td:
        log = Log(td)
        venue.faults.append(VenueFault(**vars(fault)))
        venue.silent = True  # only the query can tell
        update = await td.insert_order(order(account))
        assert update.status is OrderStatus.UNKNOWN
        key = update.client_order_id
        await log.status(key, OrderStatus.UNKNOWN)
        executed = fault.when == "after"
        await log.status(key, OrderStatus.NEW if executed else OrderStatus.REJECTED)
        assert venue.placed == ([key] if executed else [])
        assert not venue.faults


async def test_an_unknown_order_counts_as_open_at_full_size(
    venue: FakeVenue, tmp_path: Path
) -> None:
    limits = {"spot": RiskLimits(max_open_orders=1, max_position="11")}
    slow = Timing().scaled(2.0)
    async with running(config(venue, tmp_path, ("spot",), risk=limits), slow) as td:
        venue.faults.append(VenueFault("order.place", "error", "before", 503, -1007, "timeout"))
        update = await td.insert_order(order())
        assert update.status is OrderStatus.UNKNOWN
        with pytest.raises(RiskRefused, match=r"risk.max_open_orders.*1 orders are open"):
            await td.insert_order(order())


async def test_a_cancel_in_doubt_is_settled_and_sent_again_only_when_it_failed(
    venue: FakeVenue, tmp_path: Path
) -> None:
    for account in ("spot", "ubase"):
        for when in ("before", "after"):
            folder = tmp_path / f"{account}-{when}"
            folder.mkdir()
            async with running(config(venue, folder, (account,), recv_window=SHORT_WINDOW)) as td:
                log = Log(td)
                key = (await td.insert_order(order(account))).client_order_id
                venue.silent = True
                venue.faults.append(VenueFault("order.cancel", "close", when))
                assert (await td.cancel_order(key)).status is OrderStatus.UNKNOWN
                await log.status(key, OrderStatus.CANCELED)
                venue.silent = False
    assert all(not entry.open for entry in venue.orders)


async def test_amends_in_place_and_by_replacement(venue: FakeVenue, tmp_path: Path) -> None:
    async with running(config(venue, tmp_path)) as td:
        key = (await td.insert_order(order("ubase"))).client_order_id
        changed = await td.amend_order(key, price=Decimal("91.0"), quantity=Decimal("0.200"))
        assert (changed.price, changed.quantity) == (Decimal("91.0"), Decimal("0.200"))
        assert changed.client_order_id == key

        key = (await td.insert_order(order("spot", quantity=Decimal("0.300")))).client_order_id
        smaller = await td.amend_order(key, quantity=Decimal("0.200"))
        assert (smaller.client_order_id, smaller.quantity) == (key, Decimal("0.200"))

        replaced = await td.amend_order(key, price=Decimal("91.0"))
        assert replaced.client_order_id != key
        assert (replaced.price, replaced.quantity) == (Decimal("91.0"), Decimal("0.200"))
        assert (await td.query_order(key)).status is OrderStatus.CANCELED

        maker = await td.insert_order(order("spot", order_type=OrderType.POST_ONLY))
        with pytest.raises(WouldNotRest):  # one half: cancelled, and the new one refused
            await td.amend_order(maker.client_order_id, price=Decimal("150.0"))
        assert (await td.query_order(maker.client_order_id)).status is OrderStatus.CANCELED

        venue.fill(venue.orders[2], Decimal("0.001"))
        with pytest.raises((InvalidOrder, VenueRefused)):  # a fill came first
            await td.amend_order(replaced.client_order_id, price=Decimal("92.0"))
        with pytest.raises(OrderMissing):
            await td.amend_order(key, quantity=Decimal("0.100"))
    assert venue.unverified == 0


async def test_an_amend_in_doubt_counts_with_the_larger_quantity_until_settled(
    venue: FakeVenue, tmp_path: Path
) -> None:
    async with running(config(venue, tmp_path, ("ubase",), recv_window=SHORT_WINDOW)) as td:
        log = Log(td)
        key = (await td.insert_order(order("ubase"))).client_order_id
        venue.silent = True
        venue.faults.append(VenueFault("order.modify", "drop", "after"))
        update = await td.amend_order(key, quantity=Decimal("0.500"))
        assert update.status is OrderStatus.UNKNOWN
        state = td.accounts[AccountType.UBASE].book.orders.get(key)
        assert state is not None
        assert state.exposure == Decimal("0.500")
        await log.until(
            lambda event: (
                isinstance(event, OrderChanged)
                and event.update.quantity == Decimal("0.500")
                and event.update.status is OrderStatus.NEW
            )
        )


async def test_events_out_of_order_and_twice_change_nothing(
    venue: FakeVenue, tmp_path: Path
) -> None:
    async with running(config(venue, tmp_path, ("spot",))) as td:
        log = Log(td)
        venue.held = []
        key = (await td.insert_order(order(quantity=Decimal("0.300")))).client_order_id
        entry = venue.orders[0]
        venue.fill(entry, Decimal("0.100"))
        venue.fill(entry, Decimal("0.200"))
        venue.release(lambda held: [*reversed(held), *held])
        await log.status(key, OrderStatus.FILLED)
        await td.query_order(key)
        fills = [event.fill for event in log.seen if isinstance(event, Filled)]
        assert sorted(fill.quantity for fill in fills) == [Decimal("0.100"), Decimal("0.200")]
        state = td.accounts[AccountType.SPOT].book.orders.get(key)
        assert state is not None
        assert (state.status, state.filled) == (OrderStatus.FILLED, Decimal("0.300"))


async def test_a_lost_connection_is_reconciled_before_orders_are_taken(
    venue: FakeVenue, tmp_path: Path
) -> None:
    async with running(config(venue, tmp_path, ("spot", "ubase"))) as td:
        log = Log(td)
        keys = {
            account: (await td.insert_order(order(account))).client_order_id
            for account in ("spot", "ubase")
        }
        await venue.cut()
        for entry in venue.orders:
            venue.fill(entry, entry.qty)  # while nobody listens
        for kind in (Disconnected, Connected):
            for account in ("spot", "ubase"):
                await log.until_account(kind, account)
        for account, key in keys.items():
            state = td.accounts[AccountType(account)].book.orders.get(key)
            assert state is not None
            assert state.status is OrderStatus.FILLED
            assert len(state.fills) == 1
        names = [type(event).__name__ for event in log.seen]
        assert names.index("Filled") < names.index("Connected")


async def test_while_disconnected_orders_are_refused_and_cancels_go_by_rest(
    venue: FakeVenue, tmp_path: Path
) -> None:
    slow = Timing(retry_base=5.0, answer=2.0, drain=0.2)
    async with running(config(venue, tmp_path, ("spot",)), slow) as td:
        log = Log(td)
        key = (await td.insert_order(order())).client_order_id
        for _ in range(200):
            venue.faults.append(VenueFault("spot userDataStream", "error", "before", 400, -1, "no"))
        await venue.cut()
        await log.until(lambda event: isinstance(event, Disconnected))
        with pytest.raises(NotReady, match="not connected"):
            await td.insert_order(order())
        for price, quantity in ((Decimal("91.0"), None), (None, Decimal("0.090"))):
            with pytest.raises(NotReady, match="not connected"):
                await td.amend_order(key, price=price, quantity=quantity)
        assert (await td.cancel_order(key)).status is OrderStatus.CANCELED
        assert "spot DELETE order" in venue.requests
        venue.faults.clear()


async def test_foreign_orders_are_reported_and_not_adopted(
    venue: FakeVenue, tmp_path: Path
) -> None:
    venue._place("ubase", FOREIGN)
    venue.algo = [{"symbol": "BTCUSDT", "algoId": 5, "side": "SELL", "orderType": "STOP"}]
    module = TdModule(config(venue, tmp_path, ("ubase",)), timing=TIMING)
    log = Log(module)
    await module.login(20.0)
    foreign = [event.update for event in log.seen if isinstance(event, ForeignOrder)]
    assert {update.order_id for update in foreign} == {str(venue.orders[0].id), "algo:5"}
    assert venue.orders[0].open
    listed = await module.query_open_orders()
    assert {update.client_order_id for update in listed} == {"web_1", ""}
    ended = await module.cancel_all_orders()
    assert all(update.status.final for update in ended)
    assert len(ended) == 2
    assert not venue.orders[0].open
    assert venue.algo == []
    await module.stop()


async def test_kill_cancels_all_refuses_and_survives_restarts(
    venue: FakeVenue, tmp_path: Path
) -> None:
    kill_file = tmp_path / "kill"
    settings = config(venue, tmp_path, ("spot", "ubase"), kill_file=str(kill_file))
    async with running(settings) as td:
        await td.insert_order(order("spot"))
        await td.insert_order(order("ubase"))
        ended = await td.kill("test")
        assert [update.status for update in ended] == [OrderStatus.CANCELED] * 2
        with pytest.raises(RiskRefused, match=r"risk.kill_switch: trading is killed: test"):
            await td.insert_order(order())
    assert kill_file.exists()
    kill_file.unlink()
    async with running(settings) as td:
        assert td.killed == "test"
        with pytest.raises(RiskRefused):
            await td.insert_order(order())
        td.release_kill()
        assert (await td.insert_order(order())).status is OrderStatus.NEW
    async with running(settings) as td:
        log = Log(td)
        kill_file.touch()
        await log.until(
            lambda event: (
                isinstance(event, OrderChanged) and event.update.status is OrderStatus.CANCELED
            )
        )
        assert "exists" in td.killed


def made(log: Log) -> int:
    """How often it was told that there is a new listen key."""
    return sum(isinstance(event, KeyRefreshed) and event.created for event in log.seen)


async def test_listen_keys_are_kept_alive_and_made_anew(venue: FakeVenue, tmp_path: Path) -> None:
    settings = config(venue, tmp_path, ("ubase",), listen_key_refresh_secs=0.1)
    async with running(settings) as td:
        log = Log(td)
        await log.until(lambda event: isinstance(event, KeyRefreshed) and not event.created)
        assert venue.keepalives
        log.seen.clear()
        venue.keys.clear()  # it expires at the venue: the next extension says -1125
        await log.until(lambda event: isinstance(event, Disconnected))
        await log.until(lambda event: isinstance(event, Connected))
        assert venue.keys_made == 2
        assert made(log) == 1
        log.seen.clear()
        old = venue.keys.pop("ubase")
        venue.emit("ubase", {"e": "listenKeyExpired", "E": "1", "listenKey": old})
        await log.until(lambda event: isinstance(event, Connected))
        assert venue.keys_made == 3
        assert made(log) == 1
        assert (await td.insert_order(order("ubase"))).status is OrderStatus.NEW
        await log.until(lambda event: isinstance(event, OrderChanged))
    for event in log.seen:
        assert "listen-" not in repr(event)


@pytest.mark.parametrize("left_out", ["cancel", "new_order"])
async def test_a_replacement_of_which_a_half_is_left_out_is_asked_for(
    venue: FakeVenue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: str
) -> None:
    def half(product: str, params: dict[str, Any]) -> dict[str, Any]:
        if left_out == "cancel":
            done = venue._answer(venue._place(product, params), ack=True)
        else:
            done = venue._cancel(product, params)
        halves = {"cancel": ("NOT_ATTEMPTED", None), "newOrder": ("SUCCESS", done)}
        if left_out != "cancel":
            halves = {"cancel": ("SUCCESS", done), "newOrder": ("NOT_ATTEMPTED", None)}
        results = {f"{name}Result": result for name, (result, _) in halves.items()}
        return results | {f"{name}Response": body for name, (_, body) in halves.items()}

    monkeypatch.setattr(venue, "_cancel_replace", half)
    settings = config(venue, tmp_path, ("spot",), recv_window=SHORT_WINDOW)
    async with running(settings) as td:
        log = Log(td)
        key = (await td.insert_order(order())).client_order_id
        successor = await td.amend_order(key, price=Decimal("91.0"))
        assert successor.client_order_id != key
        assert successor.status in (OrderStatus.UNKNOWN, OrderStatus.NEW)  # its event may be first
        kept = left_out == "cancel"
        await log.status(
            successor.client_order_id, OrderStatus.NEW if kept else OrderStatus.REJECTED
        )
        # A cancel in doubt is sent again once it can no longer arrive.
        await log.status(key, OrderStatus.CANCELED)
        assert [o.client for o in venue.orders if o.open] == [
            successor.client_order_id for _ in range(kept)
        ]


async def test_a_stream_that_stays_silent_after_an_own_order_is_replaced(
    venue: FakeVenue, tmp_path: Path
) -> None:
    for account in ("ubase", "spot"):
        folder = tmp_path / account
        folder.mkdir()
        async with running(config(venue, folder, (account,))) as td:
            log = Log(td)
            venue.silent = True
            await td.insert_order(order(account))
            await log.until(
                lambda event: isinstance(event, Fault) and event.code == "stream.silent"
            )
            venue.silent = False
            await log.until(lambda event: isinstance(event, Connected))


async def test_what_a_lost_stream_did_not_tell_of_is_no_silence_of_its_successor(
    venue: FakeVenue, tmp_path: Path
) -> None:
    async with running(config(venue, tmp_path, ("spot",))) as td:
        log = Log(td)
        venue.silent = True  # the event is lost with its stream
        update = await td.insert_order(order(order_type=OrderType.MARKET, price=Decimal(0)))
        assert update.status is OrderStatus.FILLED
        await venue.cut()
        venue.silent = False
        await log.until_account(Disconnected, "spot")
        await log.until_account(Connected, "spot")
        await asyncio.sleep(1.5 * TIMING.silence)
        assert [event for event in log.seen if isinstance(event, Fault | Disconnected)] == [
            Disconnected(account_type=AccountType.SPOT, reason="the venue closed the connection")
        ]


async def test_an_event_before_the_answer_is_no_silence(venue: FakeVenue, tmp_path: Path) -> None:
    async with running(config(venue, tmp_path, ("spot",))) as td:
        log = Log(td)
        venue.faults.append(VenueFault("order.place", "delay", "after", seconds=0.1))
        key = (await td.insert_order(order())).client_order_id
        await asyncio.sleep(1.5 * TIMING.silence)
        assert not [event for event in log.seen if isinstance(event, Fault | Disconnected)]
        assert (await td.cancel_order(key)).status is OrderStatus.CANCELED


async def test_fills_of_foreign_orders_are_told(venue: FakeVenue, tmp_path: Path) -> None:
    async with running(config(venue, tmp_path, ("ubase",))) as td:
        log = Log(td)
        venue._place("ubase", {**FOREIGN, "newClientOrderId": "autoclose-1"})
        venue.fill(venue.orders[0], venue.orders[0].qty)
        event = await log.until(lambda event: isinstance(event, Filled))
        assert isinstance(event, Filled)
        assert event.fill.client_order_id == "autoclose-1"


async def test_the_clock_is_sampled_again_after_1021_and_the_request_sent_once_more(
    venue: FakeVenue, tmp_path: Path
) -> None:
    async with running(config(venue, tmp_path, ("spot", "ubase"))) as td:
        for account in ("spot", "ubase"):
            venue.clock_offset_ms += 6000
            update = await td.insert_order(order(account))
            assert update.status is OrderStatus.NEW
            venue.clock_offset_ms -= 14000
            assert (await td.cancel_order(update.client_order_id)).status.final
    assert len(venue.placed) == 2


async def test_the_venue_s_limits_are_kept_before_the_venue_has_to(
    venue: FakeVenue, tmp_path: Path
) -> None:
    venue.limits = {
        "rateLimitType": "ORDERS",
        "interval": "MINUTE",
        "intervalNum": 1,
        "limit": 3,
    }
    async with running(config(venue, tmp_path, ("spot",))) as td:
        keys = [(await td.insert_order(order())).client_order_id for _ in range(3)]
        with pytest.raises(LocalLimit) as caught:
            await td.insert_order(order())
        assert caught.value.retry_after > 0
        for key in keys:  # cancels still pass
            assert (await td.cancel_order(key)).status is OrderStatus.CANCELED
    assert len(venue.placed) == 3


async def test_429_and_retry_after_are_honoured(venue: FakeVenue, tmp_path: Path) -> None:
    async with running(config(venue, tmp_path, ("ubase",))) as td:
        venue.faults.append(
            VenueFault(
                "GET openOrders",
                "error",
                "before",
                429,
                -1003,
                "Too many requests",
                headers={"Retry-After": "7"},
            )
        )
        with pytest.raises(VenueLimit) as caught:
            await td.query_open_orders()
        assert caught.value.retry_after == 7
        before = len(venue.requests)
        with pytest.raises(LocalLimit):
            await td.insert_order(order("ubase"))
        with pytest.raises(LocalLimit):
            await td.query_open_orders()
        assert len(venue.requests) == before


async def test_a_busy_venue_is_a_failure_and_not_an_unknown_outcome(
    venue: FakeVenue, tmp_path: Path
) -> None:
    async with running(config(venue, tmp_path, ("ubase",))) as td:
        venue.faults.append(
            VenueFault("order.place", "error", "before", 503, -1008, "Request throttled by system")
        )
        with pytest.raises(VenueBusy) as caught:
            await td.insert_order(order("ubase"))
        assert caught.value.order is not None
        assert caught.value.order.status is OrderStatus.REJECTED


async def test_a_wrong_key_is_told_at_login(venue: FakeVenue, tmp_path: Path) -> None:
    for account in ("spot", "ubase"):
        folder = tmp_path / account
        folder.mkdir()
        settings = config(venue, folder, (account,), api_key=Secret("other"))
        with pytest.raises(AuthRefused, match="-2015"):
            async with running(settings):
                pass
        folder = folder / "secret"
        folder.mkdir()
        settings = config(venue, folder, (account,), secret_key=Secret("other"))
        with pytest.raises(AuthRefused, match="-1022"):
            async with running(settings):
                pass


async def test_positions_and_balances(venue: FakeVenue, tmp_path: Path) -> None:
    async with running(config(venue, tmp_path)) as td:
        log = Log(td)
        await td.insert_order(order("ubase", order_type=OrderType.MARKET, price=Decimal(0)))
        event = await log.until(lambda event: isinstance(event, PositionChanged))
        assert isinstance(event, PositionChanged)
        assert event.position.quantity == Decimal("0.100")
        await log.until(lambda event: isinstance(event, BalanceChanged))
        [position] = await td.query_positions()
        assert (position.symbol, position.quantity) == ("BTCUSDT", Decimal("0.100"))
        assert position.account_type is AccountType.UBASE
        venue.positions.clear()
        await asyncio.sleep(0.1)  # the venue's clock has passed its last change
        assert await td.query_positions() == []
        balances = await td.query_balances(AccountType.SPOT)
        assert {entry.asset: entry.total for entry in balances} == venue.balances


async def test_a_restart_replays_reconciles_and_then_trades(
    venue: FakeVenue, tmp_path: Path
) -> None:
    settings = config(venue, tmp_path, ("spot",))
    async with running(settings) as td:
        kept = (await td.insert_order(order())).client_order_id
        filled = (await td.insert_order(order())).client_order_id
        with pytest.raises(JournalError, match="used before"):
            await td.insert_order(order(client_order_id=kept))
    venue.fill(venue.orders[1], Decimal("0.100"))
    async with running(settings) as td:
        account = td.accounts[AccountType.SPOT]
        assert [state.order.client_order_id for state in account.book.orders.open()] == [kept]
        state = account.book.known(filled)
        assert (state.status, len(state.fills)) == (OrderStatus.FILLED, 1)
        with pytest.raises(JournalError, match="used before"):
            await td.insert_order(order(client_order_id=filled))
        assert (await td.cancel_order(kept)).status is OrderStatus.CANCELED


async def test_connections_are_replaced_before_their_end_without_a_gap(
    venue: FakeVenue, tmp_path: Path
) -> None:
    timing = Timing(max_life=0.3, drain=0.2, answer=2.0)
    async with running(config(venue, tmp_path, ("spot", "ubase")), timing) as td:
        log = Log(td)
        for _ in range(12):
            for account in ("spot", "ubase"):
                update = await td.insert_order(order(account))
                assert update.status is OrderStatus.NEW
                await td.cancel_order(update.client_order_id)
            await asyncio.sleep(0.08)
        assert not [event for event in log.seen if isinstance(event, Disconnected | Fault)]
    opened = [name for name in venue.requests if "subscribe" in name]
    assert len(opened) >= 3


async def test_the_kill_switch_catches_an_order_that_was_on_its_way(
    venue: FakeVenue, tmp_path: Path
) -> None:
    async with running(config(venue, tmp_path, ("spot",))) as td:
        log = Log(td)
        venue.faults.append(VenueFault("order.place", "delay", "before", seconds=0.3))
        placing = asyncio.ensure_future(td.insert_order(order(client_order_id="late")))
        await venue.until(lambda: any("order.place" in name for name in venue.requests))
        await td.kill("now")
        await placing
        await log.status("late", OrderStatus.CANCELED)
    assert not venue.orders[0].open


async def test_a_second_module_on_one_journal_is_refused(venue: FakeVenue, tmp_path: Path) -> None:
    settings = config(venue, tmp_path, ("spot",))
    async with running(settings):
        other = TdModule(settings, timing=TIMING)
        with pytest.raises(JournalError, match="in use by another process"):
            await other.prepare()
        await other.stop()


async def test_secrets_are_nowhere_in_journal_events_and_errors(
    venue: FakeVenue, tmp_path: Path
) -> None:
    async with running(config(venue, tmp_path)) as td:
        log = Log(td)
        for account in ALL:
            await td.insert_order(order(account))
        await venue.cut()
        await log.until(lambda event: isinstance(event, Connected))
        text = repr(log.seen) + repr(td.receipt()) + repr(td.config)
    text += contents(tmp_path)
    assert KEY not in text
    assert SECRET not in text
    assert "-listen-" not in text


async def test_the_position_counts_fills_before_the_venue_has_told_of_them(
    venue: FakeVenue, tmp_path: Path
) -> None:
    """A fill leaves the open orders at once; the position event may follow later."""
    limits = {"ubase": RiskLimits(max_position="0.25")}
    async with running(config(venue, tmp_path, ("ubase",), risk=limits)) as td:
        log = Log(td)
        key = (await td.insert_order(order("ubase", quantity=Decimal("0.200")))).client_order_id
        venue.held = []
        venue.fill(venue.orders[0], Decimal("0.200"))
        [fill_event, _position_event] = venue.held
        venue.held = [fill_event]
        venue.release()
        await log.status(key, OrderStatus.FILLED)
        assert not any(isinstance(event, PositionChanged) for event in log.seen)
        with pytest.raises(RiskRefused, match=r"position 0.2 .* limit 0.25"):
            await td.insert_order(order("ubase"))
        venue.emit(*_position_event)
        await log.until(lambda event: isinstance(event, PositionChanged))
        with pytest.raises(RiskRefused, match=r"position 0.2 .* limit 0.25"):
            await td.insert_order(order("ubase"))  # and counts them once


async def test_a_partly_filled_order_at_the_limit_can_change_its_price_and_not_its_size(
    venue: FakeVenue, tmp_path: Path
) -> None:
    limits = {"ubase": RiskLimits(max_position="0.3", max_open_orders=1)}
    async with running(config(venue, tmp_path, ("ubase",), risk=limits)) as td:
        log = Log(td)
        key = (await td.insert_order(order("ubase", quantity=Decimal("0.300")))).client_order_id
        venue.fill(venue.orders[0], Decimal("0.200"))
        await log.until(lambda event: isinstance(event, PositionChanged))
        changed = await td.amend_order(key, price=Decimal("89.0"))
        assert (changed.price, changed.filled_quantity) == (Decimal("89.0"), Decimal("0.200"))
        with pytest.raises(RiskRefused, match=r"could become 0.4, limit 0.3"):
            await td.amend_order(key, quantity=Decimal("0.400"))


async def test_the_collar_works_on_the_shared_memory_of_market_data(
    venue: FakeVenue, tmp_path: Path
) -> None:
    store = ShmMdStore(f"k4test_collar_{os.getpid()}", Kind.BOOKTICKER, ["BTCUSDT"], 8)
    limits = RiskLimits(price_collar_bps=100.0, bbo_store=store.name, max_bbo_age_ms=60_000.0)
    try:
        async with running(config(venue, tmp_path, ("spot",), risk={"spot": limits})) as td:
            with pytest.raises(RiskRefused, match="no fresh quote"):
                await td.insert_order(order())
            store.feed_ok(SystemClock().time_ns())
            store.ring.lanes[0].publish(0, 1, 1, 1, 88.0, 1.0, 89.0, 1.0, 0, 0, 1)
            with pytest.raises(RiskRefused, match=r"buy at 90 is beyond 89.89"):
                await td.insert_order(order())
            assert (await td.insert_order(order(price=Decimal("89.8")))).status is OrderStatus.NEW
    finally:
        store.close()
        remove_store(store.name)


async def test_a_signal_kills_at_once(venue: FakeVenue, tmp_path: Path) -> None:
    async with running(config(venue, tmp_path, ("spot",))) as td:
        log = Log(td)
        key = (await td.insert_order(order())).client_order_id
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, td.kill_soon, "SIGUSR1")
        os.kill(os.getpid(), signal.SIGUSR1)
        await log.status(key, OrderStatus.CANCELED)
        loop.remove_signal_handler(signal.SIGUSR1)
        assert td.killed == "SIGUSR1"


async def test_a_loaded_configuration_is_all_that_a_module_needs(
    venue: FakeVenue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("K4_TEST_KEY", KEY)
    monkeypatch.setenv("K4_TEST_SECRET", SECRET)
    urls = {
        f"{account}_{name}": url
        for name, by_account in venue.urls().items()
        for account, url in by_account.items()
    }
    entry = {
        "exchange": "binance",
        "name": "main",
        "api_key": {"env": "K4_TEST_KEY"},
        "secret_key": {"env": "K4_TEST_SECRET"},
        **{f"{account}_enabled": True for account in ALL},
        **urls,
        "journal": str(tmp_path / "j.db"),
        "socket": str(tmp_path / "td.sock"),
        "risk": {"spot": {"symbols": ["BTCUSDT"], "max_order_qty": "0.5"}},
    }
    file = tmp_path / "k4.json"
    file.write_text(json.dumps({"trading": [entry]}))
    [loaded] = load(str(file)).trading
    async with running(loaded) as td:
        for account in ALL:
            assert (await td.insert_order(order(account))).status is OrderStatus.NEW
        with pytest.raises(RiskRefused, match=r"quantity 0.6 is above 0.5"):
            await td.insert_order(order(quantity=Decimal("0.6")))


async def test_a_caller_that_gives_up_leaves_the_order_in_doubt_and_not_forgotten(
    venue: FakeVenue, tmp_path: Path
) -> None:
    async with running(config(venue, tmp_path, ("spot",))) as td:
        log = Log(td)
        venue.silent = True
        venue.faults.append(VenueFault("order.place", "drop", "after"))
        placing = asyncio.ensure_future(td.insert_order(order(client_order_id="given-up")))
        await venue.until(lambda: bool(venue.placed))
        placing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await placing
        await log.status("given-up", OrderStatus.UNKNOWN)
        await log.status("given-up", OrderStatus.NEW)
    assert venue.placed == ["given-up"]


async def test_a_stop_with_an_answer_outstanding_is_settled_at_the_next_start(
    venue: FakeVenue, tmp_path: Path
) -> None:
    settings = config(venue, tmp_path, ("spot",))
    async with running(settings) as td:
        venue.silent = True
        venue.faults.append(VenueFault("order.place", "drop", "after"))
        placing = asyncio.ensure_future(td.insert_order(order(client_order_id="at-stop")))
        await venue.until(lambda: bool(venue.placed))
    assert (await placing).status is OrderStatus.UNKNOWN
    async with running(settings) as td:
        state = td.accounts[AccountType.SPOT].book.known("at-stop")
        assert (state.status, state.doubts) == (OrderStatus.NEW, ())
    assert venue.placed == ["at-stop"]


async def test_in_hedge_mode_each_position_has_its_own_limit(
    venue: FakeVenue, tmp_path: Path
) -> None:
    venue.hedge = True
    limits = {"ubase": RiskLimits(max_position="0.25")}
    async with running(config(venue, tmp_path, ("ubase",), risk=limits)) as td:

        async def insert(direction: Direction, side: PositionSide) -> OrderUpdate:
            price = Decimal("90.0") if direction is Direction.BUY else Decimal("110.0")
            return await td.insert_order(
                order(
                    "ubase",
                    direction=direction,
                    position_side=side,
                    price=price,
                    quantity=Decimal("0.200"),
                )
            )

        # Opened long and short, and both closed again: none of them adds to another.
        for side in (PositionSide.LONG, PositionSide.SHORT):
            for direction in (Direction.BUY, Direction.SELL):
                assert (await insert(direction, side)).status is OrderStatus.NEW
        for direction, side in (
            (Direction.BUY, PositionSide.LONG),
            (Direction.SELL, PositionSide.SHORT),
        ):
            with pytest.raises(RiskRefused) as caught:
                await insert(direction, side)
            assert caught.value.rule == "max_position"


async def test_a_position_mode_that_was_changed_elsewhere_is_learnt_from_the_refusal(
    venue: FakeVenue, tmp_path: Path
) -> None:
    async with running(config(venue, tmp_path, ("ubase",))) as td:
        venue.hedge = True
        with pytest.raises(RuleRefused) as caught:
            await td.insert_order(order("ubase"))
        assert caught.value.venue_code == -4061
        long = order("ubase", position_side=PositionSide.LONG)
        update = None
        async with asyncio.timeout(5):
            while update is None:
                try:
                    update = await td.insert_order(long)
                except InvalidOrder:  # the answer about the mode is on its way
                    await asyncio.sleep(0.01)
        assert update.status is OrderStatus.NEW


async def test_a_venue_without_an_algo_service_is_told_once_and_trades(
    venue: FakeVenue, tmp_path: Path
) -> None:
    venue.algo = None
    module = TdModule(config(venue, tmp_path, ("ubase",)), timing=TIMING)
    log = Log(module)
    await module.login(20.0)
    await module.insert_order(order("ubase"))
    [gone] = await module.cancel_all_orders()
    assert gone.status is OrderStatus.CANCELED
    faults = [event.code for event in log.seen if isinstance(event, Fault)]
    assert faults == ["not_ready.algo"]
    await module.stop()
