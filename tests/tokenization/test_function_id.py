"""The id of a caller's function: another one for another behaviour, the same one in every process."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardkit import tokenize
from shardkit.errors import OutputError, UsageError
from shardkit.tokenization.function_id import function_id

ROOT = Path(__file__).parents[2]

# Two programs that differ in what one name holds, for each way in which a function may use something.
CASES = {
    "a global": ("SUFFIX = {}\ndef f(t): return t + SUFFIX", "'a'", "'b'"),
    "a global that a nested function reads": ("S = {}\ndef f(t): return (lambda: t + S)()", "'a'", "'b'"),
    "a regex in a closure": (
        "import re\ndef make(p):\n def f(t): return p.sub('', t)\n return f\nf = make(re.compile({}))",
        "'a'",
        "'a', re.I",
    ),
    "a dict in a closure": ("def make(d):\n return lambda t: d.get(t, t)\nf = make({})", "{'a': 1}", "{'a': 2}"),
    "a callable object's state": (
        "class F:\n def __init__(self, s): self.s = s\n def __call__(self, t): return t + self.s\nf = F({})",
        "'a'",
        "'b'",
    ),
    "a bound method's state": (
        "class F:\n def __init__(self, s): self.s = s\n def run(self, t): return t + self.s\nf = F({}).run",
        "'a'",
        "'b'",
    ),
    "a slot": ("class F:\n __slots__ = ('s',)\n def run(self, t): return t\nf = F(); f.s = {}; f = f.run", "1", "2"),
    "a keyword default": ("def f(t, *, s={}): return t + s", "'a'", "'b'"),
    "a default": ("def f(t, s={}): return t + s", "'a'", "'b'"),
    "a helper": ("def help(t): return t.{}()\nf = lambda t: help(t)", "upper", "lower"),
    "a helper's helper": ("def g(t): return t.{}()\nh = lambda t: g(t)\nf = lambda t: h(t)", "upper", "lower"),
    "a method of a class": ("class A:\n @staticmethod\n def g(t): return {}\nf = lambda t: A.g(t)", "t", "t * 2"),
    "a base class": (
        "class A:\n def __call__(self, t): return {}\nclass B(A): pass\nf = B()",
        "t",
        "t * 2",
    ),
    "a function behind a decorator": (
        "import functools\ndef twice(g):\n @functools.wraps(g)\n def w(t): return g(g(t))\n return w\n"
        "@twice\ndef f(t): return {}",
        "t",
        "t * 2",
    ),
    "a function behind a cache": ("import functools\n@functools.cache\ndef f(t): return {}", "t", "t * 2"),
    "an argument of a partial": ("import functools\nf = functools.partial(str.replace, {})", "'a'", "'b'"),
    "a builtin method's object": ("import re\nf = re.compile({}).sub", "'a'", "'b'"),
    "an unbound builtin": ("f = str.{}", "upper", "lower"),
    "a set": ("S = {}\nf = lambda t: t in S", "{'a', 'b', 'c'}", "{'a', 'b', 'd'}"),
    "an array": ("import numpy as np\nA = np.array({})\nf = lambda t: A", "[1, 2]", "[1, 3]"),
    "a function's attribute": ("def f(t): return f.s\nf.s = {}", "'a'", "'b'"),
    "a number of another type": ("N = {}\nf = lambda t: N", "1", "True"),
    "the order of a dict": ("D = {}\nf = lambda t: D", "{'a': 1, 'b': 2}", "{'b': 2, 'a': 1}"),
    "a named version": ("f = lambda t: t\nf.shardkit_version = {}", "'1'", "'2'"),
}


def made(template: str, value: str) -> Any:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(template.replace("{}", value, 1), names)
    return names["f"]


@pytest.mark.parametrize("what", CASES)
def test_another_value_of_what_a_function_uses_is_another_id(what: str) -> None:
    template, one, other = CASES[what]
    assert function_id(made(template, one)) == function_id(made(template, one))
    assert function_id(made(template, one)) != function_id(made(template, other))


def test_ids_are_equal_across_processes_and_hash_seeds() -> None:
    script = (
        "import sys; sys.path.insert(0, 'tests/tokenization'); import test_function_id as t\n"
        "for template, one, _ in t.CASES.values(): print(t.function_id(t.made(template, one)))"
    )

    def ids(seed: str) -> list[str]:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        return subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, env=environment, text=True).split("\n")

    here = [function_id(made(template, one)) for template, one, _ in CASES.values()]
    assert ids("1")[:-1] == ids("2")[:-1] == here


def test_what_a_function_does_not_use_is_not_in_its_id() -> None:
    plain = "WORDS = [{}]\n\ndef f(t):\n    return t.upper()"
    moved = "WORDS = [{}, 2]\nimport json\n\n# a comment\ndef g(t): return WORDS\ndef f(t):\n    return t.upper()"
    assert function_id(made(plain, "1")) == function_id(made(moved, "1"))


def test_functions_that_call_each_other_or_themselves_have_an_id() -> None:
    template = "def f(t, n=3): return g(t, n - 1) if n else t\ndef g(t, n): return f(t + {}, n)"
    assert function_id(made(template, "'a'")) == function_id(made(template, "'a'"))
    assert function_id(made(template, "'a'")) != function_id(made(template, "'b'"))


@pytest.mark.parametrize(
    "user",
    [
        "import helpers\nf = lambda t: helpers.clean(t)",
        "from helpers import clean\nf = lambda t: clean(t)",
        "import helpers as h\nclean = 7\nf = lambda t: h.clean(t)",
        "def f(t):\n from helpers import clean\n return clean(t)",
        "def f(t):\n import helpers\n return helpers.clean(t)",
        "import helpers\nf = helpers.clean",
    ],
)
def test_a_helper_in_a_module_of_the_callers_own_counts_with_what_it_uses(
    user: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def id_with(helper: str) -> str | None:
        (tmp_path / "helpers.py").write_text(helper)
        sys.modules.pop("helpers", None)
        try:
            return function_id(made(user, ""))
        finally:
            sys.modules.pop("helpers", None)

    helper = "import re\nPATTERN = re.compile('a')\nUNUSED = 1\ndef clean(t): return PATTERN.sub('', t)"
    first = id_with(helper)
    assert id_with(helper.replace("UNUSED = 1", "UNUSED = 2")) == first
    assert id_with(helper.replace("'a'", "'abc'")) != first


def test_what_is_installed_stands_for_itself_by_name_and_is_not_walked() -> None:
    import numpy
    import tokenizers

    functions: list[Callable[..., Any]] = [numpy.char.upper, tokenizers.Tokenizer.from_str, functools.reduce, len]
    ids = [function_id(function) for function in functions]
    assert len(set(ids)) == 4
    assert ids == [function_id(function) for function in functions]


def test_a_function_that_cannot_be_described_is_refused_unless_its_caller_names_a_version() -> None:
    lock = threading.Lock()

    def careful(text: str) -> str:
        with lock:
            return text

    with pytest.raises(UsageError, match=r"careful uses a lock, .*`careful\.shardkit_version = \"1\"`"):
        function_id(careful)
    careful.shardkit_version = "7"  # type: ignore[attr-defined]
    assert str(function_id(careful)).endswith("careful version 7")
    assert "version 7" not in str(function_id(lambda text: careful(text)))  # a part of it: all else counts too


def test_a_structure_without_end_is_refused_in_one_line() -> None:
    nested: list[Any] = []
    for _ in range(5000):
        nested = [nested]
    with pytest.raises(UsageError, match="nested too deep"):
        function_id(lambda text: nested)


def test_a_run_does_not_go_on_with_a_transform_whose_helper_was_edited(tmp_path: Path) -> None:
    def stop(progress: Any) -> None:
        if progress.shards >= 3:
            raise KeyboardInterrupt

    template = "def help(text): return text.{}()\ntransform = f = lambda text: help(text)"
    texts = [f"Text Number {number}" for number in range(2000)]
    options: dict[str, Any] = {"shard_tokens": 500, "workers": 1, "tokenizer": "bytes", "chunk_bytes": 500}
    with pytest.raises(KeyboardInterrupt):
        tokenize(texts, tmp_path / "out", transform=made(template, "lower"), progress=stop, **options)
    with pytest.raises(OutputError, match="holds another run with \\d+ finished shards \\(transform: .* there, .* now"):
        tokenize(texts, tmp_path / "out", transform=made(template, "upper"), **options)
    manifest = tokenize(texts, tmp_path / "out", transform=made(template, "lower"), **options)
    assert manifest.documents == 2000


def test_a_function_that_is_refused_leaves_the_earlier_dataset_as_it_is(tmp_path: Path) -> None:
    options: dict[str, Any] = {"shard_tokens": 4, "workers": 1, "tokenizer": "bytes", "val_shards": 0}
    manifest = tokenize(["one"], tmp_path / "out", **options)
    lock = threading.Lock()
    with pytest.raises(UsageError, match="uses a lock"):
        tokenize(["two"], tmp_path / "out", transform=lambda text: text if lock else "", overwrite=True, **options)
    assert tokenize(["one"], tmp_path / "out", **options) == manifest
