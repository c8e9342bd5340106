"""The report of a run: pages and figures."""
