"""What undoes a protection is refused by name, in a profile and in the chart's values, which hold one list."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from alignment.config import load_profile
from alignment.config.environment import REFUSED, refused
from alignment.errors import ConfigError, ConfigErrors

CHART = Path(__file__).parents[2] / "charts" / "kubealign" / "templates" / "_helpers.tpl"
UNDOES = ["RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_enable_cluster_auth", "RAY_USE_TLS",
          "RAY_TLS_CA_CERT", "RAY_ADDRESS", "RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "FQ_RAY_IP", "RAY_DEBUG",
          "RAY_DEBUGGER_EXTERNAL", "RAY_RUNTIME_ENV_HOOK", "RAY_JOB_SUBMIT_HOOK", "RAY_RUNTIME_ENV_PLUGINS",
          "RAY_LD_PRELOAD_ON_WORKERS", "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "PYTHONPATH", "PYTHONSTARTUP",
          "PYTHONHOME", "PYTHONINSPECT", "PYTHONOPTIMIZE", "PYTHONHTTPSVERIFY", "SSLKEYLOGFILE", "BASH_ENV", "PATH",
          "HF_DATASETS_TRUST_REMOTE_CODE", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "HOME", "TMPDIR", "KUBEALIGN_ATTEMPT",
          "KUBEALIGN_CACHE"]
HARMLESS = ["NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "HF_HOME", "HF_TOKEN_PATH", "OMP_NUM_THREADS", "AWS_DEFAULT_REGION",
            "RAY_gcs_server_request_timeout_seconds", "RAY_debug_dump_period_milliseconds", "RAY_DEDUP_LOGS",
            "RAY_memory_monitor_refresh_ms", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER", "CUDA_VISIBLE_DEVICES",
            "HTTPS_PROXY", "SSL_CERT_FILE", "WANDB_PROJECT", "TOKENIZERS_PARALLELISM", "RAY_health_check_timeout_ms",
            "MYPATH", "HOMEPAGE"]


@pytest.mark.parametrize("name", UNDOES)
def test_a_variable_that_undoes_a_protection_is_refused_by_name(name: str) -> None:
    with pytest.raises((ConfigError, ConfigErrors)) as error:
        load_profile("s3", [f"cluster.env.{name}='x'"])
    assert f"cluster.env.{name}" in str(error.value)
    assert refused(name) in str(error.value)


@given(st.sampled_from(UNDOES), st.data())
def test_no_spelling_of_its_letters_gets_past(name: str, data: st.DataObject) -> None:
    assert refused("".join(data.draw(st.sampled_from([letter.lower(), letter.upper()])) for letter in name))


@pytest.mark.parametrize("name", HARMLESS)
def test_what_tunes_a_library_is_let_through(name: str) -> None:
    assert refused(name) is None
    profile = load_profile("s3", [f"cluster.env.{name}='1'"])
    assert profile.cluster is not None
    assert profile.cluster.env == {name: "1"}


def test_the_chart_refuses_the_same() -> None:
    text = CHART.read_text(encoding="utf-8").split('define "kubealign.refusedEnv" -}}')[1].split("{{- end")[0]
    assert tuple(map(tuple, yaml.safe_load(text))) == REFUSED
    assert all(re.compile(pattern) for pattern, _ in REFUSED)


@pytest.mark.parametrize("url", ["/artifacts/../../tmp/evil", "/artifacts/./x", "/artifacts/x/..",
                                 "/artifacts/%2e%2e/x", "s3://bucket/../other",
                                 "s3://bucket/a::http://169.254.169.254/x", "file:///etc", "local:///etc", "simplecache::s3://bucket/a"])
def test_a_store_says_where_it_leads(url: str) -> None:
    claim = "cluster.storage.claim=c" if url.startswith("/") else "cluster.storage.secret=s"
    with pytest.raises((ConfigError, ConfigErrors), match=r"cluster\.storage"):
        load_profile("s3", [f"cluster.storage.url='{url}'", claim])
