"""The worker under test: the product's trading module on a fast clock, and a death that waits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
from tests.chaos.clock import FastClock, Pace

from k4.core.loading import parse
from k4.core.module import Module
from k4.runner import compose
from k4.runner.control import Handover
from k4.runner.trading import Trading
from k4.runner.worker import Services, log_to

from .points import Death, Reaper, arm

PLAN = "K4_CRASH_PLAN"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What the processes of one run share. deaths: one a life, in this order; afterwards it lives.
    marks: the folder in which each death leaves a file.
    """

    pace: Pace
    deaths: tuple[Death, ...]
    marks: str

    def mark(self, number: int) -> Path:
        return Path(self.marks) / f"death-{number}"

    @property
    def died(self) -> int:
        """How many deaths there were."""
        return sum(self.mark(number).exists() for number in range(len(self.deaths)))


def modules(handover: Handover, services: Services) -> Sequence[Module]:
    """What `compose.modules` makes, with the clock and the death of the plan."""
    plan = msgspec.json.decode(os.environ[PLAN], type=Plan)
    config = parse(handover.config, handover.config_path)
    log_to(handover, compose.secrets(config))
    life = plan.died
    if life < len(plan.deaths):
        reaper = Reaper(plan.deaths[life], str(plan.mark(life)))
        arm(reaper)
        reaper.start()
    clock = FastClock(plan.pace)
    return [Trading(config.trading[part.index], clock=clock) for part in handover.plan.parts]
