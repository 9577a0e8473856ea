"""What a function is as it travels: its document, its bundle, the labels that it needs of workers."""
