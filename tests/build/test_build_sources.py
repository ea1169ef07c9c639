"""The hash that tells whether the package that made an output is the one that runs."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

import todo_compile
from todo_compile.build.request import BuildRequest
from todo_compile.build.sources import hash_of, sources_hash
from todo_compile.errors import ConfigError

PACKAGE = Path(todo_compile.__file__).parent
NAMES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code; whoever changes it changes it back."""
    goal = tmp_path_factory.mktemp("copy") / "todo_compile"
    only_code = shutil.ignore_patterns("*.safetensors", "*.png", "*.json", "*.pyc")
    return Path(shutil.copytree(PACKAGE, goal, ignore=only_code))


def test_a_copy_has_the_hash_of_the_package(package: Path) -> None:
    assert hash_of(package) == sources_hash() == sources_hash()


def test_a_request_holds_it(tmp_path: Path) -> None:
    request = BuildRequest(model="demo", res=("128",), out=f"{tmp_path}/x.onnx", weights="random")
    (job,) = request.resolve(look=True).parts
    assert job.identity["sources"] == sources_hash()
    assert {"torch", "diffusers", "onnx"} <= job.identity["versions"].keys()


def test_every_file_counts(package: Path) -> None:
    assert len(NAMES) > 100
    before = hash_of(package)
    hashes = {before}
    for name in NAMES:
        path = package / name
        content = path.read_bytes()
        path.write_bytes(content + b"#")
        hashes.add(hash_of(package))
        path.write_bytes(content)
    assert len(hashes) == 1 + len(NAMES), "each change gives a hash of its own"
    assert hash_of(package) == before


def test_names_count(package: Path) -> None:
    before = hash_of(package)
    moved = package / "api.py"
    renamed = moved.rename(package / "apj.py")
    assert hash_of(package) != before
    renamed.rename(moved)
    (package / "drift" / "new.py").touch()
    assert hash_of(package) != before
    (package / "drift" / "new.py").unlink()
    assert hash_of(package) == before


def test_caches_and_data_do_not(package: Path) -> None:
    before = hash_of(package)
    cache = package / "passes" / "__pycache__"
    cache.mkdir()
    (cache / "ops.cpython-311.pyc").write_bytes(b"compiled")
    (package / "py.typed").write_text("changed")
    assert hash_of(package) == before


def test_a_package_in_a_zip_file_has_the_same_hash(package: Path, tmp_path: Path) -> None:
    archive = tmp_path / "package.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for path in sorted(package.rglob("*.py"), reverse=True):
            zipped.write(path, path.relative_to(package.parent))
    assert hash_of(zipfile.Path(archive, "todo_compile/")) == hash_of(package)


def test_without_any_code_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing says whether an output is stale"):
        hash_of(tmp_path)
