"""`nrt report`: run folders → one self-contained HTML page, or a summary for the terminal.

`data.py` reads the folders into one frozen record, `page.py` renders it, and the scripts beside them draw it in the browser.
"""
