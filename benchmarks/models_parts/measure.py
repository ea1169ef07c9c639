"""One row: a family's tiny model in both dialects and ONNX, and what the command builds of it."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import todo_compile
from models_parts.families import Family
from models_parts.truth import Pooled, attentions, distance, tensor_of
from tests.graphs import Captured, capture
from todo_compile.build.request import BuildRequest
from todo_compile.capture import trace
from todo_compile.capture.inputs import ExampleInputs, example_inputs, with_pipeline_defaults
from todo_compile.capture.trace import constants_of
from todo_compile.errors import TodoError, first_line
from todo_compile.models import (
    LoadedModel,
    Resolution,
    WeightsChoice,
    find_weights,
    load,
    resolve_component,
    with_frames,
)
from todo_compile.models.components import parse_component
from todo_compile.options import PlanOptions
from todo_compile.passes.report import Report, SiteReport
from todo_compile.runtime.generate import generate

sys.path.append(str(Path(__file__).parents[2] / "tests" / "models"))

import pipeline_zoo as zoo

ALL = ("export", "dynamo", "onnx", "bundle")


def measure(family: Family, root: Path, parts: Iterable[str] = ALL) -> dict[str, Any]:
    """The row of a family.

    Args:
        root: folder for its checkpoint and outputs.
        parts: which of `ALL`; the others are left out of the row.
    """
    torch.manual_seed(0)
    folder = saved(family, root)
    row: dict[str, Any] = {"family": family.key, "title": family.title}
    options = PlanOptions.create(factors=family.factors)
    try:
        model, example = loaded(family, folder)
    except TodoError as error:
        return {**row, "command": first_line(error)}
    fused, products = attentions(example.wrapper, example.args)
    row |= {"model": model.source.class_name, "fused": fused, "products": products}
    truth: Tensor | None = None
    for dialect in (d for d in ("export", "dynamo") if d in parts):
        row[dialect], found = in_dialect(family, example, options, dialect)
        truth = found if truth is None else truth
    built = root / f"{family.key}-bundle".replace(" ", "-")
    if "bundle" in parts and family.component == "unet":
        row["bundle"] = bundle(family, folder, built)
    if "onnx" in parts:
        file = built / f"{model.source.component}.onnx"
        row["onnx"] = in_onnx(family, folder, file, example, truth)
    return row


def saved(family: Family, root: Path) -> Path:
    """The family's tiny pipeline on the disk, with attention far from uniform."""
    folder = root / family.name
    if not folder.exists():
        pipeline = zoo.make(family.name)
        generator = torch.Generator().manual_seed(1)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                _spread(part, generator)
        zoo.save(pipeline, folder)
    return folder


def _spread(module: nn.Module, generator: torch.Generator) -> None:
    """Weights of a size that lets every layer matter: some are zero when a model is made."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        if name.endswith(("to_q.weight", "to_k.weight")) and "motion_modules" not in name:
            parameter.data *= 3  # not of attention over frames, which would multiply rounding


def loaded(family: Family, folder: Path) -> tuple[LoadedModel, ExampleInputs]:
    """The model as the command loads it, and its inputs.

    Raises:
        TodoError: the command cannot.
    """
    source = resolve_component(str(folder), parse_component(family.component))
    source = with_pipeline_defaults(with_frames(source, family.frames))
    weights = find_weights(source, WeightsChoice.parse("auto"), dtype=torch.float32)
    model = load(source, weights, dtype=torch.float32)
    batch = source.pipeline_defaults.batch if source.pipeline_defaults is not None else 2
    return model, example_inputs(model, Resolution.parse(family.size), batch=batch)


def in_dialect(
    family: Family, example: ExampleInputs, options: PlanOptions, dialect: str
) -> tuple[dict[str, Any], Tensor | None]:
    """What the passes do, and how far the result is from the truth; the truth itself."""
    with nullcontext() if dialect == "export" else torch.no_grad():
        try:
            captured = exported(example) if dialect == "export" else dynamo(example)
        except Exception as error:  # noqa: BLE001 -- whatever a model sets off in torch
            return {"captured": first_line(error)[:160]}, None
    axes = example.image_axes if dialect == "export" else {}  # Dynamo has other names of inputs
    report = captured.rewrite(options, token_grids=dict(example.token_grids), image_axes=axes)
    said: dict[str, Any] = {**counts(report)}
    fused = [site for site in in_order(report, captured) if is_fused(site)]
    chosen = [site.action == "rewritten" for site in fused]
    factor = options.factors[0] if options.factors else (1, 1)
    with torch.no_grad():
        dense = tensor_of(example.wrapper(*example.args))
        with Pooled(family.segments, factor, chosen) as pooled:
            truth = tensor_of(example.wrapper(*example.args))
    if pooled.strangers:
        said["wrong"] = [fused[i].name for i in pooled.strangers]
    said["error"] = rounded(distance(tensor_of(captured.run()), truth))
    said["effect"] = rounded(distance(dense, truth))
    return said, truth


def is_fused(site: SiteReport) -> bool:
    """Whether a site is one call of a fused kernel."""
    return site.spelling == "sdpa" or site.reason.startswith("multi_head_attention_forward")


def in_order(report: Report, captured: Captured) -> list[SiteReport]:
    """The sites as the graph calls them."""
    order = {node.name: index for index, node in enumerate(captured.nodes)}
    return sorted(report.sites, key=lambda site: order.get(site.name, len(order)))


def dynamo(example: ExampleInputs) -> Captured:
    """As a ``torch.compile`` backend sees it."""
    return capture(example.wrapper, example.args, "dynamo")


def exported(example: ExampleInputs) -> Captured:
    """As the command captures it."""
    program = trace.capture(example.wrapper, example.args)

    def run() -> tuple[Tensor, ...]:
        program.validate()
        with torch.no_grad():
            found = program.module()(*example.args)
        return (tensor_of(found),)

    return Captured(
        program.graph_module, run, "export", lambda: exported(example), constants_of(program)
    )


def counts(report: Report) -> dict[str, Any]:
    """Numbers of sites, and why those are refused that are."""
    actions = Counter(site.action for site in report.sites)
    reasons = Counter(site.reason for site in report.sites if site.action == "refused")
    cross = sum(site.kind == "cross" for site in report.sites)
    return {
        "found": len(report.sites),
        "rewritten": actions["rewritten"],
        "cross": cross,
        "dense": actions["dense"] - cross,
        "refused": actions["refused"],
        "reasons": dict(sorted(reasons.items())),
    }


def in_onnx(
    family: Family, folder: Path, file: Path, example: ExampleInputs, truth: Tensor | None
) -> dict[str, Any]:
    """The command's ONNX file in onnxruntime against the truth.

    Args:
        file: the denoiser of the bundle, if that was built; else it is built alone.
    """
    from todo_compile.runtime.files import open_output
    from todo_compile.runtime.loading import open_session

    if family.controlnet or not file.exists():  # a ControlNet's bundle has further inputs
        file = file.parent.with_suffix(".onnx")
        try:
            todo_compile.compile(
                str(folder), res=family.size, out=file, precision="fp32",
                component=family.component,
                batch=example.args[0].shape[0] if family.component != "unet" else None,
                frames=family.frames, options=PlanOptions.create(factors=family.factors),
            )  # fmt: skip
        except TodoError as error:
            return {"built": first_line(error)[:200]}
    session: Any = open_session(open_output(file))
    feeds = dict(zip(example.input_names, example.args, strict=True))
    found = next(iter(session.run(feeds).values()))
    return {"error": None if truth is None else rounded(distance(found, truth))}


def bundle(family: Family, folder: Path, out: Path) -> dict[str, str]:
    """What ``--out FOLDER/`` does: "refused" before any work, "failed" in it, "built" (and loaded
    again as a pipeline), or "drawn" by that pipeline; with the reason why it is no more."""
    asked: dict[str, Any] = {
        "res": family.size, "format": "onnx", "precision": "fp32", "factors": family.factors,
        "controlnet": family.controlnet, "frames": family.frames,
    }  # fmt: skip
    state = "refused"
    try:
        wanted: dict[str, Any] = {
            **asked, "model": str(folder), "out": f"{out}/", "res": (family.size,),
        }  # fmt: skip
        BuildRequest(**wanted).resolve(look=True)
        state = "failed"
        todo_compile.compile_bundle(str(folder), out=out, **asked)
        pipeline = todo_compile.load_pipeline(out)
        state = "built"
        draw(family, pipeline)
    except TodoError as error:
        return {"state": state, "why": first_line(error)[:200]}
    return {"state": "drawn", "why": ""}


def draw(family: Family, pipeline: Any) -> None:
    """A picture of a short prompt, with whatever else such a pipeline needs.

    Raises:
        TodoError: it cannot be drawn.
    """
    size = Resolution.parse(family.size)
    given: dict[str, Any] = {
        "image_embeds": torch.ones(1, 32), "negative_image_embeds": torch.zeros(1, 32),
    }  # fmt: skip
    if family.pictured:
        sides = (size.width // family.pictured, size.height // family.pictured)
        for name in ("image", "control_image", "mask_image"):
            given[name] = Image.new("RGB", sides, (128, 90, 30))
    known = inspect.signature(type(pipeline).__call__).parameters
    more = {name: value for name, value in given.items() if name in known}
    generate(pipeline, "a b a", steps=4, resolution=size, **more)


def rounded(value: float) -> float:
    """Two digits: enough to compare, and alike from run to run."""
    return float(f"{value:.1e}")
