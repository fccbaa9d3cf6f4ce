"""The four wheels: a typed leaf each, and none may own the namespace that all share."""

import sys
import zipfile
from pathlib import Path

WHEELS = {"k4_core": "core", "k4_md": "md", "k4_td": "td", "k4_runner": "runner"}

found = {path.name.partition("-")[0]: path for path in Path(sys.argv[1]).glob("*.whl")}
assert found.keys() == WHEELS.keys(), sorted(found)
for name, leaf in WHEELS.items():
    inside = zipfile.ZipFile(found[name]).namelist()
    assert f"k4/{leaf}/py.typed" in inside, f"{name} is not typed"
    assert "k4/__init__.py" not in inside, f"{name} owns the namespace"
    tops = {path.split("/")[1] for path in inside if path.startswith("k4/")}
    assert tops == {leaf}, f"{name} ships {tops}"
    print(found[name].name, len(inside), "files")
