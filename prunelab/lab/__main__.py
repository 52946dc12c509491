"""The course's own commands: `python -m prunelab.lab COMMAND`."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a console that knows no bars gets question marks
    given = vars(_parser().parse_args(arguments))
    command = given.pop("command")
    try:
        done = COMMANDS[command](**given) or 0
        sys.stdout.flush()
        return done
    except BrokenPipeError:  # whoever read has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder that is a file
        print(f"{given.get('folder') or given.get('out') or command} could not be done: {error}", file=sys.stderr)
    except ValueError as error:
        from ..core import PruneError  # it brings torch, for which `--help` does not wait

        if not isinstance(error, (PruneError, Refused)):
            raise
        print(error, file=sys.stderr)
    return 1


class Refused(ValueError):
    """A command that can't be done as it was given; the message says why."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m prunelab.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    made = {name: commands.add_parser(name, help=f.__doc__, description=f.__doc__) for name, f in COMMANDS.items()}
    for name in ("copy", "class"):
        made[name].add_argument("folder", type=Path)
    for name, place in (("build", "build/editions"), ("site", "build/site")):
        made[name].add_argument("out", type=Path, nargs="?", default=Path(place))
    made["build"].add_argument("--execute", action="store_true", help="run the instructor's edition from top to bottom")
    made["timings"].add_argument("numbers", nargs="*", metavar="NN", help="which notebooks; by default all")
    made["timings"].add_argument("--runs", type=int, default=5)
    for name in ("publish", "rules"):
        made[name].add_argument("notebooks", nargs="+", type=Path)
    for name in ("checkpoints", "grids"):
        made[name].add_argument("names", nargs="*", help="which; by default all")
    return parser


# Each imports what it runs only when it runs: `--help` waits for none of them.


def _doctor() -> int:
    """Is this machine ready for the course?"""
    from .workshop import doctor

    return doctor.main()


def _copy(folder: Path) -> None:
    """Put the notebooks into a folder; what a learner has changed there stays"""
    from .workshop import course

    for name, what in course.copy(folder).items():
        print(f"{name}: {what}")
    print(f'Now: jupyter lab "{folder}"')


def _class(folder: Path) -> None:
    """Count the guesses in a folder of progress files"""
    from .workshop import classroom

    print(classroom.text(*classroom.gather(folder)))


def _guide() -> None:
    """Print the instructor's guide, in Markdown"""
    from .workshop import guide

    print(guide.text())


def _build(out: Path, execute: bool) -> None:
    """Make the learner's, the instructor's, the slides' and the hosted edition"""
    from .workshop import editions

    _warn_of_changes()
    written = editions.build(out)
    for name, files in written.items():
        print(f"{name}: {len(files)} files in {out / name}")
    if execute:
        for path in written["instructor"]:
            if path.suffix == ".ipynb":
                _author("publish").publish(path, timeout=600)


def _warn_of_changes() -> None:
    from .workshop import course

    if changed := course.changed():
        print(
            f"not as they were committed, and built as they are: {', '.join(changed)}. If what differs is work of "
            "yours, put it aside first with `git stash`; `git stash pop` brings it back"
        )


def _site(out: Path) -> None:
    """Make a web site of the course, with the API reference"""
    from .workshop import site

    _warn_of_changes()
    print(f"{len(site.build(out))} pages; open {out / site.HOME}")


def _timings(numbers: list[str], runs: int) -> None:
    """Measure the notebooks' time and memory, for the guide"""
    _author("timings").measure(numbers, runs)


def _publish(notebooks: list[Path]) -> None:
    """Run notebooks from the top, as their authors store them"""
    publish = _author("publish").publish
    for path in notebooks:
        publish(path)


def _rules(notebooks: list[Path]) -> int:
    """Check notebooks against the house rules"""
    return _author("rules").main(notebooks)


def _checkpoints(names: list[str]) -> None:
    """Train the course's networks again and rewrite data/"""
    checkpoints = _author("checkpoints")
    checkpoints.remake(_among(names, checkpoints.PLANS))


def _grids(names: list[str]) -> None:
    """Run the long experiments again and rewrite data/grid-*.json"""
    grids = _author("grids")
    grids.remake(_among(names, grids.known()))


def _author(command: str) -> Any:
    """The module of an author's command; Refused where there is none, as in an installed wheel."""
    try:
        return importlib.import_module(f".author.{command}", __package__)
    except ModuleNotFoundError as error:
        if error.name not in (f"{__package__}.author", f"{__package__}.author.{command}"):
            raise
        raise Refused(f"{command} is for authors: it runs from a checkout of the repository") from None


def _among(names: list[str], known: Collection[str]) -> list[str]:
    """The names; Refused if there is nothing of such a name."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise Refused(f"there is no {', '.join(unknown)}: choose from {', '.join(known)}")
    return names


COMMANDS: dict[str, Callable[..., int | None]] = {
    "doctor": _doctor, "copy": _copy, "class": _class, "guide": _guide, "build": _build, "site": _site,
    "timings": _timings, "publish": _publish, "rules": _rules, "checkpoints": _checkpoints, "grids": _grids,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
