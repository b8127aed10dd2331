"""The trainer is a user of shardkit like any other: it knows its public names and no more."""

from __future__ import annotations

import ast
from pathlib import Path

import shardkit

TRAINER = Path(__file__).resolve().parents[2] / "trainer"


def test_the_trainer_imports_only_public_names_of_shardkit() -> None:
    seen = set()
    for path in sorted(TRAINER.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not any(name.name.split(".")[0] == "shardkit" for name in node.names), path
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "shardkit":
                assert node.module == "shardkit", f"{path.name} imports {node.module}"
                seen |= {name.name for name in node.names}
    assert {"ShardLoader", "pull"} <= seen <= set(shardkit.__all__)
