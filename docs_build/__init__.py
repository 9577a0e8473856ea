"""What the documentation site takes from the code, so that it cannot say anything else than the code does.

``site`` is the MkDocs hook that fills the places marked in the pages of ``docs/``. The other modules make the parts.
"""
