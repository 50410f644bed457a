"""Names of RayJobs: what Kubernetes and KubeRay allow, the same each time, and no two alike."""

from __future__ import annotations

import re

from hypothesis import assume, given
from hypothesis import strategies as st

from alignment.cluster.manifests.labels import job_name, service_name
from alignment.config.stages.fields import NAME

NAMES = st.from_regex(NAME, fullmatch=True)
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
ATTEMPTS = st.integers(1, 10**6)


@given(NAMES, NAMES, DIGESTS, ATTEMPTS)
def test_job_names_are_dns_labels_of_at_most_47_characters(run: str, stage: str, digest: str, attempt: int) -> None:
    name = job_name(run, stage, digest, attempt)
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name)
    assert len(name) <= 47
    assert name == job_name(run, stage, digest, attempt)
    assert name.endswith(f"-{digest[:8]}-{attempt}")
    if len(run) <= 18 and len(stage) <= 12:
        assert name.startswith(f"{run}-{stage}-")


@given(st.from_regex(r"[a-z][a-z0-9.-]{0,39}", fullmatch=True), st.from_regex(r"[a-z][a-z0-9.-]{0,39}", fullmatch=True))
def test_a_dot_becomes_a_name_that_a_rayjob_may_have_and_no_other_run_has(run: str, stage: str) -> None:
    name = job_name(run, stage, "0" * 64, 1)
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name)
    assert len(name) <= 47
    plain = run.replace(".", "-")
    assert plain == run or name != job_name(plain, stage, "0" * 64, 1)


@given(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=38), st.sampled_from("ab"), st.sampled_from("xy"),
       DIGESTS, ATTEMPTS, ATTEMPTS)
def test_job_names_of_others_differ(start: str, left: str, right: str, digest: str, one: int, other: int) -> None:
    assume(one != other)
    name = job_name(start + left, "sft", digest, one)
    assert name != job_name(start + right, "sft", digest, one)
    assert name != job_name(start + left, "sft", digest, other)
    assert job_name("run", start + left, digest, one) != job_name("run", start + right, digest, one)


@given(st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,60}[a-z0-9])?", fullmatch=True) | NAMES)
def test_a_runs_service_has_a_name_that_kuberay_takes(run: str) -> None:
    """KubeRay allows a RayService 47 characters, a letter first; NAME-serve-svc has to be a DNS label too."""
    name = service_name(run)
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name)
    assert len(name) <= 47
    assert len(f"{name}-serve-svc") <= 63
    assert name == service_name(run)
    if len(run) <= 40 and re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", run):
        assert name == run


@given(st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=45), st.sampled_from([("a", "b"), (".", "-")]))
def test_no_two_runs_share_a_service(start: str, ends: tuple[str, str]) -> None:
    one, other = (service_name(f"r{start}{end}z") for end in ends)
    assert one != other
