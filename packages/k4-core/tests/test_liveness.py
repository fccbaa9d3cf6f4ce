"""Silence, judged with literals: what proves it and what does not."""

from k4.core.liveness import Duty, Finding, Silence, Watch

SECOND = 1_000_000_000
STALL = 10 * SECOND
PLAIN = Duty(owes_snapshot=False, repeats_ns=0)


class Case:
    """A watch on a clock in seconds; `look` gives the findings of that moment."""

    def __init__(self, *duties: Duty) -> None:
        self.watch = Watch(duties, STALL)
        self.watch.begin(SECOND)
        self.seen = [0] * len(duties)
        self.advanced = [0] * len(duties)
        self.progress = [0] * len(duties)
        self.look(1.0)

    def look(self, seconds: float) -> list[Finding]:
        now = int(seconds * SECOND)
        return self.watch.look(now, self.seen, self.advanced, self.progress)

    def bring(self, seconds: float, channel: int = 0) -> None:
        """This line brings something new."""
        self.seen[channel] = self.advanced[channel] = int(seconds * SECOND)
        self.progress[channel] += 1

    def other(self, seconds: float, channel: int = 0) -> None:
        """Another line brings something new."""
        self.advanced[channel] = int(seconds * SECOND)
        self.progress[channel] += 1


def every(start: float, end: float, step: float = 0.5) -> list[float]:
    return [start + i * step for i in range(int((end - start) / step))]


def test_a_sibling_proves_a_line_silent_within_the_timeout() -> None:
    case = Case(PLAIN)
    case.bring(2.0)
    found: list[tuple[float, Finding]] = []
    for t in every(2.5, 12.0):
        case.other(t)
        found += [(t, finding) for finding in case.look(t)]
    assert found[0][1] == Finding(0, Silence.WITNESSED)
    assert found[0][0] - 2.0 < 10.0


def test_a_quiet_symbol_that_speaks_again_is_no_stall() -> None:
    case = Case(PLAIN)
    case.bring(2.0)
    case.look(2.0)
    case.other(9.0)  # the sibling's copy is a little earlier
    assert case.look(9.01) == []
    case.bring(9.1)
    assert [case.look(t) for t in every(9.5, 18.0)] == [[]] * 17


def test_a_line_that_only_lags_is_not_silent() -> None:
    case = Case(PLAIN)
    for t in every(1.0, 60.0):
        case.other(t)
        case.seen[0] = int(t * SECOND)  # it brings old news, but it brings
        assert case.look(t) == []


def test_trades_prove_that_the_quote_moved() -> None:
    case = Case(Duty(owes_snapshot=False, repeats_ns=0, witnesses=(1,)), PLAIN)
    case.bring(2.0, 0)
    case.look(2.0)
    found = []
    for t in every(2.5, 12.0):
        case.bring(t, 1)
        found += case.look(t)
    assert found[0] == Finding(0, Silence.WITNESSED)


def test_quotes_do_not_prove_a_trade() -> None:
    case = Case(PLAIN, PLAIN)
    for t in every(2.0, 10.0):
        case.bring(t, 0)
        assert case.look(t) == []


def test_a_snapshot_is_owed_after_the_ack() -> None:
    case = Case(Duty(owes_snapshot=True, repeats_ns=0))
    assert case.look(5.0) == []
    assert case.look(6.5) == [Finding(0, Silence.OWED)]


def test_a_repeat_is_owed_when_it_is_due() -> None:
    case = Case(Duty(owes_snapshot=True, repeats_ns=60 * SECOND))
    case.bring(2.0)
    assert [case.look(t) for t in every(3.0, 60.0, 5.0)] == [[]] * 11
    assert case.look(68.0) == [Finding(0, Silence.OWED)]


def test_what_nothing_proves_is_asked_once_then_renewed_ever_more_rarely() -> None:
    case = Case(PLAIN)
    found = [(t, f.silence) for t in every(1.5, 2000.0) for f in case.look(t)]
    assert found[0] == (11.0, Silence.RESUBSCRIBE)
    times = [t for t, silence in found[1:] if silence is Silence.UNPROVEN]
    assert len(times) == len(found) - 1
    assert times[:4] == [21.0, 61.0, 141.0, 301.0]
    assert times[-1] - times[-2] == 600.0


def test_many_quiet_channels_renew_a_line_no_more_often_than_one() -> None:
    """Each speaks once a minute, at another second: one or the other is always silent for long."""
    case = Case(*[PLAIN] * 60)
    found: list[tuple[float, Silence]] = []
    for second in range(2, 3600):
        case.bring(float(second), channel=second % 60)
        found += [(second, finding.silence) for finding in case.look(second + 0.5)]
    renewed = [t for t, silence in found if silence is Silence.UNPROVEN]
    assert renewed == [21, 61]  # longer than a minute none is silent
    assert sum(silence is Silence.RESUBSCRIBE for _, silence in found) > 3_000


def test_where_nothing_may_be_asked_now_it_is_asked_later() -> None:
    case = Case(PLAIN)
    now = 30 * SECOND
    look = case.watch.look
    assert look(now, case.seen, case.advanced, case.progress, may_ask=False) == []
    assert look(now, case.seen, case.advanced, case.progress) == [Finding(0, Silence.RESUBSCRIBE)]


def test_a_book_that_was_asked_for_again_is_owed_again() -> None:
    case = Case(Duty(owes_snapshot=True, repeats_ns=0))
    case.bring(2.0)
    case.look(2.0)
    case.watch.owe(0, 3 * SECOND)
    assert [case.look(t) for t in every(3.0, 8.0)] == [[]] * 10
    assert case.look(8.0) == [Finding(0, Silence.OWED)]
    case.bring(8.1)
    assert case.look(8.2) == []
    assert case.look(17.0) == []
