"""``segaware download``: models of the zoo or the Hub, fetched before they are needed."""

from __future__ import annotations

import filecmp
from pathlib import Path

import click

from segaware.cli.command import Command, Failure
from segaware.errors import SegawareError, WeightsError

__all__ = ["download"]

#: What goes into a folder of one's own besides the model, where it is there.
_PAPERS = ("README.md", "LICENSE", "NOTICE")


@click.command(cls=Command)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--local-dir", metavar="DIR", type=click.Path(path_type=Path), help="Also copy each one to DIR/NAME.")
@click.option("--overwrite", is_flag=True, help="Replace other files that DIR/NAME holds (else: refused).")
@click.option("--revision", help="Branch, tag or commit of a repository (not of names of the zoo).")
@click.option("--cache-dir", metavar="DIR", type=click.Path(path_type=Path), help="Instead of the Hub's own cache.")
@click.option("--local-files-only", is_flag=True, help="Look into the cache, ask nobody.")
def download(
    names: tuple[str, ...], local_dir: Path | None, overwrite: bool, revision: str | None, cache_dir: Path | None, local_files_only: bool
) -> None:
    """Fetch models by NAME ('segaware models') or repository of the Hub (OWNER/NAME); print the folder of each.

    Once fetched they load without network (HF_HUB_OFFLINE=1). For gated and private repositories:
    'hf auth login', or HF_TOKEN.
    """
    from segaware.zoo.load import resolve

    failed: list[str] = []
    taken: dict[str, str] = {}
    for name in names:
        last = name.rstrip("/").rsplit("/", 1)[-1]
        if local_dir is not None and taken.setdefault(last.casefold(), name) != name:
            failed.append(f"{name}: {local_dir / last} is that of {taken[last.casefold()]}; fetch them into two folders")
            continue
        try:
            folder = resolve(
                name, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, also=_PAPERS
            )
            click.echo(folder if local_dir is None else _copy(folder, local_dir / last, overwrite))
        except SegawareError as error:
            failed.append(str(error))
    if failed:
        raise Failure("\n".join(failed), 1)


def _copy(folder: Path, target: Path, overwrite: bool) -> Path:
    """Each file beside its place and renamed; through the links of the cache. A model that is another one is not lost."""
    if target.exists() and target.resolve() == folder.resolve():
        return target
    from segaware.zoo.save import copy_files

    files = [file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith(".")]
    try:
        others = [file.name for file in files if (target / file.name).is_file() and not filecmp.cmp(file, target / file.name, shallow=False)]
        if others and not overwrite:
            raise WeightsError(f"{target}: holds another {others[0]}; choose another --local-dir, or replace it with --overwrite")
        target.mkdir(parents=True, exist_ok=True)
        copy_files(files, target)
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written ({error.strerror}); choose another --local-dir") from error
    return target
