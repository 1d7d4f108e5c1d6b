"""The door and the built-in runtime hold what the project uses, and a few names for the user's own code."""

import ast
from pathlib import Path

from hicl_d2 import d2
from tests.support.reach import Package, Place, Sources, used_names

ROOT = Path(__file__).parents[2]
DOOR, LITE = "hicl_d2.d2", "hicl_d2.lite"

# Names that the project itself does not import, and what a user needs them for; the door's docstring lists them.
FOR_USERS = {
    "transforms.AugInput": "a mapper of one's own",
    "transforms.RandomCrop": "a mapper of one's own",
    "transforms.RandomFlip": "a mapper of one's own",
}


def _sources(*folders: str) -> Sources:
    """Return the text of every module below ``folders`` by its dotted name."""
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    names = {file: file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for file in files}
    return {names[file].removesuffix(".__init__"): file.read_text() for file in files}


def _is_below(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def project() -> Sources:
    """Return the project's own code, which comes in by the door."""
    found = _sources("hicl_d2", "projects", "benchmark", "examples")
    return {
        name: text for name, text in found.items() if not _is_below(name, DOOR) and not _is_below(name, LITE)
    }


def door() -> Sources:
    return {name: text for name, text in _sources("hicl_d2/d2").items() if name != DOOR}


def offered(modules: Sources) -> set[Place]:
    """Return the names in ``__all__`` of the door's modules."""
    return {
        (module, name)
        for module, text in modules.items()
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
        for name in ast.literal_eval(node.value)
    }


def for_users() -> set[Place]:
    return {(f"{DOOR}.{place.split('.')[0]}", place.split(".")[1]) for place in FOR_USERS}


def behind(modules: Sources, used: set[Place]) -> set[Place]:
    """Return what the door takes from lite, with the names that the project uses of modules handed over whole."""
    taken: set[Place] = set()
    for module, text in modules.items():
        (choice,) = [node for node in ast.parse(text).body if isinstance(node, ast.If)]
        for node in choice.orelse:
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    taken.add((node.module, alias.name))
                    whole = f"{module}.{alias.name}"
                    taken |= {(f"{node.module}.{alias.name}", name) for base, name in used if base == whole}
    return taken


def roots(modules: Sources) -> set[Place]:
    """Return where lite is entered: through the lists of the door, and through the door itself."""
    return behind(modules, used_names(project())) | {(LITE, "INSTALL_GUIDE")}


def test_every_name_behind_the_door_is_used_or_is_the_user_s() -> None:
    assert offered(door()) - used_names(project()) == for_users()


def test_the_names_for_users_are_documented() -> None:
    for place in FOR_USERS:
        assert place.split(".")[1] in (d2.__doc__ or ""), place


def test_everything_in_lite_is_behind_the_door_or_leads_to_what_is() -> None:
    assert Package(_sources("hicl_d2/lite")).unreached(roots(door())) == []


def test_a_name_that_nobody_uses_is_found_on_either_side() -> None:
    modules = door()
    modules[f"{DOOR}.layers"] += '\n__all__ = ["cat"]\n'
    assert (f"{DOOR}.layers", "cat") in offered(modules) - used_names(project()) - for_users()
    lite = _sources("hicl_d2/lite")
    lite[f"{LITE}.layers"] += "\ndef cat(x):\n    return dog(x)\n\ndef dog(x):\n    return cat(x)\n"
    lite[f"{LITE}.utils.comm"] += "\nLIMIT = 3\n"
    lite[f"{LITE}.engine"] += "\nfrom hicl_d2.lite.layers import cat\n"
    assert Package(lite).unreached(roots(door())) == [
        f"{LITE}.layers.cat",
        f"{LITE}.layers.dog",
        f"{LITE}.utils.comm.LIMIT",
    ]


def test_what_only_a_removed_use_led_to_is_found() -> None:
    modules = door()
    modules[f"{DOOR}.solver"] = modules[f"{DOOR}.solver"].replace(", maybe_add_gradient_clipping", "")
    left = Package(_sources("hicl_d2/lite")).unreached(roots(modules))
    assert left == [f"{LITE}.solver.{name}" for name in ("_clipping_class", "maybe_add_gradient_clipping")]


def test_registered_definitions_are_reached_through_their_names() -> None:
    lite = _sources("hicl_d2/lite")
    lite[f"{LITE}.layers"] += (
        "\n@REGISTRY.register()\nclass Head:\n    part = Part\n\nclass Part:\n    pass\n"
    )
    assert Package(lite).unreached(roots(door())) == []
