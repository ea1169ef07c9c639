"""The command ``generate``: parses, calls `todo_compile.runtime.generate`, prints."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from todo_compile import packages
from todo_compile.cli.screen import stderr
from todo_compile.errors import ConfigError

if TYPE_CHECKING:
    from todo_compile.cli.console import ConsoleProgress
    from todo_compile.models import Resolution, Source

_TWIN_NOTE = "dense: the denoiser; the decoder is the bundle's in both"


def generate_command(
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to draw.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="The picture: FILE.png, .webp, .jpg. Of a video: FILE.webp."
        ),
    ],
    bundle: Annotated[
        Path | None, typer.Option("--bundle", "-b", help="Folder that todo-compile built.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Instead of a bundle: a model as for `compile`, rewritten in torch.",
        ),
    ] = None,
    res: Annotated[
        str | None,
        typer.Option(
            "--res",
            "-r",
            help="Pixels, 1024 or WIDTHxHEIGHT: of a bundle one of its sizes. \\[default: a "
            "bundle's first; needed with --model]",
        ),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            help="Of a video: how many frames. \\[default: what a bundle was built for, else the "
            "pipeline's own number]"
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="With --model: fp16, bf16 or fp32. \\[default: fp32]")
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="With --model: a plan from `todo-compile tune`, its phases switched by step."
        ),
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to draw.")] = None,
    image: Annotated[
        Path | None,
        typer.Option(help="A picture to start from, for pipelines that take one (SDXL's refiner)."),
    ] = None,
    tensors: Annotated[
        Path | None,
        typer.Option(
            help="A safetensors file with what other models made for the pipeline, by the names of "
            "its arguments: image_embeds and negative_image_embeds (Kandinsky 2.2), hint, "
            "ip_adapter_image_embeds (2, 1, D), of no picture and of one."
        ),
    ] = None,
    clip_skip: Annotated[
        int | None,
        typer.Option(help="Layers of CLIP's text encoder to leave out at its end.", metavar="N"),
    ] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 30,
    guidance: Annotated[
        float, typer.Option(help="Classifier-free guidance; 1 turns it off.")
    ] = 7.5,
    seed: Annotated[int, typer.Option(help="Of the starting noise.")] = 0,
    scheduler: Annotated[
        str | None,
        typer.Option(help="ddim, euler, euler-a, dpm++, heun, … \\[default: the model's own]"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N. \\[default: a GPU where there is one]")
    ] = None,
    verify: Annotated[
        str, typer.Option(help="full: hash the bundle's files first; size: compare sizes only.")
    ] = "full",
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Draw dense and rewritten from the same seed, side by side, with their "
            "difference and MSE, PSNR, HPF. The dense one is the bundle's dense phase "
            "(--dense-after, or a plan's), --dense-bundle, or with --model the model as it is. "
            "With the bundle's own, both pictures are decoded by the bundle's decoder.",
        ),
    ] = False,
    dense_bundle: Annotated[
        Path | None,
        typer.Option(help="With --compare: a bundle that was built with --factors off."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings.")] = False,
) -> None:
    """Draw a picture with a bundle: on the CPU, or on a GPU."""
    from todo_compile.cli.console import ConsoleProgress

    packages.need("generate", "Drawing")  # before torch, which warns of an absent numpy
    from todo_compile.runtime import generate as drawing
    from todo_compile.runtime.video import check_video

    if (bundle is None) == (model is None):
        raise ConfigError("Give either --bundle or --model.")
    if model is None and precision is not None:
        raise ConfigError("--precision goes with --model: a bundle has its own.")
    if model is None and plan is not None:
        raise ConfigError(
            "--plan goes with --model.", remedy="A bundle has the plan that it was compiled with."
        )
    if dense_bundle is not None and not (compare and bundle is not None):
        raise ConfigError("--dense-bundle goes with --bundle and --compare.")
    drawing.check_settings(steps, guidance, seed)
    drawing.check_picture(out)
    progress = ConsoleProgress(stderr, -1 if quiet else 0)
    options: dict[str, Any] = {
        "negative_prompt": negative_prompt,
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
        "frames": frames,
        **({} if image is None else {"image": drawing.open_picture(image)}),
        **({} if clip_skip is None else {"clip_skip": clip_skip}),
    }
    if tensors is not None:
        from todo_compile.runtime.given import read_tensors

        found = read_tensors(tensors)
        if said := [name for name in found if name in options]:
            raise ConfigError(
                f"{tensors} has {said[0]}, which options say too.", remedy="Leave one of them out."
            )
        options |= found
    shared: dict[str, Any] = {"scheduler": scheduler, "device": device}
    with progress.step("load"):
        if bundle is not None:
            shared["verify"] = verify
            check_video(_check_bundle(bundle, scheduler, device, steps), out, compare=compare)
            ours, dense, size = _from_bundle(bundle, dense_bundle, res, compare, shared)
        else:
            assert model is not None
            if res is None:
                raise ConfigError("--model needs --res.", remedy="For example --res 1024")
            source = _check_model(model, frames, scheduler, device, steps)
            check_video(source.pipeline, out, compare=compare)
            # What a pipeline passes, where its inputs are read off it.
            own = source.pipeline_defaults
            batch = own.batch if own is not None else 2 if guidance > 1 else 1
            ours, dense, size = _from_model(source, res, precision, compare, batch, plan, shared)
    options["resolution"] = size
    facts: dict[str, Any] = {"path": str(out), "seed": seed, "steps": steps}
    if dense is None:
        picture = _draw(progress, "denoise", ours, prompt, options)
        drawing.save_picture(picture, out)
        facts |= {"seconds": picture.seconds, "steps_per_second": picture.rate}
        lines = [drawing.speed(picture)]
    else:
        reference = _draw(progress, "dense", dense, prompt, options)
        picture = _draw(progress, "rewritten", ours, prompt, options)
        measured = drawing.fidelity(picture.pixels, reference.pixels)
        both = drawing.Comparison(reference, picture, measured)
        about = f"seed {seed}, {steps} steps, guidance {guidance:g}, {size}"
        # What else differs between the pictures, as far as it is known.
        decoder = bundle is not None and dense_bundle is None
        notes = [_TWIN_NOTE] if decoder else []
        drawing.save_comparison(both, out, [about, *notes, prompt])
        facts |= {
            "mse": measured.mse,
            "psnr": measured.psnr if measured.mse else None,
            "hpf": measured.hpf,
            "hpf_dense": measured.hpf_reference,
            "seconds": picture.seconds,
            "seconds_dense": reference.seconds,
        }
        lines = [*drawing.measures(both), *notes]
        if decoder:
            facts["decoder"] = "bundle's"
    if json:
        from todo_compile.cli.answers import PictureAnswer

        PictureAnswer(**facts).print()
    elif not quiet:
        for line in [*lines, f"wrote {out}"]:
            stderr.print(line)


def _check_bundle(bundle: Path, scheduler: str | None, device: str | None, steps: int) -> str:
    """Refuse before hashing and loading, which take minutes for big models.

    Returns:
        The class of its pipeline.
    """
    from todo_compile.bundle.bundle import inside, read_bundle
    from todo_compile.runtime import package_session
    from todo_compile.runtime.onnx_session import choose_device
    from todo_compile.runtime.schedulers import check_steps, make_scheduler

    described = read_bundle(bundle)
    if described.kind == "onnx":
        choose_device(device)
    if described.kind == "pt2":
        package_session.check_device(str(bundle), device)
    if any(one.name.startswith("scheduler/") for one in described.light_files):
        folder = bundle if bundle.is_dir() else bundle.parent
        check_steps(make_scheduler(scheduler, inside(folder, "scheduler")), steps)
    return described.pipeline_class


def _check_model(
    model: str, frames: int | None, scheduler: str | None, device: str | None, steps: int
) -> Source:
    """As `_check_bundle`; what is no pipeline is refused when it is loaded."""
    from todo_compile.capture.inputs import with_pipeline_defaults
    from todo_compile.models import resolve_component, with_frames
    from todo_compile.models.components import pipeline_folder
    from todo_compile.runtime.in_process import torch_device
    from todo_compile.runtime.schedulers import check_steps, make_scheduler
    from todo_compile.runtime.torch_pipelines import check_one_stage

    torch_device(device)
    source = resolve_component(model)
    check_one_stage(source)
    source = with_pipeline_defaults(with_frames(source, frames))
    folder = pipeline_folder(source)
    if source.file is not None:
        check_steps(make_scheduler(scheduler, source.file.scheduler), steps)
    elif folder is not None and (folder / "scheduler").is_dir():
        check_steps(make_scheduler(scheduler, folder / "scheduler"), steps)
    return source


def _from_bundle(
    bundle: Path,
    dense_bundle: Path | None,
    res: str | None,
    compare: bool,
    shared: dict[str, Any],
) -> tuple[Any, Any, Resolution]:
    from todo_compile import load_pipeline
    from todo_compile.bundle.bundle import denoisers, read_bundle
    from todo_compile.models import Resolution

    described = read_bundle(bundle)
    size = Resolution.parse(res or described.resolution)
    # One alone: engines of other sizes would only take memory. A size that is absent is refused.
    shared["res"] = str(size)
    if compare and dense_bundle is None:
        folder = bundle if bundle.is_dir() else bundle.parent
        if len({manifest.dense for manifest in denoisers(described, folder)}) < 2:
            raise ConfigError(
                f"{bundle} has no dense denoiser to compare another with.",
                remedy="Build it with --dense-after, or build another bundle with --factors off "
                "and give it as --dense-bundle.",
            )
    if dense_bundle is not None:
        others = read_bundle(dense_bundle).resolutions
        if str(size) not in others:
            raise ConfigError(
                f"{dense_bundle} was built for {', '.join(others)}, not for {size}.",
                remedy="Build both for one resolution.",
            )
    ours = load_pipeline(bundle, **shared)
    if not compare:
        return ours, None, size
    if dense_bundle is not None:
        return ours, load_pipeline(dense_bundle, **shared), size
    # The dense phase is loaded already, and everything else is the same.
    dense = type(ours)(**{**_parts(ours), **_dense_parts(ours)})
    return ours, dense, size


def _parts(pipeline: Any) -> dict[str, Any]:
    """What to make the same pipeline of: its components and settings."""
    parts = dict(pipeline.components)
    known = inspect.signature(type(pipeline).__init__).parameters
    return {**{k: v for k, v in pipeline.config.items() if k in known}, **parts}


def _dense_parts(pipeline: Any) -> dict[str, Any]:
    found = {name: getattr(pipeline, name, None) for name in ("unet", "transformer")}
    return {name: dense for name, part in found.items() if (dense := getattr(part, "dense", None))}


def _from_model(
    source: Source,
    res: str,
    precision: str | None,
    compare: bool,
    batch: int,
    plan: Path | None,
    shared: dict[str, Any],
) -> tuple[Any, Any, Resolution]:
    from todo_compile.bundle.plan import TunedPlan
    from todo_compile.models import Resolution
    from todo_compile.precision import dtype_of
    from todo_compile.runtime.in_process import check_plan, plan_pipeline, rewrite_pipeline
    from todo_compile.runtime.torch_pipelines import torch_pipeline

    size = Resolution.parse(res)
    tuned = None if plan is None else TunedPlan.load(plan)
    if tuned is not None:  # before anything is loaded
        check_plan(tuned, source, size, dtype=dtype_of(precision or "fp32"))
    ours = torch_pipeline(source, precision=precision or "fp32", **shared)
    dense = None
    if compare:
        dense = type(ours)(**_parts(ours))
    if tuned is None:
        reports = (rewrite_pipeline(ours, source, size, batch=batch, options=None),)
    else:
        reports = plan_pipeline(ours, source, size, batch=batch, plan=tuned)
    for report in reports:
        stderr.print(report.summary(), style="dim")
    return ours, dense, size


def _draw(
    progress: ConsoleProgress, name: str, pipeline: Any, prompt: str, options: dict[str, Any]
) -> Any:
    from todo_compile.runtime.generate import generate, speed

    with progress.step(name) as step:

        def on_step(done: int, total: int) -> None:
            step.update(done, total, f"step {done}/{total}")

        picture = generate(pipeline, prompt, on_step=on_step, **options)
        step.note(speed(picture))
    return picture
