"""Operators that do alike, by canonical name (`ops` has the spellings)."""

from __future__ import annotations

IDENTITY = frozenset(
    (
        "contiguous", "clone", "to", "type", "cpu", "cuda", "detach", "alias", "dropout",
        "float", "double", "half", "bfloat16", "type_as", "_to_copy", "lift_fresh",
        "requires_grad_", "convert_element_type",
    )
)  # fmt: skip
"""One tensor in, the same tokens out; only storage, dtype or (inactive) dropout differ."""

UNARY = frozenset(
    (
        "relu", "silu", "gelu", "sigmoid", "tanh", "exp", "neg", "abs", "sqrt", "rsqrt",
        "hardswish", "hardsigmoid", "mish", "softplus", "elu", "leaky_relu", "square",
        "reciprocal", "log", "sin", "cos", "quick_gelu", "relu6", "clamp", "clip", "nan_to_num",
        "clamp_min", "clamp_max",
        "erf", "logical_not", "bitwise_not", "isnan", "celu", "selu", "softsign", "logsigmoid",
        "hardtanh", "log1p", "expm1",
    )
)  # fmt: skip
"""Acts on every element alone."""

BINARY = frozenset(
    (
        "add", "sub", "mul", "div", "pow", "maximum", "minimum", "where", "masked_fill", "eq",
        "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "rsub", "addcmul", "addcdiv",
        "lerp", "fmod", "remainder", "atan2", "iadd", "imul", "isub",
    )
)  # fmt: skip
"""Acts element by element on several operands that broadcast."""

NEW = frozenset(("empty", "empty_like", "new_empty", "empty_strided", "empty_permuted"))
"""Memory that holds nothing yet."""

ROTATED = frozenset(
    f"comfy_kitchen.{name}"
    for name in ("apply_rope", "apply_rope_split_half", "rms_rope", "rms_rope_split_half")
)
"""ComfyUI's kernels for rotary embeddings: query and key in, both out, token by token."""

LINEAR = frozenset(("linear", "bitsandbytes.gemm_4bit"))
"""Linear layers: (…, channels) and a weight, which bitsandbytes keeps in four bits."""

NORMS = frozenset(
    (
        "layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm", "normalize",
    )
)  # fmt: skip
"""Take the mean and variance out of some axes."""
