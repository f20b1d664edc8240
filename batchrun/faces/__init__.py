"""Showing is not doing: everything here reads values handed to it, or the checkpoint, and prints."""
