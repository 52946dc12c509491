"""The course's own commands: `python -m prunelab.lab COMMAND`."""

from __future__ import annotations

import argparse
from pathlib import Path

import nbformat

from . import checkpoints, grids, publish, rules


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m prunelab.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("checkpoints", help="train the course's networks again and rewrite data/")
    command.add_argument("names", nargs="*", choices=[*checkpoints.PLANS, []], help="which; by default all")
    command = commands.add_parser("grids", help="run the long experiments again and rewrite data/grid-*.json")
    command.add_argument("names", nargs="*", choices=[*grids.GRIDS, []], help="which; by default all")
    for name, text in (
        ("publish", "run notebooks from the top, as their authors store them"),
        ("rules", "check notebooks against the house rules"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("notebooks", nargs="+", type=Path)
    given = parser.parse_args()
    if given.command == "checkpoints":
        checkpoints.remake(given.names)
    if given.command == "grids":
        grids.remake(given.names)
    for path in getattr(given, "notebooks", []):
        if given.command == "publish":
            publish.publish(path)
        else:
            print(
                "\n".join(f"{path}: {problem}" for problem in rules.problems(nbformat.read(path, as_version=4)))
                or f"{path}: fine"
            )


if __name__ == "__main__":
    main()
