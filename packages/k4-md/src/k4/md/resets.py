"""The cold side of arbitration: ids that are not above the last one (promises P3 and P5).

Everything here is called for the rare message: a copy that was decoded, a stale quote, a late
trade, and a sequence that began anew. `newer` judges quotes and books, `fresh` judges trades; both
answer whether the caller is to publish the message now.

A reset without evidence in one message (Binance) is proved by time: a line whose own ids dropped
and rise again, though not to where they were, while for two seconds no line brings anything above
the last id. What such a line brings meanwhile is kept in its `Fallen` and published when the new
generation opens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from k4.core.enums import Kind
from k4.core.window import WINDOW_IDS, Verdict
from k4.md.fallen import PATIENCE, TRADES, Fallen, Held
from k4.md.feed import Reset
from k4.md.rollcall import roll_called

if TYPE_CHECKING:
    from k4.md.arbiter import Arbiter
    from k4.md.port import Port
    from k4.md.slots import Slot


def newer(port: Port, s: Slot, id: int, us: int, values: tuple[Any, ...]) -> bool:
    """Judge a quote or a book that is not plainly the newest: its id is not above the last one, or
    the slot has seen a reset."""
    slot = s.slot
    port.calls += 1
    if s.gate and not admits(port, s, id, us):
        _refuse(port, s, id)
        return False
    if id > s.last:
        port.fallen.pop(slot, None)
        _let_copies_be_known(port, s)
        return True
    own = port.own[slot]
    port.own[slot] = id
    if id == s.last:
        port.fallen.pop(slot, None)
        _copy(port, s, id)
        return False
    if s.channel.reset is Reset.SILENCE:
        fallen = _fall(port, s, own, id, us)
        if fallen is None:
            _copy(port, s, id)
        else:
            port.stale += 1
            fallen.hold(Held(id, id, id, us, values, port.now, False), only_newest=True)
        return False
    if us and _proves_reset(port.arbiter, s, id, us):
        _open(port.arbiter, s, us, id)
        _let_copies_be_known(port, s)
        return True
    # Of this generation, where it is not newer, nor before the first: a reset's id would look like
    # a very late one.
    if s.gaps is not None and us <= s.newest_us() and id > s.gaps.first:
        s.gaps.offer(id, port.now)
    _copy(port, s, id)
    return False


def fresh(
    port: Port, s: Slot, id: int, first_id: int, us: int, values: tuple[Any, ...], key: Any
) -> bool:
    """Judge a trade that is not plainly the next one."""
    slot = s.slot
    port.calls += 1
    history = port.history.get(slot)
    if history is not None and id in history:
        port.repeats += 1
        return False
    if s.gate and not admits(port, s, id, us):
        _refuse(port, s, id)
        return False
    fallen = None
    if s.channel.reset is Reset.SILENCE:
        fallen = _fall(port, s, port.own[slot], id, us)
        if fallen is not None or id > port.own[slot]:
            port.own[slot] = id
    elif us and _is_ordered(s):
        if id < s.last and us > s.time_us:
            held = Held(id, first_id, key, us, values, port.now, False)
            if not _proves_reset(port.arbiter, s, id, us) or not _open_with_doubted(port, s, held):
                return _doubt(port, s, held)
        elif id > s.last and s.doubted:
            _settle(s, us)
    rank = us if s.window is not None and not s.window.ordered else id
    before = s.gaps.figures() if fallen is not None and s.gaps is not None else (0, 0, 0)
    verdict = s.verdict(key, id, first_id, rank, port.now)
    publish = verdict is Verdict.NEW or verdict is Verdict.LATE
    if fallen is not None:
        if s.gaps is not None:
            fallen.took(before, s.gaps.figures())
        held = Held(id, first_id, key, us, values, port.now, publish)
        fallen.hold(held, only_newest=False)
    if not publish:
        if verdict is Verdict.TOO_LATE and fallen is None:
            s.too_late += 1
        _copy(port, s, id)
        if fallen is not None:  # that its own ids dropped has to be noted of every line
            port.entry = None
        port.own[slot] = us if s.unordered else id
    elif verdict is Verdict.NEW and fallen is None:
        _let_copies_be_known(port, s)
    return publish


def _let_copies_be_known(port: Port, s: Slot) -> None:
    """Leave it to the publication to be counted as the call that it is, so that the line knows the
    frame's copies by their bytes. After a reset in a stream without times it must not: there a
    copy has to pass `admits`, which notes to which generation its line belongs.
    """
    if s.floor_us or not s.gate:
        port.calls -= 1


def skipped(port: Port, s: Slot, id: int) -> None:
    """Take note of an id that yields no record. It has no time, and is evidence like any other."""
    gaps = s.gaps
    if s.gate and not admits(port, s, id, 0):
        _refuse(port, s, id)
        return
    if gaps is None:
        return
    silence = s.channel.reset is Reset.SILENCE
    # Where trades tell the time, an id without one among the ledger's begins no fall.
    known = gaps.first <= id <= gaps.top and s.slot not in port.fallen
    fallen = _fall(port, s, port.own[s.slot], id, 0) if silence and not known else None
    if fallen is not None or id > port.own[s.slot]:
        port.own[s.slot] = id
    before = gaps.figures() if fallen is not None else (0, 0, 0)
    if gaps.offer(id, port.now) is Verdict.NEW:
        s.last = id
        s.advance_ns = port.now
    if fallen is not None:
        fallen.took(before, gaps.figures())
        fallen.hold(Held(id, id, None, 0, (), port.now, True), only_newest=False)


def admits(port: Port, s: Slot, id: int, us: int) -> bool:
    """Whether a message belongs to the slot's generation (asked only after a reset)."""
    slot = s.slot
    if us and s.floor_us:
        # What proved the reset need not be its first trade: others are new ones if they are newer
        # than the former generation, and their ids near those of the proof.
        belongs = us > s.floor_us or (
            us > s.former_us
            and s.kind in TRADES
            and id != s.opened_with
            and abs(id - s.opened_with) < min(WINDOW_IDS, s.previous - id)
        )
    elif port.generation[slot] == s.generation:
        return True
    else:
        own = port.own[slot]
        belongs = id < own if own >= 0 else _is_nearer(port, s, id)
        recent = s.recent or {}
        belongs = belongs or id == s.last or id in recent
        # Copies that are known by their bytes do not pass here. Where messages have times, they may
        # be all that a line has brought of this generation when it brings one without.
        belongs = belongs or (s.floor_us > 0 and own in recent)
    if belongs and port.generation[slot] != s.generation:
        port.generation[slot] = s.generation
        # That its ids dropped is no proof of yet another reset, unless this one is newer than all,
        # or, without a time, further below than lines lag.
        newest = s.newest_us() // 1000  # 0 where the newest record came in an encoding without time
        again = us // 1000 > newest if us and newest else s.last - id > WINDOW_IDS
        port.own[slot] = s.last if again else -1
    return belongs


def lift_gate(arbiter: Arbiter, s: Slot) -> None:
    """Where messages have no time, the gate asks only whether a line has joined the generation:
    once all have, it asks in vain."""
    if s.floor_us:
        return
    ports = (port for port in (*arbiter.ports, *arbiter.leaving) if s.slot in port.carries)
    if all(port.generation[s.slot] == s.generation for port in ports):
        s.gate = False


def _is_nearer(port: Port, s: Slot, id: int) -> bool:
    """Whether an id of a line that brought nothing before the reset is of this generation rather
    than the former, by distance. It is asked only where no other line can tell."""
    slot = s.slot
    for other in port.arbiter.ports:
        if other is port or not other.serving_ns or slot not in other.carries:
            continue
        if other.generation[slot] == s.generation:
            return False
    return id <= s.last or id - s.last < s.previous - id


def consider(arbiter: Arbiter, s: Slot, now_ns: int) -> None:
    """Open a new generation if silence has proved one.

    Called by the clock and never by a message: the first one after a pause of this process or of
    the network is that of any line, also of one that is behind the others. For the same reason
    silence proves something only where the lines have been heard all the time, and as long since
    the first small id, or after a roll call: what the lines behind have to bring of the new
    generation's beginning must be here when it opens. Peers that never answered anything are not
    waited for without end, though no time counts in which the process did not run.
    """
    if s.channel.reset is not Reset.SILENCE:
        return
    slot = s.slot
    waited = now_ns - s.advance_ns >= arbiter.reset_ns
    fallen, low = _fallen(arbiter, s) if waited else ([], 0)
    held = [(port, h) for port in fallen for h in port.fallen[slot].held]
    if not held:
        s.proved_ns = 0
        return
    s.proved_ns = s.proved_ns or now_ns
    fell_ns = min(port.fallen[slot].fell_ns for port in fallen)
    whole = now_ns - max(arbiter.whole_ns, fell_ns) >= arbiter.reset_ns
    if not whole and not roll_called(arbiter, s.proved_ns, now_ns):
        began_ns = min(port.fallen[slot].began_ns for port in fallen)
        patient = arbiter.awake_ns - began_ns < PATIENCE * arbiter.reset_ns
        if patient or any(port.answers for port in arbiter.ports):
            return
    s.proved_ns = 0
    came_to = {port: port.fallen[slot].last for port in fallen}
    first, *later = _generations(s, held, low)
    _open(arbiter, s, next((h.us for _, h in first if h.us), 0), first[0][1].id)
    arrived = {port for port, _ in (*first, *(pair for run in later for pair in run))}
    for port in arrived:
        port.generation[slot] = s.generation
        port.own[slot] = min(port.own[slot], came_to[port])
    for port, h in first:
        _publish_held(port, s, h)
    for port in arrived:
        _follow_on(port, s, [h for run in later for by, h in run if by is port])


def _generations(s: Slot, held: list[tuple[Port, Held]], low: int) -> list[list[tuple[Port, Held]]]:
    """What was held, by generation, oldest first, and in each by id.

    Trades tell one generation from another by a distance that no window bridges, and their order by
    the venue's times; ids alone, without a record, have none and are dropped where they seem to be
    above what came before. Of quotes and books only the newest was held: those that are near the
    proof's are the new generation, and what is far below fell again.
    """
    held.sort(key=lambda pair: (pair[1].id, pair[1].local_ns))
    if s.kind not in TRADES:
        again = [pair for pair in held if low - pair[1].id > WINDOW_IDS]
        return [held[len(again) :], again]
    runs: list[list[tuple[Port, Held]]] = []
    for pair in held:
        if not runs or pair[1].id - runs[-1][-1][1].id > WINDOW_IDS:
            runs.append([])
        runs[-1].append(pair)
    runs.sort(key=lambda run: min(h.us or h.local_ns // 1000 for _, h in run))
    found = runs[:1]
    for run in runs[1:]:
        if run[0][1].id < found[-1][-1][1].id:
            found.append(run)
        elif any(h.us for _, h in run):  # nothing fell: in the same generation ids are missing
            found[-1].extend(run)
    return found


def _follow_on(port: Port, s: Slot, held: list[Held]) -> None:
    """What a line brought after the generation that has opened is of a reset that is yet to be
    proved, by a silence that begins with this generation's last id."""
    own, trades = s.last, s.kind in TRADES
    for h in sorted(held, key=lambda h: h.local_ns):
        fallen = port.fallen.get(s.slot)
        if fallen is None:
            fallen = port.fallen[s.slot] = Fallen(own, h.id, h.local_ns, port.arbiter.awake_ns)
        else:
            fallen.follow(own, h.id, h.local_ns, keep=trades)
        fallen.hold(h, only_newest=not trades)
        own = h.id


def _fallen(arbiter: Arbiter, s: Slot) -> tuple[list[Port], int]:
    """The lines that are in the new generation, if one of them proves it: by two ids that rose
    while no line brought one above the last. And the id that it has come to.

    A line that is still in the old one and out of order there has fallen as well, though not as
    deep: its ids are nearer to the old ones. One that has only reached a generation between the two
    has trades of that to tell, but no quote that counts.
    """
    slot = s.slot
    fallen, others = [], []
    for port in (*arbiter.ports, *arbiter.leaving):
        if slot not in port.fallen:
            continue
        if port.own[slot] < port.fallen[slot].height:
            fallen.append(port)
        elif not _caught_up(port, s):
            others.append(port)
    falls = [port.fallen[slot] for port in fallen]
    proofs = [fall for fall in falls if fall.proved(s, arbiter.reset_ns)]
    if not proofs:
        return [], 0
    proof = max(proofs, key=lambda fall: fall.drop)
    low, found = proof.last, []
    for port in (*fallen, *others):
        fall = port.fallen[slot]
        is_near = 2 * fall.last <= low + s.last
        if s.kind in TRADES:
            belongs = is_near or s.last - fall.last > WINDOW_IDS
        else:
            belongs = is_near and (fall.last - low <= WINDOW_IDS or fall.is_later(proof))
        if belongs:
            found.append(port)
    return found, low


def _publish_held(port: Port, s: Slot, h: Held) -> None:
    if s.kind in TRADES:
        verdict = s.verdict(h.key, h.id, h.first_id, h.id, h.local_ns)
        if verdict in (Verdict.NEW, Verdict.LATE):
            if h.id > s.last:
                s.last = h.id
                s.time_us = h.us or s.time_us
                s.advance_ns = h.local_ns
            if not h.published:
                port.publish(s, h.id, h.values, h.local_ns)
    elif h.id > s.last:
        s.last = h.id
        s.advance_ns = h.local_ns
        if s.kind is Kind.DEPTH5:
            port.publish_book(s, h.id, h.values, h.local_ns)
        else:
            port.publish(s, h.id, h.values, h.local_ns)
    else:
        port.repeats += 1


def _refuse(port: Port, s: Slot, id: int) -> None:
    """Count a message that is not of the slot's generation. Where the line has joined that before,
    it was only late: the line's own ids go on from where they are."""
    port.stale += 1
    if port.generation[s.slot] != s.generation:
        port.own[s.slot] = id


def _fall(port: Port, s: Slot, own: int, id: int, us: int) -> Fallen | None:
    """Follow a line on which ids drop: begins, continues or finds nothing to follow."""
    slot = s.slot
    fallen = port.fallen.get(slot)
    if id > s.last or _is_old(s, id, us):
        if id > s.last and fallen is not None:
            _caught_up(port, s)
        return None
    if fallen is not None:
        trades = s.kind in TRADES
        if own < fallen.height and id < fallen.height:
            fallen.follow(own, id, port.now, keep=trades)
            return fallen
        if not _caught_up(port, s):
            if id >= fallen.height:
                return None
            if abs(id - fallen.last) <= WINDOW_IDS:
                fallen.resume(own, id, port.now, keep=trades)
                return fallen
            del port.fallen[slot]
    proves = own >= 0
    if not proves:
        own = s.last - WINDOW_IDS
    if id >= own:
        return None
    fallen = port.fallen[slot] = Fallen(own, id, port.now, port.arbiter.awake_ns, proves)
    return fallen


def tidy(port: Port) -> None:
    """Forget falls that cannot be proved any more, see `_caught_up`."""
    for number, fallen in list(port.fallen.items()):
        slot = port.arbiter.slots[number]
        if slot is not None and port.own[number] >= fallen.height:
            _caught_up(port, slot)


def _caught_up(port: Port, s: Slot) -> bool:
    """A line's ids are where they were: it was no reset, unless it had fallen far. Then this may be
    a late one of the old generation, and trades that it brought of the new one are kept for as long
    as they may still be proved. Whether they are not."""
    fallen = port.fallen[s.slot]
    trades, age_ns = s.kind in TRADES, port.arbiter.ticked_ns - fallen.rose_ns[1]
    is_far = fallen.drop > WINDOW_IDS and fallen.proves
    if trades and is_far and age_ns < PATIENCE * port.arbiter.reset_ns:
        return False
    del port.fallen[s.slot]
    if not fallen.proves and trades:  # so it lagged, and these are too old to be placed
        s.too_late += sum(not h.published for h in fallen.held)
    return True


def _is_old(s: Slot, id: int, us: int) -> bool:
    """Whether a message is a late one of this generation: not newer than the newest, and of ids
    that the generation has. Compared by ms: JSON has no more, and SBE gives the same trade in µs.
    """
    newest = s.newest_us() // 1000
    if not us or us // 1000 > newest:
        return False
    if s.kind not in TRADES and us // 1000 < newest:
        return True  # of quotes and books nothing has to be kept until it is known what it is
    if s.gaps is not None:
        return s.gaps.first <= id <= s.gaps.top
    return s.recent is not None and id in s.recent


def _doubt(port: Port, s: Slot, held: Held) -> bool:
    """A trade with a smaller id and a newer time, though not newer enough to prove a reset yet.

    It is published now if its id is not among those of the window, and kept until it is known to
    which generation it belongs: the ledger of gaps must not take it for an old one.
    """
    assert s.window is not None
    held.published = s.window.offer(held.key, held.id, port.now) is Verdict.NEW
    if held.key not in s.doubted and len(s.doubted) < WINDOW_IDS:
        s.doubted[held.key] = port, held
    if not held.published:
        _copy(port, s, held.id)
        port.own[s.slot] = held.id
    return held.published


def _settle(s: Slot, us: int) -> None:
    """The old generation has gone on to `us`: what was doubted and is not newer belongs to it."""
    for key, (_, held) in list(s.doubted.items()):
        if held.us <= us:
            del s.doubted[key]
            if s.gaps is not None and held.published:
                s.gaps.offer(held.id, held.local_ns, held.first_id)


def _open_with_doubted(port: Port, s: Slot, proof: Held) -> bool:
    """Open a generation that begins with what was doubted until `proof` came.

    What was doubted and is far above the proof is of a reset before that. It opens first, and False
    is the answer where the proof is not newer enough than that to prove another one.
    """
    while True:
        doubted = sorted(
            (pair for pair in s.doubted.values() if pair[1].us > s.time_us),
            key=lambda pair: pair[1].id,
        )
        former = [pair for pair in doubted if pair[1].id - proof.id > WINDOW_IDS]
        if former:
            oldest = min(former, key=lambda pair: pair[1].us)[1].id
            former = [pair for pair in former if abs(pair[1].id - oldest) <= WINDOW_IDS]
        begins = former or doubted
        first = [held for _, held in begins] if former else [proof, *(held for _, held in begins)]
        _open(port.arbiter, s, min(h.us for h in first), min(h.id for h in first))
        for bringer, held in begins:
            _publish_held(bringer, s, held)
        if not former:
            return True
        assert s.window is not None
        for pair in doubted:
            if pair not in former:  # of the reset that `proof` is of, or of one between
                s.window.offer(pair[1].key, pair[1].id, port.now)
                s.doubted[pair[1].key] = pair
        if not _proves_reset(port.arbiter, s, proof.id, proof.us):
            return False


def _is_ordered(s: Slot) -> bool:
    return s.window is not None and s.window.ordered


def _proves_reset(arbiter: Arbiter, s: Slot, id: int, us: int) -> bool:
    newest = s.newest_us()
    if s.channel.reset is Reset.ONE and id == 1:
        return us > newest
    return us > newest + arbiter.reset_ns // 1000


def _open(arbiter: Arbiter, s: Slot, us: int, id: int) -> None:
    arbiter.forget_all_frames()
    for port in (*arbiter.ports, *arbiter.leaving):
        fallen = port.fallen.pop(s.slot, None)
        if fallen is not None and s.gaps is not None:
            s.gaps.give_back(fallen.taken)
            fallen.taken = (0, 0, 0)  # an heir may share it
        port.history.pop(s.slot, None)
    s.open_generation(us, id)
    arbiter.on_reset(s)


def _copy(port: Port, s: Slot, id: int) -> None:
    """Count a message that brings nothing new: a copy of a published update, or older than that."""
    entry = s.recent.get(id) if s.recent is not None else None
    if entry is not None:
        port.copied(entry)
        if s.floor_us or not s.gate:  # see `_let_copies_be_known`
            port.entry = entry
    elif id == s.last or s.kind in TRADES:
        port.repeats += 1
    else:
        port.stale += 1
