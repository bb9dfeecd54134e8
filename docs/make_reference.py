"""Write the reference pages docs/cli.md and docs/project.md from the code; a test fails when they are stale.

.venv/bin/python docs/make_reference.py
"""

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import typer.main
from pydantic_core import PydanticUndefined

from cobertes import settings
from cobertes.cli.main import app

NOTE = "<!-- Written by docs/make_reference.py: edit the code, not this page. -->\n"


def pages() -> dict[str, str]:
    """File name -> text."""
    return {"cli.md": command_line(), "project.md": project_file()}


def command_line() -> str:
    """Every command with its arguments and options."""
    parts = [
        "# Command line\n",
        NOTE,
        "Exit codes: 0 done, 1 unexpected, 2 the user can mend it (one line says how), 130 interrupted.\n",
    ]
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        *words, example = [text.strip() for text in inspect.cleandoc(command.help).split("\n\n")]
        parts += [f"## cobertes {name}\n", "\n\n".join(words) + "\n", f"```console\n$ {example}\n```\n"]
        parts += ["| option | meaning | default |", "|---|---|---|"]
        parts += [_row(parameter) for parameter in command.params if parameter.name != "help"]
        parts.append("")
    return "\n".join(parts)


def _row(parameter: Any) -> str:
    argument = parameter.param_type_name == "argument"
    metavar = (parameter.metavar or "").strip("[]")
    is_flag = getattr(parameter, "is_flag", False)
    name = metavar if argument else f"{parameter.opts[0]}{'' if is_flag else f' {metavar}'}"
    default = "" if parameter.default in (None, False, ...) or parameter.required else f"`{parameter.default}`"
    return f"| `{_cell(name)}` | {_cell(parameter.help or '')} | {'required' if parameter.required else default} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def project_file() -> str:
    """Every key of project.toml, from the settings' classes and the texts under their fields."""
    parts = [
        "# project.toml\n",
        NOTE,
        "A key that is not listed here is refused. Classes are named by key, name or code.\n",
    ]
    tree = ast.parse(inspect.getsource(settings))
    texts = {node.name: _field_texts(node) for node in tree.body if isinstance(node, ast.ClassDef)}
    parts += _section("", settings.Settings, texts)
    parts += _section("[[area]]", settings.AreaSettings, texts)
    for name, field in settings.Settings.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, settings.Section):
            parts += _section(f"[{name}]", field.annotation, texts)
    return "\n".join(parts)


def _section(title: str, section: type[settings.Section], texts: dict[str, dict[str, str]]) -> list[str]:
    head = (
        f"## {title}\n\n{(inspect.getdoc(section) or '').replace('``', '`')}\n"
        if title
        else "At the top of the file:\n"
    )
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for name, field in section.model_fields.items():
        table = inspect.isclass(field.annotation) and issubclass(field.annotation, settings.Section)
        if name == "area" or (section is settings.Settings and table):
            continue
        default = "required" if field.default is PydanticUndefined else f"`{_toml(field.default)}`"
        meaning = texts[section.__name__].get(name, "")
        rows.append(f"| `{field.alias}` | {default if field.default is not None else ''} | {_cell(meaning)} |")
    return [head, *rows, ""]


def _field_texts(node: ast.ClassDef) -> dict[str, str]:
    """Field -> the string that stands under it."""
    texts = {}
    for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            text = str(after.value.value) if said else ""  # type: ignore[union-attr]
            texts[statement.target.id] = re.sub(r"\s+", " ", text.replace("``", "`"))
    return texts


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, settings.Section):
        return (
            "{ "
            + ", ".join(f"{key} = {_toml(one)}" for key, one in value.model_dump(by_alias=True).items())
            + " }"
        )
    return f'"{value}"' if isinstance(value, str) else str(value)


if __name__ == "__main__":
    for name, text in pages().items():
        (Path(__file__).parent / name).write_text(text, encoding="utf-8")
