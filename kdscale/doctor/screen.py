"""The examination as a person reads it."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.text import Text

from kdscale.doctor.findings import Finding, is_fit

__all__ = ["draw"]

_STYLES = {"ok": "", "note": "yellow", "missing": "yellow", "broken": "red"}
_WIDTH = 14


def draw(findings: list[Finding], console: Console, *, whole_data: bool = False) -> None:
    """Print the findings: software a line each, the folder of runs in one, data sets a line each.

    Args:
        findings: of one examination.
        console: NO_COLOR is its business.
        whole_data: also print where a data set was looked for.
    """
    for section, group in groupby(findings, key=lambda finding: finding.section):
        members = list(group)
        if section == "software":
            _software(members, console)
        elif section == "runs":
            _runs(members, console)
        elif section in ("scheduler", "node"):
            _cluster(section, members, console)
        else:
            _data(members, console, whole=whole_data)
    fit = is_fit(findings)
    lacking = [finding.name for finding in findings if finding.stops]
    verdict = "ready to train" if fit else f"NOT READY: {', '.join(lacking)}"
    console.print(Text(f"\n{verdict}", style="green" if fit else "red"))


def _software(findings: list[Finding], console: Console) -> None:
    for finding in findings:
        mend = Text(f"  {finding.mend}", style="dim") if finding.state != "ok" else Text()
        _line(console, finding.name, _styled(finding) + mend)


def _runs(findings: list[Finding], console: Console) -> None:
    """Where and how much room on one line, what works there on the next, mends below."""
    room = [finding for finding in findings if finding.name == "room"]
    others = [finding for finding in findings if finding.name != "room"]
    for name, group in (("runs", room), ("", others)):
        _line(console, name, Text(" · ").join(_styled(finding) for finding in group))
    for finding in findings:
        if finding.state != "ok":
            _line(console, "", Text(finding.mend, style="dim"))


def _data(findings: list[Finding], console: Console, *, whole: bool) -> None:
    for index, finding in enumerate(findings):
        _line(console, "" if index else "data", Text(f"{finding.name}: ") + _styled(finding))
        for line in finding.mend.splitlines() if whole else []:
            _line(console, "", Text(f"  {line}", style="dim"))


def _cluster(section: str, findings: list[Finding], console: Console) -> None:
    for index, finding in enumerate(findings):
        _line(console, "" if index else section, _styled(finding))
        if finding.state != "ok" and finding.mend:
            _line(console, "", Text(f"  {finding.mend}", style="dim"))


def _styled(finding: Finding) -> Text:
    return Text(finding.text, style="red" if finding.stops else _STYLES[finding.state])


def _line(console: Console, name: str, text: Text) -> None:
    console.print(Text(f"{name:<{_WIDTH}}") + text, soft_wrap=True)
