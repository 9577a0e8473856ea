"""Functions' requests to outside APIs: by allow-list, to checked and pinned addresses, limited and audited."""
