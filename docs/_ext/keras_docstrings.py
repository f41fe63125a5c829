"""Lets Sphinx read docstrings in the format of Keras, which is partly Markdown.

Single backticks are code, and fenced blocks are examples, which
`.ci/check_docs.py` runs.
"""

import re


def convert(lines: list[str]) -> list[str]:
    """The lines of a docstring, without its indentation, as reStructuredText."""
    result: list[str] = []
    inside = False
    for line in lines:
        stripped = line.strip()
        if not inside and stripped.startswith("```"):
            inside = True
            indent = line[: len(line) - len(line.lstrip())]
            result += ["", f"{indent}    .. code-block:: {stripped[3:] or 'text'}", ""]
        elif inside and stripped == "```":
            inside = False
            result.append("")
        elif inside:
            result.append(f"        {line}" if stripped else "")
        else:
            result.append(line)
    return _inline("\n".join(_parted(result))).split("\n")


def _parted(lines: list[str]) -> list[str]:
    """Attributes that are described together, each with the description."""
    result: list[str] = []
    lines = [*lines, ""]
    while lines:
        match = _TOGETHER.fullmatch(lines[0])
        if match is None or "Attributes:" not in result:
            result.append(lines.pop(0))
            continue
        indent, names, text = match.groups()
        lines.pop(0)
        more = []
        while lines[0].startswith(f"{indent} "):
            more.append(lines.pop(0))
        for name in names.split(", "):
            result += [f"{indent}{name}: {text}", *more]
    return result


_TOGETHER = re.compile(r"( +)(\w+(?:, \w+)+): (.*)")
_EXAMPLE = re.compile(r"(^ *\.\. code-block::.*\n(?:\n| {8}.*\n?)*)", re.MULTILINE)
_CODE = re.compile(r"(?<![`:])`([^`]+)`(?!`)")


def _inline(text: str) -> str:
    """Code in single backticks, also over the end of a line, but not in examples."""
    parts = _EXAMPLE.split(text)
    for place in range(0, len(parts), 2):
        pieces = _CODE.split(parts[place])
        pieces[::2] = [piece.replace("|", "\\|") for piece in pieces[::2]]
        pieces[1::2] = [_code(piece) for piece in pieces[1::2]]
        parts[place] = "".join(pieces)
    return "".join(parts)


def _code(code: str) -> str:
    code = " ".join(code.split())
    if re.fullmatch(r"filterprune(\.\w+)+", code):
        return f":py:obj:`{code}`"
    return f"``{code}``"


def _process(app, what, name, obj, options, lines):
    lines[:] = convert(lines)


def setup(app):
    """Run before napoleon does, which turns sections into fields."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    return {"parallel_read_safe": True}
