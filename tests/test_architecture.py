"""The floors hold, imports stay light, files keep to the rules of the house, and the public names are pinned."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from house_rules import HOMES, endless_waits, too_long, violations

import shardkit
from shardkit.cli import main

ROOT = Path(__file__).parent.parent
FILES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for folder in ("shardkit", "trainer")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
# The public ones with many options.
MAY_BE_LONG = {
    ("shardkit/tokenization/pipeline.py", "tokenize"),
    ("shardkit/loader/loader.py", "__init__"),
    ("shardkit/look/peek.py", "peek"),
    ("shardkit/look/plan.py", "plan"),
}
LOADED = """
import sys
before = set(sys.modules)
try:
    {code}
except SystemExit:
    pass
print(*{{name.partition(".")[0] for name in set(sys.modules) - before}})
"""
SLOW_OF_PYTHON = {"asyncio", "multiprocessing", "ssl", "http", "email", "unittest", "sqlite3", "json"}


def test_a_module_imports_only_from_lower_floors() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("code", "packages"),
    [
        ("import shardkit", {"shardkit"}),
        ("from shardkit.cli import main; main(['--help'])", {"shardkit", "click"}),
        ("from shardkit.cli import main; main(['tokenize', '--help'])", {"shardkit", "click"}),
        ("from trainer.__main__ import main; main(['train', '--help'])", {"shardkit", "click", "trainer"}),
    ],
)
def test_an_import_or_a_help_loads_nothing_heavy(code: str, packages: set[str]) -> None:
    words = [sys.executable, "-c", LOADED.format(code=code)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert loaded - set(sys.stdlib_module_names) == packages
    assert not loaded & (SLOW_OF_PYTHON - ({"json"} if "trainer" in packages else set()))


def test_a_heavy_or_dangerous_import_stays_where_it_belongs_and_nothing_unpickles() -> None:
    assert {path: found for path, text in FILES.items() if (found := violations(path, text))} == {}


def test_every_file_that_may_import_something_exists() -> None:
    for home in {home for homes in HOMES.values() for home in homes}:
        assert (ROOT / home).exists(), home


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        ("shardkit/batches/rows.py", "import torch.nn", "imports torch"),
        ("shardkit/look/peek.py", "def f():\n    from torch import Tensor", "imports torch"),
        ("shardkit/loader.py", "import torch", "imports torch"),
        ("shardkit/remote/streaming/loader_x.py", "import torch", "imports torch"),
        ("shardkit/look/verify.py", "import click", "imports click"),
        ("shardkit/batches/state.py", "import json, pickle", "imports pickle"),
        ("shardkit/tokenization/worker.py", "import pickle", "imports pickle"),
        ("shardkit/batches/state.py", "from pickle import loads", "imports pickle"),
        ("shardkit/batches/state.py", "x = importlib.import_module('pickle')", "imports pickle"),
        ("shardkit/batches/state.py", "x = __import__('dill')", "imports dill"),
        ("shardkit/remote/push.py", "try:\n    import multiprocess.pool\nexcept ImportError: ...", "multiprocess"),
        ("trainer/plot.py", "import matplotlib.pyplot as plt", "imports matplotlib outside a function"),
        ("shardkit/dataset/shards.py", "np.load(path, allow_pickle=True)", "np.load with allow_pickle=True"),
        ("shardkit/dataset/shards.py", "np.load(path, allow_pickle=flag)", "np.load with allow_pickle=flag"),
        ("trainer/checkpoint.py", "torch.load(path)", "torch.load without weights_only=True"),
        ("trainer/checkpoint.py", "torch.load(path, weights_only=False)", "torch.load without weights_only=True"),
        ("trainer/checkpoint.py", "pickle.load(file)", "calls pickle.load"),
        ("shardkit/tokenization/worker.py", "pickle.loads(data)", "calls pickle.loads"),
    ],
)
def test_a_planted_violation_is_found(path: str, text: str, found: str) -> None:
    assert [line for line in violations(path, text) if found in line], violations(path, text)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("shardkit/loader/feed.py", "import torch\nfrom torch import Tensor"),
        ("shardkit/__init__.py", "if TYPE_CHECKING:\n    import torch"),
        ("shardkit/batches/state.py", '"""import pickle"""\n# import torch\nfrom shardkit.batches.pickle import x'),
        ("trainer/plot.py", "def plot():\n    import matplotlib"),
        ("trainer/checkpoint.py", "torch.load(path, weights_only=True)\nnp.load(path)"),
        (
            "shardkit/dataset/derived.py",
            "np.load(path, allow_pickle=False)",
        ),
    ],
)
def test_what_only_looks_like_a_violation_is_none(path: str, text: str) -> None:
    assert violations(path, text) == []


def test_a_wait_without_an_end_is_for_what_has_ended_or_in_a_thread_of_ours() -> None:
    assert {(path, call) for path, text in FILES.items() for call in endless_waits(text)} == {
        # of what has ended, was killed, or ends its own waits
        ("shardkit/batches/plan_helpers.py", "process.wait()"),
        ("shardkit/loader/feed.py", "future.result()"),
        ("shardkit/remote/download.py", "future.result()"),
        ("shardkit/remote/hub_client.py", "future.result()"),
        ("shardkit/remote/uploader.py", "first.result()"),
        ("shardkit/remote/uploader.py", "self._failed.result()"),
        ("shardkit/sources/whole_files.py", "self._coming.pop(number).result()"),
        ("shardkit/tokenization/worker_pool.py", "self._pipes.wait()"),
        ("shardkit/waits.py", "future.result()"),
        # of a thread or a process of ours
        ("shardkit/remote/bucket_client.py", "upload.result()"),
        ("shardkit/remote/streaming/downloader.py", "downloader.wait()"),
        ("shardkit/remote/streaming/downloader.py", "job.result()"),
        ("shardkit/remote/streaming/downloader.py", "opening.result()"),
        ("shardkit/sources/read_ahead.py", "self._work.wait()"),
        ("shardkit/tokenization/chunk_feed.py", "self._changed.wait()"),
        ("shardkit/tokenization/held_tokens.py", "self._changed.wait()"),
        # of Windows, where a lock is asked for again and again
        ("shardkit/locks.py", "lock.acquire()"),
    }


def test_the_formatter_lays_out_every_file() -> None:
    assert {path for path, text in FILES.items() if "# fmt: skip" in text or "# fmt: off" in text} == set()


def test_files_classes_and_functions_fit() -> None:
    assert {(path, name) for path, text in FILES.items() for name in too_long(text)} - MAY_BE_LONG == set()


def test_a_planted_long_file_class_or_function_is_found() -> None:
    body = "    x = 1\n" * 60
    assert too_long(f"def short():\n{body[:-10]}\n\ndef long():\n{body}\n") == ["long"]
    assert too_long("class Long:\n" + "    x = 1\n" * 250) == ["Long"]
    assert too_long("x = 1\n" * 301) == ["file"]


def test_no_two_test_files_have_one_name() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)  # pytest collects the first of them alone


def test_the_public_names_are_pinned() -> None:
    names = (
        "Manifest ShardLoader ShardkitError Tokenizer UsageError __version__ convert diff hold_lock info machine_fault "
        "merge merge_ledger open_shard peek plan printable public_address pull push report to_datasets tokenize verify"
    )
    assert shardkit.__all__ == names.split()
    assert all(getattr(shardkit, name) is not None for name in shardkit.__all__)


SIGNATURES = {
    "Manifest": "dtype tokens_per_shard shards tokenizer source encoder shardkit_version format_version directory",
    "ShardLoader": "source batch_size seq_len split rank world_size shuffle seed device prefetch verify ledger layout "
    "documents ignore_index eot_id span cache cache_bytes revision format",
    "ShardLoader.from_env": "source batch_size seq_len split shuffle seed device prefetch verify ledger layout "
    "documents ignore_index eot_id span cache cache_bytes revision format",
    "Tokenizer": "name encoder",
    "convert": "source out to tokenizer eot_id dtype shard_tokens progress",
    "diff": "a b progress",
    "hold_lock": "path busy remove",
    "info": "directory",
    "machine_fault": "error",
    "merge": "place out part push private max_disk keep_parts progress",
    "merge_ledger": "folder",
    "open_shard": "path",
    "peek": "directory document run step micro_step rank row batch_size seq_len world_size seed split shuffle layout "
    "span eot_id tokens tokenizer",
    "plan": "place batch_size seq_len world_size layout eot_id tokens_per_second dollars_per_hour out name split "
    "revision include text_field separator skip_bad_rows where sample tokenizer shard_tokens workers upload_rate "
    "progress",
    "printable": "text lines",
    "public_address": "address",
    "pull": "repo directory revision split shards allow_gaps overwrite workers progress",
    "push": "directory repo private revision tag overwrite repair workers progress",
    "report": "place other out sample eot_id progress",
    "to_datasets": "directory split seq_len eot_id",
    "tokenize": "source out name split revision include format text_field columns separator skip_bad_rows where sample "
    "skip_duplicates tokenizer eot encoder shard_tokens val_shards prefix workers max_docs max_tokens transform filter "
    "runner address part push private max_disk overwrite progress chunk_bytes",
    "verify": "place hashes deep source progress",
}
DEFAULTS = {
    "ShardLoader": {"split": "train", "shuffle": True, "seed": 0, "verify": False, "layout": "contiguous"},
    "Tokenizer": {"name": "gpt2", "encoder": "auto"},
    "pull": {"directory": None, "shards": None, "workers": 8},
    "push": {"private": False, "tag": None, "overwrite": False, "workers": 5},
    "tokenize": {"source": "HuggingFaceFW/fineweb-edu", "split": "train", "tokenizer": "gpt2", "val_shards": None}
    | {"runner": "local", "part": None, "overwrite": False, "skip_bad_rows": False, "chunk_bytes": 8 << 20},
}
METHODS = {
    "Manifest": "documents fingerprint load of_folder save splits to_json tokens",
    "ShardLoader": "close epoch from_env load_state_dict locate next_batch remainder_windows set_epoch state_dict "
    "stats step steps_per_epoch windows_per_epoch",
    "Tokenizer": "decode encode_batch encode_ordinary eot_id of_dataset",
}


def test_the_keywords_of_the_public_names_are_pinned() -> None:
    callables = {name for name in shardkit.__all__ if not name.endswith("Error") and name != "__version__"}
    assert callables == {name for name in SIGNATURES if "." not in name}
    for name, expected in SIGNATURES.items():
        home, _, method = name.partition(".")
        public = getattr(shardkit, home)
        parameters = inspect.signature(getattr(public, method) if method else public).parameters
        assert list(parameters) == expected.split(), name
        assert all(parameters[option].default == value for option, value in DEFAULTS.get(name, {}).items()), name


def test_the_methods_of_the_public_classes_are_pinned() -> None:
    for name, expected in METHODS.items():
        assert set(expected.split()) <= set(dir(getattr(shardkit, name))), name


OPTIONS = {
    "tokenize": "sources --out --name --split --revision --include --format --text-field --separator "
    "--skip-bad-rows --where --sample --tokenizer --eot --encoder --shard-tokens --val-shards --prefix --workers "
    "--max-docs --max-tokens --skip-duplicates --part --push --private --max-disk --runner --address "
    "--overwrite -q --quiet --json",
    "merge": "place --out --part --push --private --max-disk --keep-parts -q --quiet --json",
    "convert": "source out --to --tokenizer --eot-id --dtype --shard-tokens -q --quiet --json",
    "train-tokenizer": "sources --out --name --split --revision --include --format --text-field --separator "
    "--skip-bad-rows --where --sample --vocab-size --pattern --max-bytes -q --quiet --json",
    "push": "directory repo --private --revision --tag --overwrite --repair -q --quiet --json",
    "pull": "repo directory --revision --split --shards --allow-gaps --overwrite -q --quiet --json",
    "info": "directory --json",
    "verify": "place --hashes --deep --source -q --quiet --json",
    "diff": "a b -q --quiet --json",
    "plan": "place --batch-size --seq-len --world-size --layout --eot-id --tokens-per-second --dollars-per-hour --out "
    "--name --split --revision --include --text-field --separator --skip-bad-rows --where --sample --tokenizer "
    "--shard-tokens --workers --upload-rate -q --quiet --json",
    "report": "place other --out --sample --eot-id -q --quiet --json",
    "peek": "directory --document --run --step --micro-step --rank --row --batch-size --seq-len --world-size --seed "
    "--split --shuffle --layout --span --eot-id --tokens --tokenizer --json",
}


def test_the_commands_and_their_options_are_pinned() -> None:
    assert set(main.commands) == set(OPTIONS)
    for name, expected in OPTIONS.items():
        found = {option for parameter in main.commands[name].params for option in _names(parameter)}
        assert found == set(expected.split()), name


def _names(parameter: click.Parameter) -> list[str]:
    return [str(parameter.name)] if isinstance(parameter, click.Argument) else list(parameter.opts)


def test_every_command_and_option_has_help_and_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for name, command in main.commands.items():
        assert command.help, name
        assert f"shardkit {name}" in readme, name


def test_the_picture_of_the_house_names_every_room_and_no_file_that_is_not_there() -> None:
    picture = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {
        path.name + ("/" if path.is_dir() else "")
        for path in (ROOT / "shardkit").iterdir()
        if path.name[0] != "_" and (path.is_file() or (path / "__init__.py").exists())  # git leaves empty folders
    }
    assert not {room for room in rooms - {"py.typed"} if f"`{room}`" not in picture}
    for name in re.findall(r"`([a-z_]+/[a-z_/]*[a-z_]+\.py)`", picture):
        assert (ROOT / "shardkit" / name).is_file() or (ROOT / name).is_file(), name
