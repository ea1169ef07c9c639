"""The ComfyUI nodes by their contract, without ComfyUI: a stand-in has the names that they call."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import sys
import tomllib
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_shapes import Level
from graphs import assert_close
from oracle import pooled_fused_attention

import todo_compile
from todo_compile.errors import ConfigError, TodoError
from todo_compile.options import SAMPLINGS

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"
DEFAULTS = {"factors": "", "sampling": "nearest", "kv_tokens": 0, "res": ""}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """The package, loaded from its folder under a name of the loader's choice."""
    name = "custom_nodes_x_todo"
    spec = importlib.util.spec_from_file_location(name, FOLDER / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    for loaded in [m for m in sys.modules if m.startswith(name)]:
        del sys.modules[loaded]


class Base(torch.nn.Module):
    """A model as the sampler calls it."""

    def __init__(self, denoiser: torch.nn.Module) -> None:
        super().__init__()
        self.diffusion_model: Any = denoiser

    def apply_model(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return self.diffusion_model(x, context, transformer_options={})


class Patcher:
    """A MODEL: the base model, and wrappers of it that a clone has for itself."""

    def __init__(self, model: Base, wrappers: dict[Any, list[Any]] | None = None) -> None:
        self.model, self.wrappers = model, wrappers or {}
        self.clones = 0
        self.model_options: dict[str, Any] = {}

    def clone(self) -> Patcher:
        self.clones += 1
        made = Patcher(self.model, {key: list(all_) for key, all_ in self.wrappers.items()})
        made.model_options = copy.deepcopy(self.model_options)
        return made

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault((kind, key), []).append(wrapper)

    def remove_wrappers_with_key(self, kind: str, key: str) -> None:
        self.wrappers.pop((kind, key), None)

    def sample(self, *args: Any) -> torch.Tensor:
        run: Callable[..., torch.Tensor] = self.model.apply_model
        for wrapper in (w for all_ in self.wrappers.values() for w in all_):
            run = wrapper(self.model, run)
        return run(*args)


def stand_in(calls: list[dict[str, Any]]) -> types.ModuleType:
    """`comfy_api.torch_helpers` with the one function, by its documented arguments."""

    def set_torch_compile_wrapper(
        model: Patcher,
        backend: str,
        options: dict[str, Any] | None = None,
        mode: str | None = None,
        fullgraph: bool = False,
        dynamic: bool | None = None,
    ) -> None:
        calls.append({"model": model, "backend": backend, "options": dict(options or {})})
        model.remove_wrappers_with_key("apply_model", "compile")
        fast = torch.compile(
            model=model.get_model_object("diffusion_model"), backend=backend, options=options,
            mode=mode, fullgraph=fullgraph, dynamic=dynamic,
        )  # fmt: skip

        def wrapper(base: Base, run: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
            def call(*args: Any) -> torch.Tensor:
                slow = base.diffusion_model
                base.diffusion_model = fast
                try:
                    return run(*args)
                finally:
                    base.diffusion_model = slow

            return call

        model.add_wrapper_with_key("apply_model", "compile", wrapper)

    module = types.ModuleType("comfy_api.torch_helpers")
    module.set_torch_compile_wrapper = set_torch_compile_wrapper  # type: ignore[attr-defined]
    return module


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    monkeypatch.setitem(sys.modules, "comfy_api", types.ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.torch_helpers", stand_in(found))
    return found


def compiling(nodes: Any) -> list[Any]:
    """The nodes that compile; `test_runtime_comfyui` has the one that loads a bundle."""
    return [nodes.NODE_CLASS_MAPPINGS[name] for name in ("ToDoCompile", "ToDoPatch")]


def test_contract(nodes: Any) -> None:
    assert nodes.NODE_CLASS_MAPPINGS.keys() == nodes.NODE_DISPLAY_NAME_MAPPINGS.keys()
    assert list(nodes.NODE_DISPLAY_NAME_MAPPINGS.values()) == [
        "ToDo compile",
        "ToDo patch",
        "Load ToDo bundle",
    ]
    for node in compiling(nodes):
        inputs = node.INPUT_TYPES()["required"]
        assert list(inputs) == ["model", *DEFAULTS]
        assert {name: one[1]["default"] for name, one in inputs.items() if len(one) > 1} == DEFAULTS
        assert inputs["model"] == ("MODEL",)
        assert inputs["sampling"][0] == list(SAMPLINGS)
        assert node.RETURN_TYPES == ("MODEL",)
        method = inspect.signature(getattr(node, node.FUNCTION))
        assert list(method.parameters) == ["self", *inputs]
        assert inspect.getfullargspec(node.VALIDATE_INPUTS).args == ["cls", *DEFAULTS]
        assert node.CATEGORY
        assert node.DESCRIPTION


@pytest.mark.parametrize(
    ("name", "widgets", "options"),
    [
        ("ToDoCompile", {}, {"sampling": "nearest"}),
        ("ToDoCompile", {"factors": " 4,2 ", "sampling": "average", "res": "2048"},
         {"factors": "4,2", "sampling": "average", "res": "2048"}),
        ("ToDoPatch", {"kv_tokens": 1024},
         {"sampling": "nearest", "kv_tokens": 1024, "inner": "eager"}),
    ],
)  # fmt: skip
def test_options(nodes: Any, calls: Any, name: str, widgets: Any, options: Any) -> None:
    given = Patcher(Base(Level()))
    node = nodes.NODE_CLASS_MAPPINGS[name]
    (changed,) = getattr(node(), node.FUNCTION)(model=given, **{**DEFAULTS, **widgets})
    assert calls == [{"model": changed, "backend": "todo_inductor", "options": options}]
    assert changed is not given
    assert not given.wrappers
    assert len(changed.wrappers) == 1


def test_attention_is_torchs(nodes: Any, calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However ComfyUI was started; the given model and another node's choice stay."""
    attention: Any = types.ModuleType("comfy.ldm.modules.attention")
    registered = {"pytorch": lambda *args, **keywords: ("torch's", args, keywords)}
    attention.get_attention_function = registered.__getitem__
    monkeypatch.setitem(sys.modules, "comfy.ldm.modules.attention", attention)
    node = nodes.NODE_CLASS_MAPPINGS["ToDoPatch"]()
    given = Patcher(Base(Level()))
    chosen = [node.patch(given, **DEFAULTS)[0].model_options for _ in range(2)]
    overrides = [one["transformer_options"]["optimized_attention_override"] for one in chosen]
    assert overrides[0] is overrides[1], "another function would be compiled anew"
    assert overrides[0](print, 1, mask=2) == ("torch's", (1,), {"mask": 2})
    assert given.model_options == {}
    given.model_options = {"transformer_options": {"optimized_attention_override": print}}
    with pytest.warns(UserWarning, match="Leave that node out"):
        (changed,) = node.patch(given, **DEFAULTS)
    assert changed.model_options["transformer_options"]["optimized_attention_override"] is print
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("used", "warned"), [("attention_sub_quad", True), ("attention_pytorch", False)]
)
def test_attention_of_an_older_comfyui(
    nodes: Any, calls: Any, monkeypatch: pytest.MonkeyPatch, used: str, warned: bool
) -> None:
    """No MODEL has its own there: what it was started with is named, with what to start it with."""
    attention: Any = types.ModuleType("comfy.ldm.modules.attention")
    attention.optimized_attention = types.FunctionType((lambda: None).__code__, {}, used)
    monkeypatch.setitem(sys.modules, "comfy.ldm.modules.attention", attention)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        nodes.NODE_CLASS_MAPPINGS["ToDoPatch"]().patch(Patcher(Base(Level())), **DEFAULTS)
    told = [str(one.message) for one in said if used in str(one.message)]
    assert len(told) == warned
    assert all("--use-pytorch-cross-attention" in text for text in told)
    assert len(calls) == 1


def test_patched_model_against_the_oracle(nodes: Any, calls: Any) -> None:
    torch.manual_seed(0)
    denoiser: Any = Level().eval()
    for part in (denoiser.spatial.blocks[0].attn1.to_q, denoiser.spatial.blocks[0].attn1.to_k):
        part.weight.data *= 8
    given = Patcher(Base(denoiser))
    x, text = torch.randn(2, 4, 12, 8), torch.randn(2, 5, 12)
    todo_compile.clear_reports()
    node = nodes.NODE_CLASS_MAPPINGS["ToDoPatch"]()
    (changed,) = node.patch(given, **{**DEFAULTS, "factors": "2"})
    with torch.no_grad():
        got, dense = changed.sample(x, text), given.sample(x, text)
        with pooled_fused_attention({96: (0, (12, 8), (2, 2))}, "nearest") as seen:
            wanted = given.sample(x, text)
    assert len(calls) == len(seen) == 1
    assert [s.action for r in todo_compile.reports() for s in r.sites] == ["rewritten", "dense"]
    assert given.model.diffusion_model is denoiser, "taken out again"
    assert_close((got,), wanted)
    assert not torch.allclose(got, dense, atol=1e-3)


WRONG = [
    ({"factors": "0"}, "not a positive factor", "4,2,1"),
    ({"factors": "two"}, "not a positive factor", "4,2,1"),
    ({"factors": "2", "kv_tokens": 64}, "both say how far", "Give one of them"),
    ({"kv_tokens": -1}, "must be a positive whole number", "4096"),
    ({"sampling": "median"}, "Unknown sampling 'median'", "nearest-exact"),
    ({"res": "big"}, "is not a resolution", "1920x1080"),
    ({"res": "8"}, "less than two latent cells", "WIDTHxHEIGHT"),
]


@pytest.mark.parametrize(("widgets", "problem", "remedy"), WRONG)
def test_wrong_options(nodes: Any, calls: Any, widgets: Any, problem: str, remedy: str) -> None:
    """Shown at the node before anything runs; and where a value came by a wire, when it runs."""
    given = Patcher(Base(Level()))
    for node in compiling(nodes):
        said = node.VALIDATE_INPUTS(**{**DEFAULTS, **widgets})
        assert problem in said
        assert remedy in said
        with pytest.raises(TodoError) as caught:
            node().patch(given, **{**DEFAULTS, **widgets})
        assert str(caught.value) == said
    assert not calls
    assert given.clones == 0


def test_values_by_a_wire_are_not_known_yet(nodes: Any) -> None:
    node = nodes.NODE_CLASS_MAPPINGS["ToDoCompile"]
    assert node.VALIDATE_INPUTS(**dict.fromkeys(DEFAULTS)) is True
    assert node.VALIDATE_INPUTS(factors="4,2", sampling="blend:0.3") is True
    assert "not a positive factor" in node.VALIDATE_INPUTS(factors="-1", kv_tokens=None)


@pytest.mark.parametrize("module", [None, types.ModuleType("comfy_api.torch_helpers")])
def test_without_the_wrapper(nodes: Any, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "comfy_api", types.ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.torch_helpers", module)
    given = Patcher(Base(Level()))
    with pytest.raises(ConfigError, match="Update ComfyUI"):
        nodes.NODE_CLASS_MAPPINGS["ToDoCompile"]().patch(given, **DEFAULTS)
    assert given.clones == 0


def test_without_the_backend(nodes: Any, calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package on the path but never installed: torch has no entry point to find it by."""

    def missing(name: str) -> Any:
        raise LookupError(name)

    monkeypatch.setattr("todo_compile._torch.dynamo_backend", missing)
    given = Patcher(Base(Level()))
    with pytest.raises(ConfigError, match="pip install"):
        nodes.NODE_CLASS_MAPPINGS["ToDoPatch"]().patch(given, **DEFAULTS)
    assert given.clones == 0
    assert not calls


def test_what_a_bundle_gives(nodes: Any) -> None:
    """ComfyUI moves the modules of what it loads and unloads; an engine stays where it is. Of a VAE
    other nodes ask more than decoding."""
    parts = importlib.import_module(f"{nodes.__name__}.bundle")
    unet = torch.nn.Linear(1, 1)
    denoiser = parts.Denoiser(unet)
    assert denoiser.to("meta").unet is unet
    assert unet.weight.device.type == "cpu"
    assert list(denoiser.modules()) == [denoiser]
    vae = parts.Decoder(unet)
    for name in ("encode", "decode_tiled", "first_stage_model"):
        assert not hasattr(vae, name)
        with pytest.raises(TodoError, match=rf"it has no {name}\.[\s\S]*checkpoint's own VAE"):
            getattr(vae, name)


def test_workflow(nodes: Any) -> None:
    """In the format of the API: our nodes with all of their inputs, wires that lead somewhere."""
    workflow = json.loads((FOLDER / "workflow.json").read_text(encoding="utf-8"))
    ours = [n for n in workflow.values() if n["class_type"] in nodes.NODE_CLASS_MAPPINGS]
    assert [n["class_type"] for n in ours] == ["ToDoCompile"]
    for node in ours:
        values = {k: v for k, v in node["inputs"].items() if k != "model"}
        assert values.keys() == DEFAULTS.keys()
        assert nodes.NODE_CLASS_MAPPINGS[node["class_type"]].VALIDATE_INPUTS(**values) is True
    wires = [v for n in workflow.values() for v in n["inputs"].values() if isinstance(v, list)]
    assert {number for number, _ in wires} <= workflow.keys()


def test_package_description() -> None:
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dependencies"] == ["todo-compile"]
    assert len((FOLDER / "README.md").read_text(encoding="utf-8").splitlines()) <= 60
