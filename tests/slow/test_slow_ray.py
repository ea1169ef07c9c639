"""Builds on a Ray cluster of several nodes on this machine; one is killed on the way.

Skipped where Ray is absent. Nothing of it is simulated: raylets, workers and builds are processes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_pipeline import make_unet

from todo_compile.bundle.manifest import check_files, read

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ray = pytest.importorskip("ray")
_BUILD = "todo_compile.build.many.worker"


@pytest.fixture(scope="module")
def cluster() -> Generator[Any]:
    """A head that builds nothing, and two nodes of one processor and memory for one build."""
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    head = {"num_cpus": 0, "memory": 10**8, "ray_client_server_port": port, **small}
    made = Cluster(initialize_head=True, head_node_args=head)
    made.client_port = port  # where commands outside of the cluster come in
    for _ in range(2):
        made.add_node(num_cpus=1, memory=1_500_000_000, **small)
    made.wait_for_nodes()
    yield made
    made.shutdown()


def start(
    folder: Path, cluster: Any, text: str, *, address: str = "ray"
) -> subprocess.Popen[bytes]:
    (folder / "b.yaml").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "todo_compile.cli.app", "build", "b.yaml", "--json"]
    return subprocess.Popen(
        [*command, "--executor", address],
        cwd=folder,
        stdout=subprocess.PIPE,
        env={**os.environ, "RAY_ADDRESS": cluster.address},
        start_new_session=True,
    )


def builds_at_work() -> list[psutil.Process]:
    """Child processes that build, on all nodes: raylets are children of this process."""
    found: list[psutil.Process] = []
    for one in psutil.Process().children(recursive=True):
        try:
            if _BUILD in one.cmdline():
                found.append(one)
        except psutil.Error:
            continue
    return found


def wait_for_builds(count: int, command: subprocess.Popen[bytes]) -> list[psutil.Process]:
    while len(found := builds_at_work()) < count:
        assert command.poll() is None, "it ended before"
        time.sleep(0.1)
    return found


def places(log: Path) -> list[str]:
    """Where a build was started, attempt for attempt."""
    lines = log.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("on ")]


def test_one_worker_is_killed_and_one_build_fails(cluster: Any, tmp_path: Path) -> None:
    """What was killed is built by another worker; what fails by itself is not tried again."""
    make_unet(tmp_path / "tiny")
    shutil.copytree(tmp_path / "tiny", tmp_path / "broken")
    weights = tmp_path / "broken" / "unet" / "diffusion_pytorch_model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)
    command = start(
        tmp_path,
        cluster,
        """
        defaults: {model: tiny, precision: fp32, res: 64}
        builds:
          - batch: [1, 2, 3, 4]
            out: out/unet-{batch}.onnx
          - model: broken
            out: out/broken.onnx
        """,
    )
    first = wait_for_builds(2, command)[0]
    worker = first.parent()
    assert worker is not None
    assert worker.name().startswith("ray")
    worker.send_signal(signal.SIGKILL)
    said, _ = command.communicate(timeout=600)
    found = json.loads(said)
    assert command.returncode == 1
    assert {b["out"]: b["status"] for b in found["builds"]} == {
        **{f"out/unet-{batch}.onnx": "built" for batch in (1, 2, 3, 4)},
        "out/broken.onnx": "failed",
    }
    tried = {b["out"]: places(Path(tmp_path, b["log"])) for b in found["builds"]}
    assert sorted(len(one) for one in tried.values()) == [1, 1, 1, 1, 2]
    assert len(tried["out/broken.onnx"]) == 1
    assert "is truncated or damaged" in found["builds"][4]["error"]
    again = next(one for one in tried.values() if len(one) == 2)
    assert again[0] != again[1]
    for batch in (1, 2, 3, 4):
        out = tmp_path / "out" / f"unet-{batch}.onnx"
        manifest = read(out)
        assert check_files(manifest, out.parent) == []
        assert manifest.request["batch"] == batch
        assert found["builds"][batch - 1]["bytes"] > out.stat().st_size
    litter = [p.name for p in (tmp_path / "out").iterdir() if ".tmp-" in p.name]
    assert litter == []
    assert builds_at_work() == []


def test_ctrl_c_ends_all(cluster: Any, tmp_path: Path) -> None:
    make_unet(tmp_path / "tiny")
    command = start(
        tmp_path,
        cluster,
        """
        builds:
          - {model: tiny, precision: fp32, res: 64, batch: [1, 2, 3], out: "out/{batch}.onnx"}
        """,
    )
    wait_for_builds(1, command)
    command.send_signal(signal.SIGINT)
    said, _ = command.communicate(timeout=120)
    assert command.returncode == 130
    assert "stopped" in {b["status"] for b in json.loads(said)["builds"]}
    deadline = time.monotonic() + 60
    while builds_at_work() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert builds_at_work() == []


def test_what_no_node_has_memory_for(cluster: Any, tmp_path: Path) -> None:
    make_unet(tmp_path / "tiny")
    command = start(
        tmp_path,
        cluster,
        "builds: [{model: sd15, weights: random, res: 512, out: x.onnx}]",
    )
    command.communicate(timeout=300)
    assert command.returncode == 2
    assert not (tmp_path / "x.onnx").exists()


def test_from_outside_the_cluster(cluster: Any, tmp_path: Path) -> None:
    make_unet(tmp_path / "tiny")
    command = start(
        tmp_path,
        cluster,
        """
        builds:
          - {model: tiny, precision: fp32, res: 64, batch: [1, 2], out: "out/{batch}.onnx"}
        """,
        address=f"ray://127.0.0.1:{cluster.client_port}",
    )
    said, _ = command.communicate(timeout=600)
    assert command.returncode == 0
    assert [b["status"] for b in json.loads(said)["builds"]] == ["built", "built"]
    for batch in (1, 2):
        out = tmp_path / "out" / f"{batch}.onnx"
        assert check_files(read(out), out.parent) == []
