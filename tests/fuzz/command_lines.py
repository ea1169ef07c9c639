"""Command lines with something wrong, as far as the work that they ask for: that is left out."""

from __future__ import annotations

import contextlib
import io
import os
import random
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import typer.main

from todo_compile import models
from todo_compile.build import planning
from todo_compile.build.bundle_job import BundleJob
from todo_compile.build.job import Job
from todo_compile.build.many import running
from todo_compile.cli import app
from todo_compile.errors import StoppedError

sys.path.append(str(Path(__file__).parents[1]))
from tiny_pipeline import make_unet

EXIT_CODES = frozenset({0, 2, 7, 130})
"""Done, a mistake, a damaged file, and work that would begin (see `_Work`)."""
_GROUP: Any = typer.main.get_command(app.app)
_LINES = (
    "compile -m model -r 64 -o x.onnx --batch 1..4 --factors 2,1 --precision fp32",
    "compile -m model -r 96x64 -o x.plan --target sm80 --sampling average --kv-tokens 256",
    "compile -m model -r 64 -r 32 -o bundle/ --format onnx --dense-after 0.5 --component unet",
    "compile -m sd15 --weights random -r 1920x1080 -o y.onnx --lora x.safetensors:0.5 --opset 20",
    "plan -m model -r 64 --factors 2x4 --batch 2 --json",
    "drift -m model -r 64 --steps 3 --seeds 2",
    "tune -m model -r 64 --budget drift=1e-3 --candidates nearest:2,4 --phases 2 -o plan.json",
    "generate -m model -r 64 --steps 4 --seed 3 --guidance 5 -o a.png a_cat",
    "build builds.yaml --dry-run --memory 4GB --jobs 2",
    "inspect x.onnx --json",
    "models --json",
)
_VALUES = (
    *("", " ", "0", "-1", "1e999", "nan", "9" * 30, "2.5", "1..", "..4", "4..1", "a=b", "x" * 300),
    *("[/red]", "\x1b[31m", "\udce4", "ÄÖ", "../..", "/", "/dev/null", "~", "-", "--", "1x", "x1"),
    *("64x", "64x64x64", "8,8,8,8,8", "off", "auto", "true", "{a}", "*", "sd15", "model", "x.onnx"),
)


def _options() -> list[str]:
    context = _GROUP.make_context("todo-compile", [], resilient_parsing=True)
    found: set[str] = set()
    for name in _GROUP.list_commands(context):
        for one in _GROUP.get_command(context, name).get_params(context):
            found |= {*one.opts, *one.secondary_opts}
    return sorted(option for option in found if option.startswith("-"))


OPTIONS = _options()


def mistaken(chance: random.Random) -> list[str]:
    """A good command line with one to three things wrong."""
    words: list[str] = [*chance.choice(_LINES).split()]
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(1, len(words) + 1)
        match chance.randrange(5):
            case 0:
                words[at : at + 1] = [chance.choice(_VALUES)]
            case 1:
                words[at:at] = [chance.choice(OPTIONS)]
            case 2:
                words[at:at] = [chance.choice(OPTIONS), chance.choice(_VALUES)]
            case 3:
                del words[at : at + 1]
            case _:
                words[at:at] = words[at : at + 2]
    return words


class _Work(StoppedError):
    """The command line is right: here the work begins."""


def _begins(*_: Any, **__: Any) -> Any:
    raise _Work("The work begins.")


@contextlib.contextmanager
def without_work(folder: Path) -> Generator[None]:
    """In `folder`, with a tiny model in it, and nothing built, loaded or drawn."""
    make_unet(folder / "model", 1)
    (folder / "builds.yaml").write_text(
        "builds:\n  - {model: model, res: 64, out: a.onnx}\n", encoding="utf-8"
    )
    held: list[tuple[Any, str]] = [
        *((Job, "build"), (BundleJob, "build"), (running, "run")),
        *((planning, "plan_request"), (models, "load")),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name in held]
    home = Path.cwd()
    os.chdir(folder)
    for owner, name in held:
        setattr(owner, name, _begins)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
        os.chdir(home)


def run(seed: int) -> str:
    """Run one, inside `without_work`: its exit status; whatever else comes out is raised.

    Raises:
        AssertionError: the status is none that is documented.
    """
    words = mistaken(random.Random(f"command line {seed}"))
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = app.main(words)
    except (Exception, SystemExit) as error:
        raise AssertionError(f"{words}: {error!r}") from error
    assert code in EXIT_CODES, (words, code)
    return f"exit {code}"
