"""What scripts of your own catch: `InputError`, raised in one line for anything that the user can put right."""

from hicl_d2.command.errors import InputError

__all__ = ["InputError"]
