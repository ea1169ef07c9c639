"""What a manifest says of a job: the model, its sites, and the tensors that go in and out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from todo_compile.batches import BatchRange

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from todo_compile.build.job import Job


def model_facts(job: Job) -> dict[str, Any]:
    """What was compiled, for which sizes."""
    return {
        "name": job.source.identifier,
        "class": job.source.class_name,
        "component": job.source.component,
        "pipeline": job.source.pipeline,
        "weights": job.weights.description,
        "weights_hash": job.weights_hash,
        "loras": [{"file": lora.path.name, **lora.describe()} for lora in job.loras],
        "controlnet": job.source.controlnet,
        "random_weights": job.weights.kind == "random",
        "config": dict(job.source.config),
        "resolution": str(job.resolution),
        "batch": job.identity["batch"],
        "precision": job.precision,
    }


def site_facts(site: dict[str, Any]) -> dict[str, Any]:
    """What manifests keep of a report's row."""
    kept = (
        "module", "kind", "grid", "level", "heads", "head_dim", "query_tokens", "key_tokens",
        "key_tokens_after", "factor", "action", "reason", "stops",
    )  # fmt: skip
    return {key: site[key] for key in kept}


def output_tensors(job: Job, program: ExportedProgram, names: tuple[str, ...]) -> list[Any]:
    """Shapes and dtypes of a graph's outputs; with a range of batches all of them have it."""
    from todo_compile.bundle.tensors import Tensor

    batches = job.batch if isinstance(job.batch, BatchRange) else None
    output = next(n for n in reversed(program.graph.nodes) if n.op == "output")
    values = [v.meta["val"] for v in output.args[0]]
    return [
        Tensor(
            name=name,
            shape=tuple(value.shape) if batches is None else (-1, *value.shape[1:]),
            dtype=str(value.dtype).removeprefix("torch."),
            batches=batches,
        )
        for name, value in zip(names, values, strict=True)
    ]


def as_built(found: Sequence[Any], planned: Sequence[Any]) -> list[Any]:
    """An engine's tensors by the builder's word, with the ranges that they were planned for."""
    from todo_compile.bundle.tensors import tensors

    batches = {spec.name: spec.batches for spec in planned}
    return tensors(found, [batches.get(spec.name) for spec in found])
