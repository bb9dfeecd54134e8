"""A pytest plugin: in continuous integration (CI set) a skip is a failure, unless pip could not have prevented it.

A reason that begins with "needs " names a program, a device or data that a machine may lack. Any other reason, that of
`pytest.importorskip` among them, means that the environment is incomplete and that the test guards nothing.
"""

import os

import pytest

MAY_SKIP = "needs "


def in_ci() -> bool:
    """True if CI is set to anything but nothing, 0 or false."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def fail_if_avoidable(report) -> None:
    """Turn a skipped report into a failed one, if CI must not skip for its reason."""
    if not (in_ci() and report.skipped and isinstance(report.longrepr, tuple)):
        return
    path, line, text = report.longrepr
    reason = text.removeprefix("Skipped: ")
    if not reason.startswith(MAY_SKIP):
        report.outcome = "failed"
        report.longrepr = (
            f"{path}:{line}: skipped in CI: {reason}\n"
            f'Install what is missing. Only a reason that begins with "{MAY_SKIP}" (a program, a device, data) may skip.'
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Reports of tests: skipif, skip and importorskip inside of a test or a fixture."""
    report = yield
    if not hasattr(report, "wasxfail"):
        fail_if_avoidable(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Reports of whole modules: importorskip at their top."""
    report = yield
    fail_if_avoidable(report)
    return report
