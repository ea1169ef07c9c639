"""Where the builds of a file run: on this machine, or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from todo_compile import packages
from todo_compile.errors import ConfigError

if TYPE_CHECKING:
    from todo_compile.build.many.checking import Plan
    from todo_compile.build.many.matrix import Build
    from todo_compile.build.many.running import Outcome, Running

_RAY = "ray"


def check_executor(
    executor: str | None, *, jobs: int | None, memory: str | None, retries: int | None
) -> None:
    """Refuse an unknown executor, and options that are not for the chosen one.

    Raises:
        ConfigError: says which.
        MissingPackageError: Ray is absent.
    """
    if executor is None:
        if retries is not None:
            raise ConfigError("--retries is for clusters.", remedy="Leave it out.")
        return
    name, _, host = executor.partition("://")
    if name != _RAY or (executor != _RAY and not host):
        raise ConfigError(
            f"Unknown executor {executor!r}.", remedy="Known: ray, or ray://HOST:PORT."
        )
    for option, value in (("--jobs", jobs), ("--memory", memory)):
        if value is not None:
            raise ConfigError(
                f"{option} is for builds on this machine; a cluster's machines say what they have.",
                remedy="Leave it out; ray start --memory and --num-cpus say what one lends.",
            )
    packages.need(_RAY, "--executor ray")


def run_builds(
    plan: Plan,
    logs: Path,
    executor: str | None,
    *,
    retries: int | None,
    force: bool,
    started: Callable[[Build], None],
    ended: Callable[[Outcome], None],
    tick: Callable[[Sequence[Running]], None],
) -> tuple[list[Outcome], bool]:
    """Run the builds of a checked plan; see `running.run` and `remote.run`."""
    if executor is None:
        from todo_compile.build.many.running import run

        return run(plan, logs, force=force, started=started, ended=ended, tick=tick)
    from todo_compile.build.many import remote

    return remote.run(
        plan,
        logs,
        address=None if executor == _RAY else executor,
        retries=remote.RETRIES if retries is None else retries,
        force=force,
        started=started,
        ended=ended,
    )
