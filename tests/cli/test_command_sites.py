"""Factors of single sites belong to one model at one size: they go nowhere else by accident."""

from __future__ import annotations

from pathlib import Path

import pytest

import todo_compile
from todo_compile.build import bundles
from todo_compile.build.phases import DENSE, DenoiserPhase, phase_job
from todo_compile.build.request import BuildRequest
from todo_compile.build.verification import pinned
from todo_compile.options import PlanOptions


def one_site(model: Path) -> PlanOptions:
    """Factor 4 for the first self-attention alone."""
    report = todo_compile.plan(str(model), res=256, options=PlanOptions(factors=()))
    first = next(s for s in report.sites if s.kind == "self")
    return PlanOptions(factors=(), sites=((first.name, (4, 4)),))


def test_a_dense_twin_is_dense(model: Path, tmp_path: Path) -> None:
    options = one_site(model)
    request = BuildRequest(
        model=str(model), res=("256",), out=f"{tmp_path}/unet.onnx", weights="random",
        options=options,
    )  # fmt: skip
    (job,) = request.resolve().parts
    assert todo_compile.plan(str(model), res=256, options=job.options).rewritten == 1
    twin = phase_job(job, DenoiserPhase(0.7, DENSE))
    assert todo_compile.plan(str(model), res=256, options=twin.options).rewritten == 0
    assert twin.identity["plan"] != job.identity["plan"]


def test_a_decoder_gets_no_sites_of_the_unet(model: Path) -> None:
    request = BuildRequest(model=str(model), res=("256",), out="b/", options=one_site(model))
    options = bundles._options("vae_decoder", request)
    assert options is not None
    assert options.sites == ()


@pytest.mark.slow
def test_verification_at_another_size_rewrites_the_same_sites(model: Path) -> None:
    for options in (one_site(model), PlanOptions(), PlanOptions(factors=())):
        full = todo_compile.plan(str(model), res=256, options=options)
        small = todo_compile.plan(str(model), res=128, options=pinned(options, full))
        assert [(s.name, s.factor) for s in small.sites] == [(s.name, s.factor) for s in full.sites]
