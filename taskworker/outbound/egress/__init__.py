"""Outside APIs for functions: by allow-list, over checked and pinned addresses, within limits, audited."""
