"""The job for a component of a model by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from todo_compile import models, packages
from todo_compile.batches import Batch, BatchLike, BatchRange, parse_batch
from todo_compile.build.alone import import_network
from todo_compile.build.job import (
    Job,
    builder,
    check_output,
    format_identity,
    opset_of,
    plain_batch,
    versions,
)
from todo_compile.build.planned import Planned
from todo_compile.errors import ConfigError, ModelError
from todo_compile.models.components import OTHERS, overflows_in_half
from todo_compile.models.controlnet import with_controlnet
from todo_compile.models.ip_adapter import parse_ip_adapter, with_ip_adapter
from todo_compile.models.t2i_adapter import with_t2i_adapter
from todo_compile.options import PlanOptions, TokenGrid
from todo_compile.precision import dtype_of
from todo_compile.progress import Progress, Step

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from todo_compile.build.request import BuildRequest
    from todo_compile.capture.inputs import ExampleInputs
    from todo_compile.capture.written import InputSpec
    from todo_compile.models import Lora, Resolution, Source, Weights


@dataclass(frozen=True)
class ModelJob(Job):
    """The job for a component of a model by name.

    Attributes:
        weights_hash: "" if the job is for looking at only.
        loras: those of the request that have layers for this component.
        alone: the process ends with this output, and draws nothing: see `alone`.
    """

    source: Source
    resolution: Resolution
    weights: Weights
    weights_hash: str
    loras: tuple[Lora, ...]
    alone: bool = field(default=False, kw_only=True)

    def capture(self) -> tuple[ExportedProgram, ExampleInputs]:
        from todo_compile.capture.inputs import example_inputs
        from todo_compile.capture.trace import capture, outputs_of

        shown: list[Step] = []  # where the background's progress goes

        def tell(done: int, total: int) -> None:
            if shown:
                shown[0].update(done, total)

        with self.progress.step("load model") as step:
            if self.alone:
                import_network(self.source)
            dtype = dtype_of(self.precision)
            loaded = models.start_load(
                self.source, self.weights, dtype=dtype, loras=self.loras, report=tell
            )
            step.note(f"{loaded.parameters / 1e6:,.0f} M parameters")
        example = example_inputs(loaded, self.resolution, batch=self.batch)
        with self.progress.step("capture"):
            program = capture(
                example.wrapper, example.args, batches=example.batches, texts=example.texts
            )
        example = example.giving(len(outputs_of(program)))
        with self.progress.step("weights") as step:  # what is left of filling them
            shown.append(step)
            loaded.finish()
        return program, example

    def manifest_model(self) -> dict[str, Any]:
        from todo_compile.capture.inputs import manifest_call

        call = manifest_call(
            self.source, self.resolution, batch=self.batch, dtype=dtype_of(self.precision)
        )
        adapter = self.source.ip_adapter
        return {
            **({} if call is None else {"call": call}),
            "name": self.source.identifier,
            "class": self.source.class_name,
            "component": self.source.component,
            "pipeline": self.source.pipeline,
            "weights": self.weights.description,
            "weights_hash": self.weights_hash,
            "loras": [{"file": lora.path.name, **lora.describe()} for lora in self.loras],
            "controlnet": self.source.controlnet,
            "t2i_adapter": self.source.t2i_adapter,
            **(
                {}
                if adapter is None
                else {"ip_adapter": {"file": adapter.path.name, **adapter.describe()}}
            ),
            "random_weights": self.weights.kind == "random",
            "config": dict(self.source.config),
            "resolution": str(self.resolution),
            "batch": self.identity["batch"],
            **({} if self.source.texts is None else {"text_tokens": str(self.source.texts)}),
            **({} if self.source.frames is None else {"frames": self.source.frames}),
            "precision": self.precision,
        }

    @property
    def weight_bytes(self) -> float:
        return parameters(self.source) * dtype_of(self.precision).itemsize

    @property
    def native_kv_tokens(self) -> int | None:
        return self.source.native.kv_tokens

    @property
    def token_grids(self) -> dict[int, TokenGrid]:
        return {}


def prepare_component(
    request: BuildRequest,
    component: str,
    loras: Sequence[Lora],
    progress: Progress,
    *,
    look: bool,
    planned: Planned | None = None,
) -> ModelJob:
    """The job for one component of a model, of a request for a file.

    Args:
        component: ``unet`` (whatever denoises), ``vae_decoder``, ``text_encoder`` or
            ``text_encoder_2``.
        loras: of them those are taken that have layers for the component.
        request, progress, look: see `BuildRequest.resolve`.
        planned: in place of the request's options for factors.
    """
    from todo_compile.capture.inputs import input_specs, inputs_identity, with_pipeline_defaults

    path = check_output(request)
    if request.precision is not None:
        dtype_of(request.precision)
    resolution = models.Resolution.parse(request.res[0])
    assert request.model is not None
    source = models.resolve_component(request.model, component)
    source = models.with_text_tokens(source, request.text_tokens)
    source = with_pipeline_defaults(models.with_frames(source, request.frames))
    if source.component.startswith("text_encoder"):
        packages.need("transformers", "A text encoder")
    if source.file is not None and source.component == "unet":
        progress.info(f"model          {source.file.remark}")
    if request.controlnet:
        source = with_controlnet(source)
    if request.t2i_adapter:
        source = with_t2i_adapter(source)
    if request.ip_adapter is not None:
        source = pictured(source, request.ip_adapter)
    if planned is not None:
        planned.check(source, resolution)
        beside = {
            "a ControlNet": request.controlnet,
            "a T2I-Adapter": request.t2i_adapter,
            "an IP-Adapter": request.ip_adapter,
        }
        for what in (what for what, given in beside.items() if given):
            progress.warn(f"the plan was tuned without {what}: its drift says nothing of one")
    options = check_options(source, planned.options if planned else request.downsampling)
    precision = _precision(source, request.precision, progress)
    dtype = dtype_of(precision)
    batch = check_batch(source, request.batch)
    specs = input_specs(source, resolution, batch=batch, dtype=dtype)  # it can take them
    _check_factors(source, options, specs)
    library, targets = builder(request, progress)
    choice = models.WeightsChoice.parse(request.weights)
    weights = models.find_weights(source, choice, dtype=dtype)
    progress.info(f"weights        {weights.description}")
    digest = "" if look else _weights_hash(weights, progress)
    if planned is not None and not look:
        from todo_compile.runtime.in_process import check_weights

        check_weights(planned.plan, source, choice, dtype)
    adapters = tuple(lora for lora in loras if lora.of(source.component))
    models.check_loras(source, adapters)
    text = source.component.startswith("text_encoder")
    resolved: dict[str, Any] = {
        "model": source.identifier,
        "architecture": weights.architecture,
        "component": source.component,
        "inputs": inputs_identity(source, resolution, batch=batch, dtype=dtype),
        "pipeline": source.pipeline,
        "weights": digest,
        "lora": [lora.describe() for lora in adapters],
        "ip_adapter": None if source.ip_adapter is None else source.ip_adapter.describe(),
        "res": str(resolution),
        "batch": plain_batch(batch),
        "precision": precision,
        "plan": plan_identity(source, options, planned),
        "versions": versions("transformers") if text else versions(),
        **format_identity(request, library, targets),
    }
    return ModelJob(
        request, path, batch, precision, opset_of(request), options, library, targets, progress,
        request.identity(resolved), source, resolution, weights, digest, adapters,
        planned=planned,
    )  # fmt: skip


def pictured(source: Source, text: str) -> Source:
    """A UNet with the IP-Adapter that ``--ip-adapter`` names.

    Raises:
        ConfigError: the model takes none.
        ModelError: the file is none for it.
    """
    from todo_compile.capture.inputs import is_recorded

    if is_recorded(source):
        raise ConfigError(
            f"--ip-adapter is for pipelines of Stable Diffusion; this is a {source.class_name} "
            f"of {source.pipeline or 'another pipeline'}.",
            remedy="Leave it out.",
        )
    return with_ip_adapter(source, parse_ip_adapter(text))


def plan_identity(source: Source, options: PlanOptions, planned: Planned | None) -> dict[str, Any]:
    """What manifests keep of how factors are chosen."""
    more = {} if planned is None else planned.identity
    return {**options.describe(), "native_kv_tokens": source.native.kv_tokens, **more}


def default_batch(source: Source) -> int:
    """What one image needs: 2 for a denoising model with classifier-free guidance, else 1."""
    if source.pipeline_defaults is not None:
        return source.pipeline_defaults.batch
    return 1 if source.component in OTHERS else 2


def check_batch(source: Source, batch: BatchLike | None) -> Batch:
    """The batch of a component: what was asked for, or its default.

    Raises:
        ConfigError: it is not a batch, or a range for a text encoder.
    """
    if batch is None:
        return default_batch(source)
    found = parse_batch(batch)
    if isinstance(found, BatchRange) and source.component.startswith("text_encoder"):
        raise ConfigError(
            f"A text encoder has no range of batches such as {found}.",
            remedy="Give one number: 1 serves any number of prompts, one after the other.",
        )
    return found


def check_options(source: Source, options: PlanOptions | None) -> PlanOptions:
    """The options for a component: a text encoder has nothing to downsample.

    Raises:
        ConfigError: downsampling was asked of a text encoder.
    """
    if not source.component.startswith("text_encoder"):
        return options or PlanOptions()
    dense = PlanOptions(factors=())
    if options not in (None, PlanOptions(), dense):
        raise ConfigError(
            "A text encoder has no image tokens to downsample.",
            remedy="Leave out --kv-tokens, --factors, --sampling and --preset.",
        )
    return dense


def _check_factors(source: Source, options: PlanOptions, specs: Sequence[InputSpec]) -> None:
    """Refuse factors that the passes would refuse later, as far as it can be told by now.

    Raises:
        ConfigError: one is larger than the largest grid that its level can have: that of the
            highest attention in the latents, halved at least from one level to the next.
    """
    if source.pipeline_defaults is not None:
        return  # other architectures have other levels
    latent = next((s.shape[-2:] for s in specs if len(s.shape) == 4), (1, 1))
    for level, factor in enumerate(options.factors or (), 1):
        stride = source.native.attention_stride * 2 ** (level - 1)
        rows, columns = (-(-side // stride) for side in latent)
        if factor[0] > rows or factor[1] > columns:
            raise ConfigError(
                f"factor {factor[1]}x{factor[0]} (width×height) for level {level} exceeds its grid "
                f"of at most {columns}×{rows} tokens.",
                remedy="Take factors of at most the grid's sides; `todo-compile plan` shows them.",
            )


def check_used(loras: Sequence[Lora], jobs: Sequence[ModelJob]) -> None:
    """Refuse a LoRA that would change nothing, and tell what part of one is left out.

    Raises:
        ModelError: it has no layers for any of the jobs' components.
    """
    names = list(dict.fromkeys(job.source.component for job in jobs))
    for lora in loras:
        left = lora.left_out(names)
        if len(left) == len(lora.layers):
            raise ModelError(
                f"{lora.path} has layers for {', '.join(lora.layers)}, none for "
                f"{', '.join(names)}.",
                remedy="Leave it out, or compile the component that it is for.",
            )
        if left and jobs:
            counted = ", ".join(f"{count} layers for the {name}" for name, count in left.items())
            jobs[0].progress.warn(
                f"{lora.path.name} also has {counted}, which is not compiled here: only what is "
                f"for {', '.join(names)} is fused"
            )


def _precision(source: Source, precision: str | None, progress: Progress) -> str:
    """The precision of a component, and a warning where the one that was chosen cannot work."""
    if not overflows_in_half(source):
        return precision or "fp16"
    if precision is None:
        progress.info("vae precision  fp32: SDXL's own autoencoder leaves the range of fp16")
        return "fp32"
    if precision == "fp16":
        progress.warn(
            "SDXL's own autoencoder leaves the range of fp16 and makes black images; choose fp32 "
            "or bf16 for it, or a model with a repaired autoencoder (force_upcast: false)"
        )
    return precision


def _weights_hash(weights: Weights, progress: Progress) -> str:
    """Identity of the weights; only files take time to read."""
    if weights.kind == "random":
        return models.weights_hash(weights)
    with progress.step("weights hash"):
        return models.weights_hash(weights)


def parameters(source: Source) -> int:
    """Number of parameters, of tensors without content: a second for SDXL, once for a model."""
    return _parameters(json.dumps(dict(source.config)))


@lru_cache(maxsize=256)
def _parameters(config: str) -> int:
    import torch

    from todo_compile._torch import fake_mode
    from todo_compile.models.build import build

    with fake_mode():
        module = build(json.loads(config), torch.float16)
    return sum(parameter.numel() for parameter in module.parameters())
