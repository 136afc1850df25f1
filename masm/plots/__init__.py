"""Plots of the report, by subject, as SVG text that is the same for the same data."""
