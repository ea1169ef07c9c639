"""A bundle is read whole or refused, and nothing in it leads out of its folder."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from todo_compile.bundle import entries
from todo_compile.bundle.bundle import check_bundle, inside, is_bundle, read_bundle
from todo_compile.bundle.description import Bundle, ComponentEntry, LightFile
from todo_compile.bundle.files import staged
from todo_compile.bundle.manifest import Manifest, manifest_path
from todo_compile.errors import BundleError


def component(folder: Path, name: str, content: bytes) -> ComponentEntry:
    output = folder / f"{name}.onnx"
    with staged(output) as stage:
        stage.publish(output.name).write_bytes(content)
        manifest = Manifest(
            created="2026-01-01T00:00:00+00:00",
            request={},
            versions={},
            model={"component": name},
            sites=[],
            totals={},
            files=[entries.file_entry(stage.folder / output.name)],
            inputs=[],
            outputs=[],
            seconds={},
        )
        entries.write(manifest, stage.publish(manifest_path(output).name))
    return ComponentEntry(
        file=output.name, manifest_sha256=entries.file_sha256(manifest_path(output))
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle of two components and one light file."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "tokenizer").mkdir()
    vocabulary = folder / "tokenizer" / "vocab.json"
    vocabulary.write_text("{}")
    bundle = Bundle(
        created="2026-01-01T00:00:00+00:00",
        model="tiny",
        resolution="64x64",
        batch=2,
        precision="fp32",
        kind="onnx",
        pipeline_class="StableDiffusionPipeline",
        components={
            "unet": component(folder, "unet", b"a model"),
            "vae_decoder": component(folder, "vae_decoder", b"another"),
        },
        light_files=[
            LightFile(name="tokenizer/vocab.json", bytes=2, sha256=entries.file_sha256(vocabulary))
        ],
    )
    entries.write(bundle, folder / "bundle.json")
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "bundle.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def damage(folder: Path) -> list[str]:
    return check_bundle(read_bundle(folder), folder)


def test_intact(folder: Path) -> None:
    assert damage(folder) == []
    assert is_bundle(folder)
    assert read_bundle(folder / "bundle.json") == read_bundle(folder)
    assert "unet.onnx, vae_decoder.onnx" in "\n".join(read_bundle(folder).summary())


def test_unfinished(folder: Path) -> None:
    (folder / "bundle.json").unlink()
    assert not is_bundle(folder)
    with pytest.raises(BundleError, match="not a finished bundle"):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("victim", "content", "says"),
    [
        ("unet.onnx", b"a mode", "unet.onnx has 6 bytes instead of 7"),
        ("unet.onnx", b"a mOdel", "unet.onnx was changed"),
        ("unet.onnx", None, "unet.onnx is missing"),
        ("unet.onnx.json", None, "unet.onnx.json is missing"),
        ("unet.onnx.json", b"{}", "not the manifest that the bundle was finished with"),
        ("tokenizer/vocab.json", b"{", "vocab.json has 1 bytes instead of 2"),
        ("tokenizer/vocab.json", b"[]", "vocab.json was changed"),
        ("tokenizer/vocab.json", None, "vocab.json is missing"),
    ],
)
def test_changed_files(folder: Path, victim: str, content: bytes | None, says: str) -> None:
    (folder / victim).unlink()
    if content is not None:
        (folder / victim).write_bytes(content)
    found = damage(folder)
    assert len(found) == 1
    assert says in found[0]


def test_sizes_without_hashes(folder: Path) -> None:
    (folder / "unet.onnx").write_bytes(b"a mOdel")
    bundle = read_bundle(folder)
    assert check_bundle(bundle, folder, hashes=False) == []
    (folder / "unet.onnx").write_bytes(b"short")
    assert "has 5 bytes" in check_bundle(bundle, folder, hashes=False)[0]


def test_files_are_not_read_if_a_size_is_wrong(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "unet.onnx").write_bytes(b"short")

    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(entries, "file_sha256", refuse)
    assert damage(folder) == ["unet.onnx has 5 bytes instead of 7"]


def test_swapped_components(folder: Path) -> None:
    def swap(data: dict[str, Any]) -> None:
        parts = data["components"]
        parts["unet"], parts["vae_decoder"] = parts["vae_decoder"], parts["unet"]

    edit(folder, swap)
    assert damage(folder) == [
        "vae_decoder.onnx is a vae_decoder, not a unet",
        "unet.onnx is a unet, not a vae_decoder",
    ]


def test_swapped_files(folder: Path) -> None:
    os.rename(folder / "unet.onnx", folder / "spare")
    os.rename(folder / "vae_decoder.onnx", folder / "unet.onnx")
    os.rename(folder / "spare", folder / "vae_decoder.onnx")
    assert len(damage(folder)) == 2


def test_manifest_of_another_build(folder: Path) -> None:
    """Half a rebuild: a component is newer than the bundle says."""
    component(folder, "unet", b"rebuilt")
    assert "not the manifest that the bundle was finished with" in damage(folder)[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(format=2), "has format 2, this version reads 1"),
        (lambda d: d.update(kind="pickle"), "kind: Input should be"),
        (lambda d: d.update(surprise=1), "surprise: Extra inputs are not permitted"),
        (lambda d: d.update(components={}), "components: "),
        (lambda d: d.update(pipeline_class="os.system"), "pipeline_class: "),
        (lambda d: d.update(resolution="9999999x1"), "resolution: "),
        (lambda d: d["components"].update(evil=d["components"]["unet"]), "components.evil"),
        (lambda d: d["light_files"][0].update(bytes=2**40), "light_files.0.bytes"),
        (lambda d: d["components"]["unet"].update(manifest_sha256="0"), "manifest_sha256"),
    ],
)
def test_damaged_description(
    folder: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    edit(folder, change)
    with pytest.raises(BundleError) as caught:
        read_bundle(folder)
    assert says in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", pickle.dumps({"format": 1})])
def test_not_a_description(folder: Path, text: bytes) -> None:
    (folder / "bundle.json").write_bytes(text)
    with pytest.raises(BundleError, match="is damaged"):
        read_bundle(folder)


def test_description_too_large(folder: Path) -> None:
    os.truncate(folder / "bundle.json", 2**20 + 1)
    with pytest.raises(BundleError, match="too large"):
        read_bundle(folder)


@pytest.mark.parametrize(
    "name",
    ["../outside", "/etc/hostname", "tokenizer/../../x", "a//b", "./x", "c:\\x", "",
     "..", "a/b/c/d/e"],
)  # fmt: skip
def test_names_stay_inside(folder: Path, name: str) -> None:
    edit(folder, lambda d: d["light_files"][0].update(name=name))
    with pytest.raises(BundleError, match=r"light_files\.0\.name"):
        read_bundle(folder)
    with pytest.raises(BundleError):
        inside(folder, name)


@pytest.mark.parametrize("name", ["../unet.onnx", "tokenizer/vocab.json", "/x"])
def test_components_lie_in_the_folder_itself(folder: Path, name: str) -> None:
    edit(folder, lambda d: d["components"]["unet"].update(file=name))
    with pytest.raises(BundleError, match="not a plain file name"):
        read_bundle(folder)


@pytest.mark.parametrize("victim", ["unet.onnx", "tokenizer/vocab.json", "bundle.json"])
def test_links_that_leave(folder: Path, tmp_path: Path, victim: str) -> None:
    outside = tmp_path / "outside"
    os.rename(folder / victim, outside)
    (folder / victim).symlink_to(outside)
    with pytest.raises(BundleError, match="leads out of the bundle"):
        read_bundle(folder)


def test_linked_folder_and_inner_links_are_fine(folder: Path, tmp_path: Path) -> None:
    os.rename(folder / "unet.onnx", folder / "blob")
    (folder / "unet.onnx").symlink_to("blob")
    (tmp_path / "link").symlink_to(folder)
    assert damage(tmp_path / "link") == []


def test_manifest_that_leaves_by_a_link(folder: Path, tmp_path: Path) -> None:
    os.rename(folder / "unet.onnx.json", tmp_path / "m.json")
    (folder / "unet.onnx.json").symlink_to(tmp_path / "m.json")
    assert "leads out of the bundle" in damage(folder)[0]
