"""Reports: from a record to pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.report.chart import Chart as Chart
    from blockyard.report.parts import Parts as Parts
    from blockyard.report.parts import Section as Section
    from blockyard.report.parts import Table as Table
    from blockyard.report.schema import Report as Report
    from blockyard.report.write import load_report as load_report
    from blockyard.report.write import write_report as write_report
else:
    __all__ = exports(
        __name__,
        {
            "chart": "Chart",
            "parts": "Parts Section Table",
            "schema": "Report",
            "write": "load_report write_report",
        },
    )
