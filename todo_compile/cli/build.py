"""``todo-compile build``: many builds from one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from todo_compile.cli.options import Json, Quiet
from todo_compile.cli.screen import stderr, stdout
from todo_compile.errors import ConfigError, StoppedError
from todo_compile.foreign import printable

if TYPE_CHECKING:
    from todo_compile.build.many.checking import Plan
    from todo_compile.build.many.matrix import Build
    from todo_compile.build.many.running import Outcome, Running
    from todo_compile.build.many.schedule import Need
    from todo_compile.cli.answers import Built, PlannedAnswer

_HELP = """Build many engines, ONNX files and bundles from one file.

[bold]Example[/bold], builds.yaml:

    memory: 16GB              # for all that run at once
    defaults:
      model: sd15
      weights: random
    builds:
      - res: [1024, 2048]     # a list is an axis: these two
        batch: [1, 2]         # make four builds
        out: engines/{model}-{res}-b{batch}.plan
      - model: ./my-model     # a list in the list is one value:
        res: [[1024, 2048x1152]]  # a bundle for two sizes
        format: onnx
        out: bundles/{model}/

    todo-compile build builds.yaml --dry-run
    todo-compile build builds.yaml

Keys are the options of [bold]compile[/bold]; those of a build win over the
defaults, and null takes a default away. {NAME} in out stands for
the value of an option. Paths are relative to where the command runs.

The whole file is checked before the first build starts. Builds run in
processes of their own, as many as memory and --jobs allow; one that
fails stops no other. What is finished is kept when the command is run
again. The status is 1 if a build failed, 2 if the file has mistakes.

On many machines that share a folder: --list shows every build's number,
--only NUMBER is one task of an array of jobs, and --executor ray hands
them to a Ray cluster, each where there is memory for it.
"""


def build_command(
    file: Annotated[Path, typer.Argument(help="YAML with builds.", show_default=False)],
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            help="Most builds at once. \\[default: the file's jobs; else one for two processors]",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="For all builds that run at once: 12GB. \\[default: the file's memory; else 90 % "
            "of what is available]"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the file and show its builds; build nothing.")
    ] = False,
    listed: Annotated[
        bool,
        typer.Option(
            "--list", help="Show the builds with their numbers, looking at the file alone."
        ),
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="ID",
            help="Build this one alone, by its number or its out; may be given several times.",
        ),
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option(
            metavar="ray[://HOST:PORT]",
            help="Build on a Ray cluster whose machines share this folder: that of RAY_ADDRESS, or "
            "the one named. \\[default: on this machine]",
        ),
    ] = None,
    retries: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="On a cluster: how often a build that was killed is started again. \\[default: 2]",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build even what is equal.")] = False,
    allow_code: Annotated[
        bool,
        typer.Option(
            "--allow-code",
            help="Execute the Python that module: names. Read such a file before you do.",
        ),
    ] = False,
    logs: Annotated[
        Path | None,
        typer.Option(
            help="Folder for what each build says. \\[default: FILE's name and .logs, beside it]"
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    from todo_compile.build.many.checking import builds_of, check, make_folders
    from todo_compile.build.many.matrix import choose
    from todo_compile.cli.answers import BuildsAnswer
    from todo_compile.cli.build_executor import check_executor, run_builds

    if listed:
        _print_list(choose(builds_of(file), only or ()), json=json)
        return
    check_executor(executor, jobs=jobs, memory=memory, retries=retries)
    with stderr.status("checking", spinner="line") as status:
        plan = check(
            file,
            only=only or (),
            elsewhere=executor is not None,
            memory=memory,
            jobs=jobs,
            report=lambda done, count, out: status.update(
                Text(printable(f"checking {done + 1}/{count}  {out}"))
            ),
        )
    if dry_run:
        if json:
            _planned(plan).print()
        else:
            _print_plan(plan)
        return
    code = [str(b.request.module) for b in plan.builds if b.request.module is not None]
    if code and not allow_code:
        raise ConfigError(
            f"{file} asks to execute Python code: {', '.join(code)}.",
            remedy="Read it, and if you trust it, give --allow-code.",
        )
    make_folders(plan.builds)
    folder = file.with_name(f"{file.stem}.logs") if logs is None else logs
    if logs is None and folder.is_symlink():
        raise ConfigError(
            f"{folder}, where logs would go, is a link.",
            remedy="Remove it, or name a folder with --logs.",
        )
    with _Watch(plan, quiet) as watch:
        outcomes, interrupted = run_builds(
            plan,
            folder,
            executor,
            retries=retries,
            force=force,
            started=watch.started,
            ended=watch.ended,
            tick=watch.tick,
        )
    failed = sum(outcome.status == "failed" for outcome in outcomes)
    if json:
        BuildsAnswer(builds=tuple(map(_facts, outcomes)), failed=failed).print()
    elif not quiet or failed or interrupted:
        _print_outcomes(outcomes)
    if interrupted:
        raise StoppedError(
            "Interrupted.", remedy="Run the command again: what is finished is kept."
        )
    if failed:
        raise typer.Exit(1)


build_command.__doc__ = _HELP


class _Watch:
    """What is seen while builds run: a live table on a terminal, lines elsewhere."""

    def __init__(self, plan: Plan, quiet: bool) -> None:
        from rich.live import Live

        self._count = len(plan.builds)
        self._ended = 0
        self._quiet = quiet
        shown = stderr.is_terminal and not quiet
        self._live = Live(console=stderr, refresh_per_second=4, transient=True) if shown else None

    def __enter__(self) -> _Watch:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, build: Any) -> None:
        self._say(f"started  {build.out}")

    def ended(self, outcome: Outcome) -> None:
        self._ended += 1
        error = f"  {outcome.error}" if outcome.error else ""
        place = f"{self._ended}/{self._count}"
        seconds = f"{outcome.seconds:.1f} s"
        self._say(f"{outcome.status:<8} {outcome.build.out}  {seconds}  ({place}){error}")

    def tick(self, running: Sequence[Running]) -> None:
        if self._live is None:
            return
        from todo_compile.build.many.running import last_words
        from todo_compile.disk import format_bytes

        table = Table(box=None, pad_edge=False, show_header=False)
        for one in running:
            table.add_row(
                one.build.out,
                f"{one.seconds:.0f} s",
                format_bytes(one.peak_bytes),
                last_words(one.log)[:60],
            )
        self._live.update(table)

    def _say(self, text: str) -> None:
        if not self._quiet:
            stderr.print(text, soft_wrap=True)


_ONE_LINE = {ord("\n"): "\\n", ord("\t"): "\\t"}


def _print_list(builds: Sequence[Build], *, json: bool) -> None:
    from todo_compile.cli.answers import Listed, ListedAnswer

    if json:
        ListedAnswer(builds=tuple(Listed(**_described(build)) for build in builds)).print()
        return
    for build in builds:
        print(f"{build.number}\t{printable(build.out).translate(_ONE_LINE)}")


def _described(build: Build) -> dict[str, Any]:
    options = build.request.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return {"id": build.number, "out": build.out, "line": build.line, "options": options}


def _memory(need: Need) -> str:
    from todo_compile.disk import format_bytes

    return "alone" if need.alone else format_bytes(need.bytes)


def _print_plan(plan: Plan) -> None:
    from todo_compile.disk import format_bytes

    axes = list(
        dict.fromkeys(axis for build in plan.builds for axis in build.axes if axis != "out")
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("", "out", "model", *axes, "memory"):
        table.add_column(header, overflow="fold")
    for build, need in zip(plan.builds, plan.needs, strict=True):
        values = [_value(build.request, axis) for axis in axes]
        subject = build.request.model or str(build.request.module)
        table.add_row(str(build.number), build.out, subject, *values, _memory(need))
    console = stdout()
    console.print(table)
    console.print(
        f"{len(plan.builds)} builds, at most {plan.jobs} at once within "
        f"{format_bytes(plan.budget)}; nothing was built",
    )


def _value(request: Any, option: str) -> str:
    found = request.model_dump(by_alias=True).get(option)
    if isinstance(found, tuple):
        return "+".join(map(str, found))
    return "–" if found is None else str(found)


def _planned(plan: Plan) -> PlannedAnswer:
    from todo_compile.cli.answers import Planned, PlannedAnswer

    builds = [
        Planned(**_described(build), memory_bytes=None if need.alone else need.bytes)
        for build, need in zip(plan.builds, plan.needs, strict=True)
    ]
    return PlannedAnswer(builds=tuple(builds), memory_bytes=plan.budget, jobs=plan.jobs)


def _print_outcomes(outcomes: Sequence[Outcome]) -> None:
    from todo_compile.disk import format_bytes

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("out", "status", "seconds", "size", "peak memory", "error"):
        table.add_column(header, overflow="fold")
    styles = {"built": "green", "failed": "red", "stopped": "yellow"}
    for one in outcomes:
        done = one.status in ("built", "kept")
        table.add_row(
            one.build.out,
            one.status,
            f"{one.seconds:.1f}" if one.log is not None else "–",
            format_bytes(one.bytes) if done else "–",
            format_bytes(one.peak_bytes) if one.peak_bytes else "–",
            f"{one.error}\n{one.log}" if one.error else "",
            style=styles.get(one.status, ""),
        )
    stdout().print(table)


def _facts(outcome: Outcome) -> Built:
    from todo_compile.cli.answers import Built

    return Built(
        out=outcome.build.out,
        status=outcome.status,
        seconds=outcome.seconds,
        bytes=outcome.bytes,
        peak_rss_bytes=outcome.peak_bytes,
        error=outcome.error,
        log=None if outcome.log is None else str(outcome.log),
    )
