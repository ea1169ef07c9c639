"""Any module through `compile`: the numbers, the form of its call, reuse, and what is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from given_modules import Conditions, Pair, Small, inputs
from torch import Tensor, nn

import todo_compile
from todo_compile.errors import CaptureError, ConfigError, InputError
from todo_compile.runtime.compiled import CompiledError


@dataclass
class Built:
    path: Path
    module: Small
    loaded: Any
    result: Any


def oracle(module: Small, x: Tensor, factor: int) -> Tensor:
    """The attention on every `factor`-th row and column of keys and values, by hand."""
    tokens = module.convolution(x).flatten(2).transpose(1, 2)
    q, k, v = module.qkv(tokens).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
    side = x.shape[-1]
    kept = torch.arange(side * side).view(side, side)[::factor, ::factor].flatten()
    weights = torch.softmax(q @ k[..., kept, :].mT / 8**0.5, -1)
    return module.out((weights @ v[..., kept, :]).transpose(1, 2).flatten(2))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Verified, factor 2."""
    path = tmp_path_factory.mktemp("module") / "small.onnx"
    module = Small()
    x, text = inputs()
    result = todo_compile.compile(module, (x, {"text": text}), out=path, factors=2, verify=True)
    return Built(path, module, todo_compile.load(path), result)


def test_numbers(built: Built) -> None:
    """Right to an oracle that is written apart, in onnxruntime."""
    x, text = inputs()
    with torch.no_grad():
        expected = oracle(built.module, x, 2) + text
    got = built.loaded(x, {"text": text}).sample
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert built.result.report.rewritten == 1
    assert built.result.manifest.verification["sites"]


def test_in_a_module_that_is_copied_or_saved(built: Built) -> None:
    """A copy runs the same engine; what would lack its weights is refused."""
    around = nn.ModuleDict({"small": built.loaded, "last": nn.Linear(2, 2)})
    x, text = inputs()
    copied: Any = copy.deepcopy(around)
    assert copied["small"].session is built.loaded.session
    assert copied["last"].weight is not around["last"].weight
    got = copied["small"](x, {"text": text}).sample
    torch.testing.assert_close(got, built.loaded(x, {"text": text}).sample)
    for lose in (around.state_dict, lambda: pickle.dumps(around)):
        with pytest.raises(CompiledError, match=r"small\.onnx is compiled"):
            lose()


def test_the_module_is_left_as_it_was(built: Built) -> None:
    assert built.module.training
    assert built.module.dropout.training


def test_results_have_the_form_of_the_modules(built: Built) -> None:
    x, text = inputs()
    out = built.loaded(x, conditions={"text": text})
    module = built.module.eval()
    with torch.no_grad():
        wanted = module(x, {"text": text})
    built.module.train()
    assert (out[0] is out.sample, out["nothing"], out.to_tuple()[1]) == (True, None, out.more)
    first, second = out.more["pair"]
    assert type(out.more["pair"])._fields == Pair._fields
    assert first is out.more["pair"].first
    torch.testing.assert_close(second, wanted.more["pair"].second)
    assert type(out.more["list"]) is list
    value, (attended, none) = out.more["list"]
    torch.testing.assert_close(value, wanted.more["list"][0])
    assert attended.shape == wanted.more["list"][1][0].shape
    assert none is None


def test_names_come_from_the_signature(built: Built) -> None:
    manifest = built.result.manifest
    assert [one.name for one in manifest.inputs] == ["x", "conditions_text"]
    assert [one.name for one in manifest.outputs] == [
        "sample", "more_pair_first", "more_pair_second", "more_list_0", "more_list_1_0",
    ]  # fmt: skip
    assert (manifest.model["class"], manifest.model["component"]) == ("Small", "module")
    assert [p["name"] for p in manifest.model["parameters"]] == [
        "x",
        "conditions",
        "double",
        "mask",
    ]


X, TEXT = inputs()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda f: f(X, {"text": TEXT}, double=True), "double was False when this was compiled"),
        (lambda f: f(X, {"text": TEXT}, double=0), "double was False when this was compiled"),
        (lambda f: f(X, {"text": TEXT}, mask=X), "mask was None when this was compiled, not a Ten"),
        (lambda f: f(X), "missing a required argument: 'conditions'"),
        (lambda f: f(X, {"text": TEXT}, other=1), "unexpected keyword argument 'other'"),
        (lambda f: f(X, TEXT), "conditions must be a dict, not a Tensor"),
        (lambda f: f(X, {"text": 3}), "conditions.text must be a tensor, not a int"),
        (lambda f: f(X, {"words": TEXT}), "conditions had text when this was compiled, not words"),
        (lambda f: f(X, {}), "conditions.text must be a tensor, not None"),
        (lambda f: f(X.half(), {"text": TEXT}), "x is float16 instead of float32"),
        (lambda f: f(X[:1], {"text": TEXT}), "x has the shape (1, 4, 8, 8) instead of (2, 4, 8"),
        (lambda f: f(X.to("meta"), {"text": TEXT}), "x lies on meta"),
        (lambda f: f.to("meta"), "cannot be moved to meta"),
    ],
)  # fmt: skip
def test_other_calls_are_refused(built: Built, call: Callable[[Any], Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        call(built.loaded)
    assert says in caught.value.message
    assert caught.value.remedy


def test_equal_is_kept_and_everything_else_is_not(built: Built) -> None:
    x, text = inputs()

    def reasons(module: nn.Module, *args: Any, **options: Any) -> tuple[str, ...]:
        from todo_compile.bundle.manifest import find_reusable

        request = todo_compile.BuildRequest(
            module=module, args=args, out=str(built.path), **{"factors": "2", **options}
        )
        return find_reusable(built.path, request.resolve().identity).reasons  # type: ignore[union-attr]

    class Other(Small):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    def keys(found: tuple[str, ...]) -> list[str]:
        return [one.partition(":")[0] for one in found]

    again = todo_compile.compile(built.module, (x, {"text": text}), out=built.path, factors=2)
    assert again.reused  # type: ignore[union-attr]
    assert reasons(built.module, 2 * x, {"text": text}) == ()
    changed = Small()
    with torch.no_grad():
        changed.out.bias[0] += 1
    assert keys(reasons(changed, x, {"text": text})) == ["weights"]
    # The same class, with another constant in its code.
    assert keys(reasons(Small(bias=1.0), x, {"text": text})) == ["graph"]
    assert "module" in keys(reasons(Other(), x, {"text": text}))
    assert keys(reasons(built.module, x[:1], {"text": text[:1]})) == ["inputs", "batch"]
    assert keys(reasons(built.module, x, {"text": text}, factors="4")) == ["plan.factors"]
    assert keys(reasons(built.module, x, {"text": text}, native_kv_tokens=16)) == [
        "plan.native_kv_tokens"
    ]


def test_dynamic_batch(tmp_path: Path) -> None:
    x, text = inputs()
    out = tmp_path / "x.onnx"
    module = Small().eval()
    todo_compile.compile(
        module, (x, Conditions(text)), out=out, factors=2, dynamic_batch="1..4", verify=True
    )
    loaded = todo_compile.load(out)
    for batch in (1, 3, 4):
        x, text = inputs(batch)
        with torch.no_grad():
            expected = oracle(module, x, 2) + text
        got = loaded(x, Conditions(text)).sample
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match=r"x has the shape \(5, 4, 8, 8\) instead of \(1..4"):
        loaded(*inputs(5)[:1], Conditions(inputs(5)[1]))
    with pytest.raises(InputError, match="scale was"):
        loaded(x, Conditions(text, scale=2.0))


class Odd(nn.Module):
    """Returns what it is told to."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


def raises(_x: Tensor) -> Any:
    raise RuntimeError("of my own")


@pytest.mark.parametrize(
    ("module", "args", "options", "error", "says"),
    [
        (3, (X,), {}, ConfigError, "3 is not a torch module"),
        ("sd15", (X,), {}, ConfigError, "are for a torch module, and 'sd15' is text"),
        (Small(), None, {}, ConfigError, "args is missing"),
        (Small(), X, {}, ConfigError, "args is a Tensor"),
        (Small(), (X,), {}, ConfigError, "missing a required argument: 'conditions'"),
        (Small(), (X[:, :3], {"text": TEXT}), {}, ConfigError, "does not run on these inputs"),
        (Small(), (X, {"text": object()}), {}, ConfigError, "conditions.text is a object"),
        (Odd(raises), (X,), {}, ConfigError, "does not run on these inputs: of my own"),
        (Odd(lambda _: None), (X,), {}, ConfigError, "the result has no tensor"),
        (Odd(lambda x: (x, 3)), (X,), {}, ConfigError, "the result has 3 as 1"),
        (Odd(lambda x: (x, object())), (X,), {}, ConfigError, "1 is a object"),
        (Odd(lambda x: x if x.sum() > 0 else -x), (X,), {}, CaptureError, "Odd cannot be captured"),
        (Odd(lambda x: x[x > 0]), (X,), {}, ConfigError, "axis 0 of output depends on values"),
        (Odd(lambda x: x), (3,), {}, ConfigError, "is called without a tensor"),
        (Odd(lambda x: x), (X,), {"out": "x.txt"}, ConfigError, "says nothing about the format"),
        (Odd(lambda x: x), (X,), {"out": "x/"}, ConfigError, "A module makes one file"),
        (Odd(lambda x: x), (X,), {"res": 64}, ConfigError, "--res is for models by name"),
        (Odd(lambda x: x), (X,), {"batch": 2}, ConfigError, "--batch is for models by name"),
        (None, None, {"model": "sd15", "module": "x.py:y"}, ConfigError, "both say what to build"),
        (None, None, {"module": None}, ConfigError, "Nothing says what to build"),
        (Odd(lambda x: x), (X,), {"target": "sm89"}, ConfigError, "--target is for TensorRT"),
        (Odd(lambda x: x), (X,), {"dense_after": 0.5}, ConfigError, "--dense-after is for bundles"),
        (Odd(lambda x: x), (X,), {"dynamic_batch": 2}, ConfigError, "is no range"),
        (Odd(lambda x: x), (X[:1],), {"dynamic_batch": "1..4"}, ConfigError, "cannot be seen"),
        (Odd(lambda x: x.flatten(0, 1)), (X,), {"dynamic_batch": (1, 4)}, ConfigError, "follows"),
        (Odd(lambda x: x), (X,), {"token_grids": {3: (2, 2)}}, ConfigError, "token_grids says"),
        (Odd(lambda x: x).to("meta"), (X.to_sparse(),), {}, ConfigError, "sparse"),
    ],
)  # fmt: skip
def test_refused(
    module: Any, args: Any, options: dict[str, Any], error: type, says: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:  # noqa: PT012
        if module is not None:
            todo_compile.compile(module, args, **{"out": "x.onnx", **options})
        todo_compile.BuildRequest(out="x.onnx", **options).resolve()
    assert says in caught.value.message
    assert caught.value.remedy
    assert not list(tmp_path.iterdir())


def test_one_tensor_for_two_inputs(tmp_path: Path) -> None:
    """The same tensor twice is two inputs, and a result may be an input or come twice."""

    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor, *rest: Tensor, **more: Tensor) -> Any:
            total = x + 2 * y + rest[0] + more["z"]
            return total, [total, x]

    one = torch.ones(2, 3)
    out = tmp_path / "sum.onnx"
    todo_compile.compile(Sum(), (one, one, one), {"z": one}, out=out)
    loaded = todo_compile.load(out)
    total, (again, x) = loaded(one, 2 * one, 3 * one, z=4 * one)
    assert torch.equal(total, 12 * one)
    assert torch.equal(again, total)
    assert torch.equal(x, one)


def test_weights_without_values() -> None:
    with torch.device("meta"):
        module = nn.Linear(3, 3)
    with pytest.raises(ConfigError, match="has no values"):
        todo_compile.compile(module, (torch.ones(1, 3, device="meta"),), out="x.onnx")


def test_plan() -> None:
    x, text = inputs()
    report = todo_compile.plan(Small(), (x, {"text": text}), native_kv_tokens=16)
    (site,) = [one for one in report.sites if one.kind == "self"]
    assert (site.grid, site.factor, site.module) == ((8, 8), (2, 2), "module")
    with pytest.raises(ConfigError, match="--res is for models by name"):
        todo_compile.plan(Small(), (x, {"text": text}), res=64)


def test_a_tiny_unet_by_itself(tmp_path: Path) -> None:
    """diffusers' own call, its output class, nested conditions; as by name, to the oracle."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=2,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=24,
    ).eval()  # fmt: skip
    args = (torch.randn(2, 4, 16, 16), torch.tensor([500.0]), torch.randn(2, 5, 24))
    out = tmp_path / "unet.onnx"
    built: Any = todo_compile.compile(unet, args, out=out, factors=2)
    assert built.report.rewritten == 3
    rewritten, _ = todo_compile.rewrite(
        unet, args, {"return_dict": False}, options=todo_compile.PlanOptions.create(factors=2)
    )
    with torch.no_grad():
        expected = rewritten(*args, return_dict=False)[0]
    torch.testing.assert_close(todo_compile.load(out)(*args).sample, expected, rtol=1e-4, atol=1e-5)


def test_an_engine_of_heads_without_a_kernel(tmp_path: Path) -> None:
    """Attention of 8 channels a head is built from products."""
    pytest.importorskip("tensorrt_rtx")
    x, text = inputs()
    out = tmp_path / "small.plan"
    built: Any = todo_compile.compile(
        Small().half(), (x.half(), {"text": text.half()}), out=out, factors=2, target="sm89"
    )
    assert built.manifest.targets == ["sm89"]
    assert [(one.name, one.dtype) for one in built.manifest.inputs] == [
        ("x", "float16"), ("conditions_text", "float16"),
    ]  # fmt: skip
