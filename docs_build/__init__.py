"""Generates parts of the documentation site from the code, so that the two cannot differ.

``site`` is the MkDocs hook that fills marked places in the pages of ``docs/``. The other modules generate the text.
"""
