"""``segaware doctor``: the installation, for a bug report, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import json

import click

from segaware.cli.command import Command

__all__ = ["doctor"]


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Show versions, devices, cache, endpoint and flags, and name problems with their repair.

    Asks nothing of the network, and prints neither tokens nor addresses of proxies. The exit code is 0
    whatever is found.
    """
    from segaware.doctor import examine

    findings = examine()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
        return
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        click.echo(f"{finding.name.ljust(width)}  {finding.value}")
    problems = [finding for finding in findings if finding.problem]
    click.echo()
    click.echo(f"{len(problems)} problem{'' if len(problems) == 1 else 's'} found" if problems else "no problems found")
    for finding in problems:
        click.echo(f"  {finding.name}: {finding.problem}")
