"""Entries with lists become single builds; what cannot become one is named by line and entry."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from builds_helpers import builds, document, mistakes
from hypothesis import given
from hypothesis import strategies as st

from todo_compile.build.many.matrix import Build, choose, collisions, expand
from todo_compile.build.request import BuildRequest
from todo_compile.errors import ConfigError

BASE = "defaults: {model: sd15, res: 512, out: 'x-{res}.plan'}\n"


def test_lists_are_axes_and_lists_in_lists_are_values(tmp_path: Path) -> None:
    found = builds(
        tmp_path,
        """
defaults: {model: org/My Model, precision: bf16}
builds:
  - res: [512, [1024, 2048x1152]]
    lora: [null, [a/one.safetensors, "two.safetensors:0.5"]]
    target: [[sm89, sm120]]
    factors: off
    out: o/{model}-{res}-{target}-{precision}-{factors}/
""",
    )
    assert [(b.request.res, b.request.lora) for b in found] == [
        (("512",), ()),
        (("512",), ("a/one.safetensors", "two.safetensors:0.5")),
        (("1024", "2048x1152"), ()),
        (("1024", "2048x1152"), ("a/one.safetensors", "two.safetensors:0.5")),
    ]
    assert {b.request.target for b in found} == {"sm89,sm120"}
    assert found[0].out == "o/My-Model-512-sm89,sm120-bf16-off/"
    assert found[3].out == "o/My-Model-1024+2048x1152-sm89,sm120-bf16-off/"
    assert all(b.request.bundle for b in found)
    assert found[0].axes == ("res", "lora")


def test_a_build_wins_over_defaults_and_null_takes_them_away(tmp_path: Path) -> None:
    text = BASE.replace("res: 512", "res: 512, kv-tokens: 64, batch: 4") + (
        "builds:\n  - {batch: 1..4}\n  - {kv-tokens: null, factors: 4, out: y.plan}\n"
    )
    first, second = (b.request for b in builds(tmp_path, text))
    assert (first.batch, first.kv_tokens, first.factors) == ("1..4", 64, None)
    assert (second.batch, second.kv_tokens, second.factors) == ("4", None, "4")


axis = st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True)


@given(res=axis, batch=axis, opset=axis)
def test_every_combination_once(
    tmp_path_factory: pytest.TempPathFactory, res: list[int], batch: list[int], opset: list[int]
) -> None:
    text = json.dumps(
        {
            "defaults": {"model": "m", "out": "{res}-{batch}-{opset}.onnx", "res": res},
            "builds": [{"batch": batch, "opset": opset}],
        }
    )
    found = builds(tmp_path_factory.mktemp("m"), text)
    wanted = {(f"{r}", f"{b}", o) for r, b, o in itertools.product(res, batch, opset)}
    assert {(b.request.res[0], b.request.batch, b.request.opset) for b in found} == wanted
    assert len(found) == len(wanted)
    assert {b.out for b in found} == {f"{r}-{b}-{o}.onnx" for r, b, o in wanted}
    assert collisions(found) == []


def test_defaults_about_engines_are_for_engines(tmp_path: Path) -> None:
    found = builds(
        tmp_path,
        """
defaults: {model: sd15, res: 512, target: sm89, library: tensorrt_rtx}
builds:
  - out: x.plan
  - out: x.onnx
  - {out: b/, format: onnx}
  - {out: y.onnx, target: sm90}
""",
    )
    assert [b.request.target for b in found] == ["sm89", None, None, "sm90"]
    assert [b.request.library for b in found] == ["tensorrt_rtx", "auto", "auto", "auto"]


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (
            "{resolution: 3}",
            "line 3: build 1: unknown option 'resolution'. Known: model, module, res, out",
        ),
        ("{vae_precision: fp32}", "unknown option 'vae_precision'. Did you mean vae-precision?"),
        ("{quiet: true}", "unknown option 'quiet'"),
        ("{out: null}", "build 1: out is missing. Every build needs model, res and out."),
        ("{opset: high}", "line 3: build 1: opset: 'high' is not possible"),
        ("{verify: perhaps}", "build 1: verify: 'perhaps' is not possible"),
        ("{res: [[[1]]]}", "res must be a value, or a list of values"),
        ("{model: [[a, b]]}", "build 1: model is ['a', 'b'], which is not a path"),
        ("{batch: []}", "batch is an empty list"),
        ("{res: [[]]}", "res: [] is not possible"),
        ("{out: '{batch}.plan'}", "nothing is known of {batch}. Set that option"),
        ("{out: '{out}.plan'}", "nothing is known of {out}"),
    ],
)
def test_mistakes(tmp_path: Path, entry: str, says: str) -> None:
    found = mistakes(tmp_path, f"{BASE}builds:\n  - {entry}\n  - {{res: 1024}}\n")
    assert len(found) == 1
    assert says in found[0]


def test_mistakes_do_not_hide_good_builds(tmp_path: Path) -> None:
    made, wrong = expand(
        document(tmp_path, f"{BASE}builds:\n  - {{opst: 18}}\n  - {{res: 1024}}\n")
    )
    assert [b.out for b in made] == ["x-1024.plan"]
    assert "Did you mean opset?" in str(wrong[0])


def test_one_mistake_of_many_builds_is_said_once(tmp_path: Path) -> None:
    found = mistakes(tmp_path, f"{BASE}builds:\n  - {{batch: [1, 2, 3], opset: high}}\n")
    assert len(found) == 1


def test_too_many(tmp_path: Path) -> None:
    numbers = list(range(1, 40))
    text = f"{BASE}builds:\n  - {{res: {numbers}, batch: {numbers}, opset: [18, 19]}}\n"
    assert "make 3042 builds; a file can have 1000" in mistakes(tmp_path, text)[0]


def test_same_place(tmp_path: Path) -> None:
    text = f"{BASE}builds:\n  - {{batch: [1, 2]}}\n  - {{out: ./a/../x-512.plan}}\n"
    found = [str(one) for one in collisions(builds(tmp_path, text))]
    assert found == [
        "line 3: build 1: several of its builds go to x-512.plan. Tell them apart by placeholders "
        "in out: {batch}.",
        "line 4: build 2: ./a/../x-512.plan is where build 1 (line 3) goes too. Name another out.",
    ]


@pytest.mark.parametrize("name", ["X-512.Plan", "x-512.plan.onnx"])
def test_place_of_another_on_some_disks(tmp_path: Path, name: str) -> None:
    """Where capitals are no other letters; where an engine's own file for onnxruntime lies."""
    text = f"{BASE}builds:\n  - {{batch: 1}}\n  - {{out: {name}}}\n  - {{out: x-512.onnx.onnx}}\n"
    (found,) = collisions(builds(tmp_path, text))
    says = "the same as x-512.plan" if name == "X-512.Plan" else "what x-512.plan has beside it"
    assert f"line 4: build 2: {name} is {says}" in str(found)


def test_inside_a_bundle(tmp_path: Path) -> None:
    text = f"{BASE}builds:\n  - {{out: b/}}\n  - {{out: b/c/x.plan}}\n  - {{out: bc/x.plan}}\n"
    (found,) = collisions(builds(tmp_path, text))
    assert "build 2: b/c/x.plan lies in the bundle b/" in str(found)


EVERYTHING = BuildRequest(
    model="-m", res=("512", "64x32"), out="x/", weights="random:3", component="unet", format="onnx",
    batch="1..4", precision="bf16", vae_precision="fp32", kv_tokens=64, factors="4x2,2",
    sampling="blend:0.5", preset="todo-2x", vae_factors="off", lora=("a.safetensors:0.5", "-b"),
    controlnet=True, t2i_adapter=True, ip_adapter="i.safetensors:0.6", dense_after=0.7, opset=18,
    target="sm89", library="tensorrt_rtx",
    timing_cache=Path("t.cache"), weight_streaming=True, verify=True, force=True, dump=Path("d"),
    masks="pool", text_tokens=256, frames=9, plan="p.json", gate="drift=1e-3",
)  # fmt: skip


_WORDS = """
    --model=-m --res 512 --res 64x32 --out x/ --weights random:3 --component unet --format onnx
    --batch 1..4 --precision bf16 --vae-precision fp32 --kv-tokens 64 --factors 4x2,2
    --sampling blend:0.5 --preset todo-2x --vae-factors off --lora a.safetensors:0.5 --lora=-b
    --controlnet --t2i-adapter --ip-adapter i.safetensors:0.6 --dense-after 0.7 --opset 18
    --target sm89 --library tensorrt_rtx
    --timing-cache t.cache --weight-streaming --verify --force --dump d
    --masks pool --text-tokens 256 --frames 9 --plan p.json --gate drift=1e-3
"""


@pytest.mark.parametrize(
    ("words", "request_"),
    [
        (_WORDS, EVERYTHING),
        ("-m m -r 1 -o o.plan", BuildRequest(model="m", res=("1",), out="o.plan")),
    ],
)
def test_the_command_line_and_a_child_read_the_same(
    words: str, request_: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from todo_compile.build.many.running import _asked
    from todo_compile.cli.app import main
    from todo_compile.errors import StoppedError

    seen: list[BuildRequest] = []

    def resolve(self: BuildRequest, _progress: object) -> object:
        seen.append(self)
        raise StoppedError("seen")

    monkeypatch.setattr(BuildRequest, "resolve", resolve)
    assert main(["compile", *words.split()]) == 130
    asked = _asked(Build("build", 1, request_), False)
    assert [*seen, BuildRequest.model_validate_json(asked)] == [request_, request_]


def test_everything_is_everything() -> None:
    """The test above says a word of every option."""
    fields = BuildRequest.model_fields
    given = {
        key for key in BuildRequest.described() if getattr(EVERYTHING, key) != fields[key].default
    }
    written = {name for name, one in BuildRequest.described().items() if one.panel}
    assert given == written - {"module", "dynamic_batch"}  # those are for other requests


NAMED = """
builds:
  - {model: demo, res: [128, 256], out: "x-{res}.onnx"}
  - {model: demo, res: 128, out: "3"}
  - {model: demo, res: 128, out: last.onnx}
"""


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ((), [1, 2, 3, 4]),
        (("2",), [2]),
        (("4", "1", "4"), [1, 4]),
        (("last.onnx",), [4]),
        (("3",), [3]),  # a number, were there a build of this name elsewhere
    ],
)
def test_a_build_is_called_by_its_number_or_its_output(
    tmp_path: Path, names: tuple[str, ...], chosen: list[int]
) -> None:
    assert [build.number for build in choose(builds(tmp_path, NAMED), names)] == chosen


def test_a_build_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no build 5") as caught:
        choose(builds(tmp_path, NAMED), ["5"])
    assert caught.value.remedy == "It has 1 to 4; --list shows them."
