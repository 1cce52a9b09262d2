"""What a run came to: summary.json for machines, report.html and figures for people, an export for the hub.

In: the stage folders of a finished run. Out: files that need neither the library nor a network.
Start with summary.py; page.py turns it into HTML, plots.py draws, and what notebooks show is in
cards.py, tables.py, progress.py, widgets.py and review_widget.py.
Imports the rooms above; it measures nothing, so a figure is in the summary or it is not in the report.
"""
