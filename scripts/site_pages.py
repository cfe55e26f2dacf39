"""What the site has beside docs/: the API reference, the project's own pages, the tutorials as notebooks, and the files
that pages link to.

A hook of mkdocs (mkdocs.yml names it). A page of the reference lists a package's public names, so that it is complete.
A notebook is made of its page, so that there is one source.
"""

from __future__ import annotations

import ast
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PROJECT = {
    "project/changelog.md": "CHANGELOG.md",
    "project/contributing.md": "CONTRIBUTING.md",
    "project/security.md": "SECURITY.md",
    "project/conduct.md": "CODE_OF_CONDUCT.md",
}
PAGE_OF = {source: page for page, source in PROJECT.items()}
LINK = re.compile(r"\]\(([^)#:\s]+)")
TUTORIALS = "tutorials/"
_RUN = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_RELATIVE = re.compile(r"\[([^]]+)\]\((?!https:)[^)]+\)")


def public_packages() -> dict[str, list[str]]:
    """Package → its public names, the root first: those of the stub, then of each `__all__`; read, not imported."""
    stub = ast.parse((ROOT / "condconv" / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom) and node.module != "condconv"]
    found = {"condconv": [alias.name for node in imports for alias in node.names]}
    for path in sorted((ROOT / "condconv").glob("*/__init__.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                found[f"condconv.{path.parent.name}"] = ast.literal_eval(node.value)
    return found


def reference_page(package: str, names: list[str]) -> str:
    """Return the package's page: its own docstring, then a section for each public name."""
    options = "{show_root_heading: false, show_root_toc_entry: false, members: false}"
    head = [f"# {package}", f"::: {package}\n    options: {options}"]
    return "\n\n".join([*head, *(f"::: {package}.{name}" for name in sorted(names))]) + "\n"


def notebook(markdown: str) -> str:
    """Return a page as a Jupyter notebook (JSON): Python and shell blocks are cells, links within the site are text."""
    texts = _RUN.split(markdown)  # text, language, block, text, language, block, …, text
    cells = []
    for text, language, block in zip(texts[::3], [*texts[1::3], ""], [*texts[2::3], ""], strict=True):
        cells.append({"cell_type": "markdown", "source": _RELATIVE.sub(r"\1", text).strip()})
        source = block.strip() if language != "bash" else "\n".join(f"!{line}" for line in block.strip().splitlines())
        cells.append({"cell_type": "code", "source": source, "execution_count": None, "outputs": []})
    kept = [{**cell, "id": f"cell-{place}", "metadata": {}} for place, cell in enumerate(cells) if cell["source"]]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = {"cells": kept, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def notebook_of(page: str) -> str | None:
    """Return where in the site the notebook of a page is, or None for a page that has none."""
    return page.removesuffix(".md") + ".ipynb" if page.startswith(TUTORIALS) else None


def place(page: str, target: str) -> str | None:
    """Return where in the site the file is to which a page links, or None where the repository has no such file."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(PROJECT.get(page, f"docs/{page}")), target))
    return PAGE_OF.get(path, path.removeprefix("docs/")) if (ROOT / path).is_file() else None


def linked(files: Files) -> Iterator[str]:
    """The places in the site of all files that pages link to."""
    for file in files.documentation_pages():
        for target in LINK.findall(file.content_string):
            if (found := place(file.src_uri, target)) is not None:
                yield found


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the navigation's entry of the reference."""
    for entry in config.nav or []:
        if "Reference" in entry:
            entry["Reference"] = [{name: f"reference/{name}.md"} for name in public_packages()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and every file outside of docs/ that a page links to."""
    for package, names in public_packages().items():
        files.append(File.generated(config, f"reference/{package}.md", content=reference_page(package, names)))
    for page, source in PROJECT.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for page in list(files.documentation_pages()):
        if (made := notebook_of(page.src_uri)) is not None:
            files.append(File.generated(config, made, content=notebook(page.content_string)))
    for path in sorted(set(linked(files))):
        if files.get_file_from_path(path) is None:
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead each link to where its file is in the site, and a tutorial to its notebook."""
    here = page.file.src_uri
    if (made := notebook_of(here)) is not None:
        markdown = f"{markdown.rstrip()}\n\nThis page is also [a notebook]({posixpath.basename(made)}).\n"

    def moved(link: re.Match[str]) -> str:
        found = place(here, link[1])
        return link[0] if found is None else f"]({posixpath.relpath(found, posixpath.dirname(here) or '.')}"

    return LINK.sub(moved, markdown)
