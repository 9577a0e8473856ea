"""Reading of versions, as files whose every byte is verified."""
