"""Hooks of the documentation site: files of the repository that pages link to become part of the site.

Pages link to `../examples/brevity.py`, which leads somewhere wherever the repository is read; MkDocs knows the folder
`docs` alone. Each such file is copied to the same path in the site, and the link is changed to lead there. The class is
an extension of griffe, which reads the docstrings.
"""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
_OUTSIDE = re.compile(r"\]\(\.\./([\w./-]+\.(?:py|jsonl|ipynb))(?=[)#])")


def on_files(files: Files, config: Any) -> Files:
    """Add the files that pages link to."""
    found = {
        name
        for file in files.documentation_pages()
        for name in _OUTSIDE.findall(Path(str(file.abs_src_path)).read_text(encoding="utf-8"))
    }
    for name in sorted(found):
        if (ROOT / name).is_file():  # else the link stays as it is, and the build fails on it
            files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, files: Files, **_: Any) -> str:
    """Let links lead to the copies."""

    def inside(link: re.Match[str]) -> str:
        return f"]({link[1]}" if files.get_file_from_path(link[1]) else link[0]

    return _OUTSIDE.sub(inside, markdown)


class Examples(griffe.Extension):
    """Shows the section `Example:` of a docstring as code, which griffe knows under its plural alone."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
