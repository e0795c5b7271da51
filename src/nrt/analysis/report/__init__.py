"""`nrt report`: run folders → one self-contained HTML page, or a summary for the terminal.

`data.py` reads the folders into one frozen record. `page.py` renders it as a page, whose scripts
(the .js files here) draw it in the browser; `text.py` prints it.
"""
