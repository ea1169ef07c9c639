"""Which twin runs at which step: by the schedule, for every kind of schedule."""

from __future__ import annotations

import gc

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from torch import nn

from todo_compile.errors import ConfigError, InputError
from todo_compile.runtime.switching import PhasedDenoiser


class Named(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, sample, timestep):
        del sample, timestep
        return self.name

    def time_of(self, args, kwargs) -> tuple[float, float]:
        del kwargs
        return float(args[1]), 0.0


class Pipeline:
    def __init__(self, scheduler) -> None:
        self.scheduler = scheduler


def pair(scheduler, share: float) -> tuple[PhasedDenoiser, Pipeline]:
    made = PhasedDenoiser([Named("r"), Named("d")], [0, share])
    pipeline = Pipeline(scheduler)
    made.follow(pipeline)
    return made, pipeline


def run(scheduler, share: float, steps: int, start: int = 0) -> str:
    made, _pipeline = pair(scheduler, share)
    scheduler.set_timesteps(steps)
    return "".join(made(torch.zeros(1), t) for t in scheduler.timesteps[start:])


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(),
        EulerDiscreteScheduler(),
        DPMSolverMultistepScheduler(),
        EulerDiscreteScheduler(use_karras_sigmas=True),
        DDIMScheduler(timestep_spacing="trailing"),
    ],
    ids=["ddim", "euler", "dpm++", "karras", "trailing"],
)
def test_the_share_of_the_steps(scheduler) -> None:
    assert run(scheduler, 0.7, 10) == "r" * 7 + "d" * 3
    assert run(scheduler, 0.7, 50) == "r" * 35 + "d" * 15
    assert run(scheduler, 0.0, 4) == "dddd"
    assert run(scheduler, 1.0, 4) == "rrrr"


def test_second_order_schedules_visit_a_timestep_twice() -> None:
    scheduler = HeunDiscreteScheduler()
    assert run(scheduler, 0.5, 4) == "rrr" + "dddd"  # 0, 1, 1, 2, 2, 3, 3


def test_image_to_image_starts_in_mid_schedule() -> None:
    assert run(DDIMScheduler(), 0.7, 10, start=4) == "rrrddd"


def test_runs_may_break_off_and_change() -> None:
    scheduler = DDIMScheduler()
    made, pipeline = pair(scheduler, 0.5)
    scheduler.set_timesteps(10)
    assert made(None, scheduler.timesteps[0]) == "r"
    scheduler.set_timesteps(4)  # a new run after an interrupted one
    assert "".join(made(None, t) for t in scheduler.timesteps) == "rrdd"
    pipeline.scheduler = EulerDiscreteScheduler()  # users exchange schedulers
    pipeline.scheduler.set_timesteps(6)
    assert "".join(made(None, t) for t in pipeline.scheduler.timesteps) == "rrrddd"


def test_without_a_schedule_it_says_what_to_do() -> None:
    alone = PhasedDenoiser([Named("r"), Named("d")], [0, 0.5])
    with pytest.raises(InputError, match="does not know the schedule") as caught:
        alone(None, 1)
    assert "follow(pipe)" in str(caught.value.remedy)
    for starts in ([0, 1.5], [0, 0.5, 0.2], [0.1, 0.5], [0], []):
        with pytest.raises(ConfigError):
            PhasedDenoiser([Named("r")] * max(2, len(starts)), starts)


def test_more_phases_than_two_and_parts_that_return() -> None:
    scheduler = DDIMScheduler()
    one, two = Named("1"), Named("2")
    made = PhasedDenoiser([one, two, one], [0, 0.25, 0.75], dense=1)
    assert made.dense is two
    made.follow(pipeline := Pipeline(scheduler))
    scheduler.set_timesteps(8)
    assert "".join(made(None, t) for t in scheduler.timesteps) == "11222211"
    assert pipeline.scheduler is scheduler


def test_the_schedule_outlives_its_pipeline() -> None:
    """``from_pipe`` hands the parts on, and the old pipeline may be dropped."""
    scheduler = DDIMScheduler()
    made, pipeline = pair(scheduler, 0.5)
    del pipeline
    gc.collect()
    scheduler.set_timesteps(4)
    assert "".join(made(None, t) for t in scheduler.timesteps) == "rrdd"


def test_another_schedule_is_refused() -> None:
    """A pipeline made from it with a scheduler of its own would switch by the wrong schedule."""
    scheduler = DDIMScheduler()
    made, _pipeline = pair(scheduler, 0.5)
    scheduler.set_timesteps(2)
    other = EulerDiscreteScheduler()
    other.set_timesteps(10)
    with pytest.raises(InputError, match=r"999 is not in the schedule .* DDIMScheduler") as caught:
        made(None, other.timesteps[0])
    assert "pipe.unet.follow(pipe)" in str(caught.value.remedy)
    made.follow(Pipeline(other))
    assert "".join(made(None, t) for t in other.timesteps) == "r" * 5 + "d" * 5


def test_timesteps_may_go_through_half_precision() -> None:
    scheduler = EulerDiscreteScheduler(use_karras_sigmas=True)
    made, _pipeline = pair(scheduler, 0.5)
    scheduler.set_timesteps(10)
    assert made(None, scheduler.timesteps[0].half()) == "r"
    assert made(None, scheduler.timesteps[-1].half()) == "d"
