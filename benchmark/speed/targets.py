"""What a benchmark asks for, and whether it was reached."""


def verdict(what: str, asked: str, measured: str, met: bool) -> str:
    """Return the line about one target; the exit status of a benchmark does not depend on it."""
    return f"target: {what}: {asked}; measured {measured}; {'met' if met else 'missed'}"
