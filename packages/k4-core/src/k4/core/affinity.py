"""Pinning a worker to the cores that its configuration names."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

from k4.core.log import get_logger


def decide(wanted: Iterable[int], available: Collection[int]) -> tuple[tuple[int, ...], str]:
    """(cores to run on, what is wrong). No cores: run where the system likes.

    One missing core leaves the worker unpinned: on the rest of its cores it would share one with
    what was meant to run on the missing one.
    """
    cores = tuple(sorted(set(wanted)))
    missing = [core for core in cores if core not in available]
    if not missing:
        return cores, ""
    return (), f"cores {missing} are not among {sorted(available)}, which this process may use"


def pin(cores: Iterable[int]) -> tuple[int, ...]:
    """Bind this process to `cores`; returns those it is bound to, () where it runs unpinned.

    What a container's cpuset leaves counts as available. Never raises: what cannot be done is a
    warning in the log.
    """
    cores = tuple(cores)
    if not cores:
        return ()
    if not hasattr(os, "sched_setaffinity"):
        _warn(cores, "this system cannot bind a process to cores")
        return ()
    chosen, wrong = decide(cores, os.sched_getaffinity(0))
    if chosen:
        try:
            os.sched_setaffinity(0, chosen)
        except OSError as error:
            chosen, wrong = (), f"the system refuses: {error.strerror}"
    if wrong:
        _warn(cores, wrong)
    return chosen


def _warn(cores: tuple[int, ...], reason: str) -> None:
    get_logger("k4.affinity").warning("running unpinned", cores=list(cores), reason=reason)
