"""Spelling, links and pictures of README, docs and docstrings."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.pipelines.report.test_report import contrast

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
MEANT = "trian,acuracy,nam,summar"
"""Mistakes that tests make on purpose, and a stem below."""
AMERICAN = re.compile(
    r"\b((?:behavi|col|fav|neighb|hon|lab)or(?:s|ed|ing|ful|ite|hood)?|cent(?:er)(?:s|ed)?|gray(?:scale)?"
    r"|(?:normal|optim|initial|summar|quant|regular|general|serial|recogn|organ|minim|maxim|real|parallel)"
    r"iz(?:e|es|ed|er|ers|ing|ation)|analyz(?:e|es|ed|ing)|(?:label|model|cancel|travel)(?:ed|ing)(?<=eled|elin)"
    r"|catalog|artifacts?)\b",
    re.IGNORECASE,
)

TURNS = {  # translated or invented, and what to write instead
    r"anew": "again, or from scratch",
    r"but for": "except for",
    r"go(?:es)? together": "work together",
    r"whom": "name who or what it is",
    r"told (?:from|apart)": "distinguished from",
    r"liv(?:es|ing) on": "needs",
    r"(?:all|just) the same": "still",
    r"one's own": "your own",
    r"said so": "name what is said",
    r"keys? (?:initial|subsets|the draw)": "random seed",
    r"left to right": "horizontal flip",
    r"fewest workers": "minimum number of workers",
    r"taking \w+ along": "export",
}
PAGE_TURNS = TURNS | {
    r"(?:is|are|was|were|be) told": "given, reported, or stated",
    r"tells? (?:of|that|which|whether|what|where|why)": "says, shows or states",
    r"h[eo]ld\w* [^.;|]{0,60}?\bagainst": "verify against, or compare with",
    r"whoever": "anyone who",
    r"stands? (?:nowhere|against)": "there is no, or limits",
    r"(?:is|are) dear": "expensive",
    r"in small": "on a small scale",
    r"as they stand": "unchanged",
    r"in the place of": "in place of",
}


def prose(text: str) -> str:
    """A page without its code, links' targets and names of files."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)


def docstrings() -> dict[str, str]:
    """Of modules, classes, functions and fields, without code and names of arguments."""
    found = {}
    for package in ("spikeprune", "snn", "pruning", "pipelines", "cluster"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                match node:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        name = f"{file.relative_to(ROOT)}:{node.lineno}"
                        found[name] = re.sub(r"``.*?``|`[^`]*`|^ *\w+:", "", text, flags=re.MULTILINE)
    return found


def turns(text: str, banned: dict[str, str]) -> list[str]:
    """The banned ones in a text, with what to write instead."""
    found = [(re.search(rf"\b(?:{turn})\b", text, re.IGNORECASE), better) for turn, better in banned.items()]
    return [f"{match[0]!r}: {better}" for match, better in found if match]


def test_no_misspelt_words() -> None:
    folders = [
        "spikeprune",
        "snn",
        "pruning",
        "pipelines",
        "cluster",
        "benchmarks",
        "tests",
        "examples",
        "docs",
    ]
    skipped = "*.json,*.jsonl,*.aedat4,*.svg,*.png,*/__pycache__/*"
    command = [sys.executable, "-m", "codespell_lib", "--skip", skipped, "--ignore-words-list", MEANT]
    done = subprocess.run(
        [*command, *folders, *map(str, ROOT.glob("*.md"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_spelling_of_english() -> None:
    texts = {str(p.relative_to(ROOT)): prose(p.read_text()) for p in PAGES} | docstrings()
    found = {name: AMERICAN.findall(text) for name, text in texts.items()}
    assert {name: words for name, words in found.items() if words} == {}


def test_no_translated_turns() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    found = {str(p.relative_to(ROOT)): turns(prose(p.read_text()), PAGE_TURNS) for p in pages}
    found |= {name: turns(text, TURNS) for name, text in docstrings().items()}
    assert {name: banned for name, banned in found.items() if banned} == {}


def slug(heading: str) -> str:
    """A heading's anchor, by the rule of Python-Markdown's toc."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading)
    text = re.sub(r"[^\w\s-]", "", text.strip().lower())
    return re.sub(r"[\s-]+", "-", text).strip("-")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_their_anchors_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)", text):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_images_say_what_they_show(page: Path) -> None:
    for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", page.read_text()):
        assert len(alt.split()) >= 3, f"{target}: {alt!r}"
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "images").glob("*.svg")), ids=lambda p: p.name)
def test_drawn_pictures_can_be_read_on_light_and_dark_pages(picture: Path) -> None:
    tree = ElementTree.fromstring(picture.read_text())
    assert tree.findtext("{*}title")
    width, height = tree.get("viewBox", "").split()[2:]
    first = tree.find("{*}rect")
    assert first is not None, "a background of its own, so that the page's colour does not matter"
    assert (first.get("width"), first.get("height")) == (width, height)
    above = {child: parent for parent in tree.iter() for child in parent}
    papers = {r.get("fill") or above[r].get("fill") for r in tree.iterfind(".//{*}rect")}
    inks = {e.get("fill") or above[e].get("fill") for e in tree.iterfind(".//{*}text")}
    assert None not in papers | inks
    for ink in inks:
        for paper in papers:
            assert contrast(str(ink), str(paper)) >= 4.5, (ink, paper)
