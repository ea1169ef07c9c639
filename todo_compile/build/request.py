"""What shall be built, as data: every option once, with its type, default, check and help.

The command line, files of builds and Python make a `BuildRequest`; the job that it resolves to, the
manifest and the search for equal outputs read it. A new option is a new field here, and code that
does what it says.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError, model_validator

from todo_compile.build.option import Batch, Factors, Option, Several, option_of, path_named
from todo_compile.errors import ConfigError
from todo_compile.options import PRESETS, SAMPLINGS, PlanOptions

if TYPE_CHECKING:
    from todo_compile.build.assembly import Assembly
    from todo_compile.build.job import Job
    from todo_compile.progress import Progress

_WHAT, _DOWN, _ENGINE, _OUTPUT = "What", "Downsampling", "Engine", "Output"
Model = Annotated[str, path_named("model")]
Out = Annotated[str, path_named("out")]
Weights = Annotated[str, path_named("weights")]


class BuildRequest(BaseModel):
    """One build: ``BuildRequest(model="sd15", res="2048", out="x.plan").resolve().build()``.

    Fields are the options of ``todo-compile compile``, with ``_`` for ``-``; their meaning stands
    with them. `options` and `vae_options` are for Python alone.

    Raises:
        ConfigError: an option is unknown or its value is not possible.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        alias_generator=lambda name: name.replace("_", "-"),
        protected_namespaces=(),
    )

    model: Annotated[
        Model,
        Option(
            "A name from `todo-compile models` (sd15, sdxl, demo, …), a diffusers folder, a "
            "checkpoint (FILE.safetensors), or a hub id.",
            _WHAT,
            "-m",
            file=True,
        ),
    ]
    res: Annotated[
        Several,
        Field(min_length=1),
        Option(
            "Pixels: 2048, or WIDTHxHEIGHT. A bundle takes several: --res 1024 --res 2048x1152; "
            "what runs is chosen by the picture's size.",
            _WHAT,
            "-r",
        ),
    ]
    out: Annotated[
        Out,
        Option(
            "FILE.plan or .engine: TensorRT; FILE.onnx: ONNX. A manifest, FILE.….json, is written "
            "beside it. FOLDER/: a bundle with all components.",
            _OUTPUT,
            "-o",
            decides="",
            file=True,
            placeholders=True,
        ),
    ]
    weights: Annotated[
        Weights,
        Option(
            "auto (folder, hub cache, hub), random[:SEED] (for sizing, not for pictures), or a "
            "path to safetensors.",
            _WHAT,
            file=True,
        ),
    ] = "auto"
    component: Annotated[
        str | None,
        Option(
            "unet (whatever denoises), vae-decoder, text-encoder, text-encoder-2, or all (into a "
            "folder). [default: unet; for a folder: all]",
            _WHAT,
        ),
    ] = None
    format: Annotated[
        str | None,
        Option("A bundle's: tensorrt or onnx. [default: tensorrt]", _OUTPUT, only="bundle"),
    ] = None
    batch: Annotated[
        Batch | None,
        Option(
            "UNet batch. Classifier-free guidance runs the prompt and the empty prompt together: "
            "one image needs 2. A range takes every batch in it: 1..4 (1..2..4 tunes the engine "
            "for 2, else for the most). [default: 2; VAE decoder and text encoder: 1]",
            _WHAT,
            metavar="N|MIN..MAX",
        ),
    ] = None
    precision: Annotated[
        str | None, Option("fp16, bf16 or fp32. [default: fp16; SDXL's own VAE: fp32]", _WHAT)
    ] = None
    vae_precision: Annotated[
        str | None,
        Option(
            "The precision of a bundle's VAE decoder. [default: as --precision]",
            _WHAT,
            only="bundle",
        ),
    ] = None
    kv_tokens: Annotated[
        int | None,
        Option(
            "Most key/value tokens a site keeps. Default: what the model saw in training at its "
            "highest attention level (SD1.5, SDXL: 4096).",
            _DOWN,
            decides="plan",
        ),
    ] = None
    factors: Annotated[
        Factors | None,
        Option(
            "Factor a level, largest grid first: 4,2,1; WIDTHxHEIGHT pairs: 4x2,2; or off.",
            _DOWN,
            decides="plan",
            joined=True,
        ),
    ] = None
    sampling: Annotated[
        str | None,
        Option(
            f"Which token stands for a cell: {', '.join(SAMPLINGS)} (blend takes any weight "
            "between 0 and 1). [default: nearest]",
            _DOWN,
            decides="plan",
        ),
    ] = None
    preset: Annotated[
        str | None,
        Option(f"Published settings by name: {', '.join(PRESETS)}.", _DOWN, decides="plan"),
    ] = None
    vae_factors: Annotated[
        Factors | None,
        Option(
            "The factor of a bundle's VAE decoder: 4, or off. [default: bounded by what it saw in "
            "training]",
            _DOWN,
            only="bundle",
            joined=True,
        ),
    ] = None
    lora: Annotated[
        Several,
        Option(
            "FILE.safetensors[:SCALE], fused into the weights; may be given several times.",
            _WHAT,
            file=True,
        ),
    ] = ()
    controlnet: Annotated[
        bool,
        Option(
            "Let the UNet take a ControlNet's residuals, as further inputs: for any number of "
            "ControlNets, which run in torch.",
            _WHAT,
        ),
    ] = False
    dense_after: Annotated[
        float | None,
        Option(
            "Give the bundle a dense twin too, for the steps after this share, e.g. 0.7.",
            _DOWN,
            only="bundle",
        ),
    ] = None
    opset: Annotated[
        int | None,
        Option(
            "ONNX opset, 18 to 23. 23 keeps attention whole and needs 4x less scratch memory in "
            "TensorRT. [default: 23]",
            _ENGINE,
        ),
    ] = None
    target: Annotated[
        str | None,
        Option(
            "GPU architectures, e.g. sm89,sm120, or current. [default: the GPU in this machine; "
            "without one sm89]",
            _ENGINE,
            only="engine",
            joined=True,
        ),
    ] = None
    library: Annotated[str, Option("tensorrt, tensorrt_rtx or auto.", _ENGINE, only="engine")] = (
        "auto"
    )
    timing_cache: Annotated[
        Path | None,
        Option(
            "TensorRT's timing cache: read and written.",
            _ENGINE,
            only="engine",
            decides="",
            file=True,
        ),
    ] = None
    weight_streaming: Annotated[
        bool, Option("Let the engine keep weights in host memory.", _ENGINE, only="engine")
    ] = False
    verify: Annotated[
        bool,
        Option(
            "Prove it on these weights: every rewritten site against subsampling at the site, and "
            "the ONNX file in onnxruntime against the rewritten graph. Builds anew.",
            _OUTPUT,
            decides="",
        ),
    ] = False
    force: Annotated[
        bool, Option("Rebuild even if an equal output exists.", _OUTPUT, decides="")
    ] = False
    dump: Annotated[
        Path | None,
        Option(
            "Write the graph before and after every pass to this folder.",
            _OUTPUT,
            decides="",
            placeholders=True,
        ),
    ] = None
    options: Annotated[
        InstanceOf[PlanOptions] | None,
        Option("How factors are chosen, in place of the options for it.", decides="plan"),
    ] = None
    vae_options: Annotated[
        InstanceOf[PlanOptions] | None,
        Option("The same for a bundle's VAE decoder.", only="bundle", decides="plan"),
    ] = None

    @model_validator(mode="wrap")
    @classmethod
    def _in_our_words(cls, values: Any, handler: Callable[[Any], Self]) -> Self:
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
    def plan(self) -> PlanOptions:
        """How factors are chosen.

        Raises:
            ConfigError: it is said twice, or cannot be.
        """
        parts = {name: getattr(self, name) for name in ("kv_tokens", "factors", "sampling")}
        if self.options is None:
            return PlanOptions.create(**parts, preset=self.preset)
        if said := [name for name in (*parts, "preset") if getattr(self, name) is not None]:
            raise ConfigError(
                f"options and {said[0]} both say how factors are chosen.",
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
        deciding = {
            option.decides or name: name
            for name, option in self.described().items()
            if option.decides != "" and option.only != "bundle"
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

    def resolve(self, progress: Progress | None = None, *, look: bool = False) -> Job | Assembly:
        """Check all that can be checked before any work, cheapest first.

        Args:
            progress: receives steps and remarks; None is silent.
            look: the jobs are good for looking at only: neither the weights nor what stands at
                `out` is read.

        Raises:
            TodoError: whatever the user can mend.
        """
        if self.bundle:
            from todo_compile.build.bundles import prepare_bundle

            return prepare_bundle(self, progress, look=look)
        from todo_compile.build.job import prepare

        return prepare(self, progress, look=look)

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
                f"{name} is missing.", remedy="Every build needs model, res and out."
            )
        return ConfigError(
            f"{name}: {first['input']!r:.80} is not possible: {first['msg']}.",
            remedy=f"--{name} in `todo-compile compile --help` says what is.",
        )
