"""Which endpoints credentials may be sent to."""

import traceback
from typing import Any

import pytest

from kitchen_resources.endpoints import ALLOWED_ENDPOINTS, check_endpoint
from kitchen_resources.errors import ConfigError
from kitchen_resources.training.fireworks.config import API, FireworksBackend, FireworksJobsBackend
from kitchen_resources.training.ray.config import RayBackend
from kitchen_resources.training.tinker.config import TINKER, TinkerBackend

DEFAULT = "https://huggingface.co"


@pytest.fixture(autouse=True)
def nothing_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ALLOWED_ENDPOINTS, raising=False)


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("https://huggingface.co", "https://huggingface.co"),
        ("https://huggingface.co/", "https://huggingface.co"),
        ("HTTPS://HuggingFace.CO", "https://huggingface.co"),
        ("https://huggingface.co:443", "https://huggingface.co"),
        ("https://huggingface.co.", "https://huggingface.co"),
        ("https://huggingface.co/mirror/", "https://huggingface.co/mirror"),
        ("http://localhost", "http://localhost"),
        ("http://localhost:8000/", "http://localhost:8000"),
        ("https://LOCALHOST:8000", "https://localhost:8000"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("http://127.8.9.10", "http://127.8.9.10"),
        ("http://[::1]:5000", "http://[::1]:5000"),
        ("http://[0:0:0:0:0:0:0:1]", "http://[::1]"),
    ],
)
def test_the_default_and_loopback_are_allowed(url: str, canonical: str) -> None:
    assert check_endpoint(url, DEFAULT) == canonical


@pytest.mark.parametrize(
    "url",
    [
        "https://huggingface.co.evil.com",
        "https://evil.com/huggingface.co",
        "https://evil-huggingface.co",
        "https://sub.huggingface.co",
        "http://huggingface.co",
        "https://huggingface.co:444",
        "https://huggingface.co:80",
        "http://localhost.evil.com",
        "http://evil.localhost",
        "http://127.0.0.1.evil.com",
        "http://128.0.0.1",
        "http://0.0.0.0:80",
        "http://2130706433",
        "http://0x7f.1",
        "http://127.1",
        "http://[::ffff:127.0.0.1]",
        "http://[::2]",
        "http://10.0.0.1",
    ],
)
def test_other_endpoints_are_not_allowed(url: str) -> None:
    with pytest.raises(ConfigError, match="not an endpoint that credentials may be sent to") as caught:
        check_endpoint(url, DEFAULT, where="HF_ENDPOINT")
    assert str(caught.value).startswith("HF_ENDPOINT: ")
    assert f"export {ALLOWED_ENDPOINTS}=" in caught.value.fix


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://huggingface.co@evil.com", "user name or password"),
        ("https://huggingface.co:pass@evil.com", "user name or password"),
        ("https://user:pass@huggingface.co", "user name or password"),
        ("https://@huggingface.co", "user name or password"),
        ("https://huggingface.co\\@evil.com", "characters"),
        ("https://huggingface.co\t.evil.com", "characters"),
        ("https://huggingface.co\n", "characters"),
        (" https://huggingface.co", "characters"),
        ("https://huggingface\u3002co", "characters"),
        ("https://huggingf\u0430ce.co", "characters"),
        ("", "characters"),
        ("https://huggingface%2eco", "plain host name"),
        ("https://", "plain host name"),
        ("https://a..b", "plain host name"),
        ("https:///huggingface.co", "plain host name"),
        ("huggingface.co", "http:// or https://"),
        ("//huggingface.co", "http:// or https://"),
        ("ftp://localhost", "http:// or https://"),
        ("file:///etc/passwd", "http:// or https://"),
        ("https://huggingface.co?x=1", "query or a fragment"),
        ("https://huggingface.co#x", "query or a fragment"),
        ("https://huggingface.co/a/../b", "`.`, `..` or %"),
        ("https://huggingface.co/a/%2e%2e/b", "`.`, `..` or %"),
        ("https://huggingface.co:port", "parsed"),
        ("https://huggingface.co:99999", "parsed"),
        ("http://[::1", "parsed"),
        ("http://[1:2]", "IPv6|parsed"),
    ],
)
def test_an_endpoint_that_is_not_plain_is_refused(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_endpoint(url, DEFAULT)


@pytest.mark.parametrize("form", ["https://user:{}@mirror.example.com", "https://u:{}@a:x", "https://u:{} @a"])
def test_a_password_in_the_url_is_never_repeated(form: str) -> None:
    password = "s3cret"
    with pytest.raises(ConfigError) as caught:
        check_endpoint(form.format(password), DEFAULT)
    assert password not in "".join(traceback.format_exception(caught.value))


def test_a_listed_endpoint_is_allowed_by_scheme_host_port_and_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED_ENDPOINTS, "https://mirror.example.com:8443/hub , http://plain.example.com,")
    for url in (
        "https://mirror.example.com:8443/hub",
        "https://mirror.example.com:8443/hub/eu",
        "http://plain.example.com",
    ):
        assert check_endpoint(url, DEFAULT) == url
    for url in (
        "https://mirror.example.com:8443",
        "https://mirror.example.com:8443/hubris",
        "https://mirror.example.com/hub",
        "http://mirror.example.com:8443/hub",
        "https://plain.example.com",
        "http://plain.example.com.evil.com",
    ):
        with pytest.raises(ConfigError):
            check_endpoint(url, DEFAULT)


def test_the_fix_keeps_what_is_listed_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED_ENDPOINTS, "https://one.example.com")
    with pytest.raises(ConfigError) as caught:
        check_endpoint("https://two.example.com", DEFAULT)
    line = "https://one.example.com,https://two.example.com"
    assert f"export {ALLOWED_ENDPOINTS}={line} " in caught.value.fix
    monkeypatch.setenv(ALLOWED_ENDPOINTS, line)
    assert check_endpoint("https://two.example.com", DEFAULT) == "https://two.example.com"


@pytest.mark.parametrize("entry", ["mirror.example.com", "https://user:pass@mirror.example.com", "https://*"])
def test_a_malformed_entry_of_the_list_is_named(monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    monkeypatch.setenv(ALLOWED_ENDPOINTS, entry)
    with pytest.raises(ConfigError) as caught:
        check_endpoint("https://mirror.example.com", DEFAULT)
    assert caught.value.where == ALLOWED_ENDPOINTS


@pytest.mark.parametrize(
    ("backend", "field"),
    [
        (TinkerBackend(base_model="m", base_url="https://elsewhere.example"), "trainer.backend.tinker.base_url"),
        (
            FireworksBackend(base_model="m", base_url="https://elsewhere.example"),
            "trainer.backend.fireworks.base_url",
        ),
        (
            FireworksJobsBackend(base_model="m", base_url="https://elsewhere.example"),
            "trainer.backend.fireworks_jobs.base_url",
        ),
        (RayBackend(address="http://elsewhere.example:8265"), "trainer.backend.ray.address"),
    ],
)
def test_the_keys_of_backends_go_to_listed_endpoints_only(
    backend: Any, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ConfigError, match=rf"^{field}: http.*elsewhere\.example.* is not an endpoint that credentials"
    ):
        backend.adapter()
    monkeypatch.setenv(ALLOWED_ENDPOINTS, "https://elsewhere.example,http://elsewhere.example:8265")
    assert backend.adapter().capabilities().backend in ("tinker", "fireworks", "fireworks_jobs", "ray")


def test_the_default_of_the_tinker_sdk_is_allowed() -> None:
    assert TinkerBackend(base_model="m", base_url=TINKER).adapter().capabilities().backend == "tinker"
    assert TinkerBackend(base_model="m").adapter().capabilities().backend == "tinker"


def test_the_default_of_fireworks_sdk_is_allowed_and_the_paths_below_it() -> None:
    for url in (API, f"{API}/training/v1/serverless", None):
        assert FireworksBackend(base_model="m", base_url=url).adapter().capabilities().backend == "fireworks"
        assert FireworksJobsBackend(base_model="m", base_url=url).adapter().capabilities().backend == "fireworks_jobs"
