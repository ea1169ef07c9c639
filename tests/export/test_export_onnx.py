"""The ONNX file computes what the graph computes, and stays whole wherever it goes."""

from __future__ import annotations

import gc
import logging
import shutil
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from export_helpers import Recorder, TinyNet, random_input
from torch import Tensor, nn

from todo_compile import packages
from todo_compile.errors import BundleError, ExportError, MissingPackageError
from todo_compile.export._lower import lowered
from todo_compile.export.onnx import data_name, export_onnx

TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3}


def capture(module: nn.Module, *args: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(module.eval(), args)


def run(path: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def export(
    program: torch.export.ExportedProgram,
    path: Path,
    progress: Recorder,
    opset: int = 23,
    external_over: int = 10**9,
):
    return export_onnx(
        program,
        path,
        opset=opset,
        input_names=["x"],
        output_names=["y"],
        progress=progress,
        external_over=external_over,
    )


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("opset", [18, 21, 23])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_same_numbers_as_torch(tmp_path: Path, progress: Recorder, dtype: torch.dtype, opset: int):
    torch.manual_seed(0)
    module = TinyNet().to(dtype)
    x = random_input(dtype)
    path = tmp_path / "m.onnx"
    external_over = 0 if dtype == torch.float16 else 10**9
    info = export(capture(module, x), path, progress, opset=opset, external_over=external_over)
    expected = module(x)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(run(path, x), expected, rtol=tolerance, atol=tolerance)
    assert info.opset == opset == onnx.load(path, load_external_data=False).opset_import[0].version
    assert info.files == ((data_name(path),) if external_over == 0 else ()) + (path.name,)
    assert sorted(info.files) == sorted(p.name for p in tmp_path.iterdir())
    assert info.bytes == sum(p.stat().st_size for p in tmp_path.iterdir())


@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_stays_one_operator_with_its_scale(
    tmp_path: Path, progress: Recorder, scale: float | None
):
    path = tmp_path / "m.onnx"
    info = export(capture(TinyNet(scale=scale), random_input()), path, progress)
    assert info.ops["Attention"] == 1
    assert "Softmax" not in info.ops
    nodes = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    node = next(n for n in nodes.node if n.op_type == "Attention")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes.get("scale") == (None if scale is None else pytest.approx(scale))
    shapes = {v.name: len(v.type.tensor_type.shape.dim) for v in nodes.value_info}
    assert [shapes[name] for name in node.input[:3]] == [4, 4, 4]


def test_older_opset_spells_attention_out(tmp_path: Path, progress: Recorder):
    info = export(capture(TinyNet(), random_input()), tmp_path / "m.onnx", progress, opset=18)
    assert "Attention" not in info.ops
    assert info.ops["Softmax"] == 1


def test_inputs_and_outputs_have_their_names(tmp_path: Path, progress: Recorder):
    path = tmp_path / "m.onnx"
    export(capture(TinyNet(), random_input()), path, progress)
    graph = onnx.load(path).graph
    assert ([v.name for v in graph.input], [v.name for v in graph.output]) == (["x"], ["y"])


def test_nothing_is_left_that_does_nothing(tmp_path: Path, progress: Recorder):
    info = export(capture(TinyNet(), random_input()), tmp_path / "m.onnx", progress)
    assert {"Identity", "Constant", "Div", "Dropout"} & set(info.ops) == set()


def test_no_path_of_the_building_machine(tmp_path: Path, progress: Recorder):
    path = tmp_path / "m.onnx"
    export(capture(TinyNet(), random_input()), path, progress)
    scopes = [p.key for n in onnx.load(path).graph.node for p in n.metadata_props]
    assert "pkg.torch.onnx.name_scopes" in scopes  # where a node comes from is still told
    data = path.read_bytes()
    for place in (Path(__file__).parent, Path(torch.__file__).parent):
        assert str(place).encode() not in data
    assert b'.py", line ' not in data


def test_moved_folder_keeps_working(tmp_path: Path, progress: Recorder):
    module, x = TinyNet(), random_input()
    (tmp_path / "a").mkdir()
    export(capture(module, x), tmp_path / "a" / "m.onnx", progress, external_over=0)
    shutil.move(tmp_path / "a", tmp_path / "b")
    torch.testing.assert_close(run(tmp_path / "b" / "m.onnx", x), module(x), rtol=1e-5, atol=1e-5)


def test_external_weights_are_referred_to_by_their_bare_name(tmp_path: Path, progress: Recorder):
    path = tmp_path / "m.onnx"
    export(capture(TinyNet(), random_input()), path, progress, external_over=0)
    model = onnx.load(path, load_external_data=False)
    external = [t for t in model.graph.initializer if t.external_data]
    assert external
    for tensor in external:
        entries = {e.key: e.value for e in tensor.external_data}
        assert entries["location"] == "m.onnx.data"
        assert int(entries["offset"]) % 4096 == 0


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(4, 4, 15, padding=7)
        self.two = nn.Conv2d(4, 4, 15, padding=7)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


def test_tied_weights_are_written_once(tmp_path: Path, progress: Recorder):
    module, x = Tied(), random_input()
    path = tmp_path / "m.onnx"
    export(capture(module, x), path, progress, external_over=0)
    assert (tmp_path / "m.onnx.data").stat().st_size == module.one.weight.nbytes
    torch.testing.assert_close(run(path, x), module(x), rtol=1e-4, atol=1e-4)


def test_weights_made_when_asked_for_are_not_mixed_up(tmp_path: Path):
    # Their memory is freed after each write and given to the next: it must not pass for the same.
    import numpy as np
    import onnx_ir as ir

    from todo_compile.export._external import write_external

    def lazy(index: int) -> ir.LazyTensor:
        return ir.LazyTensor(
            lambda: ir.tensor(np.full(4096, index, np.float32)),
            dtype=ir.DataType.FLOAT,
            shape=ir.Shape([4096]),
            name=f"w{index}",
        )

    values = [ir.Value(name=f"w{i}", const_value=lazy(i), shape=ir.Shape([4096])) for i in range(5)]
    graph = ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 23})
    write_external(ir.Model(graph, ir_version=10), tmp_path / "w.data", lambda _done: None)
    for index, value in enumerate(values):
        assert value.const_value is not None
        np.testing.assert_array_equal(value.const_value.numpy(), np.full(4096, index))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_keep_their_bits(tmp_path: Path, progress: Recorder, dtype: torch.dtype):
    import onnx_ir as ir

    module = TinyNet().to(dtype)
    path = tmp_path / "m.onnx"
    export(capture(module, random_input(dtype)), path, progress, external_over=0)
    model = ir.load(path)
    stored = model.graph.initializers["enter.weight"].const_value
    assert stored is not None
    bits = module.enter.weight.detach().view(torch.int16).numpy().tobytes()
    assert stored.tobytes() == bits


def test_the_callers_program_does_not_change(tmp_path: Path, progress: Recorder):
    program = capture(TinyNet(), random_input())
    before = str(program.graph)
    export(program, tmp_path / "m.onnx", progress, external_over=0)
    assert str(program.graph) == before
    assert torch.isfinite(program.module()(random_input())).all()


def test_nothing_holds_the_weights_afterwards(tmp_path: Path, progress: Recorder):
    program = capture(TinyNet(), random_input())
    weights = [weakref.ref(one) for one in program.state_dict.values()]
    export(program, tmp_path / "m.onnx", progress)
    del program
    gc.collect()
    assert len(weights) == 8
    assert [one().shape for one in weights if one() is not None] == []


def test_short_cut_gives_the_graph_of_the_long_way():
    from todo_compile.export.onnx import _simplify, _torch_export

    program = capture(TinyNet(), random_input())
    short = lowered(program)
    assert short is not None
    counts: list[Counter[str]] = []
    for form in (short, program):
        model = _torch_export(form, 23, ["x"], ["y"])
        _simplify(model)
        counts.append(Counter(node.op_type for node in model.graph))
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.half().float(),
        lambda x: x.float(),
        lambda x: x.half().to(torch.float32) + 1,
        lambda x: torch.cat([x, x.to(torch.float32)]).to(torch.float64),
    ],
)
def test_casts_survive(tmp_path: Path, progress: Recorder, function: Callable[[Tensor], Tensor]):
    module, x = Function(function), random_input()
    export(capture(module, x), tmp_path / "m.onnx", progress)
    assert progress.infos == []
    torch.testing.assert_close(run(tmp_path / "m.onnx", x), module(x))


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda x: (x * 2).add_(1) - x, 0),  # in place: known beforehand
        (lambda x: x.std(-1), 1),  # no translation: found out
    ],
)
def test_what_the_short_cut_cannot_do_goes_the_long_way(
    tmp_path: Path, progress: Recorder, function: Callable[[Tensor], Tensor], told: int
):
    module, x = Function(function), random_input()
    export(capture(module, x), tmp_path / "m.onnx", progress)
    assert sum("decomposing the graph first" in text for text in progress.infos) == told
    torch.testing.assert_close(run(tmp_path / "m.onnx", x), module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x > 0).masked_fill(x > 1, False).float(),
        lambda x: (x > 0).masked_fill(x < -1, True).float(),
        lambda x: (x > 0).clone().masked_fill_(x[:1] > 1, False).float(),
        lambda x: torch.where(x > 1, x[:1] > 0, x < -1).float(),
    ],
)
def test_choices_between_truths(
    tmp_path: Path, progress: Recorder, function: Callable[[Tensor], Tensor]
):
    x = torch.randn(3, 64)
    export(capture(Function(function), x), tmp_path / "x.onnx", progress)
    assert torch.equal(run(tmp_path / "x.onnx", x), function(x))


def test_no_onnx_form_at_all(tmp_path: Path, progress: Recorder):
    program = capture(Function(lambda x: torch.linalg.qr(x)[0]), random_input())
    with pytest.raises(ExportError, match=r"no ONNX form.*qr"):
        export(program, tmp_path / "m.onnx", progress)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opset", [17, 24])
def test_opset_out_of_range(tmp_path: Path, progress: Recorder, opset: int):
    program = capture(Function(lambda x: x + 1), random_input())
    with pytest.raises(ExportError, match="Choose 18 to 23"):
        export(program, tmp_path / "m.onnx", progress, opset=opset)


def test_absent_package(tmp_path: Path, progress: Recorder, monkeypatch: pytest.MonkeyPatch):
    program = capture(Function(lambda x: x + 1), random_input())
    monkeypatch.setattr(packages, "installed", lambda name: name != "onnxscript")
    with pytest.raises(MissingPackageError, match=r"onnxscript.*\n.*todo-compile\[onnx\]"):
        export(program, tmp_path / "m.onnx", progress)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("full", ["m.onnx.data", "m.onnx"])
def test_disk_full(tmp_path: Path, progress: Recorder, full: str):
    (tmp_path / full).symlink_to("/dev/full")
    with pytest.raises(BundleError, match="Disk full"):
        export(capture(TinyNet(), random_input()), tmp_path / "m.onnx", progress, external_over=0)


def test_the_exporter_is_quiet(
    tmp_path: Path, progress: Recorder, capfd: pytest.CaptureFixture[str]
):
    logger = logging.getLogger("torch.onnx")
    before = (logger.handlers[:], logger.propagate)
    export(capture(TinyNet(), random_input()), tmp_path / "m.onnx", progress)
    assert capfd.readouterr() == ("", "")
    assert progress.infos == []
    assert (logger.handlers[:], logger.propagate) == before


def test_importing_the_package_loads_nothing_heavy():
    import subprocess

    code = (
        "import sys, todo_compile.export.onnx, todo_compile.export.tensorrt, "
        "todo_compile.bundle.manifest, todo_compile.export.targets; "
        "print([m for m in ('torch', 'onnx', 'onnx_ir', 'numpy', 'tensorrt_rtx') "
        "if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert result.stdout.strip() == "[]", result.stderr
