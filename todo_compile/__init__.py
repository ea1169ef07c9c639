"""todo-compile: cheap self-attention at high resolution, at compile time.

    import todo_compile

    report = todo_compile.plan("sd15", res=2048)
    result = todo_compile.compile("sd15", res=2048, out="engine.plan", weights="random")
    module, report = todo_compile.rewrite(unet, example_inputs)

Importing this package imports neither torch nor diffusers.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from todo_compile.api import compile as compile
    from todo_compile.api import compile_bundle as compile_bundle
    from todo_compile.api import plan as plan
    from todo_compile.api import rewrite as rewrite
    from todo_compile.build.bundle_job import BundleResult as BundleResult
    from todo_compile.build.compiler import CompileResult as CompileResult
    from todo_compile.build.request import BuildRequest as BuildRequest
    from todo_compile.bundle.plan import TunedPlan as TunedPlan
    from todo_compile.dynamo.accelerate import accelerate as accelerate
    from todo_compile.dynamo.accelerate import restore as restore
    from todo_compile.dynamo.backend import clear_reports as clear_reports
    from todo_compile.dynamo.backend import reports as reports
    from todo_compile.dynamo.calls import summary as summary
    from todo_compile.errors import TodoError as TodoError
    from todo_compile.options import PlanOptions as PlanOptions
    from todo_compile.passes.report import HoistStop as HoistStop
    from todo_compile.passes.report import Report as Report
    from todo_compile.passes.report import SiteReport as SiteReport
    from todo_compile.runtime.loading import load as load
    from todo_compile.runtime.pipeline import load_pipeline as load_pipeline
    from todo_compile.tuning.run import tune as tune

try:
    __version__ = version("todo-compile")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

if os.environ.get("TODO_COMPILE_LOG"):
    from todo_compile.logs import configure

    configure()

_HOMES = {
    "load": "runtime.loading",
    "load_pipeline": "runtime.pipeline",
    "plan": "api",
    "rewrite": "api",
    "BundleResult": "build.bundle_job",
    "BuildRequest": "build.request",
    "compile_bundle": "api",
    "compile": "api",
    "CompileResult": "build.compiler",
    "accelerate": "dynamo.accelerate",
    "clear_reports": "dynamo.backend",
    "reports": "dynamo.backend",
    "restore": "dynamo.accelerate",
    "summary": "dynamo.calls",
    "PlanOptions": "options",
    "TodoError": "errors",
    "HoistStop": "passes.report",
    "Report": "passes.report",
    "SiteReport": "passes.report",
    "TunedPlan": "bundle.plan",
    "tune": "tuning.run",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
