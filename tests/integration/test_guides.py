"""Every example of the guides, run against one real worker on the embedded broker.

A guide's examples are its blocks marked ``pycon``, run as doctests, and ``python``, run as they are; all blocks of
a guide share their names.  A ``python`` block that begins with ``# name.py`` is a file instead: those of one
name are put together, over all guides, and the worker runs ``tasks.py``.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.worker import WorkerProcess

GUIDES = sorted((Path(__file__).resolve().parents[2] / "docs" / "guides").glob("*.md"))
NOT_PYTHON = {"console", "text", "json", "ini", "sh"}
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+)\.py\n")


class Block(NamedTuple):
    """A fenced block of a guide; *line* is that of its first line of text, from 0."""

    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The module that it is, or is a part of."""
        found = FILE.match(self.text) if self.language == "python" else None
        return found and found.group(1)


def blocks_of(text: str) -> list[Block]:
    return [Block(found[1], found[2], text.count("\n", 0, found.start(2))) for found in FENCE.finditer(text)]


def run(text: str, name: str) -> tuple[int, list[str]]:
    """Run the examples of a guide; give their number and what was wrong."""
    names: dict[str, Any] = {"__name__": "__main__"}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    wrong: list[str] = []
    plain = 0
    for block in blocks_of(text):
        if block.language == "pycon":
            test = doctest.DocTestParser().get_doctest(block.text, names, name, name, block.line)
            assert test.examples, f"{name}, line {block.line}: a block without an example"
            runner.run(test, out=wrong.append, clear_globs=False)
            names = test.globs
        elif block.language == "python" and block.file is None:
            plain += 1
            exec(compile("\n" * block.line + block.text, name, "exec"), names)
    return runner.tries + plain, wrong


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """The worker of all guides; its folder is the current one, and what is in it can be imported."""
    folder = tmp_path_factory.mktemp("guides")
    files: dict[str, str] = {}
    for guide in GUIDES:
        for block in blocks_of(guide.read_text()):
            if block.file is not None:
                files[block.file] = files.get(block.file, "") + block.text + "\n"
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    with _inside(folder), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        with WorkerProcess("tasks", ["-c", "2"], folder=folder) as started:
            tasks = importlib.import_module("tasks")
            try:
                yield started
            finally:
                tasks.app.backend.close()
                tasks.app.close()
                for name in files:
                    sys.modules.pop(name, None)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_the_examples_of_a_guide_say_what_happens(guide: Path, worker: WorkerProcess) -> None:
    tried, wrong = run(guide.read_text(), guide.name)

    assert not wrong, "".join(wrong) + worker.log()
    assert tried or not any(block.language in ("python", "pycon") for block in blocks_of(guide.read_text()))


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_a_guide_has_no_example_that_is_not_run(guide: Path) -> None:
    text = guide.read_text()
    assert {block.language for block in blocks_of(text)} <= {"python", "pycon"} | NOT_PYTHON
    outside = FENCE.sub("", text)
    assert "```" not in outside, "a fence that is not closed, or indented"
    assert not re.search(r"^\s*>>> ", outside, re.MULTILINE), "an example outside of a block"
    assert not re.search(r"^( {4}|\t)\S", outside, re.MULTILINE), "a block without a fence"
    elsewhere = "".join(block.text for block in blocks_of(text) if block.language in NOT_PYTHON)
    assert not re.search(r"^>>> ", elsewhere, re.MULTILINE), "an example that is marked as something else"
    assert "+SKIP" not in text


def test_an_answer_that_is_not_true_is_found() -> None:
    tried, wrong = run("```python\nnumber = 2\n```\n\n```pycon\n>>> number + 2\n5\n```\n", "wrong.md")

    assert tried == 2 and "Expected:\n    5\nGot:\n    4" in "".join(wrong)
    with pytest.raises(NameError):
        run("```python\nnobody\n```\n", "broken.md")
