"""Tiny datasets and runs for the trainer's tests: real processes, one thread each, gloo where there are several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from shardkit.dataset.manifest import Manifest, ShardInfo, TokenizerInfo
from shardkit.files import sha256_file

ROOT = Path(__file__).resolve().parents[2]
LONG_SECONDS = 280  # until a process is taken for hung, on a machine however busy
TINY = (
    "--model",
    "nano",
    "--n-layer",
    "1",
    "--n-head",
    "2",
    "--n-embd",
    "32",
    "--seq-len",
    "32",
    "--micro-batch",
    "2",
    "--batch-tokens",
    "256",
    "--val-tokens",
    "1024",
    "--val-every",
    "0",
    "--log-every",
    "1",
    "--device",
    "cpu",
)


def write_dataset(
    folder: Path, *, train: int = 6000, val: int = 2000, ids: int = 257, document_tokens: int | None = None
) -> Manifest:
    """Byte tokens with something to learn: each is mostly its predecessor plus one. Shard 0 is val.

    An EOT comes by chance; with `document_tokens` also as every so manieth token on average.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    shards = []
    for index, (split, size) in enumerate((("val", val), ("train", train // 2), ("train", train - train // 2))):
        if not size:
            continue
        noise = rng.integers(0, ids, size)
        tokens = np.where(rng.random(size) < 0.1, noise, (np.arange(size) + index * 7) % 64 + 32).astype("<u2")
        if document_tokens:
            tokens[rng.random(size) < 1 / document_tokens] = 256
        path = folder / f"tiny_{split}_{index:06d}.npy"
        np.save(path, tokens)
        shards.append(
            ShardInfo(
                file=path.name,
                split=split,
                index=index,
                tokens=size,
                documents=int((tokens == 256).sum()),
                first_document=sum(shard.documents for shard in shards),
                sha256=sha256_file(path),
                bytes=path.stat().st_size,
            )
        )
    manifest = Manifest(
        dtype="uint16",
        tokens_per_shard=max(train, val),
        shards=tuple(shards),
        tokenizer=TokenizerInfo(
            name="bytes", vocab_size=ids, eot_id=256, ranks_sha256=sha256(bytes(range(256))).hexdigest()
        ),
    )
    manifest.save(folder)
    return Manifest.load(folder)


def command(*words: str | Path, ranks: int = 1) -> list[str]:
    """`python -m trainer ...`, or the same under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    return [sys.executable, *launcher, "-m", "trainer", *map(str, words)]


def environment(*, pictures: bool = False) -> dict[str, str]:
    """One thread a process, this checkout's packages, and no rank variables of a launcher above. Without `pictures`
    there is no matplotlib."""
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    places = [ROOT] if pictures else [ROOT / "tests/support/unpictured", ROOT]
    path = os.pathsep.join(map(str, places))
    return {**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}


def without_notes(stderr: str) -> str:
    """What was said but for the lines of `told`, "loading torch ...", and of bars, "pull: starting", which a busy
    machine has more of."""
    lines = stderr.splitlines(keepends=True)
    return "".join(line for line in lines if not line.endswith((" ...\n", ": starting\n")))


def run_trainer(
    *words: str | Path, ranks: int = 1, fails: bool = False, pictures: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run to the end; the exit code must be as expected."""
    done = subprocess.run(
        command(*words, ranks=ranks),
        env=environment(pictures=pictures),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LONG_SECONDS,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done


@dataclass(frozen=True)
class Said:
    """How a command line ended on one rank."""

    code: int
    stdout: str
    stderr: str
    sent: list[int]  # the bytes of each tensor that was broadcast


def play(folder: Path, scenes: Mapping[str, Sequence[str | Path]]) -> dict[str, list[Said]]:
    """Two ranks run each of the named command lines, one after the other, `{rank}` in their words being each one's
    number. By name, how it ended on each rank."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scenes.json").write_text(json.dumps({name: [*map(str, words)] for name, words in scenes.items()}))
    done = launch_worker("scenes", folder / "scenes.json", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        name: [Said(**json.loads((folder / f"{name}_{rank}.json").read_text())) for rank in range(2)] for name in scenes
    }


def launch_worker(mode: str, *words: str | Path, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    """`trainer_worker.py MODE WORDS` to its end, under torchrun where there are several ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    return subprocess.run(
        [sys.executable, *launcher, "tests/support/trainer_worker.py", mode, *map(str, words)],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LONG_SECONDS,
        check=False,
    )


def losses(run: Path, key: str = "loss") -> list[tuple[int, float]]:
    """`(step, loss)` of each line of `log.jsonl` that has `key`, in the order of the file."""
    entries: list[dict[str, Any]] = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(entry["step"], entry[key]) for entry in entries if key in entry]


def whole_state(step: int) -> dict[str, Any]:
    """What a checkpoint holds, as small as can be: of a bigram table whose weights are counted on from `step`."""
    from torch import arange, empty, get_rng_state

    sizes = {"vocab_size": 100, "n_layer": 0, "n_head": 0, "n_embd": 0, "n_positions": 8}
    return {
        "step": step,
        "loss": 1.0,
        "val_loss": None,
        "best": float("inf"),
        "last_val_loss": None,
        "world_size": 1,
        "eot_id": 99,
        "fingerprint": "f",
        "source": "s",
        "tokenizer": "bytes",
        "loader": "{}",
        "config": "{}",
        "model_config": json.dumps(sizes),
        "model": {"transformer.wte.weight": arange(128.0 * 128).reshape(128, 128) + step},
        "optimizers": [],
        "scaler": {},
        "rng": get_rng_state()[None],
        "cuda_rng": empty(0),
    }
