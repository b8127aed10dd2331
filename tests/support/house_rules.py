"""What a file of shardkit or the trainer may not hold, found in its syntax tree: a comment or a string is no import."""

from __future__ import annotations

import ast

# Which files (or folders) may import what. Nobody else may, not even inside a function.
PIPES = "shardkit/tokenization/pipes.py"
HOMES = {
    "torch": ("shardkit/loader/", "trainer/"),
    "click": ("shardkit/cli/", "trainer/__main__.py"),
    "matplotlib": ("trainer/plot.py",),
    # pickle runs what it reads. The trainer names its error; our own processes talk by it through a pipe of theirs; a
    # user's own functions travel to workers by dill.
    "pickle": ("trainer/checkpoint.py", PIPES),
    "dill": ("shardkit/tokenization/user_functions.py", "shardkit/tokenization/worker.py"),
    "multiprocess": (
        *(f"shardkit/tokenization/{name}.py" for name in ("spawning", "worker_messages")),
        *("shardkit/tokenization/worker_process.py", PIPES),
    ),
    **dict.fromkeys(("cloudpickle", "joblib", "marshal", "multiprocessing", "shelve", "yaml"), ()),
}
INSIDE_FUNCTIONS = {"matplotlib", "ray", "datasets"}  # where the file's own import would make every start slow
UNPICKLERS = {"pickle.load", "pickle.loads", "pickle.Unpickler", "pandas.read_pickle"}
IMPORTERS = {"import_module", "importlib.import_module", "__import__"}
WAITS = {"result", "join", "wait", "acquire", "select"}
LONGEST_FILE, LONGEST_CLASS, LONGEST_FUNCTION = 300, 250, 60


def violations(path: str, text: str) -> list[str]:
    """The rules that the file breaks, each as "line N: what"."""
    tree = ast.parse(text)
    found = [f"line {line}: imports {name}" for line, name, _ in _imports(tree) if not _may_import(path, name)]
    found += [
        f"line {line}: imports {name} outside a function"
        for line, name, inside in _imports(tree)
        if name in INSIDE_FUNCTIONS and not inside
    ]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name, options = ast.unparse(call.func), {option.arg: ast.unparse(option.value) for option in call.keywords}
        if name in UNPICKLERS and path != PIPES:
            found.append(f"line {call.lineno}: calls {name}")
        if options.get("allow_pickle", "False") != "False":
            found.append(f"line {call.lineno}: {name} with allow_pickle={options['allow_pickle']}")
        if name == "torch.load" and options.get("weights_only") != "True":
            found.append(f"line {call.lineno}: torch.load without weights_only=True")
    return found


def endless_waits(text: str) -> list[str]:
    """The calls that wait for others without an end: a Ctrl-C may not end them (`shardkit/waits.py` says why)."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return [
        ast.unparse(call)
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr in WAITS and not (call.args or call.keywords)
    ]


def too_long(text: str) -> list[str]:
    """The names of the classes and functions that are too long, and "file" if the file is."""
    found = ["file"] if len(text.splitlines()) > LONGEST_FILE else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            most = LONGEST_CLASS if isinstance(node, ast.ClassDef) else LONGEST_FUNCTION
            if (node.end_lineno or 0) - node.lineno + 1 > most:
                found.append(node.name)
    return found


def _imports(node: ast.AST, inside: bool = False) -> list[tuple[int, str, bool]]:
    """The packages imported under `node`: line, name, and whether a function's call is what imports it."""
    found: list[tuple[int, str, bool]] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            found += [(child.lineno, alias.name.partition(".")[0], inside) for alias in child.names]
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            found.append((child.lineno, child.module.partition(".")[0], inside))
        elif isinstance(child, ast.Call) and ast.unparse(child.func) in (
            "import_module",
            "importlib.import_module",
            "__import__",
        ):
            if child.args and isinstance(child.args[0], ast.Constant):
                found.append((child.lineno, str(child.args[0].value).partition(".")[0], inside))
        else:
            found += _imports(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))
    return found


def _may_import(path: str, name: str) -> bool:
    homes = HOMES.get(name)
    return homes is None or any(path == home or (home.endswith("/") and path.startswith(home)) for home in homes)
