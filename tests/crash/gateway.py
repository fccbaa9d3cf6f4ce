"""`k4-runner run CONFIG` with the workers of `worker.py`: python -m tests.crash.gateway CONFIG."""

from __future__ import annotations

import sys
from pathlib import Path

from k4.runner import compose, gateway


def main() -> int:
    compose.FACTORY = f"{__package__}.worker:modules"
    return gateway.run(Path(sys.argv[1]), log_level=sys.argv[2])


if __name__ == "__main__":
    sys.exit(main())
