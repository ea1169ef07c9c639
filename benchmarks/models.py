"""Every family of models, tiny: what is found, rewritten and refused, how right, what can be built.

python benchmarks/models.py [--only NAME …]     writes results/models.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the oracle and the tiny models are the tests'

import torch
from common import save
from models_parts.families import FAMILIES
from models_parts.measure import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=None, help="rows to print, nothing is written")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for family in FAMILIES:
            if chosen.only is not None and family.key not in chosen.only:
                continue
            start = time.perf_counter()
            rows.append(measure(family, Path(folder)))
            print(rows[-1], f"{time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    if chosen.only is None:
        save("models", {"rows": rows})


if __name__ == "__main__":
    main()
