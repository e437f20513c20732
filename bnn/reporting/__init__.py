"""A fit on one HTML page that needs nothing but a browser: what it is, whether to trust it, and where it is unsure.

The function is `bnn.report`; this package bears another name, so that importing it does not hide the function.
"""

from __future__ import annotations

from bnn.reporting.page import report

__all__ = ["report"]
