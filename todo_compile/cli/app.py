"""The command line: which commands there are, and how errors end it. Nothing else lives here."""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from todo_compile.cli.build import build_command
from todo_compile.cli.compile import compile_command
from todo_compile.cli.drift import drift_command
from todo_compile.cli.examples import epilog
from todo_compile.cli.export_triton import export_triton_command
from todo_compile.cli.generate import generate_command
from todo_compile.cli.naming import Command, name_values
from todo_compile.cli.plan import plan_command
from todo_compile.cli.screen import stderr
from todo_compile.cli.show import inspect_command, models_command
from todo_compile.cli.tune import tune_command
from todo_compile.errors import INTERRUPTED, BundleError, ConfigError, TodoError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence


class _DefaultCompile(TyperGroup):
    """``todo-compile --model … --out …`` means ``todo-compile compile …``."""

    def get_params(self, ctx: Any) -> list[Any]:
        return name_values(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in _GROUP_OPTIONS:
            args = ["compile", *args]
        return super().parse_args(ctx, args)


_ENVIRONMENT = {
    getattr(errno, name, errno.ENOSPC)
    for name in (
        *("ENOSPC", "EDQUOT", "EROFS", "EIO", "ENOLCK", "ESTALE", "EMFILE", "ENFILE", "EFBIG"),
        *("EACCES", "EPERM"),
    )
}
"""What no code of ours is to blame for, wherever it strikes."""
_GROUP_OPTIONS = ("--help", "-h", "--version", "--install-completion", "--show-completion")

app = typer.Typer(
    cls=_DefaultCompile,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Make diffusion models cheap at high resolution, at compile time.\n\n"
        "Self-attention keeps every query; its keys and values are downsampled (ToDo, arXiv "
        "2402.13573), as a rewrite of the model's graph. Without a command, [bold]compile[/bold] "
        "is meant."
    ),
    epilog=epilog(""),
)


@app.callback(invoke_without_command=True)
def _main(  # pyright: ignore[reportUnusedFunction]
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from todo_compile import __version__

        print(__version__)
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


for _name, _command in (
    ("compile", compile_command),
    ("build", build_command),
    ("plan", plan_command),
    ("generate", generate_command),
    ("drift", drift_command),
    ("tune", tune_command),
    ("export-triton", export_triton_command),
    ("inspect", inspect_command),
    ("models", models_command),
):
    app.command(_name, cls=Command, epilog=epilog(_name))(_command)


def main(arguments: Sequence[str] | None = None, *, alone: bool = False) -> int:
    """Run the command line; returns the exit status.

    `alone` says that the process ends with the command: it need not import what others may want.

    Mistakes of the user end with a message and a remedy, without a traceback. SIGTERM and SIGHUP
    end it as Ctrl-C does, children and half-made outputs included, with the status that shells
    have for them.
    """
    with _signals() as ended:
        code = _run(arguments, alone)
    return ended.get("status", code)


def _run(arguments: Sequence[str] | None, alone: bool) -> int:
    # Before torch is loaded: huge pages for big tensors, since first touching gigabytes of memory
    # costs seconds. A user's own choice stands.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        words = list(arguments) if arguments is not None else None
        code = app(args=words, prog_name="todo-compile", standalone_mode=False, obj=alone)
        sys.stdout.flush()  # here, where what is wrong with it can be said
    except TodoError as error:
        stderr.print(f"error: {error.message}", style="red")
        if error.remedy:
            stderr.print(error.remedy)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except (BrokenPipeError, SystemExit) as error:  # whoever read our output has gone: ``| head``
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        with open(os.devnull, "w", encoding="utf-8") as nowhere, suppress(OSError, ValueError):
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # for the interpreter's last flush
        return 128 + 13
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            stderr.print(f"error: the name {error.filename!s:.40}… is too long", style="red")
            return ConfigError.exit_code
        if error.errno not in _ENVIRONMENT:
            raise
        what = "standard output" if error.filename is None else error.filename
        stderr.print(f"error: {what}: {error.strerror}.", style="red")
        stderr.print("The file system or this machine's limits stopped the command.")
        return BundleError.exit_code
    except Exception as error:
        # click's own errors (unknown option, missing value) know how to show themselves.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", 2))
    if code == 130:  # typer turns Ctrl-C into this status by itself
        stderr.print(INTERRUPTED, style="red")
    return code if isinstance(code, int) else 0


@contextmanager
def _signals() -> Generator[dict[str, int]]:
    """Interrupt the work where a scheduler or a closed terminal ends it; "status" says by what."""
    ended: dict[str, int] = {}
    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]

    def interrupt(number: int, _: object) -> None:
        for one in ours:
            signal.signal(one, signal.SIG_IGN)  # one is enough, and cleaning up takes a moment
        ended["status"] = 128 + number
        raise KeyboardInterrupt

    # What someone else handles or ignores (nohup) stays as it is.
    ours = [one for one in numbers if signal.getsignal(one) is signal.SIG_DFL]
    for one in ours:
        signal.signal(one, interrupt)
    try:
        yield ended
    finally:
        for one in ours:
            signal.signal(one, signal.SIG_DFL)


def run() -> None:
    """Entry point of the ``todo-compile`` script."""
    code = main(alone=True)
    # The interpreter's last collection would walk through all that torch made: 2 s for nothing.
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    run()
