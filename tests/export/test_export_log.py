"""What is read out of TensorRT's log: lines as TensorRT for RTX 1.7 writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from todo_compile.export._build_log import memory, read_log, remedy_for, telling_error


def test_memory_figures():
    used = memory(
        [
            "[INFO] Max Scratch Memory: 83902464 bytes",
            "[INFO] Total Activation Memory: 1183233536 bytes",
            "[INFO] Total Weights Memory: 1718180864 bytes",
        ]
    )
    assert (used.scratch, used.activation, used.weights) == (83902464, 1183233536, 1718180864)


def test_with_several_targets_the_largest_counts():
    lines = [f"[INFO] Total Activation Memory: {n} bytes" for n in (1520, 1780, 1600)]
    used = memory(lines)
    assert (used.activation, used.scratch) == (1780, None)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("getErrorStr::132] Error Code 2: OutOfMemory (Requested size was 9 bytes.)", "kv-tokens"),
        ("IConcatenationLayer: inputs must all be of the same type", "mixes precisions"),
        ("Cuda Runtime (cudaError 35: CUDA driver version is insufficient)", "NVIDIA driver"),
        ("No importer registered for op: Foo", "operator"),
        ("volume of tensor exceeds 2147483647", "attention scores"),
    ],
)
def test_known_causes_have_a_remedy(error: str, advice: str):
    lines = ["[ERROR] In node 3", "[WARNING] slow", f"[ERROR] {error}", "[ERROR] build failed"]
    found = telling_error(lines)
    assert found == error
    assert advice in (remedy_for(error) or "")


def test_unknown_cause_is_the_first_that_is_no_consequence():
    lines = ["[INFO] fine", "[ERROR] In node 3 (import): failed", "[ERROR] the real thing"]
    assert telling_error(lines) == "the real thing"
    assert remedy_for("the real thing") is None


def test_no_error_at_all():
    assert telling_error(["[INFO] fine", "[WARNING] so so"]) is None


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path):
    log = tmp_path / "log"
    log.write_bytes(b"\xff[VERBOSE] much\n" * 400_000 + b"[ERROR] last\n")
    lines = read_log(log)
    assert lines[-1] == "[ERROR] last"
    assert len(lines) < 400_000
