"""Reports: written as HTML, Markdown, CSV and JSON (html.py, text.py, write.py), with parts of each task's own."""
