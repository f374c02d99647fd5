"""A check as JUnit XML, as Jenkins, GitLab and others read it: one test case an outcome."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from tritter_mem.report.check import details, headline, name_of_outcome, notable

if TYPE_CHECKING:
    from tritter_mem.check.outcome import CheckReport, Outcome

SUITE = "tritter-mem check"
# What XML 1.0 has no way to say, beyond what `printable` has made visible already.
_NOT_XML = re.compile("[\ufffe\uffff]")


def render_junit(report: CheckReport, units: str = "GiB") -> str:
    """The whole check: a regression is a failure, what could not be compared or run an error."""
    tests = len(report.outcomes)
    failures = len(report.with_status(["regression"]))
    errors = sum(_is_error(outcome) for outcome in report.outcomes)
    totals = {"tests": str(tests), "failures": str(failures), "errors": str(errors)}
    suites = ET.Element("testsuites", {"name": SUITE, **totals})
    suite = ET.SubElement(suites, "testsuite", {"name": SUITE, **totals})
    for outcome in report.outcomes:
        _add_case(suite, outcome, units)
    ET.indent(suites)
    body = ET.tostring(suites, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _is_error(outcome: Outcome) -> bool:
    return outcome.exit_code != 0 and outcome.status != "regression"


def _add_case(suite: ET.Element, outcome: Outcome, units: str) -> None:
    names = {"name": _text(name_of_outcome(outcome)), "classname": f"tritter_mem.{outcome.kind}"}
    case = ET.SubElement(suite, "testcase", names)
    text = "\n".join([headline(outcome, units), *details(outcome, units)])
    if outcome.exit_code:
        kind = "error" if _is_error(outcome) else "failure"
        about = {"type": outcome.status, "message": _text(headline(outcome, units))}
        ET.SubElement(case, kind, about).text = _text(text)
    elif notable(outcome):
        ET.SubElement(case, "system-out").text = _text(text)


def _text(text: str) -> str:
    return _NOT_XML.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
