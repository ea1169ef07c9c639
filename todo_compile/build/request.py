"""What one command line asks for, as data: checked, run, or handed to another process.

The command ``compile`` makes a `Request` of its options, ``build`` one of every entry of its file.
Names and values are those of the command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from todo_compile.errors import ConfigError
from todo_compile.options import PlanOptions
from todo_compile.progress import Progress

if TYPE_CHECKING:
    from todo_compile.build.assembly import BundleResult
    from todo_compile.build.compiler import CompileResult
    from todo_compile.build.job import Job


def _text(value: object) -> object:
    """Numbers where the command line has text: ``res: 1024``, ``factors: 2``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return str(value) if number else value


def _several(value: object) -> object:
    """One where several are possible."""
    return value if isinstance(value, (list, tuple)) else (value,)


Text = Annotated[str, BeforeValidator(_text)]
Several = Annotated[tuple[Text, ...], BeforeValidator(_several)]


class Request(BaseModel):
    """The options of ``todo-compile compile``; what they mean is said there (``--help``)."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        alias_generator=lambda name: name.replace("_", "-"),
        protected_namespaces=(),
    )

    model: Text
    res: Annotated[Several, Field(min_length=1)]
    out: str
    weights: str = "auto"
    component: str | None = None
    kind: Annotated[str | None, Field(alias="format")] = None
    batch: Text | None = None
    precision: str | None = None
    vae_precision: str | None = None
    kv_tokens: int | None = None
    factors: Text | None = None
    sampling: str | None = None
    preset: str | None = None
    vae_factors: Text | None = None
    lora: Several = ()
    controlnet: bool = False
    dense_after: float | None = None
    opset: int | None = None
    target: str | None = None
    library: str = "auto"
    timing_cache: Path | None = None
    weight_streaming: bool = False
    verify: bool = False
    force: bool = False
    dump: Path | None = None

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """Names of all options as written on the command line, without the dashes."""
        return tuple(field.alias or name for name, field in cls.model_fields.items())

    @property
    def bundle(self) -> bool:
        """Whether ``out`` is a folder of components."""
        from todo_compile.build.bundles import is_folder_output

        return is_folder_output(Path(self.out), self.out)

    def arguments(self) -> list[str]:
        """The command line that asks for this; defaults are left out."""
        found: list[str] = []
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value == field.default:
                continue
            option = f"--{field.alias or name}"
            if value is True:
                found.append(option)
                continue
            values: tuple[object, ...] = value if isinstance(value, tuple) else (value,)
            # In one word: a value may start with a dash.
            found += [f"{option}={one}" for one in values]
        return found

    def prepare(self, progress: Progress | None = None) -> list[Job]:
        """Jobs for all outputs, to look at: neither weights nor what stands at ``out`` is read.

        Raises:
            TodoError: whatever the user can mend.
        """
        settings: dict[str, Any] = {**self._settings(progress), "hashed": False}
        if self.bundle:
            from todo_compile.build.bundles import prepare_bundle

            assembly = prepare_bundle(self.model, **self._of_a_bundle(), **settings)
            return list(assembly.jobs.values())
        from todo_compile import models
        from todo_compile.build.job import check_used, prepare

        self._refuse_bundle_options()
        settings["loras"] = [models.parse_lora(text) for text in self.lora]
        del settings["force"]
        job = prepare(self.model, **self._of_a_file(), **settings)
        check_used(settings["loras"], [job])
        return [job]

    def run(self, progress: Progress | None = None) -> CompileResult | BundleResult:
        """Build it, or keep what stands.

        Raises:
            TodoError: whatever the user can mend.
        """
        settings = self._settings(progress)
        if self.bundle:
            from todo_compile.build.bundles import compile_bundle

            return compile_bundle(self.model, **self._of_a_bundle(), **settings)
        from todo_compile.build.compiler import compile as run

        self._refuse_bundle_options()
        return run(self.model, **self._of_a_file(), **settings)

    def check_place(self) -> None:
        """Refuse a place that cannot be written to.

        Raises:
            TodoError: its folder does not exist, is read-only, holds something else, …
        """
        from todo_compile.build.bundles import check_folder
        from todo_compile.bundle.files import check_target

        (check_folder if self.bundle else check_target)(Path(self.out))

    @property
    def _options(self) -> PlanOptions:
        return PlanOptions.create(
            kv_tokens=self.kv_tokens,
            factors=self.factors,
            sampling=self.sampling,
            preset=self.preset,
        )

    def _settings(self, progress: Progress | None) -> dict[str, Any]:
        """What files and bundles have in common."""
        return {
            "out": self.out,
            "weights": self.weights,
            "precision": self.precision,
            "options": self._options,
            "opset": self.opset,
            "target": self.target,
            "library": self.library,
            "timing_cache": self.timing_cache,
            "weight_streaming": self.weight_streaming,
            "verify": self.verify,
            "force": self.force,
            "dump": self.dump,
            "loras": list(self.lora),
            "controlnet": self.controlnet,
            "progress": progress,
        }

    def _of_a_file(self) -> dict[str, Any]:
        from todo_compile.models.components import one_component

        return {
            "res": self.res[0],
            "component": one_component(self.component),
            "batch": self.batch,
        }

    def _of_a_bundle(self) -> dict[str, Any]:
        from todo_compile.models.components import parse_choice

        sampling = self._options.sampling
        return {
            "res": self.res,
            "kind": self.kind or "tensorrt",
            "component": parse_choice(self.component or "all"),
            "batch": 2 if self.batch is None else self.batch,
            "vae_precision": self.vae_precision,
            "dense_after": self.dense_after,
            "vae_options": None
            if self.vae_factors is None
            else PlanOptions.create(factors=self.vae_factors, sampling=sampling),
        }

    def _refuse_bundle_options(self) -> None:
        given = {
            "--format": self.kind,
            "--vae-precision": self.vae_precision,
            "--vae-factors": self.vae_factors,
            "--dense-after": self.dense_after,
            "A second --res": self.res[1] if len(self.res) > 1 else None,
        }
        for option, value in given.items():
            if value is not None:
                raise ConfigError(
                    f"{option} is for bundles, and {self.out} is a file.",
                    remedy="End --out in a slash for a bundle, or leave the option out.",
                )
