"""`plan` as a process of its own imports what the model needs, and says what it says elsewhere.

Of a pipeline's folder the index names classes, which are looked up in diffusers and transformers
first: those are imported with all that is installed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import subprocess
import sys
import time
from collections.abc import Generator
from importlib.util import find_spec
from typing import Any

import pytest
from terminal import Stream, screen

from todo_compile import models
from todo_compile.build import alone as alone_build
from todo_compile.build import planning
from todo_compile.cli.app import main
from todo_compile.cli.screen import stderr
from todo_compile.collection import paused_collection
from todo_compile.errors import ConfigError

UNASKED = (
    "transformers", "peft", "accelerate", "scipy", "torch.distributed.fsdp", "onnx", "onnxscript",
    "onnxruntime", "matplotlib", "tensorrt_rtx",
)  # fmt: skip
WORDS = ["plan", "--model", "sd15", "--component", "vae-decoder", "--res", "256", "--json"]
CHILD = f"""
import gc
import sys
from importlib import metadata
def all_packages():
    print("the files of all packages were read", file=sys.stderr)
    return {{}}
metadata.packages_distributions = all_packages
from todo_compile.cli.app import main
status = main({WORDS!r}, alone=True)
assert metadata.packages_distributions is all_packages
assert gc.isenabled() and gc.get_freeze_count() > 100_000  # nothing walks through it again
print(*(name for name in {UNASKED!r} if sys.modules.get(name, 0) != 0), file=sys.stderr)
from importlib import import_module
for name in {UNASKED[:5]!r}:
    assert sys.modules.get(name, 0) is not None, name  # can be imported again
sys.exit(status)
"""


def _steady(answer: dict[str, Any]) -> dict[str, Any]:
    """Without what the clock says."""
    passes = [{k: v for k, v in one.items() if k != "seconds"} for one in answer["passes"]]
    return {**answer, "passes": passes, "seconds": None}


def test_what_is_imported(capsys: pytest.CaptureFixture[str]) -> None:
    """No text encoder's library, no adapters', nothing of ONNX; and the plan is the same."""
    assert all(find_spec(name.partition(".")[0]) for name in UNASKED), "or the test says nothing"
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert done.stderr.split() == []
    assert main(WORDS) == 0
    here = json.loads(capsys.readouterr().out)
    assert _steady(json.loads(done.stdout)) == _steady(here)
    assert here["counts"]["rewritten"] + here["counts"]["dense"] > 0


@pytest.mark.parametrize(
    ("model", "component", "alone"),
    [("sd15", None, True), ("pixart", None, True), ("sd15", "vae-decoder", True),
     ("flux", None, False), ("sd3", None, False), ("sd15", "text-encoder", False)],
)  # fmt: skip
def test_whose_libraries_are_left_out(
    monkeypatch: pytest.MonkeyPatch, model: str, component: str | None, alone: bool
) -> None:
    """Not those of a pipeline that is run, nor of a text encoder."""
    left_out: list[bool] = []

    @contextlib.contextmanager
    def stand_in() -> Generator[None]:
        left_out.append(True)
        yield

    monkeypatch.setattr(alone_build, "diffusers_alone", stand_in)
    monkeypatch.setattr("todo_compile.models.build.network_class", lambda name: name)
    name = None if component is None else component.replace("-", "_")
    alone_build.import_network(models.resolve_component(model, name or "unet"))
    assert bool(left_out) == alone


@pytest.mark.parametrize("terminal", [True, False])
def test_a_spinner_from_the_first_moment(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """It stands there before the work begins; a log has none."""
    stream = Stream(terminal)
    shown: list[str] = []

    def begin(*args: object, **options: object) -> None:
        del args, options
        for _ in range(500 if terminal else 1):  # a thread draws it, twelve times a second
            if "planning" in stream.getvalue():
                break
            time.sleep(0.02)
        shown.append(stream.getvalue())
        raise ConfigError("stopped here")

    monkeypatch.setattr(planning, "plan_request", begin)
    monkeypatch.setattr(stderr, "is_interactive", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    with contextlib.redirect_stderr(stream):
        assert main(WORDS) == 2
    assert ["planning" in text for text in shown] == [terminal]
    assert screen(stream.getvalue()) == ["error: stopped here"], "nothing is left of it"


def test_collection_goes_on_as_it_did() -> None:
    def fails() -> None:
        with paused_collection():
            assert not gc.isenabled()
            with paused_collection():
                pass
            assert not gc.isenabled(), "an inner one does not end an outer one"
            raise ZeroDivisionError

    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        fails()
    assert gc.isenabled()
