"""Which names a program's own code reaches, from its source alone."""

import ast
from collections.abc import Iterator

Place = tuple[str, str]  # a module's dotted name, and a name in it
Sources = dict[str, str]  # dotted names of modules, and their text


def imported(tree: ast.AST) -> dict[str, Place]:
    """Return, for each name that ``from module import name`` binds anywhere in ``tree``, what it stands for."""
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def used_names(sources: Sources) -> set[Place]:
    """Return what ``sources`` import, and the attributes that they read of imported names (modules, perhaps)."""
    used: set[Place] = set()
    for text in sources.values():
        tree = ast.parse(text)
        names = imported(tree)
        used |= set(names.values())
        used |= {_inside(names[base], attribute) for base, attribute in _attributes(tree) if base in names}
    return used


def _attributes(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.value.id, node.attr


def _inside(module: Place, name: str) -> Place:
    return ".".join(module), name


class Package:
    """The definitions of a package, and which of them others lead to."""

    def __init__(self, sources: Sources) -> None:
        self.trees = {module: ast.parse(text) for module, text in sources.items()}
        self.imports = {module: imported(tree) for module, tree in self.trees.items()}
        self.definitions: dict[Place, list[ast.stmt]] = {}
        self.roots: set[Place] = set()
        for module, tree in self.trees.items():
            for statement in tree.body:
                self._sort(module, statement)

    def _sort(self, module: str, statement: ast.stmt) -> None:
        """Keep a definition; what a bare statement or a registered definition refers to is reached in any case."""
        names = _defined(statement)
        for name in names:
            self.definitions.setdefault((module, name), []).append(statement)
        is_import = isinstance(statement, ast.Import | ast.ImportFrom)
        if not is_import and (not names or _is_registered(statement)):
            self.roots |= {(module, name) for name in names}
            self.roots |= self._references(module, statement)

    def unreached(self, roots: set[Place]) -> list[str]:
        """Return the definitions to which neither ``roots`` nor a registry leads."""
        reached: set[Place] = set()
        waiting = [*roots, *self.roots]
        while waiting:
            place = self._resolve(waiting.pop())
            if place in self.definitions and place not in reached:
                reached.add(place)
                for statement in self.definitions[place]:
                    waiting += self._references(place[0], statement)
        left = self.definitions.keys() - reached
        return sorted(f"{module}.{name}" for module, name in left if name not in ("__all__", "logger"))

    def _resolve(self, place: Place) -> Place:
        """Follow a name through the modules that only hand it on."""
        seen: set[Place] = set()
        while (
            place not in self.definitions and place not in seen
        ):  # a package imports its modules from itself
            seen.add(place)
            place = self.imports.get(place[0], {}).get(place[1], place)
        return place

    def _references(self, module: str, statement: ast.stmt) -> set[Place]:
        names = self.imports[module]
        found = {(module, node.id) for node in ast.walk(statement) if isinstance(node, ast.Name)}
        return found | {
            _inside(names[base], attribute) for base, attribute in _attributes(statement) if base in names
        }


def _defined(statement: ast.stmt) -> set[str]:
    """Return the names that a top-level statement defines."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    targets = {ast.Assign: "targets", ast.AnnAssign: "target"}.get(type(statement))
    if targets is None:
        return set()
    found = getattr(statement, targets)
    return {
        node.id
        for target in (found if isinstance(found, list) else [found])
        for node in ast.walk(target)
        if isinstance(node, ast.Name)
    }


def _is_registered(statement: ast.stmt) -> bool:
    """Return whether a registry gives the definition to whoever names it in a config."""
    return any(
        isinstance(node, ast.Attribute) and node.attr == "register"
        for decorator in getattr(statement, "decorator_list", [])
        for node in ast.walk(decorator)
    )
