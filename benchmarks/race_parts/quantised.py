"""Linear layers in int8 by torchao: a method that goes together with a plan.

torchao is in an environment of its own, no test needs it:

    python -m venv AO && AO/bin/pip install torchao -e .[models]
"""

from __future__ import annotations

import copy

from torch import nn

from race_parts.workloads import Workload

NAME = "torchao int8"
ABOUT = "linear layers in int8, weights and activations (`torchao`)"


def quantised(work: Workload) -> nn.Module:
    """A copy of the module whose linear layers multiply in int8.

    Raises:
        ImportError: torchao is not installed.
    """
    from torchao import quantization  # pyright: ignore[reportMissingImports]

    module = copy.deepcopy(work.module)
    quantization.quantize_(module, quantization.Int8DynamicActivationInt8WeightConfig())
    return module
