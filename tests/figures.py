#!/usr/bin/env python3
"""Figures of the production code: how large it is, and what makes it hard to read.

    tests/figures.py [FOLDER]     of this checkout, or of another one

Tests are left out: files and modules of tests, and `#[cfg(test)]` at the end of a file. A function's
length is counted from its signature to its closing brace, as rustfmt indents them.
"""
import pathlib
import re
import statistics
import sys

root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent)
src = root / "src"


def production(path):
    text = path.read_text()
    return re.split(r"\n#\[cfg\(test\)\]\n(?:pub(?:\(super\))? )?mod \w+ \{", text)[0]


def is_test(path):
    names = path.relative_to(src).parts
    return "tests" in names or "simulation" in names or re.search(r"tests?\.rs$", names[-1])


def functions(text):
    lines, out = text.split("\n"), []
    for start, line in enumerate(lines):
        found = re.match(r"( *)(?:pub(?:\([^)]*\))? )?(?:const )?(?:async )?(?:unsafe )?fn (\w+)", line)
        if found:
            for end in range(start, len(lines)):
                if lines[end].startswith(found[1] + "}"):
                    out.append((end - start + 1, found[2]))
                    break
                if lines[end].rstrip().endswith(";") and end == start:
                    break
    return out


def folder(path):
    parts = path.relative_to(src).parts
    return parts[0] if len(parts) > 1 else parts[0].removesuffix(".rs")


def imports(text):
    """The top-level modules that a file uses."""
    text = re.sub(r"//[^\n]*", "", text)
    used = set(re.findall(r"\bcrate::(\w+)", text))
    for group in re.finditer(r"\buse crate::\{", text):
        depth, name, begins = 1, "", True
        for char in text[group.end():]:
            if char == "{":
                depth += 1
            elif char == "}":
                depth -= 1
            if depth == 0:
                used.add(name)
                break
            if depth == 1 and char == ",":
                used.add(name)
                name, begins = "", True
            elif depth == 1 and begins and re.match(r"\w", char):
                name += char
            elif depth == 1 and char == ":":
                begins = False
    return used - {""}


def circles(uses):
    def reaches(a, b, seen):
        return any(n == b or n not in seen and (seen.add(n) or reaches(n, b, seen)) for n in uses.get(a, ()))
    return sorted(a for a in uses if reaches(a, a, set()))


files = [path for path in sorted(src.rglob("*.rs")) if not is_test(path)]
texts = {path: production(path) for path in files}
sizes = {path: text.count("\n") + 1 for path, text in texts.items()}
measured = [function for text in texts.values() for function in functions(text)]
longest_lines, longest_name = max(measured)
types = {}
for path, text in texts.items():
    for name in re.findall(r"^ *(?:pub(?:\([^)]*\))? )?(?:struct|enum|trait) (\w+)", text, re.M):
        types.setdefault(name, []).append(path)
uses = {}
for path, text in texts.items():
    here = folder(path)
    if here not in ("main", "lib"):
        uses.setdefault(here, set()).update(imports(text) - {here})
uses = {name: {other for other in others if other in uses} for name, others in uses.items()}
walk = set()
architecture = root / "docs/architecture.md"
if architecture.exists():
    parts = re.split(r"^## Eight files to read first$", architecture.read_text(), flags=re.M)
    if len(parts) > 1:
        walk = set(re.findall(r"\]\(\.\./(src/[^)#]+)\)", parts[1].split("\n## ")[0]))

print(f"files                        {len(files)}")
print(f"lines                        {sum(sizes.values())}")
print(f"median file, largest file    {statistics.median(sizes.values()):.0f}, {max(sizes.values())} ({max(sizes, key=sizes.get).relative_to(root)})")
print(f"files over 400 lines         {sum(size > 400 for size in sizes.values())}")
print(f"median, longest function     {statistics.median(lines for lines, _ in measured):.0f}, {longest_lines} ({longest_name})")
doubled = sorted(name for name, where in types.items() if len(where) > 1)
print(f"type names used twice        {len(doubled)} of {len(types)}: {' '.join(doubled)}")
print(f"folders in import circles    {len(circles(uses))}: {' '.join(circles(uses))}")
print(f"lines over 100 columns       {sum(len(line) > 100 for text in texts.values() for line in text.split(chr(10)))}")
print(f"files linked on the walk     {len(walk)}")
