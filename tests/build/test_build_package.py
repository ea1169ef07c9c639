"""AOTInductor packages: what a ``.pt2`` computes, who can run it, and what is refused.

One is compiled, of a small module (a C++ compiler is at work: it takes its seconds).
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from given_modules import Small, inputs
from torch import Tensor

import todo_compile
from todo_compile.build.many.memory import need
from todo_compile.build.request import BuildRequest
from todo_compile.cli.app import main
from todo_compile.errors import BundleError, ConfigError, EngineError, ExportError, InputError
from todo_compile.export.package import export_package
from todo_compile.progress import SilentProgress

FRESH = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "todo_compile":
            raise ImportError("todo_compile is not installed")

sys.meta_path.insert(0, Refuse())
import torch
from torch._inductor import aoti_load_package

call = aoti_load_package(sys.argv[1])
torch.save(call(*torch.load(sys.argv[2])), sys.argv[3])
assert not any(name.startswith("todo_compile") for name in sys.modules)
"""


class Handing(Small):
    """`Small`, that hands on its input and a part of it."""

    def forward(self, x: Tensor, conditions: Any) -> Any:  # type: ignore[override]
        return super().forward(x, conditions).sample, x, x[:1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Handing, Any]:
    """For batches 1 to 4, verified, factor 2."""
    path = tmp_path_factory.mktemp("package") / "small.pt2"
    module, (x, text) = Handing(), inputs()
    result = todo_compile.compile(
        module, (x, {"text": text}), out=path, factors=2, dynamic_batch="1..4", verify=True
    )
    return path, module, result


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_numbers(built: tuple[Path, Handing, Any], batch: int) -> None:
    """Those of the same module, rewritten without a file, and what is handed on is a copy."""
    path, module, _ = built
    x, text = inputs(batch)
    rewritten, _ = todo_compile.rewrite(
        module.eval(), (x, {"text": text}), options=todo_compile.PlanOptions(factors=((2, 2),))
    )
    with torch.no_grad():
        expected = rewritten(x, {"text": text})[0]
        dense = module(x, {"text": text})[0]
    sample, given, first = todo_compile.load(path)(x, {"text": text})
    torch.testing.assert_close(sample, expected, rtol=1e-5, atol=1e-5)
    assert (sample - dense).abs().max() > 1e-3
    assert torch.equal(given, x)
    assert torch.equal(first, x[:1])
    given.zero_()
    first.zero_()
    assert x.abs().min() > 0


def test_the_manifest_says_what_it_is(built: tuple[Path, Handing, Any]) -> None:
    _, _, result = built
    manifest = result.manifest
    version = torch.__version__.partition("+")[0]
    assert manifest.library == f"aotinductor {version}"
    assert manifest.targets[0] == "linux-x86_64"
    assert manifest.request["format"] == "pt2"
    assert manifest.verification["relative_l2"] < 1e-5
    assert "the package against torch" in manifest.verification["summary"]
    assert [f.name for f in manifest.files] == ["small.pt2"]
    assert manifest.inputs[0].text == "1..4, 4, 8, 8"
    assert (result.report.rewritten, manifest.onnx) == (1, {})


def test_torch_alone_runs_it(built: tuple[Path, Handing, Any], tmp_path: Path) -> None:
    """In a fresh process that has no todo-compile, from another folder, under another name."""
    path, _, _ = built
    other = tmp_path / "other.pt2"
    other.write_bytes(path.read_bytes())
    x, text = inputs()
    torch.save((x, text), tmp_path / "in.pt")
    args = [other, tmp_path / "in.pt", tmp_path / "out.pt"]
    subprocess.run([sys.executable, "-I", "-c", FRESH, *args], check=True, timeout=300)
    found = torch.load(tmp_path / "out.pt")
    expected = todo_compile.load(path)(x, {"text": text})[0]
    torch.testing.assert_close(found[0], expected)


def test_no_sources_in_it(built: tuple[Path, Handing, Any]) -> None:
    """They hold paths of the machine that built it, and nobody needs them."""
    path, _, _ = built
    with zipfile.ZipFile(path) as archive:
        assert {Path(name).suffix for name in archive.namelist()} == {"", ".json", ".so"}
    assert [p.name for p in path.parent.iterdir()] == ["small.pt2", "small.pt2.json"]


def test_an_equal_one_is_kept(built: tuple[Path, Handing, Any]) -> None:
    path, module, _ = built
    x, text = inputs()
    again: Any = todo_compile.compile(
        module, (x, {"text": text}), out=path, factors=2, dynamic_batch="1..4"
    )
    assert again.reused
    job: Any = BuildRequest(
        module=module, args=(x, {"text": text}), out=path, factors=3, dynamic_batch="1..4"
    ).resolve()
    assert job.identity["plan"] != again.manifest.request["plan"]
    assert need([job]).bytes > 1e9


def test_inspect(built: tuple[Path, Handing, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(built[0]), "--layers"]) == 0
    shown = capsys.readouterr().out
    assert "package        aotinductor" in shown
    assert "ONNX" not in shown


def test_changed_for(built: tuple[Path, Handing, Any], tmp_path: Path) -> None:
    """Machine code for other processors, or of another torch, is not run."""
    path, _, _ = built
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())

    def with_manifest(**changed: Any) -> None:
        text = path.with_name("small.pt2.json").read_text(encoding="utf-8")
        values = {**json.loads(text), **changed}
        copy.with_name("small.pt2.json").write_text(json.dumps(values), encoding="utf-8")

    with_manifest(targets=["linux-x86_64", "avx4096"])
    with pytest.raises(EngineError, match="needs avx4096, which this machine lacks"):
        todo_compile.load(copy)
    with_manifest(library="aotinductor 1.0")
    with pytest.raises(EngineError, match=r"built with aotinductor 1\.0; here is aotinductor"):
        todo_compile.load(copy)
    with_manifest()
    copy.write_bytes(b"x" + path.read_bytes()[1:])
    with pytest.raises(BundleError, match="its hash differs"):
        todo_compile.load(copy)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"device": "cuda"}, EngineError, "compiled for the CPU, not for cuda"),
        ({"threads": 2}, ConfigError, "takes torch's threads"),
        ({"cuda_graph": True}, ConfigError, "for TensorRT engines"),
        ({"cast": True}, ConfigError, "for components of pipelines"),
    ],
)
def test_options_of_load(
    built: tuple[Path, Handing, Any], options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        todo_compile.load(built[0], **options)


def test_other_sizes_are_refused(built: tuple[Path, Handing, Any]) -> None:
    """torch would run them, and answer with nonsense."""
    x, text = inputs(4)
    with pytest.raises(InputError, match="shape"):
        todo_compile.load(built[0])(x[..., :4], {"text": text})


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"opset": 20}, "--opset is for ONNX files and engines, and x.pt2 is an AOTInductor"),
        ({"target": "sm89"}, "--target is for TensorRT engines, and x.pt2 is an AOTInductor"),
        ({"weight_streaming": True}, "--weight-streaming is for TensorRT engines"),
    ],
)
def test_options_for_other_formats(tmp_path: Path, more: dict[str, Any], says: str) -> None:
    x, text = inputs()
    with pytest.raises(ConfigError, match=says):
        todo_compile.compile(Small(), (x, {"text": text}), out=tmp_path / "x.pt2", **more)


def _without_compiler(patch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder  # noqa: TID251

    found = cpp_builder.cpp_compiler_search.__wrapped__  # behind its cache
    patch.setattr(cpp_builder, "cpp_compiler_search", lambda _: found(("no-such-compiler",)))


def _elsewhere(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("platform.machine", lambda: "sparc")


@pytest.mark.parametrize(
    ("change", "says"),
    [(_without_compiler, "needs a C\\+\\+ compiler"), (_elsewhere, "this is linux-sparc")],
)
def test_machines_that_cannot(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], None],
    says: str,
) -> None:
    """Said before the module is captured."""
    change(monkeypatch)
    x, text = inputs()
    with pytest.raises(ExportError, match=says):
        todo_compile.compile(Small(), (x, {"text": text}), out=tmp_path / "x.pt2")
    assert not list(tmp_path.iterdir())


def test_inputs_that_are_not_contiguous(tmp_path: Path) -> None:
    """The code would read what comes later as if it lay like the example; captures have none."""
    program = torch.export.export(torch.nn.ReLU(), (torch.ones(2, 3).T,))
    with pytest.raises(ExportError, match="input is not contiguous"):
        export_package(program, tmp_path / "x.pt2", progress=SilentProgress())
    assert not list(tmp_path.iterdir())


def test_an_input_that_lies_otherwise(built: tuple[Path, Handing, Any]) -> None:
    x, text = inputs()
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    call = todo_compile.load(built[0])
    torch.testing.assert_close(call(turned, {"text": text}), call(x, {"text": text}))
