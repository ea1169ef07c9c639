"""ComfyUI's node for bundles by its contract, without ComfyUI: a stand-in has what it calls."""

from __future__ import annotations

import importlib.util
import inspect
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_bundles
import tiny_pipelines as tiny
import torch

import todo_compile
from todo_compile.bundle.manifest import read
from todo_compile.errors import BundleError, ConfigError, InputError

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"


@pytest.fixture(scope="module")
def node() -> Iterator[Any]:
    name = "custom_nodes_x_todo_bundle"
    spec = importlib.util.spec_from_file_location(name, FOLDER / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module.NODE_CLASS_MAPPINGS["LoadToDoBundle"]
    for loaded in [m for m in sys.modules if m.startswith(name)]:
        del sys.modules[loaded]


@pytest.fixture(scope="module")
def single(bundle: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one denoiser, dense in no phase."""
    folder = tmp_path_factory.mktemp("single") / "sd"
    folder.mkdir()
    files: dict[str, Path] = {}
    for name in ("unet", "vae_decoder", "text_encoder"):
        for part in read(bundle / f"{name}.onnx").files:
            shutil.copy(bundle / part.name, folder)
        shutil.copy(bundle / f"{name}.onnx.json", folder)
        files[name] = folder / f"{name}.onnx"
    return tiny_bundles.make_bundle(folder, model, files)


class Patcher:
    """A MODEL: a clone has wrappers of its own; `step` is one of the sampler's."""

    def __init__(self) -> None:
        self.wrappers: list[Any] = []
        self.base: Any = types.SimpleNamespace(diffusion_model="own", current_patcher=self)
        self.patches: dict[str, Any] = {}

    def clone(self) -> Patcher:
        return Patcher()

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        assert (kind, key) == ("apply_model", "todo_bundle")
        self.wrappers.append(wrapper)

    def step(self, denoise: Callable[..., torch.Tensor], **more: Any) -> torch.Tensor:
        """`denoise` is called as the base model's apply_model, under the wrapper."""
        (wrapper,) = self.wrappers

        class Executor:
            class_obj = self.base

            def __call__(self, **given: Any) -> torch.Tensor:
                return denoise(self.class_obj, **given)

        found = wrapper(Executor(), **more)
        assert self.base.diffusion_model == "own", "the checkpoint's is there again"
        return found


@pytest.fixture(autouse=True)
def comfy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one name of ComfyUI's that the node asks for."""
    module: Any = types.ModuleType("comfy.patcher_extension")
    module.WrappersMP = types.SimpleNamespace(APPLY_MODEL="apply_model")
    monkeypatch.setitem(sys.modules, "comfy.patcher_extension", module)


def test_contract(node: Any) -> None:
    inputs = node.INPUT_TYPES()["required"]
    assert (list(inputs), inputs["model"]) == (["model", "bundle"], ("MODEL",))
    assert node.RETURN_TYPES == ("MODEL", "VAE")
    method = inspect.signature(getattr(node, node.FUNCTION))
    assert list(method.parameters) == ["self", *inputs]
    assert inspect.getfullargspec(node.VALIDATE_INPUTS).args == ["cls", "bundle"]


def test_model_and_vae(node: Any, single: Path) -> None:
    """The bundle's own numbers, through calls as the sampler and the decoding node make them."""
    given = Patcher()
    assert node.VALIDATE_INPUTS(bundle=str(single)) is True
    changed, vae = node().load(given, str(single))
    assert not given.wrappers
    seen: list[Any] = []

    def denoise(base: Any, *args: Any, **keywords: Any) -> torch.Tensor:
        seen.append(base.diffusion_model)
        return base.diffusion_model(*args, **keywords)

    def denoiser(x: torch.Tensor, timesteps: torch.Tensor, **keywords: Any) -> torch.Tensor:
        return changed.step(denoise, x=x, timesteps=timesteps, **keywords)

    unet = todo_compile.load(single, component="unet")
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 16, 16, generator=noise)
    text = torch.randn(2, 77, unet.config.cross_attention_dim, generator=noise)
    found = denoiser(
        x.double(), torch.tensor([500.0, 500.0]), context=text, control=None, transformer_options={}
    )
    torch.testing.assert_close(found, unet(x, torch.tensor(500), text).sample.double())
    assert seen[0].dtype == torch.float32
    latents = torch.randn(1, 4, 16, 16, generator=noise)
    pictures = vae.decode(latents)
    assert pictures.shape == (1, tiny.PIXELS, tiny.PIXELS, 3)
    assert 0 <= pictures.min() < pictures.max() <= 1
    plain = todo_compile.load(single, component="vae_decoder").decode(latents).sample
    torch.testing.assert_close(pictures, (plain / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1))
    times = torch.tensor([500.0, 400.0])
    for more, says in (
        ({"y": text[:, 0]}, "takes no y"),
        ({"control": {"middle": []}}, "takes no ControlNet"),
        ({"timesteps": times}, "different timesteps"),
        ({"transformer_options": {"patches_replace": {"attn1": {1: print}}}}, "patches_replace"),
    ):
        call = {"timesteps": torch.tensor([500.0, 500.0]), "context": text, **more}
        with pytest.raises(InputError, match=says):
            denoiser(x, **call)
    with pytest.raises(InputError, match="decodes alone"):
        vae.encode(pictures)
    with pytest.raises(InputError, match="put another denoiser"):
        changed.step(lambda _base, **_: torch.zeros(1))
    changed.patches["a.weight"] = ["of a LoRA"]
    with pytest.raises(InputError, match="build the bundle with --lora"):
        denoiser(x, torch.tensor([500.0, 500.0]), context=text)


def test_what_it_does_not_take(node: Any, bundle: Path, tmp_path: Path) -> None:
    """A bundle of several phases: no pipeline is there to tell it the step."""
    with pytest.raises(ConfigError, match="several phases"):
        node().load(Patcher(), str(bundle))
    with pytest.raises(BundleError, match="not a finished bundle"):
        node().load(Patcher(), str(tmp_path))
    assert "not a finished bundle" in node.VALIDATE_INPUTS(bundle=str(tmp_path))
    assert node.VALIDATE_INPUTS(bundle=None) is True
