"""Python imports this at the start of every child process of the tests (see tests/conftest.py)."""

import kept_traces

kept_traces.install_on_import()
