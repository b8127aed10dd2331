"""Count the structure of a checkout from its imports: rooms, floors, imports, cycles, lines.

A room is a folder of `shardkit/`, or a file that lies directly in it; `trainer/` is one room. The floors are the nodes
on the longest chain of imports. Imports inside `if TYPE_CHECKING:` do not run and are not counted.

    python -m benchmarks.count_structure [PATH]
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path

PACKAGES = ("shardkit", "trainer")
Graph = dict[str, set[str]]


def file_imports(root: Path) -> tuple[Graph, dict[str, int]]:
    """Which module imports which (both by dotted name), and the lines of each module."""
    paths = {_module_name(path.relative_to(root)): path for name in PACKAGES for path in root.glob(f"{name}/**/*.py")}
    graph: Graph = {}
    for module, path in paths.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        names = set(_imported_names(ast.parse(path.read_bytes()), package))
        graph[module] = {_longest_known(name, set(paths)) for name in names} - {module, ""}
    return graph, {module: len(path.read_bytes().splitlines()) for module, path in paths.items()}


def room_of(module: str) -> str:
    """`shardkit.remote.streaming.cache` is in the room `shardkit.remote`, `shardkit.files` is its own."""
    package, *inside = module.split(".")
    if package == "trainer":
        return package
    return f"{package}.{inside[0]}" if inside else f"{package}.__init__"


def room_imports(files: Graph) -> Graph:
    """Which room imports which."""
    rooms: Graph = {room_of(module): set() for module in files}
    for module, targets in files.items():
        room = room_of(module)
        rooms[room] |= {room_of(target) for target in targets} - {room}
    return rooms


def cycles(graph: Graph) -> list[list[str]]:
    """The groups of nodes that reach each other, largest first."""
    reach = {node: _reachable(graph, node) for node in graph}
    groups = {
        frozenset(other for other in reach[node] if node in reach[other]) for node in graph if node in reach[node]
    }
    return sorted((sorted(group) for group in groups), key=len, reverse=True)


def floors(graph: Graph) -> int:
    """The nodes on the longest chain of imports, the nodes of a cycle counted as one."""
    home = {node: group[0] for group in cycles(graph) for node in group}
    merged: Graph = defaultdict(set)
    for node, targets in graph.items():
        name = home.get(node, node)
        merged[name] |= {home.get(target, target) for target in targets} - {name}
    heights: dict[str, int] = {}

    def height(node: str) -> int:
        if node not in heights:
            heights[node] = 1 + max(map(height, sorted(merged[node])), default=0)
        return heights[node]

    return max(map(height, list(merged)), default=0)


def report(root: Path) -> str:
    """The tables, as text."""
    files, lines = file_imports(root)
    rooms = room_imports(files)
    text = [f"{'':10}{'nodes':>8}{'floors':>8}{'imports':>9}{'cycles':>8}"]
    for name, graph in (("rooms", rooms), ("files", files)):
        count = sum(len(targets) for targets in graph.values())
        text.append(f"{name:10}{len(graph):8}{floors(graph):8}{count:9}{len(cycles(graph)):8}")
    for graph in (rooms, files):
        text += [f"cycle: {', '.join(group)}" for group in cycles(graph)]
    text += ["", f"{'room':32}{'files':>6}{'lines':>7}  imports"]
    for room in sorted(rooms):
        members = [module for module in files if room_of(module) == room]
        targets = " ".join(sorted(target.removeprefix("shardkit.") for target in rooms[room]))
        text.append(f"{room:32}{len(members):6}{sum(lines[m] for m in members):7}  {targets}")
    for package in PACKAGES:
        total = sum(count for module, count in lines.items() if module.partition(".")[0] == package)
        text.append(f"{package + ' in all':38}{total:7}")
    return "\n".join(text)


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported_names(node: ast.AST, package: str) -> list[str]:
    """The names that the code under `node` imports when it runs: modules, and modules with a name from them."""
    names: list[str] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if isinstance(child, ast.Import):
            names += [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - child.level + 1] if child.level else []
            base = ".".join([*above, child.module] if child.module else above)
            names += [f"{base}.{alias.name}" for alias in child.names]
        else:
            names += _imported_names(child, package)
    return names


def _longest_known(name: str, modules: set[str]) -> str:
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def _reachable(graph: Graph, start: str) -> set[str]:
    reached: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting += graph[node]
    return reached


if __name__ == "__main__":
    print(report(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent)))
