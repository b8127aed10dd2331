"""The structure counter sees what is planted."""

from __future__ import annotations

from pathlib import Path

from benchmarks.count_structure import cycles, file_imports, floors, report, room_imports

ROOT = Path(__file__).parents[2]
PLANTED = {
    "shardkit/__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from shardkit.a.one import x\n",
    "shardkit/base.py": "",
    "shardkit/a/__init__.py": "",
    "shardkit/a/one.py": "from shardkit.b import two\nfrom .. import base\n",
    "shardkit/b/__init__.py": "",
    "shardkit/b/two.py": "def f():\n    from shardkit.base import y\n",
    "trainer/__init__.py": "import shardkit.a.one\n",
}


def plant(folder: Path, **more: str) -> Path:
    for name, text in {**PLANTED, **more}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_rooms_floors_imports_and_lines_are_counted(tmp_path: Path) -> None:
    files, lines = file_imports(plant(tmp_path))
    rooms = room_imports(files)
    assert rooms == {
        "shardkit.__init__": set(),
        "shardkit.base": set(),
        "shardkit.a": {"shardkit.b", "shardkit.base"},
        "shardkit.b": {"shardkit.base"},
        "trainer": {"shardkit.a"},
    }
    assert floors(rooms) == 4
    assert cycles(rooms) == cycles(files) == []
    assert lines["shardkit"] == 3


def test_a_cycle_is_seen(tmp_path: Path) -> None:
    files, _ = file_imports(plant(tmp_path, **{"shardkit/base.py": "import shardkit.a.one\n"}))
    assert cycles(files) == [["shardkit.a.one", "shardkit.b.two", "shardkit.base"]]
    assert floors(files) == 2  # the cycle, and the trainer on it
    assert "cycle: shardkit.a, shardkit.b, shardkit.base" in report(tmp_path)


def test_the_house_has_no_cycle_between_its_rooms() -> None:
    files, _ = file_imports(ROOT)
    assert cycles(room_imports(files)) == []
