"""Scores: how much every candidate at every site hurts, by step, and what that does to pictures.

Two measurements, both on prompts that the verification never sees:

* **local**: at every step of dense drawings, each site alone gets each candidate, and the change of
  the guided prediction is taken, mean square. One dense pass serves all of a step
  (`drift.meter`).
* **uniform**: a candidate at all sites, in one part of the schedule only, drawn to the end: the
  mean squared error of the pictures.

A site's share of what a candidate does in a part of the schedule is its share of the local scores.
So the prediction is exact where one part of the schedule has one candidate everywhere, and adds up
elsewhere as if errors were independent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from todo_compile.bundle.files import staged
from todo_compile.errors import ConfigError
from todo_compile.foreign import ForeignError, read_object

FORMAT = "todo-compile scores"
_MAX_BYTES = 2**26
Values = Annotated[list[Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(max_length=4096)]


class Scores(BaseModel):
    """What was measured so far, and what it is valid for.

    Attributes:
        key: model, weights' hash, size and how was drawn; scores of another key are of no use.
        steps: shares of the schedule before each step.
        done: local measurements that are in the sums: batches of pairs × steps.
        local: site → candidate → by step the sum over batches of mean squared changes.
        uniform: candidate → by part of the schedule the mean squared error of pictures.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal["todo-compile scores"] = FORMAT
    version: Literal[1] = 1
    key: dict[str, Any]
    steps: Values = []
    done: Annotated[int, Field(ge=0)] = 0
    local: dict[str, dict[str, Values]] = {}
    uniform: dict[str, dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]] = {}

    def add(self, site: str, candidate: str, step: int, value: float) -> None:
        """Add a local measurement."""
        row = self.local.setdefault(site, {}).setdefault(candidate, [0.0] * len(self.steps))
        row[step] += value

    def save(self, path: Path | None) -> None:
        """A checkpoint: whole, or what was there stays.

        Raises:
            BundleError: it cannot be written.
        """
        if path is None:
            return
        with staged(path) as stage:
            stage.publish(path.name).write_text(
                json.dumps(self.model_dump(mode="json")) + "\n", encoding="utf-8"
            )

    @classmethod
    def load(cls, path: Path | None, key: Mapping[str, Any], *, strict: bool) -> Scores:
        """What stands in a file, if it is valid for `key`; else nothing is known.

        Args:
            path: the file; None or an absent one is empty.
            key: what the scores must be valid for.
            strict: scores of another key are an error, not nothing.

        Raises:
            ConfigError: the file is damaged, or valid for something else.
        """
        if path is None or not path.exists():
            return cls(key=dict(key))
        remedy = "Name another file with --scores, or remove this one."
        try:
            values = read_object(path, _MAX_BYTES)
            if values.get("format") != FORMAT:
                raise ForeignError("it holds no scores")
            found = cls.model_validate_json(json.dumps(values))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}.", remedy=remedy) from error
        except (ForeignError, ValidationError) as error:
            said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise ConfigError(f"The scores {path} are damaged: {said}.", remedy=remedy) from error
        other = [name for name in key if found.key.get(name) != key[name]]
        if not other and found.key.keys() == key.keys():
            _check_shape(found, path, remedy)
            return found
        if strict:
            raise ConfigError(
                f"The scores {path} were measured with another {', '.join(other) or 'setting'}.",
                remedy=remedy,
            )
        return cls(key=dict(key))

    def losses(
        self, sites: Sequence[str], candidates: Sequence[str], parts: Sequence[float]
    ) -> dict[tuple[str, str, int], float]:
        """(site, candidate, part of the schedule) → predicted squared error of pictures.

        Args:
            sites, candidates: to predict for; a site lacks the candidates that its grid has no
                room for.
            parts: shares of the schedule at which its parts begin.
        """
        part_of = [max(i for i, s in enumerate(parts) if s <= at) for at in self.steps]
        found: dict[tuple[str, str, int], float] = {}
        for candidate in candidates:
            for part in range(len(parts)):
                own = {
                    site: sum(
                        v
                        for v, p in zip(self.local[site][candidate], part_of, strict=True)
                        if p == part
                    )
                    for site in sites
                    if candidate in self.local.get(site, {})
                }
                total = sum(own.values())
                # Without drawings only the ranking within the model is known.
                whole = self.uniform.get(candidate, {}).get(str(part), total)
                for site, value in own.items():
                    found[site, candidate, part] = whole * value / total if total else 0.0
        return found


def _check_shape(scores: Scores, path: Path, remedy: str) -> None:
    rows = [row for one in scores.local.values() for row in one.values()]
    if any(len(row) != len(scores.steps) for row in rows) or (scores.done and not rows):
        raise ConfigError(
            f"The scores {path} are damaged: a row has another number of steps.", remedy=remedy
        )
