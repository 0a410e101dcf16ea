"""Hook of MkDocs: the files of ``examples/`` that pages link to are part of the site."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds them as ``examples/...`` of the site."""
    for path in sorted(ROOT.glob("examples/**/*")):
        if path.suffix in (".py", ".yaml"):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """The site has them one folder nearer to the pages than the repository."""
    return re.sub(r"\]\(((?:\.\./)*)\.\./examples/", r"](\1examples/", markdown)
