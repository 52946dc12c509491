"""The course's own commands: `python -m prunelab.lab COMMAND`."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a console that knows no bars gets question marks
    given = vars(_parser().parse_args(arguments))
    given.pop("command")
    run = given.pop("run")
    try:
        done = run(**given) or 0
        sys.stdout.flush()
        return done
    except BrokenPipeError:  # whoever read has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder that is a file
        print(f"{given.get('folder') or given.get('out') or 'this'} could not be done: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        if not isinstance(error, _prune_error()):
            raise
        print(error, file=sys.stderr)
        return 1


def _prune_error() -> type[ValueError]:
    """PruneError, imported only here: it brings torch, for which `--help` does not wait."""
    from ..core import PruneError

    return PruneError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m prunelab.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    command("doctor", _doctor, "is this machine ready for the course?")
    made = command("copy", _copy, "put the notebooks into a folder; what a learner has changed there stays")
    made.add_argument("folder", type=Path)
    made = command("class", _class, "count the guesses in a folder of progress files")
    made.add_argument("folder", type=Path)
    command("guide", _guide, "print the instructor's guide, in Markdown")
    made = command("build", _build, "make the learner's, the instructor's, the slides' and the hosted edition")
    made.add_argument("out", type=Path, nargs="?", default=Path("build/editions"))
    made.add_argument("--execute", action="store_true", help="run the instructor's edition from top to bottom")
    made = command("site", _site, "make a web site of the course, with the API reference")
    made.add_argument("out", type=Path, nargs="?", default=Path("build/site"))
    made = command("timings", _timings, "measure the notebooks' time and memory, for the guide")
    made.add_argument("numbers", nargs="*", metavar="NN", help="which notebooks; by default all")
    made.add_argument("--runs", type=int, default=5)
    made = command("publish", _publish, "run notebooks from the top, as their authors store them")
    made.add_argument("notebooks", nargs="+", type=Path)
    made = command("rules", _rules, "check notebooks against the house rules")
    made.add_argument("notebooks", nargs="+", type=Path)
    made = command("checkpoints", _checkpoints, "train the course's networks again and rewrite data/")
    made.add_argument("names", nargs="*", help="which; by default all")
    made = command("grids", _grids, "run the long experiments again and rewrite data/grid-*.json")
    made.add_argument("names", nargs="*", help="which; by default all")
    return parser


# Each imports what it runs only when it runs: `--help` waits for none of them.


def _doctor() -> int:
    from .workshop import doctor

    return doctor.main()


def _copy(folder: Path) -> None:
    from .workshop import course

    for name, what in course.copy(folder).items():
        print(f"{name}: {what}")
    print(f"Now: jupyter lab {folder}")


def _class(folder: Path) -> None:
    from .workshop import classroom

    print(classroom.text(classroom.gather(folder)))


def _guide() -> None:
    from .workshop import guide

    print(guide.text())


def _build(out: Path, execute: bool) -> None:
    from .workshop import editions

    written = editions.build(out)
    for name, files in written.items():
        print(f"{name}: {len(files)} files in {out / name}")
    if execute:
        for path in written["instructor"]:
            if path.suffix == ".ipynb":
                _author("publish").publish(path, timeout=600)


def _site(out: Path) -> None:
    from .workshop import site

    print(f"{len(site.build(out))} pages; open {out / site.HOME}")


def _timings(numbers: list[str], runs: int) -> None:
    _author("timings").measure(numbers, runs)


def _publish(notebooks: list[Path]) -> None:
    publish = _author("publish")
    for path in notebooks:
        publish.publish(path)


def _rules(notebooks: list[Path]) -> int:
    return _author("rules").main(list(map(str, notebooks)))


def _checkpoints(names: list[str]) -> None:
    checkpoints = _author("checkpoints")
    checkpoints.remake(_among(names, checkpoints.PLANS))


def _grids(names: list[str]) -> None:
    grids = _author("grids")
    grids.remake(_among(names, grids.known()))


def _author(command: str) -> Any:
    """The module of an author's command; PruneError where there is none, as in an installed wheel."""
    try:
        return importlib.import_module(f".author.{command}", __package__)
    except ModuleNotFoundError as error:
        if error.name not in (f"{__package__}.author", f"{__package__}.author.{command}"):
            raise
        raise _prune_error()(f"{command} is for authors: it runs from a checkout of the repository") from None


def _among(names: list[str], known: Collection[str]) -> list[str]:
    """The names; PruneError if there is nothing of such a name."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise _prune_error()(f"there is no {', '.join(unknown)}: choose from {', '.join(known)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
