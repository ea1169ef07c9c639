"""Run a case in one dialect, rewrite it, run it again, and judge."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from soundness_parts.capturing import (
    Captured,
    Tensors,
    capture,
    clones,
    tensors,
)
from soundness_parts.case import Case
from soundness_parts.inputs import inputs
from soundness_parts.module import Attention
from soundness_parts.pruning import run_and_prune
from soundness_parts.rewriting import rewrite
from soundness_parts.sources import Grid
from soundness_parts.truth import Truth, by_call, disagreement, equal_image, ragged
from soundness_parts.writes import SHUFFLES
from todo_compile.options import PlanOptions
from todo_compile.passes.report import SiteReport

FAILURES = ("wrong", "crash", "missing")
TOLERANCE = {"float32": (1e-4, 1e-5), "float64": (1e-8, 1e-9)}
FAULTS = ("failed a check", "internal error")
"""Words of a refusal that is a fault of the compiler's own."""
CHANGED = 1e-3
"""A rewrite whose effect is smaller than this proves nothing."""


@dataclass(slots=True)
class Verdict:
    """What became of a case in a dialect.

    Args:
        outcome: rewritten, refused or dense (all right); wrong, crash or missing (a failure);
            uncaptured (torch itself cannot, or changes the result).
        detail: reason of a refusal, or what is wrong.
        trace: of a crash.
        laws: names of the laws that were tried.
        visible: the rewrite changed the output.
    """

    case: Case
    dialect: str
    outcome: str
    detail: str = ""
    trace: str = ""
    laws: list[str] = field(default_factory=list[str])
    visible: bool = True

    @property
    def failed(self) -> bool:
        return self.outcome in FAILURES


def judge(case: Case, dialect: str) -> Verdict:
    """Everything about one case in one dialect."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Trial(case, dialect).verdict()


class Trial:
    """One case in one dialect; nothing of it is used twice."""

    def __init__(self, case: Case, dialect: str) -> None:
        self.case, self.dialect = case, dialect
        self.model = Attention(case)
        self.inputs = inputs(case)
        self.laws: list[str] = []

    def said(self, outcome: str, detail: str = "", trace: str = "") -> Verdict:
        return Verdict(self.case, self.dialect, outcome, detail, trace, self.laws)

    def crashed(self, error: Exception, when: str = "") -> Verdict:
        first = (str(error).splitlines() or [""])[0]
        words = f"{when}{type(error).__name__}: {first}"
        return self.said("crash", words[:200], traceback.format_exc())

    def eager(self, given: Sequence[Tensor], sites: Sequence[SiteReport]) -> tuple[Tensors, Truth]:
        """The module's own output, with its keys pooled as the rewritten `sites` say."""
        truth = Truth(self.case, sites, [])
        self.model.hook = truth.attend
        try:
            return tensors(self.model(*clones(given))), truth
        finally:
            self.model.hook = None

    def verdict(self) -> Verdict:
        try:
            dense = tensors(run_and_prune(self.model, clones(self.inputs)))
        except Exception as error:  # noqa: BLE001 - a fault of the grammar, counted by its words
            return self.said("uncaptured", f"the module fails: {str(error)[:100]}")
        if not all(torch.isfinite(t).all() for t in dense):
            return self.said("uncaptured", "the dense result is not finite")
        try:
            captured = capture(self.model, self.case, self.inputs, self.dialect)
            before = captured.run(self.inputs)
        except Exception as error:  # noqa: BLE001 - torch's own limits, counted by their words
            return self.said("uncaptured", f"{type(error).__name__}: {str(error)[:100]}")
        if not close(before, dense, self.case):
            return self.said("uncaptured", "the captured graph computes something else")
        if why := self.fixed(captured):
            return self.said("uncaptured", why)
        if self.case.seed % 4 == 0 and (verdict := self.left_alone(captured, before)):
            return verdict
        return self.rewritten(captured, dense, before)

    def other(self) -> Tensors | None:
        """Inputs of another batch or size, which the graph takes as well if it is dynamic."""
        case, (rows, columns) = self.case, self.case.size
        if case.dynamic:
            return inputs(case, batch=case.batch + 2)
        return inputs(replace(case, size=(rows + 2, columns + 1))) if case.sides else None

    def fixed(self, captured: Captured) -> str:
        """Why the dense graph is not as dynamic as it should be; empty if it is."""
        if (given := self.other()) is None:
            return ""
        try:
            dense = captured.run(given)
        except Exception as error:  # noqa: BLE001 - torch's own limits, counted by their words
            return f"a size was fixed: {type(error).__name__}: {str(error)[:100]}"
        truth, _ = self.eager(given, ())
        return "" if close(dense, truth, self.case) else "a size was fixed: other numbers"

    def options(self, factors: Grid) -> PlanOptions:
        case = self.case
        return PlanOptions(
            factors=(factors,),
            sampling=case.sampling,
            masks=case.masks,
            keep_mass=case.keep_mass,
        )

    def left_alone(self, captured: Captured, before: Tensors) -> Verdict | None:
        """Factor 1: the same bits."""
        options = self.options((1, 1))
        try:
            rewrite(captured, options, self.case)
            captured.edited()
            after = captured.run(self.inputs)
        except Exception as error:  # noqa: BLE001 - a crash is what is looked for
            return self.crashed(error, "factor 1: ")
        self.laws.append("factor 1")
        return None if _same(after, before) else self.said("wrong", "factor 1 changes bits")

    def rewritten(self, captured: Captured, dense: Tensors, before: Tensors) -> Verdict:
        case = self.case
        try:
            sites = rewrite(captured, self.options(case.factors), case)
            captured.edited()
            after = captured.run(self.inputs)
        except Exception as error:  # noqa: BLE001 - as above
            return self.crashed(error)
        if not sites:
            return self.said("missing", "no row for its attention")
        if broken := [site.reason for site in sites if any(w in site.reason for w in FAULTS)]:
            return self.said("crash", broken[0])
        done = [site for site in sites if site.action == "rewritten"]
        if not done:
            if not _same(after, before):
                return self.said("wrong", "nothing was rewritten, but the result changed")
            if case.sides and (verdict := self.another_size(captured)):
                return verdict
            worst = max(sites, key=lambda s: s.flops)
            return self.said(worst.action, worst.reason)
        moved = self.moved_by_writing()
        for call, group in enumerate(by_call(case, sites)):
            for site in group:
                if site.action == "rewritten" and (why := disagreement(case, site, call)):
                    return self.said("wrong", why)
                if site.action == "rewritten" and moved and moved[call]:
                    return self.said("wrong", "rewritten, but its tokens were put elsewhere")
        return self.compared(captured, sites, dense, after)

    def moved_by_writing(self) -> list[bool]:
        """Whether what is written in place changes the order of keys or values, by attention."""
        case = self.case
        whole = case.alias == "none" and case.part == "whole"
        if case.write not in SHUFFLES or not whole or case.moment == "end":  # after attention
            return []
        plain = Attention(replace(case, write="none"))
        plain.hook = (without := Truth(case, (), [])).attend
        plain(*clones(self.inputs))
        _, written = self.eager(self.inputs, ())
        return [
            any(not torch.equal(mine, own) for mine, own in zip(one[:2], other[:2], strict=True))
            for one, other in zip(written.seen, without.seen, strict=True)
        ]

    def compared(
        self, captured: Captured, sites: Sequence[SiteReport], dense: Tensors, after: Tensors
    ) -> Verdict:
        case = self.case
        truth, _ = self.eager(self.inputs, sites)
        if not close(after, truth, case):
            what = "ragged numbers" if ragged(case) else "numbers"
            return self.said("wrong", f"{what}: {furthest(after, truth)}")
        pairs = zip(after, dense, strict=True)
        # A number compared with NaN, where a mask at own risk hides all keys, is no larger.
        visible = any(float((a - d).abs().max()) > CHANGED for a, d in pairs)
        if case.dynamic and (verdict := self.another_batch(captured, sites)):
            return verdict
        verdict = self.equal_tokens(captured) or self.said("rewritten")
        verdict.visible = visible
        return verdict

    def another_batch(self, captured: Captured, sites: Sequence[SiteReport]) -> Verdict | None:
        given = self.other()
        assert given is not None
        try:
            after = captured.run(given)
        except Exception as error:  # noqa: BLE001 - as above
            return self.crashed(error, "another batch: ")
        self.laws.append("another batch")
        truth, _ = self.eager(given, sites)
        return None if close(after, truth, self.case) else self.said("wrong", "another batch")

    def another_size(self, captured: Captured) -> Verdict | None:
        """What stays dense with dynamic sides is right for other sides."""
        given = self.other()
        assert given is not None
        try:
            after = captured.run(given)
        except Exception as error:  # noqa: BLE001 - as above
            return self.crashed(error, "another size: ")
        self.laws.append("another size")
        truth, _ = self.eager(given, ())
        return None if close(after, truth, self.case) else self.said("wrong", "another size")

    def equal_tokens(self, captured: Captured) -> Verdict | None:
        """Equal tokens: whatever is left out of them, the result is the dense one."""
        for parameter in (*self.model.stem.parameters(), *self.model.tables()):
            if parameter.dim() > 1:
                parameter.zero_()
        given = inputs(self.case, equal=True)
        dense, truth = self.eager(given, ())
        if not equal_image(self.case, truth.seen):
            return None
        self.laws.append("equal tokens")
        after = captured.run(given)[:1]
        if close(after, dense[:1], self.case):
            return None
        return self.said("wrong", f"equal tokens: {furthest(after, dense[:1])}")


def _same(after: Tensors, before: Tensors) -> bool:
    return all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


AVERAGING = ("average", "blend:0.5")
LARGE_MASKS = ("window_1e4", "text_outer", "alibi_steep")
"""They add −1e4 or so to scores of image keys."""


def close(got: Tensors, wanted: Tensors, case: Case) -> bool:
    """Equal up to rounding, in the case's dtype."""
    half = case.dtype in ("bfloat16", "float16") or case.nesting == "autocast"
    for mine, true in zip(got, wanted, strict=True):
        if mine.shape != true.shape:
            return False
        a, b = mine, true
        single = "upcast" in case.spelling or case.spelling == "graphs.softmax_dtype"
        computed = "float32" if single else case.dtype
        rtol, atol = TOLERANCE.get(computed, TOLERANCE["float32"])
        if case.masks == "pool":  # at the user's own risk: rows whose every key was hidden
            seen = torch.isfinite(b)
            a, b = a[seen], b[seen]
            if not b.numel():
                continue
        largest = float(b.abs().max())
        if half:
            rtol, atol = 0.05, 0.03 * max(1.0, largest)
        elif "half" in (case.key_map, case.value_map) and case.sampling in AVERAGING:
            # The mean of rounded numbers, or the rounded mean: half a unit in fp16's last place.
            rtol, atol = 2e-3, 2e-3 * max(1.0, largest)
        elif case.mask in LARGE_MASKS and case.dtype == "float32":
            # Scores beside −1e4 have no digit finer than 2^-10: log n is rounded to that.
            rtol, atol = 2e-3, 1e-3
        atol *= max(1.0, largest / 10)
        if not torch.allclose(a.double(), b.double(), rtol=rtol, atol=atol):
            return False
    return True


def furthest(got: Tensors, wanted: Tensors) -> str:
    """The largest difference, for people."""
    if [t.shape for t in got] != [t.shape for t in wanted]:
        return f"shapes {[tuple(t.shape) for t in got]} for {[tuple(t.shape) for t in wanted]}"
    gaps = [float((a.double() - b.double()).abs().max()) for a, b in zip(got, wanted, strict=True)]
    return f"off by {max(gaps):.2g}"
