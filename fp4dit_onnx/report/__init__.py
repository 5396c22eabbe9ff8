"""What a bundle lost against its float model, as one HTML file that needs nothing else.

`measuring` finds the evidence, `data` keeps it in the bundle as report.json, `writing` turns the
manifest and the evidence into report.html.
"""
