"""What ``--help`` of each command ends with: lines that can be typed as they are.

A test parses every one of them.
"""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "": (
        "plan --model sd15 --res 2048",
        "--model sd15 --weights random --res 2048 --out engine.plan",
        "--model ./my-model --res 1920x1080 --out unet.onnx --verify",
        "--model ./my-model --res 2048 --out bundle/ --format onnx",
        "build builds.yaml",
        "tune --model ./my-model --res 1024 --budget drift=1e-3 --out plan.json",
    ),
    "compile": (
        "--model sd15 --weights random --res 2048 --out engine.plan",
        "--model ./my-model --res 1920x1080 --out unet.onnx --verify",
        "--model ./my-model --res 1024 --res 2048x1152 --out bundle/ --format onnx",
        "--model ./my-model --res 2048 --factors 4,2 --lora style.safetensors:0.8 --out u.plan",
        "--module nets.py:make --out net.onnx",
    ),
    "build": ("build builds.yaml --dry-run", "build builds.yaml"),
    "plan": (
        "plan --model sd15 --res 2048",
        "plan --model sdxl --res 2048x1152 --factors 2 --plot plan.png",
        "plan --model ./my-model --component vae-decoder --res 2048 --json",
    ),
    "generate": (
        "generate --bundle bundle/ --prompt 'a red apple' --out apple.png",
        "generate --model demo --res 256 --prompt 'a cat' --compare --out cat.png",
    ),
    "drift": (
        "drift --model demo --res 256 --factors 4",
        "drift --model ./my-model --res 1024 --plot drift.png",
    ),
    "tune": (
        "tune --model demo --res 256 --budget drift=1e-4 --quick --out plan.json",
        "tune --model ./my-model --res 1024 --budget speedup=1.5 --scores s.json --out plan.json",
    ),
    "export-triton": (
        "export-triton bundle/ --out repository/",
        "export-triton unet.onnx --out repository/ --name unet",
    ),
    "inspect": ("inspect engine.plan", "inspect bundle/ --json"),
    "models": ("models", "models --json"),
}


def epilog(command: str) -> str:
    """The examples as typer takes them."""
    lines = EXAMPLES[command]
    return "\n\n".join((f"Example{'s' * (len(lines) > 1)}:", *(f"todo-compile {x}" for x in lines)))
