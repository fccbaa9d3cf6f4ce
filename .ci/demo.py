"""The demo's last object: something was sent, all of it is in the stores, nothing was lost."""

import json
import sys
from pathlib import Path

summary = json.loads(Path(sys.argv[1]).read_text().splitlines()[-1])
print(summary)
assert summary["type"] == "summary"
assert summary["sent"] > summary["published"] > 1000, "too little came through"
assert summary["duplicates"] > 0, "the redundant lines delivered nothing"
assert summary["lost"] == 0, "lost"
