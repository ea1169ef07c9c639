"""``python -m training``: from npm's pictures to a model's folder, resumable at any point."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from training import autoencoder, denoiser, latents
from training.data import Scenes, download, download_names
from training.evaluate import Sampling, evaluate, save_pictures, write
from training.export import export, load_trained, pipeline
from training.stopping import INTERRUPTED
from training.subjects import SUBJECTS, extended, read_subjects, write_subjects

PRESETS: dict[str, tuple[int, denoiser.Recipe, autoencoder.Recipe]] = {
    # 50 minutes of one core for the denoiser, 19 for the autoencoder: what the shipped weights had.
    "cpu": (len(SUBJECTS), denoiser.Recipe(), autoencoder.Recipe()),
    # Untried: sized for half an hour of a data-centre GPU.
    "gpu": (
        400,
        denoiser.Recipe(
            channels=(64, 128, 160),
            heads=(2, 4, 5),
            mix=(
                denoiser.Shape(1, 1, 256, 0.5),
                denoiser.Shape(2, 2, 64, 0.3),
                denoiser.Shape(1, 2, 128, 0.04),
                denoiser.Shape(2, 1, 128, 0.04),
                denoiser.Shape(2, 3, 48, 0.04),
                denoiser.Shape(4, 4, 16, 0.06),
                denoiser.Shape(6, 6, 8, 0.02),
            ),
            ema=0.999,
            minutes=30.0,
        ),
        autoencoder.Recipe(batch=16, minutes=(10.0, 3.0)),
    ),
}
STEPS = ("data", "autoencoder", "denoiser", "export", "evaluate")
PICTURES = "pictures"
"""A step that is done only when asked for: real pictures for benchmarks/fidelity.py."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps that were asked for, by default all, in order; returns the exit code.

    A training that was asked to stop ends the run: what it has learnt so far is no model to export.
    """
    try:
        finished = _run(_arguments().parse_args(arguments))
    except KeyboardInterrupt:  # between the trainings, which take signals themselves
        finished = False
    if finished:
        return 0
    print("Interrupted. The same command goes on from the last checkpoint.", file=sys.stderr)
    return INTERRUPTED


def _run(args: argparse.Namespace) -> bool:
    count, recipe, code_recipe = PRESETS[args.preset]
    if args.minutes is not None:
        recipe = replace(recipe, minutes=args.minutes)
    if args.steps is not None:
        recipe = replace(recipe, steps=args.steps, minutes=0.0)
        code_recipe = replace(code_recipe, steps=args.steps, minutes=(0.0, 0.0))
    if args.rate is not None:
        recipe = replace(recipe, rate=args.rate)
    # torchrun sets it: the denoiser's batches are then shared among the processes.
    workers = int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if workers > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.set_flush_denormal(True)
    if args.threads:
        torch.set_num_threads(args.threads)
    run = args.work / "run"
    run.mkdir(parents=True, exist_ok=True)
    scenes = _scenes(args.work, run, args.subjects or count)
    if args.preset == "gpu":
        scenes.large, scenes.reach, scenes.named = 0.5, 1, 0.4
    if not (run / "code.pt").is_file():
        latents.fit(scenes).save(run / "code.pt")
    code = latents.Code.load(run / "code.pt", device)
    if "autoencoder" in args.steps_wanted:
        trainer = autoencoder.Trainer(code_recipe, scenes, code, run, device)
        trainer.resume()
        if not all(trainer.run(part) for part in autoencoder.PARTS):
            return False
        print({name: round(value, 2) for name, value in trainer.psnr().items()})
    if "denoiser" in args.steps_wanted:
        denoising = denoiser.Trainer(recipe, scenes, code, run, device)
        print("resumed" if denoising.resume() else "from scratch", flush=True)
        if not denoising.run():
            return False
    out = args.out or args.work / "model"
    if "export" in args.steps_wanted:
        size = export(run, out)
        print(f"{out}: {size / 1e6:.1f} MB")
    if PICTURES in args.steps_wanted:
        for side in args.sides:
            print(save_pictures(scenes, side, args.work / PICTURES))
    if "evaluate" in args.steps_wanted:
        pipe = pipeline(load_trained(run)).to(device)
        pipe.set_progress_bar_config(disable=True)
        for side in args.sides:
            report, rounds = evaluate(
                pipe, scenes, Sampling(side=side, samples=args.samples, steps=args.ddim_steps)
            )
            write(report, rounds, scenes.subjects, out)
            print(
                f"{side} px: retrieval {report['retrieval']:.3f} of {report['samples']} "
                f"(real {report['ceiling_real']:.3f}, through the autoencoder "
                f"{report['ceiling_autoencoder']:.3f}, chance {report['chance']:.3f})"
            )
    return True


def _scenes(work: Path, run: Path, count: int) -> Scenes:
    assets = download(work)
    noted = run / "subjects.json"
    if not noted.is_file():
        subjects = SUBJECTS[:count]
        if count > len(SUBJECTS):
            subjects = extended(download_names(work), assets, count)
        write_subjects(subjects, noted)
    return Scenes(assets, read_subjects(noted))


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Train, export and evaluate the demo model; resumes where it stopped (Ctrl-C).",
        formatter_class=functools.partial(argparse.HelpFormatter, width=100),
    )
    add = parser.add_argument
    steps = f"{', '.join(STEPS)}; {PICTURES} (real ones, to measure against)"
    add("steps_wanted", nargs="*", default=list(STEPS), metavar="STEP", help=steps)
    add(
        "--preset",
        choices=sorted(PRESETS),
        default="cpu",
        help="how much of everything; cpu: "
        "69 minutes of training on one core, the recipe of what ships; gpu: 43 minutes, untried",
    )
    add("--subjects", type=int, help="how many subjects, instead of the preset's number")
    add("--minutes", type=float, help="length of the denoiser's training")
    add("--steps", type=int, help="length of each training in steps, instead of minutes")
    add("--rate", type=float, help="peak learning rate of the denoiser")
    add("--device", help="cpu or cuda; by default what there is")
    add("--threads", type=int, help="threads of torch")
    add("--work", type=Path, default=Path("build/training"), help="downloads and checkpoints")
    add(
        "--out",
        type=Path,
        help="folder of the exported model; by default WORK/model: what ships "
        "(todo_compile/models/demo) is replaced only if it is named here",
    )
    add(
        "--sides",
        type=int,
        nargs="*",
        default=[128],
        help="sizes to evaluate, in pixels; above 128 patterns are asked for",
    )
    add("--samples", type=int, default=4, help="samples of each subject and size")
    add("--ddim-steps", type=int, default=10, help="steps of the sampler")
    return parser


if __name__ == "__main__":
    sys.exit(main())
