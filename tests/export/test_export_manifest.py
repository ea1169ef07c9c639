"""Reuse only what is equal and intact; never follow a manifest out of its folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from todo_compile.batches import BatchRange, TextRange
from todo_compile.bundle.entries import file_entry, write
from todo_compile.bundle.files import staged
from todo_compile.bundle.inspect import inspect
from todo_compile.bundle.manifest import (
    FORMAT,
    Manifest,
    check_files,
    differences,
    find_reusable,
    manifest_path,
    read,
)
from todo_compile.bundle.tensors import Tensor
from todo_compile.errors import BundleError

REQUEST = {"model": "sd15", "resolution": "1024x1024", "plan": {"factors": (4, 2)}, "batch": 2}


def make(output: Path, content: bytes = b"engine", request: dict[str, Any] = REQUEST) -> Manifest:
    with staged(output) as stage:
        stage.publish(output.name).write_bytes(content)
        manifest = Manifest(
            created="2026-01-01T00:00:00+00:00",
            request=request,
            versions={"torch": "2.11"},
            model={"name": "sd15"},
            sites=[],
            totals={},
            files=[file_entry(stage.folder / output.name)],
            inputs=[],
            outputs=[],
            library="tensorrt_rtx 1.7",
            targets=["sm89"],
            seconds={"engine": 1.0},
        )
        write(manifest, stage.publish(manifest_path(output).name))
    return manifest


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = tmp_path / "e.plan"
    make(path)
    return path


def edit(output: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = manifest_path(output)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_round_trip(output: Path):
    manifest = read(output)
    assert manifest == read(manifest_path(output))
    assert manifest.request == json.loads(json.dumps(REQUEST))
    assert check_files(manifest, output.parent) == []


def test_equal_request_is_reusable(output: Path):
    assert find_reusable(output, REQUEST).reusable


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"resolution": "2048x2048"}, "resolution: 1024x1024 → 2048x2048"),
        ({"batch": 4}, "batch: 2 → 4"),
        ({"plan": {"factors": (4, 1)}}, "plan.factors: [4, 2] → [4, 1]"),
        ({"precision": "fp16"}, "precision: none → fp16"),
    ],
)
def test_any_difference_rebuilds_and_is_named(output: Path, change: dict[str, Any], reason: str):
    reuse = find_reusable(output, {**REQUEST, **change})
    assert (reuse.reusable, reuse.reasons) == (False, (reason,))


def test_request_that_lost_an_entry_is_not_equal(output: Path):
    request = {key: value for key, value in REQUEST.items() if key != "batch"}
    assert find_reusable(output, request).reasons == ("batch: 2 → none",)


def test_no_output_no_reasons(tmp_path: Path):
    assert find_reusable(tmp_path / "e.plan", REQUEST).reasons == ()


def test_output_without_a_manifest(output: Path):
    manifest_path(output).unlink()
    reuse = find_reusable(output, REQUEST)
    assert not reuse.reusable
    assert "does not exist" in reuse.reasons[0]


@pytest.mark.parametrize(
    ("content", "reason"), [(b"engin", "5 bytes instead of 6"), (b"enginE", "was changed")]
)
def test_changed_file_is_not_reused(output: Path, content: bytes, reason: str):
    output.write_bytes(content)
    reuse = find_reusable(output, REQUEST)
    assert not reuse.reusable
    assert reason in reuse.reasons[0]


def test_manifest_of_another_file_is_not_taken(output: Path):
    other = output.with_name("other.plan")
    other.write_bytes(output.read_bytes())
    manifest_path(other).write_bytes(manifest_path(output).read_bytes())
    assert "does not describe other.plan" in find_reusable(other, REQUEST).reasons[0]


@pytest.mark.parametrize(
    "name",
    [
        "../e.plan", "a/b", "/etc/passwd", "..", ".", "", "C:e.plan", "C:\\e.plan", "a\\b",
        "\\\\host\\share", "a\x00b",
    ],
)  # fmt: skip
def test_names_cannot_leave_the_folder(output: Path, name: str):
    edit(output, lambda data: data["files"][0].update(name=name))
    with pytest.raises(BundleError, match=r"damaged: files\.0\.name"):
        read(output)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("request"),
        lambda data: data.update(extra=1),
        lambda data: data["files"][0].update(sha256="abc"),
        lambda data: data["files"][0].update(bytes=-1),
        lambda data: data.update(files=[]),
        lambda data: data.update(seconds="fast"),
    ],
)
def test_damaged_content(output: Path, change: Callable[[dict[str, Any]], object]):
    edit(output, change)
    with pytest.raises(BundleError, match=r"is damaged.*\n.*again"):
        read(output)
    assert not find_reusable(output, REQUEST).reusable


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"[" * 100_000, b'{"format": 1}']
)
def test_damaged_text(output: Path, text: bytes):
    manifest_path(output).write_bytes(text)
    with pytest.raises(BundleError, match=r"damaged|cannot be read"):
        read(output)


def test_other_format_is_named(output: Path):
    edit(output, lambda data: data.update(format=FORMAT + 1))
    with pytest.raises(BundleError, match=f"format {FORMAT + 1}, this version reads {FORMAT}"):
        read(output)


def test_absurdly_large_manifest_is_not_read(output: Path):
    with manifest_path(output).open("ab") as file:
        file.truncate(1 << 30)  # a hole: takes no space
    with pytest.raises(BundleError, match="too large"):
        read(output)


def test_frozen(output: Path):
    manifest = read(output)
    with pytest.raises(ValidationError, match="frozen"):
        manifest.created = "now"


def test_differences_of_equal_requests():
    assert differences(REQUEST, dict(REQUEST)) == []


def test_long_values_are_shortened():
    text = differences({"weights": "a" * 200}, {"weights": "b" * 200})[0]
    assert len(text) < 150


def test_inspect_intact_and_damaged(output: Path):
    assert inspect(output).damage == ()
    assert any("sm89" in line for line in inspect(manifest_path(output)).lines())
    output.write_bytes(b"x")
    found = inspect(output, layers=lambda _path, _library: pytest.fail("it was read"))
    assert "1 bytes instead of 6" in found.damage[0]
    assert found.note == "not read: the file is damaged"
    assert json.dumps(found.to_dict())


@pytest.mark.parametrize("name", [".", "none.plan"])
def test_inspect_what_is_no_output(tmp_path: Path, name: str):
    with pytest.raises(BundleError, match=r"is a folder|does not exist"):
        inspect(tmp_path / name)


def test_a_tensor_of_fixed_shape_is_written_as_it_was_before_there_were_ranges() -> None:
    old = {"name": "x", "shape": [2, 4], "dtype": "float16"}
    tensor = Tensor.model_validate(old)
    assert tensor.model_dump(mode="json") == old
    assert tensor.fits((2, 4))
    assert not tensor.fits((1, 4))
    assert (tensor.at(7), tensor.text) == ((2, 4), "2, 4")


def test_a_tensor_with_a_range() -> None:
    written = {"name": "x", "shape": [-1, 4], "dtype": "float16", "batches": "1..2..4"}
    tensor = Tensor.model_validate(written)
    assert tensor.batches == BatchRange(1, 2, 4)
    assert tensor.model_dump(mode="json") == written
    shapes = [(1, 4), (4, 4), (0, 4), (5, 4), (-1, 4), (4, 5), (4,), (4, 4, 1), ()]
    assert [s for s in shapes if tensor.fits(s)] == [(1, 4), (4, 4)]
    assert (tensor.at(3), tensor.text) == ((3, 4), "1..4, 4")


def test_a_tensor_with_a_range_of_texts() -> None:
    written = {
        "name": "x", "shape": [-1, -1, 4], "dtype": "float16", "batches": "1..2", "texts": "77..308"
    }  # fmt: skip
    tensor = Tensor.model_validate(written)
    assert tensor.texts == TextRange(77, 308, 308)
    assert tensor.model_dump(mode="json") == written
    shapes = [(1, 77, 4), (2, 308, 4), (3, 77, 4), (1, 76, 4), (1, -1, 4), (77, 1, 4), (1, 77)]
    assert [s for s in shapes if tensor.fits(s)] == [(1, 77, 4), (2, 308, 4)]
    assert (tensor.at(2, 100), tensor.text) == ((2, 100, 4), "1..2, 77..308, 4")
    assert tensor.profile == ((1, 77, 4), (2, 308, 4), (2, 308, 4))
    alone = Tensor.model_validate({**written, "shape": [2, -1, 4], "batches": None})
    assert (alone.at(0, 80), alone.fits((2, 80, 4)), alone.fits((1, 80, 4))) == (
        (2, 80, 4), True, False,
    )  # fmt: skip
    with pytest.raises(ValidationError):
        Tensor.model_validate({**written, "shape": [-1, 77, 4]})


@pytest.mark.parametrize(
    ("shape", "batches"),
    [
        ([-1, 4], None),  # any batch at all is nothing we build
        ([2, 4], "1..4"),
        ([-1, -1], "1..4"),
        ([4, -1], None),
        ([], "1..4"),
        ([-1, 4], "4..1"),
        ([-1, 4], "3"),
        ([-1, 4], {"least": 1}),
    ],
)
def test_a_tensor_that_contradicts_itself_is_refused(shape: list[int], batches: object) -> None:
    values = {"name": "x", "shape": shape, "dtype": "float16"}
    if batches is not None:
        values["batches"] = batches
    with pytest.raises(ValidationError):
        Tensor.model_validate(values)
