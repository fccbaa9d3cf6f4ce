"""Pinning: exactly the cores that were named, or none and a warning."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from k4.core.affinity import decide, pin


@pytest.mark.parametrize(
    ("wanted", "available", "cores"),
    [
        ([], {0, 1}, ()),
        ([1], {0, 1}, (1,)),
        ([1, 0, 1], {0, 1, 2}, (0, 1)),
        ([2, 3], {2, 3}, (2, 3)),  # all that a container's cpuset leaves
        ([0], {2, 3}, ()),
        ([0, 7], {0, 1}, ()),
    ],
)
def test_decision(wanted: list[int], available: set[int], cores: tuple[int, ...]) -> None:
    chosen, wrong = decide(wanted, available)
    assert chosen == cores
    assert bool(wrong) == bool(set(wanted) - available)


def test_what_is_missing_is_named() -> None:
    assert decide([0, 9, 7], {0, 1})[1] == (
        "cores [7, 9] are not among [0, 1], which this process may use"
    )


PROGRAM = """
import json, os, sys
from k4.core.affinity import pin
print(json.dumps([pin(json.loads(sys.argv[1])), sorted(os.sched_getaffinity(0))]))
"""


def run(cores: list[int]) -> tuple[list[int], list[int], str]:
    """(what `pin` says, where the process runs afterwards, its log) in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(cores)],
        capture_output=True,
        text=True,
        check=True,
    )
    said, runs = json.loads(done.stdout)
    return said, runs, done.stderr


def test_process_runs_where_it_says() -> None:
    core = max(os.sched_getaffinity(0))
    assert run([core]) == ([core], [core], "")


def test_missing_core_is_a_warning_and_leaves_the_process_unpinned() -> None:
    here = sorted(os.sched_getaffinity(0))
    said, runs, log = run([here[0], 8191])
    assert (said, runs) == ([], here)
    line = json.loads(log)
    assert (line["level"], line["event"]) == ("warning", "running unpinned")
    assert "8191" in line["reason"]


def test_no_cores_mean_no_pinning() -> None:
    before = os.sched_getaffinity(0)
    assert pin(()) == ()
    assert os.sched_getaffinity(0) == before
