"""On a test's PYTHONPATH: a machine without matplotlib, whose import and pictures take longer than a tiny run does."""

import sys

sys.modules["matplotlib"] = None  # type: ignore[assignment]
