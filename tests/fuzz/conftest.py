# SPDX-License-Identifier: Apache-2.0
"""Profiles of hypothesis, and the time of `make fuzz`.

"ci", the default, is derandomised and short: part of the fast tests. "long" draws other examples in every run; each
property gets an equal part of the minutes in FUZZ_MINUTES, and at the end its executions are printed.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Verbosity, configuration, settings


MINUTES = float(os.environ.get("FUZZ_MINUTES", 0))
BATCH = 50  # examples between two looks at the clock
FOLDER = Path(__file__).parent

# function-scoped fixtures are folders and modules here, which examples share without harm
COMMON = {"deadline": None, "database": None, "suppress_health_check": [*HealthCheck], "verbosity": Verbosity.normal}
settings.register_profile("ci", derandomize=True, max_examples=8, **COMMON)
settings.register_profile("long", max_examples=BATCH, print_blob=True, **COMMON)
settings.load_profile("long" if MINUTES else "ci")
configuration.set_hypothesis_home_dir(FOLDER.parents[1] / ".cache" / "hypothesis")

executions: Counter[str] = Counter()
seconds: Counter[str] = Counter()
num_properties = 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    global num_properties
    num_properties = sum(is_property(item) for item in items)


def is_property(item: pytest.Item) -> bool:
    return FOLDER in item.path.parents and hasattr(getattr(item, "obj", None), "hypothesis")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function):
    """Count the examples of a property, and in a long run repeat it until its time is up."""
    if not is_property(pyfuncitem):
        return (yield)
    handle, name = pyfuncitem.obj.hypothesis, pyfuncitem.nodeid.rpartition("/")[2]
    inner = handle.inner_test

    def counted(*args, **kwargs):
        executions[name] += 1
        return inner(*args, **kwargs)

    handle.inner_test = counted
    start = time.monotonic()
    arguments = {argument: pyfuncitem.funcargs[argument] for argument in pyfuncitem._fixtureinfo.argnames}
    try:
        result = yield
        while time.monotonic() - start < 60 * MINUTES / num_properties:
            pyfuncitem.obj(**arguments)
        return result
    finally:
        handle.inner_test = inner
        seconds[name] += time.monotonic() - start


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not MINUTES:
        return
    terminalreporter.section("executions")
    for name in sorted(executions):
        terminalreporter.write_line(f"{executions[name]:8d} in {seconds[name]:6.1f} s  {name}")
    terminalreporter.write_line(f"{sum(executions.values()):8d} in {sum(seconds.values()):6.1f} s  all")
