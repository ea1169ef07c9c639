"""What came out, by class: rewritten, refused, dense, wrong, crashed; and why it was refused."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from soundness_parts.judge import Verdict
from soundness_parts.truth import classify


@dataclass(slots=True)
class Tally:
    """Counts over many verdicts."""

    outcomes: Counter[str] = field(default_factory=Counter[str])
    classes: dict[str, Counter[str]] = field(
        default_factory=lambda: defaultdict[str, Counter[str]](Counter)
    )
    reasons: dict[str, Counter[str]] = field(
        default_factory=lambda: defaultdict[str, Counter[str]](Counter)
    )
    laws: Counter[str] = field(default_factory=Counter[str])
    invisible: int = 0
    failures: list[Verdict] = field(default_factory=list[Verdict])

    def add(self, verdict: Verdict) -> None:
        self.outcomes[verdict.outcome] += 1
        self.classes[classify(verdict.case)][verdict.outcome] += 1
        self.laws.update(verdict.laws)
        self.invisible += not verdict.visible
        if verdict.failed:
            self.failures.append(verdict)
        elif verdict.detail:
            self.reasons[verdict.outcome][plain(verdict.detail)] += 1

    def rates(self) -> dict[str, float]:
        """Rewritten cases of each class, of all that were captured."""
        return {
            name: counts["rewritten"] / total
            for name, counts in sorted(self.classes.items())
            if (total := sum(counts.values()) - counts["uncaptured"])
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        rates = self.rates()
        return {
            **{name: self.outcomes[name] for name in ("wrong", "crash", "missing")},
            "outcomes": dict(self.outcomes.most_common()),
            "rewritten_without_visible_effect": self.invisible,
            "laws": dict(self.laws.most_common()),
            "classes": {
                name: {"rate": round(rates.get(name, 0.0), 4), **counts}
                for name, counts in sorted(self.classes.items())
            },
            "reasons": {
                outcome: dict(counts.most_common()) for outcome, counts in self.reasons.items()
            },
        }


def plain(reason: str) -> str:
    """A reason without its numbers and names of nodes."""
    return re.sub(r"\d+(\.\d+)?", "#", reason.splitlines()[0])[:140]
