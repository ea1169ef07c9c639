"""What a tuned plan asks of one output, and what it holds the output to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from todo_compile.bundle.plan import TunedPlan, single_phase
from todo_compile.bundle.plan_entry import PlanEntry
from todo_compile.errors import ConfigError

if TYPE_CHECKING:
    from todo_compile.models import Resolution, Source
    from todo_compile.options import PlanOptions
    from todo_compile.passes.report import Report


@dataclass(frozen=True)
class Planned:
    """The phases of a tuned plan that one output runs in; it is the same in all of them.

    Attributes:
        plan: of any number of phases.
        phases: counted from 1.
    """

    plan: TunedPlan
    phases: tuple[int, ...]

    @classmethod
    def whole(cls, plan: TunedPlan) -> Planned:
        """For an output that runs in all steps.

        Raises:
            ConfigError: the plan has several phases.
        """
        single_phase(plan, "one file")
        return cls(plan, (1,))

    @property
    def options(self) -> PlanOptions:
        """For the passes."""
        return self.plan.options[self.phases[0] - 1]

    @property
    def identity(self) -> dict[str, Any]:
        """What makes the output another one, besides its options: what its manifest vouches for."""
        return {"tuned": self.plan.digest, "phases": list(self.phases)}

    @property
    def manifest_plan(self) -> PlanEntry:
        """For the manifest."""
        return self.plan.entry(self.phases)

    def check(self, source: Source, resolution: Resolution) -> None:
        """Refuse another component and another size, which costs nothing.

        Raises:
            ConfigError: says what differs.
        """
        self.plan.check(component=source.component, resolution=str(resolution))

    def check_report(self, report: Report) -> None:
        """Refuse an output in which a site does not do what the plan says.

        Raises:
            ConfigError: names the first such site.
        """
        wanted = sum(choice[:2] != (1, 1) for _, choice in self.options.sites)
        if report.rewritten == wanted:
            return
        refused = [s for s in report.sites if s.action == "refused" and s.kind != "cross"]
        why = f": {refused[0].module}, {refused[0].reason}" if refused else ""
        raise ConfigError(
            f"The plan downsamples {wanted} sites, and here {report.rewritten} could be{why}.",
            remedy="Tune again with this version, or leave the plan out.",
        )
