"""The site of docs/: it is built without a warning, whole, and loads nothing from elsewhere."""

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

import kitchen_assets
from tests.docs.test_readme import ROOT, VENV
from tests.pages import DOCS

pytestmark = pytest.mark.full

CONFIG = ROOT / "mkdocs.yml"
ASSETS = {"script": ("src",), "img": ("src", "srcset"), "iframe": ("src",), "source": ("src",), "video": ("src",)}
LINKED = ("stylesheet", "icon", "preload", "prefetch", "preconnect", "manifest", "modulepreload")


def build(config: Path, site: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(VENV / "bin" / "mkdocs"), "build", "--strict", "--config-file", str(config), "--site-dir", str(site)],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


class Page(HTMLParser):
    """What a page of the site loads, where it links to, and its headings' anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.anchors.add(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "link" and set(values.get("rel", "").split()) & set(LINKED):
            self.loads.append(values["href"])
        self.loads += [values[name] for name in ASSETS.get(tag, ()) if name in values]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "site"
    done = build(CONFIG, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("*.html"))}


def settings() -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    return found


def test_every_page_is_in_the_navigation_and_in_the_site(pages: dict[str, Page]) -> None:
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if "pages" not in path.parts}
    expected = {name.replace("README.md", "index.html").replace(".md", ".html") for name in written}
    assert len(expected) > 40
    assert set(pages) - {"404.html"} == expected
    linked = {link.partition("#")[0] for link in pages["index.html"].links}
    # The first page's own link is that of the site's name.
    assert expected - linked <= {"index.html"}


def test_the_order_of_the_navigation() -> None:
    titles = [next(iter(item)) for item in settings()["nav"]]  # type: ignore[attr-defined]
    assert titles == [
        *("Getting started", "Concepts", "Methods", "Recipes", "Workflows of your own", "Writing adapters"),
        *("Telemetry", "Backends", "Durability", "Storage", "S3", "Operating", "Security", "Migration"),
        *("API reference", "Architecture", "Decisions"),
    ]


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    loaded = {address for page in pages.values() for address in page.loads}
    assert len(loaded) > 3
    assert [address for address in loaded if urlsplit(address).netloc] == []
    # A style sheet may load further files.
    for style in site.rglob("*.css"):
        assert (
            re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)\"']*", style.read_text(encoding="utf-8")) == []
        )


def test_every_link_leads_somewhere(site: Path, pages: dict[str, Page]) -> None:
    """Also those that mkdocs doesn't look at: of the theme, and of what is written from docstrings."""
    followed = 0
    for name, page in pages.items():
        if name == "404.html":
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (site / name).parent / unquote(parts.path) if parts.path else site / name
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (name, link)
            if parts.fragment and parts.fragment != "__skip":
                there = pages[target.resolve().relative_to(site.resolve()).as_posix()]
                assert unquote(parts.fragment) in there.anchors, (name, link)
            followed += 1
    assert followed > 1000


def test_links_between_pages_are_right_on_a_forge_too() -> None:
    """Relative, to a file of the repository: README.md and docs/ link among each other."""
    named = 0
    for path in [ROOT / "README.md", *DOCS.glob("*.md"), *(DOCS / "decisions").glob("*.md")]:
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            parts = urlsplit(link)
            if not parts.scheme and parts.path:
                assert (path.parent / parts.path).exists(), (path.name, link)
                named += 1
    assert named > 100


def test_marks_of_blocks_are_none_of_the_text(site: Path) -> None:
    page = (site / "adapters.html").read_text(encoding="utf-8")
    assert '<span class="filename">tickets.py</span>' in page
    assert "file=" not in page
    assert "norun" not in (site / "operating.html").read_text(encoding="utf-8")
    for found in site.rglob("*.html"):
        assert "```" not in found.read_text(encoding="utf-8"), found.name


def test_every_public_name_and_every_port_is_in_the_reference(pages: dict[str, Page]) -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    told = re.findall(r"^::: (\S+)$", text, re.M)
    ports = {f"kitchen_resources.{path.parent.name}.port" for path in (ROOT / "kitchen_resources").glob("*/port.py")}
    # A package has that name too.
    names = {f"kitchen_assets.{name}".replace(".workflows", ".door.workflows") for name in kitchen_assets.__all__}
    assert len(told) == len(set(told))
    assert set(told) == names | ports | {"kitchen_resources.errors"}
    anchors = pages["api.html"].anchors
    assert set(told) <= anchors
    for name in ("datasets.port.DatasetStore.open", "training.port.TrainingClient.optim_step", "errors.BlobError"):
        assert f"kitchen_resources.{name}" in anchors


def test_every_decision_is_in_their_index() -> None:
    folder = DOCS / "decisions"
    listed = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text(encoding="utf-8"))
    assert listed == sorted(path.name for path in folder.glob("0*.md"))


def test_what_is_built_is_no_part_of_the_repository() -> None:
    folder = str(settings()["site_dir"])
    ignored = subprocess.run(["git", "check-ignore", "-q", f"{folder}/index.html"], cwd=ROOT, check=False)
    assert ignored.returncode == 0


PLANTED = {
    "a page that isn't there": ("[gone](no_such_page.md)", "no_such_page.md"),
    "a heading of another page": ("[gone](recipes.md#no-such-heading)", "no-such-heading"),
    "a heading of its own": ("[gone](#no-such-heading)", "no-such-heading"),
    "a name of the reference": ("::: kitchen_assets.no_such_name", "no_such_name"),
}


def settings_elsewhere() -> str:
    """mkdocs.yml as it is, for a folder that has none of the code."""
    return CONFIG.read_text(encoding="utf-8").replace("paths: [.]", f"paths: [{ROOT}]")


def test_a_link_to_nothing_in_any_page_fails_the_build(tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "mkdocs.yml").write_text(settings_elsewhere())
    with (tmp_path / "docs" / "security.md").open("a") as page:
        page.write("\n[gone](no_such_page.md)\n")
    broken = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert broken.returncode != 0
    assert "Doc file 'security.md' contains a link 'no_such_page.md'" in broken.stdout + broken.stderr
    assert "Aborted with 1 warnings" in broken.stdout + broken.stderr


@pytest.mark.parametrize("case", PLANTED)
def test_a_link_to_nothing_fails_the_build_whatever_it_is(tmp_path: Path, case: str) -> None:
    """Two pages, of which only the planted line is wrong."""
    planted, said = PLANTED[case]
    settings, _, _ = settings_elsewhere().partition("\nnav:\n")
    (tmp_path / "mkdocs.yml").write_text(f"{settings}\nnav:\n  - One: index.md\n  - Two: recipes.md\n")
    (tmp_path / "docs").mkdir()
    shutil.copyfile(DOCS / "hooks.py", tmp_path / "docs" / "hooks.py")
    (tmp_path / "docs" / "recipes.md").write_text("# Recipes\n")
    page = tmp_path / "docs" / "index.md"
    page.write_text("# A page\n\n[there](recipes.md)\n")
    sound = build(tmp_path / "mkdocs.yml", tmp_path / "sound")
    assert sound.returncode == 0, sound.stderr
    page.write_text(f"# A page\n\n{planted}\n")
    broken = build(tmp_path / "mkdocs.yml", tmp_path / "broken")
    assert broken.returncode != 0
    assert said in broken.stdout + broken.stderr


def test_the_packages_are_pinned() -> None:
    pinned = {
        re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower()
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    }
    assert {"mkdocs", "mkdocs-material", "mkdocstrings", "mkdocstrings-python"} <= pinned
