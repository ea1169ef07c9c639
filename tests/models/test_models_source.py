"""What ``--model`` understands, and what it says to the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from tiny_models import cache_snapshot

from todo_compile.capture.inputs import with_pipeline_defaults
from todo_compile.errors import ModelError
from todo_compile.models import REGISTRY, resolve


def test_registry_name_and_its_hub_ids_are_the_same_model() -> None:
    source = resolve("sd15")
    assert (source.kind, source.component, source.vae_scale) == ("registry", "unet", 8)
    assert resolve("runwayml/stable-diffusion-v1-5") == source
    assert resolve("stabilityai/stable-diffusion-2-1").entry is REGISTRY["sd21"]


def test_pipeline_folder(pipeline: Path) -> None:
    source = resolve(str(pipeline))
    assert source.kind == "folder"
    assert source.identifier == str(pipeline)
    assert source.folder == pipeline / "unet"
    assert source.class_name == "UNet2DConditionModel"
    assert source.vae_scale == 4  # three levels in the VAE's configuration
    assert source.native.kv_tokens == 256


def test_folder_that_is_the_unet(pipeline: Path) -> None:
    source = resolve(str(pipeline / "unet"))
    assert (source.folder, source.component) == (pipeline / "unet", "unet")


def test_registry_wins_over_a_folder_of_that_name(
    tmp_path: Path, unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet.save_pretrained(tmp_path / "sd15")
    monkeypatch.chdir(tmp_path)
    assert resolve("sd15").kind == "registry"
    assert resolve("./sd15").kind == "folder"


def test_cached_hub_repository(empty_hub: Path, unet: UNet2DConditionModel) -> None:
    cache_snapshot(empty_hub, "someone/model", unet)
    source = resolve("someone/model")
    assert (source.kind, source.hub_ids) == ("hub", ("someone/model",))
    assert source.config["cross_attention_dim"] == 24


@pytest.mark.parametrize(
    ("typed", "meant"), [("sd1.5", "sd15"), ("SDXL", "sdxl"), ("sd-xl", "sdxl"), ("sd22", "sd2")]
)
def test_unknown_name_suggests_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(
        ModelError, match=f"Unknown model '{typed}'. Did you mean {meant}"
    ) as caught:
        resolve(typed)
    assert "sd15, sd21, sdxl" in (caught.value.remedy or "")


def test_unknown_name_like_none() -> None:
    with pytest.raises(ModelError, match=r"^Unknown model 'midjourney'\.\n") as caught:
        resolve("midjourney")
    assert "sd15, sd21, sdxl" in str(caught.value)
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("path", ["./nowhere", "/no/such/folder", "~/nowhere", "a/b/c"])
def test_missing_path(path: str) -> None:
    with pytest.raises(ModelError, match="There is no folder") as caught:
        resolve(path)
    assert "Check the path" in (caught.value.remedy or "")


def test_hub_id_that_cannot_be_reached() -> None:
    with pytest.raises(ModelError, match="someone/model is not in the local hub cache") as caught:
        resolve("someone/model")
    remedy = caught.value.remedy or ""
    assert "huggingface-cli download someone/model" in remedy
    assert "local diffusers folder" in remedy
    assert "--weights random" in remedy


def test_file_instead_of_folder(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.touch()
    with pytest.raises(ModelError, match="is a file, and not a safetensors file") as caught:
        resolve(str(file))
    assert "checkpoint" in (caught.value.remedy or "")


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a diffusers model") as caught:
        resolve(str(tmp_path))
    assert "save_pretrained" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{not json", "cannot be read as JSON"),
        ("[]", "it is no object"),
        ("{}", "no _class_name"),
        (json.dumps({"_class_name": "os.system"}), "'os.system', which is not a name"),
    ],
)
def test_bad_configuration(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=said):
        resolve(str(tmp_path))


def test_a_class_of_an_unknown_pipeline_says_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    config = {"_class_name": "FluxTransformer2DModel"}
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    source = resolve(str(tmp_path))
    with pytest.raises(ModelError, match="FluxTransformer2DModel is called with") as caught:
        with_pipeline_defaults(source)
    assert "model_index.json" in (caught.value.remedy or "")
    assert "todo_compile.rewrite" in (caught.value.remedy or "")
