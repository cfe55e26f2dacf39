"""What the site has beside docs/: the API reference, the project's own pages, and the files that pages link to.

A hook of mkdocs (mkdocs.yml names it). A page of the reference lists a package's public names, so that it is complete.
"""

from __future__ import annotations

import ast
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
    for path in sorted(set(linked(files))):
        if files.get_file_from_path(path) is None:
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead each link to where its file is in the site."""
    here = page.file.src_uri

    def moved(link: re.Match[str]) -> str:
        found = place(here, link[1])
        return link[0] if found is None else f"]({posixpath.relpath(found, posixpath.dirname(here) or '.')}"

    return LINK.sub(moved, markdown)
