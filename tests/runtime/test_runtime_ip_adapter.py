"""IP-Adapters compiled into a UNet: numbers against diffusers' own loader, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from safetensors.torch import save_file
from tiny_bundles import with_oracle
from typer.testing import CliRunner

import todo_compile
from todo_compile import models
from todo_compile.build.request import BuildRequest
from todo_compile.bundle.manifest import find_reusable
from todo_compile.cli.app import app
from todo_compile.errors import ConfigError, InputError, ModelError
from todo_compile.models.ip_adapter import parse_ip_adapter, with_ip_adapter
from todo_compile.options import PlanOptions

WIDTH, SCALE = 20, 0.6
TOLERANCE = 5e-6  # as ControlNets'

Tensors = dict[str, torch.Tensor]


def tensors_for(unet: Any, seed: int = 3) -> Tensors:
    """An adapter in the published layout: ip-adapter_sd15.safetensors and its kin."""
    made = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made) * shape[-1] ** -0.5

    channels = unet.config.cross_attention_dim
    found = {
        "image_proj.proj.weight": noise(4 * channels, WIDTH),
        "image_proj.proj.bias": noise(4 * channels),
        "image_proj.norm.weight": 1 + noise(channels), "image_proj.norm.bias": noise(channels),
    }  # fmt: skip
    crossing = [name for name in unet.attn_processors if "attn2" in name]
    for number, name in enumerate(crossing):
        keys = unet.get_submodule(name.removesuffix(".processor")).to_k
        for part in ("to_k_ip", "to_v_ip"):
            found[f"ip_adapter.{2 * number + 1}.{part}.weight"] = 2 * noise(
                keys.out_features, channels
            )
    return found


def resampler(channels: int, seed: int = 6) -> Tensors:
    """Of the kind plus, as published: three tokens of all states of an encoder 8 channels wide."""
    made = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "latents": (1, 3, 64), "proj_in.weight": (64, 8), "proj_in.bias": (64,),
        "proj_out.weight": (channels, 64), "proj_out.bias": (channels,),
        "norm_out.weight": (channels,), "norm_out.bias": (channels,),
    }  # fmt: skip
    for layer in range(4):
        shapes |= {
            f"layers.{layer}.{name}": shape
            for name, shape in {
                "0.norm1.weight": (64,), "0.norm1.bias": (64,), "0.norm2.weight": (64,),
                "0.norm2.bias": (64,), "0.to_q.weight": (64, 64), "0.to_kv.weight": (128, 64),
                "0.to_out.weight": (64, 64), "1.0.weight": (64,), "1.0.bias": (64,),
                "1.1.weight": (256, 64), "1.3.weight": (64, 256),
            }.items()
        }  # fmt: skip
    found: Tensors = {}
    for name, shape in shapes.items():
        value = torch.randn(*shape, generator=made) * shape[-1] ** -0.5
        found[f"image_proj.{name}"] = value + (len(shape) == 1)  # norms' weights are about one
    return found


def encoder_config(folder: Path) -> None:
    """Of pictures of 8 pixels in patches of 4, beside an adapter as published: five states."""
    (folder / "image_encoder").mkdir()
    config = {"hidden_size": 8, "image_size": 8, "patch_size": 4}
    (folder / "image_encoder" / "config.json").write_text(json.dumps(config))


def embeds(seed: int = 1) -> torch.Tensor:
    """Of no picture, and of one."""
    picture = torch.randn(1, 1, WIDTH, generator=torch.Generator().manual_seed(seed))
    return torch.cat([torch.zeros_like(picture), picture])


def in_torch(pipe: Any, file: Path, *, pooled: bool = True) -> Any:
    """diffusers' own loader; self-attention by the oracle."""
    pipe.load_ip_adapter(
        str(file.parent), subfolder=".", weight_name=file.name, image_encoder_folder=None
    )
    pipe.set_ip_adapter_scale(SCALE)
    if pooled:
        own = pipe.unet.attn_processors
        with_oracle(pipe)
        made = pipe.unet.attn_processors
        pipe.unet.set_attn_processor({n: (made if "attn1" in n else own)[n] for n in own})
    return pipe


PIPELINES: dict[str, Callable[[], Any]] = {"sd": tiny.sd, "sdxl": tiny.sdxl}


@pytest.fixture(scope="module", params=PIPELINES)
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    """(which, the adapter's file, a bundle)."""
    root = tmp_path_factory.mktemp(request.param)
    pipe = PIPELINES[request.param]()
    pipe.save_pretrained(root / "model")
    file = root / "ip-adapter_tiny.safetensors"
    save_file(tensors_for(pipe.unet), file)
    todo_compile.compile_bundle(
        str(root / "model"), res=tiny.PIXELS, out=root / "bundle", format="onnx",
        precision="fp32", vae_precision="fp32", ip_adapter=f"{file}:{SCALE}",
        vae_options=PlanOptions.create(kv_tokens=64),
    )  # fmt: skip
    return request.param, file, root / "bundle"


def test_the_picture_is_diffusers_own(built: tuple[str, Path, Path]) -> None:
    name, file, bundle = built
    ours = todo_compile.load_pipeline(bundle)
    ours.set_progress_bar_config(disable=True)
    found = tiny.picture(ours, ip_adapter_image_embeds=[embeds()])
    theirs = in_torch(PIPELINES[name](), file)
    expected = tiny.picture(theirs, ip_adapter_image_embeds=[embeds()])
    assert (found - expected).abs().max() < TOLERANCE
    other = tiny.picture(ours, ip_adapter_image_embeds=[embeds(2)])
    assert (other - found).abs().max() > 1e-3, "the picture must matter"
    theirs = in_torch(PIPELINES[name](), file, pooled=False)
    dense = tiny.picture(theirs, ip_adapter_image_embeds=[embeds()])
    assert (dense - expected).abs().max() > 100 * TOLERANCE, "pooling must matter"


def test_a_picture_goes_through_an_encoder_that_is_handed_over(
    built: tuple[str, Path, Path],
) -> None:
    from PIL import Image
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(4)
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
            image_size=8, patch_size=4, projection_dim=WIDTH,
        )
    ).eval()  # fmt: skip
    ready = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    ours = todo_compile.load_pipeline(built[2], image_encoder=encoder, feature_extractor=ready)
    ours.set_progress_bar_config(disable=True)
    image = Image.new("RGB", (8, 8), (200, 10, 30))
    with torch.no_grad():
        embedding = encoder(ready(image, return_tensors="pt").pixel_values).image_embeds[:, None]
    given = torch.cat([torch.zeros_like(embedding), embedding])
    found = tiny.picture(ours, ip_adapter_image=image)
    expected = tiny.picture(ours, ip_adapter_image_embeds=[given])
    assert (found - expected).abs().max() < TOLERANCE


def test_manifest_and_inputs(built: tuple[str, Path, Path]) -> None:
    manifest = json.loads((built[2] / "unet.onnx.json").read_text())
    inputs = {spec["name"]: spec["shape"] for spec in manifest["inputs"]}
    assert inputs["image_embeds"] == [2, 1, WIDTH]
    assert manifest["model"]["ip_adapter"]["scale"] == SCALE
    assert manifest["model"]["ip_adapter"]["file"] == built[1].name
    assert "ip_adapter" not in json.loads((built[2] / "vae_decoder.onnx.json").read_text())["model"]


def test_without_a_picture_it_is_refused(built: tuple[str, Path, Path]) -> None:
    ours = todo_compile.load_pipeline(built[2])
    with pytest.raises(InputError, match="pictures for 0 IP-Adapters") as refused:
        tiny.picture(ours)
    assert "ip_adapter_image_embeds" in str(refused.value)


def test_generate_takes_the_embedding_from_a_file(
    built: tuple[str, Path, Path], tmp_path: Path
) -> None:
    save_file({"ip_adapter_image_embeds": embeds()}, tmp_path / "embeds.safetensors")
    words = ["generate", "--bundle", str(built[2]), "--prompt", "a", "--steps", "2", "--out",
             str(tmp_path / "x.png")]  # fmt: skip
    done = CliRunner().invoke(app, [*words, "--tensors", str(tmp_path / "embeds.safetensors")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "x.png").is_file()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / "ip-adapter_tiny.safetensors"
    save_file(tensors_for(tiny.unet()), path)
    return path


def test_beside_a_controlnet(model: Path, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "unet.onnx"
    todo_compile.compile(
        str(model), res=tiny.PIXELS, out=out, precision="fp32", controlnet=True,
        ip_adapter=f"{file}:{SCALE}", factors="off",
    )  # fmt: skip
    unet = in_torch(tiny.sd(), file, pooled=False).unet
    made = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made)

    call: dict[str, Any] = {
        "sample": noise(2, 4, 16, 16), "timestep": 500,
        "encoder_hidden_states": noise(2, 77, tiny.TEXT),
        "added_cond_kwargs": {"image_embeds": [embeds()]},
        "down_block_additional_residuals": [
            noise(2, 16, 16, 16), noise(2, 16, 16, 16), noise(2, 16, 8, 8), noise(2, 32, 8, 8),
        ],
        "mid_block_additional_residual": noise(2, 32, 8, 8),
        "return_dict": False,
    }  # fmt: skip
    with torch.no_grad():
        (expected,) = unet(**call)
    (found,) = todo_compile.load(out)(**call)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_its_file_and_scale_decide_what_is_reused(model: Path, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "unet.onnx"
    asked: dict[str, Any] = {
        "model": str(model), "res": (str(tiny.PIXELS),), "out": str(out), "precision": "fp32",
    }  # fmt: skip
    first: Any = BuildRequest(**asked, ip_adapter=f"{file}:{SCALE}")
    todo_compile.compile(
        str(model), res=tiny.PIXELS, out=out, precision="fp32", ip_adapter=f"{file}:{SCALE}"
    )
    assert find_reusable(out, first.resolve().identity).reasons == ()
    for other in (f"{file}:0.5", None):
        changed: Any = BuildRequest(**asked, ip_adapter=other).resolve()
        assert any("ip_adapter" in why for why in find_reusable(out, changed.identity).reasons)


def test_plan_knows_its_attention(model: Path, file: Path) -> None:
    plain = todo_compile.plan(str(model), res=tiny.PIXELS)
    more = todo_compile.plan(str(model), res=tiny.PIXELS, ip_adapter=str(file))
    cross = [sum(site.kind == "cross" for site in report.sites) for report in (plain, more)]
    assert cross[1] == 2 * cross[0]
    assert more.rewritten == plain.rewritten
    assert {s.key_tokens for s in more.sites} == {*(s.key_tokens for s in plain.sites), 4}


def test_all_states_of_an_encoder(model: Path, tmp_path: Path) -> None:
    """The kind plus: how many states there are is read beside it."""
    unet = tiny.unet()
    own = {n: t for n, t in tensors_for(unet).items() if n.startswith("ip_adapter.")}
    file, out = tmp_path / "ip-adapter-plus_tiny.safetensors", tmp_path / "unet.onnx"
    save_file({**own, **resampler(tiny.TEXT)}, file)
    encoder_config(tmp_path)
    todo_compile.compile(
        str(model), res=tiny.PIXELS, out=out, precision="fp32", factors="off",
        ip_adapter=f"{file}:{SCALE}",
    )  # fmt: skip
    theirs = in_torch(tiny.sd(), file, pooled=False).unet
    made = torch.Generator().manual_seed(0)
    call: dict[str, Any] = {
        "sample": torch.randn(2, 4, 16, 16, generator=made), "timestep": 500,
        "encoder_hidden_states": torch.randn(2, 77, tiny.TEXT, generator=made),
        "added_cond_kwargs": {"image_embeds": [torch.randn(2, 1, 5, 8, generator=made)]},
        "return_dict": False,
    }  # fmt: skip
    with torch.no_grad():
        (expected,) = theirs(**call)
    ours = todo_compile.load(out)
    torch.testing.assert_close(ours(**call)[0], expected, rtol=1e-4, atol=1e-5)
    from diffusers.models.embeddings import ImageProjection

    (asked,) = ours.encoder_hid_proj.image_projection_layers
    assert not isinstance(asked, ImageProjection), "pipelines then pass all states"


def _without(tensors: Tensors, key: str) -> Tensors:
    return {name: value for name, value in tensors.items() if name != key}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: _without(t, "ip_adapter.1.to_k_ip.weight"), r"lacks ip_adapter\.1\.to_k_ip"),
        (lambda t: {**t, "ip_adapter.99.to_k_ip.weight": torch.ones(1, 1)}, "has ip_adapter.99"),
        (lambda t: {**t, "ip_adapter.1.to_k_ip.weight": torch.ones(3, 24)}, r"\(3, 24\) instead"),
        (lambda t: {**t, "image_proj.latents": torch.ones(1, 16, 24)}, "part of a resampler"),
        (lambda t: {**t, **resampler(tiny.TEXT)}, "nothing says how many these are"),
        (lambda t: {**t, "ip_adapter.0.to_k_lora.down.weight": torch.ones(1, 1)}, "FaceID"),
        (lambda t: {**_without(t, "image_proj.proj.weight"),
                    "image_proj.proj.0.weight": torch.ones(1, 1)}, "another projection"),
        (lambda t: {**t, "image_proj.norm.weight": torch.ones(12)}, "other than 4 tokens"),
        (lambda _: {"x": torch.ones(1)}, "no IP-Adapter"),
    ],
)  # fmt: skip
def test_other_files_are_refused(
    model: Path, tmp_path: Path, change: Callable[[Tensors], Tensors], why: str
) -> None:
    path = tmp_path / "other.safetensors"
    save_file(change(tensors_for(tiny.unet())), path)
    with pytest.raises(ModelError, match=why):
        todo_compile.plan(str(model), res=tiny.PIXELS, ip_adapter=str(path))


def test_what_takes_none(model: Path, file: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "ip-adapter_sd15.bin"
    pickled.write_bytes(b"x")
    with pytest.raises(ModelError, match="pickles are refused"):
        todo_compile.plan(str(model), res=tiny.PIXELS, ip_adapter=str(pickled))
    with pytest.raises(ConfigError, match="is for UNets of Stable Diffusion"):
        todo_compile.plan("pixart", res=512, ip_adapter=str(file))
    with pytest.raises(ConfigError, match="for pipelines of Stable Diffusion"):
        todo_compile.plan("flux", res=512, ip_adapter=str(file))
    with pytest.raises(ConfigError, match="--ip-adapter needs a picture too"):
        todo_compile.compile(
            str(model), res=tiny.PIXELS, out=tmp_path / "x.onnx", ip_adapter=str(file),
            gate="drift=0.5",
        )  # fmt: skip
    with pytest.raises(ModelError, match="for another UNet"):
        todo_compile.plan("demo", res=128, ip_adapter=str(file))


@pytest.mark.parametrize("late", [False, True], ids=["load", "start_load"])
def test_beside_a_lora(late: bool, tmp_path: Path) -> None:
    """Both are in the UNet, whether its weights are filled at once or while it is traced."""
    unet = tiny.sd().unet
    unet.save_pretrained(tmp_path / "m" / "unet")
    file, lora = tmp_path / "ip.safetensors", tmp_path / "lora.safetensors"
    tensors = tensors_for(unet)
    save_file(tensors, file)
    query = next(n for n, _ in unet.named_modules() if n.endswith("attn1.to_q"))
    width = unet.get_submodule(query).weight.shape[0]
    down, up = torch.randn(2, width), torch.randn(width, 2)
    name = f"unet.{query}"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, lora)
    source = with_ip_adapter(
        models.resolve(str(tmp_path / "m")), parse_ip_adapter(f"{file}:{SCALE}")
    )
    weights = models.find_weights(source, models.WeightsChoice.parse("auto"), dtype=torch.float32)
    load = models.start_load if late else models.load
    loaded = load(source, weights, dtype=torch.float32, loras=[models.parse_lora(str(lora))])
    loaded.finish()
    found = loaded.module.state_dict()
    torch.testing.assert_close(
        found[f"{query}.weight"], unet.get_submodule(query).weight + up @ down
    )
    crossing = [n for n in found if n.endswith("to_k_ip.0.weight")]
    for number, place in enumerate(crossing):
        assert torch.equal(found[place], tensors[f"ip_adapter.{2 * number + 1}.to_k_ip.weight"])
    assert len(crossing) == sum("attn2" in n for n in unet.attn_processors)
