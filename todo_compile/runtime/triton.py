"""A bundle's pipeline in Triton Inference Server's Python backend.

Its components are other models of the same server (`bundle.triton` wrote the repository), called
through the backend's own requests; schedulers, guidance and tokenizers are diffusers', here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import dlpack

from todo_compile.bundle.triton import PARTS, served_name
from todo_compile.errors import EngineError, TodoError
from todo_compile.runtime.files import open_bundle
from todo_compile.runtime.how import Wrapping
from todo_compile.runtime.pipeline import assemble
from todo_compile.runtime.session import OutputSession, check_feeds

if TYPE_CHECKING:
    from todo_compile.runtime.files import Output


class TritonSession(OutputSession):
    """An output that a model of the server runs.

    Args:
        output: with its manifest; its own files may be elsewhere.
        name: of the model.
        server: the module ``triton_python_backend_utils``.
    """

    def __init__(self, output: Output, name: str, server: Any) -> None:
        super().__init__(output)
        self._device = torch.device("cpu")
        self._name = name
        self._server = server

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Session.run`."""
        check_feeds(feeds, self._inputs, self.device, self._output.built_for)
        held = [
            self._server.Tensor.from_dlpack(name, torch.to_dlpack(_sent(feeds[name])))
            for name in self._inputs
        ]
        answer = self._server.InferenceRequest(
            model_name=self._name, requested_output_names=list(self._outputs), inputs=held
        ).exec()
        if answer.has_error():
            raise EngineError(
                f"The server's model {self._name} failed: {answer.error().message()}",
                remedy="Its log says more.",
            )
        results: dict[str, Tensor] = {}
        for name, spec in self._outputs.items():
            found = self._server.get_output_tensor_by_name(answer, name)
            value = dlpack.from_dlpack(found.to_dlpack()).to(self.device)
            results[name] = (value if spec.shape else value.reshape(())).clone()
        return results


def _sent(value: Tensor) -> Tensor:
    """As the server takes it: a scalar is [1]."""
    plain = value.detach().contiguous()
    return plain if plain.ndim else plain.reshape(1)


class TritonPythonModel:
    """The pipeline as the Python backend calls it; see the repository's ``config.pbtxt``."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the bundle's description beside ``model.py``; no engine is loaded."""
        import triton_python_backend_utils as server  # pyright: ignore[reportMissingImports]

        self._server: Any = server
        name = json.loads(args["model_config"])["name"]
        version = Path(args["model_repository"]) / args["model_version"]
        opened = open_bundle(version / PARTS, engines=False)

        def opener(output: Output) -> TritonSession:
            return TritonSession(output, served_name(name, output.path.name), server)

        self._pipeline: Any = assemble(opened, {}, options=Wrapping(opener=opener))
        self._pipeline.set_progress_bar_config(disable=True)

    def execute(self, requests: list[Any]) -> list[Any]:
        """A picture for each request; what is wrong with one is its own answer."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        server = self._server
        try:
            images = self._draw(request)
        except (TodoError, ValueError) as error:  # diffusers refuses arguments with the latter
            return server.InferenceResponse(
                output_tensors=[], error=server.TritonError(f"{type(error).__name__}: {error}")
            )
        return server.InferenceResponse(output_tensors=[server.Tensor("images", images)])

    def _draw(self, request: Any) -> Any:
        def asked(name: str) -> Any:
            found = self._server.get_input_tensor_by_name(request, name)
            return None if found is None else found.as_numpy().reshape(-1)[0]

        def text(name: str) -> str | None:
            value = asked(name)
            return value.decode("utf-8") if isinstance(value, bytes) else value

        names = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
        given = {
            names.get(name, name): asked(name).item()
            for name in ("steps", "guidance", "width", "height")
            if asked(name) is not None
        }
        seed = asked("seed")
        generator = None if seed is None else torch.Generator().manual_seed(int(seed))
        with torch.no_grad():
            pictures = self._pipeline(
                prompt=text("prompt"),
                negative_prompt=text("negative_prompt"),
                generator=generator,
                output_type="np",
                **given,
            ).images
        return (pictures * 255).round().astype("uint8")
