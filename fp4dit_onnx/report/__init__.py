"""The error of a bundle against its float model, as one self-contained HTML file.

`measuring` finds the evidence, `data` keeps it in the bundle as report.json, `writing` turns the
manifest and the evidence into report.html.
"""
