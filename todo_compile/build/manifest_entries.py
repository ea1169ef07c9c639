"""What a manifest says of a job: its sites, and the tensors that go in and out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from todo_compile.batches import BatchRange
from todo_compile.bundle.tensors import Spec, Tensor, tensors

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from todo_compile.build.job import Job


def manifest_site(site: dict[str, Any]) -> dict[str, Any]:
    """What a manifest keeps of one site in a report."""
    kept = (
        "module", "kind", "grid", "level", "heads", "head_dim", "query_tokens", "key_tokens",
        "key_tokens_after", "factor", "action", "reason", "stops",
    )  # fmt: skip
    more = {"beside": site["beside"]} if site["beside"] else {}  # further images among the keys
    return {key: site[key] for key in kept} | more


def output_tensors(job: Job, program: ExportedProgram, names: tuple[str, ...]) -> list[Tensor]:
    """Shapes and dtypes of a graph's outputs; a dynamic first size is the batch."""
    from todo_compile._torch import is_symbolic
    from todo_compile.capture.trace import outputs_of

    def batches(value: Any) -> BatchRange | None:
        if isinstance(job.batch, BatchRange) and value.dim() and is_symbolic(value.shape[0]):
            return job.batch
        return None

    return [
        Tensor(
            name=name,
            shape=(-1, *value.shape[1:]) if batches(value) else tuple(value.shape),
            dtype=str(value.dtype).removeprefix("torch."),
            batches=batches(value),
        )
        for name, value in zip(names, outputs_of(program), strict=True)
    ]


def as_built(found: Sequence[Spec], planned: Sequence[Tensor]) -> list[Tensor]:
    """An engine's tensors as the builder reports them, with the ranges that were planned."""
    known = {spec.name: spec for spec in planned}
    ranges = [known.get(spec.name) for spec in found]
    return tensors(
        found,
        [None if one is None else one.batches for one in ranges],
        [None if one is None else one.texts for one in ranges],
    )
