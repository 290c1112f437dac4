"""Counts what is to stay small in the structure of flaxcls, from the syntax trees of its files.

  python -m benchmarks.structure

Entries of the package; floors, so that every package imports from those below alone; the longest
chain of imports within a package; modules over 300 lines; functions that receive a ConfigDict, or
an object that holds one: by the annotation of a parameter, or by the name `config`.
"""

import ast
import functools
import pathlib
from collections.abc import Iterator

ROOT = pathlib.Path('flaxcls')
MOST_ENTRIES, MOST_FLOORS, LONGEST_CHAIN, MOST_LINES, MOST_RECEIVERS = 22, 11, 4, 300, 20


def modules() -> dict[str, ast.Module]:
    """Returns the tree of each module, by its dotted name."""
    return {
        '.'.join(path.with_suffix('').parts).removesuffix('.__init__'): ast.parse(path.read_text())
        for path in sorted(ROOT.rglob('*.py'))
    }


def imports(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Returns what each module imports of flaxcls, within functions and type checks as well."""
    found = {name: set() for name in trees}
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('flaxcls'):
                for alias in node.names:
                    submodule = f'{node.module}.{alias.name}'
                    found[name].add(submodule if submodule in trees else node.module)
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names if alias.name in trees}
    return {name: targets - {name, 'flaxcls'} for name, targets in found.items()}


def package_of(module: str) -> str:
    """Returns the part of a dotted name after `flaxcls`; '' of `flaxcls` itself."""
    return [*module.split('.'), ''][1]


def floors(edges: dict[str, set[str]]) -> dict[str, int]:
    """Returns the floor of each package, 1 for those that import from none.

    Raises:
      ValueError: packages import from one another in a circle.
    """
    below: dict[str, set[str]] = {}
    for module, targets in edges.items():
        mine = below.setdefault(package_of(module), set())
        mine |= {package_of(target) for target in targets} - {package_of(module)}

    def floor(package: str, above: tuple[str, ...] = ()) -> int:
        if package in above:
            raise ValueError(f'a circle of packages: {" -> ".join([*above, package])}')
        lower = below[package] & packages
        return 1 + max((floor(other, (*above, package)) for other in lower), default=0)

    packages = {path.name for path in ROOT.iterdir() if path.is_dir()} - {'__pycache__'}
    return {package: floor(package) for package in sorted(packages)}


def longest_chain(package: str, edges: dict[str, set[str]]) -> list[str]:
    """Returns the modules of the longest chain of imports within a package."""
    inside = {name for name in edges if package_of(name) == package and name.count('.') > 1}

    @functools.cache
    def chain(module: str) -> tuple[str, ...]:
        return (module, *max((chain(x) for x in edges[module] & inside), key=len, default=()))

    return [name.split('.')[-1] for name in max(map(chain, inside), key=len, default=())]


def holders(trees: dict[str, ast.Module]) -> set[str]:
    """Returns ConfigDict, and the classes that hold one in a field or an attribute."""
    fields: dict[str, set[str]] = {}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                fields.setdefault(node.name, set()).update(_held(node))
    found = {'ConfigDict'}
    while more := {name for name, held in fields.items() if held & found} - found:
        found |= more
    return found


def _held(cls: ast.ClassDef) -> Iterator[str]:
    """Yields the names in the annotations of fields, and of what __init__ is given to keep."""
    for node in cls.body:
        if isinstance(node, ast.AnnAssign):
            yield from _names(node.annotation)
        elif isinstance(node, ast.FunctionDef) and node.name == '__init__':
            for argument in (*node.args.args, *node.args.kwonlyargs):
                yield from _names(argument.annotation)


def _names(annotation: ast.AST | None) -> set[str]:
    if annotation is None:
        return set()
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    texts = (n.value for n in ast.walk(annotation) if isinstance(n, ast.Constant))
    return names | {text for text in texts if isinstance(text, str)}


def receivers(trees: dict[str, ast.Module]) -> list[str]:
    """Returns the functions that receive a ConfigDict, or an object that holds one."""
    holding = holders(trees)
    found = []
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            if any(_receives(argument, holding) for argument in arguments):
                found.append(f'{module}.{node.name}')
    return found


def _receives(argument: ast.arg, holding: set[str]) -> bool:
    named = _names(argument.annotation)
    return bool(named & holding) or (argument.arg == 'config' and not named & {'str', 'Options'})


def measure() -> dict[str, tuple[int, int, list[str]]]:
    """Returns {what is counted: (number, at most, what makes it up)}."""
    trees = modules()
    edges = imports(trees)
    entries = sorted(path.name for path in ROOT.iterdir() if path.name != '__pycache__')
    floor_of = floors(edges)
    highest = max(floor_of.values())
    on_floors = [
        f'{number:>2}  {", ".join(name for name, floor in floor_of.items() if floor == number)}'
        for number in range(1, highest + 1)
    ]
    chains = {package: longest_chain(package, edges) for package in floor_of}
    sizes = {path: len(path.read_text().splitlines()) for path in sorted(ROOT.rglob('*.py'))}
    long = [f'{path} {size}' for path, size in sizes.items() if size > MOST_LINES]
    received = receivers(trees)
    return {
        f'entries of {ROOT}/': (len(entries), MOST_ENTRIES, entries),
        'floors': (highest, MOST_FLOORS, on_floors),
        'files in the longest chain of imports': (
            max(map(len, chains.values())),
            LONGEST_CHAIN,
            [f'{package:<12}{" -> ".join(chain)}' for package, chain in chains.items()],
        ),
        f'modules over {MOST_LINES} lines': (len(long), 0, long),
        'functions that receive a config': (len(received), MOST_RECEIVERS, received),
    }


def main() -> None:
    for name, (number, most, parts) in measure().items():
        print(f'{name}: {number} (at most {most})')
        print(''.join(f'  {part}\n' for part in parts), end='')


if __name__ == '__main__':
    main()
