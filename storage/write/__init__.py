"""Writing: uploads, revisions, and the commit that makes versions visible."""
