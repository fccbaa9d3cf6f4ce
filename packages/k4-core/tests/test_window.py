"""Windows of seen ids, against sets."""

from hypothesis import given, settings
from hypothesis import strategies as st

from k4.core.window import WINDOW_IDS, Gaps, RecentIds, Verdict

SPAN = 30_000_000_000


def runs_of(missing: set[int]) -> int:
    return sum(id - 1 not in missing for id in missing)


@given(st.lists(st.integers(1000, 1060), max_size=120))
def test_gaps_take_every_id_once_and_count_exactly_what_is_missing(ids: list[int]) -> None:
    gaps = Gaps(SPAN)
    taken: set[int] = set()
    for now, id in enumerate(ids):
        verdict = gaps.offer(id, now)
        assert (verdict in (Verdict.NEW, Verdict.LATE)) == (id not in taken)
        taken.add(id)
        missing = set(range(min(taken), max(taken))) - taken
        assert gaps.lost == len(missing)
        assert gaps.runs == runs_of(missing)
        assert gaps.top == max(taken)
        assert gaps.first == min(taken)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 4)), max_size=60))
def test_a_message_may_cover_several_ids(parts: list[tuple[int, int]]) -> None:
    gaps = Gaps(SPAN)
    taken: set[int] = set()
    for now, (first, count) in enumerate(parts):
        ids = set(range(first, first + count))
        if ids & taken:
            continue  # messages of one venue do not overlap
        assert gaps.offer(first + count - 1, now, first) in (Verdict.NEW, Verdict.LATE)
        taken |= ids
        assert gaps.lost == len(set(range(min(taken), max(taken))) - taken)


def test_a_healed_gap_is_given_back() -> None:
    gaps = Gaps(SPAN)
    for id in (1, 2, 6):
        gaps.offer(id, 0)
    assert (gaps.lost, gaps.runs, gaps.healed) == (3, 1, 0)
    gaps.offer(4, 0)
    assert (gaps.lost, gaps.runs, gaps.healed) == (2, 2, 1)
    gaps.offer(3, 0)
    gaps.offer(5, 0)
    assert (gaps.lost, gaps.runs, gaps.healed) == (0, 0, 3)


def test_what_left_the_window_is_too_late_and_stays_lost() -> None:
    gaps = Gaps(SPAN)
    gaps.offer(10, 0)
    gaps.offer(12, 0)
    top = 12 + WINDOW_IDS + 1
    for id in range(13, top):
        gaps.offer(id, SPAN // 2)
    assert gaps.offer(11, SPAN // 2) is Verdict.LATE  # old by ids, young by time
    gaps.offer(top + 1, SPAN // 2)
    for id in range(top + 2, top + WINDOW_IDS + 4):
        gaps.offer(id, SPAN)
    assert gaps.offer(top, 2 * SPAN) is Verdict.TOO_LATE
    assert (gaps.lost, gaps.runs) == (1, 1)


def test_ids_before_the_first_are_taken_but_are_no_gap() -> None:
    gaps = Gaps(SPAN)
    gaps.offer(1000, 0)
    assert gaps.offer(998, 0) is Verdict.LATE
    assert (gaps.lost, gaps.runs) == (1, 1)  # 999 lies between two that were delivered
    assert gaps.offer(1000 - WINDOW_IDS - 1, 0) is Verdict.TOO_LATE


def test_a_reset_keeps_the_losses() -> None:
    gaps = Gaps(SPAN)
    for id in (5, 7, 9):
        gaps.offer(id, 0)
    gaps.reset()
    assert gaps.offer(1, 1) is Verdict.NEW
    assert (gaps.lost, gaps.runs) == (2, 2)


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), max_size=100), st.booleans())
def test_recent_ids_are_taken_once(ids: list[int], ordered: bool) -> None:
    window = RecentIds(SPAN, ordered=ordered)
    taken: set[int] = set()
    for now, id in enumerate(ids):
        verdict = window.offer(id, id, now)
        assert (verdict is Verdict.NEW) == (id not in taken)
        taken.add(id)


def test_recent_ids_keep_the_window_by_number_and_by_time() -> None:
    window = RecentIds(SPAN, ordered=True)
    window.offer(0, 0, 0)
    for id in range(1, WINDOW_IDS + 10):
        window.offer(id, id, SPAN // 2)
    assert window.offer(0, 0, SPAN // 2) is Verdict.SEEN
    window.offer(WINDOW_IDS + 10, WINDOW_IDS + 10, SPAN + 1)
    assert window.offer(0, 0, SPAN + 1) is Verdict.TOO_LATE


def test_hashes_are_too_late_by_their_time() -> None:
    window = RecentIds(SPAN, ordered=False)
    for i in range(WINDOW_IDS + 2):
        window.offer(f"uuid-{i}", i, 0)
    window.offer("newest", WINDOW_IDS + 2, SPAN + 1)
    assert "uuid-0" not in window
    assert window.offer("uuid-0", 0, SPAN + 1) is Verdict.TOO_LATE
    assert window.offer("other", WINDOW_IDS + 3, SPAN + 1) is Verdict.NEW


def test_what_is_missing_since_a_moment_is_what_opened_then_and_did_not_come() -> None:
    gaps = Gaps(SPAN)
    for id, at in ((10, 1), (13, 2), (20, 5), (22, 6)):
        gaps.offer(id, at)
    assert gaps.lost == 9
    assert [gaps.missing_since(at) for at in (0, 2, 3, 5, 6, 7)] == [9, 9, 7, 7, 1, 0]
    gaps.offer(15, 8)
    assert [gaps.missing_since(at) for at in (0, 5, 6)] == [8, 6, 1]
    gaps.reset()
    assert gaps.missing_since(0) == 0


def test_a_late_id_below_the_window_of_an_attached_store_invents_no_loss() -> None:
    """Of what lies between the ids of the store it is not known whether anybody lost it."""
    gaps = Gaps(SPAN)
    gaps.go_on([1, 2, 3, 10])
    gaps.offer(11, 0)
    gaps.offer(6, 0)
    assert (gaps.lost, gaps.first) == (0, 1)
