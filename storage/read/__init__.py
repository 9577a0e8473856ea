"""Reading: versions as files whose every byte was verified."""
