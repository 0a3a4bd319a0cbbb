"""Reports of a run: a self-contained HTML page, terminal tables, and the document of `mmcl report RUN --json`."""

from mmcl.report.collect import document
from mmcl.report.page import write
from mmcl.report.terminal import anatomy_tables, tables

__all__ = ["anatomy_tables", "document", "tables", "write"]
