"""What is fuzzed: a command, and the kind of file that it reads.

Whatever is in the file, the command ends with an exit code that it documents, in short lines that
are safe to print.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from typer.testing import CliRunner

from tritter_mem.cli.main import app
from tritter_mem.errors import TritterMemError
from tritter_mem.models.byte_source import LocalFile
from tritter_mem.models.huggingface_defaults import DEFAULTS
from tritter_mem.models.huggingface_families import all_families
from tritter_mem.models.safetensors_header import read_index, read_safetensors
from tritter_mem.text import printable

CORPUS = Path(__file__).resolve().parent / "corpus"
DOCUMENTED = {0, 1, 2, 3}
MOST_LINES, LONGEST_LINE = 200, 1200


class Target(NamedTuple):
    """A kind of file.

    Attributes:
        file: what it is called.
        run: reads it; raises where something is wrong with us.
        text: whether it is text, whose values are replaced as a whole.
        more: files to change beside those of the corpus.
    """

    file: str
    run: Callable[[Path], None]
    text: bool
    more: Callable[[], list[bytes]] = list


def command(*words: str) -> Callable[[Path], None]:
    """A command line, `FILE` in place of the file."""

    def run(path: Path) -> None:
        arguments = [str(path) if word == "FILE" else word for word in words]
        done = CliRunner().invoke(app, arguments)
        check(done.exit_code, done.stderr)

    return run


def check(code: int, said: str) -> None:
    """Fail where a command ended in a way that it does not document."""
    lines = said.splitlines()
    assert code in DOCUMENTED, f"exit code {code}: {said[-2000:]}"
    assert "Traceback" not in said, said[-2000:]
    assert len(lines) <= MOST_LINES, f"{len(lines)} lines"
    for line in lines:
        assert len(line) <= LONGEST_LINE, f"a line of {len(line)} characters: {line[:200]}"
        assert printable(line) == line, repr(line[:300])


def read_header(path: Path) -> None:
    """The header of a safetensors file, which a folder's plan reads."""
    _refusing(read_safetensors, path)


def read_shards(path: Path) -> None:
    """The index of a checkpoint in several files."""
    _refusing(read_index, path)


def _refusing(read: Callable[[LocalFile], object], path: Path) -> None:
    try:
        with LocalFile(path) as source:
            read(source)
    except TritterMemError as error:
        check(2, "\n".join(error.problems))


def every_family() -> list[bytes]:
    """A config.json of each model family: all keys that have a default, and few layers."""
    few = {"num_hidden_layers": 4, "vocab_size": 1000}
    return [json.dumps({**DEFAULTS.get(kind, {}), **few, "model_type": kind}, indent=1).encode()
            for kind in sorted(all_families())]  # fmt: skip


TARGETS = {
    "snapshot": Target("s.pickle", command("replay", "FILE"), False),
    "safetensors": Target("model.safetensors", read_header, False),
    "index": Target("model.safetensors.index.json", read_shards, True),
    "gguf": Target("model.gguf", command("plan", "FILE"), False),
    "config": Target("config.json", command("plan", "FILE", "--context", "4k"), True, every_family),
    "profile": Target("p.yaml", command("plan", "--config", "FILE", "--json"), True),
    "record": Target("r.json", command("report", "FILE"), True),
    "baseline": Target(
        "b.json",
        command("check", "--baseline", "FILE", "--results", str(CORPUS / "record" / "1b")),
        True,
    ),
}  # fmt: skip


def run(target: Target, content: bytes) -> None:
    """Run a target on a file with this content, in a folder of its own.

    Raises:
        AssertionError: the command ended badly.
    """
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / target.file
        path.write_bytes(content)
        os.chdir(folder)
        try:
            target.run(path)
        finally:
            os.chdir(here)
