"""Memory for calls is never lost, never given twice, and put aside for each that waits for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from taskworker.transport.wire.body_memory import BodyMemory, Charge

SIZE = 1000


class One:
    def __init__(self, host: str, count: int) -> None:
        self.host = host
        self.count = count
        self.called = 0
        self.charge: Charge | None = None

    def go_on(self) -> None:
        self.called += 1


@given(
    takers=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, SIZE // 2)), min_size=1, max_size=20),
    steps=st.lists(st.tuples(st.integers(0, 19), st.booleans()), max_size=60),
    divided=st.booleans(),
)
def test_each_that_waits_is_called_once_there_is_memory(
    takers: list[tuple[str, int]], steps: list[tuple[int, bool]], *, divided: bool
) -> None:
    memory = BodyMemory(SIZE, divided=divided)
    ones = [One(*each) for each in takers]

    def step(one: One, *, leaves: bool) -> None:
        if one.charge is not None:
            one.charge.give_back()
            one.charge = None
        elif leaves:
            memory.leave(one)
            one.called = 0
        else:
            called, one.called = one.called, 0
            one.charge = memory.take(one, one.count)
            assert one.charge is not None or not called, "it was called in vain"
        assert sum(each.count for each in ones if each.charge is not None) <= SIZE

    for at, leaves in steps:
        step(ones[at % len(ones)], leaves=leaves)
    for one in ones:
        if one.charge is None:
            step(one, leaves=False)
    while held := [one for one in ones if one.charge is not None]:
        step(held[0], leaves=False)
        for one in ones:
            if one.called:
                step(one, leaves=False)
    assert not memory.is_wanted, "some wait for ever"
    assert memory.take(One("d", SIZE // 2), SIZE // 2), "some was lost"


def test_a_host_that_has_much_waits_for_one_that_has_nothing() -> None:
    memory = BodyMemory(SIZE, divided=True)
    much = [One("much", 50) for _ in range(30)]
    taken = [charge for one in much if (charge := memory.take(one, one.count)) is not None]
    assert sum(each.bytes_taken for each in taken) == SIZE // 2
    assert memory.take(One("other", 250), 250)
    late = One("late", 150)
    assert memory.take(late, late.count) is None
    while not late.called:
        taken.pop().give_back()
        assert not any(one.called for one in much)
    assert memory.take(late, late.count)
