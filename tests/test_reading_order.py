"""The reading order in minillava/__init__.py is whole, and true: nothing imports from what comes later."""
import ast
import re
from pathlib import Path

import minillava

PACKAGE = Path(minillava.__file__).parent
FILES = re.findall(r"^    (\w+)\.py ", minillava.__doc__, re.M)
ROOMS = re.findall(r"^    (\w+)/ ", minillava.__doc__, re.M)
REACH_INTO_ROOMS = ("checkpoint", "bench")


def imports(path):
    """The parts of minillava that a file imports: {"llava", "weights", ...}"""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minillava."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "minillava":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("minillava.")}
    return found


def test_every_file_and_every_room_has_its_place():
    assert sorted(FILES) == sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
    assert sorted(ROOMS) == sorted(path.name for path in PACKAGE.iterdir() if list(path.glob("*.py")))


def test_a_file_imports_only_from_those_above_it():
    for place, name in enumerate(FILES):
        allowed = set(FILES[:place]) | (set(ROOMS) if name in REACH_INTO_ROOMS else set())
        assert imports(PACKAGE / f"{name}.py") <= allowed, name


def test_a_room_uses_only_what_lies_flat_and_the_rooms_above_it():
    for place, room in enumerate(ROOMS):
        for path in (PACKAGE / room).glob("*.py"):
            assert imports(path) <= {*FILES, *ROOMS[: place + 1]}, path


def test_nothing_but_toy_and_explain_knows_the_toy_world():
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] not in ("toy", "explain"):
            assert "toy" not in imports(path), path
