"""The race: seconds and memory of one call, dense, rewritten, the bound and peers, in one process.

    python benchmarks/race.py --quick                                  five minutes on two cores
    python benchmarks/race.py --device cuda                            all that a GPU can tell
    python benchmarks/race.py --workload sd15 --px 512 1024 --runtime eager inductor --out race-x
    python benchmarks/race.py --peers --px 1024 --out race-peers       other methods, same UNet
    python benchmarks/race.py --fits                                   what they can be used with
    python benchmarks/race.py --alone --runtime inductor               what the compiler costs
    python benchmarks/race.py --variants dense "torchao int8; 4,2"     int8 too; needs torchao

``--device cuda`` needs torch and this repository, nothing else: it first compares small UNets with
the truth (`race_parts.truth`), and then runs what fits into ``--budget`` seconds; what is left out
is named. The exit status is 1 if a number was wrong, or a variant was not what its name says.

Each heat is one workload at one size in one runtime. Its variants have the same weights and inputs
and are run in turn; each round gives one ratio, and medians and quartiles are written. On a CPU
ratios are of the processor's seconds, which other work disturbs less than the clock's. **The bound
is measured**: keys and values cut to one token. ``results/NAME.json`` is written after every round;
``--add`` keeps the other heats that it has, if the machine is the same.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from common import RESULTS, machine, save
from race_parts import presets, truth
from race_parts.figures import exponents
from race_parts.heat import Rules, run
from race_parts.peers import PEERS, SETTINGS, fits
from race_parts.presets import Heat
from race_parts.runtimes import RUNTIMES, unavailable
from race_parts.variants import Variant, variant
from race_parts.workloads import WORKLOADS, make_module, workload

from todo_compile.errors import TodoError
from todo_compile.precision import PRECISIONS, dtype_of


def _heat(row: dict[str, Any]) -> list[Any]:
    """What tells one heat from another; its variants too, for a few can be run at a time."""
    named = ("workload", "px", "batch", "precision", "runtime", "device", "threads")
    return [*(row[name] for name in named), sorted(row["variants"])]


class Race:
    """Heats one after another, and the file that they are written to."""

    def __init__(self, name: str, settings: dict[str, Any], device: str, budget: float) -> None:
        self.name, self.device = name, device
        self.begun, self.budget, self.wrong = time.monotonic(), budget, False
        self.data: dict[str, Any] = {"settings": settings, "rows": [], "left_out": []}
        self._module: tuple[tuple[str, str], Any] | None = None

    def add(self) -> None:
        """Go on with the file that is there.

        Raises:
            SystemExit: it is of another machine.
        """
        path = RESULTS / f"{self.name}.json"
        if not path.exists():
            return
        held = json.loads(path.read_text(encoding="utf-8"))
        here = machine()
        for what in ("processor", "gpu", "versions"):
            if held["machine"][what] != here[what]:
                raise SystemExit(f"{path.name} is of another {what}: choose another --out.")
        self.data["rows"] = held["rows"]

    def write(self, row: dict[str, Any] | None = None) -> None:
        """Save all rows; `row` takes the place of the one of the same heat."""
        if row is not None:
            kept = [r for r in self.data["rows"] if _heat(r) != _heat(row)]
            self.data["rows"] = [*kept, row]
        self.data["exponents"] = exponents(self.data["rows"])
        save(self.name, self.data)

    def numbers_are_right(self) -> bool:
        """Compare with the truth before anything is timed."""
        found = self.data["truth"] = []
        for case in truth.cases(self.device, "inductor"):
            row = truth.check(case, truth.SMALL, self.device)
            found.append(row)
            self.write()
            worst = max(one["error"] for one in row["sizes"])
            print(f"{'ok   ' if row['ok'] else 'WRONG'} {case.name}: error {worst:.2e}", flush=True)
        return all(row["ok"] for row in found)

    def run(self, heat: Heat) -> None:
        """One heat, or a line of why not."""
        name = f"{heat.workload} {heat.px} px {heat.precision} batch {heat.batch}, {heat.runtime}"
        spent = time.monotonic() - self.begun
        why = unavailable(heat.runtime, self.device)
        if why is None and spent > self.budget:
            why = f"no time was left after {spent:.0f} s"
        if why is None and heat.peers and heat.workload != "sd15":
            why = "the other methods patch diffusers' UNet: take sd15"
        if why is not None:
            self._leave_out(name, why)
            return
        print(f"{name} [{spent:.0f} s]", flush=True)
        try:
            row = self._measure(heat)
        except (ImportError, RuntimeError, TodoError) as error:  # memory, an absent package
            self._leave_out(name, str(error).splitlines()[0])
        except SystemExit as error:  # a variant that is not what it says; the other heats still run
            self.wrong = True
            self._leave_out(name, str(error))
        else:
            for line in described(row):
                print(f"  {line}", flush=True)
        finally:
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()

    def _measure(self, heat: Heat) -> dict[str, Any]:
        key = (heat.workload, heat.precision)
        dtype = dtype_of(heat.precision)
        if self._module is None or self._module[0] != key:
            self._module = None
            gc.collect()
            self._module = key, make_module(heat.workload, dtype, self.device)
        made = self._module[1]
        work = workload(
            heat.workload, made, heat.px, heat.batch, heat.precision, dtype, self.device
        )
        variants: list[Variant] = [variant(name, work) for name in heat.variants]
        if heat.peers:
            variants += [one for one in PEERS if heat.peers is True or one.name in heat.peers]
        rules = Rules(heat.rounds, heat.warmup, self.begun + self.budget, heat.alone)
        when = machine()["when"]
        return run(
            work,
            variants,
            heat.runtime,
            rules,
            keep=lambda row: self.write({**row, "when": when}),
            say=lambda text: print(text, flush=True),
        )

    def _leave_out(self, name: str, why: str) -> None:
        print(f"{name}: left out, {why}", flush=True)
        self.data["left_out"].append({"heat": name, "why": why})
        self.write()


def described(row: dict[str, Any]) -> list[str]:
    """A row for people."""
    lines: list[str] = []
    for name, facts in row["variants"].items():
        taken = facts["processor_seconds"] or facts["seconds"]
        peak = facts["peak_bytes"]
        text = f"{name:<28}" + (f"{taken['median']:9.4g} s" if taken else "")
        text += f"  peak +{peak / 1e9:.2f} GB" if peak is not None else ""
        found = row["dense_over"].get(name)
        if found is not None:
            ratio, removed = found["ratio"], found["removed"]
            text += f"  {ratio['median']:.2f}x [{ratio['q1']:.2f}, {ratio['q3']:.2f}]"
            text += f"  {removed['median']:.0%} of what can be removed" if removed else ""
        lines.append(text)
    for name, found in row["ours"].items():
        lines.append(
            f"{name}: {found['ratio']['median']:.3f} of the bound and its attentions "
            f"({found['attentions']['median']:.4g} s)"
        )
    lines += [f"{name}: nothing to measure, the plan changes nothing new" for name in row["idle"]]
    return lines


def fitting(name: str) -> int:
    """Try every method on the packaged model's UNet."""
    from common import DEMO
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet: Any = UNet2DConditionModel.from_pretrained(DEMO / "unet")
    unet.eval().requires_grad_(False)
    side, text = unet.config.sample_size, unet.config.cross_attention_dim
    rows: list[dict[str, str]] = []
    for setting in SETTINGS:
        rows.append({"name": setting.name, **fits(setting, unet, (side, side), text)})
        print(rows[-1], flush=True)
        save(name, {"model": "demo", "latent": [side, side], "rows": rows})
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--workload", nargs="+", choices=WORKLOADS, default=["sd15"])
    made.add_argument("--px", type=int, nargs="+", default=None)
    made.add_argument("--batch", type=int, nargs="+", default=[1], help="2: one image's guidance")
    made.add_argument("--dtype", choices=PRECISIONS, default="bf16")
    made.add_argument("--runtime", nargs="+", choices=RUNTIMES, default=["eager"])
    made.add_argument("--variants", nargs="+", default=list(presets.STEPS))
    made.add_argument(
        "--peers", nargs="*", default=None, metavar="NAME",
        choices=[one.name for one in PEERS],
        help="other methods too, eagerly, on sd15; all of them without names",
    )  # fmt: skip
    made.add_argument("--fits", action="store_true", help="whether peers compile and export")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--rounds", type=int, default=3, help="0: one cold run of each")
    made.add_argument("--warmup", type=int, default=1, help="calls after the first, not timed")
    made.add_argument("--threads", type=int, default=None)
    made.add_argument("--budget", type=float, default=540, help="seconds; none begins after them")
    made.add_argument("--alone", action="store_true", help="time a plan's attentions alone too")
    made.add_argument("--quick", action="store_true")
    made.add_argument("--add", action="store_true", help="keep the file's other heats")
    made.add_argument("--out", default=None, help="name in benchmarks/results")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the heats; 1 if a number was wrong."""
    chosen = parser().parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no GPU here. --quick runs on the CPU.")
    if chosen.threads is not None:
        torch.set_num_threads(chosen.threads)
    kind = "quick" if chosen.quick else chosen.device
    settings = {k: v for k, v in vars(chosen).items() if k not in ("add", "out")}
    if chosen.fits:
        return fitting(chosen.out or "race-fits")
    race = Race(chosen.out or f"race-{kind}", settings, chosen.device, chosen.budget)
    if chosen.add:
        race.add()
    if chosen.quick:
        heats: Sequence[Heat] = presets.QUICK
    elif chosen.px is None and chosen.device == "cuda":
        heats = presets.CUDA
        race.data["gpu"] = truth.gpu()
        race.wrong = not race.numbers_are_right()
    else:
        peers = () if chosen.peers is None else tuple(chosen.peers) or True
        sizes = product(chosen.workload, chosen.runtime, chosen.batch, chosen.px or [1024])
        heats = [
            Heat(
                name, px, runtime, chosen.dtype, batch, tuple(chosen.variants), chosen.rounds,
                chosen.warmup, runtime == "eager" and peers, chosen.alone,
            )
            for name, runtime, batch, px in sizes
        ]  # fmt: skip
    for heat in heats:
        race.run(heat)
    race.data["seconds"] = time.monotonic() - race.begun
    race.write()
    print(f"in benchmarks/results/{race.name}.json, {race.data['seconds']:.0f} s in all")
    return int(race.wrong)


if __name__ == "__main__":
    sys.exit(main())
