"""Print one of the README's two commands, so that CI runs the very same.

The README marks them by a comment line before the block:
`.. command: test` or `.. command: demo`.
"""

import pathlib
import sys
import textwrap

README = pathlib.Path(__file__).parents[1] / "README.rst"


def command(name: str) -> str:
    """The code block behind the comment `.. command: name`."""
    lines = README.read_text().splitlines()
    start = lines.index(f".. command: {name}") + 1
    block = []
    for line in lines[start:]:
        if line.startswith("    "):
            block.append(line)
        elif block and line.strip():
            break
    return textwrap.dedent("\n".join(block)).strip()


if __name__ == "__main__":
    print(command(sys.argv[1]))
