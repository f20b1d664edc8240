"""The wire: the only room that knows URLs, headers, the key and JSON shapes."""
