"""What the site adds to the Markdown files: the page of commands, and links that lead out of `docs/` as plain names."""

from __future__ import annotations

import re
from typing import Any

import typer
from mkdocs.structure.files import File, Files

COMMANDS = "reference/commands.md"
_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)]*)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the page of commands, made from the command line itself so that it cannot drift."""
    files.append(File.generated(config, COMMANDS, content=commands_page()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links to files of the repository, which are not part of the site, into their names."""
    depth = page.file.src_uri.count("/")

    def plain(match: re.Match[str]) -> str:
        text, target = match.groups()
        leaves = target.count("../") > depth
        return text if leaves else match.group(0)

    return _LINK.sub(plain, markdown)


def commands_page() -> str:
    """Return every command with its help text as Markdown."""
    from audiocl_bench.cli import app

    group = typer.main.get_command(app)
    return "# Commands\n\n" + "\n".join(_command(group, ("audiocl",)))


def _command(command: Any, path: tuple[str, ...]) -> list[str]:
    lines = []
    children = getattr(command, "commands", {})
    if len(path) > 1 and not children:
        lines += [f"## {' '.join(path)}", "", _text(command.help or ""), "", *_options(command), ""]
    for name in sorted(children):
        lines += _command(children[name], (*path, name))
    return lines


def _text(help_text: str) -> str:
    """Turn rich markup into Markdown; indented examples become code."""
    plain = re.sub(r"\[/?bold\]", "**", help_text).strip("\f ")
    lines, inside = [], False
    for line in plain.splitlines():
        example = line.startswith("  ") or (inside and not line.strip())
        if example and not inside:
            lines.append("```sh")
        if inside and not example:
            lines += ["```", ""]
        inside = example
        lines.append(line.strip() if example else line)
    if inside:
        while not lines[-1]:
            lines.pop()
        lines.append("```")
    return "\n".join(lines)


def _options(command: Any) -> list[str]:
    rows = []
    for parameter in command.params:
        if parameter.name == "help" or getattr(parameter, "hidden", False):
            continue
        is_option = parameter.param_type_name == "option"
        names = parameter.opts if is_option else [parameter.name.upper()]
        name = ", ".join(f"`{option}`" for option in names)
        text = " ".join((getattr(parameter, "help", "") or "").split()).replace("|", "\\|")
        rows.append(f"| {name} | {text} |")
    return ["| option | what it does |", "|---|---|", *rows] if rows else []
