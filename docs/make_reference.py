"""Reference pages cli.md, project.md and api.md, written from the code; a test fails if they are stale.

.venv/bin/python docs/make_reference.py
"""

import ast
import inspect
import re
import textwrap
from functools import cached_property
from pathlib import Path
from typing import Any

import typer.main
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import cobertes
from cobertes import settings
from cobertes.cli.main import app

NOTE = "<!-- Written by docs/make_reference.py: edit the code, not this page. -->\n"
LINE = 100


def pages() -> dict[str, str]:
    """File name -> text."""
    return {"cli.md": command_line(), "project.md": project_file(), "api.md": python_names()}


# --- commands


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


# --- keys of project.toml


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


# --- public names of the package


def python_names() -> str:
    """Every public name with its signature and docstring, and the public members of classes."""
    parts = [
        "# Python\n",
        NOTE,
        "Public names of `cobertes`, loaded at first use. Other modules may change without notice.\n",
    ]
    names = [name for name in cobertes.__all__ if not _is_error(name)]
    errors = [name for name in cobertes.__all__ if _is_error(name)]
    parts += [_public_name(name) for name in names]
    if errors:
        parts += ["## Errors\n", "| error | meaning |", "|---|---|"]
        parts += [f"| `{name}` | {_cell(_flat(inspect.getdoc(getattr(cobertes, name))))} |" for name in errors]
    return "\n".join(parts).rstrip("\n") + "\n"


def _is_error(name: str) -> bool:
    thing = getattr(cobertes, name)
    return inspect.isclass(thing) and issubclass(thing, Exception)


def _public_name(name: str) -> str:
    thing = getattr(cobertes, name)
    parts = [f"## {name}\n"]
    if inspect.isclass(thing) and issubclass(thing, BaseModel):
        return "\n".join([*parts, f"{_flat(inspect.getdoc(thing))} Keys: [project.toml](project.md).\n"])
    members = _members(thing) if inspect.isclass(thing) else []
    text = "\n\n".join([_text(thing, name), *(textwrap.indent(member, "    ") for member in members)])
    return "\n".join([*parts, f"```text\n{text.rstrip()}\n```\n"])


def _text(thing: Any, name: str) -> str:
    """Signature, as the source has it, and docstring."""
    node = _node(thing)
    doc = inspect.getdoc(thing) or ""
    if isinstance(node, ast.FunctionDef):
        return f"{_signature(node, name)}\n\n{textwrap.indent(doc, '    ')}"
    init = next((f for f in getattr(node, "body", []) if getattr(f, "name", "") == "__init__"), None)
    if isinstance(init, ast.FunctionDef):
        return f"{_signature(init, f'class {name}', bound=True)}\n\n{textwrap.indent(doc, '    ')}"
    fields = [
        f"    {ast.unparse(field)}"
        for field in getattr(node, "body", [])
        if isinstance(field, ast.AnnAssign | ast.Assign) and not ast.unparse(field).startswith("_")
    ]
    head = f"class {name}" if inspect.isclass(thing) else name
    return "\n".join([head, *fields, "", textwrap.indent(doc, "    ")])


def _node(thing: Any) -> ast.AST | None:
    try:
        source = inspect.getsource(thing)
    except (OSError, TypeError):  # made by a decorator or at run time
        return None
    return ast.parse(textwrap.dedent(source)).body[0]


def _signature(node: ast.FunctionDef, name: str, *, bound: bool = False) -> str:
    """``name(arguments) -> result``, one argument a line if it is long."""
    if bound or (node.args.args and node.args.args[0].arg in ("self", "cls")):
        node.args.args = node.args.args[1:]
    for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
        argument.annotation = _unquoted(argument.annotation)
    returns = _unquoted(node.returns)
    result = f" -> {ast.unparse(returns)}" if returns is not None and not bound else ""
    line = f"{name}({ast.unparse(node.args)}){result}"
    if len(line) <= LINE:
        return line
    return "\n".join([f"{name}(", *(f"    {argument}," for argument in _arguments(node.args)), f"){result}"])


def _unquoted(annotation: ast.expr | None) -> ast.expr | None:
    quoted = isinstance(annotation, ast.Constant) and isinstance(annotation.value, str)
    return ast.parse(annotation.value, mode="eval").body if quoted else annotation  # type: ignore[union-attr]


def _arguments(arguments: ast.arguments) -> list[str]:
    """Each argument with annotation and default, and the star before keyword-only ones."""
    rows: list[str] = []
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    rows += [_argument(one, default) for one, default in zip(positional, defaults, strict=True)]
    if arguments.vararg:
        rows.append(f"*{ast.unparse(arguments.vararg)}")
    elif arguments.kwonlyargs:
        rows.append("*")
    rows += [_argument(one, d) for one, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return [*rows, f"**{ast.unparse(arguments.kwarg)}"] if arguments.kwarg else rows


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    text = ast.unparse(argument)
    return text if default is None else f"{text} = {ast.unparse(default)}"


def _members(thing: type) -> list[str]:
    """Public methods and properties that a class defines itself and documents, in the order of its source."""
    found = []
    for name, member in vars(thing).items():
        inner = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        inner = getattr(inner, "func", inner)  # of a cached property
        if name.startswith("_") or not inspect.isfunction(inner) or not inspect.getdoc(inner):
            continue
        text = _text(inner, name)
        text = text.replace("\n\n", "\n", 1)
        is_value = isinstance(member, property | cached_property)
        found.append(text.replace("()", "", 1) if is_value else text)
    return found


def _flat(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "").replace("``", "`")


if __name__ == "__main__":
    for name, text in pages().items():
        (Path(__file__).parent / name).write_text(text, encoding="utf-8")
