"""From a request for a file to its job: all that can be checked before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from todo_compile import models
from todo_compile.build.gate import check_gate
from todo_compile.build.job import check_output
from todo_compile.build.model_job import ModelJob, check_used, prepare_component
from todo_compile.build.planned import Planned
from todo_compile.models.components import one_component
from todo_compile.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from todo_compile.build.request import BuildRequest


def prepare(
    request: BuildRequest, progress: Progress | None = None, *, look: bool = False
) -> ModelJob:
    """The job of a request for a file; see `BuildRequest.resolve`."""
    check_output(request)
    tuned = request.tuned
    loras = [models.parse_lora(text) for text in request.lora]
    job = prepare_component(
        request,
        one_component(request.component),
        loras,
        progress or SilentProgress(),
        look=look,
        planned=None if tuned is None else Planned.whole(tuned),
    )
    check_used(loras, [job])
    check_gate(request, tuned, [job])
    return job
