"""Every family of models, tiny: what is found, rewritten and refused, how right, what can be built.

python benchmarks/models.py [--only ROW …]     writes results/models.json and docs/models.md

With ``--only`` the other rows stay as they were.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the oracle and the tiny models are the tests'

import torch
from common import save
from models_parts.families import FAMILIES
from models_parts.measure import measure
from models_parts.page import PAGE, page
from models_parts.rows import committed, timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=None, help="rows to measure anew")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = committed("models")
    with tempfile.TemporaryDirectory() as folder:
        for family in FAMILIES:
            if chosen.only is not None and family.key not in chosen.only:
                continue
            rows[family.key] = timed(partial(measure, family, Path(folder)))
    kept = [rows[family.key] for family in FAMILIES if family.key in rows]
    save("models", {"rows": kept})
    PAGE.write_text(page(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
