"""What the tests of the whole engine share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from engine_case import Case


@pytest.fixture
def make() -> Iterator[Callable[..., Case]]:
    cases: list[Case] = []

    def made(**options: object) -> Case:
        cases.append(Case(**options))  # type: ignore[arg-type]
        return cases[-1]

    yield made
    for case in cases:
        case.stop()
