"""A path for datagrams that loses, repeats and reorders them by a seeded die, and keeps account."""

from __future__ import annotations

import random


class LossyPath:
    """What a bad network does to datagrams. Pure: datagrams go in, those that arrive come out.

    loss, duplicate, reorder: probability of each for a datagram; they exclude each other. reach: a
    reordered datagram arrives after 1 to `reach` later ones. dropped, repeated, delayed: the
    datagrams that it happened to, in the order in which they were sent.
    """

    def __init__(
        self,
        seed: int,
        *,
        loss: float = 0.01,
        duplicate: float = 0.01,
        reorder: float = 0.01,
        reach: int = 5,
    ) -> None:
        self.dropped: list[bytes] = []
        self.repeated: list[bytes] = []
        self.delayed: list[bytes] = []
        self._random = random.Random(seed)
        self._loss = loss
        self._duplicate = loss + duplicate
        self._reorder = loss + duplicate + reorder
        self._reach = reach
        self._held: list[tuple[int, bytes]] = []
        self._passed = 0

    def carry(self, datagram: bytes) -> list[bytes]:
        """Send one; returns what arrives now, in order."""
        self._passed += 1
        arrived = []
        fate = self._random.random()
        if fate < self._loss:
            self.dropped.append(datagram)
        elif fate < self._duplicate:
            self.repeated.append(datagram)
            arrived += [datagram, datagram]
        elif fate < self._reorder:
            self.delayed.append(datagram)
            self._held.append((self._passed + self._random.randint(1, self._reach), datagram))
        else:
            arrived.append(datagram)
        return arrived + self._release(self._passed)

    def flush(self) -> list[bytes]:
        """What was still held back."""
        return self._release(self._passed + self._reach)

    def _release(self, passed: int) -> list[bytes]:
        due = [datagram for after, datagram in self._held if after <= passed]
        self._held = [held for held in self._held if held[0] > passed]
        return due
