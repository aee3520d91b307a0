"""Publishing a registered version, with the real client, on a hub on loopback."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import kitchen_assets as kitchen
from kitchen_resources.errors import ConfigError, HubError, RegistryError
from kitchen_resources.hub.fetch import fetch_model
from kitchen_resources.recipes.supervised import SupervisedRecipe
from tests.loopback_hub import TOKEN, LoopbackHub, hub_in_use
from tests.rail import Rail

# Of the client's own doing.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "org/dates"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A hub at which a token may write one repository."""
    # Of its faster protocol the hub on loopback knows nothing; the client asks for it by a variable.
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with hub_in_use(monkeypatch, tmp_path / "hub") as running:
        running.access[TOKEN] = {REPO}
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


@pytest.fixture
def rail() -> Rail:
    """A store with one version of one model."""
    found = Rail()
    found.add("dates", SupervisedRecipe)
    found.register("dates")
    return found


def files_of(hub: LoopbackHub, branch: str = "main") -> dict[str, bytes]:
    repo = hub.repos["models", REPO]
    return repo.commits[repo.refs[branch]]


def test_a_version_is_published_with_its_card_and_can_be_fetched(
    hub: LoopbackHub, rail: Rail, tmp_path: Path
) -> None:
    pushed = kitchen.push("dates@candidate", REPO, blobs=rail.blobs)
    assert (pushed.repo_id, pushed.branch, pushed.existed) == (REPO, "main", False)
    assert pushed.page == f"{hub.endpoint}/{REPO}"
    assert hub.repos["models", REPO].private
    assert hub.repos["models", REPO].refs["main"] == pushed.commit
    version = rail.registry.get("dates", 1)
    assert hub.messages[-1] == f"dates, version 1 (run {version.fingerprint[:12]}, step {version.step})"

    exported = kitchen.export("dates@1", tmp_path / "exported", blobs=rail.blobs)
    expected = {path.name: path.read_bytes() for path in exported.iterdir()}
    published = files_of(hub)
    assert {name: data for name, data in published.items() if name in expected} == expected
    assert set(published) - set(expected) == {"README.md", ".gitattributes"}

    fetched = fetch_model(REPO)
    assert fetched.commit == pushed.commit
    assert (fetched.folder / "model.safetensors").read_bytes() == expected["model.safetensors"]


def test_the_card_says_what_it_is_and_nothing_of_this_machine(hub: LoopbackHub, rail: Rail, tmp_path: Path) -> None:
    kitchen.push("dates@1", REPO, blobs=rail.blobs)
    text = files_of(hub)["README.md"].decode()
    _, head, body = text.split("---\n", 2)
    data = yaml.safe_load(head)
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation"
    assert data["tags"] == ["crucible-kitchen", "supervised"]
    assert "base_model" not in data, "the embedded base is on no hub"
    version = rail.registry.get("dates", 1)
    assert version.fingerprint in body
    recipe = json.loads(body.split("```json\n")[1].split("```")[0])
    assert recipe == version.identity["recipe"]
    for name, found in version.metrics.items():
        assert f"| {name} |" in body
        assert f"{found['value']:.4g}" in body
    for secret in (str(tmp_path), str(Path.home()), TOKEN):
        assert secret not in text


def test_the_same_again_changes_nothing_and_another_version_replaces_it(hub: LoopbackHub, rail: Rail) -> None:
    first = kitchen.push("dates@1", REPO, blobs=rail.blobs)
    repo = hub.repos["models", REPO]
    repo.commit({**files_of(hub), "picture.png": b"png", "model-00001-of-00002.safetensors": b"old"})
    before = repo.refs["main"]
    rail.register("dates", learning_rate=1.0e-4)
    second = kitchen.push("dates@2", REPO, blobs=rail.blobs)
    assert second.existed
    assert second.commit not in (first.commit, before)
    published = files_of(hub)
    assert published["picture.png"] == b"png", "what isn't of a model is left alone"
    assert "model-00001-of-00002.safetensors" not in published
    assert "model-00001-of-00002.safetensors" in repo.commits[before], "and stays in the history"
    again = kitchen.push("dates@2", REPO, blobs=rail.blobs)
    assert again.commit == second.commit or files_of(hub) == published


def test_a_branch_of_its_own(hub: LoopbackHub, rail: Rail) -> None:
    kitchen.push("dates@1", REPO, blobs=rail.blobs, private=False)
    assert not hub.repos["models", REPO].private
    main = hub.repos["models", REPO].refs["main"]
    rail.register("dates", learning_rate=1.0e-4)
    pushed = kitchen.push("dates@2", REPO, blobs=rail.blobs, branch="next")
    repo = hub.repos["models", REPO]
    assert repo.refs == {"main": main, "next": pushed.commit}


def test_what_cannot_be_published_is_said_before_anything_is_sent(
    hub: LoopbackHub, rail: Rail, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="no alias 'production'"):
        kitchen.push("dates@production", REPO, blobs=rail.blobs)
    with pytest.raises(RegistryError):
        kitchen.push("dates@7", REPO, blobs=rail.blobs)
    with pytest.raises(ConfigError, match="not the name of a model on a hub"):
        kitchen.push("dates@1", "no name at all", blobs=rail.blobs)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE forbids the network"):
        kitchen.push("dates@1", REPO, blobs=rail.blobs)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="publishing needs a token") as refused:
        kitchen.push("dates@1", REPO, blobs=rail.blobs)
    assert "HF_TOKEN" in refused.value.fix
    assert hub.asked == []


def test_what_the_hub_refuses_is_said_without_the_token(hub: LoopbackHub, rail: Rail) -> None:
    with pytest.raises(HubError) as refused:
        kitchen.push("dates@1", "other/place", blobs=rail.blobs)
    assert "other/place" in str(refused.value)
    assert TOKEN not in str(refused.value)
    hub.fault(r"POST /api/models/org/dates/commit", status=403, body=b'{"error": "{token} may not"}')
    with pytest.raises(HubError) as refused:
        kitchen.push("dates@1", REPO, blobs=rail.blobs)
    assert TOKEN not in str(refused.value)
