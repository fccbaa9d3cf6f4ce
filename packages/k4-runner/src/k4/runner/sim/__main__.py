"""`python -m k4.runner.sim [SPEC]`: simulated venues in a process of their own.

SPEC is a JSON file (`-` or none: the defaults) that `SimSpec` describes; `--json TEXT` gives it in
the command line. `--control` takes commands on stdin, see `process.py`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from k4.core.errors import ConfigError
from k4.runner.sim.process import run_sim
from k4.runner.sim.venues import SimSpec, decode_spec


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m k4.runner.sim", description=__doc__)
    parser.add_argument("spec", nargs="?", default="-")
    parser.add_argument("--json", default="")
    parser.add_argument("--control", action="store_true")
    options = parser.parse_args()
    try:
        return run_sim(_spec(options.spec, options.json), control=options.control)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2


def _spec(file: str, text: str) -> SimSpec:
    if text:
        return decode_spec(text.encode())
    return SimSpec() if file == "-" else decode_spec(Path(file).read_bytes())


if __name__ == "__main__":
    sys.exit(main())
