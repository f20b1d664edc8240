"""Where the key may go: Together, this machine, and where the user sent it by naming a variable for another host."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
import yarl
from support import MODEL

from batchrun.api.key import key_for
from batchrun.errors import UsageError
from batchrun.job import TOGETHER_HOSTS, Asking, Job, base_url, is_loopback, provider

KEY = "an-example-key-of-24-chars"


def job(url: str, tmp_path: Path, **fields: str) -> Job:
    return Job(("in.jsonl",), str(tmp_path / "c.db"), Asking(model=MODEL), base_url=url, **fields)


TRUSTED = [
    "https://api.together.ai",
    "https://api.together.ai/v1",
    "https://API.Together.AI",
    "https://api.together.ai:443",
    "https://api.together.xyz",
    "http://127.0.0.1:8000",
    "http://127.0.0.2:8000",
    "http://127.255.255.254",
    "http://[::1]:8000",
    "http://[0:0:0:0:0:0:0:1]",
    "http://localhost",
    "http://LOCALHOST:8000",
]
OTHERS = [
    "https://api.together.ai.evil.com",
    "https://evil.com/api.together.ai",
    "https://evil.com/?api.together.ai",
    "https://evil.com#api.together.ai",
    "https://api.together.ai@evil.com",
    "https://api.together.ai:pass@evil.com",
    "https://api-together.ai",
    "https://xapi.together.ai",
    "https://api.together.ai.",
    "https://together.ai",
    "https://www.together.ai",
    "https://together.xyz",
    "https://api.together.com",
    "https://api.together.a\u0131",
    "https://api.openai.com",
    "https://openrouter.ai/api/v1",
    "http://localhost.evil.com",
    "http://evil.localhost",
    "http://127.0.0.1.evil.com",
    "http://127.0.0.1.nip.io",
    "http://128.0.0.1",
    "http://0.0.0.0",
    "http://10.0.0.1",
    "http://192.168.1.5:8000",
    "http://169.254.169.254",
    "http://[::2]",
    "http://[fe80::1]",
    "http://2130706433.evil.com",
    "",
    "api.together.ai",
]


@pytest.mark.parametrize("url", TRUSTED)
def test_the_key_goes_to_together_and_to_this_machine(url: str, tmp_path: Path):
    assert key_for(job(url, tmp_path), KEY) == KEY
    assert key_for(job(url, tmp_path), None) is None


@pytest.mark.parametrize("url", OTHERS)
def test_togethers_key_goes_nowhere_else(url: str, tmp_path: Path):
    assert key_for(job(url, tmp_path), KEY) is None


@pytest.mark.parametrize("url", [*TRUSTED, *OTHERS])
def test_the_key_of_a_variable_named_for_another_host_goes_there(url: str, tmp_path: Path):
    assert key_for(job(url, tmp_path, key_env="OTHER_API_KEY"), KEY) == KEY


@pytest.mark.parametrize("url", ["https://api.together.ai", "https://api.openai.com"])
def test_a_simulated_job_sends_no_key_off_this_machine(url: str, tmp_path: Path):
    simulated = Job(("in.jsonl",), str(tmp_path / "c.db"), Asking(model=MODEL), base_url=url, simulate=True)
    assert key_for(simulated, KEY) is None


@pytest.mark.parametrize(
    "url",
    [
        *TRUSTED,
        *OTHERS,
        "https://evil.com\\@api.together.ai",
        "https://api.together.ai\\@evil.com",
        "https://evil.com\\.api.together.ai",
        "https://api.together.ai\t.evil.com",
        "https://api.together.ai\n.evil.com",
        "https://evil.com;@api.together.ai",
        "https://evil.com%2f@api.together.ai",
        "https://api.together.ai%2eevil.com",
        "https://evil.com%00.api.together.ai",
        "https://api.together.ai%00.evil.com",
        "https://evil.com:443@api.together.ai",
        "https://evil.com/@api.together.ai",
        "https:/api.together.ai",
        "https:///api.together.ai",
        "https:\\\\api.together.ai",
        " https://api.together.ai",
        "https://\uff41pi.together.ai",
        "https://api\u3002together.ai",
    ],
)
def test_the_host_that_is_trusted_is_the_host_that_is_called(url: str):
    """The check reads addresses with one library and the client with another: that must open no gap."""
    try:
        accepted = base_url(url)
        called = yarl.URL(accepted + "/v1/models").host or ""
    except (UsageError, ValueError):
        return
    if provider(accepted) == "together":
        assert called in TOGETHER_HOSTS
    if is_loopback(accepted):
        assert called == "localhost" or ipaddress.ip_address(called).is_loopback
