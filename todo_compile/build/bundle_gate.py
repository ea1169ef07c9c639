"""The gate of a bundle: its own files draw, at every resolution, before they are put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from todo_compile.build.gate import Gate, beyond_memory, judge, why_not_onnxruntime
from todo_compile.bundle.manifest import same_request
from todo_compile.runtime.files import Output

if TYPE_CHECKING:
    from todo_compile.build.bundle_job import BundleJob
    from todo_compile.build.compiler import CompileResult
    from todo_compile.bundle.description import Bundle
    from todo_compile.bundle.verdict import Verdict


@dataclass
class BundleGate:
    """The gate of a request for a bundle.

    Args:
        gate: to keep.
        job: what is built.
    """

    gate: Gate
    job: BundleJob
    _verdicts: list[Verdict] = field(default_factory=list["Verdict"])

    @classmethod
    def of(cls, job: BundleJob) -> BundleGate | None:
        """None if no gate was asked for."""
        planned = next((j.planned for j in job.jobs.values() if j.planned is not None), None)
        gate = Gate.of(job.request, None if planned is None else planned.plan)
        return None if gate is None else cls(gate, job)

    def before(self, old: Bundle | None) -> None:
        """Before the work: let torch judge what onnxruntime could not run.

        Args:
            old: the bundle that stands, whose verdict holds if it was made from equal requests.

        Raises:
            GateError: the gate is not kept.
        """
        jobs = self.job.jobs
        if not (why := why_not_onnxruntime(list(jobs.values()))):
            return
        if old is not None and all(same_request(j.out, j.identity) for j in jobs.values()):
            self._verdicts = self._known(old.gates)
        if not self._verdicts:
            self._verdicts = [self._judge(size, None, why) for size in self.job.denoisers]

    def after(
        self, results: Mapping[str, CompileResult], known: Sequence[Verdict]
    ) -> list[Verdict]:
        """When all files are there: the verdicts for every resolution.

        Args:
            results: finished outputs by name.
            known: verdicts on just these files.

        Raises:
            GateError: the gate is not kept; what was built waits among the parts.
        """
        verdicts = self._verdicts or self._known(known)
        return verdicts or [self._judge(size, results) for size in self.job.denoisers]

    def _known(self, verdicts: Sequence[Verdict]) -> list[Verdict]:
        """Those on this gate, if there is one for each resolution."""
        found = [verdict for verdict in verdicts if verdict.gate == str(self.gate)]
        return found if len(found) == len(self.job.denoisers) else []

    def _judge(
        self, size: str, results: Mapping[str, CompileResult] | None, why: str = ""
    ) -> Verdict:
        """Draw with what there is for one resolution; without `results` in torch."""
        jobs = self.job.jobs
        phases = list(self.job.denoisers[size])
        taken = {name for _, name in phases}
        phases += [
            (0.0, name)
            for name, job in jobs.items()
            if job.source.component == "vae_decoder"
            and str(job.resolution) == size
            and name not in taken
        ]
        outputs = None
        if results is not None:
            made = [results[name] for _, name in phases]
            why = beyond_memory([one.manifest for one in made])
            if not why:
                outputs = {one.path.name: Output(one.path, one.manifest) for one in made}
        named = [(start, jobs[name]) for start, name in phases]
        return judge(self.gate, named, outputs, self.job.progress, why=why)
