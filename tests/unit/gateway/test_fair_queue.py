"""Who goes next."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tgwui_k8s.gateway.fair_queue import FairQueue

Entry = tuple[int, str, int]

entries = st.lists(
    st.tuples(st.integers(-2, 2), st.sampled_from("abc")), min_size=1, max_size=30
).map(lambda pairs: [(priority, key, place) for place, (priority, key) in enumerate(pairs)])


def drain(queue: FairQueue[Entry], in_flight: Counter[str]) -> list[Entry]:
    """Take all, one after the other; whoever goes stays in flight."""
    taken = []
    while len(queue):
        entry = next(queue.heads(in_flight))
        queue.remove(entry, priority=entry[0], key=entry[1])
        in_flight[entry[1]] += 1
        taken.append(entry)
    return taken


def filled(found: list[Entry]) -> FairQueue[Entry]:
    """A queue with these in order."""
    queue: FairQueue[Entry] = FairQueue()
    for entry in found:
        queue.push(entry, priority=entry[0], key=entry[1])
    return queue


@settings(deadline=None)
@given(entries)
def test_everybody_goes_once_by_priority_and_in_order(found: list[Entry]) -> None:
    """Nothing is lost; lower numbers first; one key's requests keep their order."""
    queue = filled(found)
    assert len(queue) == len(found)
    taken = drain(queue, Counter())
    assert sorted(taken) == sorted(found)
    assert [entry[0] for entry in taken] == sorted(entry[0] for entry in found)
    for key in "abc":
        for priority in range(-2, 3):
            places = [e[2] for e in taken if e[:2] == (priority, key)]
            assert places == sorted(places)


def test_a_key_with_many_waiting_does_not_keep_others_waiting() -> None:
    """A hundred requests of one client, one of another that came last: it goes second."""
    queue = filled([(0, "many", place) for place in range(100)] + [(0, "one", 100)])
    taken = drain(queue, Counter())
    assert taken.index((0, "one", 100)) == 1


def test_what_is_in_flight_counts() -> None:
    """Whoever has less under way goes first."""
    queue = filled([(0, "busy", 0), (0, "idle", 1)])
    assert next(queue.heads({"busy": 3})) == (0, "idle", 1)


def test_removing_what_is_gone_does_nothing() -> None:
    """A request whose time ran out while it was given a place."""
    queue = filled([(0, "a", 0)])
    queue.remove((0, "b", 1), priority=0, key="b")
    queue.remove((0, "a", 0), priority=0, key="a")
    queue.remove((0, "a", 0), priority=0, key="a")
    assert len(queue) == 0
    assert list(queue.heads({})) == []


def test_a_kind_that_cannot_go_holds_up_only_its_own() -> None:
    """The first of every kind is offered, in the order in which they came."""
    queue: FairQueue[Entry] = FairQueue()
    found = [(0, "a", 0), (0, "a", 1), (0, "a", 2), (-1, "a", 3)]
    for entry, kind in zip(found, ("away", "away", "there", "there"), strict=True):
        queue.push(entry, priority=entry[0], key="a", kind=kind)
    assert list(queue.heads({})) == [found[3], found[0], found[2]]
    queue.remove(found[0], priority=0, key="a", kind="away")
    assert list(queue.heads({})) == [found[3], found[1], found[2]]
    queue.push((0, "a", 4), priority=0, key="a", kind="new")
    queue.remove(found[1], priority=0, key="a", kind="away")
    queue.push((0, "a", 5), priority=0, key="a", kind="away")
    assert [entry[2] for entry in queue.heads({})] == [3, 2, 4, 5]
