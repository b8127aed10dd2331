"""The documentation's pages: every block is run, what cannot be run here is looked at, links lead somewhere, and the
site shows what a code host shows."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from cache_data import environment
from hub_server import HubServer
from markdown_it import MarkdownIt
from pages import ROOT, Notebook, Step, blocks_of, faults_of, for_this_machine, steps_of
from texts import write_parquet

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
TEXTS = [*PAGES, *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("*.md")), "benchmarks/RESULTS.md"]
# Whose programs another test runs, with what they need.
RUN_BY = {"docs/frameworks.md": "tests/loader/test_frameworks.py"}
SCRIPTS_RUN_BY = {
    "docs/clusters.md": "tests/tokenization/test_clusters.py",
    "docs/places.md": "tests/remote/test_places.py",
}
VOCABULARY = ("tokenizer.json", "tokenizer_config.json")
CARD = "---\nconfigs:\n- config_name: sample-10BT\n  data_files:\n  - split: train\n    path: sample/10BT/*\n---\n"


class House(NamedTuple):
    """What all pages share: a Hub, a process that runs their steps, and a folder that each begins with a copy of."""

    hub: HubServer
    notebook: Notebook
    ours: dict[str, str]
    start: Path
    commit: str

    def visitor(self, folder: Path, *, pushed: bool) -> None:
        """A page's folder, and the Hub as each page finds it."""
        shutil.copytree(self.start, folder)
        for repo in [repo for repo in self.hub.repos if repo[1].startswith("alice/")]:
            del self.hub.repos[repo]
        if pushed:
            shards = {path.name: path for path in (folder / "edu_fineweb10B").iterdir() if path.is_file()}
            self.hub.seed_repo("alice/edu-fineweb10B", shards)

    def run(self, text: str, folder: Path, page: str = "", language: str = "sh") -> None:
        if language == "sh" and not is_ours(text):
            done = subprocess.run(["bash", "-c", text], cwd=folder, env=self.ours, capture_output=True, text=True)
            code, said = done.returncode, done.stdout + done.stderr
        else:
            code, said = self.notebook.run(Step(page, language, text), folder)
        assert code == 0, (page, text, said[-3000:])
        assert "Traceback" not in said, (page, text, said[-3000:])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    start = tmp_path_factory.mktemp("docs") / "start"
    (start / "books").mkdir(parents=True)
    texts = [f"Document number {number} says so. " * 40 for number in range(700)]
    corpus = write_parquet(start / "books" / "a.parquet", texts, rows=100).read_bytes()
    rows = [{"content": text, "score": number % 5, "language": "en"} for number, text in enumerate(texts[:40])]
    (start / "books" / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with HubServer() as hub, contextlib.ExitStack() as closing:
        binaries = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        ours = {**os.environ, **environment(hub.endpoint), "OMP_NUM_THREADS": "1", "PATH": binaries}
        notebook = Notebook(cwd=start, env=ours)
        closing.callback(notebook.end)
        files = {"README.md": CARD.encode(), "sample/10BT/000_00000.parquet": corpus}
        commits = [hub.seed_repo(f"HuggingFaceFW/{name}", files).oid for name in ("fineweb-edu", "fineweb")]
        house = House(hub, notebook, ours, start, commits[1])
        for line in (
            "tokenize sample --out out",
            "tokenize",
            "convert edu_fineweb10B nanoGPT/data/openwebtext --to nanogpt",
            "convert edu_fineweb10B megatron --to megatron",
        ):
            house.run(f"shardkit {line}", start)
        leave_what_others_would(start)
        hub.seed_repo("Qwen/Qwen3-8B", {name: start / "out" / name for name in VOCABULARY}, "model")
        yield house
        assert hub.errors == []
        assert hub.leaked_tokens == []


def leave_what_others_would(start: Path) -> None:
    """Files that shardkit did not write, of the tokens of `edu_fineweb10B`, and the logs of two runs."""
    (start / "nanoGPT" / "data" / "openwebtext" / "shardkit.json").unlink()
    for ending in (".bin", ".idx"):
        (start / "megatron" / f"train{ending}").rename(start / f"my-corpus_text_document{ending}")
    shutil.rmtree(start / "megatron")
    (start / "fineweb-py-out").mkdir()
    for shard in (start / "edu_fineweb10B").glob("*.npy"):
        shutil.copy(shard, start / "fineweb-py-out")
    for run in ("run1", "run2"):
        (start / run).mkdir()
        lines = [json.dumps({"step": step, "loss": 11 - step / 10}) + "\n" for step in range(20)]
        (start / run / "log.jsonl").write_text("".join(lines))


def is_ours(line: str) -> bool:
    """Whether a line is one command of ours, for which no shell is needed."""
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    return line.startswith(("shardkit ", "python -m trainer ")) and all(word.strip("|;&<>()") for word in words)


def test_every_page_that_another_test_runs_is_named_there() -> None:
    for page, test in {**RUN_BY, **SCRIPTS_RUN_BY}.items():
        assert page in (ROOT / test).read_text()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [page for page in PAGES if steps_of(page)[0] and page not in RUN_BY])
def test_the_blocks_of_a_page_run_from_top_to_bottom(page: str, house: House, tmp_path: Path) -> None:
    here, _ = steps_of(page)
    house.visitor(tmp_path / "home", pushed=not any("--push you/edu-fineweb10B" in step.text for step in here))
    for step in here:
        house.run(for_this_machine(step.text, house.commit), tmp_path / "home", page, step.language)


def test_the_reader_of_the_format_needs_neither_shardkit_nor_numpy(house: House) -> None:
    (reader,) = [text for language, text in blocks_of("docs/format.md") if language == "python"]
    command = [sys.executable, "-I", "-S", "-c", reader]  # the standard library alone
    done = subprocess.run(command, cwd=house.start, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(reader.splitlines()) < 25


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_what_is_not_run_here_has_options_extras_and_targets_that_exist(page: str) -> None:
    for step in steps_of(page)[1]:
        if step.language != "bash" or page not in SCRIPTS_RUN_BY:
            assert list(faults_of(step.text)) == [], step


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("shardkit tokenize --out x --runner ray --pusch y", "--pusch"),
        ("shardkit tokenise x", "no command tokenise"),
        ('eval "$(COMPLETE=1 shardkitt)"', "nobody knows how to look at"),
        ("torchrun --nproc_per_node=8 -m trainer train --data x --out run --stepz 3", "--stepz"),
        ("torchrun --nproc_pernode=8 -m trainer train", "torchrun does not know"),
        ("pip install '.[trains]'", "no extra trains"),
        ("make demo2", "no target demo2"),
        ("cd x && frobnicate", "nobody knows how to look at"),
    ],
)
def test_a_planted_fault_in_a_line_is_found(line: str, fault: str) -> None:
    assert [found for found in faults_of(line) if fault in found], list(faults_of(line))


# -- links -------------------------------------------------------------------------------------------------------------


def anchors_of(page: Path) -> set[str]:
    """The anchors that a code host gives the headings of a page."""
    tokens = MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8"))
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    plain = [re.sub(r"\[(.*?)\]\(.*?\)|[`*]", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_leads_to_a_file_and_a_heading(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", text)
    for link in links:
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), (page, link)
        assert not anchor or anchor in anchors_of(target), (page, link)


# -- the site ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the command that a person calls. A warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def article(site: Path, page: str) -> str:
    name = Path(page).stem
    html = (site / ("" if name == "index" else name) / "index.html").read_text(encoding="utf-8")
    return re.search(r"<article.*?</article>", html, re.DOTALL)[0]  # type: ignore[index]


def test_the_site_shows_the_tables_lists_and_blocks_that_a_code_host_shows(site: Path) -> None:
    for page in [page for page in PAGES if page != "docs/reference.md"]:
        hosted = MarkdownIt("gfm-like", {"linkify": False}).render((ROOT / page).read_text(encoding="utf-8"))
        ours = article(site, page)
        for tag in ("<table", "<tr", "<td", "<li", "<pre", "<h1", "<h2", "<h3", "<img"):
            assert ours.count(tag) == hosted.count(tag), (page, tag)


def test_nothing_of_the_site_comes_from_another_server(site: Path) -> None:
    for file in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = file.read_text(encoding="utf-8")
        found = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?(https?:[^\" >]+)", text)
        found += re.findall(r"<link[^>]*(?:stylesheet|preconnect|icon)[^>]*href=\"?(https?:[^\" >]+)", text)
        found += re.findall(r"(?:@import|url\()\s*[\"']?(https?:[^\"')]+)", text)
        assert found == [], file


def test_the_reference_has_every_public_name_with_its_signature_and_example(site: Path) -> None:
    import shardkit

    ours = unescape(re.sub(r"<[^>]+>", "", article(site, "docs/reference.md")))
    for name in {*shardkit.__all__} - {"__version__"}:
        assert f'id="shardkit.{name}"' in article(site, "docs/reference.md"), name
    assert ours.count(">>> ") > 40
    assert "skip_duplicates: bool" in ours
