"""The page about an artifact: one HTML file with everything in it, for people to read and to send on."""

from mlpdeploy.evidence.report.page.page import page

__all__ = ["page"]
