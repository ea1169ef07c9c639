"""What shall be built, as data: what the command line, files of builds and Python ask for.

    BuildRequest(model="sd15", res="2048", out="x.plan").resolve().build()

The job that it resolves to, the manifest and the search for equal outputs read it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from pydantic import ValidationError, model_validator

from todo_compile import packages
from todo_compile.build.fields import BuildOptions
from todo_compile.build.option import Option, option_of
from todo_compile.errors import ConfigError
from todo_compile.foreign import spelled
from todo_compile.options import PlanOptions

if TYPE_CHECKING:
    from todo_compile.build.bundle_job import BundleJob
    from todo_compile.build.job import Job
    from todo_compile.bundle.plan import TunedPlan
    from todo_compile.progress import Progress


class BuildRequest(BuildOptions):
    """One build, with the options of `BuildOptions`.

    Raises:
        ConfigError: an option is unknown or its value is not possible.
    """

    @model_validator(mode="wrap")
    @classmethod
    def _in_our_words(cls, values: Any, handler: Callable[[Any], Self]) -> Self:
        if isinstance(values, dict):
            _refuse_giants(cast("dict[str, object]", values))
        try:
            return handler(values)
        except ValidationError as error:
            raise cls._refusal(error) from error

    @classmethod
    def described(cls) -> dict[str, Option]:
        """Every option by the name of its field, in order."""
        found = {name: option_of(field.metadata) for name, field in cls.model_fields.items()}
        return {name: one for name, one in found.items() if one is not None}

    @classmethod
    def keys(cls) -> dict[str, Option]:
        """Every option by its name on the command line, without the dashes, and in files."""
        described = cls.described().items()
        return {name.replace("_", "-"): one for name, one in described if one.panel}

    @property
    def bundle(self) -> bool:
        """Whether `out` is a folder of components."""
        from todo_compile.build.bundles import is_folder_output

        return is_folder_output(Path(self.out), self.out)

    @property
    def tuned(self) -> TunedPlan | None:
        """The tuned plan, read from its file; None if none was given.

        Raises:
            ConfigError: it cannot be read, or something else says too what it says.
        """
        if self.plan is None:
            return None
        others = ("kv_tokens", "factors", "sampling", "preset", "masks", "options", "dense_after")
        if given := [name for name in others if getattr(self, name) is not None]:
            raise ConfigError(
                f"plan and {given[0]} both say how factors are chosen.",
                remedy="Give one of them.",
            )
        if self.lora:
            raise ConfigError(
                "A plan says nothing of a model with a LoRA: its drift was measured without.",
                remedy="Leave --lora or --plan out.",
            )
        from todo_compile.bundle.plan import read_plan

        return read_plan(self.plan)

    @property
    def downsampling(self) -> PlanOptions:
        """How factors are chosen where there is no tuned plan, or it does not say.

        Raises:
            ConfigError: it is said twice, or cannot be.
        """
        parts = {
            name: getattr(self, name) for name in ("kv_tokens", "factors", "sampling", "masks")
        }
        if self.options is None:
            return PlanOptions.create(**parts, preset=self.preset)
        if given := [name for name in (*parts, "preset") if getattr(self, name) is not None]:
            raise ConfigError(
                f"options and {given[0]} both say how factors are chosen.",
                remedy="Give one of them.",
            )
        return self.options

    def given(self, only: str) -> list[str]:
        """Options for outputs of one kind that differ from their defaults, as they are written."""
        fields = type(self).model_fields
        return [
            f"--{name.replace('_', '-')}"
            for name, option in self.described().items()
            if option.only == only and getattr(self, name) != fields[name].default
        ]

    def part(self, **values: Any) -> Self:
        """A request for one output of this bundle: without what only bundles have, and with
        `values`, among them the `options` that say how its factors are chosen."""
        fields = type(self).model_fields
        spent = {
            name: fields[name].default
            for name, option in self.described().items()
            if option.only == "bundle" or option.decides == "plan"
        }
        return self.model_copy(update={**spent, **values})

    def identity(self, resolved: dict[str, Any]) -> dict[str, Any]:
        """What a manifest says was asked for, and what decides whether an output is kept.

        Every option stands there, as it was given or as the job resolved it, but for those that
        change nothing about the output.
        """
        kind = "model" if self.module is None else "module"
        deciding = {
            option.decides or name: name
            for name, option in self.described().items()
            if option.decides != "" and option.only in ("", "engine", "onnx", kind)
        }
        own = {key: name for key, name in deciding.items() if key not in resolved}
        values = self.model_dump(mode="json", include=set(own.values()))
        return {**resolved, **{key: values[name] for key, name in own.items()}}

    def check_place(self) -> None:
        """Refuse a place that cannot be written to.

        Raises:
            TodoError: its folder does not exist, is read-only, holds something else, …
        """
        from todo_compile.build.bundles import check_folder
        from todo_compile.bundle.files import check_target

        (check_folder if self.bundle else check_target)(Path(self.out))

    def resolve(self, progress: Progress | None = None, *, look: bool = False) -> Job | BundleJob:
        """Check all that can be checked before any work, cheapest first.

        Args:
            progress: receives steps and remarks; None is silent.
            look: the jobs are good for looking at only: neither the weights nor what stands at
                `out` is read.

        Raises:
            TodoError: whatever the user can mend.
        """
        from todo_compile.build.job import need_packages

        if self.timing_cache is not None:
            from todo_compile.bundle.files import check_target

            check_target(self.timing_cache)
        if self.is_module():
            from todo_compile.build.module_job import prepare_module

            return prepare_module(self, progress, look=look)
        # Here, since what follows imports what they bring.
        packages.need("models", "Reading a model")
        need_packages(self)
        if self.gate is not None:
            from todo_compile.models.components import resolve_component
            from todo_compile.tuning.drawing import check_drawn

            assert self.model is not None
            check_drawn(resolve_component(self.model), "A gate")
        if self.bundle:
            from todo_compile.build.bundles import prepare_bundle

            return prepare_bundle(self, progress, look=look)
        from todo_compile.build.prepare import prepare

        return prepare(self, progress, look=look)

    def is_module(self) -> bool:
        """Whether a module is to be built, not a model by name.

        Raises:
            ConfigError: neither, both, or options of the other.
        """
        module = self.module is not None
        if module == (self.model is not None):
            raise ConfigError(
                "model and module both say what to build."
                if module
                else "Nothing says what to build.",
                remedy="Give a model by name (--model), or a module of your own (--module).",
            )
        for option in self.given("model" if module else "module"):
            raise ConfigError(
                f"{option} is for models by name; a module has its own sizes and weights."
                if module
                else f"{option} is for modules of your own.",
                remedy="Leave it out"
                + (
                    ": its example inputs say it. Every batch of a range: --dynamic-batch 1..4."
                    if module
                    else ", or give a module."
                ),
            )
        if module and self.bundle:
            raise ConfigError(
                f"A module makes one file, and {self.out} is a folder.",
                remedy="End --out in .onnx, .plan or .pt2.",
            )
        if not module and not self.res:
            raise ConfigError("res is missing.", remedy="Give --res 1024, or 2048x1152.")
        return module

    @classmethod
    def _refusal(cls, error: ValidationError) -> ConfigError:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        known = list(cls.described())
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
            guess = f" Did you mean {near[0]}?" if near else ""
            return ConfigError(
                f"There is no option {name!r}.{guess}", remedy=f"Known: {', '.join(known)}."
            )
        if first["type"] == "missing":
            return ConfigError(
                f"{name} is missing.", remedy="Every build needs a place for its output."
            )
        return ConfigError(
            f"{name}: {first['input']!r:.80} is not possible: {first['msg']}.",
            remedy=f"--{name} in `todo-compile compile --help` says what is.",
        )


def _refuse_giants(values: Mapping[str, object]) -> None:
    """Refuse whole numbers that count nothing: Python itself would not write them into a message.

    Raises:
        ConfigError: there is one.
    """
    for name, value in values.items():
        parts = cast("Sequence[object]", value if isinstance(value, (list, tuple)) else (value,))
        for part in parts:
            if isinstance(part, int) and abs(part) >= 2**63:
                raise ConfigError(
                    f"{name} is {spelled(part):.40}, and nothing is as large.",
                    remedy=f"--{name} in `todo-compile compile --help` says what is possible.",
                )
