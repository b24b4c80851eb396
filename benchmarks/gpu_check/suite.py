"""The work of a process that runs pytest over the generic builds, an item a test; see `benchmarks.isolation`."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence

import pytest

from benchmarks.isolation import EXIT_DEVICE_LOST, Say

MAX_FAILURES = 100  # after which the suite stops: nothing works


def work(
    say: Say,
    done: int,
    lost: Mapping[str, str],
    seconds: float,
    *,
    backend: str,
    filter: str = "",
    tests: Sequence[str] = (),
) -> int:
    """Run the tests that are left, of the whole suite unless a part of `tests` is given."""
    plugin = Told(say, done, lost, backend)
    arguments = [f"--backend={backend}", "-q", f"--maxfail={MAX_FAILURES}", "-p", "no:cacheprovider"]
    os.environ.pop("PYTEST_ADDOPTS", None)  # options of the caller's own tests
    status = pytest.main([*arguments, *(("-k", filter) if filter else ()), *tests], [plugin])
    if plugin.device_lost:
        return EXIT_DEVICE_LOST
    return 0 if status in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED) else int(status)


class Told:
    """A plugin that reports each test to the supervisor."""

    def __init__(self, say: Say, done: int, lost: Mapping[str, str], backend: str) -> None:
        self.say, self.done, self.lost, self.backend = say, done, lost, backend
        self.device_lost = False
        self.status, self.detail = "passed", ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out the tests that were run, and that on which an earlier process was lost."""
        self.say(items=len(items))
        del items[: self.done]
        if self.lost:
            self.say(result={"check": items.pop(0).nodeid, "status": "failed", "detail": self.lost[""]})

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Report a test; stop after it if the device no longer answers."""
        self.status, self.detail = "passed", ""
        self.say(item=item.nodeid)
        ran = yield
        self.say(result={"check": item.nodeid, "status": self.status, "detail": self.detail})
        if self.status == "failed" and self.backend == "cuda":
            from gpucnn.backends.cuda.device.cupy_runtime import CupyRuntime

            try:
                CupyRuntime().xp.cuda.runtime.deviceSynchronize()
            except Exception as error:
                self.device_lost = True
                item.session.shouldstop = f"the device does not answer any more: {error}"
        return ran

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how setup, the test or teardown ended; errors are failures."""
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.status, self.detail = "failed", (crash.message if crash else report.longreprtext).partition("\n")[0]
        elif report.skipped and self.status == "passed":
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else "it is expected to fail"
            self.status, self.detail = "not run", reason.removeprefix("Skipped: ")
