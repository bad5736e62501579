"""The parts of the report: its HTML, style and script."""
